"""Block N: runs that start in one folder at once, owners that are killed, and records of those that are long gone."""

from __future__ import annotations

import json
import os
import random
import socket
import time
from pathlib import Path

import pytest

from memorysam_cli.errors import FolderInUseError
from memorysam_cli.storage import lock
from tests.faults.conftest import Figures
from tests.faults.jobs_locks import REFUSED, WON, Hold, started
from tests.faults.naive import locking
from tests.faults.scale import amount

STARTS = 20


class LyingLocks:
    """A file system whose kernel grants every lock to everybody, as Lustre's may."""

    LOCK_EX = LOCK_NB = 0

    @staticmethod
    def flock(_descriptor: int, _how: int) -> None:
        return None


@pytest.fixture(params=["kernel's", "marker's"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Locks as the kernel keeps them, and where it does not keep them."""
    if request.param == "marker's":
        monkeypatch.setattr(lock, "fcntl", LyingLocks)
        monkeypatch.setattr(lock, "needs_marker", lambda _: True)
    return str(request.param)


def winners(folder: Path, hold: Hold, count: int = STARTS) -> int:
    """How many of those that start at once own the folder; the others must be told by whom."""
    with started(count, folder, hold) as starts:
        found = starts.race()
        won = [said for code, said in found if code == WON]
        assert len(won) + sum(code == REFUSED for code, _ in found) == count, found
        if len(won) == 1 and hold is lock.hold:
            # Without the kernel's help, one that comes in between may be told of another one of these.
            known = won if lock.fcntl is not LyingLocks else [str(pid) for pid in starts.pids]
            owners = tuple(f"{folder}: in use by {socket.gethostname()} pid {pid} since " for pid in known)
            assert all(said.startswith(owners) for code, said in found if code == REFUSED), found
    return len(won)


def test_of_twenty_racing_starts_exactly_one_wins(way: str, tmp_path: Path, figures: Figures) -> None:
    """Each round finds the folder as the killed winner of the last one left it."""
    rounds = amount(4, soak=100, few=2)
    won = [winners(tmp_path / "run", lock.hold) for _ in range(rounds)]
    figures("N", racing_starts=rounds * STARTS, second_owners=sum(won) - rounds)
    assert won == [1] * rounds


def test_the_folder_of_a_killed_owner_is_free_at_once(way: str, tmp_path: Path, figures: Figures) -> None:
    rounds, slowest = amount(10 if way == "kernel's" else 3, soak=200, few=2), 0.0
    for _ in range(rounds):
        assert winners(tmp_path, lock.hold, count=1) == 1
        begun = time.monotonic()
        with lock.hold(tmp_path):
            slowest = max(slowest, time.monotonic() - begun)
    figures("N", killed_owners=rounds, folders_blocked=0)
    assert slowest < 2


def test_a_second_run_is_refused_within_two_seconds(way: str, tmp_path: Path) -> None:
    with lock.hold(tmp_path):
        begun = time.monotonic()
        with pytest.raises(FolderInUseError, match=f"pid {os.getpid()} since"), lock.hold(tmp_path):
            pytest.fail("held twice")
        assert time.monotonic() - begun < 2


RECORD = {"host": "node7", "since": "2026-01-01T00:00:00+00:00", "command": "memorysam train --out runs/a"}


def leave_record(folder: Path, rng: random.Random) -> None:
    """What a run left that is long gone: of this machine with a number that lives again, or of another machine."""
    here = rng.random() < 0.5
    record = RECORD | {"pid": os.getppid() if here else rng.randrange(2, 2**22), "started": rng.randrange(1000)}
    record |= {"where": lock.this_kernel() if here else "another boot pid:[7]", "token": f"{rng.getrandbits(64):x}"}
    text = json.dumps(record)
    text = text[: rng.randrange(len(text))] if rng.random() < 0.3 else text  # killed while it signed
    for name in lock.NAMES:
        (folder / name).write_text(text)
        os.utime(folder / name, (1, 1))


def test_a_record_of_a_run_that_is_gone_blocks_nothing(
    way: str, tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    monkeypatch.setattr(lock, "SETTLE_S", 0.01)
    rounds = amount(40, soak=1000, few=20)
    for _ in range(rounds):
        leave_record(tmp_path, rng)
        with lock.hold(tmp_path):
            assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    figures("N", stale_records=rounds, folders_blocked=0)


def test_a_folder_from_another_host_is_free_unless_hosts_share_it_and_its_owner_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = json.dumps(RECORD | {"pid": 7, "where": "another boot pid:[7]", "started": 1})
    for name in lock.NAMES:
        (tmp_path / name).write_text(alive)
    with lock.hold(tmp_path):  # a disk of this machine alone: the folder was copied here
        pass
    (tmp_path / lock.MARKER_NAME).write_text(alive)
    monkeypatch.setattr(lock, "needs_marker", lambda _: True)
    with pytest.raises(FolderInUseError, match="in use by node7 pid 7 since 2026"), lock.hold(tmp_path):
        pytest.fail("held twice")


def test_a_file_with_a_process_number_is_caught(tmp_path: Path, figures: Figures) -> None:
    """Two may own the folder at once, and a number that lives again blocks it for ever."""
    won = []
    while max(won, default=1) == 1 and len(won) < 200:
        won.append(winners(tmp_path / f"run-{len(won)}", locking.hold))
    (tmp_path / "stale").mkdir()
    (tmp_path / "stale" / "run.pid").write_text(str(os.getppid()))
    with pytest.raises(FolderInUseError), locking.hold(tmp_path / "stale"):
        pytest.fail("it should believe the number")
    figures("N", naive_racing_starts=len(won) * STARTS, naive_second_owners=max(won) - 1, naive_folders_blocked=1)
    assert max(won) > 1
