"""docs/recipes.md: what it shows is what the commands print, and what it says can be typed works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from memorysam_cli import app, recipe

PAGE = (Path(__file__).parent.parent.parent / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_list_is_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    shown = PAGE.split("$ memorysam recipes list\n")[1].split("\n```")[0]
    assert app.run(["recipes", "list"]) == 0
    assert shown + "\n" == capsys.readouterr().out


def test_every_line_that_can_be_typed_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = PAGE.split("```sh\n")[1].split("```")[0].splitlines()
    lines += re.findall(r"`(memorysam recipes [^`]+--set [^`]+)`", PAGE)
    assert len(lines) == 6
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[0] == "memorysam" and app.run(words[1:]) == 0, line
    assert capsys.readouterr().out.startswith("mine.yaml\nok\nextends: deliver\nname: mine\n")
    first = (tmp_path / "mine.yaml").read_text().partition("\n")[0]
    assert f"\n{first}\n" in PAGE


def test_the_short_file_is_the_one_that_the_page_says(tmp_path: Path) -> None:
    text = PAGE.split("## `extends`")[1].split("```yaml\n")[1].split("```")[0]
    (tmp_path / "deliver.yaml").write_text(text)
    assert recipe.load(tmp_path / "deliver.yaml") == recipe.load("deliver", ["train.epochs=50", "about=''"])
