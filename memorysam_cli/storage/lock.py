"""One run per folder: a lock that dies with its owner, and a record that says who that is.

On Lustre, NFS and their like ``flock`` may not exist, or be granted to everybody. There a :class:`Marker` must be had
besides: a file that only one can create, and that its owner keeps young. Creating a file that must not exist is one
process's right there, too; but nothing removes it when its owner is killed. So the owner touches it again and again,
and one that has been silent for long, or is known to be dead, has lost it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from memorysam_cli.errors import DataError, EnvironmentFault, FolderInUseError, MemorySamError, Stopped
from memorysam_cli.storage import atomic, documents
from memorysam_cli.text import shown

try:
    import fcntl
except ImportError:  # Windows: a marker file has to do, see _acquire
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
"""Of the file that holds a lock; where locks are the kernel's it stays."""
MARKER_NAME = ".lock-owner"
NAMES = frozenset({NAME, MARKER_NAME})
"""Of all files that a lock may leave in a folder."""
FAULTS = "errors.jsonl"
"""What went wrong in a held folder: a line for each run that a fault of the user or of the machine ended."""
_COMMAND_LENGTH = 300
_OWNER_TRIES, _OWNER_SECONDS = 10, 0.02

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
"""How a file system without locks says so."""

BEAT_S, SILENCE_S = 10.0, 60.0
"""How often the owner says that it lives, and after what silence it counts as dead."""
SETTLE_S = 0.5
"""How long a new marker must stand: of two that came at once, both may have removed a dead one, and one a new one."""
_SIGNING_S, _SIGNING_TRIES = 0.2, 10
LOST_CODE = 9
_LOCAL = {
    "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "ntfs3", "overlay", "ramfs",
    "reiserfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs",
}  # fmt: skip
"""File systems of one machine, where the kernel's lock is the truth."""

_PROC = Path("/proc")
_SELF = _PROC / "self"
_START_TIME = 19
"""Its place in ``/proc/PID/stat``, counted from behind the program's name, which may hold anything."""

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

    On a file system that several machines may share, where kernels may lie about locks, a :class:`Marker` must be had
    besides; of an owner that was killed on another machine it is free after a minute.

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
        if fcntl is not None and (not is_locked or needs_marker(folder)):
            claim = _take(Marker(folder, record), folder)
    except BaseException:
        os.close(descriptor)  # what stands in the file is the owner's
        raise
    _held.add(descriptor)
    place = folder.absolute()
    atomic.held.add(place)
    try:
        with atomic.faults(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, record)
        with _gone_is_told(descriptor, path):
            yield
    except Stopped:
        raise
    except MemorySamError as error:
        with contextlib.suppress(MemorySamError, OSError):  # a full disk must not hide the first fault
            note(error, folder)
        raise
    finally:
        atomic.held.discard(place)
        _release(descriptor, path, claim)


@contextlib.contextmanager
def _gone_is_told(descriptor: int, path: Path) -> Iterator[None]:
    """Let no block end well, or with a fault that only follows from it, whose folder was removed or exchanged.

    Raises:
        EnvironmentFault: the lock's file is not the one that was opened.
    """
    try:
        yield
        if _is_gone(descriptor, path):
            raise _gone(path)
    except Exception as error:
        if isinstance(error, Stopped | EnvironmentFault):
            raise
        if _is_gone(descriptor, path):
            raise _gone(path) from error
        raise


def _is_gone(descriptor: int, path: Path) -> bool:
    if fcntl is None or descriptor not in _held:  # Windows keeps what is open; a forked child owns nothing
        return False
    try:
        return not os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return True


def _gone(path: Path) -> EnvironmentFault:
    return EnvironmentFault(
        f"{shown(path.parent)}: was removed, or exchanged for another folder, while this command wrote there; run the "
        "same command again"
    )


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
        record = documents.read_json(folder / NAME)
        found = Owner(str(record["host"]), int(record["pid"]), str(record["since"]), None)
    except (DataError, ValueError, KeyError, TypeError):
        return None
    lives = None if record.get("where") != this_kernel() else not is_dead(record)
    return replace(found, lives=lives)


def note(error: MemorySamError, folder: Path) -> None:
    """Leave a fault's line in the folder that it happened in, for whoever finds it later."""
    line = {"code": error.exit_code, "message": str(error), "time": _now(), "command": shlex.join(sys.argv)}
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
            f"free {SILENCE_S:.0f} s after its last sign of life, {taken.silence:.0f} s ago"
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
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in _NO_LOCKS:
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
        "where": this_kernel(),
        "started": start_time(os.getpid()),
        "token": secrets.token_hex(8),
    }
    return json.dumps(record).encode() + b"\n"


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _owner(path: Path) -> str:
    """Who holds the lock, as one phrase; an owner that has just started gets a moment to sign."""
    for _ in range(_OWNER_TRIES):
        with contextlib.suppress(DataError):
            record = documents.read_json(path)
            if (phrase := _phrase(record)) and not is_dead(record):  # killed, and its heir has not signed yet
                return phrase
        time.sleep(_OWNER_SECONDS)
    return "a run that left no record"


