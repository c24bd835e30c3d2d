"""The machine that a result was measured on, in words that another person can compare."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from memorysam_cli.engine import runtime

_CPUINFO = Path("/proc/cpuinfo")


def describe(device: torch.device, *, precision: str) -> dict[str, Any]:
    """The keys ``device``, ``precision``, ``versions``, and those of the processor."""
    return {
        **runtime.describe(device, precision),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
    }


def processor() -> str:
    """The processor's name, as well as the system knows it."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
