"""A scene in memory, before it becomes tensors; imports no torch, so that ``prepare`` need not wait for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """A scene's arrays, all of one height and width."""

    frames: dict[str, Array]
    """Modality → (H, W, 3) uint8, uint16 or float32, in the recipe's order."""
    label: Array | None
    """(H, W) uint8, 255 counts nowhere."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        height, width = next(iter(self.frames.values())).shape[:2]
        return height, width
