"""Files and folders that appear completely or not at all.

Everything is written beside its target as ``.<name>.tmp-<host>-<pid>-<random>``, synced, and renamed. After a kill at
any moment there is the old content or the new one; at worst a temporary file remains.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.text import megabytes, shown

_NAME_BYTES = 255
_TEMPORARY = re.compile(r"\.(?P<name>.*)\.tmp-.+-\d+-[0-9a-f]{8}", re.DOTALL)
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_REMEDIES = {
    errno.EACCES: "allow writing there or choose another folder",
    errno.EPERM: "allow writing there or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOENT: "it was removed or renamed; run the same command again",
    errno.ENOTDIR: "a part of the path is not a folder; choose another path",
    errno.EEXIST: "it exists already; choose another name",
    errno.ENOTEMPTY: "it exists already; choose another name",
    errno.EISDIR: "it is a folder; choose another name",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENXIO: "choose the path of a file",
    errno.ELOOP: "the link leads to itself; choose another path",
}


held: set[Path] = set()
"""Absolute folders that a run owns (:mod:`~memorysam_cli.storage.lock`). If one of them is missing, it was removed with
all its files, and must not be created again, because the new one would look complete."""


@contextlib.contextmanager
def faults(path: Path, *, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn every ``OSError`` while writing to ``path`` into one line for the user.

    Args:
        path: the requested file or folder (not the temporary one).
        needed_bytes: size of the data, for the message of a full disk.

    Raises:
        EnvironmentFault: path, reason, remedy; needed and free space if the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(_explain(error, path, needed_bytes=needed_bytes)) from error


def _explain(error: OSError, path: Path, *, needed_bytes: int | None) -> str:
    """The message for ``error``."""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        needed = "" if needed_bytes is None else f"needs {megabytes(needed_bytes)}, "
        return (
            f"{shown(path)}: cannot write: {reason} ({needed}free {megabytes(_free_bytes(path))}); "
            "free some space or choose another folder, then run the same command again"
        )
    remedy = _REMEDIES.get(error.errno or 0, "check the folder and run the same command again")
    return f"{shown(path)}: cannot write: {reason}; {remedy}"


def _free_bytes(path: Path) -> int:
    """Free space on the disk of ``path``; 0 if unknown."""
    for folder in path.absolute().parents:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0


def _temporary(path: Path) -> Path:
    """A free name beside the target, shortened to at most 255 bytes."""
    host = socket.gethostname().replace("/", "_")[:32]
    tail = f".tmp-{host}-{os.getpid()}-{secrets.token_hex(4)}"
    name = os.fsencode(path.name)[: _NAME_BYTES - len(os.fsencode(tail)) - 1].decode("utf-8", "ignore")
    return path.with_name(f".{name}{tail}")


def is_temporary(name: str, *, of: str | None = None) -> bool:
    """Whether this is the name of a temporary file or folder of this module.

    Args:
        name: without its folder.
        of: the name of the target; None: any.
    """
    found = _TEMPORARY.fullmatch(name)
    return found is not None and of in {None, found["name"]}


def sweep(path: Path) -> None:
    """Remove temporary files of ``path`` whose writers, on this machine, were killed."""
    if os.name == "nt":  # there, checking whether a process exists would end it
        return
    stub = f".{path.name}.tmp-{socket.gethostname().replace('/', '_')[:32]}-"
    with contextlib.suppress(OSError):
        left = [entry for entry in path.absolute().parent.iterdir() if entry.name.startswith(stub)]
        for entry in left:
            pid = entry.name.removeprefix(stub).partition("-")[0]
            if pid.isdecimal() and not _lives(int(pid)):
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def make_folder(path: Path) -> None:
    """Create ``path`` and its parents, durably; an existing folder is fine.

    Raises:
        EnvironmentFault: it cannot be created.
    """
    with faults(path):
        _make_folder(path)


def refuse_unwritable(folder: Path, *, needed_bytes: int = 1) -> None:
    """Check, before long work begins, that files can be written to a folder that may not exist yet; writes nothing.

    Args:
        folder: the output folder.
        needed_bytes: space that must be free.

    Raises:
        EnvironmentFault: it, or its nearest existing parent, is not a folder, is not writable, or has too little space
            on its disk.
    """
    with faults(folder, needed_bytes=needed_bytes):
        nearest = folder.absolute()
        while not nearest.exists():
            nearest = nearest.parent
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{shown(nearest)} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            is_read_only = bool(os.statvfs(nearest).f_flag & os.ST_RDONLY) if hasattr(os, "statvfs") else False
            raise (
                OSError(errno.EROFS, "read-only file system")
                if is_read_only
                else PermissionError(errno.EACCES, "permission denied")
            )
        if shutil.disk_usage(nearest).free < needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse_special(path: Path) -> None:
    """Never replace a device, FIFO or socket: a rename by root would remove ``/dev/null`` for everybody.

    Raises:
        OSError: the target is one, or a link to one; or it is in the folder of devices.
    """
    with contextlib.suppress(FileNotFoundError):  # a link to nothing may be replaced
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.ENXIO, "it is a device, FIFO or socket")
    if path.absolute().parent == Path(os.devnull).parent:
        raise OSError(errno.ENXIO, "it is in the folder of the devices")


def _make_folder(path: Path) -> None:
    if path.is_dir():
        return
    if path.absolute() in held:
        raise FileNotFoundError(errno.ENOENT, "the folder is gone, with what was written there")
    _make_folder(path.parent)
    try:
        path.mkdir(exist_ok=True)  # another thread may have made it by now
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, f"{shown(path)} is a file") from None
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Make changes of names in ``path`` survive a power loss."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not support it
            raise
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Make data appended to a file survive a power loss.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    with faults(path):
        _sync_file(path)


@contextlib.contextmanager
def new_file(path: Path, *, fsync: bool = True, needed_bytes: int | None = None) -> Iterator[Path]:
    """Write a file that replaces ``path`` only if the block succeeds.

    Args:
        path: the target; an existing file is replaced, parents are created.
        fsync: False for very many small outputs: they survive a kill completely, but not a power loss.
        needed_bytes: expected size, for the message of a full disk.

    Yields:
        An empty file beside ``path``, to be written or replaced; it gets mode ``0o666 & ~umask``.

    Raises:
        EnvironmentFault: writing failed, or ``path`` cannot be a file; it does not change, and the temporary file is
            removed.
    """
    with faults(path, needed_bytes=needed_bytes):
        _make_folder(path.parent)
        refuse_special(path)
        if fsync:  # not for very many small outputs, whose owner removes leftovers
            sweep(path)
        temporary = _temporary(path)
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        # The kernel applied the umask; reading it would change it for other threads.
        mode = os.fstat(descriptor).st_mode & 0o777
        os.close(descriptor)
        try:
            yield temporary
            temporary.chmod(mode)
            if fsync:
                _sync_file(temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temporary.unlink()
            raise
        if fsync:
            _sync_folder(path.parent)


def write_bytes(path: Path, data: bytes, *, fsync: bool = True) -> None:
    """Write ``data`` to ``path``, all or nothing.

    Args:
        path: the target; an existing file is replaced, parents are created.
        data: the whole content.
        fsync: as in :func:`new_file`.

    Raises:
        EnvironmentFault: it cannot be written; ``path`` does not change.
    """
    with new_file(path, fsync=fsync, needed_bytes=len(data)) as temporary:
        temporary.write_bytes(data)
        if temporary.stat().st_size != len(data):
            raise OSError(errno.EIO, f"only {temporary.stat().st_size} of {len(data)} bytes arrived")


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """As :func:`write_bytes`, for content that is produced piece by piece and may be larger than the memory.

    Raises:
        EnvironmentFault: it cannot be written; ``path`` does not change, even if producing a piece raises.
    """
    with new_file(path) as temporary, temporary.open("wb") as stream:
        expected = 0
        for piece in pieces:
            expected += stream.write(piece)
        stream.flush()
        if temporary.stat().st_size != expected:
            raise OSError(errno.EIO, f"only {temporary.stat().st_size} of {expected} bytes arrived")


def write_text(path: Path, text: str, *, fsync: bool = True) -> None:
    """Write ``text`` as UTF-8 without changing its newlines; otherwise as :func:`write_bytes`.

    Characters that UTF-8 cannot represent, such as invalid bytes of a path, are escaped: ``\\udcff``.
    """
    write_bytes(path, text.encode(errors="backslashreplace"), fsync=fsync)


def open_log(path: Path) -> TextIO:
    """Open a text log to append whole lines; parents are created, characters that UTF-8 cannot represent are escaped.

    This is the only kind of file that grows in place: a kill loses at most its last line.

    Raises:
        EnvironmentFault: it cannot be opened.
    """
    with faults(path):
        _make_folder(path.parent)
        return path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)


def open_nowhere(number: int) -> TextIO:
    """A stream that discards everything, to replace a closed stdout (1) or stderr (2).

    It uses the same descriptor number, because a process may have no free one left.
    """
    lead_nowhere(number)
    return open(number, "w", encoding="utf-8", closefd=False)


def lead_nowhere(number: int) -> None:
    """Let a descriptor discard everything; it is closed first, because the table of descriptors may be full."""
    with contextlib.suppress(OSError):  # it is closed already
        os.close(number)
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nowhere, number)
        os.close(nowhere)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name only if the block succeeds.

    Args:
        path: the target; must not exist (an empty folder may). Parents are created.

    Yields:
        An empty folder beside ``path``. At the end all its files and folders are synced, then it is renamed.

    Raises:
        EnvironmentFault: writing failed or ``path`` exists; nothing of the new folder remains.
    """
    with faults(path):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise FileExistsError(errno.EEXIST, "it already exists")
        _make_folder(path.parent)
        sweep(path)
        temporary = _temporary(path)
        temporary.mkdir()
        try:
            yield temporary
            for folder, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    _sync_file(Path(folder, name))
                _sync_folder(Path(folder))
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)
