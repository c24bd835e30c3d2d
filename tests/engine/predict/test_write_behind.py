from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from memorysam_cli.engine.predict import segment
from memorysam_cli.engine.predict.segment import WriteBehind


class Watch:
    """What was told and undone, in order."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.undone: list[int] = []

    def writing(self, *, threads: int = 3) -> WriteBehind[int]:
        return WriteBehind(self.told.append, undo=self.undone.append, threads=threads)


def slow(number: int, seconds: float) -> Callable[[], int]:
    def work() -> int:
        time.sleep(seconds)
        return number

    return work


def broken() -> int:
    raise OSError("no space")


def threads() -> int:
    return sum(thread.name.startswith("write") for thread in threading.enumerate())


def test_results_are_told_in_order_however_long_each_takes() -> None:
    watch = Watch()
    with watch.writing(threads=4) as writing:
        for number in range(40):
            writing.add(slow(number, 0.004 * ((number * 7) % 5)))
    assert watch.told == list(range(40)) and not watch.undone
    assert threads() == 0


def test_work_goes_on_while_the_caller_does_something_else() -> None:
    started = threading.Event()
    go_on = threading.Event()

    def work() -> int:
        started.set()
        assert go_on.wait(60)
        return 1

    watch = Watch()
    with watch.writing() as writing:
        writing.add(work)
        assert started.wait(60) and watch.told == []
        go_on.set()
    assert watch.told == [1]


@pytest.mark.parametrize("bound", ["MOST_WAITING", "MOST_BYTES"])
def test_no_more_than_that_is_held(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, bound, 5)
    watch, made = Watch(), 0
    with watch.writing(threads=2) as writing:
        for number in range(30):
            writing.add(slow(number, 0.002), needed_bytes=1)
            made += 1
            assert made - len(watch.told) <= 5
    assert watch.told == list(range(30))


def test_a_scene_above_the_bound_is_written_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "MOST_BYTES", 10)
    watch = Watch()
    with watch.writing() as writing:
        for number in range(4):
            writing.add(slow(number, 0.001), needed_bytes=100)
            assert watch.told == list(range(number))
    assert watch.told == [0, 1, 2, 3]


def test_an_error_of_the_work_ends_it_and_nothing_behind_it_is_told() -> None:
    watch = Watch()
    with pytest.raises(OSError, match="no space"), watch.writing(threads=3) as writing:
        writing.add(slow(0, 0.02))
        writing.add(broken)
        for number in range(2, 200):
            writing.add(slow(number, 0.001))
            time.sleep(0.001)
        pytest.fail("the error never came")
    assert watch.told == [0]
    assert watch.undone and 2 in watch.undone  # done, and undone again
    assert threads() == 0


def test_an_error_of_the_last_work_is_not_lost() -> None:
    watch = Watch()
    with pytest.raises(OSError, match="no space"), watch.writing() as writing:
        writing.add(slow(0, 0.01))
        writing.add(broken)
    assert watch.told == [0]


def test_what_was_handed_in_before_the_callers_error_is_told() -> None:
    watch = Watch()
    with pytest.raises(ValueError, match="bad scene"), watch.writing(threads=1) as writing:
        for number in range(8):
            writing.add(slow(number, 0.005))
        raise ValueError("bad scene")
    assert watch.told == list(range(8)) and not watch.undone


def test_of_two_errors_the_callers_is_told() -> None:
    watch = Watch()
    with pytest.raises(ValueError, match="bad scene"), watch.writing(threads=1) as writing:
        writing.add(slow(0, 0))
        writing.add(slow(1, 0.05))
        writing.add(broken)
        raise ValueError("bad scene")
    assert watch.told == [0, 1]


def test_a_signal_ends_what_has_begun_and_nothing_else() -> None:
    watch, begun = Watch(), threading.Event()

    def first() -> int:
        begun.set()
        time.sleep(0.05)
        return 0

    with pytest.raises(KeyboardInterrupt), watch.writing(threads=1) as writing:
        writing.add(first)
        for number in range(1, 20):
            writing.add(slow(number, 5))
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert watch.told == [0] and not watch.undone
    assert threads() == 0


def test_a_result_that_cannot_be_told_is_undone_and_so_are_those_behind_it() -> None:
    watch = Watch()

    def tell(number: int) -> None:
        if number == 1:
            raise OSError("the ledger's disk is full")
        watch.told.append(number)

    with (
        pytest.raises(OSError, match="ledger's disk"),
        WriteBehind(tell, undo=watch.undone.append, threads=1) as writing,
    ):
        for number in range(4):
            writing.add(slow(number, 0.001))
            time.sleep(0.01)
    assert watch.told == [0]
    assert watch.undone[0] == 1 and set(watch.undone) <= {1, 2, 3}


def test_threads_are_enough_to_wait_for_a_disk_and_not_many() -> None:
    assert segment.FEWEST_THREADS <= segment.default_threads() <= segment.MOST_THREADS


@pytest.mark.parametrize("is_written", [False, True], ids=["before the line", "after the line"])
def test_a_signal_while_a_result_is_told_leaves_its_line_and_undoes_nothing(is_written: bool) -> None:
    watch, interrupted = Watch(), [1]

    def tell(number: int) -> None:
        if number in interrupted and not is_written:
            interrupted.remove(number)
            raise KeyboardInterrupt
        watch.told.append(number)
        if number in interrupted:
            interrupted.remove(number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), WriteBehind(tell, undo=watch.undone.append, threads=1) as writing:
        for number in range(4):
            writing.add(slow(number, 0))
    # What was done before the signal has its line; a second one for the same scene means the same as one.
    assert {0, 1} <= set(watch.told) and sorted(set(watch.told)) == list(dict.fromkeys(watch.told))
    assert not watch.undone and threads() == 0


@pytest.mark.parametrize("is_handed_in", [False, True], ids=["before", "after"])
def test_a_signal_while_work_is_handed_in_leaves_no_result_without_its_line(
    is_handed_in: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, made, done = Watch(), list[int](), threading.Event()

    def work(number: int) -> int:
        made.append(number)
        done.set()
        return number

    with pytest.raises(KeyboardInterrupt), watch.writing(threads=1) as writing:
        writing.add(lambda: work(0))
        assert done.wait(60)
        done.clear()
        submit = writing._pool.submit

        def interrupted(*arguments: Any) -> None:
            if is_handed_in:
                submit(*arguments)
                assert done.wait(60)
            raise KeyboardInterrupt

        monkeypatch.setattr(writing._pool, "submit", interrupted)
        writing.add(lambda: work(1))
    assert watch.told == made == ([0, 1] if is_handed_in else [0])
    assert not watch.undone
