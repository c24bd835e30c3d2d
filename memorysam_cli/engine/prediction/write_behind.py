"""Writing behind the computing: a few threads make files while the device is busy with the next batch.

OpenCV's PNG encoder and the disk's sync leave Python's lock alone, so that threads are enough.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

Told = TypeVar("Told")

MOST_BYTES = 2**29
"""What waits to be written needs at most this, or is a single scene."""
MOST_WAITING = 64
FEWEST_THREADS, MOST_THREADS = 8, 16


def default_threads() -> int:
    """As many as this process has cores; more where those are few: they mostly wait for the disk, which syncs many
    files nearly as fast as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, max(FEWEST_THREADS, cores))


@dataclass(frozen=True)
class _Waiting(Generic[Told]):
    future: Future[Told]
    needed_bytes: int


class WriteBehind(Generic[Told]):
    """Does pieces of work in threads, and tells their results in the order in which they were handed in.

    A context manager. At its end all work is done and told. If an exception of the block ends it, what was handed in
    before is still done and told; if a signal ends it, only what has begun. If a piece of work fails, its error leaves
    the block (from ``add`` or at the end), and no result behind it is told.

    Args:
        tell: takes each result, in the thread that calls ``add``.
        undo: takes each result that is there and must not be told.
        threads: how many.
    """

    def __init__(
        self, tell: Callable[[Told], object], *, undo: Callable[[Told], object], threads: int | None = None
    ) -> None:
        self._tell, self._undo = tell, undo
        self._pool = ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="write")
        self._waiting: deque[_Waiting[Told]] = deque()
        self._held_bytes = 0

    def add(self, work: Callable[[], Told], *, needed_bytes: int = 0) -> None:
        """Hand in a piece of work, and tell what is done; waits while too much is held.

        Args:
            work: makes a result.
            needed_bytes: what it holds until it is done.

        Raises:
            Exception: what an earlier piece of work raised.
        """
        while self._waiting and (
            len(self._waiting) >= MOST_WAITING
            or self._held_bytes + needed_bytes > MOST_BYTES
            or self._waiting[0].future.done()
        ):
            self._tell_first()
        self._waiting.append(_Waiting(self._pool.submit(work), needed_bytes))
        self._held_bytes += needed_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                while self._waiting:
                    self._tell_first()
            elif not issubclass(kind, Exception):  # a signal: nothing new begins
                for each in self._waiting:
                    each.future.cancel()
            with contextlib.suppress(Exception):  # the block's own fault is the one to tell
                while self._waiting and not self._waiting[0].future.cancelled():
                    self._tell_first()
        finally:
            self._give_up()

    def _tell_first(self) -> None:
        """Wait for the oldest piece of work, and tell its result."""
        try:
            result = self._waiting[0].future.result()  # a signal while waiting leaves it where it is
        except Exception:
            self._cancel()
            raise
        self._held_bytes -= self._waiting.popleft().needed_bytes
        try:
            self._tell(result)
        except Exception:
            self._undo(result)
            self._cancel()
            raise

    def _cancel(self) -> None:
        """Let nothing begin any more, and undo what was done behind a failure."""
        while self._waiting:
            future = self._waiting.popleft().future
            if not future.cancel():
                with contextlib.suppress(Exception):  # the first failure is the one to tell
                    self._undo(future.result())

    def _give_up(self) -> None:
        """Undo what could not be told, and end the threads."""
        try:
            self._cancel()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
