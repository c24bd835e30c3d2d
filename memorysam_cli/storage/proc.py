"""Words to and from the Linux kernel: files below ``/proc`` that store nothing, so that nothing can be lost."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

_PROC = Path("/proc")
_SELF = _PROC / "self"
_START_TIME = 19
"""Its place in ``/proc/PID/stat``, counted from behind the program's name, which may hold anything."""


def tell(name: str, word: str) -> bool:
    """Write a word to ``/proc/self/<name>``.

    Returns:
        Whether the kernel took it; other systems have no such file.
    """
    try:
        (_SELF / name).write_text(word)
    except OSError:
        return False
    return True


def here() -> str | None:
    """What tells this kernel's processes from all others: its boot, and the processes' name space; None elsewhere."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_SELF / 'ns/pid').readlink()}"
    except OSError:
        return None


def started(pid: int) -> int | None:
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
