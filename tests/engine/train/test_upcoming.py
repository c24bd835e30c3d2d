"""Fetching ahead: the same batches in the same groups, and a fault in its turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from memorysam_cli.data.loader import Batch
from memorysam_cli.engine.train.update import BatchGroups
from memorysam_cli.errors import DataError

CPU = torch.device("cpu")


def batches(count: int, *, bad: int | None = None, asked: list[int] | None = None) -> Iterator[Batch]:
    for number in range(count):
        if asked is not None:
            asked.append(number)
        if number == bad:
            raise DataError(f"scene {number}: cannot be read")
        yield Batch([torch.full((1, 3, 2, 2), float(number))], None, ())


def numbers(group: list[Batch]) -> list[int]:
    return [int(batch.frames[0][0, 0, 0, 0]) for batch in group]


@pytest.mark.parametrize("ahead", [False, True])
def test_groups_are_in_order_and_whole_whether_fetched_ahead_or_not(ahead: bool) -> None:
    upcoming, found = BatchGroups(batches(5), size=2, device=CPU), []
    for group in upcoming:
        if ahead:
            upcoming.fetch()
            upcoming.fetch()  # asked twice, it fetches once
        found.append(numbers(group))
    assert found == [[0, 1], [2, 3]]  # the fifth batch makes no update


def test_one_group_is_fetched_ahead_and_no_more() -> None:
    asked: list[int] = []
    upcoming = BatchGroups(batches(9, asked=asked), size=2, device=CPU)
    groups = iter(upcoming)
    next(groups)
    assert asked == [0, 1]
    upcoming.fetch()
    upcoming.fetch()
    assert asked == [0, 1, 2, 3]


def test_a_fault_ahead_waits_until_the_update_before_is_done() -> None:
    upcoming, found = BatchGroups(batches(6, bad=3), size=2, device=CPU), []
    with pytest.raises(DataError, match="scene 3"):
        for group in upcoming:
            upcoming.fetch()
            found.append(numbers(group))
    assert found == [[0, 1]]


def test_waiting_is_counted_since_it_was_last_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr("memorysam_cli.engine.train.update.time.monotonic", lambda: next(clock))
    upcoming = BatchGroups(batches(2), size=1, device=CPU)
    groups = iter(upcoming)
    next(groups)
    assert upcoming.waited() == 2.5
    upcoming.fetch()
    assert (upcoming.waited(), upcoming.waited()) == (1.0, 0.0)
