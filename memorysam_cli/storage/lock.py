"""One run per folder: a lock that dies with its owner, and a record that says who that is."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from memorysam_cli.errors import FolderInUseError, MemorySamError, Stopped
from memorysam_cli.storage import atomic
from memorysam_cli.storage.atomic import shown

try:
    import fcntl
except ImportError:  # Windows: a marker file has to do, see _acquire
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
"""Of the file that holds a lock; where locks are the kernel's it stays."""
FAULTS = "errors.jsonl"
"""What went wrong in a held folder: a line for each run that a fault of the user or of the machine ended."""
_COMMAND_LENGTH = 300
_OWNER_TRIES, _OWNER_SECONDS = 10, 0.02

_held: set[int] = set()


def _forget_in_child() -> None:
    """A forked data worker that outlives its killed parent must not keep the folder locked."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Own ``folder`` while the block runs; the kernel frees it at once when the process dies, however it dies.

    Args:
        folder: created where missing; the lock is its file ``.lock``, which stays. A :class:`MemorySamError` that
            leaves the block also becomes a line of its ``errors.jsonl``.

    Raises:
        FolderInUseError: another run owns it; names host, pid, start and command.
        EnvironmentFault: the folder cannot be written.
    """
    atomic.make_folder(folder)
    path = folder / NAME
    with atomic.faults(path):
        descriptor = _acquire(path)
    _held.add(descriptor)
    try:
        with atomic.faults(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _owner_record())
        yield
    except Stopped:
        raise
    except MemorySamError as fault:
        with contextlib.suppress(MemorySamError, OSError):  # a full disk must not hide the first fault
            _note(fault, folder)
        raise
    finally:
        _release(descriptor, path)


def _note(fault: MemorySamError, folder: Path) -> None:
    """Leave a fault's line in the folder that it happened in, for whoever finds it later."""
    line = {"code": fault.exit_code, "message": str(fault), "time": _now(), "command": shlex.join(sys.argv)}
    with atomic.open_log(folder / FAULTS) as log:
        log.write(json.dumps(line) + "\n")


def _release(descriptor: int, path: Path) -> None:
    if descriptor not in _held:  # a forked child leaves the block: the lock is its parent's
        return
    _held.discard(descriptor)
    with contextlib.suppress(OSError):  # a full disk must not hide how the block ended
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
    if fcntl is None:
        path.unlink(missing_ok=True)


def _acquire(path: Path) -> int:
    """A descriptor that owns the lock."""
    try:
        if fcntl is None:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    except (BlockingIOError, FileExistsError) as error:
        stale = f"; if that run is dead, remove {shown(path)}" if fcntl is None else ""
        raise FolderInUseError(
            f"{shown(path.parent)}: in use by {_owner(path)}; wait for it or choose another --out{stale}"
        ) from error


def _owner_record() -> bytes:
    record = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": _now(),
        "command": shlex.join(sys.argv)[:_COMMAND_LENGTH],
    }
    return json.dumps(record).encode() + b"\n"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _owner(path: Path) -> str:
    """Who holds the lock, as one phrase; an owner that has just started gets a moment to sign."""
    for _ in range(_OWNER_TRIES):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json.loads(path.read_bytes())
            return f"{record['host']} pid {record['pid']} since {record['since']}: {shown(str(record['command']))}"
        time.sleep(_OWNER_SECONDS)
    return "a run that left no record"
