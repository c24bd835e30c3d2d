"""Block L: several processes, of which one dies, meets what is not finite, or is not like the others."""

from __future__ import annotations

import itertools
import json
import random
import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from memorysam_cli.data import manifest as manifests
from memorysam_cli.engine import lost_processes
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.errors import SIGNAL_EXIT_CODES
from memorysam_cli.storage import documents, lock, tensors
from tests.faults import jobs_running
from tests.faults.conftest import Figures
from tests.faults.jobs_ranks import BATCHES, NUMBERS, PATIENCE_S, confusions
from tests.faults.naive import ranks as naive
from tests.faults.scale import amount
from tests.forks import Forks

FORKS = "tests.faults.jobs_ranks:run"

LOST = re.compile(
    r"error \[6\]: rank (\d+) was lost, .+; this was after step (\d+); continue with: .*\btrain --resume (\S+)"
)
WORLDS = (1, 2, 3)


class Rank(NamedTuple):
    """How one of several processes ended."""

    code: int
    seconds: float
    said: str


def launch(forks: Forks, base: Path, out: Path, work: str, world: int, **options: Any) -> list[Rank]:
    ended = forks.run(work, world, str(base), str(out), options)
    assert ended.code == 0, ended.said
    return [Rank(**each) for each in json.loads((out / "answer.json").read_text())]


@pytest.mark.timeout(240)
def test_a_killed_process_ends_the_others_at_once_by_name_and_costs_no_checkpoint(
    base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    tries, slowest = amount(20, soak=200, few=3), 0.0
    for number in range(tries):
        world, out = rng.choice((2, 3)), base / f"kill-{number}"
        killed = rng.randrange(world)
        ranks = launch(forks, base, out, "train", world, every=1, end=[killed, signal.SIGKILL, rng.uniform(0, 0.3)])
        assert ranks[killed].code == -signal.SIGKILL, ranks
        newest, damaged = checkpoints.newest_valid(out / "run" / "checkpoints")
        assert newest is not None and not damaged
        for rank, each in enumerate(ranks):
            if rank != killed:
                assert each.code == 6 and "Traceback" not in each.said, each
                told = LOST.search(each.said)
                assert told is not None and int(told[1]) == killed, (killed, each.said)
                assert abs(checkpoints.read(newest).position.step - int(told[2])) <= 1
                assert Path(told[3]) == out / "run"
                slowest = max(slowest, each.seconds - ranks[killed].seconds)
        with lock.hold(out / "run"):
            pass
    figures("L", killed_ranks=tries, checkpoints_lost=0)
    assert slowest < 30 and lost_processes.GRACE_S < 30
    # The last of these continues with the same command.
    last = checkpoints.read(newest).position.step + 2
    again = launch(forks, base, out, "train", world, every=1, updates=last)
    assert [each.code for each in again] == [0] * world, again
    rows = documents.read_json_lines(out / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, last + 1)]


