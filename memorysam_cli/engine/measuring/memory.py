"""How much memory work takes, and how much there is: CUDA's allocator on a GPU, the process elsewhere."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from memorysam_cli.storage import children, machine
from memorysam_cli.storage.machine import Capacity as Capacity
from memorysam_cli.text import size

_STATUS = Path("/proc/self/status")


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
    return machine.memory()


def _kilobytes(table: Path, name: str) -> int:
    """A number of one of Linux's ``name: number kB`` tables."""
    line = next(line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
