"""Reading ahead in worker processes, without their changing what is read or how an error looks."""

from __future__ import annotations

import signal
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from memorysam_cli.errors import EnvironmentFault, MemorySamError

TIMEOUT_S = 300
"""A worker that gives nothing for this long hangs; waiting for ever is no answer."""

GRACE_S = 60
"""A worker outlives SIGTERM by this long."""

AHEAD = 2
"""Items that each thread reads ahead, as many as torch's loader does for each process."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Fault:
    """A worker's error: torch would wrap its one line in a traceback."""

    error: MemorySamError


class Source(Dataset[Any], Generic[Item]):
    """Gives one item for one index, in this process or in a worker."""

    def item(self, index: Any) -> Item:
        """The item of an index; the same whoever asks."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Item | _Fault:
        try:
            return self.item(index)
        except MemorySamError as error:
            return _Fault(error)


def load(source: Source[Item], indices: Sequence[Any], *, workers: int) -> Iterator[Item]:
    """The items of ``indices`` in their order.

    Args:
        source: what to read; goes to the workers as it is.
        indices: what to ask it for.
        workers: processes that read ahead; 0 reads in this one.

    Raises:
        MemorySamError: what reading an item raised, with its own class and message.
        EnvironmentFault: a worker died (the machine ran out of memory, say) or hangs.
    """
    workers = min(workers, len(indices))
    with warnings.catch_warnings():  # more workers than cores are the user's wish
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[Item | _Fault] = DataLoader(
            source,
            batch_size=None,  # an item is a batch already
            sampler=indices,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            # Its own: a number taken from torch's for each epoch would be taken twice by a resumed run.
            generator=torch.Generator(),
            timeout=TIMEOUT_S if workers else 0,
        )
        items = iter(loader)
    try:
        for item in items:
            if isinstance(item, _Fault):
                raise item.error
            yield item
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise EnvironmentFault(f"a data worker died or hangs ({reason}); free memory or set data.workers=0") from error
    finally:
        # Now, not when a traceback that holds the iterator is let go: until then its workers would wait.
        getattr(items, "_shutdown_workers", _nothing)()


def load_in_threads(source: Source[Item], indices: Sequence[Any], *, workers: int) -> Iterator[Item]:
    """As :func:`load`, by threads of this process, which may not fork: decoding leaves Python's lock alone.

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
    item = source.item(index)
    pin = getattr(item, "pin_memory", None)
    pinned: Item = item if pin is None or not torch.cuda.is_available() else pin()
    return pinned


def _as_it_is(item: Item) -> Item:
    """Items are tensors already."""
    return item


def _nothing() -> None:
    """How an iterator without workers is shut down."""


def _start_worker(_number: int) -> None:
    """One thread per worker; signals are the parent's to answer, which then lets its workers end."""
    cv2.setNumThreads(0)
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    # A scheduler may send SIGTERM to all: the parent still has a step to finish and a checkpoint to write.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
