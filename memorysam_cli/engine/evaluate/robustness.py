"""The published sensor-failure benchmarks: every set of missing sensors, missing elements, and noise.

All failures are counted in one pass, at a fraction of the cost of separate evaluations. Each modality, and each
corruption of it, is encoded once per batch and repeat. Common prefixes of two failures go through the memory once
(:mod:`memorysam_cli.model.memory`).

Source: DATASETS §1.6 (EMM, RMM, NM of arXiv 2503.18445), §1.7 (the mean over all sets of sensors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.loader import Batch, ScoredScene, scored_scenes
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine.evaluate import counts
from memorysam_cli.engine.evaluate.counts import ProtocolName
from memorysam_cli.engine.infer.corruption import NOISES, SHARES, Draw, Extremes, corrupt
from memorysam_cli.engine.infer.decision import class_map
from memorysam_cli.engine.infer.inference import Inference, batches, inference_mode
from memorysam_cli.engine.processes import wait_for_all
from memorysam_cli.errors import DataError, Laws, UsageError, check_laws
from memorysam_cli.model.fusion import Output
from memorysam_cli.model.memory import EncodedFrame
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.recipe import sensor_of

BenchmarkKind = Literal["any", "emm", "rmm", "nm"]
KINDS: tuple[BenchmarkKind, ...] = get_args(BenchmarkKind)
Protocols = Literal["drop", "zero", "both"]
"""How ``any`` replaces a missing sensor: not at all, by zeros, or each in turn."""
DROPPED, ZEROED = "dropped", "zeroed"
"""The levels of ``any`` if both are scored."""
MOST_WITH_ALL_SETS = 6
"""Up to this number of sensors, every set is scored (63 sets). With more: all, each alone, and all but each."""
PROBABILITIES = (0.2, 0.1, 0.05)
"""Probabilities of a single sensor's failure, for the expected values."""

CLEAN, ZERO = "clean", "zero"
"""Variants of a frame besides the levels of corruption."""

Variant = tuple[int, str]
"""A sensor's place, and CLEAN, ZERO or a level of corruption."""


class Cell(NamedTuple):
    """One score of a benchmark: a level (None if the kind has none, or without noise), and the missing sensors."""

    level: str | None
    missing: tuple[int, ...]
    """Places of the missing sensors."""


def missing_sets(count: int) -> list[tuple[int, ...]]:
    """The sets of ``count`` sensors that can be missing, from none to all but one; 15 for four sensors.

    With more than :data:`MOST_WITH_ALL_SETS`: none, one, or all but one.
    """
    sizes = range(count) if has_all_sets(count) else (0, 1, count - 1)
    return [places for size in sizes for places in combinations(range(count), size)]


def has_all_sets(count: int) -> bool:
    """Whether :func:`missing_sets` of this number of sensors has all possible sets."""
    return count <= MOST_WITH_ALL_SETS


def plan_of(kind: BenchmarkKind, *, modalities: int, missing: Protocols) -> dict[Cell, tuple[Variant, ...]]:
    """The scores of a benchmark, and the frames that the memory sees for each."""
    everyone = range(modalities)
    if kind == "nm":
        clean = {Cell(None, ()): tuple((place, CLEAN) for place in everyone)}
        return clean | {Cell(level, ()): tuple((place, level) for place in everyone) for level in NOISES}
    return {
        Cell(level, gone): _fed(everyone, gone, variant)
        for level, variant in _levels(kind, missing).items()
        for gone in missing_sets(modalities)
    }


def _fed(everyone: Iterable[int], gone: Sequence[int], variant: str | None) -> tuple[Variant, ...]:
    """The frames that the memory sees; those of missing sensors as a variant or, if that is None, not at all."""
    seen = [(place, variant if place in gone else CLEAN) for place in everyone]
    return tuple((place, level) for place, level in seen if level is not None)


def _levels(kind: BenchmarkKind, missing: Protocols) -> dict[str | None, str | None]:
    """Each level of a benchmark of missing sensors, with the variant of a missing frame; None: it is left out."""
    if kind == "rmm":
        return {level: level for level in SHARES}
    if kind == "any" and missing == "both":
        return {DROPPED: None, ZEROED: ZERO}
    return {None: None if kind == "any" and missing == "drop" else ZERO}


