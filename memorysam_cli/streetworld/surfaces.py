"""Labels, materials, colors, and the patterns painted on bodies.

Labels are DELIVER's, materials MCubeS'. Classes share colors on purpose, so that color alone does not identify a thing.
Patterns depend only on the place on a body, so that they stick to its surface: windows, bricks, leaves, wheels … are
painted only where a picture shows them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import cv2
import numpy as np

Rng = np.random.Generator
Color = tuple[float, float, float]
"""Linear reflectance of red, green, blue, 0..1."""


class Label(IntEnum):
    """DELIVER's raw label values: class index + 1; 0 is ignored."""

    UNLABELED = 0
    BUILDING = 1
    FENCE = 2
    OTHER = 3
    PEDESTRIAN = 4
    POLE = 5
    ROAD_LINE = 6
    ROAD = 7
    SIDEWALK = 8
    VEGETATION = 9
    CAR = 10
    WALL = 11
    TRAFFIC_SIGN = 12
    SKY = 13
    GROUND = 14
    BRIDGE = 15
    RAIL_TRACK = 16
    GROUND_RAIL = 17
    TRAFFIC_LIGHT = 18
    STATIC = 19
    DYNAMIC = 20
    WATER = 21
    TERRAIN = 22
    TWO_WHEELER = 23
    BUS = 24
    TRUCK = 25


class Material(IntEnum):
    """MCubeS' 20 materials; the value is the class id of its label images."""

    ASPHALT = 0
    CONCRETE = 1
    METAL = 2
    ROAD_MARKING = 3
    FABRIC = 4
    GLASS = 5
    PLASTER = 6
    PLASTIC = 7
    RUBBER = 8
    SAND = 9
    GRAVEL = 10
    CERAMIC = 11
    COBBLESTONE = 12
    BRICK = 13
    GRASS = 14
    WOOD = 15
    LEAF = 16
    WATER = 17
    HUMAN = 18
    SKY = 19


def _table(values: dict[Material, float], *, default: float) -> np.ndarray:
    """One float32 per material, (20,)."""
    return np.array([values.get(material, default) for material in Material], np.float32)


NIR_REFLECTANCE = _table(
    {
        Material.ASPHALT: 0.14,
        Material.METAL: 0.42,
        Material.ROAD_MARKING: 0.7,
        Material.FABRIC: 0.62,
        Material.GLASS: 0.1,
        Material.PLASTER: 0.55,
        Material.RUBBER: 0.05,
        Material.GRASS: 0.78,
        Material.LEAF: 0.88,
        Material.WATER: 0.02,
        Material.HUMAN: 0.6,
        Material.WOOD: 0.5,
        Material.SKY: 0.25,
    },
    default=0.36,
)
"""Share of near-infrared light that a material reflects; leaves are bright, water is dark."""

SHINE = _table(
    {
        Material.GLASS: 1.0,
        Material.WATER: 0.95,
        Material.METAL: 0.6,
        Material.CERAMIC: 0.5,
        Material.PLASTIC: 0.45,
        Material.ROAD_MARKING: 0.25,
        Material.ASPHALT: 0.2,
        Material.RUBBER: 0.2,
        Material.SKY: 0.3,
    },
    default=0.1,
)
"""How mirror-like a material is, 0..1; this polarizes light."""


HUES: tuple[Color, ...] = (
    (0.45, 0.04, 0.03),
    (0.05, 0.12, 0.4),
    (0.06, 0.2, 0.1),
    (0.6, 0.4, 0.05),
    (0.5, 0.18, 0.04),
    (0.04, 0.25, 0.32),
    (0.3, 0.22, 0.14),
)
"""Red, blue, green, yellow, orange, teal, beige."""


def pick_gray(rng: Rng, low: float = 0.08, high: float = 0.5) -> Color:
    """A gray that many classes share: asphalt, concrete, plaster, metal and dirt."""
    level = float(rng.uniform(low, high))
    warm = float(rng.normal(0.0, 0.035))
    return (level * (1 + warm), level, level * (1 - warm))


