"""The ground: strips along a bending street, a crossing, lane markings, and low steps between the strips."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from memorysam_cli.data.synthetic.camera import Camera
from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.solids import Colour, Spot
from memorysam_cli.data.synthetic.texture import chance, part

FARTHEST = 600.0
"""Metres of depth beyond which the ground is not drawn."""


class Pattern(IntEnum):
    """How a zone is paved."""

    ROUGH = 0
    SLABS = 1
    COBBLES = 2
    GRASS = 3
    SLEEPERS = 4
    RIPPLES = 5
    PAINT = 6


class Lie(IntEnum):
    """The kinds of ground that every world has: indices of its zones."""

    ROAD = 0
    PAINT = 1
    PAVEMENT = 2
    GREEN = 3
    BARE = 4
    RAILS = 5
    WATER = 6


@dataclass(frozen=True, slots=True)
class Zone:
    """One kind of ground."""

    label: Label
    material: Material
    colour: Colour
    height: float
    """Metres above the carriageway."""
    pattern: Pattern = Pattern.ROUGH


@dataclass(frozen=True, slots=True)
class Crossing:
    """A street that crosses at ``ahead`` metres, ``half_width`` to each side of there."""

    ahead: float
    half_width: float


@dataclass(frozen=True)
class Ground:
    """Strips of zones along a street.

    Args:
        zones: one per :class:`Lie`.
        borders: (n,) ascending lateral borders in metres between strips, as seen from the street's centre line.
        strips: (n + 1, 2) zone of each strip: its usual one, and the one that takes turns with it along the street.
        half_width: metres from the centre line to the kerb.
        lanes: lanes of the carriageway.
        bend: metres by which the street swings to the side, and the metres per radian of that swing.
        crossing: a crossing street, if there is one.
        salt: what makes the alternation of zones this world's own.
        margins: metres beyond the left and the right kerb from where houses and fences may stand.
    """

    zones: tuple[Zone, ...]
    borders: np.ndarray
    strips: np.ndarray
    half_width: float
    lanes: int
    bend: tuple[float, float]
    crossing: Crossing | None
    salt: int
    margins: tuple[float, float]

    def centre(self, y: np.ndarray) -> np.ndarray:
        """Lateral position of the centre line, metres, shape of ``y``."""
        swing, length = self.bend
        return np.float32(swing) * (1 - np.cos(y / np.float32(length)))

    def spot(self, lateral: float, ahead: float) -> Spot:
        """A place given in street coordinates, heading along the street, at carriageway height."""
        swing, length = self.bend
        slope = swing / length * np.sin(ahead / length)
        return Spot(float(self.centre(np.array(ahead, np.float32))) + lateral, ahead, 0.0, float(np.arctan(slope)))

    def zone_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Zone index of places in metres; uint8, shape of ``x``."""
        lateral = x - self.centre(y)
        zone = self._unmarked(lateral, y)
        return np.where((zone == Lie.ROAD) & self._is_marked(lateral, y), Lie.PAINT, zone).astype(np.uint8)

    def lie_at(self, lateral: float, ahead: float) -> Lie:
        """The kind of ground at one place in street coordinates; paint counts as road."""
        return Lie(int(self._unmarked(np.array([lateral], np.float32), np.array([ahead], np.float32))[0]))

    def lane_middles(self) -> list[float]:
        """Lateral middles of the lanes in metres, left to right; those from 0 on go our way."""
        width = 2 * self.half_width / self.lanes
        return [(lane + 0.5) * width - self.half_width for lane in range(self.lanes)]

    def _unmarked(self, lateral: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Zone index of places in street coordinates, without the paint."""
        strip = np.searchsorted(self.borders, lateral)
        turn = chance(np.floor(y / 17), strip, self.salt) < 0.4
        zone = self.strips[strip, turn.astype(np.int64)]
        if self.crossing is not None:
            offset = np.abs(y - self.crossing.ahead) - self.crossing.half_width
            dry = zone != Lie.WATER
            pavement = dry & (offset < 2.5) & (zone != Lie.ROAD)
            zone = np.where(dry & (offset < 0), Lie.ROAD, np.where(pavement, Lie.PAVEMENT, zone))
        return np.asarray(zone)

    def _is_marked(self, lateral: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether paint lies on the carriageway there."""
        lane = 2 * self.half_width / self.lanes
        aside = np.abs(lateral)
        to_line = np.abs(part(lateral / lane + self.lanes / 2 + 0.5, 1.0) - 0.5) * lane
        edge = np.abs(aside - (self.half_width - 0.35)) < 0.09
        marked = edge | ((to_line < 0.1) & (part(y, 6.0) < 0.5) & (aside < self.half_width - 1))
        if self.crossing is not None:
            offset = np.abs(y - self.crossing.ahead) - self.crossing.half_width
            on_street = aside < self.half_width
            stripes = on_street & (offset > 1.0) & (offset < 4.0) & (part(lateral, 1.1) < 0.5)
            stop = on_street & (offset > 5.0) & (offset < 5.45)
            marked = ((marked & (offset > 5.5)) | stripes | stop) & (aside < self.half_width)
        return np.asarray(marked)

    def intersect(self, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """What of the ground the camera sees.

        Returns:
            (H, W) float32 depth in metres, ``inf`` above the horizon, and (H, W) uint8 zone index.
        """
        depth = np.full((camera.height, camera.width), np.inf, np.float32)
        zone = np.zeros(depth.shape, np.uint8)
        horizon = int(np.searchsorted(-camera.rays[2, :, 0], 1e-4))  # No roll: one row for all columns.
        rays, place = camera.rays[:, horizon:], camera.position
        if rays.size == 0:
            return depth, zone

        def reach(height: np.ndarray | np.float32) -> np.ndarray:
            return np.asarray(np.minimum((height - place[2]) / rays[2], np.float32(2 * FARTHEST)))

        def below(reached: np.ndarray) -> np.ndarray:
            return self.zone_at(place[0] + reached * rays[0], place[1] + reached * rays[1])

        # What a ray finds at the greatest height tells at which height to look; what it finds there is the answer,
        # but for the faces of steps, a few pixels high, which take the middle of both heights.
        heights = np.array([kind.height for kind in self.zones], np.float32)
        sought = heights[below(reach(heights.max()))]
        found = below(reach(sought))
        reached = reach((sought + heights[found]) / 2)
        depth[horizon:] = np.where(reached < FARTHEST, reached, np.float32(np.inf))
        zone[horizon:] = found
        return depth, zone
