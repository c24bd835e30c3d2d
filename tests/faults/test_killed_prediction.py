"""Block M: predictions that are killed at any moment lose no scene, tear no file, and compute nearly nothing twice."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from memorysam_cli.engine.predict.segment import MOST_WAITING
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images
from tests.faults.conftest import Figures
from tests.faults.jobs_prediction import BAD, BATCH, SIZE_PX
from tests.faults.scale import amount
from tests.forks import Forks

SCENES = amount(1000, soak=1000, few=500)
PART = ".parts/0-of-1/predictions.jsonl"
LEFT_OUT = 4
IN_FLIGHT = MOST_WAITING + BATCH
"""Scenes that are computed and have no line yet, at most: those that wait to be written, and those just decided."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prediction")


@pytest.fixture(scope="module")
def fork(base: Path) -> Iterator[Forks]:
    with Forks("tests.faults.jobs_prediction:do", str(base), str(SCENES)) as found:
        yield found


@dataclass
class Whole:
    """What a run that nobody disturbs leaves, and how long it takes."""

    digests: dict[str, str]
    seconds: float


@pytest.fixture(scope="module")
def whole(base: Path, fork: Forks) -> Whole:
    (base / "whole").mkdir()
    ended = fork.run("run", str(base / "whole"), str(base / "whole/log"))
    assert ended.code == LEFT_OUT, ended.said
    found = Whole(digests(base / "whole/out"), ended.seconds)
    assert len(lines(base / "whole/out/predictions.jsonl")) == SCENES
    assert sum(name.startswith("masks/") for name in found.digests) == SCENES - len(BAD)
    return found


def digests(out: Path) -> dict[str, str]:
    """Everything below a folder but its lock."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def lines(ledger: Path) -> list[str]:
    """The scenes of a ledger's whole lines."""
    if not ledger.is_file():
        return []
    return [json.loads(text)["id"] for text in ledger.read_bytes().split(b"\n")[:-1]]


def tear(ledger: Path, rng: random.Random) -> bool:
    """Cut the last line of a ledger somewhere, as a kill in the midst of writing it would."""
    texts = ledger.read_bytes().splitlines(keepends=True) if ledger.is_file() else []
    if not texts:
        return False
    ledger.write_bytes(b"".join(texts[:-1]) + texts[-1][: rng.randrange(1, len(texts[-1]))])
    return True


@dataclass
class Tally:
    """What the kills did."""

    kills: int = 0
    phases: Counter[str] = field(default_factory=Counter)
    torn: int = 0
    recorded_again: int = 0
    """Scenes that had a line and were computed once more."""
    unrecorded: int = 0
    """Scenes that were computed, and killed before they had a line."""
    finished: int = 0


def noted(out: Path) -> list[str]:
    """The scenes that have a line, wherever the ledger is in this moment."""
    return lines(out / PART) or lines(out / "predictions.jsonl")


def attempt(
    fork: Forks,
    place: Path,
    tally: Tally,
    *,
    kill_after: float | None,
    what: str = "run",
    notes: Callable[[Path], list[str]] = noted,
) -> bool:
    """One start of the command, perhaps killed; returns whether it came to its end.

    Raises:
        AssertionError: more was lost or done twice than may be.
    """
    before, log = set(notes(place / "out")), place / "log"
    log.unlink(missing_ok=True)
    ended = fork.run(what, str(place), str(log), kill_after=kill_after)
    computed = log.read_text().split() if log.exists() else []
    assert len(computed) == len(set(computed)), "a scene was computed twice in one run"
    again = before & set(computed)
    assert len(again) < BATCH, f"{len(again)} scenes that had a line were computed again"
    tally.recorded_again += len(again)
    if not ended.was_killed:
        assert ended.code in {0, LEFT_OUT}, ended.said
        return True
    tally.kills += 1
    after = set(notes(place / "out"))
    lost = set(computed) - after
    assert len(lost) <= IN_FLIGHT, f"{len(lost)} scenes were computed and not noted"
    tally.unrecorded += len(lost)
    tally.phases["finish" if len(after) == SCENES else "middle" if after else "beginning"] += 1
    return False


