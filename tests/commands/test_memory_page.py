"""docs/memory.md: every command works as written."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.measure import trials
from memorysam_cli.engine.measure.plan import MARGIN
from memorysam_cli.engine.measure.trials import Outcome, Trial
from memorysam_cli.engine.surroundings import Capacity
from memorysam_cli.errors import EXIT_CODES

from ..data.trees import write_tree
from ..engine.measure import test_count
from .trained import Program, uncounted

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
TINY = [
    "model.backbone=nano",
    "data.image_size=32",
    "data.workers=0",
    "train.max_steps=1",
    "data.modalities=[img,depth]",
]
QUICK = [word for change in TINY for word in ("--set", change)]
CARD = Capacity(total=80 * 10**9, free=79 * 10**9)


def test_every_command_of_the_page_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a card of 80 GB where nothing is counted and no trial is run, and whatever is tried second fits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMORYSAM_DATA", raising=False)
    memorysam = Program(capsys)
    write_tree("deliver", tmp_path / "data" / "DELIVER", scenes={"train": 4, "val": 1, "test": 1})
    assert memorysam("prepare", "deliver", "./data").code == 0
    seen: list[Trial] = []

    def run(trial: Trial) -> Outcome:
        seen.append(trial)
        return Outcome(len(seen) % 2 == 0, "" if len(seen) % 2 == 0 else "needs more", (1.0,), peak=10**9)

    uncounted(monkeypatch)
    monkeypatch.setattr(trials, "run", run)
    monkeypatch.setattr(trials, "capacity", lambda device: CARD)
    assert [command[0] for command in COMMANDS] == ["plan", "plan", "plan", "train", "train", "train"]
    for command in COMMANDS:
        changes = ["--set", "train.max_steps=2"] if "--resume" in command else QUICK
        ended = memorysam(*command, *changes)
        assert ended.code == 0, f"memorysam {shlex.join(command)}: {ended.err}"
    assert [trial.limit for trial in seen] == [int(CARD.free * 0.9)] * 4, "of --try and --batch auto: off, then on"
    runs = [
        recipes.load(path / "recipe.yaml").train for path in (*(tmp_path / "runs").glob("deliver-*"), Path("runs/mine"))
    ]
    assert [(train.batch, train.accumulate, train.saver) for train in runs] == [(4, 1, "on"), (4, 1, "on")]


def test_the_page_says_what_the_code_does() -> None:
    assert MARGIN == 0.1 and "**a tenth stays free**" in PAGE
    assert trials.TIMEOUT == 60 * 60 and "(60 minutes)" in PAGE
    low, high = test_count.TOLERANCE
    assert f"allows {low} to {high}" in PAGE
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert told == {0, 2, 3, 6} and told <= set(EXIT_CODES)


CELLS = [("tiny", 1, 8), pytest.param("tiny", 2, 8, marks=pytest.mark.slow)]
"""Quick ones: the whole table takes minutes."""


@pytest.mark.parametrize(("size", "sensors", "card"), CELLS)
def test_the_table_is_what_is_counted(size: str, sensors: int, card: int) -> None:
    spec = importlib.util.spec_from_file_location("memory_table", ROOT / "scripts" / "memory_table.py")
    assert spec is not None and spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in table.table_of(PAGE).splitlines()]
    assert len(lines) == 2 + len(table.SIZES) * len(table.SENSORS)
    row = next(line for line in lines if line[:2] == [size, str(sensors)])
    assert row[lines[0].index(f"{card} GB")] == table.cell(size, sensors, card)
