"""What the device can do at best: the rate of a large matrix product, measured in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from memorysam_cli.engine import runtime
from memorysam_cli.engine.benchmark.timing import Work, interleaved

SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Of the square matrices; what is smaller does not fill the device."""
REPEATS = 7
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Rate:
    """Floating point operations per second, and with which product of which size they were reached."""

    flops_per_second: float
    how: str


def matmul_rate(device: torch.device, precision: str, *, sides: tuple[int, ...] | None = None) -> Rate:
    """The fastest of some square products of random numbers in a precision: the median of its runs.

    Args:
        device: where.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        sides: of the matrices; none: what fills such a device.
    """
    rates = []
    with torch.inference_mode(), runtime.computing(precision, device), torch.autocast(device.type, enabled=False):
        for side in sides or SIDES.get(device.type, SIDES["cpu"]):
            for how, product in _products(side, DTYPES[precision], device):
                product(), product()
                seconds = interleaved({how: product}, repeats=REPEATS, device=device)[how]
                rates.append(Rate(2 * side**3 / statistics.median(seconds), f"{how} of {side}×{side}"))
    return max(rates, key=lambda rate: rate.flops_per_second)


def _products(side: int, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Work]]:
    """Ways to multiply two matrices; a CPU has two libraries for it, and either may be the faster."""
    random = torch.Generator().manual_seed(side)
    left, right = (torch.randn(side, side, generator=random).to(device, dtype) for _ in range(2))
    yield "matmul", lambda: left @ right
    if device.type == "cpu":
        image = left.view(1, side, 1, side).permute(0, 3, 1, 2)  # channels last: (1, C, L, 1)
        kernel = right[:, :, None, None]
        yield "1×1 convolution", lambda: F.conv2d(image, kernel)
