"""Block A: trainings killed at any moment, also while they save, end as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.storage import documents, tensors
from tests.faults.conftest import Figures
from tests.faults.scale import amount
from tests.forks import Ended, Forks

FORKS = "tests.faults.jobs_training:run"

RUNS = 50
KILLS = 200
KILLS_EACH = KILLS // RUNS
SHARE, PLAIN_SHARE = 0.5, 1.0
"""A kill comes within this share of the time that an unkilled run takes: few runs are through before their last one.
Plain trainings save for the first time when a third of theirs is over."""
EARLY, EARLY_SHARE = 0.5, 0.05
"""So many of the kills of a run that has not begun come within this share instead: a first save is soon there."""
CUTS, FIRST_CUT = 0.1, 0.3
"""Share of the attempts that are killed at some byte of a file that they write, not at some moment; until one was."""
NAIVE_RUNS = 50
"""Most of them are lost; so many would all come through less often than once in 10¹⁰ suites."""
MEASURED = {"scenes_per_second", "seconds_data", "peak_memory_gb"}


@dataclass
class Ordeal:
    """A training in a folder of its own, killed until it is through.

    Attributes:
        forks: the server of :mod:`tests.faults.jobs_training`.
        base: has the data.
        way: as there.
        seconds: that an unkilled run takes.
        largest: bytes of the largest file that it writes.
        counts: what was tried, summed over all ordeals.
    """

    forks: Forks
    base: Path
    way: str
    seconds: float
    largest: int
    counts: Counter[str] = field(default_factory=Counter)

    def has_met_all(self) -> bool:
        """Whether some run was killed within a save, at a byte of a file, and before there was a checkpoint."""
        return all(self.counts[what] for what in ("in_a_save", "cuts", "before_the_first_save"))

    def undergo(self, out: Path, rng: random.Random, *, workers: int = 0) -> str | None:
        """Kill and begin again until it ends by itself; what went wrong, if anything did."""
        newest, kills = -1, 0
        while True:
            ended = self._attempt(out, rng, workers, is_spared=kills >= KILLS_EACH)
            kills += ended.was_killed
            saved = newest_step(out)
            if self.way == "ours" and saved < newest:
                return f"step {newest} was saved, {saved} is left"
            newest = max(newest, saved)
            if ended.code >= 0:
                return f"exit code {ended.code}: {ended.said}" if ended.code else None

    def _attempt(self, out: Path, rng: random.Random, workers: int, *, is_spared: bool) -> Ended:
        is_cut = not is_spared and rng.random() < (CUTS if self.counts["cuts"] else FIRST_CUT)
        limit = rng.randrange(1, self.largest) if is_cut else None
        is_early = not out.exists() and rng.random() < EARLY
        share = EARLY_SHARE if is_early else SHARE if self.way == "ours" else PLAIN_SHARE
        due = None if is_cut or is_spared else rng.uniform(0, share * self.seconds)
        before = set(out.rglob(".*.tmp-*"))  # an earlier kill's
        ended = self.forks.run(self.way, str(self.base), str(out), workers, limit, kill_after=due)
        self.counts["kills"] += ended.was_killed
        self.counts["cuts"] += ended.code == -signal.SIGXFSZ
        self.counts["in_a_save"] += ended.was_killed and bool(set(out.rglob(".*.tmp-*")) - before)
        self.counts["before_the_first_save"] += ended.was_killed and not any(out.glob("checkpoints/step-*"))
        return ended


def newest_step(out: Path) -> int:
    """The step of the newest valid checkpoint; -1 for none."""
    found, _ = checkpoints.newest_valid(out / "checkpoints")
    return -1 if found is None else int(found.name.removesuffix(".new").removeprefix("step-"))


def outcome(out: Path) -> dict[str, Any]:
    """All that a finished training leaves but for what the clock says: losses in hex, sums of weights and states."""
    run = RunFolder(out)
    rows = documents.read_json_lines(run.metrics)
    found, damaged = checkpoints.newest_valid(run.checkpoints)
    assert found is not None and not damaged
    result = documents.read_json(run.result)
    state = checkpoints.read(found)
    return {
        "metrics": [[(key, _hex(row[key])) for key in sorted(row.keys() - MEASURED)] for row in rows],
        "weights": {name: tensors.sha256(getattr(run, name)) for name in ("best", "last")},
        "state": {name: tensors.sha256(found / f"{name}.safetensors") for name in checkpoints.TENSORS},
        "position": state.position,
        "kept": sorted(path.name for path in run.checkpoints.iterdir()),
        "left over": [path.name for path in out.rglob(".*.tmp-*")],
        "result": {key: result[key] for key in ("miou", "best_step", "steps", "scenes", "left_out", "laws")},
    }


def _hex(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else value


def weights_of(out: Path) -> str:
    """A sum of what the naive ones leave: of the numbers, since the file has a date of its own."""
    return tensors.digest(torch.load(out / "last.pt", weights_only=True)["model"])


def unkilled(forks: Forks, base: Path, way: str, *, workers: int = 0) -> tuple[Path, float]:
    """A run that nobody disturbs, and its seconds."""
    out = base / f"{way}-unkilled-{workers}"
    shutil.rmtree(out, ignore_errors=True)
    ended = forks.run(way, str(base), str(out), workers, None)
    assert ended.code == 0, ended.said
    return out, ended.seconds


@pytest.fixture(scope="module")
def plain(forks: Forks, base: Path) -> tuple[Path, float]:
    """What the plain trainings leave, which are alike until they are killed, and their seconds."""
    return unkilled(forks, base, "careful")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_kills_at_any_moment_change_not_a_bit(
    half: int, forks: Forks, base: Path, rng: random.Random, figures: Figures
) -> None:
    """200 kills of 50 runs in both halves."""
    whole, seconds = unkilled(forks, base, "ours")
    wanted = outcome(whole)
    with_workers, _ = unkilled(forks, base, "ours", workers=2)
    assert outcome(with_workers) == wanted
    assert wanted["left over"] == [] and all(law["holds"] for law in wanted["result"]["laws"].values())
    largest = max(path.stat().st_size for path in whole.rglob("*.safetensors"))
    ordeal = Ordeal(forks, base, "ours", seconds, largest)
    least_runs, least_kills = amount(RUNS // 2, soak=250, few=4), amount(KILLS // 2, soak=1000, few=14)
    wrong, runs = [], 0
    while runs < least_runs or ordeal.counts["kills"] < least_kills or (runs < RUNS and not ordeal.has_met_all()):
        out = base / f"ours-{half}-{runs}"
        fault = ordeal.undergo(out, rng, workers=2 if runs % 10 == 9 else 0)
        if fault is None and (found := outcome(out)) != wanted:
            fault = ", ".join(key for key in wanted if found[key] != wanted[key])
        wrong += [f"run {runs}: {fault}"] * (fault is not None)
        runs += 1
    resumes = sum(len(documents.read_json_lines(path)) for path in base.glob(f"ours-{half}-*/resumes.jsonl"))
    figures("A", runs=runs, lost=len(wrong), resumes=resumes, **ordeal.counts)
    assert not wrong, "\n".join(wrong)
    assert ordeal.has_met_all() and resumes


@pytest.mark.parametrize("way", ["naive", "forgetful"])
def test_the_same_kills_find_a_naive_training_out(
    way: str, plain: tuple[Path, float], forks: Forks, base: Path, rng: random.Random, figures: Figures
) -> None:
    """One that saves in place, which a kill within a save tears; one that forgets the random numbers."""
    whole, seconds = plain
    ordeal = Ordeal(forks, base, way, seconds, (whole / "last.pt").stat().st_size)
    lost = runs = 0
    while not lost and runs < NAIVE_RUNS:
        out = base / f"{way}-{runs}"
        fault = ordeal.undergo(out, rng)
        lost += fault is not None or weights_of(out) != weights_of(whole)
        runs += 1
    figures("A", naive_runs=runs, naive_lost=lost)
    assert lost


def test_the_same_kills_do_no_harm_to_a_plain_training_that_is_careful(
    plain: tuple[Path, float], forks: Forks, base: Path, rng: random.Random, figures: Figures
) -> None:
    """What finds the naive ones out is their carelessness, not the way they are killed, begun again and compared."""
    whole, seconds = plain
    ordeal = Ordeal(forks, base, "careful", seconds, (whole / "last.pt").stat().st_size)
    runs = amount(5, soak=50, few=1)
    for number in range(runs):
        out = base / f"careful-{number}"
        assert ordeal.undergo(out, rng) is None and weights_of(out) == weights_of(whole)
    figures("A", careful_runs=runs, careful_lost=0)
