"""The published sensor-failure benchmarks: every set of missing sensors, missing elements, and noise.

Source: DATASETS §1.6 (EMM, RMM, NM of arXiv 2503.18445), §1.7 (the mean over all sets of sensors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli import laws
from memorysam_cli.data.loader import scored_scenes
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.engine.evaluation import metrics
from memorysam_cli.engine.evaluation.scoring import batches, scoring
from memorysam_cli.engine.evaluation.tally import ProtocolName
from memorysam_cli.engine.robustness.corruption import Draw, Extremes
from memorysam_cli.engine.robustness.one_batch import Bench
from memorysam_cli.engine.robustness.sensor_sets import Cell, Kind, Missing, plan_of
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.model.network import MemorySAM

PROBABILITIES = (0.2, 0.1, 0.05)
"""Of one sensor's failing, in the expected values."""


@dataclass(frozen=True)
class Spread:
    """A figure over the repeats."""

    mean: float
    std: float | None
    """Of the sample; None with one repeat."""


@dataclass(frozen=True)
class Robustness:
    """The counts of a benchmark, from which its figures follow."""

    kind: Kind
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    missing: Missing
    """What a missing sensor means; ``rmm`` and ``nm`` read it nowhere."""
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
        """How often the random draws were made."""
        return self.confusions.shape[0]

    @property
    def laws(self) -> laws.Report:
        """Whatever sensors are missing, the same pixels are scored."""
        truth = self.confusions.sum(dim=-1).reshape(-1, len(self.classes))  # (repeats · cells, K)
        least, most = (int(each.values.sum()) for each in (truth.min(dim=0), truth.max(dim=0)))
        return laws.check({"pixels of each class, in any set of sensors = in any other": (least, most)})

    @property
    def levels(self) -> tuple[str | None, ...]:
        """In the order of the cells."""
        return tuple(dict.fromkeys(cell.level for cell in self.cells))

    @property
    def has_sets(self) -> bool:
        """Whether there is a figure for each set of missing sensors."""
        return self.kind != "nm"

    def names(self, cell: Cell) -> tuple[str, ...]:
        """The missing modalities of a cell."""
        return tuple(self.modalities[place] for place in cell.missing)

    def miou(self, cell: Cell, *, present: bool = False) -> Spread:
        """The mIoU in percent: over all classes, absent ones 0 (as published), or over those with ground truth."""
        return _spread(self._values(cell, present=present))

    def iou(self, cell: Cell) -> tuple[float, ...]:
        """Each class's IoU in percent, the mean over repeats."""
        matrices = self.confusions[:, self.cells.index(cell)]
        each = torch.tensor([metrics.scores(matrix).iou for matrix in matrices], dtype=torch.float64)
        return tuple(each.mean(0).tolist())

    def average(self, level: str | None, *, present: bool = False) -> Spread:
        """The mean over all sets of a level: mIoU^Avg."""
        return self._weighted(level, [1.0] * len(self._of(level)), present=present)

    def expected(self, level: str | None, probability: float, *, present: bool = False) -> Spread:
        """The mean over all sets of a level if each sensor fails with this probability, not all at once: mIoU^E(p)."""
        count = len(self.modalities)
        sizes = [len(cell.missing) for cell in self._of(level)]
        return self._weighted(
            level, [probability**k * (1 - probability) ** (count - k) for k in sizes], present=present
        )  # fmt: skip

    def _of(self, level: str | None) -> list[Cell]:
        return [cell for cell in self.cells if cell.level == level]

    def _values(self, cell: Cell, *, present: bool) -> list[float]:
        """One mIoU per repeat."""
        found = [metrics.scores(matrix) for matrix in self.confusions[:, self.cells.index(cell)]]
        return [each.miou_present if present else each.miou for each in found]

    def _weighted(self, level: str | None, weights: Sequence[float], *, present: bool) -> Spread:
        each = [self._values(cell, present=present) for cell in self._of(level)]
        repeats = zip(*each, strict=True)
        return _spread([sum(w * v for w, v in zip(weights, one, strict=True)) / sum(weights) for one in repeats])


