"""Loading data in worker processes, with the same items, order and errors as in one process.

A :class:`Source` returns one item per index, the same in every process. If a worker dies, another one reads its item
again, and the order stays. torch's ``DataLoader`` instead ends with its first dead worker, at any line of the main
thread, and does not know which item was the cause. Here every worker has a separate connection. Its end shows
immediately which worker died and on which item, and an incomplete message cannot block the others.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
import traceback
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import cv2
import torch

from memorysam_cli.errors import SIGNAL_EXIT_CODES, DataError, EnvironmentFault, MemorySamError
from memorysam_cli.report import console
from memorysam_cli.storage import handover

Item = TypeVar("Item")
TIMEOUT_S = 300.0
"""Seconds without an answer after which a worker counts as hung."""
DEATHS = 3
"""Number of workers that an item may crash before it is given up."""
IN_A_ROW = 5
"""Number of such items in a row after which the machine is to blame, not the files."""
AHEAD = 2
"""Number of items that each worker or thread loads in advance."""
END_S = 5
"""Seconds to wait for the end of a process that is ending."""

_TOO_FEW = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_MORE = (
    "free memory, allow more open files and processes (ulimit -n 4096, ulimit -u), or read without workers (--workers "
    "0; in training --set data.workers=0); memorysam doctor shows the limits"
)
GRACE_S = 60
"""Seconds by which a worker survives SIGTERM."""
POLL_S = 0.5
"""Seconds between two checks while waiting."""


@dataclass(frozen=True)
class ItemError:
    """The error of reading an item, returned in the item's place."""

    error: Exception


@dataclass(frozen=True)
class LostPart:
    """A part of an item that crashes every worker that reads it."""

    part: Any
    """One of :meth:`Source.parts`."""
    error: DataError


@runtime_checkable
class Pinnable(Protocol):
    """An item that can be in page-locked memory, for a transfer to a device while that computes."""

    def pin_memory(self) -> Self:
        """The same item in page-locked memory."""


class Source(Generic[Item]):
    """Returns one item per index, in this process or in a worker."""

    def item(self, index: Any) -> Item:
        """The item of an index, the same in every process."""
        raise NotImplementedError

    def name(self, index: Any) -> str:
        """The content of the item, for messages."""
        return f"item {index}"

    def parts(self, index: Any) -> Sequence[Any]:
        """Indices of the parts of an item, each of which can be read alone; the index itself if it has one part."""
        return (index,)

    def instead(self, index: Any, lost: Sequence[LostPart]) -> Any:  # noqa: ARG002  (for those that override it)
        """The index to read instead of one that crashes workers.

        Raises:
            DataError: there is none.
        """
        raise lost[0].error

    def answer(self, index: Any) -> Item | ItemError:
        """The item, or the user's error in its place."""
        try:
            return self.item(index)
        except MemorySamError as error:
            return ItemError(error)


def load(
    source: Source[Item], indices: Sequence[Any], *, workers: int, timeout_s: float | None = None
) -> Iterator[Item]:
    """The items of ``indices`` in their order, even if workers die.

    A worker that dies or hangs is replaced, with one warning, and its items are read again. Nothing is lost or
    duplicated, because an item is a pure function of its index. An item that has crashed three workers is given up; the
    source decides what replaces it.

    Args:
        source: what to read; it is sent to the workers.
        indices: the items to read.
        workers: number of processes that load data; 0: this process.
        timeout_s: seconds after which a worker counts as hung; None: :data:`TIMEOUT_S`.

    Raises:
        MemorySamError: the error of reading an item, with its own class and message.
        DataError: an item crashes workers, and its source has no replacement.
        EnvironmentFault: workers cannot be started, or die on every item.
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
    """As :func:`load`, with threads, for processes that may not fork; decoding releases Python's lock.

    A crash ends the whole process instead of a worker.

    Args:
        source: what to read.
        indices: the items to read.
        workers: number of threads that load data; 0: the calling thread.

    Raises:
        MemorySamError: the error of reading an item.
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
    """An item, in page-locked memory if there is CUDA."""
    return _pinned(source.item(index))


def _pinned_ahead(pool: Pool[Item], count: int) -> Iterator[Item]:
    """A pool's items in page-locked memory; the next one is copied while this one is used."""

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


def _item(answer: Item | ItemError) -> Item:
    """An item that could be read."""
    if isinstance(answer, ItemError):
        raise answer.error
    return answer


def _pinned(item: Item) -> Item:
    """An item in page-locked memory, if there is CUDA and the item supports it."""
    return item.pin_memory() if isinstance(item, Pinnable) and torch.cuda.is_available() else item


