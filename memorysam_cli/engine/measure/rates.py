"""Speed: clocks, the machine's own rate, the FLOP of a network, and the estimated time of a recipe.

FLOP are those of matrix products and convolutions; a multiplication and an addition are one each.
``torch.utils.flop_counter`` counts them on the plain network on the ``meta`` device: nothing is computed, and the count
depends neither on the device nor on the implementation. Training includes what its backward pass needs: gradients of
activations from the first adapted block on, and of trained weights. It includes nothing that is recomputed, and neither
losses nor optimizer, which have no matrix products.
"""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from memorysam_cli.engine import runtime, surroundings
from memorysam_cli.engine.measure.plain import Plain
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.recipe import Recipe
from memorysam_cli.registry import ENCODERS

_CPUINFO = Path("/proc/cpuinfo")

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Card:
    """A GPU's memory in GB and its dense peak rates in TFLOP/s; 0 if it does not support the precision.

    ``half`` is bfloat16 and float16 with float32 sums.
    """

    memory: int
    fp32: float
    tf32: float
    half: float
    has_bf16: bool = True

    def peak(self, precision: str) -> float:
        """The rate in a precision, in FLOP/s; 0 if the GPU does not support it."""
        if precision == "bf16" and not self.has_bf16:
            return 0.0
        return 1e12 * (self.half if precision in {"bf16", "fp16"} else getattr(self, precision))


CARDS = {
    "T4": Card(16, 8.1, 0, 65, has_bf16=False),
    "V100": Card(16, 15.7, 0, 125, has_bf16=False),
    "RTX 3090": Card(24, 35.6, 35.6, 71),
    "RTX 4090": Card(24, 82.6, 82.6, 165),
    "A10": Card(24, 31.2, 62.5, 125),
    "L4": Card(24, 30.3, 60, 121),
    "RTX A6000": Card(48, 38.7, 77.4, 155),
    "L40S": Card(48, 91.6, 183, 362),
    "A100": Card(80, 19.5, 156, 312),
    "H100": Card(80, 67, 495, 989),
    "H200": Card(141, 67, 495, 989),
}
"""Peak rates, without sparsity, from memory of NVIDIA's data sheets; only some were looked up again. Tensor cores of
GeForce cards sum float32 at half the rate of their professional sisters (GA102: RTX 3090 and RTX A6000), which makes
their TF32 no faster than float32."""

EFFICIENCY = {"fp32": 0.60, "tf32": 0.32, "bf16": 0.32, "fp16": 0.32}
"""The share of a GPU's peak that training is assumed to reach. Large products reach about 0.8 of a tensor core's peak,
and training 0.4 of that."""
MEASURED_EFFICIENCY = {"fp32": 0.60, "tf32": 0.40, "bf16": 0.40, "fp16": 0.40}
"""The same, as a share of the rate of large products measured on the device itself."""


@dataclass(frozen=True)
class Estimate:
    """The estimated time of a recipe on a device in a precision; computed, not measured.

    Attributes:
        device: a GPU, or this machine's device.
        precision: of the computation.
        flops_per_second: the assumed rate.
        seconds: of one update.
        hours: of all updates; None if their number is unknown.
        source: of the rate.
    """

    device: str
    precision: str
    flops_per_second: float
    seconds: float
    hours: float | None
    source: str

    @staticmethod
    def of(device: str, precision: str, *, flops: int, rate: float, updates: int | None, source: str) -> Estimate:
        """The estimate for updates with this number of FLOP at a rate."""
        seconds = flops / rate
        return Estimate(device, precision, rate, seconds, None if updates is None else updates * seconds / 3600, source)


def card_of(name: str) -> str | None:
    """The entry of :data:`CARDS` for a device's name, such as ``NVIDIA A100-SXM4-80GB``."""
    words = name.replace("-", " ").split()
    found = [card for card in CARDS if all(part in words for part in card.split())]
    return max(found, key=len, default=None)


def estimate_on_card(card: str, *, flops: int, updates: int | None) -> list[Estimate]:
    """The estimated time of updates on a GPU, in each precision that it supports.

    Args:
        card: one of :data:`CARDS`.
        flops: of one update, as :func:`count_flops` counts.
        updates: their number, if known.
    """
    reached = {}
    for precision in PRECISIONS:
        peak, share = CARDS[card].peak(precision), EFFICIENCY[precision]
        if peak:
            reached[precision] = (peak * share, f"{100 * share:.0f} % of the data sheet's {peak / 1e12:g} TFLOP/s")
    return _estimates(card, reached, flops=flops, updates=updates)


