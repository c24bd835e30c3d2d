"""The settings of inference: which frames a network sees, how, on which device, and how many scenes at once.

torch is imported only inside the functions that compute.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from memorysam_cli.data import decode
from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.statistics import strangers, value_ranges
from memorysam_cli.data.transforms import LONGEST, seen_size
from memorysam_cli.dataset import DatasetInfo, Modality, ValueRange
from memorysam_cli.engine.infer.views import Network, Shown, View, sensors_of, show
from memorysam_cli.errors import DataError, UsageError, did_you_mean
from memorysam_cli.recipe import Recipe, sensor_of
from memorysam_cli.storage import images
from memorysam_cli.text import counted, few, shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")
Value = TypeVar("Value")
MUCH_LARGER, FAR_FROM_SQUARE = 3, 3
"""Factors of the training size, and of the short side, above which a note is printed."""
LOOKED_AT = 200
"""Number of scenes whose headers are read for their sizes."""
NAMED_SETS = 4
"""Number of sets of sensors that a warning names."""
COMPARED = 8
"""Number of scenes whose values are compared with those in training."""


@dataclass(frozen=True)
class Inference:
    """How a network processes scenes; validation, evaluation, robustness and prediction pass it on as one value."""

    modalities: tuple[Modality, ...]
    """The modalities that the network sees, in the order of its memory."""
    image_size: int
    """Short side in pixels, a multiple of 32."""
    device: torch.device | str
    """The device of the network."""
    known: tuple[Modality, ...] = ()
    """All modalities of training, in the order of the network's memory; empty: ``modalities``."""
    view: View = field(default_factory=View)
    """Scales, flips, tiles and missing modalities."""
    precision: str = "fp32"
    """Precision of the computation, see :func:`~memorysam_cli.engine.runtime.computing`."""
    batch: int = 4
    """The largest number of consecutive scenes of one size in a forward pass."""
    workers: int = 2
    """Number of processes that load data; 0: this process."""

    @property
    def sensors(self) -> list[int]:
        """The places of ``modalities`` among all modalities of training."""
        return sensors_of(self.modalities, self.known or self.modalities)

    @property
    def stride(self) -> int:
        """Number of scenes in a forward pass; 1 for large frames at their own resolution, whose logits are
        gigabytes."""
        return 1 if self.view.tile else self.batch

    def shown(self, network: Network, *, modalities: Sequence[Modality] | None = None, is_large: bool = False) -> Shown:
        """A network that takes frames as they are read, and applies the view.

        Args:
            network: takes frames as in an evaluation without a view.
            modalities: of the frames; none: all modalities of this inference.
            is_large: the frames keep their own resolution, and are processed in windows.
        """
        return show(
            network, dataclasses.replace(self.view, tile=self.view.tile and is_large),
            modalities=self.modalities if modalities is None else modalities, known=self.known or self.modalities,
            size=self.image_size,
        )  # fmt: skip

    def computing(self) -> AbstractContextManager[None]:
        """Compute in this precision while the context is open."""
        import torch

        from memorysam_cli.engine import runtime

        return runtime.computing(self.precision, torch.device(self.device))

    def logits(self, network: Shown, scenes: Iterable[Sequence[Tensor]]) -> Tensor:
        """One forward pass: B scenes of M × (1, 3, H, W), of one size -> (B, K, H, W)."""
        import torch

        # Moved before they are joined: only what the loader has pinned travels while the device computes.
        moved = ([part.to(self.device, non_blocking=True) for part in parts] for parts in zip(*scenes, strict=True))
        return network.logits([torch.cat(parts) for parts in moved])


def by_frame(given: Mapping[str, Value], known: Sequence[str]) -> dict[str, Value]:
    """Values given for a sensor with several frames (``ms``), repeated for each of them (``ms-1``, ``ms-2``).

    Args:
        given: values by name; unknown names do not change.
        known: the modalities of the weights.
    """
    found: dict[str, Value] = {}
    for name, value in given.items():
        frames = [frame for frame in known if sensor_of(frame) == name] if name not in known else []
        found |= dict.fromkeys(frames or [name], value)
    return found


def choose_modalities(known: Sequence[Modality], names: Sequence[str] | None) -> tuple[Modality, ...]:
    """The modalities of ``--modalities``, in the order of the weights' memory.

    Args:
        known: the modalities of the weights.
        names: in any order, ``ms`` for all of ``ms-1``, ``ms-2``, …; None means all.

    Raises:
        UsageError: the weights do not have this modality.
    """
    known_names = [modality.name for modality in known]
    if names is not None:
        names = list(by_frame(dict.fromkeys(names), known_names))
    for name in names or ():
        if name not in known_names:
            hint = did_you_mean(name, known_names)
            raise UsageError(f"--modalities {name}: the weights know no such modality{hint}")
    return tuple(modality for modality in known if names is None or modality.name in names)


def unlike_training(
    known: DatasetInfo, root: Path, scenes: Sequence[Scene], modalities: Sequence[Modality], *, strict: bool
) -> list[str]:
    """The sensors of scenes whose values differ from those in training; reads a few scenes.

    Args:
        known: the data set in the weights' card; that of an earlier version has no ranges, and nothing is read.
        root: the folder to which the scenes' paths are relative.
        scenes: the scenes for the network.
        modalities: of the weights.
        strict: raise instead of returning them.

    Raises:
        DataError: there are such sensors, and ``strict`` is true.
    """
    judged = [modality for modality in modalities if modality.name in known.ranges]
    return compared(known, value_ranges(root, scenes, judged, most=COMPARED), strict=strict)


