"""What the loader gives: tensors of one or several scenes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from memorysam_cli.data.manifest import Scene


@dataclass(frozen=True)
class LeftOut:
    """A scene that cannot be read."""

    scene: str
    """Its id."""
    why: str
    """The message of its fault, one line."""


@dataclass(frozen=True)
class Batch:
    """Scenes of one size."""

    frames: list[Tensor]
    """M × (B, 3, H, W) float32, normalised, in the asked order."""
    label: Tensor | None
    """(B, H, W) int64, 255 counts nowhere."""
    scenes: tuple[Scene, ...]
    left_out: tuple[LeftOut, ...] = ()
    """Scenes that should stand here and cannot be read; others stand in their place (``data.max_bad``)."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        frames = [frame.to(device, non_blocking=True) for frame in self.frames]
        return dataclasses.replace(self, frames=frames, label=label)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which it travels to a device while that computes."""
        label = None if self.label is None else self.label.pin_memory()
        return dataclasses.replace(self, frames=[frame.pin_memory() for frame in self.frames], label=label)


@dataclass(frozen=True)
class ScoredScene:
    """One scene in both evaluation protocols (METHOD §5), each a batch of one."""

    scene: Scene
    resized: Batch
    """Frames and label at the published protocol's size."""
    whole: Batch
    """The whole frame at the network's size, with the label at its own size."""
    shares_frames: bool
    """Both have the same frames, so that one forward pass serves both."""
    is_large: bool = False
    """The whole frame keeps its own resolution, to be seen through windows."""

    def pin_memory(self) -> ScoredScene:
        """The same in page-locked memory."""
        resized, whole = self.resized.pin_memory(), self.whole
        if whole.frames is self.resized.frames:  # one copy serves both
            label = None if whole.label is None else whole.label.pin_memory()
            return dataclasses.replace(self, resized=resized, whole=Batch(resized.frames, label, whole.scenes))
        return dataclasses.replace(self, resized=resized, whole=whole.pin_memory())


@dataclass(frozen=True)
class UnlabelledScene:
    """One scene to be predicted."""

    scene: Scene
    frames: list[Tensor]
    """One (1, 3, H, W) float32 for each of ``modalities``."""
    modalities: tuple[str, ...]
    """Those of the asked modalities that the scene has, in the asked order."""
    height: int
    """Of the scene's own frame, in pixels."""
    width: int
    is_large: bool = False
    """The frames keep their own resolution, to be seen through windows."""

    def pin_memory(self) -> UnlabelledScene:
        """The same in page-locked memory."""
        return dataclasses.replace(self, frames=[frame.pin_memory() for frame in self.frames])
