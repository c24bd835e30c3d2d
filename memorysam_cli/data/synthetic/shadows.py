"""Where bodies darken the ground: drawn from above, looked up by place."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from memorysam_cli.data.synthetic.camera import CORNERS
from memorysam_cli.data.synthetic.solids import Solids


@dataclass(frozen=True)
class ShadowMap:
    """Where on the ground the sun and the sky are hidden: looked up by place."""

    dark: np.ndarray
    """(rows, columns) float32 shares 0..1."""
    west: float
    south: float
    cells_per_metre: float

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Share of the light that is hidden at places in metres, (H, W); none off the map."""
        scale = np.float32(self.cells_per_metre)
        column = ((x - np.float32(self.west)) * scale).clip(-9, self.dark.shape[1] + 9)
        row = ((y - np.float32(self.south)) * scale).clip(-9, self.dark.shape[0] + 9)
        return np.asarray(cv2.remap(self.dark, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))


def shadows(solids: Solids, sun: np.ndarray, *, soft_cells: int) -> ShadowMap:
    """Throw every body's shadow on the ground.

    Args:
        solids: N bodies.
        sun: (3,) direction towards the sun; straight up gives the footprints alone.
        soft_cells: width of the blur in map cells.

    Returns:
        A map of 5 cells per metre, 40 m to each side and 110 m ahead.
    """
    west, south, scale = -40.0, -12.0, 5.0
    dark = np.zeros((int(122 * scale), int(80 * scale)), np.uint8)
    cos, sin = solids.turn[:, 0, None], solids.turn[:, 1, None]
    corner = CORNERS[None] * solids.half[:, None]
    z = corner[..., 2] + solids.centre[:, 2, None]
    lift = np.minimum(np.maximum(z, 0), 30) / sun[2]
    x = corner[..., 0] * cos + corner[..., 1] * sin + solids.centre[:, 0, None] - lift * sun[0]
    y = corner[..., 1] * cos - corner[..., 0] * sin + solids.centre[:, 1, None] - lift * sun[1]
    cells = np.stack([(x - west) * scale, (y - south) * scale], axis=-1).round().astype(np.int32)
    for outline in cells:
        cv2.fillConvexPoly(dark, cv2.convexHull(outline), 255)
    blurred = cv2.blur(dark, (soft_cells, soft_cells))
    return ShadowMap(blurred.astype(np.float32) / 255, west, south, scale)