@dataclass(eq=False)
class _Task:
    """An item to read."""

    number: int
    """Its place in the order."""
    index: Any
    deaths: int = 0
    is_suspect: bool = False
    """Whether its worker died; it is then read alone, so that the cause of the next crash is known."""
    is_second_choice: bool = False
    """The index that replaces an item that was given up."""


@dataclass(eq=False)
class _Worker:
    """A process, and its items in order; it is reading the first."""

    process: BaseProcess
    connection: Connection
    tasks: deque[_Task] = field(default_factory=deque)
    waited_s: float = 0
    """Seconds of waiting for its next answer."""

    @property
    def is_free(self) -> bool:
        """Whether it can take another item."""
        return len(self.tasks) < AHEAD and not any(task.is_suspect for task in self.tasks)


class Pool(Generic[Item]):
    """Loads the items of some indices in advance.

    Args:
        source: what to read.
        indices: the items, in the order of :meth:`take`.
        workers: number of processes, at least 1.
        timeout_s: seconds after which a worker without an answer counts as hung, and is killed.

    Raises:
        EnvironmentFault: no process can be started.
    """

    def __init__(self, source: Source[Item], indices: Sequence[Any], *, workers: int, timeout_s: float) -> None:
        self._source, self._indices, self._timeout_s = source, indices, timeout_s
        self._next = 0
        self._again: list[_Task] = []
        self._done: dict[int, Item | ItemError] = {}
        self._given_up = 0
        self._is_ended = False
        self._workers: list[_Worker] = []
        # Also at the end of Python, where multiprocessing would send SIGTERM and wait for GRACE_S.
        self._end = weakref.finalize(self, _end, self._workers, os.getpid())
        for _ in range(workers):
            self._workers.append(self._start())

    def take(self, number: int) -> Item | ItemError:
        """The item with this number; call it with 0, 1, 2, … in turn.

        Raises:
            EnvironmentFault: workers cannot be started again.
        """
        while number not in self._done:
            self._hand_out(before=number + AHEAD * len(self._workers))
            self._receive()
        self._hand_out(before=number + 1 + AHEAD * len(self._workers))
        return self._done.pop(number)

    def cancel(self) -> None:
        """End a :meth:`take` that is waiting in another thread, with an exception."""
        self._is_ended = True

    def close(self) -> None:
        """End the workers; may be called repeatedly."""
        self._end()

    def _start(self) -> _Worker:
        try:
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=work, args=(self._source, theirs, os.getpid()), daemon=True)
            try:
                process.start()
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
        except OSError as error:
            raise EnvironmentFault(f"cannot start a data worker ({error.strerror}); {_MORE}") from error
        return _Worker(process, ours)

    def _hand_out(self, *, before: int) -> None:
        """Assign items to the workers; items that are read again come first, each alone in a worker."""
        while self._again:
            idle = next((worker for worker in self._workers if not worker.tasks), None)
            if idle is None:
                return
            self._give(idle, self._again.pop(0))
        while self._next < min(before, len(self._indices)):
            worker = min((each for each in self._workers if each.is_free), key=_load, default=None)
            if worker is None:
                return
            self._next += 1
            self._give(worker, _Task(self._next - 1, self._indices[self._next - 1]))

    def _give(self, worker: _Worker, task: _Task) -> None:
        if not worker.tasks:
            worker.waited_s = 0
        worker.tasks.append(task)
        try:
            worker.connection.send(task.index)
        except ConnectionError:
            self._bury(worker)

    def _receive(self) -> None:
        """Wait a little; receive answers, and find workers that died or hang."""
        if self._is_ended:
            raise RuntimeError("the pool of data workers is closed")
        busy = [worker for worker in self._workers if worker.tasks]
        begun = time.monotonic()
        poll_s = min(POLL_S, self._timeout_s / 4)
        ready = wait([worker.connection for worker in busy], timeout=poll_s)
        # Not clock time: a process that was stopped for an hour has not waited for an hour.
        waited_s = min(time.monotonic() - begun, 2 * poll_s)
        for worker in busy:
            if worker.connection in ready:
                self._read(worker)
                continue
            worker.waited_s += waited_s
            if worker.waited_s > self._timeout_s:
                self._bury(worker, hung=True)
            elif not worker.process.is_alive():
                self._bury(worker)

    def _read(self, worker: _Worker) -> None:
        try:
            answer: Item | ItemError = handover.receive(worker.connection)
        except (EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _TOO_FEW:
                raise EnvironmentFault(
                    f"cannot take over what a data worker read ({error.strerror}); {_MORE}"
                ) from error
            self._bury(worker)
            return
        task = worker.tasks.popleft()
        worker.waited_s = 0
        if not task.is_second_choice:
            self._given_up = 0
        self._done[task.number] = answer

    def _bury(self, worker: _Worker, *, hung: bool = False) -> None:
        """Replace a worker, and have its items read again."""
        how = _ending(worker.process, after_s=self._timeout_s if hung else None)
        worker.connection.close()
        for task in worker.tasks:
            task.is_suspect = True
        self._again = sorted([*self._again, *worker.tasks], key=lambda task: task.number)
        if worker.tasks:
            first = worker.tasks[0]
            first.deaths += 1
            what = self._source.name(first.index)
            count = f"; {first.deaths} of {DEATHS} times" if first.deaths > 1 else ""
            console.warn(f"a data worker {how} while it read {what}{count}; it is replaced, and nothing is lost")
            if first.deaths >= DEATHS:
                self._give_up(first, how)
        self._workers[self._workers.index(worker)] = self._start()

    def _give_up(self, task: _Task, how: str) -> None:
        """Find out which part of an item crashes workers, and ask the source for a replacement."""
        self._given_up += 1
        task.deaths, task.is_second_choice = 0, True
        try:
            if self._given_up > IN_A_ROW:
                raise EnvironmentFault(
                    f"{self._source.name(task.index)}: killed its reader {DEATHS} times (it {how}), as did all the "
                    f"{IN_A_ROW} before; the machine is at fault, not so many files; free memory, or set data.workers=0"
                )
            parts = self._source.parts(task.index)
            guilty = [part for part in parts if self._kills(part)] if len(parts) > 1 else list(parts)
            if not guilty:
                raise EnvironmentFault(
                    f"{self._source.name(task.index)}: crashed their worker {DEATHS} times when read "
                    "together, but none of them does alone; free memory, lower train.batch, or set data.workers=0"
                )
            found = [
                LostPart(part, DataError(f"{self._source.name(part)}: killed its reader {DEATHS} times (it {how}); "
                                         "fix its files, or leave it out"))
                for part in guilty
            ]  # fmt: skip
            task.index = self._source.instead(task.index, found)
        except MemorySamError as error:  # in its place in the order: earlier items are still read
            self._again.remove(task)
            self._done[task.number] = ItemError(error)

    def _kills(self, index: Any) -> bool:
        """Whether an item crashes a separate worker."""
        worker = self._start()
        worker.tasks.append(_Task(0, index))
        try:
            worker.connection.send(index)
            if worker.connection.poll(self._timeout_s):
                handover.receive(worker.connection)
                return False
        except (EOFError, OSError):
            return True
        else:
            return True
        finally:
            _end([worker], os.getpid())


def _load(worker: _Worker) -> int:
    return len(worker.tasks)


def _ending(process: BaseProcess, *, after_s: float | None) -> str:
    """How a process ended; a hung one is ended first."""
    if after_s is None:
        process.join(END_S)
    if process.exitcode is None:
        process.kill()
        process.join(END_S)
        return f"gave nothing for {after_s:g} s" if after_s is not None else "lost its connection"
    code = process.exitcode
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _end(workers: list[_Worker], owner: int) -> None:
    """End all workers at once; they only read, so nothing is lost. Only for their owner, not for a forked child."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.process.kill()
        worker.connection.close()
    for worker in workers:
        worker.process.join(END_S)
    workers.clear()


def work(source: Source[Any], connection: Connection, parent: int) -> None:
    """Answer until the parent stops asking.

    Args:
        source: what to read.
        connection: receives indices, sends items or errors.
        parent: the process that asks.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # A terminal or a scheduler may send them to all: the parent still has a step to finish and a checkpoint to write.
    for number in SIGNAL_EXIT_CODES:
        # An alarm belongs to this process; CPU time is counted per process, and a new worker starts at zero.
        is_own = number.name in {"SIGALRM", "SIGXCPU"}
        signal.signal(number, signal.SIG_DFL if is_own else signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    try:
        while True:
            while not connection.poll(POLL_S):
                if os.getppid() != parent:  # killed, and another child of it keeps the connection open
                    return
            _answer_once(source, connection)
    except (EOFError, ConnectionError):
        return


def _answer_once(source: Source[Any], connection: Connection) -> None:
    index = connection.recv()
    try:
        handover.send(connection, source.answer(index))
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # a bug, or missing memory: the parent raises it
        answer = error if type(error).__module__ == "builtins" else RuntimeError(f"{type(error).__name__}: {error}")
        answer.add_note(traceback.format_exc())
        handover.send(connection, ItemError(answer))
