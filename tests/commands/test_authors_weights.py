"""docs/authors-weights.md: every command and line of Python on it works as written, on stand-ins."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.engine.weights import exchange
from memorysam_cli.model.reference import reference_shapes

from ..data.trees import write_tree
from ..model.upstream import drawn
from .trained import Program

PAGE = (Path(__file__).parent.parent.parent / "docs" / "authors-weights.md").read_text(encoding="utf-8")
FILES = ("RGBDEL_epoch95_65.38.pth", "epoch3_41.50.pth", "mine.pth")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Program(capsys)
    choose = exchange.choose_recipe

    def small(*arguments: Any, **options: Any) -> Any:
        """A scene of four sensors at 1024 pixels takes a quarter of a minute."""
        recipe = choose(*arguments, **options)
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"image_size": 32})})

    monkeypatch.setattr(exchange, "choose_recipe", small)
    write_tree("deliver", tmp_path / "data" / "DELIVER", scenes={"train": 1, "val": 1, "test": 1})
    state = drawn(reference_shapes("nano", tokens=25, rank=4))
    for name in FILES:
        torch.save(state, tmp_path / name)
    assert "`memorysam prepare deliver ./data`" in PAGE
    assert run("prepare", "deliver", "./data").code == 0
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 8
    said = {}
    for line in lines:
        program, *arguments = shlex.split(line)
        extra = ["--workers", "0"] if arguments[0] == "evaluate" else []
        ended = run(*arguments, *extra)
        assert program == "memorysam" and ended.code == 0, f"{line}: {ended.err}"
        said[line] = ended
    assert "65.38" in said[lines[0]].out
    assert "image, aolp, dolp" in said["memorysam weights info iad.safetensors"].out
    (code,) = blocks("python")
    exec(compile(code, "authors-weights.md", "exec"), {})


def test_the_files_that_it_tells_of_are_understood() -> None:
    told = re.findall(r"^\| `(\S+\.pth)` \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert len(told) == 2
    for name, modalities in told:
        assert ", ".join(exchange.choose_recipe(Path(name), recipe=None, modalities=None).data.modalities) == modalities
