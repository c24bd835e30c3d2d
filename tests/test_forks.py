"""The tool of the kill tests kills, waits, and tells the truth."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.forks import Forks


def work(path: str, seconds: float, code: int) -> int:
    """Runs in a child."""
    print("at work", file=sys.stderr)
    time.sleep(seconds)
    Path(path).write_text("done")
    if code > 9:
        raise ValueError("as asked")
    return code


def test_a_child_ends_by_itself_by_an_exception_or_by_the_kill(tmp_path: Path) -> None:
    with Forks("tests.test_forks:work") as fork:
        own = fork.run(str(tmp_path / "own"), 0, 3)
        assert own.code == 3 and not own.was_killed and own.said == "at work\n" and (tmp_path / "own").exists()
        failed = fork.run(str(tmp_path / "failed"), 0, 10)
        assert failed.code == 1 and "ValueError: as asked" in failed.said
        killed = fork.run(str(tmp_path / "killed"), 30, 0, kill_after=0.05)
        assert killed.was_killed and 0.05 <= killed.seconds < 20 and not (tmp_path / "killed").exists()
        stopped = fork.run(str(tmp_path / "stopped"), 30, 0, kill_after=0.05, stop_with=signal.SIGTERM)
        assert stopped.code == -signal.SIGTERM


def test_the_answer_to_a_run_that_was_given_up_is_not_the_next_ones(tmp_path: Path) -> None:
    class GivenUpError(Exception):
        pass

    def give_up(*_: object) -> None:
        raise GivenUpError

    with Forks("tests.test_forks:work") as fork:
        before = signal.signal(signal.SIGUSR1, give_up)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(GivenUpError):
            fork.run(str(tmp_path / "slow"), 0.5, 3)
        signal.signal(signal.SIGUSR1, before)
        assert fork.run(str(tmp_path / "next"), 0, 4).code == 4


def test_a_child_that_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORYSAM_FORK_LIMIT", "0.2")
    with Forks("tests.test_forks:work") as fork, pytest.raises(TimeoutError, match="still alive"):
        fork.run(str(tmp_path / "hung"), 30, 0)