def compared(known: DatasetInfo, found: Mapping[str, ValueRange], *, strict: bool) -> list[str]:
    """As :func:`unlike_training`, for known ranges."""
    lines = strangers(known.ranges, found)
    if lines and strict:
        more = f" (and {counted(len(lines) - 1, 'more sensor')})" if len(lines) > 1 else ""
        raise DataError(f"{lines[0]}{more}; --strict refuses that")
    return lines


def untrained_sets(
    recipe: Recipe, scenes: Iterable[Scene], view: View, *, chosen: Collection[str]
) -> dict[tuple[str, ...], int]:  # fmt: skip
    """The sets of sensors of these scenes that the network was never trained for, each with its number of scenes.

    Args:
        recipe: of the weights; that of an earlier version trained for all of its sensors only.
        scenes: may lack sensors.
        view: how missing sensors are replaced.
        chosen: names of the sensors that the network may see.
    """
    known = [name for name in recipe.data.modalities if name in chosen]
    seen = Counter(tuple(name for name in known if name in scene.files) for scene in scenes)
    zeroed = view.missing == "zero"
    return {names: count for names, count in seen.most_common() if names and not recipe.trains_on(names, zeroed=zeroed)}


def tell_untrained(recipe: Recipe, sets: Mapping[tuple[str, ...], int], view: View, *, of: int) -> list[str]:
    """The warning for the result of :func:`untrained_sets`; empty without any.

    Args:
        recipe: of the weights.
        sets: from :func:`untrained_sets`.
        view: as for :func:`untrained_sets`.
        of: the number of scenes.
    """
    if not sets:
        return []
    other = "drop" if view.missing == "zero" else "zero"
    words = [f"{'+'.join(names)} ({count:,})" for names, count in sets.items()]
    if all(recipe.trains_on(names, zeroed=other == "zero") for names in sets):
        remedy = f"--missing {other} shows them as training did"
    else:
        remedy = "robust.subset.weight in a recipe trains for missing sensors"
    return [
        f"{sum(sets.values()):,} of {counted(of, 'scene', 'has')} a combination of sensors that these weights were "
        f"never trained for: {few(words, NAMED_SETS)}; expect worse results ({remedy})"
    ]


@contextmanager
def inference_mode(network: Shown) -> Iterator[None]:
    """No gradients, no dropout; afterwards the network's mode is restored, also after an error."""
    import torch

    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


def batches(items: Iterable[Item], *, most: int, key: Callable[[Item], Hashable]) -> Iterator[list[Item]]:
    """Consecutive items with the same key, at most ``most`` at a time; never stores more than that."""
    for _, alike in groupby(items, key):
        together: list[Item] = []
        for item in alike:
            together.append(item)
            if len(together) == most:
                yield together
                together = []
        if together:
            yield together


def frame_sizes(
    scenes: Sequence[Scene], *, root: Path, modalities: Sequence[Modality]
) -> dict[str, tuple[int, int]]:  # fmt: skip
    """Scene → height and width of its frame, from the headers of the first scenes, without unreadable ones."""
    kinds, found = {each.name: each.kind for each in modalities}, {}
    for scene in scenes[:LOOKED_AT]:
        with suppress(DataError):  # reading the scene will say what is wrong with it
            paths = {name: scene.files[name][0] for name in kinds if name in scene.files}
            sizes = {name: images.shape(root / path)[:2] for name, path in paths.items()}
            frame = decode.frame_size(sizes, kinds=kinds, label=None) if sizes else None
            if frame is not None:
                found[scene.id] = frame
    return found


def notes_on_sizes(frames: Mapping[str, tuple[int, int]], *, size: int, tile: bool) -> list[str]:
    """Notes on frames that are resized strongly: much larger than in training, or far from square.

    Args:
        frames: scene → height and width.
        size: short side in training, in pixels.
        tile: large frames are processed in windows.
    """
    whole = {name: frame for name, frame in frames.items() if not tile or min(frame) < size}
    large = {name: frame for name, frame in whole.items() if min(frame) > MUCH_LARGER * size}
    oblong = {name: max(frame) / min(frame) for name, frame in whole.items() if name not in large}
    oblong = {name: share for name, share in oblong.items() if share > FAR_FROM_SQUARE}
    reasons = (
        (list(large), f"more than {MUCH_LARGER} times the {size} px that the weights were trained at"),
        (sorted(oblong, key=lambda name: -oblong[name]), "far from square"),
    )
    notes = []
    for names, why in reasons:
        if names:
            (height, width), count = frames[names[0]], len(names)
            who = f"scene {shown(names[0])}" if count == 1 else f"{count} scenes, such as {shown(names[0])}"
            rows, columns = seen_size(height, width, size=size)
            is_squeezed = max(height, width) > LONGEST * min(height, width)
            squeezed = f", squeezed to {LONGEST} times its short side" if is_squeezed else ""
            remedy = f"--tile shows windows of {size}×{size} px at the image's own resolution"
            if min(height, width) < size:
                remedy = f"cut it into pieces nearer to a square (--tile acts from a short side of {size} px on)"
            notes.append(
                f"{who}: {height}×{width} px, {why}: shown to the network as a whole at {rows}×{columns} px{squeezed}; "
                f"{remedy}"
            )
    return notes
