"""What ``memorysam evaluate`` does: from its options to scores, or to a robustness benchmark, and their files.

:func:`plan` looks at all that was typed, and waits for no torch; what computes is imported by those who compute.
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
"""What ``--split`` calls every split that has labels."""


@dataclass(frozen=True)
class EvaluationJob:
    """Which weights are scored on which scenes, and how they look at them."""

    weights: Path
    card: WeightsCard
    manifest: Manifest
    splits: tuple[str, ...]
    scenes: tuple[Scene, ...]
    inference: Inference
    """Its device is as in ``--device`` until the weights are loaded."""
    folder: Path
    """Where the results go."""
    weights_sha256: str
    """Of the file as it was before it was loaded: a training run may replace it meanwhile."""
    is_compiled: bool = False
    doubts: tuple[str, ...] = ()
    """Which sensors hold other values than the weights were trained on, and which sets of them training never had."""

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
    """Find out what is to be scored; loads no weights, and reads only a few scenes, to compare them with the training.

    Args:
        weights: a weights file.
        data: the data root, if one was given.
        split: a split, several with commas, or ``all``.
        modalities: names, if some were chosen.
        view: how scenes are shown to the network.
        out: the folder of the results, if one was given.
        device: as in ``--device``.
        batch: scenes of one size that are computed at once.
        workers: processes that read ahead.
        precision: of the computing, as of :func:`~memorysam_cli.engine.runtime.computing`.
        is_compiled: whether the network's blocks are compiled.
        strict: refuse scenes whose values are not those that the weights were trained on, instead of a warning.

    Raises:
        WeightsError: the weights are refused, or know other classes than the data set.
        UsageError: an unknown modality, a split's name is missing, or ``out`` holds files of the results' names that
            are not ours.
        EnvironmentFault: nothing can be written to ``out``, or the device is surely not there.
        DataError: the data set is not prepared, a split is unknown or has no labels; or ``strict``.
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
        folder /= precision  # beside the exact result, never in its place
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
    """Print what is done to scenes that are far larger than the trained size, or far from square."""
    sizes = frame_sizes(scenes, root=manifest.root, modalities=chosen)
    for note in notes_on_sizes(sizes, size=card.image_size, tile=view.tile):
        console.note(note)


def _doubts(
    card: WeightsCard, manifest: Manifest, scenes: Sequence[Scene], inference: Inference, *, strict: bool
) -> tuple[str, ...]:
    """In what scenes are not those that the weights were trained on: values, and sets of sensors; said, too."""
    chosen, view = inference.modalities, inference.view
    untrained = untrained_sets(card.recipe, scenes, view, chosen={modality.name for modality in chosen})
    return (
        *unlike_training(card.dataset, manifest.root, scenes, chosen, strict=strict),
        *tell_untrained(card.recipe, untrained, view, of=len(scenes)),
    )


def check_classes(trained: DatasetInfo, prepared: DatasetInfo, *, weights: str) -> None:
    """Refuse to score weights on a data set whose classes are not theirs.

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
    """The splits of ``--split``, such as ``val``, ``val,test`` or ``all``, which takes those that have labels.

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
    """How many scenes have none."""
    return sum(scene.label is None for scene in scenes)


def score(job: EvaluationJob, *, protocol: ProtocolName, pictured: int) -> dict[str, Any] | None:
    """Score, write the result's files, print its tables.

    Args:
        job: of :func:`plan`.
        protocol: the one that heads the report.
        pictured: of how many of the worst scenes, and of the best, the gallery has pictures; 0: no gallery.

    Returns:
        The content of ``metrics.json``; None in every process but the first.

    Raises:
        DataError: a file cannot be used.
        WeightsError: the weights are damaged, or their base is missing.
        EnvironmentFault: a device that is not there, a disk that is full.
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
        job: of :func:`plan`; its view neither tiles nor augments.
        kind: ``any``, ``emm``, ``rmm`` or ``nm``.
        missing: what becomes of a missing sensor in ``any``.
        seed: of what is random.
        repeats: how often what is random is drawn.
        noise_extremes: of ``nm``: over what its salt and pepper take the extremes, ``batch`` or ``scene``.
        protocol: the one that is scored.

    Returns:
        The content of ``robustness-<kind>.json``; None in every process but the first.

    Raises:
        DataError: a file cannot be used.
        WeightsError: the weights are damaged, or their base is missing.
        EnvironmentFault: a device that is not there, a disk that is full.
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
    """Lock the folder and load the network: gives processes, network, how it looks, and what advances the progress."""
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
    """What was scored on what, and how: the part of a report that no pixel decides."""
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
    """SHA-256 of a list of scenes: ids and labels' paths, in the order of the ids.

    Two results are of the same scenes if and only if they say the same here, whatever their splits are called.
    """
    lines = sorted(documents.to_json([scene.id, scene.label]) for scene in scenes)
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def flattery(manifest: Manifest, data: recipe.Data, *, splits: Sequence[str]) -> list[str]:
    """Why a result on these splits flatters the weights: they were trained or chosen on the same scenes.

    Args:
        manifest: the data set.
        data: of the weights' recipe.
        splits: those that are scored.

    Returns:
        A line per reason, none for a result that is free of it.
    """
    unbiased = "a split that training never saw gives the unbiased figure"
    reasons = []
    for split in splits:
        if split == data.train_split:
            reasons.append(f"'{split}' also trained these weights; {unbiased}")
            continue
        if split == data.selection_split:
            reasons.append(f"'{split}' also chose these weights among the epochs, which flatters them; {unbiased}")
        else:
            reasons += _shared(manifest, split, data.selection_split, "chose these weights among the epochs", unbiased)
        reasons += _shared(manifest, split, data.train_split, "trained these weights", unbiased)
    return reasons


def _shared(manifest: Manifest, split: str, other: str, did: str, unbiased: str) -> list[str]:
    """What to say of labels that a scored split shares with another (several data sets' val is their test list)."""
    labels = {scene.label for scene in manifest.scenes if scene.split == other and scene.label is not None}
    scenes = [scene for scene in manifest.scenes if scene.split == split]
    count = sum(scene.label in labels for scene in scenes)
    return [
        f"'{split}' shares {count} of {counted(len(scenes), 'scene')} with '{other}', which {did}; {unbiased}"
    ] * bool(count)
