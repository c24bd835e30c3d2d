"""Scoring: one pass over labelled scenes gives both protocols, every condition and every failure case.

Training's validation and ``memorysam evaluate`` call :func:`evaluate`, so that their numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.loader import ScoredScene, scored_scenes
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.engine.evaluation.counts import Evaluation
from memorysam_cli.engine.evaluation.tally import ProtocolName, Tally
from memorysam_cli.errors import DataError, UsageError, WeightsError, did_you_mean
from memorysam_cli.storage import images

Item = TypeVar("Item")

AT_ONCE = 2**26
"""Logits that are brought to a scene's own size at once: 25 classes of 100 megapixels would be 10 GB."""


class Network(Protocol):
    """What scoring and prediction need of a model, be it loaded from a file or still in training."""

    @property
    def training(self) -> bool:
        """Whether dropout is on."""

    def eval(self) -> Any:
        """Switch dropout off."""

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on, or off."""

    def logits(self, frames: list[Tensor]) -> Tensor:
        """M × (B, 3, H, W) -> (B, K, H, W)."""


def evaluate(
    model: Network,
    manifest: Manifest,
    *,
    scenes: Sequence[Scene],
    modalities: Sequence[Modality],
    image_size: int,
    device: torch.device | str,
    batch: int = 4,
    workers: int = 2,
    accelerator: Accelerator | None = None,
    advance: Callable[[int], object] | None = None,
    tile: bool = False,
    small: Network | None = None,
) -> Evaluation:
    """Score a model on labelled scenes.

    Args:
        model: gives the logits of the data set's K classes; its mode (train or eval) is restored afterwards.
        manifest: the data set of the scenes.
        scenes: all scenes, in every process alike; each process scores its share.
        modalities: what the model is shown, in the order of its memory.
        image_size: short side in pixels, a multiple of 32.
        device: where the model is.
        batch: consecutive scenes of one size that share a forward pass, at most.
        workers: processes that read ahead.
        accelerator: sums the counts of several processes; none for a single one.
        advance: told how many scenes of this process have just been scored.
        tile: large frames keep their own resolution, for a model that looks through windows, one scene at a time.
        small: what sees the other frames; none: the model.

    Returns:
        The same in every process, and for any number of processes.

    Raises:
        DataError: no scenes, a scene without a label or one of the modalities, a file that cannot be used.

    Source: METHOD §5. Both protocols share a forward pass where they see the same frames.
    """
    if not scenes:
        raise DataError(f"{manifest.info.name}: no scenes to evaluate")
    classes = len(manifest.info.classes)
    tally = Tally(scenes, classes=classes)
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    share = scenes[rank::world]  # no padding: a scene counted twice would change the result
    source = scored_scenes(
        manifest, scenes=share, modalities=modalities, size=image_size, workers=workers, tile=tile
    )  # fmt: skip
    plain = model if small is None else small
    with scoring(model):
        for together in batches(source, most=1 if tile else batch, key=_frame_shapes):
            whole = model if together[0].is_large else plain
            _score(together, resized=plain, whole=whole, tally=tally, device=device, root=manifest.root)
            if advance is not None:
                advance(len(together))
    if accelerator is not None:
        tally.add_up(accelerator)
    held = tally.check()
    return Evaluation(
        manifest.info.classes, tuple(scenes), tally.groups, tally.confusions, tally.per_scene, tally.ignored, held
    )  # fmt: skip


def choose_modalities(known: Sequence[Modality], asked: Sequence[str] | None) -> tuple[Modality, ...]:
    """The modalities of ``--modalities``, in the order in which the weights' memory sees them.

    Args:
        known: those of the weights.
        asked: names in any order; None means all.

    Raises:
        UsageError: the weights know no such modality.
    """
    names = [modality.name for modality in known]
    for name in asked or ():
        if name not in names:
            raise UsageError(f"--modalities {name}: the weights know no such modality{did_you_mean(name, names)}")
    return tuple(modality for modality in known if asked is None or modality.name in asked)


def check_classes(trained: DatasetInfo, found: DatasetInfo, *, weights: str) -> None:
    """Refuse to score weights on a data set whose classes are not theirs.

    Raises:
        WeightsError: the classes differ in number, name or order.
    """
    if trained.classes == found.classes:
        return
    differing = next((pair for pair in zip(trained.classes, found.classes, strict=False) if pair[0] != pair[1]), None)
    first = f", the first difference is '{differing[0]}' against '{differing[1]}'" if differing else ""
    raise WeightsError(
        f"{weights}: knows {len(trained.classes)} classes, the prepared data set {found.name} has "
        f"{len(found.classes)}{first}; prepare the data that these weights were trained on"
    )


@contextmanager
def scoring(model: Network) -> Iterator[None]:
    """No gradients, no dropout; the model's mode comes back afterwards, also after an error."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def batches(items: Iterable[Item], *, most: int, key: Callable[[Item], Hashable]) -> Iterator[list[Item]]:
    """Consecutive items with the same key, at most ``most`` at a time; never holds more than that."""
    for _, alike in groupby(items, key):
        together: list[Item] = []
        for item in alike:
            together.append(item)
            if len(together) == most:
                yield together
                together = []
        if together:
            yield together


