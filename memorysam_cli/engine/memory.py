"""Memory: how much there is, how much work takes, and running out of it in words.

CUDA's allocator answers on a GPU; the process, the machine and its control groups elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from memorysam_cli.errors import EnvironmentFault, MemorySamError, UsageError, is_out_of_memory, shortage
from memorysam_cli.storage import proc

LOOKING = "use a smaller --batch (1 is the least), fewer --modalities, no --tta, or a device with more memory"
"""What helps ``predict`` and ``evaluate``."""

_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_FILES = {
    2: ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}
"""By the version of control groups: limit, use, and what of the use are files that were read; the kernel gives those up
for whoever needs the memory."""

_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


@dataclass(frozen=True)
class Capacity:
    """The memory of a device, in bytes; 0 where the machine does not say."""

    total: int
    free: int


def capacity(device: torch.device) -> Capacity:
    """All and free memory of a device; on a CPU those of :func:`machine`."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Capacity(total, free)
    return machine()


def machine() -> Capacity:
    """All and free memory of this machine, at most what its control groups (v1 or v2) leave to this process.

    The one place that reads either: a container is told its own size, not its host's.
    """
    if not _MEMINFO.exists():
        return Capacity(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), 0)
    total, free = (_kilobytes(_MEMINFO, name) * 1024 for name in ("MemTotal", "MemAvailable"))
    for group, version in _groups():
        limit, used, cached = _FILES[version]
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            most = int((group / limit).read_text())
            taken = int((group / used).read_text()) - _sum_of(group / "memory.stat", cached)
            total, free = min(total, most), min(free, most - taken)
    return Capacity(total, max(free, 0))


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


def resident_bytes() -> int:
    """What this process has resident now: programs and data; its peak where the system does not say."""
    return _kilobytes(_STATUS, "VmRSS") * 1024 if _STATUS.exists() else peak_bytes(torch.device("cpu"))


def resident_peak(process: int) -> int:
    """The most memory that another process has had resident, in bytes; 0 where nobody says, or it ended."""
    try:
        return _kilobytes(Path(f"/proc/{process}/status"), "VmHWM") * 1024
    except (OSError, StopIteration):  # gone, or a zombie: those have no memory
        return 0


def gigabytes(count: int) -> str:
    """Bytes for people: ``24.0 GB``; small numbers as ``96 MB``."""
    return f"{count / 1e9:.1f} GB" if count >= 0.95e9 else f"{count / 1e6:.0f} MB"


def read_bytes(text: str, *, option: str) -> int:
    """The bytes of an amount such as ``24GB``, ``24 GiB`` or ``24000MB``.

    Args:
        text: a number and its unit; GB is 10⁹ bytes, GiB 2³⁰.
        option: whose value it is, for the message.

    Raises:
        UsageError: anything else, or nothing at all.
    """
    found = _AMOUNT.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or not float(found[1]):
        raise UsageError(f"{option} '{text}': must be an amount of memory above 0 with its unit, such as 24GB or 24GiB")
    return round(float(found[1]) * unit)


@contextlib.contextmanager
def explained(device: torch.device, *, levers: str | Callable[[], str]) -> Iterator[None]:
    """Make one line with the numbers and the levers of an exception for want of memory.

    Args:
        device: where the work is done.
        levers: what the user can do; a function is asked when it has happened.

    Raises:
        EnvironmentFault: in the place of such an exception.
    """
    try:
        yield
    except Exception as fault:
        if isinstance(fault, MemorySamError) or not is_out_of_memory(fault):
            raise
        advice = levers if isinstance(levers, str) else levers()
        raise EnvironmentFault(
            f"out of memory on {device} ({shortage(fault)}; {_numbers(device)}); {advice}"
        ) from fault


def _numbers(device: torch.device) -> str:
    """What was taken, what is left, what there is."""
    try:
        have, peak = capacity(device), peak_bytes(device)
    except RuntimeError:  # a CUDA context may be beyond asking
        return "the device says no more"
    return f"peak {gigabytes(peak)}, {gigabytes(have.free)} free of {gigabytes(have.total)}"


def _groups() -> Iterator[tuple[Path, int]]:
    """This process's control groups for memory with those above them, and their version: each may have a limit."""
    lines = _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.exists() else []
    own = {2: "/", 1: "/"}
    for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not kinds or "memory" in kinds.split(","):
            own[1 if kinds else 2] = path
    for version, root in ((2, _CGROUP), (1, _CGROUP / "memory")):
        # In a container the path may be the host's, of which nothing is seen here: the root is then its own group.
        place = root / own[version].lstrip("/")
        for group in (place, *place.parents):
            if group.is_relative_to(root):
                yield group, version


def _kilobytes(table: Path, name: str) -> int:
    """A number of one of Linux's ``name: number kB`` tables."""
    line = next(line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def _sum_of(table: Path, names: tuple[str, ...]) -> int:
    """The sum of some rows of a control group's ``memory.stat``; 0 where there is none."""
    if not table.exists():
        return 0
    rows = dict(line.split() for line in table.read_text().splitlines())
    return sum(int(rows.get(name, 0)) for name in names)
