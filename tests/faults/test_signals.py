"""Block N: SIGTERM, SIGINT and SIGUSR1 at random moments of a training run; a second one while the first is obeyed."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path
from typing import NamedTuple

import pytest

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.errors import SIGNAL_EXIT_CODES
from memorysam_cli.storage import tensors
from tests.faults.conftest import Figures
from tests.faults.jobs_running import line, steps_done
from tests.faults.scale import amount
from tests.forks import Ended, Forks

FORKS = "tests.faults.jobs_running:run"

LOOP_S = 0.1
"""A few updates; an update takes some hundredths of a second."""
STOPPED = re.compile(r"error \[(\d+)\]: (SIG\w+): checkpoint of step (\d+) saved as (\S+); continue with: (.+)")


class Left(NamedTuple):
    """What a stopped run left: the step of its newest checkpoint, updates that are not in it, checkpoints torn."""

    step: int
    lost: int
    torn: int


def left(run: Path) -> Left:
    newest, damaged = checkpoints.newest_valid(run / "checkpoints")
    step = -1 if newest is None else checkpoints.read(newest).position.step
    return Left(step, max(steps_done(run), 0) - step, len(damaged))


def temporaries(run: Path) -> list[Path]:
    return [path for path in run.rglob("*") if ".tmp-" in path.name]


def test_signals_at_random_moments_cost_no_update(
    base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    tries, run = amount(50, soak=600, few=7), base / "run"
    for number in range(tries):
        if number % 10 == 0:
            run, before = base / f"run-{number}", 0
        which = rng.choice(list(SIGNAL_EXIT_CODES))
        ended = forks.run("signalled", line(base, run), [[rng.uniform(0, LOOP_S), int(which)]], "ours")
        found = STOPPED.search(ended.said)
        assert found is not None, (ended.code, ended.said)
        assert "Traceback" not in ended.said
        assert (ended.code, found[1], found[2]) == (SIGNAL_EXIT_CODES[which], str(SIGNAL_EXIT_CODES[which]), which.name)
        assert left(run) == (int(found[3]), 0, 0) and Path(found[4]).name == f"step-{int(found[3]):08d}"
        assert found[5].split() == ["memorysam", "train", "--resume", str(run)]
        assert int(found[3]) > before  # each continues where the one before stopped
        assert temporaries(run) == []
        before = int(found[3])
    figures("N", signals=tries, updates_lost=0)


def second_signal(base: Path, forks: Forks, rng: random.Random, run: Path, way: str) -> Ended:
    """One signal, and another one while the checkpoint is written."""
    first, second = (int(rng.choice(list(SIGNAL_EXIT_CODES))) for _ in range(2))
    sent = [[rng.uniform(0.02, LOOP_S), first], [rng.uniform(0, 0.2), second]]
    return forks.run("signalled", line(base, run), sent, way)


def test_a_second_signal_ends_at_once_and_tears_nothing(
    base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    tries, cut_short, left_behind = amount(20, soak=300, few=8), 0, set()
    for number in range(tries):
        run = base / f"twice-{number // 5}"
        before = left(run).step if run.exists() else -1
        ended = second_signal(base, forks, rng, run, "ours")
        # One that comes when all is done is the kernel's.
        assert ended.code in {*SIGNAL_EXIT_CODES.values(), *(-number for number in SIGNAL_EXIT_CODES)}, (
            ended.code,
            ended.said,
        )
        assert "Traceback" not in ended.said
        cut_short += "checkpoint of step" not in ended.said
        assert left(run).step >= before and left(run).torn == 0
        # One that comes just after a temporary was made, and before the code that removes it is entered, leaves it.
        left_behind |= {run} if temporaries(run) else set()
        for path in (run / "checkpoints").glob("*.safetensors"):
            tensors.read(path)
    for run in left_behind:  # the next start sweeps it away
        forks.run("signalled", line(base, run), [[0.05, int(signal.SIGTERM)]], "ours")
        assert temporaries(run) == []
    figures("N", second_signals=tries, cut_short=cut_short, torn=0, temporaries_swept=len(left_behind))
    assert cut_short > 0


def test_a_training_that_takes_no_note_of_signals_is_caught(
    base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    for number in range(30):
        run = base / f"deaf-{number}"
        sent = [[rng.uniform(1, 4) * (number + 1) * LOOP_S, int(signal.SIGTERM)]]  # later where updates are slow
        forks.run("signalled", line(base, run), sent, "deaf")
        if left(run).lost > 1:
            figures("N", naive_signals=number + 1, naive_updates_lost=left(run).lost)
            return
    pytest.fail("the naive one lost nothing")


def test_a_checkpoint_that_is_written_in_place_is_caught(
    base: Path, forks: Forks, rng: random.Random, figures: Figures
) -> None:
    for number in range(60):
        run = base / f"in-place-{number}"
        second_signal(base, forks, rng, run, "in place")
        if left(run).torn:
            figures("N", naive_second_signals=number + 1, naive_torn=left(run).torn)
            return
    pytest.fail("no signal met the naive writer in the midst of its work")


def test_an_answer_that_nobody_reads_ends_quietly_with_141_and_all_is_saved(
    base: Path, forks: Forks, figures: Figures
) -> None:
    run = base / "unread"
    for words in (["recipes", "list"], [*line(base, run, "train.max_steps=2"), "--json"], ["--help"]):
        ended = forks.run("unread", words)
        assert (ended.code, ended.said) == (141, ""), (words, ended)
    figures("N", broken_pipes=3)
    assert left(run) == (2, 0, 0)
    found = {path.name for path in (run / "checkpoints").glob("*.safetensors")}
    assert found == {"best.safetensors", "last.safetensors"}


def test_notes_that_nobody_reads_cost_nothing(base: Path, forks: Forks, figures: Figures) -> None:
    run = base / "unheard"
    words = [word for word in line(base, run, "train.max_steps=2") if word != "-q"]
    assert forks.run("unheard", words).code == 0
    assert left(run) == (2, 0, 0)
    said = (run / "train.log").read_text()
    assert "validate: 100 %" in said and "step 2: val mIoU" in said
    assert forks.run("unheard", ["train", "-r", "no such recipe"]).code == 2
    figures("N", broken_pipes=2)


def test_a_signal_at_the_very_start_or_end_of_a_command_is_no_fault(
    forks: Forks, rng: random.Random, figures: Figures
) -> None:
    tries = amount(100, soak=2_000, few=13)
    for number in (signal.SIGINT, signal.SIGTERM):
        for _ in range(tries):
            ended = forks.run("typed", ["recipes", "list"], kill_after=rng.uniform(0, 0.02), stop_with=number)
            # Before the program has taken the signal over, or after its work, the kernel acts.
            assert ended.code in {0, SIGNAL_EXIT_CODES[number], -number}, ended
            assert "Traceback" not in ended.said
    figures("N", early_signals=2 * tries, early_lost=0)
