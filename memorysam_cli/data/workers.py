"""Reading ahead in worker processes, without their changing what is read or how an error looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from memorysam_cli.data.sources import Fault, Item, Source
from memorysam_cli.data.worker_pool import AHEAD, Pool

TIMEOUT_S = 300.0
"""A worker that gives nothing for this long hangs; waiting for ever is no answer."""


def load(
    source: Source[Item], indices: Sequence[Any], *, workers: int, timeout_s: float | None = None
) -> Iterator[Item]:
    """The items of ``indices`` in their order, whatever happens to the workers.

    A worker that dies or hangs is replaced, with one warning, and what it had in hand is read again: nothing is lost
    or doubled, for an item is a pure function of its index. An item that has killed its reader three times is given
    up: the source says what takes its place.

    Args:
        source: what to read; goes to the workers as it is.
        indices: what to ask it for.
        workers: processes that read ahead; 0 reads in this one.
        timeout_s: when a worker counts as hanging; none: :data:`TIMEOUT_S`.

    Raises:
        MemorySamError: what reading an item raised, with its own class and message.
        DataError: an item kills its readers, and its source has nothing in its place.
        EnvironmentFault: workers cannot be started, or die whatever they read.
    """
    workers = min(workers, len(indices))
    if not workers:
        yield from (_pinned(source.item(index)) for index in indices)
        return
    pool = Pool(source, indices, workers=workers, timeout_s=TIMEOUT_S if timeout_s is None else timeout_s)
    try:
        if torch.cuda.is_available():
            yield from _pinned_ahead(pool, len(indices))
        else:
            yield from (_item(pool.take(number)) for number in range(len(indices)))
    finally:
        pool.close()


def load_in_threads(source: Source[Item], indices: Sequence[Any], *, workers: int) -> Iterator[Item]:
    """As :func:`load`, by threads of this process, which may not fork: decoding leaves Python's lock alone.

    A fault that would kill a worker process kills this one.

    Args:
        source: what to read.
        indices: what to ask it for.
        workers: threads that read ahead; 0 reads in this one.

    Raises:
        MemorySamError: what reading an item raised.
    """
    ahead: deque[Future[Item]] = deque()
    with ThreadPoolExecutor(max(1, workers), thread_name_prefix="read") as pool:
        try:
            for index in indices:
                ahead.append(pool.submit(_read, source, index))
                if len(ahead) > AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for each in ahead:
                each.cancel()


def _read(source: Source[Item], index: Any) -> Item:
    """An item, in page-locked memory where there is CUDA."""
    return _pinned(source.item(index))


def _pinned_ahead(pool: Pool[Item], count: int) -> Iterator[Item]:
    """A pool's items in page-locked memory; the next one is copied there while this one is used."""

    def take(number: int) -> Item:
        return _pinned(_item(pool.take(number)))

    with ThreadPoolExecutor(1, thread_name_prefix="pin") as thread:
        try:
            following = thread.submit(take, 0)
            for number in range(count):
                item = following.result()
                if number + 1 < count:
                    following = thread.submit(take, number + 1)
                yield item
        finally:
            pool.cancel()


def _item(answer: Item | Fault) -> Item:
    """An item that could be read."""
    if isinstance(answer, Fault):
        raise answer.error
    return answer


def _pinned(item: Item) -> Item:
    """An item in page-locked memory, where there is CUDA and it can be there."""
    pin = getattr(item, "pin_memory", None)
    pinned: Item = item if pin is None or not torch.cuda.is_available() else pin()
    return pinned
