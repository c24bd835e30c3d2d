"""Bodies (boxes, ellipsoids and upright cylinders, rotated only about the vertical) and the camera that sees them.

Axes: x to the right, y along the street, z up; meters. A yaw of 0 looks along y, positive turns right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from itertools import product

import numpy as np

from memorysam_cli.streetworld.surfaces import Color, Label, Material, Texture, noise

NEAREST = 0.3
"""Meters; bodies closer to the camera are not drawn."""
CORNERS = np.array(list(product((-1.0, 1.0), repeat=3)), np.float32)
EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1])


class Shape(IntEnum):
    """What fills a solid's bounding box."""

    BOX = 0
    ELLIPSOID = 1
    CYLINDER = 2


@dataclass(frozen=True, slots=True)
class Spot:
    """A place to stand: position of the foot in meters and heading in radians."""

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
    """A body: foot center, full extents (right, ahead, up) in meters, and material."""

    foot: Spot
    extent: tuple[float, float, float]
    label: Label
    material: Material
    color: Color
    shape: Shape = Shape.BOX
    texture: Texture = Texture.PLAIN
    speed: float = 0.0
    """Meters per second along its own heading."""
    taper: float = 0.0
    """For boxes: the share of its length that the top lacks, 0..1; a windscreen, a pitched roof."""