def pick_paint(rng: Rng) -> Color:
    """A color of cars, clothes and signs; every other one is grayish."""
    if rng.random() < 0.5:
        return pick_gray(rng, 0.03, 0.75)
    hue = HUES[int(rng.integers(len(HUES)))]
    level, wash = float(rng.uniform(0.4, 1.1)), float(rng.uniform(0.0, 0.35))
    red, green, blue = (level * (part + wash * (0.3 - part)) for part in hue)
    return (red, green, blue)


def pick_facade(rng: Rng) -> Color:
    """A color of houses, walls and trailers."""
    level = float(rng.uniform(0.12, 0.5))
    red, blue = rng.uniform(0.85, 1.45), rng.uniform(0.6, 1.0)
    return (level * float(red), level, level * float(blue))


def pick_foliage(rng: Rng) -> Color:
    """Green to brownish."""
    level = float(rng.uniform(0.06, 0.18))
    return (level * float(rng.uniform(0.6, 1.3)), level, level * float(rng.uniform(0.25, 0.6)))


TILE = 256
_ROW = 1024


@lru_cache(maxsize=1)
def _tile() -> np.ndarray:
    """(257, 257) float32 noise of several octaves in -1..1 that repeats without a seam; the same in every world."""
    rng = np.random.Generator(np.random.PCG64(20240503))
    total = np.zeros((TILE, TILE), np.float32)
    for cells, weight in ((8, 1.0), (16, 0.8), (32, 0.7), (64, 0.6), (128, 0.5)):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        padded = np.pad(grid, 2, mode="wrap")
        zoom = TILE // cells
        large = cv2.resize(padded, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        total += np.float32(weight) * large[2 * zoom : -2 * zoom, 2 * zoom : -2 * zoom]
    return np.pad(np.tanh(total / (1.2 * total.std())), (0, 1), mode="wrap").astype(np.float32)


def noise(u: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """Noise at a place.

    Args:
        u: place in meters, float32, any shape.
        v: as ``u``.
        scale: cells of the tile per meter; the coarsest bumps are 32 cells wide, the finest 2.

    Returns:
        Values in -1..1, shape of ``u``, float32.
    """
    # OpenCV samples much faster than NumPy gathers, but wants a picture with sides below 32768.
    columns = min(max(u.size, 1), _ROW)
    maps = np.zeros((2, max(1, -(-u.size // columns)), columns), np.float32)
    for place, flat in zip((u, v), maps.reshape(2, -1), strict=True):
        cells = place.ravel() * np.float32(scale)
        flat[: u.size] = cells - np.floor(cells * np.float32(1 / TILE)) * np.float32(TILE)
    sampled = cv2.remap(_tile(), maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled.ravel()[: u.size].reshape(u.shape))


def chance(u: np.ndarray, v: np.ndarray | int, salt: np.ndarray | int) -> np.ndarray:
    """A repeatable number per cell.

    Args:
        u: cells with integer values, any shape.
        v: as ``u``, or one for all.
        salt: a number for this pattern.

    Returns:
        float32 in 0..1, shape of the arguments together.
    """
    with np.errstate(over="ignore"):
        # A sum: places near each other never share a value before the mixing, which is one-to-one.
        mixed: np.ndarray = np.asarray(
            np.uint32(0x9E3779B1) * _word(u) + np.uint32(0x85EBCA77) * _word(v) + np.uint32(0xC2B2AE3D) * _word(salt)
        )
        mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
        mixed = (mixed ^ (mixed >> np.uint32(12))) * np.uint32(0x297A2D39)
        mixed ^= mixed >> np.uint32(15)
    return np.asarray((mixed >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24))


def _word(value: np.ndarray | int) -> np.ndarray:
    """Integers as 32-bit words, negative ones wrapped around."""
    return np.asarray(value).astype(np.int64).astype(np.uint32)


def phase(value: np.ndarray, period: np.ndarray | float) -> np.ndarray:
    """Position within a repeating period, 0..1."""
    share = value / period
    return np.asarray(share - np.floor(share))


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


@dataclass
class Patch:
    """The pixels that show solids, as flat arrays of n: place on the body, and texture."""

    u: np.ndarray
    """Meters along the face, from its middle."""
    v: np.ndarray
    """Meters above the foot."""
    local: np.ndarray
    """(n, 3) meters from the body's center, in its own frame."""
    size: np.ndarray
    """(n, 3) full extents."""
    face: np.ndarray
    """0 right or left, 1 front or back, 2 top or bottom."""
    is_front: np.ndarray
    detail: np.ndarray
    """1 near by, towards 0 far away."""
    body: np.ndarray
    salt: int
    color: np.ndarray
    material: np.ndarray
    glow: np.ndarray
    signal: np.ndarray


Painter = Callable[[Patch], None]


def paint_patch(patch: Patch, texture: np.ndarray) -> None:
    """Change color, material and glow in place, by each pixel's texture (n,)."""
    patch.color *= (1 + 0.14 * patch.detail * noise(patch.u + np.float32(0.7) * patch.body, patch.v, scale=16))[:, None]
    for kind, painter in PAINTERS.items():
        chosen = np.flatnonzero(texture == kind)
        if chosen.size:
            _apply(patch, chosen, painter)


def _apply(patch: Patch, chosen: np.ndarray, painter: Painter) -> None:
    """Apply a painter to some of the pixels."""
    fields = ("u", "v", "local", "size", "face", "is_front", "detail", "body", "color", "material", "glow", "signal")
    piece = Patch(salt=patch.salt, **{name: getattr(patch, name)[chosen] for name in fields})
    painter(piece)
    for name in ("color", "material", "glow", "signal"):
        getattr(patch, name)[chosen] = getattr(piece, name)


def _glaze(patch: Patch, pane: np.ndarray) -> None:
    """Turn some pixels into window glass."""
    patch.color[pane] = (0.035, 0.045, 0.055)
    patch.material[pane] = Material.GLASS


def _windows(patch: Patch) -> None:
    """Rows of windows, some of them lit at night; a door or a shop front below."""
    draw = chance(patch.body, 1, patch.salt)
    wide, tall = 1.8 + 1.8 * draw, 2.7 + 0.8 * chance(patch.body, 2, patch.salt)
    across, up = phase(patch.u + 100, wide), phase(patch.v, tall)
    side = patch.face != 2
    pane = side & (np.abs(across - 0.5) < 0.27) & (np.abs(up - 0.55) < 0.24)
    frame = side & ~pane & (np.abs(across - 0.5) < 0.31) & (np.abs(up - 0.55) < 0.29)
    patch.color[frame] *= 1.35
    cell = chance(np.floor((patch.u + 100) / wide), np.floor(patch.v / tall), patch.body)
    _glaze(patch, pane)
    patch.glow[pane & (cell < 0.28)] = 0.55


def _bricks(patch: Patch) -> None:
    """Courses of bricks with light joints."""
    row = np.floor(patch.v / 0.28)
    joint = (phase(patch.v, 0.28) < 0.16) | (phase(patch.u + 0.3 * row, 0.6) < 0.08)
    patch.color *= np.where(joint, 1 + 0.5 * patch.detail, 1 - 0.1 * patch.detail)[:, None]
    tone = chance(np.floor((patch.u + 0.3 * row) / 0.6), row, patch.salt) - 0.5
    patch.color *= (1 + 0.4 * patch.detail * tone)[:, None]


def _planks(patch: Patch) -> None:
    """Upright boards."""
    gap = phase(patch.u, 0.22) < 0.14
    tone = chance(np.floor(patch.u / 0.22), 0, patch.salt) - 0.5
    patch.color *= (np.where(gap, 1 - 0.7 * patch.detail, 1.0) * (1 + 0.4 * patch.detail * tone))[:, None]


def _panels(patch: Patch) -> None:
    """Large dark panels: on walls and trailers, much like windows."""
    panel = (np.abs(phase(patch.u + 50, 1.5) - 0.5) < 0.3) & (np.abs(phase(patch.v, 1.6) - 0.55) < 0.28)
    patch.color[panel & (patch.face != 2)] *= 0.45


def _leaves(patch: Patch) -> None:
    """Light and dark leaves."""
    x, y, z = patch.local.T
    clumps = noise(x + patch.body, z, scale=16) + noise(y, z + patch.body, scale=16) + noise(x, y, scale=16)
    leaves = noise(x, z, scale=90) + noise(y, z, scale=90) + noise(x, y, scale=90)
    inside = 0.6 + 0.6 * patch.v / patch.size[:, 2]
    shade = (1 + 0.28 * clumps + (0.15 + 0.3 * patch.detail) * leaves) * inside
    patch.color *= shade.clip(0.12, 2.2)[:, None]


def _bodywork(patch: Patch) -> None:
    """Wheels at the sides, lights at both ends."""
    half = patch.size[:, 1] / 2
    side, end = patch.face == 0, patch.face == 1
    hub = np.hypot(np.abs(patch.u) - 0.6 * half, patch.v - 0.2)
    wheel = side & (hub < 0.36)
    patch.color[wheel] = (0.025, 0.025, 0.025)
    patch.material[wheel] = Material.RUBBER
    patch.color[side & (hub < 0.18)] = (0.3, 0.3, 0.3)
    patch.color[(patch.v < 0.12) & (patch.face != 2)] *= 0.25
    lamp = end & (np.abs(np.abs(patch.u) - 0.38 * patch.size[:, 0]) < 0.16) & (np.abs(patch.v - 0.55) < 0.1)
    rear, front = lamp & ~patch.is_front, lamp & patch.is_front
    patch.color[rear], patch.color[front] = (0.5, 0.02, 0.02), (0.7, 0.7, 0.65)
    patch.glow[rear], patch.glow[front] = 0.9, 1.6
    plate = end & (np.abs(patch.u) < 0.26) & (np.abs(patch.v - 0.32) < 0.07)
    patch.color[plate] = (0.6, 0.6, 0.55)


def _cabin(patch: Patch) -> None:
    """Glass all round between roof pillars."""
    width = np.where(patch.face == 0, patch.size[:, 1], patch.size[:, 0])
    height = patch.size[:, 2]
    inside = (np.abs(patch.u) < width / 2 - 0.09) & (patch.v < height - 0.08) & (patch.v > 0.04)
    pillar = (patch.face == 0) & (np.abs(patch.u) < 0.05)
    _glaze(patch, inside & (patch.face != 2) & ~pillar)


def _coach(patch: Patch) -> None:
    """A bus: a band of windows, wheels, lights."""
    _bodywork(patch)
    side = (patch.face == 0) & (patch.v > 1.1) & (patch.v < 2.3) & (phase(patch.u, 1.5) > 0.07)
    end = (patch.face == 1) & (patch.v > 1.0) & (patch.v < 2.5) & (np.abs(patch.u) < 1.1)
    _glaze(patch, side | end)
    patch.glow[side] = 0.35


def _sign(patch: Patch) -> None:
    """A white rim and a symbol; the back is bare metal."""
    across, up = patch.u / patch.size[:, 0], patch.v / patch.size[:, 2] - 0.5
    rim = np.maximum(np.abs(across), np.abs(up)) > 0.41
    symbol = (np.abs(across) < 0.22) & (np.abs(up) < 0.1)
    patch.color[rim | symbol] = (0.7, 0.7, 0.7)
    patch.color[patch.is_front & (patch.face == 1)] = (0.3, 0.3, 0.3)
    patch.glow[~patch.is_front] = 0.03  # Signs throw light back.


def _signals(patch: Patch) -> None:
    """Three lamps, one of them lit."""
    lit = np.floor(3 * chance(patch.body, 7, patch.salt))
    level = np.floor(patch.v / patch.size[:, 2] * 3)
    lamp = (np.hypot(patch.u, patch.v - (level + 0.5) * patch.size[:, 2] / 3) < 0.14) & (patch.face == 1)
    bright = lamp & (level == lit)
    patch.color[lamp & ~bright] = (0.06, 0.06, 0.06)
    hues = np.array([(0.05, 0.9, 0.3), (0.9, 0.5, 0.03), (0.95, 0.04, 0.03)], np.float32)
    patch.color[bright] = hues[level[bright].astype(np.int64)]
    patch.signal[bright] = 0.9


def _lamp(patch: Patch) -> None:
    """The head of a street lamp."""
    patch.glow[:] = 2.5


PAINTERS: dict[Texture, Painter] = {
    Texture.WINDOWS: _windows,
    Texture.BRICK: _bricks,
    Texture.PLANKS: _planks,
    Texture.PANELS: _panels,
    Texture.LEAVES: _leaves,
    Texture.BODYWORK: _bodywork,
    Texture.CABIN: _cabin,
    Texture.COACH: _coach,
    Texture.SIGN: _sign,
    Texture.SIGNAL: _signals,
    Texture.LAMP: _lamp,
}
