"""Reading ahead in worker processes, without their changing what is read or how an error looks.

A :class:`Source` gives one item for one index, the same whoever asks. Workers may die: what one was reading is read
again by another, and the order stays. torch's ``DataLoader`` ends with its first dead worker, at whatever line the main
thread just is, and cannot tell which item killed it. Here every worker has a connection of its own: its end tells at
once who died over what, and no torn message can block the others.
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
"""A worker that gives nothing for this long hangs; waiting for ever is no answer."""
DEATHS = 3
"""An item that has killed its reader this often is not read any more."""
IN_A_ROW = 5
"""So many such items without one that could be read between them: then it is the machine, not the files."""
AHEAD = 2
"""Items that each worker or thread reads ahead."""
END_S = 5
"""How long we wait for the end of a process that is ending."""

_TOO_FEW = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_MORE = (
    "free memory, allow more open files and processes (ulimit -n 4096, ulimit -u), or read without workers (--workers "
    "0; in training --set data.workers=0); memorysam doctor shows the limits"
)
GRACE_S = 60
"""A worker outlives SIGTERM by this long."""
POLL_S = 0.5
"""How often one that waits looks around."""


@dataclass(frozen=True)
class ItemError:
    """What reading an item raised; travels in the item's place."""

    error: Exception


@dataclass(frozen=True)
class LostPart:
    """A part of an item that cannot be read without the death of its reader."""

    part: Any
    """One of :meth:`Source.parts`."""
    error: DataError


@runtime_checkable
class Pinnable(Protocol):
    """An item that can lie in page-locked memory, from which it travels to a device while that computes."""

    def pin_memory(self) -> Self:
        """The same item there."""


class Source(Generic[Item]):
    """Gives one item for one index, in this process or in a worker."""

    def item(self, index: Any) -> Item:
        """The item of an index; the same whoever asks."""
        raise NotImplementedError

    def name(self, index: Any) -> str:
        """What the item is made of, for people."""
        return f"item {index}"

    def parts(self, index: Any) -> Sequence[Any]:
        """Indices of what the item is made of, each of which can be read alone; itself where it is one."""
        return (index,)

    def instead(self, index: Any, lost: Sequence[LostPart]) -> Any:  # noqa: ARG002  (for those that override it)
        """The index to read in the place of one whose reader dies.

        Raises:
            DataError: there is none.
        """
        raise lost[0].error

    def answer(self, index: Any) -> Item | ItemError:
        """The item, or the user's fault in its place."""
        try:
            return self.item(index)
        except MemorySamError as error:
            return ItemError(error)


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


def _item(answer: Item | ItemError) -> Item:
    """An item that could be read."""
    if isinstance(answer, ItemError):
        raise answer.error
    return answer


def _pinned(item: Item) -> Item:
    """An item in page-locked memory, where there is CUDA and it can be there."""
    return item.pin_memory() if isinstance(item, Pinnable) and torch.cuda.is_available() else item


@dataclass(eq=False)
class _Task:
    """An item to be read."""

    number: int
    """Its place in the order."""
    index: Any
    deaths: int = 0
    is_suspect: bool = False
    """Was in the hands of a worker that died: read alone from now on, so that the next death says whose it is."""
    is_second_choice: bool = False
    """What is read in the place of an item that was given up."""


@dataclass(eq=False)
class _Worker:
    """A process, and what it was asked for, in its order; it is busy with the first."""

    process: BaseProcess
    connection: Connection
    tasks: deque[_Task] = field(default_factory=deque)
    waited_s: float = 0
    """For how long we have waited for its next answer."""

    @property
    def is_free(self) -> bool:
        """Whether it takes another item."""
        return len(self.tasks) < AHEAD and not any(task.is_suspect for task in self.tasks)


class Pool(Generic[Item]):
    """Reads the items of some indices ahead.

    Args:
        source: what to read.
        indices: what to ask it for; their order is that of :meth:`take`.
        workers: processes, at least 1.
        timeout_s: a worker that is waited for and gives nothing for this long hangs, and is killed.

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
        """The item with this number; to be called with 0, 1, 2, … in turn.

        Raises:
            EnvironmentFault: workers cannot be started again.
        """
        while number not in self._done:
            self._hand_out(before=number + AHEAD * len(self._workers))
            self._receive()
        self._hand_out(before=number + 1 + AHEAD * len(self._workers))
        return self._done.pop(number)

    def cancel(self) -> None:
        """Let a :meth:`take` that waits in another thread end, with an exception."""
        self._is_ended = True

    def close(self) -> None:
        """End the workers; once or often."""
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
        """Give the workers what to do; what is read again goes first, each to a worker of its own."""
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
        """Wait a little; take what is there, and see who died or hangs."""
        if self._is_ended:
            raise RuntimeError("the pool of data workers is closed")
        busy = [worker for worker in self._workers if worker.tasks]
        begun = time.monotonic()
        poll_s = min(POLL_S, self._timeout_s / 4)
        ready = wait([worker.connection for worker in busy], timeout=poll_s)
        # Not the clock's: a process that was stopped for an hour has not waited for an hour.
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
        """Put another in a worker's place, and have what it was asked for read again."""
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
        """Find out what of an item kills its readers, and let the source say what takes its place."""
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
                    f"{self._source.name(task.index)}: together killed their reader {DEATHS} times, but none of them "
                    "alone does; free memory, lower train.batch, or set data.workers=0"
                )
            found = [
                LostPart(part, DataError(f"{self._source.name(part)}: killed its reader {DEATHS} times (it {how}); "
                                         "fix its files, or leave it out"))
                for part in guilty
            ]  # fmt: skip
            task.index = self._source.instead(task.index, found)
        except MemorySamError as error:  # in its place in the order: what comes before it is still read
            self._again.remove(task)
            self._done[task.number] = ItemError(error)

    def _kills(self, index: Any) -> bool:
        """Whether an item kills a worker of its own."""
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
    """How a process ended; one that hangs is ended first."""
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
    """End all, at once: they read, and write nothing. For their owner alone, not for a process that it forked."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.process.kill()
        worker.connection.close()
    for worker in workers:
        worker.process.join(END_S)
    workers.clear()


def work(source: Source[Any], connection: Connection, parent: int) -> None:
    """Answer until nobody asks any more.

    Args:
        source: what is read.
        connection: takes indices, gives items or faults.
        parent: the process that asks.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # A terminal or a scheduler may send them to all: the parent still has a step to finish and a checkpoint to write.
    for number in SIGNAL_EXIT_CODES:
        # An alarm is this one's own; processor time is counted for each process, and a new worker has all of it.
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
    except Exception as error:  # a bug of ours, or memory: for the parent to raise
        answer = error if type(error).__module__ == "builtins" else RuntimeError(f"{type(error).__name__}: {error}")
        answer.add_note(traceback.format_exc())
        handover.send(connection, ItemError(answer))
