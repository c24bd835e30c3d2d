"""The bodies of a world: boxes, ellipsoids and upright cylinders, each turned about the vertical only.

Axes: x to the right, y along the street, z up; metres. A yaw of 0 looks along y, positive turns right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from memorysam_cli.data.synthetic.classes import Label, Material

Colour = tuple[float, float, float]
"""Linear reflectance of red, green, blue, 0..1."""


class Shape(IntEnum):
    """What fills a solid's bounding box."""

    BOX = 0
    ELLIPSOID = 1
    CYLINDER = 2


class Texture(IntEnum):
    """The pattern painted on a solid."""

    PLAIN = 0
    WINDOWS = 1
    BRICK = 2
    PLANKS = 3
    LEAVES = 4
    BODYWORK = 5
    CABIN = 6
    COACH = 7
    SIGN = 8
    SIGNAL = 9
    LAMP = 10
    PANELS = 11


@dataclass(frozen=True, slots=True)
class Spot:
    """A place to stand: position of the foot in metres and heading in radians."""

    x: float
    y: float
    z: float = 0.0
    yaw: float = 0.0

    def beside(self, right: float, ahead: float, up: float = 0.0) -> Spot:
        """The spot displaced in its own frame."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return Spot(self.x + right * cos + ahead * sin, self.y - right * sin + ahead * cos, self.z + up, self.yaw)

    def turned(self, angle: float) -> Spot:
        """The same place, heading ``angle`` radians further to the right."""
        return replace(self, yaw=self.yaw + angle)


@dataclass(frozen=True, slots=True)
class Solid:
    """One body: foot centre, full extents (right, ahead, up) in metres, and what it is made of."""

    foot: Spot
    extent: tuple[float, float, float]
    label: Label
    material: Material
    colour: Colour
    shape: Shape = Shape.BOX
    texture: Texture = Texture.PLAIN
    speed: float = 0.0
    """Metres per second along its own heading."""
    taper: float = 0.0
    """Of boxes: how much of its length the top lacks, 0..1; a windscreen, a pitched roof."""


@dataclass(frozen=True)
class Solids:
    """All bodies of a world as arrays of N rows, for the renderer."""

    shape: np.ndarray
    centre: np.ndarray
    """(N, 3) metres."""
    half: np.ndarray
    """(N, 3) half extents in the body's own frame."""
    turn: np.ndarray
    """(N, 2) cosine and sine of the yaw."""
    velocity: np.ndarray
    """(N, 3) metres per second."""
    taper: np.ndarray
    label: np.ndarray
    material: np.ndarray
    texture: np.ndarray
    colour: np.ndarray
    """(N, 3) linear reflectance."""

    def at(self, seconds: float) -> Solids:
        """The same bodies after their moving ones went on for ``seconds``."""
        return replace(self, centre=self.centre + np.float32(seconds) * self.velocity)


def pack(solids: Sequence[Solid]) -> Solids:
    """Arrange bodies in arrays; (N, ...) in the order given."""
    yaw = np.array([solid.foot.yaw for solid in solids])
    turn = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    half = np.array([solid.extent for solid in solids], np.float32) / 2
    foot = np.array([(solid.foot.x, solid.foot.y, solid.foot.z) for solid in solids], np.float32)
    speed = np.array([solid.speed for solid in solids])
    return Solids(
        shape=np.array([solid.shape for solid in solids], np.uint8),
        centre=foot + half * np.array([0, 0, 1], np.float32),
        half=half,
        turn=turn.astype(np.float32),
        velocity=np.stack([speed * turn[:, 1], speed * turn[:, 0], 0 * speed], axis=1).astype(np.float32),
        taper=np.array([solid.taper for solid in solids], np.float32),
        label=np.array([solid.label for solid in solids], np.uint8),
        material=np.array([solid.material for solid in solids], np.uint8),
        texture=np.array([solid.texture for solid in solids], np.uint8),
        colour=np.array([solid.colour for solid in solids], np.float32),
    )
