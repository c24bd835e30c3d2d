"""A process that has done the slow imports, and forks a child for each attempt: kills by the hundred in seconds.

``Forks("tests.faults.jobs_training:train", root)`` starts a server, a Python of its own with one thread. It imports the
target, calls its ``warm(*arguments)`` once if its module has such a function, and then forks a child per
:meth:`Forks.run`.
Servers are themselves forked from a process that has imported PyTorch and PEFT, one for all tests of this process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from memorysam_cli.errors import SIGNAL_EXIT_CODES

ROOT = Path(__file__).parents[1]
LIMIT = "MEMORYSAM_FORK_LIMIT"
"""The variable with the seconds that a child may live; one that lives for longer hangs."""
HEAVY = ("accelerate", "cv2", "memorysam_cli.app", "memorysam_cli.model.lora")
"""What takes seconds to import."""
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
        is_light: begin with a Python that has imported nothing of :data:`HEAVY`.

    Raises:
        RuntimeError: the server ended while it imported or warmed up.
    """

    def __init__(self, target: str, *warm: str, is_light: bool = False) -> None:
        (its_stdin, requests), (answers, its_stdout) = os.pipe(), os.pipe()
        self._requests, self._answers = os.fdopen(requests, "w"), os.fdopen(answers)
        words = json.dumps({"target": target, "warm": warm, "environment": dict(os.environ)})
        socket.send_fds(_root(is_light), [words.encode()], [its_stdin, its_stdout, 2])
        os.close(its_stdin)
        os.close(its_stdout)
        self._pid = self._number = 0
        try:
            self._pid = self._answer()["pid"]
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
        self._number += 1
        request = {"number": self._number, "arguments": arguments, "kill_after": kill_after, "signal": int(stop_with)}
        print(json.dumps(request), file=self._requests, flush=True)
        while (answer := self._answer()).pop("number") != self._number:
            pass  # of a run whose test was given up before it ended
        if answer.pop("hung"):
            raise TimeoutError(f"{arguments}: still alive after {_limit_s()} s; it said: {answer['said']}")
        return Ended(**answer)

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the fork server ended")
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
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        select.select([self._answers], [], [], 10)  # it closes what it answers on when it ends
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._answers.close()


@cache
def _root(is_light: bool) -> socket.socket:
    """The way to the process that servers are forked from; it ends with this one."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line = [sys.executable, "-m", "tests.forks", str(its.fileno()), *(() if is_light else HEAVY)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, env=environment, cwd=ROOT)
    its.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def be_root(channel: socket.socket, modules: list[str]) -> None:
    """Import what takes long, then fork a server for each message; returns when nobody is left to send one."""
    for name in modules:
        importlib.import_module(name)
    if (lora := sys.modules.get("memorysam_cli.model.lora")) is not None:
        lora.peft()
    while True:
        words, descriptors, _, _ = socket.recv_fds(channel, 1 << 20, 3)
        if not words:
            return
        if os.fork() == 0:
            _be_server(json.loads(words), descriptors)
        for each in descriptors:
            os.close(each)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _be_server(request: dict[str, Any], descriptors: list[int]) -> None:
    """Serve over these descriptors, and never back into the root's loop."""
    code = 1
    try:
        for number, each in enumerate(descriptors):
            os.dup2(each, number)
        os.closerange(3, max(descriptors) + 1)
        os.environ.clear()
        os.environ.update(request["environment"])
        serve(request["target"], request["warm"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


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
    print(json.dumps({"pid": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"number": request["number"], **_attempt(getattr(module, function), request)}
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
    waited_for = [os.pidfd_open(child), reading]
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        lived = time.monotonic() - begun
        if pid:
            break
        if due is not None and lived >= due:
            os.kill(child, request["signal"])
            due = None
        if lived > _limit_s():
            os.kill(child, signal.SIGKILL)
            hung = True
        left = (_limit_s() if due is None else due) - lived
        if reading in select.select(waited_for, [], [], max(left, 0))[0]:
            more = _read(reading)
            said += more
            if not more:  # it has closed its stderr
                waited_for.remove(reading)
    os.close(waited_for[0])
    said += _read(reading)
    os.close(reading)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": lived, "said": said.decode(errors="replace")[-20_000:], "hung": hung}


def _limit_s() -> float:
    return float(os.environ.get(LIMIT, "60"))


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
    be_root(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
