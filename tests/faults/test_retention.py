"""Block N: kills while a checkpoint is saved and an older one removed; what was said to be saved is there."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from memorysam_cli.engine.train import checkpoints
from tests.faults.conftest import Figures
from tests.faults.jobs_retention import KEEP, SAVED
from tests.faults.scale import amount
from tests.forks import Forks


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("tests.faults.jobs_retention:run") as made:
        yield made


class Kept(NamedTuple):
    """The newest step said to be saved, and the steps of the checkpoints whose sums agree."""

    said: int
    steps: list[int]


def kept(folder: Path) -> Kept:
    lines = (folder.parent / SAVED).read_text().splitlines() if (folder.parent / SAVED).exists() else []
    valid = [path for path in sorted(folder.glob("step-????????")) if checkpoints.is_valid(path)]
    return Kept(max(map(int, lines), default=0), [checkpoints.read(path).position.step for path in valid])


def attempts(folder: Path, forks: Forks, rng: random.Random, way: str) -> Iterator[Kept]:
    """What each of many kills left, within a few saves; each child continues where the one before was killed."""
    few, step = 0.02, 1
    while True:  # the time in which a new child saves some, its first save being slower than the next
        few *= 1.5
        trial = folder.parent / f"trial-{few}" / "checkpoints"
        trial.parent.mkdir(parents=True)
        forks.run(str(trial), 1, way, kill_after=few)
        if kept(trial).said >= 3:
            break
    while True:
        ended = forks.run(str(folder), step, way, kill_after=rng.uniform(0, few))
        assert ended.was_killed, ended.said
        found = kept(folder)
        step = max([found.said, *found.steps]) + 1
        yield found


def lost(found: Kept) -> bool:
    """Whether a kill cost a checkpoint that was said to be saved, or one that should have been kept besides."""
    return (found.said > 0 and max(found.steps, default=0) < found.said) or len(found.steps) < min(KEEP, found.said)


def test_a_hundred_kills_while_saving_and_removing_leave_two_that_verify(
    tmp_path: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    tries, found = amount(100, soak=2000, few=25), Kept(0, [])
    for found in itertools.islice(attempts(tmp_path / "run" / "checkpoints", forks, rng, "ours"), tries):
        assert not lost(found), found
    figures("N", retention_kills=tries, checkpoints_saved=found.said, checkpoints_lost=0)
    assert found.said > tries / 10  # the kills came amidst saving, not before it


def test_removing_before_saving_is_caught(tmp_path: Path, forks: Forks, rng: random.Random, figures: Figures) -> None:
    for number, found in enumerate(attempts(tmp_path / "run" / "checkpoints", forks, rng, "naive"), start=1):
        if lost(found):
            figures("N", naive_retention_kills=number, naive_checkpoints_lost=1)
            return
        assert number < 200, "no kill met the naive one in the midst of its work"
