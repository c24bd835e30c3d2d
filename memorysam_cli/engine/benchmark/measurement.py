"""One benchmark: time in this process, our manner and the plain one in turns; on a CPU, memory in processes apart."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from memorysam_cli.engine import runtime
from memorysam_cli.engine.benchmark import flops, machine
from memorysam_cli.engine.benchmark.asked import Asked
from memorysam_cli.engine.benchmark.rate import Rate, matmul_rate
from memorysam_cli.engine.benchmark.timing import interleaved, synchronize
from memorysam_cli.engine.benchmark.variants import Variants, make
from memorysam_cli.engine.measuring import memory, shortages, trials
from memorysam_cli.engine.measuring.trials import Trial
from memorysam_cli.errors import EnvironmentFault, is_out_of_memory, shortage
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.report import console
from memorysam_cli.report.live import duration

SCHEMA_VERSION = 1
WARM_UPS = 2
"""Runs before those that count: the first ones plan, allocate and compile."""
TRIED = 2
"""Runs in a process apart."""
LONG_S = 30.0
"""A benchmark that must take longer than this, even at the device's best rate, is announced."""

Manner = Literal["fast", "plain"]


@dataclass(frozen=True)
class Figures:
    """What one manner came to.

    Attributes:
        seconds: of each repeat.
        scenes: in a step.
        flops: that a step needs, by the plain network.
        rate: what the device does at best in this precision.
        peak: bytes.
    """

    seconds: tuple[float, ...]
    scenes: int
    flops: int
    rate: Rate
    peak: int

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """The keys ``seconds`` (the median), ``all_seconds``, and what follows from them."""
        rate = self.flops / self.median
        return {
            "fits": True,
            "seconds": self.median,
            "all_seconds": list(self.seconds),
            "scenes_per_second": self.scenes / self.median,
            "tflop": self.flops / 1e12,
            "tflop_per_second": rate / 1e12,
            "mfu_percent": 100 * rate / self.rate.flops_per_second,
            "matmul_tflop_per_second": self.rate.flops_per_second / 1e12,
            "matmul": self.rate.how,
            "peak_bytes": self.peak,
        }


def measure(asked: Asked, device: torch.device, *, against_plain: bool, repeats: int) -> dict[str, Any]:
    """Measure one task.

    Args:
        asked: the work.
        device: where.
        against_plain: measure the reference's manner too, in turns with ours.
        repeats: runs that count.

    Returns:
        The content of ``memorysam bench --json``: ``fast`` and ``plain`` (figures; ``plain`` is None where it was not
        asked for), ``ratio`` (``time``, ``peak``: ours / plain), ``difference``, the work and the machine.

    Raises:
        UsageError: an impossible backbone, size or precision.
        EnvironmentFault: our own manner runs out of memory.
    """
    asked.recipe()
    runtime.refuse_precision(asked.precision, device)
    manners: tuple[Manner, ...] = ("fast", "plain") if against_plain else ("fast",)
    work = _needed(asked)
    rates = {manner: matmul_rate(device, asked.precision if manner == "fast" else "fp32") for manner in manners}
    _announce(asked, work, rates["fast"], steps=len(manners) * (repeats + WARM_UPS + TRIED + 1))
    reports: dict[str, dict[str, Any]] = {}
    peaks: dict[Manner, int] = {}
    if device.type != "cuda":  # a process's peak cannot be told apart from what it did before
        peaks = {manner: peak for manner in manners if (peak := _peak_apart(asked, device, manner, reports))}
    with shortages.explained(device, levers=asked.levers):
        variants = make(asked, device)
        difference = _warm_up(variants, device, manners, peaks=peaks, reports=reports)
        seconds = interleaved(
            {manner: getattr(variants, manner) for manner in manners if manner in peaks}, repeats=repeats, device=device
        )
    for manner, found in seconds.items():
        reports[manner] = Figures(found, asked.batch, work, rates[manner], peaks[manner]).to_json()
    return {
        "schema_version": SCHEMA_VERSION,
        **vars(asked),
        "repeats": repeats,
        "fast": reports["fast"],
        "plain": reports.get("plain"),
        "ratio": _ratio(reports),
        "difference": difference,
        "machine": machine.describe(device, precision=asked.precision),
    }


