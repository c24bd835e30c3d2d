"""The parts of benchmarks/gpu.py: each yields names and figures, which are written as they come.

python benchmarks/gpu_parts.py PART FILE.json [--small]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from memorysam_cli.engine import runtime
from memorysam_cli.engine.measure import input_speed
from memorysam_cli.engine.measure.bench import make_variants, measure
from memorysam_cli.engine.measure.rates import interleaved, synchronize
from memorysam_cli.engine.measure.workload import Workload
from memorysam_cli.losses.ohem import pixel_losses
from memorysam_cli.report import console

Found = Iterator[tuple[str, Any]]
ROWS = 20
"""Of a profile."""


class Bench:
    """What the parts share.

    Args:
        small: nano at 64 pixels.
        out: the folder of the results.
    """

    def __init__(self, *, small: bool, out: Path) -> None:
        self.small, self.out, self.device = small, out, runtime.choose_device("auto")
        self.on_cuda = self.device.type == "cuda"
        if not (small or self.on_cuda):  # minutes of a CPU's figures under a GPU's name
            sys.exit(f"PyTorch {torch.__version__} finds no CUDA device; --small tests the script without one")

    def asked(self, **changes: Any) -> Workload:
        """The work of the targets, but for some changes."""
        sizes = {"backbone": "nano", "size": 64, "batch": 1, "modalities": 2} if self.small else {}
        return Workload(**{"precision": "bf16", "saver": "off", **sizes, **changes})

    def measure(self, *, against_plain: bool = False, **changes: Any) -> dict[str, Any]:
        """One benchmark; its failure is a result."""
        repeats = 1 if self.small else 3
        return tried(lambda: measure(self.asked(**changes), self.device, against_plain=against_plain, repeats=repeats))


def tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What some work gives, or why it failed."""
    try:
        return work()
    except Exception as fault:
        return {"failed": f"{type(fault).__name__}: {fault}"}


def train(bench: Bench) -> Found:
    """The step against the plain one, the saver's price, and TF32."""
    yield "off", bench.measure(against_plain=True)
    yield "on", bench.measure(saver="on")
    if bench.on_cuda:
        yield "tf32", bench.measure(precision="tf32")


def predict(bench: Bench) -> Found:
    """Prediction, against the plain one and in TF32."""
    yield "bf16", bench.measure(task="predict", against_plain=True)
    if bench.on_cuda:
        yield "tf32", bench.measure(task="predict", precision="tf32")


def compiled(bench: Bench) -> Found:
    """Both tasks with compiled blocks, to be compared with the other parts' figures."""
    yield "predict", bench.measure(task="predict", compile=True)
    yield "train", bench.measure(compile=True)


def equality(bench: Bench) -> Found:
    """How far our results are from the plain network's on this device."""
    size = {"size": 64} if bench.small else {"size": 512, "batch": 2}
    for precision in ("fp32", "bf16"):
        yield f"predict {precision}", _differences(bench, task="predict", precision=precision, **size)
        for saver in ("off", "on"):
            found = _differences(bench, task="train", precision=precision, saver=saver, **size)
            yield f"train {precision}, saver {saver}", found


def loss(bench: Bench) -> Found:
    """The pixels' cross entropy, forward and backward: at full resolution and in bands."""
    cells, batch = (16, 1) if bench.small else (256, 4)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, 25, cells, cells, generator=random).to(bench.device).requires_grad_()
    label = torch.randint(0, 25, (batch, 4 * cells, 4 * cells), generator=random).to(bench.device)
    weight = torch.rand(label.shape, generator=random).to(bench.device)

    def full() -> Tensor:
        pixels = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        return F.cross_entropy(pixels, label, reduction="none")

    ways = {"full": full, "bands": lambda: pixel_losses(logits, label)}
    wanted = full(), _gradient(full, weight, logits)
    for name, way in ways.items():
        yield name, tried(lambda way=way: _loss_figures(bench, way, weight, logits, wanted=wanted))  # type: ignore[misc]


def profile(bench: Bench) -> Found:
    """The operations and kernels that take most of the time; whole tables go to files."""
    key = "self_device_time_total" if bench.on_cuda else "self_cpu_time_total"
    for task in ("train", "predict"):
        work = make_variants(bench.asked(task=task), bench.device)
        for _ in range(3):
            work.fast()
        synchronize(bench.device)
        with profiler(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * bench.on_cuda]) as seen:
            work.fast()
            synchronize(bench.device)
        table = seen.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=90)
        (bench.out / f"profile-{task}.txt").write_text(table)
        rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, key))[:ROWS]
        yield task, [{"name": row.key[:120], "ms": getattr(row, key) / 1000, "calls": row.count} for row in rows]


def data(bench: Bench) -> Found:
    """Both tasks from PNG files."""
    report = tried(lambda: input_speed.measure(bench.asked(), bench.device, repeats=1 if bench.small else 8))
    yield from report.items()


PARTS: dict[str, Callable[[Bench], Found]] = {
    "train": train, "predict": predict, "equality": equality, "loss": loss, "profile": profile, "data": data,
    "compile": compiled,
}  # fmt: skip


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("file", type=Path)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    console.setup()
    found: dict[str, Any] = {}
    for name, figures in PARTS[asked.part](Bench(small=asked.small, out=asked.file.parent)):
        found[name] = figures
        asked.file.write_text(json.dumps(found))


def _differences(bench: Bench, **changes: Any) -> dict[str, Any]:
    return tried(lambda: make_variants(bench.asked(**changes), bench.device).differences())


def _loss_figures(
    bench: Bench, way: Callable[[], Tensor], weight: Tensor, logits: Tensor, *, wanted: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Seconds, memory, and how far from full resolution."""
    gradient = _gradient(way, weight, logits)
    before = 0
    if bench.on_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    seconds = interleaved({"": lambda: _gradient(way, weight, logits)}, repeats=5, device=bench.device)[""]
    return {
        "seconds": sorted(seconds)[2],
        "allocated_bytes": torch.cuda.max_memory_allocated() - before if bench.on_cuda else None,
        "loss_difference": float((way() - wanted[0]).detach().abs().max()),
        "gradient_difference": float((gradient - wanted[1]).abs().max() / wanted[1].abs().max()),
    }


def _gradient(way: Callable[[], Tensor], weight: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((way() * weight).sum(), logits)
    return gradient


if __name__ == "__main__":
    main()
