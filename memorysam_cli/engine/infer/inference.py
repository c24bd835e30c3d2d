"""One inference: what a network is shown of each scene, how, where, and how many scenes at once.

torch is imported where a network looks: who only says how it will look waits for no torch.
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
"""Times the size that the weights were trained at, and times the short side: beyond, a word is said."""
LOOKED_AT = 200
"""Scenes whose headers are read for their sizes."""
NAMED_SETS = 4
"""Sets of sensors that a warning names."""
COMPARED = 8
"""Scenes whose values are compared with those that the weights were trained on."""


@dataclass(frozen=True)
class Inference:
    """How a network looks at scenes; validation, evaluation, robustness and prediction pass it on as one value."""

    modalities: tuple[Modality, ...]
    """Those that the network is shown, in the order of its memory."""
    image_size: int
    """Short side in pixels, a multiple of 32."""
    device: torch.device | str
    """Where the network is."""
    known: tuple[Modality, ...] = ()
    """All that the network was trained with, in the order of its memory; empty: ``modalities``."""
    view: View = field(default_factory=View)
    """How scenes are shown to the network."""
    precision: str = "fp32"
    """Of the computing, as of :func:`~memorysam_cli.engine.runtime.computing`."""
    batch: int = 4
    """Consecutive scenes of one size that share a forward pass, at most."""
    workers: int = 2
    """Processes that read ahead; 0 reads in this one."""

    @property
    def sensors(self) -> list[int]:
        """The places of ``modalities`` among all that the network was trained with."""
        return sensors_of(self.modalities, self.known or self.modalities)

    @property
    def stride(self) -> int:
        """Scenes that may share a forward pass: of large frames at their own resolution the logits are gigabytes."""
        return 1 if self.view.tile else self.batch

    def shown(self, network: Network, *, modalities: Sequence[Modality] | None = None, is_large: bool = False) -> Shown:
        """A network that takes frames as they are read, and sees them as the view says.

        Args:
            network: takes frames as plain evaluation gives them.
            modalities: of the frames that will be given; none: all of this inference's.
            is_large: the frames keep their own resolution, and so are seen through windows.
        """
        return show(
            network, dataclasses.replace(self.view, tile=self.view.tile and is_large),
            modalities=self.modalities if modalities is None else modalities, known=self.known or self.modalities,
            size=self.image_size,
        )  # fmt: skip

    def computing(self) -> AbstractContextManager[None]:
        """Compute in the precision, as long as the context is open."""
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
    """What is given for a sensor that is fed as several frames (``ms``), for each of them (``ms-1``, ``ms-2``).

    Args:
        given: by name; what no sensor has stays as it is.
        known: the modalities of the weights.
    """
    found: dict[str, Value] = {}
    for name, value in given.items():
        frames = [frame for frame in known if sensor_of(frame) == name] if name not in known else []
        found |= dict.fromkeys(frames or [name], value)
    return found


def choose_modalities(known: Sequence[Modality], names: Sequence[str] | None) -> tuple[Modality, ...]:
    """The modalities of ``--modalities``, in the order in which the weights' memory sees them.

    Args:
        known: those of the weights.
        names: in any order, ``ms`` for all of ``ms-1``, ``ms-2``, …; None means all.

    Raises:
        UsageError: the weights know no such modality.
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
    """Which sensors of scenes hold other values than the weights were trained on; looks into a few scenes.

    Args:
        known: the data set of the weights' card; one of an earlier version has no ranges, and nothing is read.
        root: what the scenes' paths are relative to.
        scenes: what the network will be shown.
        modalities: of the weights.
        strict: refuse instead.

    Raises:
        DataError: there are such sensors, and ``strict``.
    """
    judged = [modality for modality in modalities if modality.name in known.ranges]
    return compared(known, value_ranges(root, scenes, judged, most=COMPARED), strict=strict)


def compared(known: DatasetInfo, found: Mapping[str, ValueRange], *, strict: bool) -> list[str]:
    """As :func:`unlike_training`, of ranges that are known already."""
    lines = strangers(known.ranges, found)
    if lines and strict:
        more = f" (and {counted(len(lines) - 1, 'more sensor')})" if len(lines) > 1 else ""
        raise DataError(f"{lines[0]}{more}; --strict refuses that")
    return lines


def untrained_sets(
    recipe: Recipe, scenes: Iterable[Scene], view: View, *, chosen: Collection[str]
) -> dict[tuple[str, ...], int]:  # fmt: skip
    """The sets of sensors that a network is shown and was never trained for, each with its number of scenes.

    Args:
        recipe: of the weights; one of an earlier version trained for all of its sensors only.
        scenes: may lack sensors.
        view: says what becomes of those.
        chosen: names of the sensors that the network may be shown.
    """
    known = [name for name in recipe.data.modalities if name in chosen]
    seen = Counter(tuple(name for name in known if name in scene.files) for scene in scenes)
    zeroed = view.missing == "zero"
    return {names: count for names, count in seen.most_common() if names and not recipe.trains_on(names, zeroed=zeroed)}


def tell_untrained(recipe: Recipe, sets: Mapping[tuple[str, ...], int], view: View, *, of: int) -> list[str]:
    """The warning of what :func:`untrained_sets` found; none without any.

    Args:
        recipe: of the weights.
        sets: as it gives them.
        view: as it takes it.
        of: how many scenes there are.
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
    """No gradients, no dropout; the network's mode is restored afterwards, also after an error."""
    import torch

    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(was_training)


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


def frame_sizes(
    scenes: Sequence[Scene], *, root: Path, modalities: Sequence[Modality]
) -> dict[str, tuple[int, int]]:  # fmt: skip
    """Scene → height and width of its frame, by the headers of the first scenes; without those that cannot be read."""
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
    """What is done to frames that the network can hardly see as they are: much too large, or far from square.

    Args:
        frames: scene → height and width.
        size: short side at which the weights were trained, in pixels.
        tile: large frames are seen through windows.
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
