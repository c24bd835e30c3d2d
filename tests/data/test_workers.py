from __future__ import annotations

import errno
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from memorysam_cli.data import workers
from memorysam_cli.data.workers import GRACE_S, LostPart, Source, load
from memorysam_cli.errors import DataError, EnvironmentFault


class Numbers(Source[torch.Tensor]):
    """Ten times the index; 3 is bad data, 4 kills its process, 5 is our own bug."""

    def item(self, index: int) -> torch.Tensor:
        if index == 3:
            raise DataError("three: is bad; take another")
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 5:
            raise ZeroDivisionError("our bug")
        return torch.tensor(10 * index)


@pytest.mark.parametrize("workers", [0, 1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_items_come_in_the_asked_order(workers: int) -> None:
    assert [int(item) for item in load(Numbers(), [2, 0, 1, 2], workers=workers)] == [20, 0, 10, 20]


def test_no_indices_give_no_items() -> None:
    assert list(load(Numbers(), [], workers=2)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_keeps_its_class_and_its_line(workers: int) -> None:
    items = load(Numbers(), [0, 3, 1], workers=workers)
    assert int(next(items)) == 0
    with pytest.raises(DataError) as caught:
        next(items)
    assert str(caught.value) == "three: is bad; take another"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_stays_a_bug(workers: int) -> None:
    with pytest.raises(ZeroDivisionError, match="our bug"):
        list(load(Numbers(), [5], workers=workers))


def test_an_item_that_kills_its_readers_is_refused_by_name_in_its_place() -> None:
    items = load(Numbers(), [0, 1, 4, 2], workers=2)
    assert [int(next(items)), int(next(items))] == [0, 10]
    with pytest.raises(DataError, match=r"^item 4: killed its reader 3 times \(it was killed by SIGKILL\); fix"):
        next(items)


class KilledOnce(Source[torch.Tensor]):
    """An index kills its reader, but not twice: a file in the folder remembers."""

    def __init__(self, folder: Path, index: int, how: str) -> None:
        self.folder, self.index, self.how = folder, index, how

    def item(self, index: int) -> torch.Tensor:
        if index == self.index and not (self.folder / "done").exists():
            (self.folder / "done").touch()
            if self.how == "hang":
                time.sleep(60)
            faulthandler.disable()  # pytest's would tell of it at length
            os.kill(os.getpid(), getattr(signal, self.how))
        return torch.full((1000,), index)


@pytest.mark.parametrize(
    ("how", "workers"),
    [
        *(("SIGKILL", count) for count in (1, 2)),
        *(pytest.param(how, 1, marks=pytest.mark.slow) for how in ("SIGSEGV", "hang")),
        *((how, 2) for how in ("SIGSEGV", "hang")),
    ],
)
def test_a_lost_reader_is_replaced_and_nothing_is_lost_doubled_or_moved(
    tmp_path: Path, how: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(KilledOnce(tmp_path, 3, how), range(8), workers=workers, timeout_s=0.5)
    assert [int(item[0]) for item in found] == list(range(8))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "a data worker" in lines[0] and "it is replaced, and nothing is lost" in lines[0]
    assert ("gave nothing for 0.5 s" if how == "hang" else f"was killed by {how}") in lines[0]


def test_an_idle_worker_that_dies_is_replaced() -> None:
    before = set(multiprocessing.active_children())
    items = load(Numbers(), [0] * 20, workers=2)
    assert int(next(items)) == 0
    time.sleep(0.2)  # both have read ahead what they may
    for child in set(multiprocessing.active_children()) - before:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert [int(item) for item in items] == [0] * 19


class Killers(Source[int]):
    """Every item kills."""

    def item(self, index: int) -> int:
        os._exit(7)

    def instead(self, index: int, lost: Sequence[LostPart]) -> int:
        return index


def test_where_every_item_kills_the_machine_is_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IN_A_ROW", 2)
    with pytest.raises(EnvironmentFault, match=r"ended with exit code 7.*the machine is at fault"):
        list(load(Killers(), range(3), workers=1))


class Pairs(Source[int]):
    """The sum of some numbers; 4 kills, and so do five together."""

    def item(self, index: tuple[int, ...]) -> int:
        if 4 in index or len(index) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return sum(index)

    def parts(self, index: tuple[int, ...]) -> list[tuple[int]]:
        return [(each,) for each in index]

    def instead(self, index: tuple[int, ...], lost: Sequence[LostPart]) -> tuple[int, ...]:
        gone = [each for lost_one in lost for each in lost_one.part]
        return tuple(each for each in index if each not in gone)


def test_of_an_item_of_several_parts_the_one_that_kills_is_found() -> None:
    assert list(load(Pairs(), [(1, 2), (3, 4, 5), (6, 7)], workers=2)) == [3, 8, 13]


def test_parts_that_kill_only_together_are_a_shortage_of_memory() -> None:
    with pytest.raises(
        EnvironmentFault, match="crashed their worker 3 times when read together, but none of them does alone"
    ):
        list(load(Pairs(), [(1, 2, 3, 5, 6)], workers=1))


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Foreign(Source[Any]):
    """Raises what cannot travel, or gives it."""

    def item(self, index: int) -> Any:
        if index:
            return lambda: index
        raise Odd(1, 2)


def test_a_foreign_error_that_cannot_travel_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        list(load(Foreign(), [0], workers=1))


def test_an_item_that_cannot_travel_is_a_bug_and_not_a_death() -> None:
    with pytest.raises((AttributeError, RuntimeError), match=r"local object|pickle"):
        list(load(Foreign(), [1], workers=1))


class Large(Source[torch.Tensor]):
    """Tensors of 4 MB."""

    def item(self, index: int) -> torch.Tensor:
        return torch.full((1_000_000,), float(index))


def test_without_shared_memory_all_arrives_and_a_parent_that_was_killed_leaves_no_worker_and_no_file(
    tmp_path: Path,
) -> None:
    """Docker gives /dev/shm 64 MB; here it has 4 KB, or no file of the process may be larger."""
    code = f"""
import os, signal, multiprocessing, pathlib
from tests.data.test_workers import Large
from tests.faults import disks
from memorysam_cli.data.workers import load
if disks.may_mount():
    disks.share_less(4096, keep=pathlib.Path({str(tmp_path)!r}))
else:
    disks.limit_files(4096)
assert [float(item.sum()) for item in load(Large(), range(6), workers=2)] == [1e6 * number for number in range(6)]
items = load(Large(), range(50), workers=2)
next(items)
pids = [str(child.pid) for child in multiprocessing.active_children()]
pathlib.Path({str(tmp_path / "pids")!r}).write_text(" ".join(pids))
os.kill(os.getpid(), signal.SIGKILL)
"""
    root, temporary = Path(__file__).parents[2], tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | {"PYTHONPATH": str(root), "TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=False)
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    due = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids) and time.monotonic() < due:
        time.sleep(0.05)
    assert len(pids) == 2 and not any(is_alive(pid) for pid in pids)
    assert not list(temporary.iterdir())


def test_where_no_worker_can_be_started_the_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(multiprocessing, "Pipe", refuse)
    with pytest.raises(EnvironmentFault, match=r"cannot start a data worker \(Too many open files\).*ulimit -n"):
        list(load(Numbers(), [0], workers=1))


def is_alive(pid: int) -> bool:
    """Whether a process runs still; a zombie that nobody has asked for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class State(Source[tuple[int, bool, int]]):
    """What a worker runs with, and how many seconds SIGTERM leaves it."""

    def item(self, index: int) -> tuple[int, bool, int]:
        os.kill(os.getpid(), signal.SIGTERM)
        ignored = [signal.getsignal(name) is signal.SIG_IGN for name in (signal.SIGINT, signal.SIGUSR1)]
        return cv2.getNumThreads(), all(ignored), signal.alarm(0)


def test_a_worker_has_one_thread_and_outlives_its_parents_signals() -> None:
    ((threads, ignores, seconds_left),) = load(State(), [0], workers=1)
    assert (threads, ignores) == (1, True)
    assert 0 < seconds_left <= GRACE_S


@pytest.mark.parametrize("index", [3, 5])
def test_no_worker_is_left_when_an_error_is_kept(index: int) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises((DataError, ZeroDivisionError)) as caught:
        list(load(Numbers(), [0, index, 1, 2], workers=2))
    assert caught.value is not None
    assert set(multiprocessing.active_children()) <= before


def test_no_worker_is_left_when_the_reader_stops() -> None:
    before = set(multiprocessing.active_children())
    items = load(Numbers(), [0, 1, 2, 0, 1, 2], workers=2)
    next(items)
    assert len(multiprocessing.active_children()) == len(before) + 2
    items.close()
    assert set(multiprocessing.active_children()) <= before


class Pinned(int):
    """A number that says whether it was pinned."""

    is_pinned = False

    def pin_memory(self) -> Pinned:
        pinned = Pinned(self)
        pinned.is_pinned = True
        return pinned


class ToPin(Source[Pinned]):
    def item(self, index: int) -> Pinned:
        if index == 9:
            raise DataError("nine: is bad; take another")
        return Pinned(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_where_there_is_cuda_items_come_pinned_in_order_and_errors_in_their_place(
    monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = list(load(ToPin(), range(8), workers=workers))
    assert found == list(range(8)) and all(each.is_pinned for each in found)
    items = load(ToPin(), [0, 1, 9, 2], workers=workers)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(DataError, match="nine"):
        next(items)


def test_where_there_is_cuda_no_worker_is_left_when_the_reader_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = set(multiprocessing.active_children())
    items = load(ToPin(), range(50), workers=2)
    assert next(items) == 0
    items.close()
    assert set(multiprocessing.active_children()) <= before
