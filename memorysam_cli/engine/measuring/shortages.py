"""Running out of memory, said so that a person can do something about it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from memorysam_cli.engine.measuring import memory
from memorysam_cli.errors import EnvironmentFault, MemorySamError, is_out_of_memory, shortage

LOOKING = "use a smaller --batch (1 is the least), fewer --modalities, no --tta, or a device with more memory"
"""What helps ``predict`` and ``evaluate``."""


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
        have, peak = memory.capacity(device), memory.peak_bytes(device)
    except RuntimeError:  # a CUDA context may be beyond asking
        return "the device says no more"
    return f"peak {memory.gigabytes(peak)}, {memory.gigabytes(have.free)} free of {memory.gigabytes(have.total)}"
