"""Small and read-only disks for one process: its own mounts, which end with it, and nobody else sees.

To be called in a child of :mod:`tests.forks`. Root may mount in a mount namespace of its own; other users in a
user namespace as well, where the kernel lets them. Where neither is allowed, a limit on the size of files stands in
for a full disk (the kernel then says EFBIG instead of ENOSPC).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path

NEWNS, NEWUSER = 0x00020000, 0x10000000
REMOUNT, RDONLY, BIND, REC, PRIVATE = 32, 1, 4096, 16384, 1 << 18

SECUREBITS, NOROOT, NO_FIXUP, AMBIENT, AMBIENT_RAISE = 28, 0b11, 0b100, 47, 2
FILE_RIGHTS = 0b11111
"""To own, read, search, write and rename what belongs to others."""

SHARED = Path("/dev/shm")

_libc = ctypes.CDLL(None, use_errno=True)


def may_mount() -> bool:
    """Make this process see mounts of its own; False where the kernel does not let it."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(NEWNS) != 0:
        if _libc.unshare(NEWUSER | NEWNS) != 0:
            return False
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return _mount("none", "/", None, REC | PRIVATE) == 0


def make_small(folder: Path, size_bytes: int) -> None:
    """Put a disk of this size at an empty folder."""
    assert _mount("tmpfs", str(folder), "tmpfs", 0, f"size={size_bytes}") == 0, os.strerror(ctypes.get_errno())


def make_larger(folder: Path, size_bytes: int) -> None:
    """Give a small disk more room, as a user does who frees some."""
    assert _mount("tmpfs", str(folder), "tmpfs", REMOUNT, f"size={size_bytes}") == 0, os.strerror(ctypes.get_errno())


def make_read_only(folder: Path) -> None:
    """Let nothing be written below a folder any more, not even by root."""
    assert _mount(str(folder), str(folder), None, BIND) == 0, os.strerror(ctypes.get_errno())
    assert _mount(None, str(folder), None, BIND | REMOUNT | RDONLY) == 0, os.strerror(ctypes.get_errno())


def limit_files(size_bytes: int) -> None:
    """Let no file of this process grow beyond a size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def lift_limit() -> None:
    """Let files grow again."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def become_nobody() -> None:
    """Lose root's right to write everywhere, for good."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def fence(folder: Path) -> bool:
    """Let this process write below a folder and nowhere else, and see a /dev/shm of its own; False if it may not.

    What is tried as root must not be able to harm the machine.
    """
    if not may_mount() or _mount(str(folder), str(folder), None, BIND | REC) != 0:
        return False
    if _set_read_only("/", recursive=True) != 0:
        return False
    assert _set_read_only(str(folder), recursive=False, clear=True) == 0, os.strerror(ctypes.get_errno())
    return share_less(67108864, keep=folder)


def share_less(size_bytes: int, *, keep: Path) -> bool:
    """Put a /dev/shm of this size; a folder that lies in the machine's own stays where it is. False if it may not."""
    kept = os.open(keep, os.O_PATH) if keep.is_relative_to(SHARED) else None
    if _mount("tmpfs", str(SHARED), "tmpfs", 0, f"size={size_bytes}") != 0:
        return False
    if kept is None:
        return True
    keep.mkdir(parents=True)
    try:
        return _mount(f"/proc/self/fd/{kept}", str(keep), None, BIND) == 0
    finally:
        os.close(kept)


def _set_read_only(folder: str, *, recursive: bool, clear: bool = False) -> int:
    """``mount_setattr(2)``: for a mount, or for it and all below."""
    bits = (ctypes.c_uint64 * 4)(0 if clear else 1, 1 if clear else 0, 0, 0)
    flags = ctypes.c_uint(0x8000 if recursive else 0)
    result: int = _libc.syscall(
        ctypes.c_long(442), ctypes.c_int(-100), folder.encode(), flags, bits, ctypes.c_size_t(ctypes.sizeof(bits))
    )
    return result


def lose_rights() -> None:
    """Lose root's right to read and write everything, but not what belongs to root; also in programs started later."""
    if os.getuid() == 0:
        _libc.prctl(SECUREBITS, NOROOT, 0, 0, 0)
        _keep_rights(0)


def become(user: int) -> None:
    """Take a user's number, but keep the right to read and write everything."""
    if os.getuid() == 0:
        _libc.prctl(SECUREBITS, NOROOT | NO_FIXUP, 0, 0, 0)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        _keep_rights(FILE_RIGHTS)
        for number in range(FILE_RIGHTS.bit_length()):
            if FILE_RIGHTS >> number & 1:
                _libc.prctl(AMBIENT, AMBIENT_RAISE, number, 0, 0)


def _keep_rights(kept: int) -> None:
    """Of root's rights (``capabilities(7)``) keep these, given as bits."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    bits = (ctypes.c_uint32 * 6)(kept, kept, kept, 0, 0, 0)
    assert _libc.capset(header, bits) == 0, os.strerror(ctypes.get_errno())


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> int:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    result: int = _libc.mount(*words, ctypes.c_ulong(flags), None if options is None else options.encode())
    return result
