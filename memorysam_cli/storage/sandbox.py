"""What a process gives up before it opens a file that may be hostile: network, memory, time, files, other programs.

The kernel holds it to all of this on Linux. On macOS there are no bounds on memory and no network namespace: there,
and where the kernel refuses the namespace, Python's audit events stand in, which see Python's own calls only.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from memorysam_cli.storage import children

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

NAMESPACE, AUDIT = "a network namespace without network", "Python's audit events alone"
_NEWUSER, _NEWNET = 0x1000_0000, 0x4000_0000
_LAST_SECONDS = 2
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile",
    "os.kill", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.ch",
    "os.utime", "os.putenv", "os.unsetenv", "shutil.", "ctypes.", "pty.", "signal.pthread_kill", "webbrowser.",
    "ftplib.", "smtplib.", "urllib.", "http.", "sqlite3.", "pickle.find_class", "cpython.run",
)  # fmt: skip
"""Audit events that reading tensors never raises; ``pickle.find_class`` is that of the unpickler that obeys."""


class Attempt(Exception):
    """The file made Python try something that reading tensors never needs."""


def leave_network() -> str:
    """Leave the network, where the kernel lets us; to be called while the process has one thread.

    Returns:
        :data:`NAMESPACE` or :data:`AUDIT`: what keeps the process off the network once :func:`watch` is called too.
    """
    if not sys.platform.startswith("linux"):
        return AUDIT
    user, group = os.getuid(), os.getgid()
    with suppress(OSError, AttributeError):
        unshare = ctypes.CDLL(None, use_errno=True).unshare
        if unshare(_NEWNET) == 0:
            return NAMESPACE
        # Allowed to anybody, unless the kernel is told otherwise; root would lose its right to others' files by it.
        if user != 0 and unshare(_NEWUSER | _NEWNET) == 0:
            children.tell_kernel("uid_map", f"{user} {user} 1")
            children.tell_kernel("setgroups", "deny")
            children.tell_kernel("gid_map", f"{group} {group} 1")
            return NAMESPACE
    return AUDIT


@contextmanager
def bounded(*, memory: int, seconds: float) -> Iterator[None]:
    """Bound the memory and processor time that a block may take beyond what is taken already, where that can be."""
    if resource is None:
        yield
        return
    before = [(kind, resource.getrlimit(kind)) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]
    _bound(memory=memory, seconds=seconds, for_good=False)
    try:
        yield
    finally:
        for kind, limits in before:
            resource.setrlimit(kind, limits)


def close(*, memory: int, seconds: float) -> None:
    """Bound memory and time for good, and write no byte to any file and start no program, where the kernel obeys."""
    if resource is None:
        return
    _bound(memory=memory, seconds=seconds, for_good=True)
    for kind in ("RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NPROC"):  # the last binds all users but root
        with suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, kind), (0, 0))


def _bound(*, memory: int, seconds: float, for_good: bool) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = [(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))]
    if (taken := _address_space()) is not None:
        wanted.append((resource.RLIMIT_AS, taken + memory))
    for kind, value in wanted:
        soft, hard = resource.getrlimit(kind)
        least = min([value, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)])
        with suppress(OSError, ValueError):
            # The kernel tells of too much time at the first bound, and kills at the second.
            last = least + _LAST_SECONDS if kind == resource.RLIMIT_CPU else least
            resource.setrlimit(kind, (least, last if for_good and (last < hard or hard < 0) else hard))


def _address_space() -> int | None:
    """Bytes of this process's address space, where Linux tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def watch() -> list[str]:
    """Refuse, from now on and for good, every Python call that reading tensors never needs.

    Returns:
        A list that names what was tried, in case somebody swallows the exception.
    """
    tried: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_writing = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
        if is_writing or event.startswith(_REFUSED):
            tried.append("writing a file" if is_writing else event)
            raise Attempt(tried[-1])

    sys.addaudithook(hook)
    return tried
