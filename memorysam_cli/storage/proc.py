"""Words to and from the kernel: files below ``/proc`` and ``/sys`` that store nothing, so that nothing can be lost."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path("/proc")
_SELF = _PROC / "self"
_CGROUP = Path("/sys/fs/cgroup")
_OF_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))
_OF_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
"""A control group's limit, its use, and what of the use are files that were read (in ``memory.stat``): the kernel gives
those up for whoever needs the memory."""
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


@dataclass(frozen=True)
class Capacity:
    """The memory of a device or of a machine, in bytes."""

    total: int
    free: int


def memory() -> Capacity:
    """The machine's memory, at most what the control groups of this process (a container, a batch job) may use."""
    import psutil

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group, (limit, use, reclaimable) in _memory_groups():
        try:
            most = int((group / limit).read_text())
            used = int((group / use).read_text()) - _sum(group / "memory.stat", reclaimable)
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
        total, free = min(total, most), min(free, most - used)
    return Capacity(total, max(free, 0))


def _memory_groups() -> Iterator[tuple[Path, tuple[str, str, tuple[str, ...]]]]:
    """The folders of all control groups that limit this process's memory, from its own to the outermost."""
    inside = {"": PurePosixPath("/"), "memory": PurePosixPath("/")}  # by controllers: "" is version 2
    with contextlib.suppress(OSError):
        for line in (_SELF / "cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            inside |= {name: PurePosixPath(own) for name in controllers.split(",") if name in inside}
    for name, top, files in (("", _CGROUP, _OF_V2), ("memory", _CGROUP / "memory", _OF_V1)):
        # In a container the path is often the host's, and only the top is there.
        for path in (inside[name], *inside[name].parents):
            yield top / path.relative_to("/"), files


def _sum(table: Path, names: tuple[str, ...]) -> int:
    """The sum of some rows of a kernel's ``name number`` table; 0 where there is no table."""
    try:
        rows = dict(line.split() for line in table.read_text().splitlines())
    except OSError:
        return 0
    return sum(int(rows.get(name, 0)) for name in names)
