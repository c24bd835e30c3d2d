"""Python child processes, for work that must be stopped, confined, or that may crash.

A child uses the same modules as its parent, ends when its parent ends, and gets only text arguments.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from memorysam_cli.errors import EnvironmentFault

if sys.platform == "linux":
    import fcntl

_PIPE_BYTES = 1 << 20
_BOOT = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "importlib.import_module(sys.argv.pop(1)).main(sys.argv[1:])"
)


def start(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    show_errors: bool = False,
    errors_to: IO[Any] | None = None,
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start ``module.main(arguments)`` in a new Python process; its stdout is a pipe to us, and so is its stdin.

    Args:
        module: dotted, with a function ``main`` that takes a list of text.
        arguments: for it.
        environment: all of its environment variables.
        show_errors: whether it shares our stderr; otherwise its stderr is discarded.
        errors_to: a file for its stderr instead.
        own_session: whether Ctrl-C in the terminal reaches only us; its process group then has its number.

    Raises:
        EnvironmentFault: the system cannot start a process.
    """
    # -I: do not search the current folder and the user's site, unless this process does; -B: no .pyc.
    path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 (keeps "" and what is not a path at all)
    command = [sys.executable, "-I", "-B", "-c", _BOOT, json.dumps(path), module, *arguments]
    errors = errors_to or (None if show_errors else subprocess.DEVNULL)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=dict(environment),
            start_new_session=own_session,
        )  # fmt: skip
    except OSError as error:
        raise EnvironmentFault(
            f"{sys.executable}: cannot start a process: {error.strerror}; free some memory, or allow more processes"
        ) from error
    _widen(process.stdout)
    return process


def _widen(pipe: IO[bytes] | None) -> None:
    """Enlarge a pipe to a megabyte, if the system allows it, so that large files are transferred faster."""
    if pipe is not None and sys.platform == "linux":
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def end(process: subprocess.Popen[Any], *, gently_s: float = 0) -> None:
    """Make sure that a child has ended: at once, or after ``gently_s`` seconds in which it may clean up."""
    if process.poll() is None and gently_s:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(gently_s)
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):  # what it did not read
                stream.close()
    process.wait()


def claim_stdout() -> IO[bytes]:
    """In a child: the pipe to the parent; later prints are not mistaken for an answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def watch_parent(on_loss: Callable[[], object]) -> None:
    """In a child: call ``on_loss``, from another thread, when the parent has ended."""

    def wait() -> None:
        while os.read(0, 64):  # until its end of the pipe is closed, by itself or by the system
            pass
        on_loss()

    threading.Thread(target=wait, daemon=True, name="watch-parent").start()


def tell_kernel(name: str, word: str) -> bool:
    """Write a word to ``/proc/self/<name>``, which is not a stored file, so that nothing can be lost.

    Returns:
        Whether the kernel accepted it; other systems have no such file.
    """
    try:
        Path(f"/proc/self/{name}").write_text(word)
    except OSError:
        return False
    return True


def signal_name(code: int) -> str:
    """The name of a signal, such as ``SIGSEGV`` for the exit code −11."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