def own_size(logits: Tensor, *, height: int, width: int) -> Tensor:
    """Bring one scene's logits to its own size: (K, h, w) -> (K, height, width), bilinear as METHOD §5 says."""
    if logits.shape[-2:] == (height, width):
        return logits
    return F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def own_rows(logits: Tensor, *, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """As :func:`own_size`, some rows at a time where all of them would be more than :data:`AT_ONCE` numbers.

    Yields:
        Which rows, and their (K, rows, width); together all of them once. The view is only good until the next one.
    """
    classes, source = logits.shape[0], logits.shape[1]
    count = max(1, AT_ONCE // (classes * width))
    if count >= height or logits.shape[-2:] == (height, width):
        yield slice(0, height), own_size(logits, height=height, width=width)
        return
    for top in range(0, height, count):
        rows = slice(top, min(top + count, height))
        place = torch.arange(rows.start, rows.stop, device=logits.device, dtype=torch.float64)
        place = ((place + 0.5) * (source / height) - 0.5).clamp(min=0)
        above = place.floor().long()
        below, share = (above + 1).clamp(max=source - 1), (place - above).to(logits.dtype)
        between = torch.lerp(logits[:, above], logits[:, below], share[:, None])  # (K, h, w) -> (K, rows, w)
        yield rows, own_size(between, height=between.shape[1], width=width)


def decide(logits: Tensor, *, height: int, width: int) -> Tensor:
    """The class of each pixel of a scene at its own size: (K, h, w) -> (height, width) int64."""
    classes = torch.empty(height, width, dtype=torch.int64, device=logits.device)
    for rows, some in own_rows(logits, height=height, width=width):
        # max, not argmax: the same first best class, and 2.6 times as fast on a CPU.
        classes[rows] = some.max(0).indices
    return classes


def _score(
    together: Sequence[ScoredScene],
    *,
    resized: Network,
    whole: Network,
    tally: Tally,
    device: torch.device | str,
    root: Path,
) -> None:
    """Score scenes whose frames have the same shapes, with a network for each protocol's frames."""
    shared = together[0].shares_frames
    published = _logits(whole if shared else resized, [scene.resized.frames for scene in together], device=device)
    native = published if shared else _logits(whole, [scene.whole.frames for scene in together], device=device)
    for index, scored in enumerate(together):
        seen: tuple[tuple[ProtocolName, Tensor, Tensor | None, int | None], ...] = (
            ("resized", published[index], scored.resized.label, None),
            ("native", native[index], scored.whole.label, _file_pixels(root, scored.scene)),
        )
        for protocol, logits, labels, pixels in seen:
            label = _label(labels, device)
            prediction = decide(logits, height=label.shape[0], width=label.shape[1])
            tally.add(protocol, scored.scene, prediction=prediction, label=label, pixels=pixels)


def _file_pixels(root: Path, scene: Scene) -> int:
    """Height × width of a scene's label, as its file's header says."""
    assert scene.label is not None  # the loader refuses scenes without one
    height, width, _, _ = images.shape(root / scene.label)
    return height * width


def _logits(model: Network, scenes: Sequence[list[Tensor]], *, device: torch.device | str) -> Tensor:
    """B scenes of M × (1, 3, H, W) -> (B, K, H, W) float32, in which half a precision's ties are still told apart."""
    # Moved before they are joined: only what the loader has pinned travels while the device computes.
    moved = ([part.to(device, non_blocking=True) for part in parts] for parts in zip(*scenes, strict=True))
    return model.logits([torch.cat(parts) for parts in moved]).float()


def _label(label: Tensor | None, device: torch.device | str) -> Tensor:
    """(1, H, W) -> (H, W)."""
    assert label is not None  # the loader refuses scenes without one
    return label[0].to(device, non_blocking=True)


def _frame_shapes(scored: ScoredScene) -> Hashable:
    """What must agree for scenes to share a forward pass."""
    return scored.resized.frames[0].shape, scored.whole.frames[0].shape, scored.shares_frames
