"""Runs that start at once in one folder: processes that are forked, wait for a sign, and take the folder."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from memorysam_cli.errors import FolderInUseError

Hold = Callable[[Path], AbstractContextManager[None]]
WON, REFUSED, BROKEN = 0, 9, 1


class Starts:
    """As many processes as asked, each of which tries to own the folder and then waits to be ended.

    Args:
        count: how many.
        folder: what they want.
        hold: how it is owned.
    """

    def __init__(self, count: int, folder: Path, hold: Hold) -> None:
        self._begin = os.pipe()
        self._answers = os.pipe()
        self.pids = [self._start(folder, hold) for _ in range(count)]

    def race(self) -> list[tuple[int, str]]:
        """Give the sign; who won (by pid), and what the others were told."""
        os.close(self._begin[1])
        found = []
        with os.fdopen(os.dup(self._answers[0])) as answers:
            for _ in self.pids:
                code, _, said = answers.readline().rstrip("\n").partition(" ")
                found.append((int(code), said))
        return found

    def end(self, number: int = signal.SIGKILL) -> None:
        """End them all, and wait for it."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        for pid in self.pids:
            os.waitpid(pid, 0)
        for descriptor in (self._begin[0], *self._answers):
            os.close(descriptor)

    def _start(self, folder: Path, hold: Hold) -> int:
        child = os.fork()
        if child:
            return child
        code = BROKEN
        try:
            os.close(self._begin[1])
            os.read(self._begin[0], 1)
            with hold(folder):
                self._answer(WON, str(os.getpid()))
                signal.pause()
        except FolderInUseError as fault:
            code = fault.exit_code
            self._answer(code, str(fault))
        except BaseException as fault:
            self._answer(BROKEN, repr(fault))
        finally:
            os._exit(code)

    def _answer(self, code: int, said: str) -> None:
        os.write(self._answers[1], f"{code} {said}\n".encode())


@contextlib.contextmanager
def started(count: int, folder: Path, hold: Hold) -> Iterator[Starts]:
    """Processes that are gone when the block ends."""
    made = Starts(count, folder, hold)
    try:
        yield made
    finally:
        made.end()
