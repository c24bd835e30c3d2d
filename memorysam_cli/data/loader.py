"""Scenes → batches of tensors, in an order that is a pure function of seed and epoch.

Nothing here keeps state: batch ``n`` of an epoch is the same whoever asks, with any number of worker processes, and
after a resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.scenes import (
    Batch,
    BatchRequest,
    LeftOut,
    ScoredScene,
    ScoredScenes,
    TrainingBatches,
    UnlabelledScene,
    UnlabelledScenes,
    batches_of,
    batches_per_epoch,
    epoch_order,
)
from memorysam_cli.data.workers import load, load_in_threads
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.errors import DataError, did_you_mean
from memorysam_cli.recipe import Recipe

__all__ = [
    "Batch", "LeftOut", "ScoredScene", "UnlabelledScene", "batches_per_epoch", "epoch_order", "modalities_of",
    "scored_scenes", "training_batches", "unlabelled_scenes",
]  # fmt: skip


def training_batches(
    manifest: Manifest,
    *,
    scenes: Sequence[Scene],
    recipe: Recipe,
    epoch: int,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterable[Batch]:
    """One epoch's augmented batches for one process.

    Args:
        manifest: says what the modalities and labels are.
        scenes: of the training split.
        recipe: modalities, size, batch, augmentation, seed, worker processes.
        epoch: from 0; with the seed it decides the order and every random number.
        start: the first batch to give, for resuming within an epoch.
        rank: this process takes batches rank, rank + world, … of the epoch's.
        world: number of processes; all get the same number of batches.

    Returns:
        Batches of ``recipe.train.batch`` scenes; the last partial one is dropped. With ``data.max_bad`` the next
        readable scenes of the epoch stand for those that cannot be read, which ``left_out`` names; without, such a
        scene ends the epoch.

    Raises:
        DataError: too few scenes for one batch each, an unknown modality; while iterating: a file that cannot be
            used, named as in a single process.
    """
    if batches_per_epoch(len(scenes), batch=recipe.train.batch, world=world) == 0:
        raise DataError(
            f"{manifest.info.name}: {len(scenes)} training scenes are fewer than one batch of {recipe.train.batch} for "
            f"each of {world} process(es); lower train.batch or add scenes"
        )
    order = epoch_order(len(scenes), seed=recipe.train.seed, epoch=epoch)
    mine = [BatchRequest(numbers) for numbers in batches_of(order, batch=recipe.train.batch, rank=rank, world=world)]
    source = TrainingBatches(manifest, scenes, recipe, epoch, modalities_of(manifest.info, recipe.data.modalities))
    return load(source, mine[start:], workers=recipe.data.workers)


def scored_scenes(
    manifest: Manifest,
    *,
    scenes: Sequence[Scene],
    modalities: Sequence[Modality],
    size: int,
    workers: int,
    tile: bool = False,
) -> Iterator[ScoredScene]:
    """Scenes with labels in both evaluation protocols, one at a time, in order.

    Args:
        manifest: says how labels are read and whether the published protocol crops.
        scenes: each has a label and all ``modalities``.
        modalities: in the order of the memory.
        size: short side in pixels, a multiple of 32.
        workers: processes that read ahead; 0 reads in this one.
        tile: whole frames keep their own resolution where their short side has at least ``size`` pixels; only labels
            are then resized, but for data sets whose published protocol crops.

    Raises:
        DataError: a file cannot be used, or a scene lacks a modality or its label.
    """
    source = ScoredScenes(manifest, scenes, tuple(modalities), size, tile)
    return load(source, range(len(scenes)), workers=workers)


def unlabelled_scenes(
    root: Path,
    *,
    scenes: Sequence[Scene],
    modalities: Sequence[Modality],
    size: int,
    workers: int,
    tile: bool = False,
    in_threads: bool = False,
) -> Iterator[UnlabelledScene | DataError]:
    """Whole scenes for prediction, one at a time, in order; labels are not looked at.

    A scene that cannot be read, kills its readers, or has none of the modalities gives its fault in its place, and the
    next one follows.

    Args:
        root: what the scenes' paths are relative to.
        scenes: may lack modalities, not all.
        modalities: those wanted, in the order of the memory.
        size: short side in pixels, a multiple of 32.
        workers: processes that read ahead; 0 reads in this one.
        tile: as in :func:`scored_scenes`.
        in_threads: threads read ahead, not processes.
    """
    source = UnlabelledScenes(root, scenes, tuple(modalities), size, tile)
    return (load_in_threads if in_threads else load)(source, range(len(scenes)), workers=workers)


def modalities_of(info: DatasetInfo, names: Iterable[str]) -> tuple[Modality, ...]:
    """The modalities of these names, in this order.

    Raises:
        DataError: the data set has no such modality.
    """
    known = {modality.name: modality for modality in info.modalities}
    for name in names:
        if name not in known:
            raise DataError(f"{info.name}: has no modality '{name}'{did_you_mean(name, known)}")
    return tuple(known[name] for name in names)