def run(
    model: MemorySAM,
    manifest: Manifest,
    *,
    kind: Kind,
    scenes: Sequence[Scene],
    modalities: Sequence[Modality],
    image_size: int,
    device: torch.device | str,
    batch: int = 4,
    workers: int = 2,
    seed: int = 0,
    repeats: int = 1,
    missing: Missing = "drop",
    noise_extremes: Extremes = "batch",
    protocol: ProtocolName = "resized",
    accelerator: Accelerator | None = None,
    advance: Callable[[int], object] | None = None,
) -> Robustness:
    """Run one of the benchmarks over labelled scenes.

    Args:
        model: its mode (train or eval) is restored afterwards.
        manifest: the data set of the scenes.
        kind: ``any``, every non-empty set of sensors; ``emm``, entirely missing ones (0 after normalisation);
            ``rmm``, elements of the missing ones 0 at random, at three levels; ``nm``, noise on all, at three levels
            and without any.
        scenes: all scenes, in every process alike; each process scores its share.
        modalities: what the model is shown, in the order of its memory.
        image_size: short side in pixels, a multiple of 32.
        device: where the model is.
        batch: consecutive scenes of one size that share a forward pass, at most.
        workers: processes that read ahead.
        seed: of all draws.
        repeats: how often ``rmm`` and ``nm`` are drawn.
        missing: of ``any`` only: the frame is not fed, or 0 after normalisation.
        noise_extremes: whether salt and pepper of ``nm`` are the highest and lowest value of the batch's tensor, as
            published (and so depend on what is in the batch), or of each scene's.
        protocol: the published figures are ``resized``.
        accelerator: sums the counts of several processes; none for a single one.
        advance: told how many scenes of this process have just been scored.

    Returns:
        The same in every process, and for any number of processes and workers; ``nm`` with the batch's extremes
        depends on the batches.

    Raises:
        UsageError: repeats of what has no random draws, or ``missing`` where it means nothing.
        DataError: no scenes, a scene without a label or one of the modalities, a file that cannot be used.

    Source: DATASETS §1.6, §1.7.
    """
    if not scenes:
        raise DataError(f"{manifest.info.name}: no scenes to evaluate")
    if repeats > 1 and kind in ("any", "emm"):
        raise UsageError(f"--repeats {repeats}: nothing in '{kind}' is random; use it with rmm or nm")
    if missing == "zero" and kind in ("rmm", "nm"):
        raise UsageError(f"--missing zero: '{kind}' says itself what becomes of a sensor; use it with any or emm")
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    plan = plan_of(kind, modalities=len(modalities), missing=missing)
    bench = Bench(
        model, plan, modalities=modalities, classes=len(manifest.info.classes), protocol=protocol, device=device,
        draws=[Draw(seed, repeat, extremes=noise_extremes) for repeat in range(repeats)],
    )  # fmt: skip
    share = scenes[rank::world]  # no padding: a scene counted twice would change the result
    source = scored_scenes(manifest, scenes=share, modalities=modalities, size=image_size, workers=workers)
    with scoring(model):
        for together in batches(source, most=batch, key=bench.shape):
            bench.score(together)
            if advance is not None:
                advance(len(together))
    return Robustness(
        kind=kind, classes=manifest.info.classes, modalities=tuple(modality.name for modality in modalities),
        missing=missing, protocol=protocol, scenes=len(scenes), seed=seed, noise_extremes=noise_extremes, batch=batch,
        processes=world, cells=tuple(plan), confusions=bench.counts(accelerator),
    )  # fmt: skip


def _spread(values: Iterable[float]) -> Spread:
    each = torch.tensor(list(values), dtype=torch.float64)
    return Spread(float(each.mean()), float(each.std()) if len(each) > 1 else None)
