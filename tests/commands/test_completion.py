"""What Tab offers, asked for as the shells ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memorysam_cli.commands import options

HEAVY = ("torch", "numpy", "cv2", "pydantic", "rich")


def asked(shell: str, line: str, where: Path) -> list[str]:
    """The program's answer to a shell's question for the end of a line."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_MEMORYSAM_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    program = "import sys; sys.argv[0] = 'memorysam'; from memorysam_cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=where, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_the_recipes(shell: str, tmp_path: Path) -> None:
    found = " ".join(asked(shell, "memorysam train --recipe mcu", tmp_path))
    assert all(name in found for name in ("mcubes", "mcubes-ia", "mcubes-iad")) and "deliver" not in found


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("memorysam tra", {"train"}),
        ("memorysam evaluate --device cu", {"cuda", "cuda:0", "cuda:1"}),
        ("memorysam check . --dataset mc", {"mcubes"}),
        ("memorysam recipes show de", {"default", "deliver", "deliver-rgbd", "deliver-robust", "demo"}),
        ("memorysam watch ru", {"runs/demo-1", "runs/"}),
        ("memorysam train --recipe mi", {"mine.yaml"}),
    ],
)
def test_names_that_memorysam_knows_are_offered(line: str, offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mind.txt").touch()
    (tmp_path / "runs" / "demo-1").mkdir(parents=True)
    (tmp_path / "runs" / "demo-1" / "recipe.yaml").touch()
    assert set(asked("bash", line, tmp_path)) == offered


def test_prepared_data_sets_are_offered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memorysam" / "field").mkdir(parents=True)
    (tmp_path / "memorysam" / "field" / "dataset.json").touch()
    monkeypatch.setenv("MEMORYSAM_DATA", str(tmp_path))
    assert options.data_sets("f") == ["field", "fmb"]


def test_paths_are_offered_as_they_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert options.recipe_names("sub/") == ["sub/a.yaml"]
    assert options.recipe_names(f"{tmp_path}/sub/a") == [f"{tmp_path}/sub/a.yaml"]
    assert options.recipe_names("nowhere/x") == []


def test_no_name_that_drives_a_terminal_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "odd\x1b[2J", "odd\udcff", "odd\n"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").touch()
    assert options.runs("runs/") == ["runs/plain", "runs/plain/"]


def test_nothing_heavy_is_imported_for_it() -> None:
    program = (
        "import sys; from memorysam_cli import app; from memorysam_cli.commands import options as c; app.build()\n"
        f"c.recipe_names(''); c.devices(''); c.data_sets(''); c.runs('')\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
