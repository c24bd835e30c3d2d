"""How much a sensor-failure benchmark costs, against the evaluations that would give its figures one by one.

python benchmarks/robustness.py [--backbone nano] [--size 128] [--scenes 8] [--batch 4] [--device cpu] [--threads 1]

Renders mini-DELIVER into a temporary folder and takes random weights: neither changes what is computed.
Prints, for ``emm`` and ``any``: the seconds of the benchmark, of 15 evaluations, and their ratio.
Plain evaluation scores both protocols, the benchmark one; of the difference, that is a small part.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.data.manifest import modalities_of
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine import runtime
from memorysam_cli.engine.evaluate import robustness, scoring
from memorysam_cli.engine.evaluate.robustness import missing_sets
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.model import Base, weights

MODALITIES = ["img", "depth", "event", "lidar"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = runtime.choose_device(asked.device)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), asked, device)


def measure(root: Path, asked: argparse.Namespace, device: torch.device) -> None:
    """Time both ways on the same scenes."""
    preparation.render_synthetic(root, layout="deliver", scenes=max(8, asked.scenes), size=asked.size, seed=0)
    preparation.check_and_write(preparation.survey_synthetic(root, layout="deliver"))
    manifest = manifests.read(root, "synthetic")
    model = network(asked.backbone, manifest.info, size=asked.size).to(device)
    modalities = modalities_of(manifest.info, MODALITIES)
    scenes = manifest.scenes[: asked.scenes]
    inference = Inference(modalities, asked.size, device, batch=asked.batch, workers=0)

    def plain(places: tuple[int, ...]) -> object:
        shown = tuple(modality for place, modality in enumerate(modalities) if place not in places)
        return scoring.evaluate(
            model, manifest, scenes=scenes, inference=dataclasses.replace(inference, modalities=shown)
        )

    def bench(kind: Any) -> object:
        return robustness.run(model, manifest, scenes=scenes, inference=inference, kind=kind)

    seconds(lambda: plain(()), device)  # warm up
    one = seconds(lambda: plain(()), device)
    parts = sum(seconds(lambda gone=gone: plain(gone), device) for gone in missing_sets(len(modalities)))  # type: ignore[misc]
    print(f"{asked.backbone} at {asked.size} pixels, {asked.scenes} scenes in batches of {asked.batch}, {device}")
    print(f"{'benchmark':<22}{'seconds':>9}{'15 evaluations':>16}{'ratio':>8}")
    for name, kind, separate in (
        ("emm, zeros", "emm", 15 * one),  # each of the 15 is an evaluation of four frames
        ("any, sensors dropped", "any", parts),
    ):
        took = seconds(lambda kind=kind: bench(kind), device)  # type: ignore[misc]
        print(f"{name:<22}{took:>9.2f}{separate:>16.2f}{took / separate:>8.2f}")


def network(backbone: str, info: DatasetInfo, *, size: int) -> weights.Segmenter:
    """A network with PyTorch's initial values; no base weights are needed."""
    recipe = recipes.parse(
        {
            "name": "benchmark",
            "data": {"dataset": info.name, "modalities": MODALITIES, "image_size": size},
            "model": {"backbone": backbone, "object_gate": False},
            "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4},
            "train": {"epochs": 1},
        },
        where="benchmark",
    )
    card = weights.WeightsCard(
        recipe=recipe, dataset=info, base=Base(backbone=backbone, source="random:0", sha256=""),
        tokens=len(info.classes), image_size=size, versions=weights.versions(),
    )  # fmt: skip
    return weights.build(card).requires_grad_(False).eval()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time of some work: of the processor, which other programs disturb less; of the wall on a GPU."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    started = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


if __name__ == "__main__":
    main()
