"""docs/many-scenes.md: every command works as written, and all of them leave the same ledger."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from memorysam_cli.engine import run_folder

from ..engine.stand_ins import write_data
from .trained import Program, save_weights

PAGE = (Path(__file__).parent.parent.parent / "docs" / "many-scenes.md").read_text(encoding="utf-8")
*BLOCKS, RAY = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
SHARDS, TORCHRUN = (block.splitlines() for block in BLOCKS)
(ARRAY,) = re.findall(r"```slurm\n(.*?)```", PAGE, re.DOTALL)
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with prepared data, and a run with its best weights."""
    data = write_data(tmp_path / "data")
    save_weights(tmp_path / "runs/small-1/checkpoints/best.safetensors", data.info)
    (tmp_path / "runs/small-1" / run_folder.RECIPE).write_text("{}")
    (tmp_path / "runs/latest").symlink_to("small-1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, **more: str) -> None:
    """A shell's lines as written, with the programs of this environment."""
    ended = subprocess.run(
        ["bash", "-ec", command], env={**os.environ, **ONE_THREAD, **more}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


def test_the_shards_of_the_page_are_one_prediction(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    memorysam = Program(capsys)
    assert len(SHARDS) == 3
    for line in SHARDS:
        assert not Path("masks/_SUCCESS.json").exists()
        ended = memorysam(*shlex.split(line)[1:], "--workers", 0, "--batch", 1)
        assert ended.code == 0, ended.err
    assert json.loads(Path("masks/_SUCCESS.json").read_text())["done"] == 6


@pytest.mark.slow
def test_torchrun_and_an_array_leave_the_same_ledger(here: Path) -> None:
    run("memorysam predict ./data --out ./masks")
    for line in TORCHRUN:
        run(line)
    for task in ("1", "0"):
        run(ARRAY, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2")
    ledgers = {Path(out, "predictions.jsonl").read_bytes() for out in ("masks", "masks-of-two", "masks-of-array")}
    assert len(ledgers) == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_leaves_the_same_ledger(here: Path) -> None:
    run("memorysam predict ./data --out ./masks")
    run(RAY)
    assert Path("masks/predictions.jsonl").read_bytes() == Path("masks-of-ray/predictions.jsonl").read_bytes()