def estimate_here(device: torch.device, *, flops: int, updates: int | None) -> list[Estimate]:
    """The estimated time of updates on this machine's device, from its measured rate of products; takes seconds."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    reached = {}
    is_gpu = device.type == "cuda"
    for precision in PRECISIONS if is_gpu else ("fp32",):
        rate = matmul_rate(device, precision, sides=None if is_gpu else SIDES["cpu"][:1])
        share = MEASURED_EFFICIENCY[precision]
        source = f"{100 * share:.0f} % of {rate.flops_per_second / 1e12:.3g} TFLOP/s, {rate.how}, measured"
        reached[precision] = (rate.flops_per_second * share, source)
    return _estimates(name, reached, flops=flops, updates=updates)


def _estimates(
    device: str, reached: Mapping[str, tuple[float, str]], *, flops: int, updates: int | None
) -> list[Estimate]:
    """Estimates from the rate of each precision and its source.

    A coarser precision is never slower than a finer one: it only allows the libraries to use faster products.
    """
    found, best = [], (0.0, "")
    for precision, each in reached.items():
        best = max(best, each, key=lambda rate_and_source: rate_and_source[0])
        found.append(Estimate.of(device, precision, flops=flops, rate=best[0], updates=updates, source=best[1]))
    return found


def advice(device: torch.device, recipe: Recipe) -> str | None:
    """What to change about a slow training: one of a published backbone on a CPU, or in fp32 on a GPU that has bf16;
    None if there is nothing to report.

    Args:
        device: of the training.
        recipe: of the training.
    """
    backbone = recipe.model.backbone
    if device.type == "cpu" and ENCODERS.get(backbone).published is not None:
        return (
            f"on a CPU, {backbone} at {recipe.data.image_size} px can take days; for a trial: "
            "--set model.backbone=nano --size 128 --epochs 5; hours: memorysam plan"
        )
    if device.type != "cuda" or recipe.train.precision != "fp32" or not torch.cuda.is_bf16_supported():
        return None
    name = torch.cuda.get_device_name(device)
    card = card_of(name)
    one = 10**12  # any amount of work, because only rates are compared
    estimates = estimate_here(device, flops=one, updates=None) if card is None else estimate_on_card(
        card, flops=one, updates=None
    )  # fmt: skip
    seconds = {estimate.precision: estimate.seconds for estimate in estimates}
    if "bf16" not in seconds:
        return None
    times = seconds["fp32"] / seconds["bf16"]
    return (
        f"train.precision is fp32; bf16 should be about {times:.1f} times as fast on {name} (an estimate; its results "
        "are equal within its rounding): --precision bf16 in a new run; hours: memorysam plan"
    )


Name = TypeVar("Name", bound=str)
Work = Callable[[], object]


def interleaved(works: Mapping[Name, Work], *, repeats: int, device: torch.device) -> dict[Name, tuple[float, ...]]:
    """The seconds of each of ``repeats`` runs of each kind of work, after a warm-up.

    The kinds take turns in both orders (A B, B A, …), so that none always follows the same one.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in works}
    for turn in range(repeats):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(works[name], device))
    return {name: tuple(found) for name, found in seconds.items()}


def timed(work: Work, device: torch.device) -> float:
    """The seconds of some work, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # not the current device, which may be another one
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()


SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Side of the square matrices; smaller ones do not use the whole device."""
REPEATS = 7
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Rate:
    """FLOP per second, and the product and size with which they were reached."""

    flops_per_second: float
    how: str


def matmul_rate(device: torch.device, precision: str, *, sides: tuple[int, ...] | None = None) -> Rate:
    """The fastest of some square products of random numbers in a precision: the median of its runs.

    Args:
        device: the device.
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
        sides: sides of the matrices; None: large enough for such a device.
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
    """Ways to multiply two matrices. A CPU has two libraries for it, and either may be the faster."""
    random = torch.Generator().manual_seed(side)
    left, right = (torch.randn(side, side, generator=random).to(device, dtype) for _ in range(2))
    yield "matmul", lambda: left @ right
    if device.type == "cpu":
        image = left.view(1, side, 1, side).permute(0, 3, 1, 2)  # channels last: (1, C, L, 1)
        kernel = right[:, :, None, None]
        yield "1×1 convolution", lambda: F.conv2d(image, kernel)


@dataclass(frozen=True)
class Flops:
    """FLOP of one batch: of a prediction, and of a training step (its forward pass included)."""

    prediction: int
    training: int


def count_flops(network: MemorySAM, *, backbone: str, modalities: int, batch: int, size: int) -> Flops:
    """Count one batch of a network.

    Args:
        network: ready for training; LoRA is counted as it is, merged or separate.
        backbone: its backbone.
        modalities: M.
        batch: B.
        size: side of the images in pixels.
    """
    return count_call_flops(
        Plain(network, backbone=backbone), [torch.empty(batch, 3, size, size, device="meta")] * modalities
    )


def count_call_flops(module: nn.Module, *inputs: Any) -> Flops:
    """Count one call of any module, and a backward pass from its outputs to all trained parameters in it.

    Args:
        module: returns a tensor or a tuple of tensors.
        inputs: tensors and lists of tensors, whose values do not matter.
    """
    empty = [[_shape_of(each) for each in given] if isinstance(given, list) else _shape_of(given) for given in inputs]
    twin = on_meta(module)
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        output = twin(*empty)
        prediction = counter.get_total_flops()
        ends = [end for end in (output if isinstance(output, tuple) else (output,)) if end.requires_grad]
        if ends:
            torch.stack([end.sum() for end in ends]).sum().backward()  # type: ignore[no-untyped-call]
    return Flops(prediction, counter.get_total_flops())


def on_meta(module: nn.Module) -> Any:
    """A copy of a module whose tensors have shapes and no values."""
    tensors = [*module.parameters(), *module.buffers()]
    known: dict[int, Any] = {id(tensor): _shape_of(tensor) for tensor in tensors}
    return copy.deepcopy(module, known)


def _shape_of(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty


def describe_machine(device: torch.device, *, precision: str) -> dict[str, Any]:
    """The keys ``device``, ``precision``, ``versions``, and those of the processor."""
    return {
        **runtime.describe(device, precision),
        "processor": processor(),
        "cores": surroundings.cores(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
    }


def processor() -> str:
    """The processor's name, as far as the system knows it."""
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
