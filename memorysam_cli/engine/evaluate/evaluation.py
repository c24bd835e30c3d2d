"""``memorysam evaluate`` from its options to scores, or to a robustness benchmark, and their files.

:func:`plan` checks all options without loading torch; modules that compute are imported where they are used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memorysam_cli import recipe
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.engine import run_folder, surroundings
from memorysam_cli.engine.evaluate import result_files
from memorysam_cli.engine.infer.inference import (
    Inference,
    choose_modalities,
    frame_sizes,
    notes_on_sizes,
    tell_untrained,
    unlike_training,
    untrained_sets,
)
from memorysam_cli.engine.infer.views import View
from memorysam_cli.errors import DataError, UsageError, WeightsError
from memorysam_cli.model import WeightsCard, read_card
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, lock, tensors
from memorysam_cli.text import command, counted

if TYPE_CHECKING:
    from accelerate import Accelerator

    from memorysam_cli.dataset import DatasetInfo
    from memorysam_cli.engine.evaluate.counts import ProtocolName
    from memorysam_cli.engine.evaluate.robustness import BenchmarkKind, Protocols
    from memorysam_cli.engine.infer.corruption import Extremes
    from memorysam_cli.model import Segmenter

ALL = "all"
"""Value of ``--split`` for every split with labels."""


@dataclass(frozen=True)
class EvaluationJob:
    """Which weights are evaluated on which scenes, and how."""

    weights: Path
    card: WeightsCard
    manifest: Manifest
    splits: tuple[str, ...]
    scenes: tuple[Scene, ...]
    inference: Inference
    """Settings of inference. Its device is the value of ``--device`` until the weights are loaded."""
    folder: Path
    """The folder of the results."""
    weights_sha256: str
    """SHA-256 of the file before it was loaded, because a training run may replace it meanwhile."""
    is_compiled: bool = False
    doubts: tuple[str, ...] = ()
    """Sensors whose values differ from those in training, and sets of sensors that were not trained."""

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
    device: str,
    batch: int,
    workers: int,
    precision: str = "fp32",
    is_compiled: bool = False,
    strict: bool = False,
) -> EvaluationJob:
    """Find out what to evaluate. Loads no weights, and reads only a few scenes, to compare their values with training.

    Args:
        weights: a weights file.
        data: the data root, if given.
        split: a split, several with commas, or ``all``.
        modalities: names, if some were chosen.
        view: scales, flips and tiles.
        out: the folder of the results, if given.
        device: the value of ``--device``.
        batch: number of scenes of one size in a batch.
        workers: number of processes that load data.
        precision: of the computation, see :func:`~memorysam_cli.engine.runtime.computing`.
        is_compiled: whether the network's blocks are compiled.
        strict: refuse scenes whose values differ from those in training, instead of a warning.

    Raises:
        WeightsError: the weights are refused, or have other classes than the data set.
        UsageError: an unknown modality, a missing split name, or ``out`` contains other files named as the results.
        EnvironmentFault: nothing can be written to ``out``, or the device is missing.
        DataError: the data set is not prepared, a split is unknown or has no labels, or values differ with ``strict``.
    """
    surroundings.refuse_malformed()
    surroundings.refuse_device(device, precision=precision)
    card = read_card(weights)
    chosen = choose_modalities(card.modalities, modalities)
    run = run_folder.run_of(weights)
    manifest = manifests.read(run_folder.data_root(run, data), card.dataset.name)
    check_classes(card.dataset, manifest.info, weights=str(weights))
    splits = labeled_splits(manifest, split)
    digest = tensors.sha256(weights)
    folder = out or result_files.folder_for(
        weights, run=run, digest=digest, split="+".join(splits), card=card, modalities=chosen, view=view
    )
    if out is None and precision != "fp32":
        folder /= precision  # beside the exact result, which it must not replace
    result_files.refuse_foreign(folder)
    atomic.refuse_unwritable(folder)
    scenes = tuple(scene for name in splits for scene in manifest.of_split(name))
    _remark_sizes(card, manifest, scenes, chosen, view)
    inference = Inference(
        chosen, card.image_size, device, known=card.modalities, view=view, precision=precision, batch=batch,
        workers=workers,
    )  # fmt: skip
    doubts = _doubts(card, manifest, scenes, inference, strict=strict)
    return EvaluationJob(weights, card, manifest, splits, scenes, inference, folder, digest, is_compiled, doubts)


def _remark_sizes(
    card: WeightsCard, manifest: Manifest, scenes: Sequence[Scene], chosen: Sequence[Modality], view: View
) -> None:
    """Print how scenes are resized that are much larger than in training, or far from square."""
    sizes = frame_sizes(scenes, root=manifest.root, modalities=chosen)
    for note in notes_on_sizes(sizes, size=card.image_size, tile=view.tile):
        console.note(note)


def _doubts(
    card: WeightsCard, manifest: Manifest, scenes: Sequence[Scene], inference: Inference, *, strict: bool
) -> tuple[str, ...]:
    """Differences of the scenes from those in training: values, and sets of sensors; also printed."""
    chosen, view = inference.modalities, inference.view
    untrained = untrained_sets(card.recipe, scenes, view, chosen={modality.name for modality in chosen})
    return (
        *unlike_training(card.dataset, manifest.root, scenes, chosen, strict=strict),
        *tell_untrained(card.recipe, untrained, view, of=len(scenes)),
    )


def check_classes(trained: DatasetInfo, prepared: DatasetInfo, *, weights: str) -> None:
    """Refuse a data set whose classes differ from those of the weights.

    Raises:
        WeightsError: the classes differ in number, name or order.
    """
    if trained.classes == prepared.classes:
        return
    pairs = zip(trained.classes, prepared.classes, strict=False)
    differing = next((pair for pair in pairs if pair[0] != pair[1]), None)
    first = f", the first difference is '{differing[0]}' against '{differing[1]}'" if differing else ""
    raise WeightsError(
        f"{weights}: knows {counted(len(trained.classes), 'class')}, the prepared data set {prepared.name} has "
        f"{len(prepared.classes)}{first}; prepare the data that these weights were trained on"
    )


def labeled_splits(manifest: Manifest, text: str) -> tuple[str, ...]:
    """The splits of ``--split``, such as ``val``, ``val,test`` or ``all``, which means all with labels.

    Raises:
        UsageError: a name is missing.
        DataError: a split is unknown or empty, or its labels are not published.
    """
    if text.strip() == ALL:
        known = {split: manifest.of_split(split) for split in manifest.info.counts}
        bare = [split for split, scenes in known.items() if _without_label(scenes)]
        if bare:
            console.note(f"{manifest.info.name}: left out, because they have no labels: {', '.join(bare)}")
        labeled = tuple(split for split in known if split not in bare)
        if not labeled:
            raise DataError(f"{manifest.info.name}: has no labels to score against; 'predict' works without")
        return labeled
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if "" in names:
        raise UsageError(f"--split '{text}': a name is missing; give one such as val, several as val,test, or all")
    for split in names:
        scenes = manifest.of_split(split)
        bare_count = _without_label(scenes)
        if bare_count:
            raise DataError(
                f"{manifest.info.name}: {bare_count} of {counted(len(scenes), 'scene')} in split '{split}' without "
                f"a label to score against; score another split, or segment it with: "
                + command("predict", "--split", split, "--data", manifest.root)
            )
    return names


def _without_label(scenes: Sequence[Scene]) -> int:
    """The number of scenes without a label."""
    return sum(scene.label is None for scene in scenes)


def score(job: EvaluationJob, *, protocol: ProtocolName, pictured: int) -> dict[str, Any] | None:
    """Evaluate, write the files of the results, print the tables.

    Args:
        job: from :func:`plan`.
        protocol: the protocol of the report's main scores.
        pictured: number of the worst scenes, and of the best, in the gallery; 0: no gallery.

    Returns:
        The content of ``metrics.json``; None in every process but the first.

    Raises:
        DataError: a file cannot be used.
        WeightsError: the weights are damaged, or their base is missing.
        EnvironmentFault: the device does not exist, or the disk is full.
        FolderInUseError: another process writes its results there.
    """
    from memorysam_cli.engine.evaluate import results, scoring

    if job.inference.view.missing == "zero" and job.inference.modalities == job.card.modalities:
        console.note("--missing zero: has no effect, because no modality is left out; choose some with --modalities")
        view = dataclasses.replace(job.inference.view, missing="drop")
        job = dataclasses.replace(job, inference=dataclasses.replace(job.inference, view=view))
    with _open(job) as (accelerator, network, inference, advance):
        evaluation = scoring.evaluate(
            network, job.manifest, scenes=job.scenes, inference=inference, accelerator=accelerator, advance=advance
        )
        if not accelerator.is_main_process:
            return None
        report = results.describe(evaluation, protocol=protocol, facts=facts(job, inference), folder=job.folder)
        results.write(report, evaluation, job.folder)
        results.write_pictures(
            job.folder, evaluation, job.manifest, protocol=protocol, each=pictured, network=network,
            inference=inference,
        )  # fmt: skip
    results.show(report)
    return report


def measure_robustness(
    job: EvaluationJob,
    *,
    kind: BenchmarkKind,
    missing: Protocols,
    seed: int,
    repeats: int,
    noise_extremes: Extremes,
    protocol: ProtocolName,
) -> dict[str, Any] | None:
    """Run a published sensor-failure benchmark, write its files, print its table.

    Args:
        job: from :func:`plan`; without tiles and test-time augmentation.
        kind: ``any``, ``emm``, ``rmm`` or ``nm``.
        missing: how ``any`` replaces a missing sensor.
        seed: of the random draws.
        repeats: number of repeats of the random draws.
        noise_extremes: for ``nm``: salt and pepper are the extreme values of a ``batch`` or of a ``scene``.
        protocol: the protocol of the scores.

    Returns:
        The content of ``robustness-<kind>.json``; None in every process but the first.

    Raises:
        DataError: a file cannot be used.
        WeightsError: the weights are damaged, or their base is missing.
        EnvironmentFault: the device does not exist, or the disk is full.
        FolderInUseError: another process writes its results there.
    """
    from memorysam_cli.engine.evaluate import robustness, robustness_results

    with _open(job) as (accelerator, network, inference, advance):
        counts = robustness.run(
            network, job.manifest, scenes=job.scenes, inference=inference, kind=kind, missing=missing, seed=seed,
            repeats=repeats, noise_extremes=noise_extremes, protocol=protocol, accelerator=accelerator, advance=advance,
        )  # fmt: skip
        if not accelerator.is_main_process:
            return None
        report = robustness_results.describe(counts, facts=facts(job, inference), folder=job.folder)
        robustness_results.write(report, job.folder)
    robustness_results.show(report)
    return report


@contextlib.contextmanager
def _open(job: EvaluationJob) -> Iterator[tuple[Accelerator, Segmenter, Inference, Callable[[int], object]]]:
    """Lock the folder and load the network; yields processes, network, inference settings, and a callback for the
    progress."""
    from memorysam_cli import model as models
    from memorysam_cli.engine import runtime
    from memorysam_cli.engine.processes import lost_ones_named

    device = runtime.choose_device(str(job.inference.device))
    runtime.refuse_precision(job.inference.precision, device)
    accelerator = runtime.make_accelerator(device, precision="fp32")
    is_main = accelerator.is_main_process
    with lock.hold(job.folder) if is_main else contextlib.nullcontext():
        network = models.load(job.weights, device=accelerator.device)
        if job.is_compiled:
            network.compile_blocks()
        share = len(job.scenes[accelerator.process_index :: accelerator.num_processes])
        label = f"evaluate {job.split}"
        with (
            console.progress(share if is_main else 0, label, is_steady=True) as progress,
            runtime.explained(accelerator.device, levers=runtime.LOOKING),
            lost_ones_named(accelerator, advice=lambda: "nothing was written; run the same command again"),
        ):
            inference = dataclasses.replace(job.inference, device=accelerator.device)
            yield accelerator, network, inference, progress.advance


def facts(job: EvaluationJob, inference: Inference) -> dict[str, Any]:
    """The part of a report that does not depend on pixels: data, weights and settings."""
    from memorysam_cli.engine import runtime

    by_split = {name: job.manifest.of_split(name) for name in job.splits}
    return {
        "dataset": job.manifest.info.name,
        "dataset_hash": job.manifest.info.content_hash,
        "split": job.split,
        "split_sha256": {name: scenes_sha256(scenes) for name, scenes in by_split.items()},
        "selection_split": job.card.recipe.data.selection_split,
        "scenes": len(job.scenes),
        "modalities": [modality.name for modality in inference.modalities],
        "palette": [list(color) for color in job.manifest.info.palette],
        **inference.view.to_json(size=inference.image_size),
        "image_size": inference.image_size,
        "weights": str(job.weights),
        "weights_sha256": job.weights_sha256,
        **runtime.describe(inference.device, inference.precision),
        "warnings": [*job.doubts, *flattery(job.manifest, job.card.recipe.data, splits=job.splits)],
    }


def scenes_sha256(scenes: Iterable[Scene]) -> str:
    """SHA-256 of a list of scenes: ids and labels' paths, sorted by id.

    Two results are of the same scenes if and only if this value is equal, even if the splits have other names.
    """
    lines = sorted(documents.to_json([scene.id, scene.label]) for scene in scenes)
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def flattery(manifest: Manifest, data: recipe.Data, *, splits: Sequence[str]) -> list[str]:
    """Reasons why scores on these splits are too optimistic: the weights were trained or selected on the same scenes.

    Args:
        manifest: the data set.
        data: of the weights' recipe.
        splits: the evaluated splits.

    Returns:
        A line per reason.
    """
    reasons = []
    for split in splits:
        if split == data.train_split:
            found = [f"'{split}' also trained these weights"]
        else:
            chosen = "chose these weights among the epochs"
            if split == data.selection_split:
                found = [f"'{split}' also {chosen}"]
            else:
                found = _shared(manifest, split, data.selection_split, chosen)
            found += _shared(manifest, split, data.train_split, "trained these weights")
        optimistic = f"scores on '{split}' are too optimistic; use a split that training never saw"
        reasons += [f"{each}; {optimistic}" for each in found]
    return reasons


def _shared(manifest: Manifest, split: str, other: str, did: str) -> list[str]:
    """The reason for labels that an evaluated split shares with another (in several data sets, val is the test
    list)."""
    labels = {scene.label for scene in manifest.scenes if scene.split == other and scene.label is not None}
    scenes = [scene for scene in manifest.scenes if scene.split == split]
    count = sum(scene.label in labels for scene in scenes)
    return [f"'{split}' shares {count} of {counted(len(scenes), 'scene')} with '{other}', which {did}"] * bool(count)
