"""Faults in a program's system calls, one at a time: its N-th write fails, lies, or is its last."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLS = ("openat", "write", "fsync", "rename", "chmod", "close", "unlink", "mkdir", "ftruncate", "lseek")
FAULTS = ("signal=SIGKILL", "error=ENOSPC", "error=EIO")
LIE = "retval=100"
"""A write that says to have taken a hundred bytes, and took none."""


@dataclass(frozen=True)
class Outcome:
    """One run with one fault: which it was, and the program's exit code (negative: the signal)."""

    fault: str
    code: int
    said: str


def _traced(strace: Sequence[str], job: Sequence[str], log: Path) -> subprocess.CompletedProcess[str]:
    # Not --seccomp-bpf, with which strace 6.1 sends no signal, and says nothing of it.
    line = ["strace", "-f", "-qq", "-o", str(log), *strace, sys.executable, "-S", "-B", "-m", *job]
    environment = {"PYTHONPATH": _packages(), "PATH": os.environ["PATH"]}
    return subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=False)


def _packages() -> str:
    """What ``-S``, which spares the slow part of Python's start, leaves out."""
    return os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])


def require() -> None:
    """Skip by name where processes cannot be traced; ``.ci/run`` installs strace."""
    try:
        done = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    if done.returncode:
        pytest.skip(f"strace cannot trace here: {done.stderr.decode()}")


def paths_of(job: Sequence[str], folder: Path, log: Path) -> list[str]:
    """Every path below ``folder`` that a program names to the kernel."""
    done = _traced(["-y", "-s", "4096", "-e", "trace=%file,%desc"], job, log)
    assert done.returncode == 0, done.stderr
    found = re.findall(rf'["<]({re.escape(str(folder))}[^">]*)[">]', log.read_text())
    return sorted(set(found))


def record(job: Sequence[str], log: Path) -> str:
    """All that a program asks of the file system, with every byte that it writes, as strace prints it."""
    calls = (
        "openat",
        "write",
        "fsync",
        "fdatasync",
        "rename",
        "unlink",
        "unlinkat",
        "mkdir",
        "rmdir",
        "ftruncate",
        "close",
    )
    done = _traced(["-y", "-xx", "-s", "1000000", "-e", f"trace={','.join(calls)}"], job, log)
    assert done.returncode == 0, done.stderr
    return log.read_text()


def sweep(
    job: Sequence[str],
    paths: Sequence[str],
    log: Path,
    *,
    anew: Callable[[], None],
    drawn: Callable[[list[str]], list[str]],
) -> Iterator[Outcome]:
    """Run a program again and again, with faults at each of its calls on ``paths``.

    SQLite's way: for N = 1, 2, … to the last. Until a fault is met a run is the undisturbed one, whose calls are
    counted.

    Args:
        job: the program.
        paths: of :func:`paths_of`.
        log: takes what strace writes.
        anew: sets the files up before each run.
        drawn: which of the possible faults of a call are tried.
    """
    chosen = [word for path in paths for word in ("-P", path)]
    anew()
    done = _traced([*chosen, "-e", f"trace={','.join(CALLS)}"], job, log)
    assert done.returncode == 0, done.stderr
    counts = Counter(re.findall(r"(?m)^\d+ +(\w+)\(", log.read_text()))
    for call in CALLS:
        faults = [*FAULTS, *([LIE] if call == "write" else [])]
        for fault, number in ((each, number) for number in range(1, counts[call] + 1) for each in drawn(faults)):
            anew()
            inject = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"]
            done = _traced([*chosen, *inject], job, log)
            assert "killed by SIGKILL" in log.read_text() or "(INJECTED)" in log.read_text(), (call, fault, number)
            yield Outcome(f"{call} {fault} at {number}", done.returncode, done.stderr)
