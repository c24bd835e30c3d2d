from __future__ import annotations

import multiprocessing
import os
import signal

import cv2
import pytest
import torch

from memorysam_cli.data.workers import GRACE_S, Source, load
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


@pytest.mark.parametrize("workers", [0, 1, 2, 9])
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


def test_a_killed_worker_is_a_fault_of_the_machine() -> None:
    with pytest.raises(EnvironmentFault, match="a data worker died"):
        list(load(Numbers(), [0, 4, 1], workers=1))


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
