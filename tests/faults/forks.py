"""A process that has done the slow imports, and forks a child for each attempt: kills by the hundred in seconds.

``Forks("tests.faults.jobs:train", root)`` starts a server, a Python of its own with one thread. It imports the target,
calls its ``warm(*arguments)`` once if its module has such a function, and then forks a child per :meth:`Forks.run`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memorysam_cli.errors import SIGNAL_EXIT_CODES

ROOT = Path(__file__).parents[2]
LIMIT_S = float(os.environ.get("MEMORYSAM_FORK_LIMIT", "60"))
"""A child that lives for longer hangs."""
POLL_S = 0.0005
PRODUCT = f"{os.sep}memorysam_cli{os.sep}"
STOPPING = tuple(SIGNAL_EXIT_CODES)


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal; seconds that it lived; what it wrote on stderr."""

    code: int
    seconds: float
    said: str

    @property
    def was_killed(self) -> bool:
        """By us, in the midst of its work."""
        return self.code == -signal.SIGKILL


class Forks:
    """The server's client.

    Args:
        target: ``module:function``; called in each child with the arguments of :meth:`run`. What it returns is the
            child's exit code (None is 0); an exception is exit code 1, with its traceback on stderr.
        warm: arguments of the module's function ``warm``, called once in the server, before any fork.
    """

    def __init__(self, target: str, *warm: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks", target, *warm],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, *arguments: Any, kill_after: float | None = None, stop_with: int = signal.SIGKILL) -> Ended:
        """Run the target in a new child.

        Args:
            arguments: what JSON can hold.
            kill_after: seconds after which the child gets ``stop_with``; none lets it end by itself.
            stop_with: a signal's number.

        Raises:
            TimeoutError: the child hung, and was killed.
        """
        assert self._server.stdin is not None
        request = {"arguments": arguments, "kill_after": kill_after, "signal": int(stop_with)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._answer()
        if answer.pop("hung"):
            raise TimeoutError(f"{arguments}: still alive after {LIMIT_S} s; it said: {answer['said']}")
        return Ended(**answer)

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with {self._server.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server, whatever it does."""
        with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
            self._server.communicate(timeout=10)
        self._server.kill()
        self._server.communicate()


def serve(target: str, warm: list[str]) -> None:
    """Import, warm up, then fork for each line on stdin and answer on stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the target prints is not an answer
    name, _, function = target.partition(":")
    module = importlib.import_module(name)
    if hasattr(module, "warm"):
        module.warm(*warm)
    if (program := sys.modules.get("memorysam_cli.app")) is not None:
        program.program()  # built once, for all children
    # Else each child begins by collecting what importing has left, for as long as a few updates take.
    gc.collect()
    gc.freeze()
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = _attempt(getattr(module, function), request)
        print(json.dumps(answer), file=answers, flush=True)


def _attempt(work: Any, request: dict[str, Any]) -> dict[str, Any]:
    """One child, killed at its time or ended by itself; its stderr comes back."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    begun = time.monotonic()
    # A signal that comes before the child has its own handlers must not run the server's.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    child = os.fork()
    if child == 0:
        _be_child(work, request["arguments"], stderr=writing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    os.close(writing)
    said, due, hung = b"", request["kill_after"], False
    while True:
        said += _read(reading)
        pid, status = os.waitpid(child, os.WNOHANG)
        lived = time.monotonic() - begun
        if pid:
            break
        if due is not None and lived >= due:
            os.kill(child, request["signal"])
            due = None
        if lived > LIMIT_S:
            os.kill(child, signal.SIGKILL)
            hung = True
        time.sleep(POLL_S)
    said += _read(reading)
    os.close(reading)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": lived, "said": said.decode(errors="replace")[-20_000:], "hung": hung}


def _read(descriptor: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(descriptor, 1 << 16)
    return b""


def _be_child(work: Any, arguments: list[Any], *, stderr: int) -> None:
    """The target, and never back into the server's loop."""
    code = 1
    try:
        os.dup2(stderr, 2)
        for number in STOPPING:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        code = int(work(*arguments) or 0)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt as early:
        if _was_in_the_program(early):
            traceback.print_exc()
        else:  # before the program took signals over: it ends as a Python without a program does
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _was_in_the_program(fault: BaseException) -> bool:
    """Whether a fault came up in a function of the product, and not just as its ``main`` was being entered."""
    frames = [(each.f_code, line) for each, line in traceback.walk_tb(fault.__traceback__)]
    ours = [(code, line) for code, line in frames if PRODUCT in code.co_filename]
    return bool(ours) and not (len(ours) == 1 and ours[0][1] == ours[0][0].co_firstlineno)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
