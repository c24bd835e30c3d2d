"""The cores and the memory of the machine, as far as this process may use them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_OWN_GROUPS = Path("/proc/self/cgroup")
_CGROUP = Path("/sys/fs/cgroup")
_OF_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))
_OF_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
"""A control group's limit, its use, and what of the use are files that were read (in ``memory.stat``): the kernel gives
those up for whoever needs the memory."""


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
        for line in _OWN_GROUPS.read_text().splitlines():
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
