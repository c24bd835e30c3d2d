"""The program's child processes, forked from one that has imported torch: each costs its work alone, and no imports.

For all tests, and for programs that are forked here; those of how a child starts from nothing, and of what it is then
confined to, use ``afresh``. Programs that tests start as processes of their own start their children as users' do.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import IO, Any

from memorysam_cli.storage import children

CONTEXT = multiprocessing.get_context("forkserver")
# Of the Hub's client, which reads the environment as it is imported, only what takes longest.
PRELOADED = ["tests.forked", "memorysam_cli.engine.measure.trials", "tests.built", "httpx2", "filelock"]
CONTEXT.set_forkserver_preload(PRELOADED)
LIMIT_S = 100
honest_start = children.start
"""The program's own, of which :func:`start` is the stand-in."""


class Fork:
    """As much of :class:`subprocess.Popen` as launchers of several processes use."""

    def __init__(self, process: Any) -> None:
        self.pid: int = process.pid
        self.returncode: int | None = None
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
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Child(Fork):
    """As much of it as the program uses."""

    def __init__(self, process: Any, *, stdin: int, stdout: int) -> None:
        super().__init__(process)
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")


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
    """As ``python -c`` in a folder."""
    folder, code, *words = arguments
    os.chdir(folder)
    sys.argv[:] = ["-c", *words]
    forkserver._forkserver.ensure_running = lambda: None  # it runs: this process is forked from it, as its children are
    children.start = start  # type: ignore[assignment]
    exec(compile(code, "-c", "exec"), {"__name__": "__main__"})


class Program:
    """``python -c`` at work, as with :class:`subprocess.Popen`.

    Args:
        code: the program.
        arguments: what it has in ``sys.argv``.
        environment: all its variables.
        cwd: the folder that it starts in.
    """

    def __init__(self, code: str, *arguments: str, environment: Mapping[str, str], cwd: Path | None = None) -> None:
        self.line = [code, *arguments]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (end() closes it)
        words = (str(cwd or Path.cwd()), *self.line)
        self.child = start("tests.forked", *words, environment=environment, errors_to=self._errors)
        self.child.stdin.close()

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait until it has ended; gives what it said."""
        clock = threading.Timer(LIMIT_S, self.child.kill)
        clock.start()
        with self._errors, self.child.stdout as stdout:
            try:
                out = stdout.read().decode()
                code = self.child.wait(LIMIT_S)
            finally:
                clock.cancel()
                self.child.kill()
            self._errors.seek(0)
            return subprocess.CompletedProcess(self.line, code, out, self._errors.read())


def python(
    code: str, *arguments: str, environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """As :func:`subprocess.run` of ``python -c``."""
    return Program(code, *arguments, environment=environment, cwd=cwd).end()


def launch(launcher: str, arguments: Sequence[str]) -> None:
    """As ``python -m`` of torchrun's or Accelerate's module, but its processes are forked from this one."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess_handler.Popen = _launched  # type: ignore[assignment, misc]
    sys.argv[:] = [launcher, *arguments]
    importlib.import_module(launcher).main()


def _launched(args: Sequence[str], *, env: Mapping[str, str], **_: Any) -> Fork:
    """In place of Popen in a launcher."""
    process = multiprocessing.get_context("fork").Process(target=_be_launched, args=(args, dict(env)))
    process.start()
    return Fork(process)


def _be_launched(line: Sequence[str], environment: dict[str, str]) -> None:
    """As Python does it with ``-u -m MODULE …`` or ``-u SCRIPT …``."""
    atexit._clear()  # the launcher's own
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    words = [word for word in line[1:] if word != "-u"]
    is_module = words[0] == "-m"
    sys.argv[:] = words[is_module:]
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
