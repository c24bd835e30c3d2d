"""``memorysam bench --mode data``: whether reading files keeps up with the model.

It measures reading alone, and training and prediction from files compared with the model alone. The scenes are a few
rendered ones, listed as often as needed.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memorysam_cli.data import preparation
from memorysam_cli.data.loader import Batch, training_batches
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine import runtime, surroundings
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.measure import rates
from memorysam_cli.engine.measure.bench import STILL, Prediction, Training, show_machine
from memorysam_cli.engine.measure.rates import interleaved, synchronize
from memorysam_cli.engine.measure.workload import Workload
from memorysam_cli.engine.predict.files import LedgerLine, SceneFiles
from memorysam_cli.engine.predict.segment import segment_scenes
from memorysam_cli.engine.train.update import BatchGroups
from memorysam_cli.errors import UsageError
from memorysam_cli.model.weights import Segmenter
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.text import counted

SCHEMA_VERSION = 1
CLASSES = 25
"""Number of classes of the rendered scenes."""
WORKERS = (0, 1, 2, 4, 8, 16)
TRAINING, PREDICTING = 4, 2
"""Worker processes of the ``deliver`` recipe, and of ``memorysam predict`` by default."""
AHEAD = 2
"""Batches that each worker of torch's loader loads in advance."""
TARGET = 90
"""% of the model's own rate that work from files should reach."""
DISTINCT = 4
"""Number of rendered scenes."""
SENSORS = ("img", "depth", "event", "lidar")
"""Modalities of the rendered scenes; a benchmark with more reads them again under other names."""


def measure(workload: Workload, device: torch.device, *, repeats: int) -> dict[str, Any]:
    """Measure reading, and both tasks from files.

    Args:
        workload: sizes, network and precision; its task does not matter.
        device: of the model.
        repeats: smallest number of measured batches.

    Returns:
        The content of ``memorysam bench --mode data --json``.

    Raises:
        UsageError: an impossible size or backbone, or classes that the rendered scenes do not have.
        EnvironmentFault: out of memory.
    """
    if workload.classes != CLASSES:
        raise UsageError(f"--classes {workload.classes}: --mode data renders scenes of {CLASSES} classes; leave it out")
    recipe = _with_workers(workload.recipe(), TRAINING)
    runtime.refuse_precision(workload.precision, device)
    workers = [count for count in WORKERS if count <= surroundings.cores()]
    longest = _lead(max(*workers, recipe.data.workers)) + 3 * max(repeats, AHEAD * max(workers))
    with (
        tempfile.TemporaryDirectory(prefix="memorysam-bench-") as folder,
        runtime.explained(device, levers=workload.levers),
    ):
        console.note(f"rendering {DISTINCT} scenes of {workload.size}×{workload.size} pixels")
        root = Path(folder)
        manifest = write_scenes(
            root, names=recipe.data.modalities, size=workload.size, scenes=longest * workload.batch
        )  # fmt: skip
        size = bytes_per_scene(manifest)
        read = {count: _reading_rate(manifest, _with_workers(recipe, count), repeats=repeats) for count in workers}
        tasks = {
            "train": _training(workload, manifest, recipe, device=device, repeats=repeats, reading=max(read.values())),
            "predict": _prediction(workload, manifest, root / "out", device=device, repeats=repeats),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "task": "data",
        **{key: value for key, value in vars(workload).items() if key != "task"},
        "repeats": repeats,
        "bytes_per_scene": size,
        "reading": [
            {"workers": count, "scenes_per_second": rate, "megabytes_per_second": rate * size / 1e6}
            for count, rate in read.items()
        ],
        **tasks,
        "machine": rates.describe_machine(device, precision=workload.precision),
    }


def show(report: dict[str, Any]) -> None:
    """Print the result."""
    console.table(
        ["worker processes", "scenes per second", "MB per second"],
        [
            [row["workers"], f"{row['scenes_per_second']:.2f}", f"{row['megabytes_per_second']:.1f}"]
            for row in report["reading"]
        ],
        title=f"reading and augmenting {counted(report['modalities'], 'PNG file')} of "
        f"{report['size']}×{report['size']} pixels",
    )
    console.table(
        ["task", "model alone, scenes/s", "from files, scenes/s", "share %", "workers"],
        [
            [
                task, f"{report[task]['model_scenes_per_second']:.3f}", f"{report[task]['scenes_per_second']:.3f}",
                f"{report[task]['share_percent']:.1f}", report[task]["workers"],
            ]
            for task in ("train", "predict")
        ],
        title=f"{report['backbone']}, batch {report['batch']}, {report['precision']}; target: {TARGET} % and more",
    )  # fmt: skip
    show_machine(report["machine"])


def _reading_rate(manifest: Manifest, recipe: Recipe, *, repeats: int) -> float:
    """Scenes per second of training's loader without any computation."""
    lead, counted = _lead(recipe.data.workers), max(repeats, AHEAD * recipe.data.workers)
    batches = iter(_batches(manifest, recipe, lead + counted))
    for _ in range(lead):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return counted * recipe.train.batch / (time.perf_counter() - start)


