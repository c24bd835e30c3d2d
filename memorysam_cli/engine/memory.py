"""Memory: how much there is, how much work takes, and running out of it in words.

CUDA's allocator answers on a GPU; the process, the machine and its control groups elsewhere.
"""

from __future__ import annotations

import contextlib
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from memorysam_cli.errors import EnvironmentFault, MemorySamError, UsageError, is_out_of_memory, shortage
from memorysam_cli.storage import children, machine
from memorysam_cli.storage.machine import Capacity
from memorysam_cli.text import size

LOOKING = "use a smaller --batch (1 is the least), fewer --modalities, no --tta, or a device with more memory"
"""What helps ``predict`` and ``evaluate``."""

_STATUS = Path("/proc/self/status")
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


def capacity(device: torch.device) -> Capacity:
    """All and free memory of a device; on a CPU those of :func:`memorysam_cli.storage.machine.memory`."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Capacity(total, free)
    return machine.memory()


def start_peak(device: torch.device) -> None:
    """Forget earlier peaks, where the machine can (CUDA, and Linux for the process)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        children.tell_kernel("clear_refs", "5")  # the kernel's word for: peak resident size back to the present one


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
    return f"peak {size(peak)}, {size(have.free)} free of {size(have.total)}"


def _kilobytes(table: Path, name: str) -> int:
    """A number of one of Linux's ``name: number kB`` tables."""
    line = next(line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
