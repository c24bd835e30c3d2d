"""One inference: what a network is shown of each scene, how, where, and how many scenes at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.statistics import strangers, value_ranges
from memorysam_cli.dataset import DatasetInfo, Modality, ValueRange
from memorysam_cli.engine import runtime
from memorysam_cli.engine.infer.views import Network, View, show
from memorysam_cli.errors import DataError, UsageError, did_you_mean

Item = TypeVar("Item")
LOOKED_AT = 8
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
    def stride(self) -> int:
        """Scenes that may share a forward pass: of large frames at their own resolution the logits are gigabytes."""
        return 1 if self.view.tile else self.batch

    def shown(
        self, network: Network, *, modalities: Sequence[Modality] | None = None, is_large: bool = False
    ) -> Network:
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
        return runtime.computing(self.precision, torch.device(self.device))

    def logits(self, network: Network, scenes: Iterable[Sequence[Tensor]]) -> Tensor:
        """One forward pass: B scenes of M × (1, 3, H, W), of one size -> (B, K, H, W)."""
        # Moved before they are joined: only what the loader has pinned travels while the device computes.
        moved = ([part.to(self.device, non_blocking=True) for part in parts] for parts in zip(*scenes, strict=True))
        return network.logits([torch.cat(parts) for parts in moved])


def choose_modalities(known: Sequence[Modality], names: Sequence[str] | None) -> tuple[Modality, ...]:
    """The modalities of ``--modalities``, in the order in which the weights' memory sees them.

    Args:
        known: those of the weights.
        names: in any order; None means all.

    Raises:
        UsageError: the weights know no such modality.
    """
    known_names = [modality.name for modality in known]
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
    return compared(known, value_ranges(root, scenes, judged, most=LOOKED_AT), strict=strict)


def compared(known: DatasetInfo, found: Mapping[str, ValueRange], *, strict: bool) -> list[str]:
    """As :func:`unlike_training`, of ranges that are known already."""
    lines = strangers(known.ranges, found)
    if lines and strict:
        more = f" (and {len(lines) - 1} more sensors)" if len(lines) > 1 else ""
        raise DataError(f"{lines[0]}{more}; --strict refuses that")
    return lines


@contextmanager
def inference_mode(network: Network) -> Iterator[None]:
    """No gradients, no dropout; the network's mode is restored afterwards, also after an error."""
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