def _training(
    workload: Workload, manifest: Manifest, recipe: Recipe, *, device: torch.device, repeats: int, reading: float
) -> dict[str, float]:
    """Updates from files compared with updates on a batch in memory."""
    work = Training(replace(workload, task="train"), device)
    work.fast()
    before = interleaved({"": work.fast}, repeats=repeats, device=device)[""]
    # Prefetched batches hide a slow loader for a while; a loader twice as fast as the model needs no such lead.
    is_ample = reading > 2 * workload.batch / statistics.median(before)
    counted = repeats if is_ample else max(repeats, AHEAD * recipe.data.workers)
    lead = 1 if is_ample else _lead(recipe.data.workers)
    start = 0.0
    upcoming = BatchGroups(iter(_batches(manifest, recipe, lead + counted)), size=1, device=device)
    for number, batches in enumerate(upcoming, 1):
        work.learner.learn(batches, rate=STILL, meanwhile=upcoming.fetch)
        if number == lead:
            synchronize(device)
            start = time.perf_counter()
    synchronize(device)
    seconds = (time.perf_counter() - start) / counted
    after = interleaved({"": work.fast}, repeats=repeats, device=device)[""]
    return _compared(before + after, seconds, batch=workload.batch, workers=recipe.data.workers)


def _prediction(
    workload: Workload, manifest: Manifest, out: Path, *, device: torch.device, repeats: int
) -> dict[str, float]:  # fmt: skip
    """Predictions from files to files compared with the network on a batch in memory."""
    work = Prediction(replace(workload, task="predict"), device)
    work.fast()
    before = interleaved({"": work.fast}, repeats=repeats, device=device)[""]
    lead = _lead(PREDICTING)
    scenes = manifest.scenes[: (lead + max(repeats, AHEAD * PREDICTING)) * workload.batch]
    took = _seconds_per_batch(work, manifest, scenes, out, lead=lead, device=device)
    after = interleaved({"": work.fast}, repeats=repeats, device=device)[""]
    return _compared(before + after, took, batch=workload.batch, workers=PREDICTING)


def _seconds_per_batch(
    work: Prediction, manifest: Manifest, scenes: Sequence[Scene], out: Path, *, lead: int, device: torch.device
) -> float:
    """Seconds per batch in the loop of ``memorysam predict``, from the start of its ``lead``-th batch to the last
    written file."""
    network, end = _Clocked(work.network), 0.0

    def tell(_line: LedgerLine) -> None:
        nonlocal end
        end = time.perf_counter()

    workload, modalities = work.workload, manifest.info.modalities
    inference = Inference(
        modalities, workload.size, device, precision=workload.precision, batch=workload.batch, workers=PREDICTING
    )  # fmt: skip
    files = SceneFiles(out, manifest.root, manifest.info, modalities)
    segment_scenes(network, files, scenes=scenes, inference=inference, tell=tell)
    return (end - network.begun[lead]) / (len(network.begun) - lead)


class _Clocked:
    """A network that records the start of each batch, because files are reported later than they are written."""

    def __init__(self, network: Segmenter) -> None:
        self._network, self.begun = network, list[float]()

    @property
    def training(self) -> bool:
        return self._network.training

    def eval(self) -> None:
        self._network.eval()

    def train(self, mode: bool = True) -> None:
        self._network.train(mode)

    def logits(self, frames: list[Tensor], *, sensors: Sequence[int] | None = None) -> Tensor:
        self.begun.append(time.perf_counter())
        return self._network.logits(frames, sensors=sensors)


def _batches(manifest: Manifest, recipe: Recipe, count: int) -> Iterable[Batch]:
    """Training batches, each read from files."""
    scenes = manifest.scenes[: count * recipe.train.batch]
    return itertools.islice(training_batches(manifest, scenes=scenes, recipe=recipe, epoch=0), count)


def _compared(model: Sequence[float], seconds: float, *, batch: int, workers: int) -> dict[str, float]:
    alone = statistics.median(model)
    return {
        "model_scenes_per_second": batch / alone,
        "scenes_per_second": batch / seconds,
        "share_percent": 100 * alone / seconds,
        "workers": workers,
    }


def _with_workers(recipe: Recipe, workers: int) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": workers})})


def _lead(workers: int) -> int:
    """Number of batches before the measured ones: workers are then running, and their prefetched batches are used
    up."""
    return 1 + AHEAD * workers


def write_scenes(root: Path, *, names: tuple[str, ...], size: int, scenes: int) -> Manifest:
    """Render scenes into a folder.

    Args:
        root: an empty folder.
        names: names of the modalities.
        size: side of the images in pixels.
        scenes: number of scenes in the manifest.

    Returns:
        A manifest whose scenes are all in the split ``train``; its PNG files are smaller than a camera's, and lie in
        the system's cache once they have been read.
    """
    preparation.render_synthetic(root, layout="deliver", scenes=DISTINCT, size=size, seed=0)
    found = preparation.survey_synthetic(root, layout="deliver")
    sources = {name: SENSORS[index % len(SENSORS)] for index, name in enumerate(names)}
    listed = []
    for number in range(scenes):
        scene = found.scenes[number % len(found.scenes)]
        files = {name: scene.files[source] for name, source in sources.items()}
        listed.append(dataclasses.replace(scene, id=f"{number:06d}", split="train", files=files))
    return Manifest(root, _info(found.info, sources, scenes=scenes), tuple(listed))


def bytes_per_scene(manifest: Manifest) -> float:
    """The mean size of a scene's files, including its label."""
    total = 0
    for scene in manifest.scenes:
        paths = [*(path for group in scene.files.values() for path in group), *([scene.label] if scene.label else [])]
        total += sum((manifest.root / path).stat().st_size for path in paths)
    return total / len(manifest.scenes)


def _info(info: DatasetInfo, sources: dict[str, str], *, scenes: int) -> DatasetInfo:
    modalities = tuple(info.modality(source).model_copy(update={"name": name}) for name, source in sources.items())
    return info.model_copy(update={"modalities": modalities, "counts": {"train": scenes}})
