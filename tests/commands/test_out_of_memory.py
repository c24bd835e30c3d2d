"""``predict`` and ``evaluate`` without enough memory: exit code 6, one line, what was requested and what helps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from memorysam_cli.data import manifest as manifests
from memorysam_cli.model.network import MemorySAM

from .trained import Program, save_weights

COMMANDS = {
    "evaluate": ["evaluate", "--data", "data", "--workers", "0"],
    "predict": ["predict", "data", "--limit", "1", "--workers", "0"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_line_has_the_numbers_and_the_levers(
    command: str, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(rendered, tmp_path / "data")
    save_weights(tmp_path / "w.safetensors", manifests.read_info(rendered, "synthetic"))

    def greedy(*_: object, **__: object) -> NoReturn:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …")

    monkeypatch.setattr(MemorySAM, "logits", greedy)
    ended = Program(capsys)(*COMMANDS[command], "--weights", "w.safetensors")
    assert ended.code == 6, ended.err
    line = ended.err.splitlines()[-1]
    assert "out of memory on cpu (CUDA out of memory. Tried to allocate 2.00 GiB; peak " in line and " free of " in line
    assert "a smaller --batch" in line and "fewer --modalities" in line
