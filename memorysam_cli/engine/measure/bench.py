"""``memorysam bench``: our implementation and the reference's, in turns and on the same random weights.

Time is measured in this process. On a CPU, memory is measured in separate processes, because earlier use of a process
cannot be separated from its current use.
"""

from __future__ import annotations

import gc
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memorysam_cli.engine import runtime
from memorysam_cli.engine.measure import rates, trials
from memorysam_cli.engine.measure.plain import Plain, PlainLearner
from memorysam_cli.engine.measure.rates import Rate, interleaved, matmul_rate, synchronize
from memorysam_cli.engine.measure.trials import Trial
from memorysam_cli.engine.measure.workload import Workload, made_up_batch
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.errors import EnvironmentFault, is_out_of_memory, shortage
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.report import console
from memorysam_cli.text import counted, duration, size

STILL = 0.0
"""The learning rate of measured updates: the work is the same, and both implementations keep the same weights."""


class Variants(ABC):
    """A task in both implementations."""

    @abstractmethod
    def fast(self) -> object:
        """Run our implementation once."""

    @abstractmethod
    def plain(self) -> object:
        """Run the reference's implementation once; the first call creates its network."""

    def plain_unchecked(self) -> object:
        """As :meth:`plain`, without anomaly detection; only for training."""
        raise NotImplementedError

    @abstractmethod
    def differences(self) -> dict[str, float]:
        """The differences of the two results; also warms both up."""


class Training(Variants):
    """Updates of the real learner, and of the plain one."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload, self.recipe = workload, workload.recipe()
        self.network = workload.network(self.recipe)
        accelerator = runtime.make_accelerator(device, precision=workload.precision)
        self.learner = Learner(self.network, self.recipe, accelerator=accelerator)
        self.batch = made_up_batch(self.recipe, classes=workload.classes, device=device)
        self._plain: PlainLearner | None = None

    def fast(self) -> object:
        return self.learner.learn([self.batch], rate=STILL)

    def plain(self) -> object:
        return self._plain_learner().learn(self.batch, rate=STILL)

    def plain_unchecked(self) -> object:
        learner = self._plain_learner()
        learner.detects_anomalies = False
        try:
            return learner.learn(self.batch, rate=STILL)
        finally:
            learner.detects_anomalies = True

    def differences(self) -> dict[str, float]:
        """Relative differences of the losses and of the gradient norm; without dropout, which is random."""
        plain = self._plain_learner()
        with without_dropout(self.network, plain.network):
            ours = self.learner.learn([self.batch], rate=STILL)
            ohem, spmm, norm = plain.gradient(self.batch)
        terms = {name: (ours.terms[name], wanted) for name, wanted in {"ohem": ohem, "spmm": spmm}.items()}
        pairs = terms | {"gradient_norm": (ours.gradient_norm, norm)}
        return {name: abs(found - wanted) / max(abs(wanted), 1e-12) for name, (found, wanted) in pairs.items()}

    def _plain_learner(self) -> PlainLearner:
        if self._plain is None:
            twin = Plain(self.network, backbone=self.workload.backbone)
            self._plain = PlainLearner(twin.train(), self.recipe)
        return self._plain


class Prediction(Variants):
    """Class logits of a batch at full resolution; LoRA is merged in ours, separate in the reference's."""

    def __init__(self, workload: Workload, device: torch.device) -> None:
        self.workload, self.recipe, self.device = workload, workload.recipe(), device
        self.network = workload.network(self.recipe).requires_grad_(False).eval().to(device)
        self.twin = Plain(self.network, backbone=workload.backbone)  # before LoRA is merged: its weights are copies
        merge_lora(self.network.sam.image_encoder.trunk)
        self.network.to(device).eval()
        if workload.compile:
            self.network.compile_blocks()
        self.frames = made_up_batch(self.recipe, classes=workload.classes, device=device).frames

    def fast(self) -> Tensor:
        with torch.inference_mode(), runtime.computing(self.workload.precision, self.device):
            return self.network.logits(self.frames)

    def plain(self) -> Tensor:
        with torch.inference_mode(), runtime.computing("fp32", self.device):
            return self.twin.logits(self.frames)

    def differences(self) -> dict[str, float]:
        """The largest difference of the logits, relative to the largest logit; the share of pixels with another
        class."""
        ours, plain = self.fast().float(), self.plain()
        others = (ours.argmax(dim=1) != plain.argmax(dim=1)).double().mean()
        return {
            "logits": float((ours - plain).abs().max() / plain.abs().max()),
            "other_classes": float(others),
        }  # fmt: skip


def make_variants(workload: Workload, device: torch.device) -> Variants:
    """Both implementations of a task."""
    return Training(workload, device) if workload.task == "train" else Prediction(workload, device)