def _announce(asked: Asked, work: int, rate: Rate, *, steps: int) -> None:
    """Warn of a long wait."""
    seconds = steps * work / rate.flops_per_second
    if seconds > LONG_S:
        console.note(
            f"{asked}: {work / 1e12:.2f} TFLOP a step, {rate.flops_per_second / 1e12:.2f} TFLOP/s at best: at least "
            f"{duration(seconds)} for all {steps} steps; for a quick look: --backbone nano --size 256"
        )


def _needed(asked: Asked) -> int:
    """FLOPs of a step; a prediction does not need LoRA apart from the weights."""
    network = asked.network(asked.recipe())
    if asked.task == "predict":
        merge_lora(network.sam.image_encoder.trunk)
        network.requires_grad_(False).eval()
    counted = flops.count(
        network, backbone=asked.backbone, modalities=asked.modalities, batch=asked.batch, size=asked.size
    )
    return counted.training if asked.task == "train" else counted.prediction


def _peak_apart(asked: Asked, device: torch.device, manner: Manner, reports: dict[str, dict[str, Any]]) -> int:
    """The peak of one manner in a process of its own; 0, and a report, where the plain one does not fit."""
    console.detail(f"{manner}: peak memory, in a process of its own")
    trial = Trial(
        recipe=asked.recipe(), classes=asked.classes, task=asked.task, device=str(device), manner=manner, steps=TRIED
    )  # fmt: skip
    outcome = trials.run(trial)
    if outcome.fits:
        return outcome.peak
    numbers = f"{outcome.why}; {memory.gigabytes(outcome.free)} of {memory.gigabytes(outcome.total)} were free"
    if manner == "fast":
        raise EnvironmentFault(f"{asked}: does not fit ({numbers}); {asked.levers()}")
    reports[manner] = {"fits": False, "why": numbers, "peak_bytes": outcome.peak}
    return 0


def _warm_up(
    variants: Variants,
    device: torch.device,
    manners: tuple[Manner, ...],
    *,
    peaks: dict[Manner, int],
    reports: dict[str, dict[str, Any]],
) -> dict[str, float] | None:
    """Run each manner until it is warm; on CUDA that tells its peak. Gives the differences, if both fit."""
    for manner in manners:
        console.detail(f"{manner}: warming up")
        work: Callable[[], object] = getattr(variants, manner)
        if device.type == "cuda":
            try:
                peaks[manner] = _peak_here(work, device)
            except Exception as fault:
                if manner == "fast" or not is_out_of_memory(fault):
                    raise
                reports[manner] = {"fits": False, "why": shortage(fault), "peak_bytes": memory.peak_bytes(device)}
        elif manner in peaks:
            for _ in range(WARM_UPS):
                work()
    return variants.differences() if "plain" in peaks else None


def _peak_here(work: Callable[[], object], device: torch.device) -> int:
    """What CUDA's allocator reserves at most for some work, beside what is there already."""
    gc.collect()
    torch.cuda.empty_cache()
    memory.start_peak(device)
    for _ in range(WARM_UPS):
        work()
    synchronize(device)
    return memory.peak_bytes(device)


def _ratio(reports: dict[str, dict[str, Any]]) -> dict[str, float | None] | None:
    fast, plain = reports["fast"], reports.get("plain")
    if plain is None:
        return None
    peak = fast["peak_bytes"] / plain["peak_bytes"] if plain["fits"] else None
    return {"time": fast["seconds"] / plain["seconds"] if plain["fits"] else None, "peak": peak}