def _phrase(record: Any) -> str | None:
    with contextlib.suppress(KeyError, TypeError):
        return f"{record['host']} pid {record['pid']} since {record['since']}: {shown(str(record['command']))}"
    return None


class Taken(Exception):
    """Another run holds the marker; ``record`` is what it wrote there, empty if it has not yet."""

    def __init__(self, record: dict[str, Any], *, silence: float) -> None:
        super().__init__(f"silent for {silence:.0f} s")
        self.record, self.silence = record, max(silence, 0.0)


def needs_marker(folder: Path) -> bool:
    """Whether a folder may be on several machines at once, so that one kernel's lock is not enough."""
    kind = file_system(folder)
    return kind is not None and kind not in _LOCAL


def is_dead(record: dict[str, Any]) -> bool:
    """Whether the process that wrote a record is known to be gone; its number may live again."""
    return _is_of_this_kernel(record) and start_time(record["pid"]) != record.get("started")


def _is_of_this_kernel(record: dict[str, Any]) -> bool:
    here = this_kernel()
    return here is not None and record.get("where") == here and isinstance(record.get("pid"), int)


class Marker:
    """The owner's side of a marker.

    Args:
        folder: that is owned.
        record: who owns it; its bytes are never twice the same.
    """

    def __init__(self, folder: Path, record: bytes) -> None:
        self.path, self._record = folder / MARKER_NAME, record
        self._over = threading.Event()

    def take(self) -> None:
        """Own the folder from now on.

        Raises:
            Taken: somebody else does.
            OSError: the file cannot be written.
        """
        if not self._create():
            self._refuse_living()
            self.path.unlink(missing_ok=True)
            if not self._create():
                self._refuse_living()
                raise Taken({}, silence=0.0)
        time.sleep(SETTLE_S)
        if not self._is_ours():
            self._refuse_living()
            raise Taken({}, silence=0.0)
        threading.Thread(target=self._beat, name="marker", daemon=True).start()

    def leave(self) -> None:
        """Free the folder."""
        self._over.set()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, self._record)
            os.fsync(descriptor)  # other machines see it now
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return True

    def _is_ours(self) -> bool:
        try:
            return self.path.read_bytes() == self._record
        except FileNotFoundError:
            return False

    def _refuse_living(self) -> None:
        """Refuse a marker whose owner lives, or may live; one that has gone in the meantime is no owner."""
        with contextlib.suppress(FileNotFoundError):
            for _ in range(_SIGNING_TRIES):
                record, silence = self._look()
                if record or silence >= _SIGNING_S:
                    break
                time.sleep(_SIGNING_S / _SIGNING_TRIES)  # its owner has just made it, and not signed yet
            is_silent = silence >= SILENCE_S and not _is_of_this_kernel(record)
            if not (is_dead(record) or is_silent):
                raise Taken(record, silence=silence)

    def _look(self) -> tuple[dict[str, Any], float]:
        """What a marker says, and for how many seconds its owner has been silent."""
        with self.path.open("rb") as stream:
            touched, content = os.fstat(stream.fileno()).st_mtime, stream.read()
        record: dict[str, Any] = {}
        with contextlib.suppress(DataError):
            found = documents.parse_json(content, where=MARKER_NAME)
            record = found if isinstance(found, dict) else {}
        return record, self._now() - touched

    def _now(self) -> float:
        """The file system's own clock: machines differ."""
        probe = self.path.with_name(f"{MARKER_NAME}.{os.getpid()}-{threading.get_ident()}")
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666))
        os.utime(probe)
        touched = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return touched

    def _beat(self) -> None:
        """Keep the marker young; without it there is another owner, and two must not continue."""
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a network file system may be away for a while
                if self._is_ours():
                    os.utime(self.path)
                elif not self._over.is_set():
                    _end(self.path)


def _end(path: Path) -> None:
    with contextlib.suppress(OSError):
        what = f"{shown(path)}: was taken over by another run after a long silence of this one"
        os.write(2, f"memorysam: error [{LOST_CODE}]: {what}\n".encode())
    os._exit(LOST_CODE)


def this_kernel() -> str | None:
    """What tells this kernel's processes from all others: its boot, and the processes' name space; None elsewhere."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_SELF / 'ns/pid').readlink()}"
    except OSError:
        return None


def start_time(pid: int) -> int | None:
    """When a process here began, in the kernel's ticks: with its number it is never another one's.

    Returns:
        None where there is no such process, or only what its parent has not yet been told of.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[_START_TIME])


def file_system(folder: Path) -> str | None:
    """The kind of file system that a folder is on, such as ``ext4`` or ``nfs4``; None where nobody says."""
    found, longest = None, -1
    path = folder.absolute()
    with contextlib.suppress(OSError, ValueError, IndexError):
        path = path.resolve()
        for line in os.fsdecode((_SELF / "mountinfo").read_bytes()).splitlines():
            mount, _, source = line.partition(" - ")
            # The kernel writes spaces and the like as three octal digits; of two mounts on one place the later counts.
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount.split()[4])
            if path.is_relative_to(point) and len(point) >= longest:
                found, longest = source.split()[0], len(point)
    return found
