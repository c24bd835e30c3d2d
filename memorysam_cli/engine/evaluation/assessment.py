"""What ``memorysam evaluate`` does: from its options to scores, or to a robustness benchmark, and their files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from memorysam_cli import model as models
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.engine import memory, run_folder, runtime
from memorysam_cli.engine.evaluation import gallery, results, scene_lists, scoring, views
from memorysam_cli.engine.evaluation.counts import SceneScore
from memorysam_cli.engine.evaluation.files import GALLERY
from memorysam_cli.engine.evaluation.scoring import Network
from memorysam_cli.engine.evaluation.tally import ProtocolName
from memorysam_cli.engine.evaluation.views import View
from memorysam_cli.engine.processes import lost_ones_named
from memorysam_cli.engine.robustness.corruption import Extremes
from memorysam_cli.engine.robustness.sensor_sets import Kind
from memorysam_cli.model.weights import Segmenter, WeightsCard, read_card
from memorysam_cli.report import console, galleries
from memorysam_cli.storage import lock, tensors


@dataclass(frozen=True)
class Task:
    """Which weights are scored on which scenes, and how they are shown to them."""

    weights: Path
    card: WeightsCard
    manifest: Manifest
    splits: tuple[str, ...]
    scenes: tuple[Scene, ...]
    modalities: tuple[Modality, ...]
    """Those that the model is shown, in the order of its memory."""
    view: View
    folder: Path
    """Where the results go."""
    weights_sha256: str
    """Of the file as it was before it was loaded: a training may replace it meanwhile."""
    precision: str = "fp32"
    is_compiled: bool = False

    @property
    def split(self) -> str:
        """All splits in one word, such as ``val`` or ``val+test``."""
        return "+".join(self.splits)


def plan(
    weights: Path,
    *,
    data: Path | None,
    split: str,
    modalities: Sequence[str] | None,
    view: View,
    out: Path | None,
    precision: str = "fp32",
    is_compiled: bool = False,
) -> Task:
    """Find out what is to be scored; reads no image and loads no weights.

    Args:
        weights: a weights file.
        data: the data root, if one was given.
        split: a split, several with commas, or ``all``.
        modalities: names, if some were chosen.
        view: how scenes are shown to the network.
        out: the folder of the results, if one was given.
        precision: of the computing, as of :func:`~memorysam_cli.engine.runtime.computing`.
        is_compiled: whether the network's blocks are compiled.

    Raises:
        WeightsError: the weights are refused, or know other classes than the data set.
        UsageError: an unknown modality, a split's name is missing, or ``out`` holds files of the results' names that
            are not ours.
        DataError: the data set is not prepared, a split is unknown or has no labels.
    """
    card = read_card(weights)
    chosen = scoring.choose_modalities(card.modalities, modalities)
    found = manifests.read(manifests.data_root(data), card.dataset.name)
    scoring.check_classes(card.dataset, found.info, weights=str(weights))
    splits = scene_lists.labelled_splits(found, split)
    digest = tensors.sha256(weights)
    folder = out or results.folder_for(
        weights, run=run_folder.run_of(weights), digest=digest, split="+".join(splits), card=card, modalities=chosen,
        view=view,
    )  # fmt: skip
    if out is None and precision != "fp32":
        folder /= precision  # beside the exact result, never in its place
    results.refuse_foreign(folder)
    scenes = tuple(scene for name in splits for scene in found.of_split(name))
    return Task(weights, card, found, splits, scenes, chosen, view, folder, digest, precision, is_compiled)


def score(
    task: Task,
    *,
    protocol: ProtocolName,
    device: str,
    batch: int,
    workers: int,
    pictured: int = gallery.EACH,
) -> dict[str, Any] | None:
    """Score, write the result's files, print its tables.

    Args:
        task: of :func:`plan`.
        protocol: the one that heads the report.
        device: as in ``--device``.
        batch: scenes of one size that are computed at once.
        workers: processes that read ahead.
        pictured: of how many of the worst scenes, and of the best, the gallery has pictures; 0: no gallery.

    Returns:
        The content of ``metrics.json``; None in every process but the first.

    Raises:
        DataError: a file cannot be used.
        WeightsError: the weights are damaged, or their base is missing.
        EnvironmentFault: a device that is not there, a disk that is full.
        FolderInUseError: another process writes its results there.
    """
    if task.view.missing == "zero" and task.modalities == task.card.modalities:
        console.note("--missing zero: means nothing here, for no modality is left out; choose some with --modalities")
        task = dataclasses.replace(task, view=dataclasses.replace(task.view, missing="drop"))
    with _begun(task, device=device) as (accelerator, model, advance):
        shown, small = (
            views.show(model, view, modalities=task.modalities, known=task.card.modalities, size=task.card.image_size)
            for view in (task.view, dataclasses.replace(task.view, tile=False))
        )
        outcome = scoring.evaluate(
            shown, task.manifest, scenes=task.scenes, modalities=task.modalities, image_size=task.card.image_size,
            device=accelerator.device, batch=batch, workers=workers, accelerator=accelerator, advance=advance,
            tile=task.view.tile, small=small,
        )  # fmt: skip
        if not accelerator.is_main_process:
            return None
        told = facts(task, device=accelerator.device)
        report = results.describe(outcome, protocol=protocol, facts=told, folder=task.folder)
        results.write(report, outcome, task.folder)
        _picture(task, outcome.scene_scores(protocol), shown, small, each=pictured, device=accelerator.device)
    results.show(report)
    return report


def measure_robustness(
    task: Task,
    *,
    kind: Kind,
    seed: int,
    repeats: int,
    noise_extremes: Extremes,
    protocol: ProtocolName,
    device: str,
    batch: int,
    workers: int,
) -> dict[str, Any] | None:
    """Run a published sensor-failure benchmark, write its files, print its table.

    Args:
        task: of :func:`plan`; its view neither tiles nor augments.
        kind: ``any``, ``emm``, ``rmm`` or ``nm``.
        seed: of what is random.
        repeats: how often what is random is drawn.
        noise_extremes: of ``nm``: over what its salt and pepper take the extremes, ``batch`` or ``scene``.
        protocol: the one that is scored.
        device: as in ``--device``.
        batch: scenes of one size that are computed at once.
        workers: processes that read ahead.

    Returns:
        The content of ``robustness-<kind>.json``; None in every process but the first.

    Raises:
        DataError: a file cannot be used.
        WeightsError: the weights are damaged, or their base is missing.
        EnvironmentFault: a device that is not there, a disk that is full.
        FolderInUseError: another process writes its results there.
    """
    from memorysam_cli.engine.robustness import benchmark, results

    with _begun(task, device=device) as (accelerator, model, advance):
        found = benchmark.run(
            model, task.manifest, kind=kind, scenes=task.scenes, modalities=task.modalities,
            image_size=task.card.image_size, device=accelerator.device, batch=batch, workers=workers, seed=seed,
            repeats=repeats, missing=task.view.missing, noise_extremes=noise_extremes, protocol=protocol,
            accelerator=accelerator, advance=advance,
        )  # fmt: skip
        if not accelerator.is_main_process:
            return None
        report = results.describe(found, facts=facts(task, device=accelerator.device), folder=task.folder)
        results.write(report, task.folder)
    results.show(report)
    return report


def facts(task: Task, *, device: torch.device) -> dict[str, Any]:
    """What was scored on what, and how: the part of a report that no pixel decides."""
    by_split = {name: task.manifest.of_split(name) for name in task.splits}
    return {
        "dataset": task.manifest.info.name,
        "dataset_hash": task.manifest.info.content_hash,
        "split": task.split,
        "split_sha256": {name: scene_lists.digest(scenes) for name, scenes in by_split.items()},
        "selection_split": task.card.recipe.data.selection_split,
        "scenes": len(task.scenes),
        "modalities": [modality.name for modality in task.modalities],
        "palette": [list(colour) for colour in task.manifest.info.palette],
        **task.view.to_json(size=task.card.image_size),
        "image_size": task.card.image_size,
        "weights": str(task.weights),
        "weights_sha256": task.weights_sha256,
        **runtime.describe(device, task.precision),
        "warnings": scene_lists.flattery(task.manifest, task.card.recipe.data, splits=task.splits),
    }


def _picture(
    task: Task, scores: Sequence[SceneScore], model: Network, small: Network, *, each: int, device: torch.device
) -> None:
    """Write the gallery beside the results; without one, an older one goes: it would show other weights."""
    chosen = gallery.extremes(scores, each=each)
    folder = task.folder / GALLERY
    if not chosen:
        galleries.clear(folder)
        return
    gallery.write(
        folder, chosen, task.manifest, model=model, small=small, modalities=task.modalities,
        image_size=task.card.image_size, device=device, tile=task.view.tile,
    )  # fmt: skip


@contextlib.contextmanager
def _begun(task: Task, *, device: str) -> Iterator[tuple[Accelerator, Segmenter, Callable[[int], object]]]:
    """The processes, the loaded network and the progress of a task; its folder is locked meanwhile."""
    place = runtime.choose_device(device)
    runtime.refuse_precision(task.precision, place)
    accelerator = runtime.make_accelerator(place, precision="fp32")
    is_main = accelerator.is_main_process
    with lock.hold(task.folder) if is_main else contextlib.nullcontext():
        model = models.load(task.weights, device=accelerator.device)
        if task.is_compiled:
            model.compile_blocks()
        share = len(task.scenes[accelerator.process_index :: accelerator.num_processes])
        label = f"evaluate {task.split}"
        with (
            console.progress(share if is_main else 0, label) as progress,
            memory.explained(accelerator.device, levers=memory.LOOKING),
            runtime.computing(task.precision, accelerator.device),
            lost_ones_named(accelerator, advice=lambda: "nothing was written; run the same command again"),
        ):
            yield accelerator, model, progress.advance