@dataclass(frozen=True)
class Solids:
    """All bodies of a world as arrays of N rows, for the renderer."""

    shape: np.ndarray
    center: np.ndarray
    """(N, 3) meters."""
    half: np.ndarray
    """(N, 3) half extents in the body's own frame."""
    turn: np.ndarray
    """(N, 2) cosine and sine of the yaw."""
    velocity: np.ndarray
    """(N, 3) meters per second."""
    taper: np.ndarray
    label: np.ndarray
    material: np.ndarray
    texture: np.ndarray
    color: np.ndarray
    """(N, 3) linear reflectance."""

    def corners(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and z in meters of the eight corners of each bounding box, (N, 8) each, in the order of ``EDGES``."""
        cos, sin = self.turn[:, 0, None], self.turn[:, 1, None]
        corner = CORNERS[None] * self.half[:, None]  # (N, 8, 3) in the body's frame
        x = corner[..., 0] * cos + corner[..., 1] * sin + self.center[:, 0, None]
        y = corner[..., 1] * cos - corner[..., 0] * sin + self.center[:, 1, None]
        return x, y, corner[..., 2] + self.center[:, 2, None]

    def at(self, seconds: float) -> Solids:
        """The same bodies after moving ones have moved for ``seconds``."""
        return replace(self, center=self.center + np.float32(seconds) * self.velocity)


def pack(solids: Sequence[Solid]) -> Solids:
    """Arrange bodies in arrays; (N, ...) in the order given."""
    yaw = np.array([solid.foot.yaw for solid in solids])
    turn = np.stack([np.cos(yaw), np.sin(yaw)], axis=1)
    half = np.array([solid.extent for solid in solids], np.float32) / 2
    foot = np.array([(solid.foot.x, solid.foot.y, solid.foot.z) for solid in solids], np.float32)
    speed = np.array([solid.speed for solid in solids])
    return Solids(
        shape=np.array([solid.shape for solid in solids], np.uint8),
        center=foot + half * np.array([0, 0, 1], np.float32),
        half=half,
        turn=turn.astype(np.float32),
        velocity=np.stack([speed * turn[:, 1], speed * turn[:, 0], 0 * speed], axis=1).astype(np.float32),
        taper=np.array([solid.taper for solid in solids], np.float32),
        label=np.array([solid.label for solid in solids], np.uint8),
        material=np.array([solid.material for solid in solids], np.uint8),
        texture=np.array([solid.texture for solid in solids], np.uint8),
        color=np.array([solid.color for solid in solids], np.float32),
    )


@dataclass(frozen=True)
class Camera:
    """Position, direction and frame of the camera.

    Args:
        spot: position of the lens in meters; yaw in radians.
        pitch: radians above the horizontal.
        height: rows of the frame.
        width: columns of the frame.
        focal: focal length in units of the frame's height.
    """

    spot: Spot
    pitch: float
    height: int
    width: int
    focal: float = 0.72

    @cached_property
    def position(self) -> np.ndarray:
        """(3,) float32."""
        return np.array([self.spot.x, self.spot.y, self.spot.z], np.float32)

    @cached_property
    def axes(self) -> np.ndarray:
        """(3, 3) float32: rows are the directions right, up and forward."""
        cos, sin = math.cos(self.spot.yaw), math.sin(self.spot.yaw)
        level, rise = math.cos(self.pitch), math.sin(self.pitch)
        forward = (sin * level, cos * level, rise)
        return np.array([(cos, -sin, 0.0), (-sin * rise, -cos * rise, level), forward], np.float32)

    @cached_property
    def rays(self) -> np.ndarray:
        """(3, H, W) float32 directions whose forward part is 1, so that position + depth * ray is the point seen."""
        focal_px = self.focal * self.height
        across = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2) / focal_px
        down = (np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2) / focal_px
        right, up, forward = self.axes[:, :, None, None]
        rays: np.ndarray = forward + right * across[None, None, :] - up * down[None, :, None]
        return np.ascontiguousarray(rays, np.float32)

    def points(self, depth: np.ndarray) -> np.ndarray:
        """The points seen: (H, W) depth in meters -> (3, H, W)."""
        return np.asarray(self.position[:, None, None] + self.rays * depth)


def frames_of(camera: Camera, solids: Solids) -> tuple[np.ndarray, np.ndarray]:
    """The pixels whose centers each body can cover.

    Returns:
        (N, 4) int rows ``top, bottom, left, right`` (half open; empty if out of sight) and (N,) float nearest depth.
    """
    seen = (np.stack(solids.corners(), axis=-1) - camera.position) @ camera.axes.T  # (N, 8, 3): right, up, forward
    start, end = seen[:, EDGES[:, 0]], seen[:, EDGES[:, 1]]
    # Edges that pierce the near plane: their crossing points bound the visible part.
    crosses = (start[..., 2] < NEAREST) != (end[..., 2] < NEAREST)
    share = (NEAREST - start[..., 2]) / np.where(crosses, end[..., 2] - start[..., 2], 1)
    crossing = start + share[..., None] * (end - start)
    points = np.concatenate([seen, crossing], axis=1)  # (N, 20, 3)
    valid = np.concatenate([seen[..., 2] >= NEAREST, crosses], axis=1)
    ahead = np.where(valid, np.maximum(points[..., 2], NEAREST), 1)
    focal_px = camera.focal * camera.height
    column = camera.width / 2 + focal_px * points[..., 0] / ahead
    row = camera.height / 2 - focal_px * points[..., 1] / ahead
    frames = np.stack(
        [
            np.ceil(np.where(valid, row, np.inf).min(axis=1) - 0.5).clip(0, camera.height),
            np.floor(np.where(valid, row, -np.inf).max(axis=1) + 0.5).clip(0, camera.height),
            np.ceil(np.where(valid, column, np.inf).min(axis=1) - 0.5).clip(0, camera.width),
            np.floor(np.where(valid, column, -np.inf).max(axis=1) + 0.5).clip(0, camera.width),
        ],
        axis=1,
    )
    return frames.astype(np.int64), np.where(valid, points[..., 2], np.inf).min(axis=1)


def cast(camera: Camera, solids: Solids, depth: np.ndarray) -> np.ndarray:
    """Draw all bodies into a depth picture.

    Args:
        camera: the view.
        solids: N bodies.
        depth: (H, W) float32 meters of what is drawn already, ``inf`` where nothing is; changed in place.

    Returns:
        (H, W) int16: the index of the body seen at each pixel, -1 for none.
    """
    index = np.full(depth.shape, -1, np.int16)
    frames, nearest = frames_of(camera, solids)
    visible = np.flatnonzero((frames[:, 1] > frames[:, 0]) & (frames[:, 3] > frames[:, 2]))
    with np.errstate(divide="ignore", invalid="ignore"):
        for body in visible[np.argsort(nearest[visible], kind="stable")]:
            top, bottom, left, right = frames[body]
            window = (slice(top, bottom), slice(left, right))
            if nearest[body] > depth[window].max():
                continue
            entry = _entry(camera, solids, int(body), window)
            hit = entry < depth[window]
            depth[window][hit] = entry[hit]
            index[window][hit] = body
    return index


def _entry(camera: Camera, solids: Solids, body: int, window: tuple[slice, slice]) -> np.ndarray:
    """Depth at which each ray of a window enters a body, ``inf`` where it misses."""
    cos, sin = solids.turn[body]
    half = solids.half[body]
    away = camera.position - solids.center[body]
    origin = np.array([away[0] * cos - away[1] * sin, away[0] * sin + away[1] * cos, away[2]], np.float32) / half
    x, y, z = camera.rays[(slice(None), *window)]
    ray = ((x * (cos / half[0]) - y * (sin / half[0])), (x * (sin / half[1]) + y * (cos / half[1])), z / half[2])
    shape = solids.shape[body]
    taper = solids.taper[body]
    if shape == Shape.BOX and taper > 0:
        spans = [_slab(origin[0], ray[0]), _slab(origin[2], ray[2]), *_slopes(origin, ray, taper / 2)]
    elif shape == Shape.BOX:
        spans = [_slab(origin[axis], ray[axis]) for axis in range(3)]
    elif shape == Shape.CYLINDER:
        spans = [_round(origin[:2], ray[:2])[:2], _slab(origin[2], ray[2])]
    else:
        enter, leave, chord = _round(origin, ray)
        spans = [(enter, leave)]
        if solids.texture[body] == Texture.LEAVES:
            spans.append(_ragged(origin, ray, enter, chord))
    enter, leave = spans[0]
    for other_enter, other_leave in spans[1:]:
        enter, leave = np.maximum(enter, other_enter), np.minimum(leave, other_leave)
    return np.where((enter < leave) & (enter > NEAREST), enter, np.float32(np.inf))


def _slab(origin: float, ray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Span of a ray between the planes -1 and 1."""
    inverse = 1 / ray
    middle, reach = -origin * inverse, np.abs(inverse)
    return middle - reach, middle + reach


def _slopes(origin: np.ndarray, ray: tuple[np.ndarray, ...], lean: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Spans of a ray behind the front and the back plane of a tapered box."""
    spans, infinite = [], np.float32(np.inf)
    for side in (-1, 1):
        toward = side * ray[1] + lean * ray[2]
        meet = (1 - lean - side * origin[1] - lean * origin[2]) / toward
        spans.append((np.where(toward < 0, meet, -infinite), np.where(toward < 0, infinite, meet)))
    return spans


def _round(origin: np.ndarray, ray: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Span of a ray in the unit circle or sphere, and how deep it passes (0 at the rim, 1 through the center)."""
    square = sum(part * part for part in ray)
    along = sum(start * part for start, part in zip(origin, ray, strict=True))
    inside = along * along - square * np.float32((origin * origin).sum() - 1)
    reach = np.sqrt(np.maximum(inside, 0))
    leave = np.where(inside > 0, (-along + reach) / square, -np.float32(np.inf))
    return (-along - reach) / square, leave, inside / square


def _ragged(
    origin: np.ndarray, ray: tuple[np.ndarray, ...], enter: np.ndarray, chord: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Holes near the rim of a tree's crown, as a span that is empty there."""
    x, y, z = (start + enter * part for start, part in zip(origin, ray, strict=True))
    leaves = noise(x + origin[2], z, scale=45) + noise(y, z + origin[2], scale=45) + noise(x, y, scale=45)
    hole = chord < 0.3 + 0.3 * leaves
    infinite = np.float32(np.inf)
    return enter, np.where(hole, -infinite, infinite)