def run(
    network: MemorySAM,
    manifest: Manifest,
    *,
    scenes: Sequence[Scene],
    inference: Inference,
    kind: BenchmarkKind,
    missing: Protocols | None = None,
    seed: int = 0,
    repeats: int = 1,
    noise_extremes: Extremes = "batch",
    protocol: ProtocolName = "resized",
    accelerator: Accelerator | None = None,
    advance: Callable[[int], object] | None = None,
) -> Robustness:
    """Run one of the benchmarks over labeled scenes.

    Args:
        network: its mode (train or eval) is restored afterwards.
        manifest: the data set of the scenes.
        scenes: all scenes, the same in every process; each process scores its share.
        inference: the settings of inference, without tiles and test-time augmentation.
        kind: ``any``, every non-empty set of sensors; ``emm``, entirely missing sensors (0 after normalization);
            ``rmm``, random elements of the missing sensors are 0, at three levels; ``nm``, noise on all sensors, at
            three levels and without noise.
        missing: how ``any`` replaces a missing sensor: ``drop``, not at all; ``zero``, by 0 after normalization;
            ``both``, each in turn; None: as the view.
        seed: of all draws.
        repeats: number of draws of ``rmm`` and ``nm``.
        noise_extremes: whether salt and pepper of ``nm`` are the highest and lowest value of the batch's tensor (as
            published; the result then depends on the batches), or of each scene's.
        protocol: the published figures are ``resized``.
        accelerator: sums the counts of several processes; None for a single one.
        advance: called with the number of scenes that this process has just scored.

    Returns:
        The same result in every process, for any number of processes and workers. ``nm`` with the batch's extremes
        depends on the batches.

    Raises:
        UsageError: repeats without random draws, or a view that feeds zeros although this has no meaning here.
        DataError: no scenes, a scene without a label or a modality, or a file that cannot be used.

    Source: DATASETS §1.6, §1.7.
    """
    if not scenes:
        raise DataError(f"{manifest.info.name}: no scenes to evaluate")
    missing = missing or inference.view.missing
    _refuse_without_meaning(kind, repeats=repeats, missing=missing)
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    sensors = sensors_in(network, inference)
    plan = plan_of(kind, modalities=len(sensors), missing=missing)
    tally = FailureTally(
        network, plan, inference, classes=len(manifest.info.classes), protocol=protocol,
        draws=[Draw(seed, repeat, extremes=noise_extremes) for repeat in range(repeats)],
    )  # fmt: skip
    with inference_mode(network), inference.computing():
        # No padding: a scene counted twice would change the result.
        for together in tally.read(manifest, scenes[rank::world]):
            tally.add(together)
            if advance is not None:
                advance(len(together))
    return Robustness(
        kind=kind, classes=manifest.info.classes, modalities=tuple(sensors),
        missing=missing, protocol=protocol, scenes=len(scenes), seed=seed, noise_extremes=noise_extremes,
        batch=inference.batch, processes=world, cells=tuple(plan), confusions=tally.counts(accelerator),
    )  # fmt: skip


def _refuse_without_meaning(kind: BenchmarkKind, *, repeats: int, missing: Protocols) -> None:
    if repeats > 1 and kind in ("any", "emm"):
        raise UsageError(f"--repeats {repeats}: nothing in '{kind}' is random; use it with rmm or nm")
    if missing == "zero" and kind in ("rmm", "nm"):
        raise UsageError(f"--missing zero: '{kind}' decides itself how a missing sensor is fed; use it with any or emm")


def sensors_in(network: MemorySAM, inference: Inference) -> dict[str, tuple[int, list[int]]]:
    """The sensors that can fail, each with its place in the memory's order, and the numbers of its frames.

    Frames that the network joins (``model.projection``) belong to one sensor, and fail together.
    """
    names = [modality.name for modality in inference.modalities]
    found = network.projection.groups(inference.sensors)
    return {
        names[numbers[0]] if len(numbers) == 1 else sensor_of(names[numbers[0]]): (place, numbers)
        for place, numbers in found
    }  # fmt: skip