@contextmanager
def without_dropout(*networks: nn.Module) -> Iterator[None]:
    """Switch dropout off and leave everything else in training mode."""
    found = [
        (module, name, getattr(module, name))
        for network in networks
        for module in network.modules()
        for name in ("p", "dropout_p")  # nn.Dropout's, and that of SAM2's attention
        if isinstance(getattr(module, name, None), float)
    ]
    for module, name, _ in found:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


SCHEMA_VERSION = 1
WARM_UPS = 2
"""Warm-up runs: the first ones plan, allocate and compile."""
TRIED = 2
"""Runs in a separate process."""
LONG_S = 30.0
"""Seconds: if a benchmark must take longer even at the device's best rate, it is announced."""

Compared = Literal["fast", "plain"]
Implementation = Literal["fast", "plain", "plain_unchecked"]
"""Ours; the reference's, as published; and the reference's training without anomaly detection, which takes a third of
its time."""


@dataclass(frozen=True)
class Figures:
    """The figures of an implementation.

    Attributes:
        seconds: of each repeat.
        scenes: in a step.
        flops: of a step, counted on the plain network.
        rate: the device's best rate in this precision.
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
        """The keys ``seconds`` (the median), ``all_seconds``, and values computed from them."""
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


def measure(workload: Workload, device: torch.device, *, against_plain: bool, repeats: int) -> dict[str, Any]:
    """Measure one task.

    Args:
        workload: the work.
        device: the device.
        against_plain: also measure the reference's implementation, in turns with ours.
        repeats: number of measured runs.

    Returns:
        The content of ``memorysam bench --json``: ``fast``, ``plain`` and ``plain_unchecked`` (figures; None if not
        requested; the last is only for training, without anomaly detection), ``ratio`` (``time``, ``time_unchecked``,
        ``peak``: ours / plain), ``difference``, the work and the machine.

    Raises:
        UsageError: an impossible backbone, size or precision.
        EnvironmentFault: our own implementation runs out of memory.
    """
    workload.recipe()
    runtime.refuse_precision(workload.precision, device)
    implementations: tuple[Compared, ...] = ("fast", "plain") if against_plain else ("fast",)
    work = _needed(workload)
    best: dict[Implementation, Rate] = {
        implementation: matmul_rate(device, workload.precision if implementation == "fast" else "fp32")
        for implementation in implementations
    }
    _announce(workload, work, best["fast"], steps=len(implementations) * (repeats + WARM_UPS + TRIED + 1))
    reports: dict[str, dict[str, Any]] = {}
    peaks: dict[Implementation, int] = {}
    if device.type != "cuda":  # a process's peak includes its earlier work
        peaks = {
            implementation: peak
            for implementation in implementations
            if (peak := _peak_apart(workload, device, implementation, reports))
        }
    with runtime.explained(device, levers=workload.levers):
        variants = make_variants(workload, device)
        difference = _warm_up(variants, device, implementations, peaks=peaks, reports=reports)
        timed: list[Implementation] = [implementation for implementation in implementations if implementation in peaks]
        if "plain" in peaks and workload.task == "train":  # anomaly detection stores no tensors: same memory
            timed.append("plain_unchecked")
            best["plain_unchecked"], peaks["plain_unchecked"] = best["plain"], peaks["plain"]
            variants.plain_unchecked()
        works = {implementation: getattr(variants, implementation) for implementation in timed}
        seconds = interleaved(works, repeats=repeats, device=device)
    for implementation, found in seconds.items():
        reports[implementation] = Figures(
            found, workload.batch, work, best[implementation], peaks[implementation]
        ).to_json()
    return {
        "schema_version": SCHEMA_VERSION,
        **vars(workload),
        "repeats": repeats,
        "fast": reports["fast"],
        "plain": reports.get("plain"),
        "plain_unchecked": reports.get("plain_unchecked"),
        "ratio": _ratio(reports),
        "difference": difference,
        "machine": rates.describe_machine(device, precision=workload.precision),
    }


def _announce(workload: Workload, work: int, rate: Rate, *, steps: int) -> None:
    """Warn of a long wait."""
    seconds = steps * work / rate.flops_per_second
    if seconds > LONG_S:
        console.note(
            f"{workload}: {work / 1e12:.2f} TFLOP a step, {rate.flops_per_second / 1e12:.2f} TFLOP/s at best: at least "
            f"{duration(seconds)} for all {steps} steps; for a quick look: --backbone nano --size 256"
        )


def _needed(workload: Workload) -> int:
    """FLOP of a step; a prediction is counted with LoRA merged."""
    network = workload.network(workload.recipe())
    if workload.task == "predict":
        merge_lora(network.sam.image_encoder.trunk)
        network.requires_grad_(False).eval()
    counted = rates.count_flops(
        network, backbone=workload.backbone, modalities=workload.modalities, batch=workload.batch, size=workload.size
    )
    return counted.training if workload.task == "train" else counted.prediction


def _peak_apart(
    workload: Workload, device: torch.device, implementation: Compared, reports: dict[str, dict[str, Any]]
) -> int:
    """The peak of an implementation in a separate process; 0, and a message, if the plain one does not fit."""
    console.detail(f"{implementation}: peak memory, in a process of its own")
    trial = Trial(
        recipe=workload.recipe(),
        classes=workload.classes,
        task=workload.task,
        device=str(device),
        implementation=implementation,
        steps=TRIED,
    )
    outcome = trials.run(trial)
    if outcome.fits:
        return outcome.peak
    numbers = f"{outcome.why}; {size(outcome.free)} of {size(outcome.total)} were free"
    if implementation == "fast":
        raise EnvironmentFault(f"{workload}: does not fit ({numbers}); {workload.levers()}")
    reports[implementation] = {"fits": False, "why": numbers, "peak_bytes": outcome.peak}
    return 0


def _warm_up(
    variants: Variants,
    device: torch.device,
    implementations: tuple[Compared, ...],
    *,
    peaks: dict[Implementation, int],
    reports: dict[str, dict[str, Any]],
) -> dict[str, float] | None:
    """Warm up each implementation; on CUDA this measures its peak. Returns the differences, if both fit."""
    for implementation in implementations:
        console.detail(f"{implementation}: warming up")
        work: Callable[[], object] = getattr(variants, implementation)
        if device.type == "cuda":
            try:
                peaks[implementation] = _peak_here(work, device)
            except Exception as fault:
                if implementation == "fast" or not is_out_of_memory(fault):
                    raise
                reports[implementation] = {
                    "fits": False,
                    "why": shortage(fault),
                    "peak_bytes": runtime.peak_bytes(device),
                }
        elif implementation in peaks:
            for _ in range(WARM_UPS):
                work()
    return variants.differences() if "plain" in peaks else None


def _peak_here(work: Callable[[], object], device: torch.device) -> int:
    """The peak memory that CUDA's allocator reserves for some work, besides the memory in use before."""
    gc.collect()
    torch.cuda.empty_cache()
    runtime.start_peak(device)
    for _ in range(WARM_UPS):
        work()
    synchronize(device)
    return runtime.peak_bytes(device)


