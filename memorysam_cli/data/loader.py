"""Scenes → batches of tensors: for training, for both evaluation protocols, and for prediction.

First the results, tensors of one or several scenes, and the three functions that return them; then the order of an
epoch and the random numbers of its scenes, which are pure functions of seed, epoch and scene; then the reading itself.
Nothing here has state: batch ``n`` of an epoch is always the same, with any number of worker processes, and after a
resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memorysam_cli.data import decode, degrade, transforms
from memorysam_cli.data.manifest import Manifest, Scene, modalities_of, sign_line
from memorysam_cli.data.transforms import Sample
from memorysam_cli.data.workers import LostPart, Source, load, load_in_threads
from memorysam_cli.dataset import Modality
from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Recipe
from memorysam_cli.text import counted, shown

ORDER, DEGRADED = 1, 2
"""Spawn keys of the random numbers that order an epoch, and of those that damage sensors, separate from its
samples'."""


@dataclass(frozen=True)
class LeftOut:
    """A scene that cannot be read."""

    scene: str
    """Its id."""
    why: str
    """The message of its error, one line."""


@dataclass(frozen=True)
class Batch:
    """Scenes of one size."""

    frames: list[Tensor]
    """M × (B, 3, H, W) float32, normalized, in the requested order."""
    label: Tensor | None
    """(B, H, W) int64, 255 is ignored."""
    scenes: tuple[Scene, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Unreadable scenes of this batch, which others replace (``data.max_bad``)."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        frames = [frame.to(device, non_blocking=True) for frame in self.frames]
        return replace(self, frames=frames, label=label)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for a transfer to a device while that computes."""
        label = None if self.label is None else self.label.pin_memory()
        return replace(self, frames=[frame.pin_memory() for frame in self.frames], label=label)


@dataclass(frozen=True)
class ScoredScene:
    """One scene in both evaluation protocols (METHOD §5), each as a batch of one."""

    scene: Scene
    resized: Batch
    """Frames and label at the published protocol's size."""
    whole: Batch
    """The whole frame at the network's size, with the label at its own size."""
    shares_frames: bool
    """Whether both have the same frames, so that one forward pass is sufficient."""
    is_large: bool = False
    """Whether the whole frame keeps its own resolution, to be processed in windows."""

    def pin_memory(self) -> ScoredScene:
        """The same in page-locked memory."""
        resized, whole = self.resized.pin_memory(), self.whole
        if whole.frames is self.resized.frames:  # one copy serves both
            label = None if whole.label is None else whole.label.pin_memory()
            return replace(self, resized=resized, whole=Batch(resized.frames, label, whole.scenes))
        return replace(self, resized=resized, whole=whole.pin_memory())


@dataclass(frozen=True)
class UnlabeledScene:
    """A scene for prediction."""

    scene: Scene
    frames: list[Tensor]
    """One (1, 3, H, W) float32 for each of ``modalities``."""
    modalities: tuple[str, ...]
    """The requested modalities that the scene has, in the requested order."""
    height: int
    """Size of the scene's own frame, in pixels."""
    width: int
    is_large: bool = False
    """Whether the frames keep their own resolution, to be processed in windows."""

    def pin_memory(self) -> UnlabeledScene:
        """The same in page-locked memory."""
        return replace(self, frames=[frame.pin_memory() for frame in self.frames])


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
    """The augmented batches of an epoch for one process.

    Args:
        manifest: the data set.
        scenes: of the training split.
        recipe: modalities, size, batch, augmentation, seed, worker processes.
        epoch: from 0; with the seed it decides the order and every random number.
        start: the first batch to return, for resuming within an epoch.
        rank: this process takes batches rank, rank + world, … of the epoch's.
        world: number of processes; all get the same number of batches.

    Returns:
        Batches of ``recipe.train.batch`` scenes; an incomplete last one is dropped. With ``data.max_bad`` the next
        readable scenes of the epoch replace unreadable ones, which ``left_out`` lists. Otherwise an unreadable scene
        ends the epoch.

    Raises:
        DataError: too few scenes for one batch each, an unknown modality; while iterating: a file that cannot be used,
            with the same message as in a single process.
    """
    if batches_per_epoch(len(scenes), batch=recipe.train.batch, world=world) == 0:
        raise DataError(
            f"{manifest.info.name}: {counted(len(scenes), 'training scene', 'is')} fewer than one batch of "
            f"{recipe.train.batch} for each of {counted(world, 'process')}; lower train.batch or add scenes"
        )
    order = epoch_order(len(scenes), seed=recipe.train.seed, epoch=epoch)
    mine = [BatchRequest(numbers) for numbers in batches_of(order, batch=recipe.train.batch, rank=rank, world=world)]
    chosen = modalities_of(manifest.info, recipe.data.modalities, antialias=recipe.data.antialias)
    source = TrainingBatches(manifest, scenes, recipe, epoch, chosen)
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
        manifest: the data set, with its label rule and crop.
        scenes: each has a label and all ``modalities``.
        modalities: in the order of the memory.
        size: short side in pixels, a multiple of 32.
        workers: number of processes that load data; 0: this process.
        tile: whole frames keep their own resolution if their short side has at least ``size`` pixels; then only labels
            are resized, except for data sets whose published protocol crops.

    Raises:
        DataError: a file cannot be used, or a scene lacks a modality or its label.
    """
    source = ScoredScenes(manifest, scenes, tuple(modalities), size, tile)
    return load(source, range(len(scenes)), workers=workers)


def unlabeled_scenes(
    root: Path,
    *,
    scenes: Sequence[Scene],
    modalities: Sequence[Modality],
    size: int,
    workers: int,
    tile: bool = False,
    in_threads: bool = False,
) -> Iterator[UnlabeledScene | DataError]:
    """Whole scenes for prediction, one at a time, in order; labels are not read.

    If a scene cannot be read, crashes its worker, or has none of the modalities, its error is returned in its place,
    and the next one follows.

    Args:
        root: the folder to which the scenes' paths are relative.
        scenes: may lack some modalities, not all.
        modalities: the requested ones, in the order of the memory.
        size: short side in pixels, a multiple of 32.
        workers: number of processes that load data; 0: this process.
        tile: as in :func:`scored_scenes`.
        in_threads: load data in threads, not in processes.
    """
    source = UnlabeledScenes(root, scenes, tuple(modalities), size, tile)
    return (load_in_threads if in_threads else load)(source, range(len(scenes)), workers=workers)


def batches_per_epoch(count: int, *, batch: int, world: int = 1) -> int:
    """Number of batches of ``count`` scenes for each of ``world`` processes; incomplete ones are dropped."""
    return count // batch // world


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's scenes: a permutation of 0..count-1, the same on every machine."""
    rng = generator(seed, epoch, spawn_key=(ORDER,))
    return [int(index) for index in np.argsort(rng.random(count), kind="stable")]


def batches_of(order: list[int], *, batch: int, rank: int = 0, world: int = 1) -> list[tuple[int, ...]]:
    """The batches of one of ``world`` processes: rank, rank + world, …; all get the same number."""
    count = batches_per_epoch(len(order), batch=batch, world=world) * world
    return [tuple(order[place * batch : (place + 1) * batch]) for place in range(rank, count, world)]


def generator(*entropy: int, spawn_key: tuple[int, ...] = ()) -> np.random.Generator:
    """A generator that is a pure function of its arguments."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=spawn_key)))


@dataclass(frozen=True)
class BatchRequest:
    """A training batch to read."""

    numbers: tuple[int, ...]
    """Its scenes, as places in the order of the training split."""
    killers: tuple[tuple[int, str], ...] = ()
    """Scenes that must not be read, and why."""


@dataclass(frozen=True)
class TrainingBatches(Source[Batch]):
    """Augmented batches; an index is a :class:`BatchRequest`, or the number of a scene to read alone."""

    manifest: Manifest
    scenes: Sequence[Scene]
    recipe: Recipe
    epoch: int
    modalities: tuple[Modality, ...]

    def item(self, index: BatchRequest | int) -> Batch:
        """A batch; with ``data.max_bad`` other scenes replace unreadable ones.

        These are the next readable scenes in the epoch's order after the batch's own, none of them twice. So the batch
        is a pure function of seed, epoch, its numbers and the files.

        Raises:
            DataError: a scene cannot be read and none may be left out, or too many cannot.
        """
        if isinstance(index, int):
            return _batch([self._sample(index)], self.modalities, (self.scenes[index],))
        samples, scenes, left_out = [], [], []
        killers, others = dict(index.killers), self._others(index)
        for wanted in index.numbers:
            number: int | None = wanted
            while number is not None:
                try:
                    if number in killers:
                        raise DataError(killers[number])
                    samples.append(self._sample(number))
                    scenes.append(self.scenes[number])
                    break
                except DataError as error:
                    if not self._may_leave_out():
                        raise
                    left_out.append(LeftOut(self.scenes[number].id, str(error)))
                    number = next(others, None)
                    if number is None or len(left_out) > self._may_leave_out() + len(index.numbers):
                        raise self._too_many(left_out) from error
        return replace(_batch(samples, self.modalities, tuple(scenes)), left_out=tuple(left_out))

    def name(self, index: BatchRequest | int) -> str:
        """The scenes' ids."""
        return _named(self.scenes[number] for number in ([index] if isinstance(index, int) else index.numbers))

    def parts(self, index: BatchRequest | int) -> Sequence[int]:
        """Its scenes, and as many possible replacements."""
        if isinstance(index, int):
            return (index,)
        others = self._others(index) if self._may_leave_out() else iter(())
        known = {number for number, _ in index.killers}
        more = [number for number, _ in zip(others, index.numbers, strict=False)]
        return [number for number in (*index.numbers, *more) if number not in known]

    def instead(self, index: BatchRequest, lost: Sequence[LostPart]) -> BatchRequest:
        """The same batch without the scenes that crash workers, if some may be left out."""
        if not self._may_leave_out():
            raise lost[0].error
        return replace(index, killers=(*index.killers, *((each.part, str(each.error)) for each in lost)))

    def _may_leave_out(self) -> int:
        """The number of scenes that may be left out; at least one if any may."""
        share = self.recipe.data.max_bad
        return max(1, int(share * len(self.scenes))) if share > 0 else 0

    def _others(self, index: BatchRequest) -> Iterator[int]:
        """The scenes after a batch in the epoch's order that are not in it, each once."""
        order = epoch_order(len(self.scenes), seed=self.recipe.train.seed, epoch=self.epoch)
        after = order.index(index.numbers[-1]) + 1
        yield from (number for number in (*order[after:], *order[:after]) if number not in index.numbers)

    def _too_many(self, left_out: Sequence[LeftOut]) -> DataError:
        limit = f"data.max_bad={self.recipe.data.max_bad:g} of {counted(len(self.scenes), 'scene')}"
        return DataError(
            f"{counted(len(left_out), 'scene')} for a single batch cannot be read, more than {limit}; the first: "
            f"{left_out[0].why}"
        )

    def _sample(self, number: int) -> Sample:
        info, augment = self.manifest.info, self.recipe.augment
        sample = _labeled(self.manifest, self.scenes[number], self.modalities)
        place = self.recipe.train.seed, self.epoch, number
        augmented = transforms.augment(
            transforms.without_left(sample, info.crop),
            modalities=self.modalities,
            augment=augment,
            size=self.recipe.data.image_size,
            rng=generator(*place),
        )
        return degrade.degrade(
            augmented,
            modalities=self.modalities,
            share=augment.degrade,
            generator=lambda key: generator(*place, spawn_key=(DEGRADED, key)),
            sensors={frame: sensor for sensor, frames in self.recipe.sensors.items() for frame in frames},
        )


@dataclass(frozen=True)
class ScoredScenes(Source[ScoredScene]):
    """Scenes with labels, in both protocols; an index is a scene's number."""

    manifest: Manifest
    scenes: Sequence[Scene]
    modalities: tuple[Modality, ...]
    size: int
    tile: bool

    def item(self, index: int) -> ScoredScene:
        """A scene in both protocols."""
        scene, crop = self.scenes[index], self.manifest.info.crop
        sample = _labeled(self.manifest, scene, self.modalities)
        assert sample.label is not None
        scored = transforms.for_scoring(sample, modalities=self.modalities, size=self.size, crop=crop)
        native = torch.from_numpy(sample.label.astype(np.int64))[None]  # (H, W) -> (1, H, W)
        resized = _batch([scored], self.modalities, (scene,))
        is_large = self.tile and _is_large(sample, self.size)
        if crop is None and not is_large:
            return ScoredScene(scene, resized, Batch(resized.frames, native, (scene,)), shares_frames=True)
        frames = _whole(replace(sample, label=None), self.modalities, size=self.size, tile=self.tile)
        whole = _batch([frames], self.modalities, (scene,)).frames
        if crop is None:
            resized = Batch(whole, resized.label, (scene,))
        return ScoredScene(
            scene, resized, Batch(whole, native, (scene,)), shares_frames=crop is None, is_large=is_large
        )

    def name(self, index: int) -> str:
        """The scene's id."""
        return _named([self.scenes[index]])


@dataclass(frozen=True)
class UnlabeledScenes(Source["UnlabeledScene | DataError"]):
    """Scenes for prediction; an index is a scene's number, or an error in its place."""

    root: Path
    scenes: Sequence[Scene]
    modalities: tuple[Modality, ...]
    size: int
    tile: bool

    def item(self, index: int | DataError) -> UnlabeledScene | DataError:
        """A scene, or why it cannot be read."""
        if isinstance(index, DataError):
            return index
        try:
            return self._read(self.scenes[index])
        except DataError as error:
            return error

    def name(self, index: int | DataError) -> str:
        """The scene's id."""
        return "no scene" if isinstance(index, DataError) else _named([self.scenes[index]])

    def instead(self, index: int, lost: Sequence[LostPart]) -> DataError:  # noqa: ARG002  (the fault names its scene)
        """The error itself; the next scenes follow."""
        return lost[0].error

    def _read(self, scene: Scene) -> UnlabeledScene:
        present = tuple(modality for modality in self.modalities if modality.name in scene.files)
        if not present:
            wanted = ", ".join(modality.name for modality in self.modalities)
            raise DataError(f"scene {scene.id}: has none of the modalities {wanted} (it has: {', '.join(scene.files)})")
        sample = decode.read_sample(self.root, scene, modalities=present)
        height, width = sample.size
        seen = _whole(sample, present, size=self.size, tile=self.tile)
        batch = _batch([seen], present, (scene,))
        is_large = self.tile and _is_large(sample, self.size)
        return UnlabeledScene(scene, batch.frames, tuple(seen.frames), height, width, is_large)


def _named(scenes: Iterable[Scene]) -> str:
    """One scene, or several, in words."""
    ids = [shown(scene.id) for scene in scenes]
    return f"scene {ids[0]}" if len(ids) == 1 else f"scenes {', '.join(ids)}"


def _labeled(manifest: Manifest, scene: Scene, modalities: Sequence[Modality]) -> Sample:
    """A scene's frames and label."""
    try:
        return decode.read_sample(manifest.root, scene, modalities=modalities, labels=manifest.info)
    except DataError as error:
        if scene.label is None or any(modality.name not in scene.files for modality in modalities):
            raise
        line = f"{sign_line(manifest.root, manifest.info.name)} --drop-incomplete"
        raise DataError(f"{error}; fix the file, or leave all such scenes out: {line}") from error


def _whole(sample: Sample, modalities: Sequence[Modality], *, size: int, tile: bool) -> Sample:
    """Whole frames for the network: at its size, or for windows at their own size if that is larger."""
    if tile and _is_large(sample, size):
        return sample
    return transforms.for_prediction(sample, modalities=modalities, size=size)


def _is_large(sample: Sample, size: int) -> bool:
    """Whether a frame at its own size is at least as large as a window."""
    return min(sample.size) >= size


def _batch(samples: Sequence[Sample], modalities: Sequence[Modality], scenes: tuple[Scene, ...]) -> Batch:
    """Stack samples of one size."""
    frames = [
        torch.stack(
            [
                transforms.to_tensor(sample.frames[modality.name], modality, invalid=sample.invalid.get(modality.name))
                for sample in samples
            ]
        )
        for modality in modalities
    ]
    labels = [torch.from_numpy(sample.label.astype(np.int64)) for sample in samples if sample.label is not None]
    return Batch(frames, torch.stack(labels) if labels else None, scenes)
