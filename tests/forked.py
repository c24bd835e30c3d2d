"""The program's child processes, forked from one that has imported torch: each costs its work alone, and no imports.

For all tests; those of how a child starts from nothing, and of what it is then confined to, use ``afresh``. Programs
that tests start as processes of their own start their children as users' do.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any

from memorysam_cli.storage import children

CONTEXT = multiprocessing.get_context("forkserver")
# Without the Hub's client, which reads the environment as it is imported.
CONTEXT.set_forkserver_preload(["tests.forked", "memorysam_cli.engine.measure.trials", "memorysam_cli.app"])
LIMIT_S = 100
honest_start = children.start
"""The program's own, of which :func:`start` is the stand-in."""


class Child:
    """As much of :class:`subprocess.Popen` as the program uses."""

    def __init__(self, process: Any, *, stdin: int, stdout: int) -> None:
        self.pid: int = process.pid
        self.returncode: int | None = None
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        self._process = process

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("a forked child", timeout or 0)
        return code

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    show_errors: bool = False,
    errors_to: IO[Any] | None = None,
    own_session: bool = False,
) -> Child:
    """In place of :func:`memorysam_cli.storage.children.start`, with its arguments."""
    (stdin, to_child), (from_child, stdout) = os.pipe(), os.pipe()
    with Path(os.devnull).open("wb") as nowhere:
        errors = errors_to.fileno() if errors_to else 2 if show_errors else nowhere.fileno()
        ends = [Descriptor(number) for number in (stdin, stdout, errors)]
        process = CONTEXT.Process(target=be, args=(module, arguments, dict(environment), own_session, ends))
        process.start()
    os.close(stdin)
    os.close(stdout)
    return Child(process, stdin=to_child, stdout=from_child)


class Descriptor:
    """An open file that a child is handed."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return received, (reduction.DupFd(self.number),)  # type: ignore[attr-defined]


def received(handed: Any) -> int:
    """The number that it has in the child."""
    number: int = handed.detach()
    return number


def be(
    module: str, arguments: tuple[str, ...], environment: dict[str, str], own_session: bool, ends: list[int]
) -> None:
    """In the child."""
    for number, end in enumerate(ends):
        os.dup2(end, number)
        os.close(end)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(os.dup(number), mode) for number, mode in enumerate("rww"))
    if own_session:
        os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    importlib.import_module(module).main(list(arguments))


def main(arguments: list[str]) -> None:
    """As ``python -c``."""
    sys.argv[:] = ["-c", *arguments[1:]]
    exec(compile(arguments[0], "-c", "exec"), {"__name__": "__main__"})


def python(code: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """As :func:`subprocess.run` of ``python -c``."""
    with tempfile.TemporaryFile("w+") as errors:
        child = start("tests.forked", code, *arguments, environment=environment, errors_to=errors)
        child.stdin.close()
        try:
            out = child.stdout.read().decode()
            ended = child.wait(LIMIT_S)
        finally:
            child.kill()
            child.stdout.close()
        errors.seek(0)
        return subprocess.CompletedProcess([code, *arguments], ended, out, errors.read())