def _ratio(reports: dict[str, dict[str, Any]]) -> dict[str, float | None] | None:
    fast, plain, unchecked = reports["fast"], reports.get("plain"), reports.get("plain_unchecked")
    if plain is None:
        return None
    return {
        "time": fast["seconds"] / plain["seconds"] if plain["fits"] else None,
        "time_unchecked": None if unchecked is None else fast["seconds"] / unchecked["seconds"],
        "peak": fast["peak_bytes"] / plain["peak_bytes"] if plain["fits"] else None,
    }


ROWS = {
    "seconds per step": ("seconds", ".4g"),
    "scenes per second": ("scenes_per_second", ".4g"),
    "TFLOP per step": ("tflop", ".4g"),
    "TFLOP per second": ("tflop_per_second", ".4g"),
    "best matrix product, TFLOP per second": ("matmul_tflop_per_second", ".4g"),
    "share of it in % (MFU)": ("mfu_percent", ".1f"),
    "peak memory in GB": ("peak_bytes", ".2f"),
}
"""The label of a line, its key, and its decimals."""
COMPARED = {"seconds": "time", "peak_bytes": "peak"}


def show(report: dict[str, Any], *, title: str) -> None:
    """Print the figures of :func:`measure`."""
    fast, plain, ratio = report["fast"], report["plain"], report["ratio"]
    columns = ["", "memorysam"] if plain is None else ["", "memorysam", "plain", "memorysam / plain"]
    rows = []
    for name, (key, digits) in ROWS.items():
        row = [name, _cell(fast, key, digits)]
        if plain is not None:
            compared = ratio[COMPARED[key]] if key in COMPARED else None
            row += [_cell(plain, key, digits), "–" if compared is None else f"{compared:.2f}"]
        rows.append(row)
    console.table(columns, rows, title=title)
    if plain is not None and not plain["fits"]:
        console.say(f"plain     does not fit: {plain['why']}, after {size(plain['peak_bytes'])}")
    if report["plain_unchecked"] is not None:
        seconds, times = report["plain_unchecked"]["seconds"], ratio["time_unchecked"]
        console.say(f"plain     without its anomaly detection: {seconds:.4g} s per step, memorysam / that {times:.2f}")
    if report["difference"]:
        said = ", ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in report["difference"].items())
        console.say(f"apart by  {said} (relative; other classes: share of the pixels)")
    show_machine(report["machine"])


def show_machine(machine: dict[str, Any]) -> None:
    """A line about the machine."""
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    console.say(
        f"machine   {device}{machine['processor']} ({machine['instructions']}), {machine['threads']} of "
        f"{counted(machine['cores'], 'core')}, torch {machine['versions']['torch']}"
    )


def _cell(figures: dict[str, Any], key: str, digits: str) -> str:
    value = figures.get(key)
    if value is None:
        return "–"
    return format(value / 1e9 if key == "peak_bytes" else value, digits)