def test_kills_over_many_scenes_lose_and_tear_nothing(
    base: Path, fork: Forks, whole: Whole, rng: random.Random, figures: Figures
) -> None:
    tally, wanted = Tally(), amount(80, soak=2000, few=12)
    number = 0
    while tally.kills < wanted:
        place = base / f"kills{number}"
        place.mkdir()
        number += 1
        # At first most kills come before the first new scene is done; later ones leave more time, so that all jobs end.
        shares = itertools.count(0.1, amount(2, soak=2, few=20) / 1000)
        while not attempt(fork, place, tally, kill_after=rng.uniform(0, whole.seconds * next(shares))):
            tally.torn += rng.random() < 0.25 and tear(place / "out" / PART, rng)
        assert digests(place / "out") == whole.digests
        tally.finished += 1
        shutil.rmtree(place)
    figures(
        "M", kills=tally.kills, jobs=tally.finished, scenes=tally.finished * SCENES, lost=0, torn_lines=tally.torn,
        recorded_and_computed_again=tally.recorded_again, computed_and_killed_before_their_line=tally.unrecorded,
    )  # fmt: skip
    assert tally.phases["middle"] >= wanted // 4, tally
    assert tally.recorded_again <= (tally.kills + tally.torn) * (BATCH - 1)


def test_kills_while_a_prediction_ends_cost_only_to_end_it_again(
    base: Path, fork: Forks, whole: Whole, rng: random.Random, figures: Figures
) -> None:
    ready = base / "ready"
    ready.mkdir()
    fork.run("run", str(ready), str(base / "log"), "merge")
    assert len(lines(ready / "out" / PART)) == SCENES
    tally, wanted, seconds = Tally(), amount(20, soak=500, few=3), 0.0
    while tally.kills < wanted:
        place = base / "ending"
        shutil.copytree(ready, place)
        if not seconds:
            begun = time.monotonic()
            assert attempt(fork, place, tally, kill_after=None)
            seconds = time.monotonic() - begun
        else:
            shares = itertools.count(1, 0.1)  # what took so long once may take longer, and never end
            while not attempt(fork, place, tally, kill_after=rng.uniform(0, seconds * next(shares))):
                pass
        assert digests(place / "out") == whole.digests
        shutil.rmtree(place)
    assert tally.phases["finish"] == tally.kills and not tally.recorded_again, tally
    figures("M", kills=tally.kills, lost=0)


def test_the_naive_way_forgets_what_it_did_and_tears_masks(
    base: Path, fork: Forks, rng: random.Random, figures: Figures
) -> None:
    harmed, tried, torn = 0, amount(10, soak=200, few=5), 0
    for number in range(4 * tried):
        if number >= tried and harmed:
            break
        place = base / "naive" / str(number)
        place.mkdir(parents=True)
        if number % 5 == 0:  # again and again: other tests share the machine
            seconds = fork.run("run_naive", str(place), str(place / "log")).seconds
            shutil.rmtree(place / "out")
        try:
            when = rng.uniform(0.35, 0.75) * seconds
            attempt(fork, place, Tally(), kill_after=when, what="run_naive", notes=naively_noted)
        except AssertionError:
            harmed += 1
        torn += sum(not is_mask(path) for path in place.rglob("*.png"))
    figures("M", naive_tried=number, naive_harmed=harmed, naive_torn_masks=torn)
    assert harmed, "the naive way passes: this harness sees nothing"


def naively_noted(out: Path) -> list[str]:
    path = out / "done.json"
    return json.loads(path.read_text()) if path.exists() else []


def is_mask(path: Path) -> bool:
    with contextlib.suppress(DataError):
        return images.read(path).shape == (SIZE_PX, SIZE_PX)
    return False


def test_memory_does_not_grow_with_the_scenes(base: Path, fork: Forks, figures: Figures) -> None:
    peaks: dict[tuple[int, bool], int] = {}
    for count, hoards in ((10, False), (60, False), (60, True)):
        place = base / "memory" / f"{count}-{hoards}"
        place.mkdir(parents=True)
        ended = fork.run("peak", str(place), count, hoards)
        assert ended.code == 0, ended.said
        peaks[count, hoards] = json.loads((place / "peak.json").read_text())
    assert peaks[60, False] <= 1.1 * peaks[10, False], peaks
    assert peaks[60, True] > 1.1 * peaks[10, False], f"a program that keeps everything passes: {peaks}"
    figures("M", memory_runs=len(peaks))
