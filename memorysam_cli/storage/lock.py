"""One run per folder: a lock that ends with its owner, and a record of the owner.

On Lustre, NFS and similar file systems ``flock`` may not exist, or may be granted to everybody. There a :class:`Marker`
is needed in addition: a file that only one process can create, and that its owner touches regularly. Creating a file
that must not exist works for only one process there, too. But nothing removes the file if its owner is killed.
Therefore an owner that has been silent for long, or is known to be dead, loses the marker.
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
except ImportError:  # Windows has only a marker file, see _acquire
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
"""Name of the lock's file; with kernel locks it stays in the folder."""
MARKER_NAME = ".lock-owner"
NAMES = frozenset({NAME, MARKER_NAME})
"""Names of all files that a lock may leave in a folder."""
FAULTS = "errors.jsonl"
"""Errors in a held folder: a line for each run that an error ended."""
_COMMAND_LENGTH = 300
_OWNER_TRIES, _OWNER_SECONDS = 10, 0.02

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK}
"""Error numbers of a file system without locks."""

BEAT_S, SILENCE_S = 10.0, 60.0
"""Seconds between two touches by the owner, and seconds of silence after which it counts as dead."""
SETTLE_S = 0.5
"""Seconds that a new marker must stay: of two processes that came at the same time, both may have removed a dead one,
and one a new one."""
_SIGNING_S, _SIGNING_TRIES = 0.2, 10
LOST_CODE = 9
_LOCAL = {
    "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "ntfs3", "overlay", "ramfs",
    "reiserfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs",
}  # fmt: skip
"""File systems of one machine, where the kernel's lock is sufficient."""

_PROC = Path("/proc")
_SELF = _PROC / "self"
_START_TIME = 19
"""Index of the start time in ``/proc/PID/stat``, counted after the program's name, which may contain anything."""

_held: set[int] = set()


def _forget_in_child() -> None:
    """Close the lock in a forked data worker, which may live longer than its killed parent."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Own ``folder`` while the block runs; the kernel frees it at once when the process ends in any way.

    On a file system that several machines may share, where kernel locks may not work, a :class:`Marker` is needed in
    addition. If the owner was killed on another machine, it is free after a minute.

    Args:
        folder: created if missing; the lock is its file ``.lock``, which stays. A :class:`MemorySamError` that leaves
            the block is also written to its ``errors.jsonl``.

    Raises:
        FolderInUseError: another run owns it; the message names host, pid, start and command.
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
        os.close(descriptor)  # the content of the file belongs to the owner
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
    """Raise an error if the folder was removed or replaced during the block.

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
    if fcntl is None or descriptor not in _held:  # Windows keeps open files; a forked child owns nothing
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
    """The owner of a folder, from its record."""

    host: str
    pid: int
    since: str
    lives: bool | None
    """Whether the process exists; None: it is on another machine, so this is unknown."""


def owner(folder: Path) -> Owner | None:
    """The owner of a folder; this writes nothing and takes no lock, so it disturbs nobody.

    Returns:
        None for a folder without an owner, as far as its files show.
    """
    try:
        record = documents.read_json(folder / NAME)
        found = Owner(str(record["host"]), int(record["pid"]), str(record["since"]), None)
    except (DataError, ValueError, KeyError, TypeError):
        return None
    lives = None if record.get("where") != this_kernel() else not is_dead(record)
    return replace(found, lives=lives)


def note(error: MemorySamError, folder: Path) -> None:
    """Write an error to the folder in which it occurred, for later readers."""
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
    """A descriptor of the lock's file, and whether a kernel lock or the file itself is the lock."""
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
    """The owner of the lock, as one phrase; an owner that has just started gets a moment to write its record."""
    for _ in range(_OWNER_TRIES):
        with contextlib.suppress(DataError):
            record = documents.read_json(path)
            if (phrase := _phrase(record)) and not is_dead(record):  # killed; no record of the new owner yet
                return phrase
        time.sleep(_OWNER_SECONDS)
    return "a run that left no record"


def _phrase(record: Any) -> str | None:
    with contextlib.suppress(KeyError, TypeError):
        return f"{record['host']} pid {record['pid']} since {record['since']}: {shown(str(record['command']))}"
    return None


class Taken(Exception):
    """Another run holds the marker; ``record`` is its content, empty if not written yet."""

    def __init__(self, record: dict[str, Any], *, silence: float) -> None:
        super().__init__(f"silent for {silence:.0f} s")
        self.record, self.silence = record, max(silence, 0.0)


def needs_marker(folder: Path) -> bool:
    """Whether a folder may be on several machines at once, so that one kernel's lock is not sufficient."""
    kind = file_system(folder)
    return kind is not None and kind not in _LOCAL


def is_dead(record: dict[str, Any]) -> bool:
    """Whether the process of a record has certainly ended; its number may be in use again."""
    return _is_of_this_kernel(record) and start_time(record["pid"]) != record.get("started")


def _is_of_this_kernel(record: dict[str, Any]) -> bool:
    here = this_kernel()
    return here is not None and record.get("where") == here and isinstance(record.get("pid"), int)


class Marker:
    """The owner's side of a marker.

    Args:
        folder: the owned folder.
        record: of the owner; its bytes are always unique.
    """

    def __init__(self, folder: Path, record: bytes) -> None:
        self.path, self._record = folder / MARKER_NAME, record
        self._over = threading.Event()

    def take(self) -> None:
        """Take the folder.

        Raises:
            Taken: another process owns it.
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
        """Refuse a marker whose owner lives, or may live; a marker that has just disappeared is free."""
        with contextlib.suppress(FileNotFoundError):
            for _ in range(_SIGNING_TRIES):
                record, silence = self._look()
                if record or silence >= _SIGNING_S:
                    break
                time.sleep(_SIGNING_S / _SIGNING_TRIES)  # its owner has just created it, without a record yet
            is_silent = silence >= SILENCE_S and not _is_of_this_kernel(record)
            if not (is_dead(record) or is_silent):
                raise Taken(record, silence=silence)

    def _look(self) -> tuple[dict[str, Any], float]:
        """The content of a marker, and the seconds since its owner touched it."""
        with self.path.open("rb") as stream:
            touched, content = os.fstat(stream.fileno()).st_mtime, stream.read()
        record: dict[str, Any] = {}
        with contextlib.suppress(DataError):
            found = documents.parse_json(content, where=MARKER_NAME)
            record = found if isinstance(found, dict) else {}
        return record, self._now() - touched

    def _now(self) -> float:
        """The file system's own clock, because the clocks of machines differ."""
        probe = self.path.with_name(f"{MARKER_NAME}.{os.getpid()}-{threading.get_ident()}")
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666))
        os.utime(probe)
        touched = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return touched

    def _beat(self) -> None:
        """Touch the marker; if it is gone there is another owner, and two must not continue."""
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a network file system may be unreachable for a while
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
    """An id of this kernel and process name space, from its boot; None on other systems."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_SELF / 'ns/pid').readlink()}"
    except OSError:
        return None


def start_time(pid: int) -> int | None:
    """When a process on this machine started, in the kernel's ticks; with the process's number this is unique.

    Returns:
        None if there is no such process, or only a zombie.
    """
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[_START_TIME])


def file_system(folder: Path) -> str | None:
    """The kind of file system of a folder, such as ``ext4`` or ``nfs4``; None if unknown."""
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
