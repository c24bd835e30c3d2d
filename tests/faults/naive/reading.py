"""Reading ahead as most training programs do."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from memorysam_cli.data.workers import Source


class _Items(Dataset[Any]):
    def __init__(self, source: Source[Any]) -> None:
        self.source = source

    def __getitem__(self, index: Any) -> Any:
        return self.source.item(index)


def plain(source: Source[Any], indices: Sequence[Any], *, workers: int) -> Iterator[Any]:
    """A data loader that is used as its manual says; the first dead worker ends it."""
    yield from DataLoader(
        _Items(source), batch_size=None, sampler=list(indices), num_workers=workers, collate_fn=_as_it_is
    )


def restarting(source: Source[Any], indices: Sequence[Any], *, workers: int) -> Iterator[Any]:
    """The same, and the epoch begins again after a death."""
    for _ in range(5):
        try:
            yield from plain(source, indices, workers=workers)
        except RuntimeError:
            continue
        return


def skipping(source: Source[Any], indices: Sequence[Any], *, workers: int) -> Iterator[Any]:
    """What cannot be read is left out, without a word."""
    for index in indices:
        try:
            yield source.item(index)
        except Exception:
            continue


def epoch(count: int, *, batch: int, start: int) -> list[list[int]]:
    """What is left of an epoch after a resume, by a shuffle that nobody wrote down."""
    order = list(range(count))
    random.shuffle(order)
    return [order[first : first + batch] for first in range(start * batch, count - batch + 1, batch)]


def _as_it_is(item: Any) -> Any:
    return item
