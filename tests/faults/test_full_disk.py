"""Blocks E and F: a disk that fills up at any moment, and one that must not be written."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Figures
from tests.faults.jobs_disks import COMMANDS, NO_LIMIT
from tests.faults.scale import amount
from tests.forks import Forks

SIZES = {"synthetic": 8, "train": 8, "evaluate": 4, "predict": 8, "merge": 6}
LEAST_BYTES = 1 << 14
"""Room for the user's own file."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def filling(base: Path) -> Iterator[Forks]:
    with Forks("tests.faults.jobs_disks:run", str(base)) as forks:
        yield forks


def seen(filling: Forks, base: Path, name: str, size: int) -> tuple[dict[str, Any], str]:
    ended = filling.run(str(base), name, size)
    assert ended.code == 0, ended.said
    found: dict[str, Any] = json.loads((base / "seen.json").read_text())
    return found, ended.said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_with_6_keeps_what_there_was_and_the_same_command_goes_on_when_there_is_room(
    name: str, filling: Forks, base: Path, rng: random.Random, figures: Figures
) -> None:
    whole, said = seen(filling, base, name, NO_LIMIT)
    assert whole["first"] == whole["second"] == 0 and whole["result"], said
    count, full = amount(SIZES[name], soak=200 // len(COMMANDS), few=2), 0
    for number in range(count):
        low, high = number / count, (number + 1) / count
        size = LEAST_BYTES + int(rng.uniform(low, high) * whole["bytes"])
        found, said = seen(filling, base, name, size)
        first, _, _ = said.partition("-- again --")
        assert found["first"] in {0, 6}, said
        if found["first"] == 6:
            full += 1
            line = first.strip().splitlines()[-1]
            assert line.startswith("memorysam: error [6]: ") and "disk" in line and "free" in line, line
            assert found["claims"] == []
        assert found["kept"] and found["left"] == [] and found["broken"] == [], (size, found, said)
        assert found["second"] == 0 and found["result"] == whole["result"], (size, said)
        assert "Traceback" not in said
    figures("E", disks=count, full=full, lost=0)
    assert full >= count // 2


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_must_not_be_written_is_refused_with_6_before_anything_is_computed(
    name: str, filling: Forks, base: Path, figures: Figures
) -> None:
    ended = filling.run(str(base), name, None)
    figures("F", commands=1)
    assert ended.code == 6, ended.said
    line = ended.said.strip().splitlines()[-1]
    assert line.startswith("memorysam: error [6]: ") and str(base / "disk") in line


@pytest.mark.parametrize("size", [0, None], ids=["full", "read-only"])
def test_a_naive_program_is_caught(size: int | None, filling: Forks, base: Path, figures: Figures) -> None:
    ended = filling.run(str(base), "naive", size)
    found = json.loads(ended.said.strip().splitlines()[-1])
    harm = [not found["kept"], not found["kept_weights"], found["code"] != 6]
    figures("E" if size == 0 else "F", naive_disks=1, naive_harmed=any(harm))
    assert any(harm), ended.said