class FailureTally:
    """Scores batches under every failure of a benchmark, and adds the counts up.

    Args:
        network: in eval mode.
        plan: the frames that the memory sees for each score.
        inference: the settings of inference.
        classes: K.
        draws: one per repeat.
        protocol: of frames and labels.
    """

    def __init__(
        self,
        network: MemorySAM,
        plan: Mapping[Cell, Sequence[Variant]],
        inference: Inference,
        *,
        classes: int,
        draws: Sequence[Draw],
        protocol: ProtocolName,
    ) -> None:
        self.network, self.draws, self.protocol, self.classes = network, draws, protocol, classes
        self.inference, self.sensors, self.device = inference, inference.sensors, inference.device
        self.groups = list(sensors_in(network, inference).values())
        # Without missing sensors all levels are equal: it runs once, and counts for each.
        self.cells: dict[tuple[Variant, ...], list[int]] = {}
        for index, variants in enumerate(plan.values()):
            self.cells.setdefault(tuple(variants), []).append(index)
        self.confusions = torch.zeros(len(draws), len(plan), classes, classes, dtype=torch.int64)
        self.pixels = 0
        self._zeros: dict[tuple[int, ...], EncodedFrame] = {}

    def read(self, manifest: Manifest, scenes: Sequence[Scene]) -> Iterator[list[ScoredScene]]:
        """The scenes with their labels, in the batches of :meth:`add`."""
        seen = self.inference
        source = scored_scenes(
            manifest, scenes=scenes, modalities=seen.modalities, size=seen.image_size, workers=seen.workers
        )
        return batches(source, most=seen.batch, key=self.shape)

    def shape(self, scored: ScoredScene) -> tuple[int, ...]:
        """The shapes that must be equal for scenes in the same forward pass."""
        return tuple(self._seen(scored).frames[0].shape)

    def add(self, together: Sequence[ScoredScene]) -> None:
        """Count all scores of one batch, in every repeat."""
        seen = [self._seen(scored) for scored in together]
        scenes = [scored.scene.id for scored in together]
        frames = [torch.cat(each) for each in zip(*(batch.frames for batch in seen), strict=True)]
        labels = [batch.label[0].to(self.device) for batch in seen if batch.label is not None]
        self.pixels += sum(int((label != IGNORE).sum()) for label in labels)
        clean = {(place, CLEAN): frame for place, frame in enumerate(self._encode(frames, range(len(frames))))}
        for repeat, draw in enumerate(self.draws):
            pool = clean | self._others(frames, scenes, draw)
            self._add_all(pool, labels, size=(frames[0].shape[-2], frames[0].shape[-1]), repeat=repeat)

    def counts(self, accelerator: Accelerator | None) -> Tensor:
        """(repeats, figures, K, K) int64, the sums over all processes."""
        confusions, pixels = self.confusions, self.pixels
        if accelerator is not None:
            flat = torch.cat([confusions.flatten(), torch.tensor([pixels])]).to(accelerator.device)
            wait_for_all(accelerator)  # another process may have had the larger scenes
            flat = accelerator.reduce(flat, reduction="sum").cpu()
            confusions, pixels = flat[:-1].view_as(confusions), int(flat[-1])
        counted = confusions.sum((2, 3))
        check_laws(
            {f"pixels of {name} figure = pixels of the labels": (int(sum_), pixels)
             for name, sum_ in (("the least", counted.min()), ("the largest", counted.max()))}
        )  # fmt: skip
        return confusions

    def _seen(self, scored: ScoredScene) -> Batch:
        return scored.resized if self.protocol == "resized" else scored.whole

    def _encode(self, frames: Sequence[Tensor], numbers: Iterable[int]) -> list[EncodedFrame]:
        """The frames with these numbers, encoded and joined per sensor."""
        moved = [frame.to(self.device, non_blocking=True) for frame in frames]
        return self.network.encode(moved, sensors=[self.sensors[number] for number in numbers])

    def _others(self, frames: Sequence[Tensor], scenes: Sequence[str], draw: Draw) -> dict[Variant, EncodedFrame]:
        """All variants of the plan besides the clean ones, encoded one level at a time."""
        wanted = sorted({variant for variants in self.cells for variant in variants if variant[1] != CLEAN})
        encoded: dict[Variant, EncodedFrame] = {}
        for level in dict.fromkeys(level for _, level in wanted):
            variants = [variant for variant in wanted if variant[1] == level]
            if level == ZERO:
                encoded |= {variant: self._zero(frames[0], variant[0]) for variant in variants}
                continue
            numbers = [number for place, _ in variants for number in self.groups[place][1]]
            spoilt = [
                corrupt(frames[number], self.inference.modalities[number], scenes=scenes, level=level, draw=draw)
                for number in numbers
            ]
            encoded |= zip(variants, self._encode(spoilt, numbers), strict=True)
        return encoded

    def _zero(self, frame: Tensor, place: int) -> EncodedFrame:
        """An encoded frame of zeros for a batch like ``frame``, for the sensor at a place; each size is encoded
        once."""
        shape = tuple(frame.shape[1:])
        if shape not in self._zeros:
            # scenes of the same size are consecutive
            self._zeros = {shape: self._encode([torch.zeros(1, *shape)], [0])[0]}
        return self._zeros[shape].expand(frame.shape[0], sensor=self.groups[place][0])

    def _add_all(
        self, pool: dict[Variant, EncodedFrame], labels: Sequence[Tensor], *, size: tuple[int, int], repeat: int
    ) -> None:
        """Run every sequence of frames and add its counts to its scores."""
        wanted = [variants for variants in self.cells if repeat == 0 or _is_random(variants)]
        places = {variant: place for place, variant in enumerate(pool)}
        sequences = [[places[variant] for variant in variants] for variants in wanted]
        for number, output in self.network.outputs(list(pool.values()), sequences):
            variants = wanted[number]
            repeats = [repeat] if _is_random(variants) else range(len(self.draws))
            confusion = self._confusion(output, labels, size=size)
            for each in repeats:
                self.confusions[each, self.cells[variants]] += confusion

    def _confusion(self, output: Output, labels: Sequence[Tensor], *, size: tuple[int, int]) -> Tensor:
        """(K, K) counts of one score over the batch's scenes."""
        total = torch.zeros(self.classes, self.classes, dtype=torch.int64, device=self.device)
        for logits, label in zip(self.network.upsample(output, size=size), labels, strict=True):
            prediction = class_map(logits, height=label.shape[0], width=label.shape[1])
            total += counts.confusion(prediction, label, self.classes)
        return total.cpu()


