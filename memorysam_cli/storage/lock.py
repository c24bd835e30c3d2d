"""One run per folder: a lock that dies with its owner, and a record that says who that is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from memorysam_cli.errors import FolderInUseError, MemorySamError, Stopped
from memorysam_cli.storage import atomic, marker, proc
from memorysam_cli.storage.marker import Marker, Taken
from memorysam_cli.text import shown

try:
    import fcntl
except ImportError:  # Windows: a marker file has to do, see _acquire
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
"""Of the file that holds a lock; where locks are the kernel's it stays."""
NAMES = frozenset({NAME, marker.NAME})
"""Of all files that a lock may leave in a folder."""
FAULTS = "errors.jsonl"
"""What went wrong in a held folder: a line for each run that a fault of the user or of the machine ended."""
_COMMAND_LENGTH = 300
_OWNER_TRIES, _OWNER_SECONDS = 10, 0.02

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
"""How a file system without locks says so."""

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

    On a file system that several machines may share, where kernels may lie about locks, a
    :class:`~memorysam_cli.storage.marker.Marker` must be had besides; of an owner that was killed on another machine
    it is free after a minute.

    Args:
        folder: created where missing; the lock is its file ``.lock``, which stays. A :class:`MemorySamError` that
            leaves the block also becomes a line of its ``errors.jsonl``.

    Raises:
        FolderInUseError: another run owns it; names host, pid, start and command.
        EnvironmentFault: the folder cannot be written.
    """
    atomic.make_folder(folder)
    path, record = folder / NAME, _owner_record()
    with atomic.faults(path):
        descriptor, is_locked = _acquire(path)
    try:
        claim = None
        if fcntl is not None and (not is_locked or marker.is_needed(folder)):
            claim = _take(Marker(folder, record), folder)
    except BaseException:
        os.close(descriptor)  # what stands in the file is the owner's
        raise
    _held.add(descriptor)
    try:
        with atomic.faults(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, record)
        yield
    except Stopped:
        raise
    except MemorySamError as fault:
        with contextlib.suppress(MemorySamError, OSError):  # a full disk must not hide the first fault
            note(fault, folder)
        raise
    finally:
        _release(descriptor, path, claim)


@dataclass(frozen=True)
class Owner:
    """Who holds a folder, as its record says."""

    host: str
    pid: int
    since: str
    lives: bool | None
    """None: it is on another machine, where nobody can know."""


def owner(folder: Path) -> Owner | None:
    """Who holds a folder; nothing is written and no lock is tried, so that nobody is disturbed.

    Returns:
        None for a folder that nobody holds, as far as its files tell.
    """
    try:
        record = json.loads((folder / NAME).read_bytes())
        found = Owner(str(record["host"]), int(record["pid"]), str(record["since"]), None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    lives = None if record.get("where") != proc.here() else not marker.is_dead(record)
    return replace(found, lives=lives)


def note(fault: MemorySamError, folder: Path) -> None:
    """Leave a fault's line in the folder that it happened in, for whoever finds it later."""
    line = {"code": fault.exit_code, "message": str(fault), "time": _now(), "command": shlex.join(sys.argv)}
    with atomic.open_log(folder / FAULTS) as log:
        log.write(json.dumps(line) + "\n")


def _take(claim: Marker, folder: Path) -> Marker:
    try:
        with atomic.faults(claim.path):
            claim.take()
    except Taken as taken:
        owner = _phrase(taken.record) or "a run that left no record"
        raise FolderInUseError(
            f"{shown(folder)}: in use by {owner}; wait for it or choose another --out; if it is dead, the folder is "
            f"free {marker.SILENCE_S:.0f} s after its last sign of life, {taken.silence:.0f} s ago"
        ) from taken
    return claim


def _release(descriptor: int, path: Path, claim: Marker | None) -> None:
    if descriptor not in _held:  # a forked child leaves the block: the lock is its parent's
        return
    _held.discard(descriptor)
    if claim is not None:
        claim.leave()
    with contextlib.suppress(OSError):  # a full disk must not hide how the block ended
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
    if fcntl is None:
        path.unlink(missing_ok=True)


def _acquire(path: Path) -> tuple[int, bool]:
    """A descriptor of the lock's file, and whether a kernel or the file itself vouches for it."""
    try:
        if fcntl is None:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as fault:
            if isinstance(fault, OSError) and fault.errno in _NO_LOCKS:
                return descriptor, False
            os.close(descriptor)
            raise
        return descriptor, True
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
        "where": proc.here(),
        "started": proc.started(os.getpid()),
        "token": secrets.token_hex(8),
    }
    return json.dumps(record).encode() + b"\n"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _owner(path: Path) -> str:
    """Who holds the lock, as one phrase; an owner that has just started gets a moment to sign."""
    for _ in range(_OWNER_TRIES):
        with contextlib.suppress(OSError, ValueError):
            record = json.loads(path.read_bytes())
            if (phrase := _phrase(record)) and not marker.is_dead(record):  # killed, and its heir has not signed yet
                return phrase
        time.sleep(_OWNER_SECONDS)
    return "a run that left no record"


def _phrase(record: Any) -> str | None:
    with contextlib.suppress(KeyError, TypeError):
        return f"{record['host']} pid {record['pid']} since {record['since']}: {shown(str(record['command']))}"
    return None