@pytest.mark.timeout(240)
def test_two_processes_that_are_killed_again_and_again_learn_the_same_bits(
    base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    updates, kills, last = 5, 0, f"checkpoints/step-{5:08d}"
    how: dict[str, Any] = {"every": 1, "updates": updates}
    honest, out = base / "two-honest", base / "two-killed"
    assert [each.code for each in launch(forks, base, honest, "train", 2, **how)] == [0, 0]
    for number in range(amount(4, soak=100, few=1)):
        run = out / str(number)
        for _ in range(amount(4, soak=4, few=2)):
            end = [rng.randrange(2), signal.SIGKILL, rng.uniform(0, 0.15)]
            ranks = launch(forks, base, run, "train", 2, end=end, **how)
            kills += any(each.code == -signal.SIGKILL for each in ranks)
        again = launch(forks, base, run, "train", 2, **how)
        assert [each.code for each in again] == [0, 0], again
        for name in checkpoints.TENSORS:
            one, two = (folder / "run" / last / f"{name}.safetensors" for folder in (run, honest))
            assert tensors.sha256(one) == tensors.sha256(two), name
        losses = [
            [
                (row["step"], row["loss"])
                for row in documents.read_json_lines(folder / "run" / "metrics.jsonl")
                if "loss" in row
            ]
            for folder in (run, honest)
        ]
        assert losses[0] == losses[1]
    figures("L", kills_of_two=kills, bits_differing=0)
    assert kills


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGUSR1, signal.SIGHUP))],
    ids=lambda number: number.name,
)
def test_a_signal_to_one_process_stops_all_after_the_same_update(
    number: signal.Signals, base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    world, out = rng.choice((2, 3)), base / number.name
    asked = rng.randrange(world)
    ranks = launch(forks, base, out, "train", world, end=[asked, number, rng.uniform(0, 0.3)])
    codes = [SIGNAL_EXIT_CODES[number] if rank == asked else 143 for rank in range(world)]
    assert [each.code for each in ranks] == codes, ranks
    newest, damaged = checkpoints.newest_valid(out / "run" / "checkpoints")
    assert newest is not None and not damaged
    assert all(f"checkpoint of step {int(newest.name.removeprefix('step-'))} saved" in each.said for each in ranks)
    rows = documents.read_json_lines(out / "run" / "metrics.jsonl")
    assert max(row["step"] for row in rows) == checkpoints.read(newest).position.step
    figures("L", signals_to_one=1, updates_lost=0)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("loss", "inf"), *(pytest.param(kind, "nan", marks=pytest.mark.slow) for kind in ("image", "gradient"))],
)
def test_what_is_not_finite_in_one_process_ends_all_with_8_and_reaches_no_weight(
    kind: str, value: str, base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    world, step, out = rng.choice((2, 3)), rng.randrange(1, 3), base / f"{kind}-{value}"
    spoilt = [rng.randrange(world), kind, value, step, rng.randrange(2**31)]
    ranks = launch(forks, base, out, "train", world, every=1, spoilt=spoilt)
    assert [each.code for each in ranks] == [8] * world, ranks
    assert all(f"error [8]: step {step + 1}: loss " in each.said for each in ranks), ranks
    newest, damaged = checkpoints.newest_valid(out / "run" / "checkpoints")
    assert newest is not None and newest.name == f"step-{step:08d}" and not damaged
    # What was saved before that update by the same processes, undisturbed.
    honest = base / f"honest-{world}"
    if not honest.exists():
        assert [each.code for each in launch(forks, base, honest, "train", world, every=1, updates=3)] == [0] * world
    for name in ("model.safetensors", "optimizer.safetensors"):
        wanted = honest / "run" / "checkpoints" / newest.name / name
        assert tensors.sha256(newest / name) == tensors.sha256(wanted), name
    figures("L", one_rank_not_finite=1, weights_changed=0)


def test_processes_with_other_data_are_refused_before_the_first_update(
    base: Path, forks: Forks, figures: Figures
) -> None:
    ranks = launch(forks, base, base / "uneven", "train", 2, data="fewer")
    assert [each.code for each in ranks] == [2, 2], ranks
    assert all("differs between the processes" in each.said for each in ranks), ranks
    assert max(each.seconds for each in ranks) < PATIENCE_S
    assert not (base / "uneven" / "run" / "metrics.jsonl").exists()
    figures("L", uneven=1, hung=0)


def test_processes_that_are_more_than_the_scenes_are_refused_by_all_of_them(
    base: Path, forks: Forks, figures: Figures
) -> None:
    ranks = launch(forks, base, base / "many", "train", jobs_running.EPOCH + 1)
    assert {each.code for each in ranks} == {3}, ranks
    assert all("fewer than the 4 of one update" in each.said for each in ranks), ranks
    figures("L", fewer_scenes_than_ranks=1, hung=0)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_dies_before_all_are_connected_is_named_soon(
    missing: int, base: Path, forks: Forks, figures: Figures
) -> None:
    """Not after gloo's half an hour; a patience of two seconds stands for two minutes."""
    ranks = launch(forks, base, base / f"late-{missing}", "come_late", 2, missing=missing)
    other = ranks[1 - missing]
    assert other.code == 6 and other.seconds < PATIENCE_S, ranks
    # The first process holds what they meet by: without it nobody knows who is missing.
    assert ("rank 1 of 2 did not come within 2 s" if missing else "not all 2 processes came together") in other.said
    figures("L", dead_before_connected=1, hung=0)


def test_a_process_that_hears_of_nothing_is_ended_when_another_is_lost(
    base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    """As one that waits for a GPU that waits for the other's: no exception reaches it. Two seconds stand for twenty."""
    stopped = rng.randrange(3)
    ranks = launch(forks, base, base / "stuck", "stop_dead", 3, stopped=stopped, grace_s=2.0)
    for rank, each in enumerate(ranks):
        if rank != stopped:
            assert each.code == 6 and each.seconds < 30, ranks
            assert (
                f"error [6]: rank {stopped} was lost, and this process still waited for it; continue somehow"
                in each.said
            )
    figures("L", stuck_ranks=2, hung=0)


@pytest.fixture(scope="module")
def wanted(base: Path, forks: Forks) -> dict[str, Any]:
    """The counts of one process without any group, in batches of one."""
    manifest = manifests.read(base / "scored", "tiny")
    return {str(number): confusions(manifest, manifest.of_split("val")[:number], batch=1) for number in NUMBERS}


@pytest.mark.parametrize("world", WORLDS)
def test_counts_are_the_same_bits_for_any_processes_batches_and_scenes(
    world: int, wanted: dict[str, Any], base: Path, forks: Forks, figures: Figures
) -> None:
    out = base / f"score-{world}"
    ranks = launch(forks, base, out, "score", world)
    assert [each.code for each in ranks] == [0] * world, ranks
    found = json.loads((out / "found.json").read_text())
    cells = list(itertools.product(NUMBERS, BATCHES))
    differing = [(number, batch) for number, batch in cells if found[f"{number} {batch}"] != wanted[str(number)]]
    figures("L", counts=len(cells), counts_differing=len(differing))
    assert not differing


def test_torchs_own_sampler_is_caught_counting_twice(wanted: dict[str, Any], base: Path, figures: Figures) -> None:
    manifest = manifests.read(base / "scored", "tiny")
    scenes = manifest.of_split("val")
    differing = 0
    for number, world in itertools.product(NUMBERS, WORLDS):
        total = sum(
            np.array(confusions(manifest, naive.share(scenes[:number], rank=rank, world=world), batch=1))
            for rank in range(world)
        )
        differing += int(not np.array_equal(total, np.array(wanted[str(number)])))
    figures("L", naive_counts=len(NUMBERS) * len(WORLDS), naive_counts_differing=differing)
    assert differing


def test_updates_that_are_not_as_many_everywhere_are_caught_hanging(base: Path, forks: Forks, figures: Figures) -> None:
    ranks = launch(forks, base, base / "naive", "naive_updates", 2, hang_s=3)
    hung = sum(each.code == -signal.SIGKILL for each in ranks)
    figures("L", naive_uneven=1, naive_hung=hung)
    assert hung