def _is_random(variants: Sequence[Variant]) -> bool:
    """Whether another draw can change the frames that the memory sees."""
    return any(level not in (CLEAN, ZERO) for _, level in variants)


@dataclass(frozen=True)
class Spread:
    """A score over the repeats."""

    mean: float
    std: float | None
    """Standard deviation of the sample; None with one repeat."""


@dataclass(frozen=True)
class Robustness:
    """The counts of a benchmark, from which its scores are computed."""

    kind: BenchmarkKind
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    missing: Protocols
    """How a missing sensor is replaced; not used by ``rmm`` and ``nm``."""
    protocol: ProtocolName
    scenes: int
    seed: int
    noise_extremes: Extremes
    batch: int
    processes: int
    cells: tuple[Cell, ...]
    confusions: Tensor
    """(repeats, cells, K, K) int64, rows the truth."""

    @property
    def repeats(self) -> int:
        """The number of random draws."""
        return self.confusions.shape[0]

    @property
    def laws(self) -> Laws:
        """The same pixels are scored for every set of missing sensors."""
        truth = self.confusions.sum(dim=-1).reshape(-1, len(self.classes))  # (repeats · cells, K)
        least, most = (int(each.values.sum()) for each in (truth.min(dim=0), truth.max(dim=0)))
        return check_laws({"pixels of each class, in any set of sensors = in any other": (least, most)})

    @property
    def levels(self) -> tuple[str | None, ...]:
        """The levels, in the order of the cells."""
        return tuple(dict.fromkeys(cell.level for cell in self.cells))

    @property
    def has_sets(self) -> bool:
        """Whether there is a score for each set of missing sensors."""
        return self.kind != "nm"

    @property
    def has_all_sets(self) -> bool:
        """Whether these are all possible sets."""
        return self.has_sets and has_all_sets(len(self.modalities))

    def names(self, cell: Cell) -> tuple[str, ...]:
        """The missing modalities of a cell."""
        return tuple(self.modalities[place] for place in cell.missing)

    def miou(self, cell: Cell, *, present: bool = False) -> Spread:
        """The mIoU in %: over all classes, absent ones 0 (as published), or over those with ground truth."""
        return _spread(self._values(cell, present=present))

    def iou(self, cell: Cell) -> tuple[float, ...]:
        """Each class's IoU in %, the mean over repeats."""
        matrices = self.confusions[:, self.cells.index(cell)]
        each = torch.tensor([counts.scores(matrix).iou for matrix in matrices], dtype=torch.float64)
        return tuple(each.mean(0).tolist())

    def average(self, level: str | None, *, present: bool = False) -> Spread:
        """The mean over all sets of a level: mIoU^Avg."""
        return self._weighted(level, [1.0] * len(self._of(level)), present=present)

    def expected(self, level: str | None, probability: float, *, present: bool = False) -> Spread:
        """The expected value over all sets of a level if each sensor fails with this probability, but not all at once:
        mIoU^E(p)."""
        count = len(self.modalities)
        sizes = [len(cell.missing) for cell in self._of(level)]
        return self._weighted(
            level, [probability**k * (1 - probability) ** (count - k) for k in sizes], present=present
        )  # fmt: skip

    def _of(self, level: str | None) -> list[Cell]:
        return [cell for cell in self.cells if cell.level == level]

    def _values(self, cell: Cell, *, present: bool) -> list[float]:
        """One mIoU per repeat."""
        repeats = [counts.scores(matrix) for matrix in self.confusions[:, self.cells.index(cell)]]
        return [each.miou_present if present else each.miou for each in repeats]

    def _weighted(self, level: str | None, weights: Sequence[float], *, present: bool) -> Spread:
        each = [self._values(cell, present=present) for cell in self._of(level)]
        repeats = zip(*each, strict=True)
        return _spread([sum(w * v for w, v in zip(weights, one, strict=True)) / sum(weights) for one in repeats])


def _spread(values: Iterable[float]) -> Spread:
    each = torch.tensor(list(values), dtype=torch.float64)
    return Spread(float(each.mean()), float(each.std()) if len(each) > 1 else None)
