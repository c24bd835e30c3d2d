"""How much memory work takes, and how much there is: CUDA's allocator on a GPU, the process elsewhere."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from memorysam_cli.storage import proc
from memorysam_cli.text import size

_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_RECLAIMABLE = ("active_file", "inactive_file", "slab_reclaimable")
"""What a container's use has of files that were read: the kernel gives it up for whoever needs it."""


@dataclass(frozen=True)
class Capacity:
    """The memory of a device, in bytes; 0 where the machine does not say."""

    total: int
    free: int


def start_peak(device: torch.device) -> None:
    """Forget earlier peaks, where the machine can (CUDA, and Linux for the process)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        proc.tell("clear_refs", "5")  # the kernel's word for: peak resident size back to the present one


def peak_bytes(device: torch.device) -> int:
    """The most memory that was taken since :func:`start_peak`.

    Returns:
        Bytes: on CUDA what its caching allocator reserved; elsewhere the process's resident size, programs included.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    if _STATUS.exists():
        return _kilobytes(_STATUS, "VmHWM") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_peak(process: int) -> int:
    """The most memory that another process has had resident, in bytes; 0 where nobody says, or it ended."""
    try:
        return _kilobytes(Path(f"/proc/{process}/status"), "VmHWM") * 1024
    except (OSError, StopIteration):  # gone, or a zombie: those have no memory
        return 0


gigabytes = size


def capacity(device: torch.device) -> Capacity:
    """All and free memory; on a CPU at most what the container may use."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Capacity(total, free)
    if not _MEMINFO.exists():
        return Capacity(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0)
    total, free = (_kilobytes(_MEMINFO, name) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdecimal():
        taken = int(used.read_text()) - _reclaimable(_CGROUP / "memory.stat")
        total, free = min(total, int(most)), min(free, int(most) - taken)
    return Capacity(total, max(free, 0))


def _kilobytes(table: Path, name: str) -> int:
    """A number of one of Linux's ``name: number kB`` tables."""
    line = next(line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def _reclaimable(table: Path) -> int:
    """Bytes of a control group's ``memory.stat`` that are only cached; 0 where there is none."""
    if not table.exists():
        return 0
    rows = dict(line.split() for line in table.read_text().splitlines())
    return sum(int(rows.get(name, 0)) for name in _RECLAIMABLE)
