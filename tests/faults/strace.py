"""Faults in a program's system calls, one at a time: its N-th write fails, lies, or is its last."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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
    line = ["strace", "-f", "-qq", "--seccomp-bpf", "-o", str(log), *strace, sys.executable, "-S", "-B", "-m", *job]
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


def sweep(job: Sequence[str], paths: Sequence[str], log: Path, *, anew: Callable[[], None]) -> Iterator[Outcome]:
    """Run a program again and again, with each fault at each of its calls on ``paths``, until no call is left.

    SQLite's way: for N = 1, 2, … until the N-th call does not exist any more. ``anew`` sets the files up before each.
    """
    chosen = [word for path in paths for word in ("-P", path)]
    for call in CALLS:
        for fault in (*FAULTS, *([LIE] if call == "write" else [])):
            for number in range(1, 1000):
                anew()
                inject = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"]
                done = _traced([*chosen, *inject], job, log)
                if done.returncode >= 0 and "(INJECTED)" not in log.read_text():
                    break
                yield Outcome(f"{call} {fault} at {number}", done.returncode, done.stderr)
