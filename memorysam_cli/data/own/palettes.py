"""Colours for classes that have none: told apart by everybody, those who see no red or no green too."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from memorysam_cli.dataset import Colour

_LEVELS = 9
"""Steps of red, green and blue among which colours are chosen."""
VISIONS: dict[str, NDArray[np.float64]] = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""How linear red, green and blue are seen. Source: Machado, Oliveira and Fernandes 2009, severity 1."""


def safe(count: int) -> tuple[Colour, ...]:
    """Colours that are easily told apart, from each other and from black and white, in each of :data:`VISIONS`.

    Each is the one that is farthest (CIELAB distance, in the vision where it is nearest) from all before it, so that
    more classes change no colour.
    """
    steps = np.linspace(0, 1, _LEVELS)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = appearances(grid)
    nearest = np.minimum(_distance(seen, 0), _distance(seen, -1))
    chosen = []
    for _ in range(count):
        best = int(np.argmax(nearest))
        red, green, blue = (int(value) for value in np.rint(grid[best] * 255))
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, _distance(seen, best))
    return tuple(chosen)


def appearances(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """How colours look in each of :data:`VISIONS`.

    Args:
        colours: (N, 3) sRGB, 0 to 1.

    Returns:
        (visions, N, 3) CIELAB.
    """
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return np.stack([_lab(np.clip(linear @ vision.T, 0, 1)) for vision in VISIONS.values()])


def _lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) linear RGB -> (N, 3) CIELAB."""
    lab = cv2.cvtColor(linear.astype(np.float32)[None], cv2.COLOR_LRGB2Lab)  # an image of one row
    return np.asarray(lab[0], np.float64)


def _distance(seen: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """(visions, N, 3) -> (N,): how far each colour is from one of them, where they look most alike."""
    distance: NDArray[np.float64] = np.linalg.norm(seen - seen[:, index, None], axis=2).min(axis=0)
    return distance
