"""What every pixel shows, free of light: depth, label, material, colour, normal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memorysam_cli.data.synthetic.camera import Camera, cast
from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.ground import Ground, Pattern
from memorysam_cli.data.synthetic.solids import Shape, Solids, Texture
from memorysam_cli.data.synthetic.texture import chance, noise, part

SKY = -1
GROUND_TAG = 10_000
"""Tags of ground zones start here; below are indices of solids."""


@dataclass
class Surface:
    """The visible surface; all arrays are (H, W, ...).

    Args:
        camera: the view.
        depth: float32 metres along the optical axis, ``inf`` for sky.
        point: (3, H, W) float32 metres; meaningless for sky.
        normal: (H, W, 3) float32 unit vectors; 0 for sky.
        label: uint8 raw labels.
        material: uint8.
        tag: int32 identity of the body or zone; -1 for sky.
        colour: (H, W, 3) float32 linear reflectance.
        glow: float32 light of its own that shows by night.
        signal: float32 light of its own that always shows.
    """

    camera: Camera
    depth: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    label: np.ndarray
    material: np.ndarray
    tag: np.ndarray
    colour: np.ndarray
    glow: np.ndarray
    signal: np.ndarray

    @property
    def is_sky(self) -> np.ndarray:
        """(H, W) bool."""
        return self.tag == SKY


def survey(camera: Camera, ground: Ground, solids: Solids, *, salt: int) -> Surface:
    """Look at a world: cast the rays, then work out what they meet."""
    depth, zone = ground.intersect(camera)
    index = cast(camera, solids, depth)
    shape = depth.shape
    is_solid, is_sky = index >= 0, np.isinf(depth)
    surface = Surface(
        camera=camera,
        depth=depth,
        point=camera.points(np.where(is_sky, np.float32(0), depth)),
        normal=np.zeros((*shape, 3), np.float32),
        label=np.full(shape, Label.SKY, np.uint8),
        material=np.full(shape, Material.SKY, np.uint8),
        tag=np.where(is_solid, index, np.where(is_sky, SKY, GROUND_TAG + zone.astype(np.int32))),
        colour=np.zeros((*shape, 3), np.float32),
        glow=np.zeros(shape, np.float32),
        signal=np.zeros(shape, np.float32),
    )
    _lay_ground(surface, ground, zone)
    _paint_solids(surface, solids, salt=salt)
    return surface


def _lay_ground(surface: Surface, ground: Ground, zone: np.ndarray) -> None:
    """Fill in the pixels that show the ground."""
    where = np.flatnonzero(surface.tag.ravel() >= GROUND_TAG)
    kind = zone.ravel()[where]
    x, y, _ = surface.point.reshape(3, -1)[:, where]
    lateral = x - ground.centre(y)
    zones = ground.zones
    surface.label.ravel()[where] = np.array([z.label for z in zones], np.uint8)[kind]
    surface.material.ravel()[where] = np.array([z.material for z in zones], np.uint8)[kind]
    surface.normal.reshape(-1, 3)[where] = (0, 0, 1)
    colour = np.array([z.colour for z in zones], np.float32)[kind]
    pattern = np.array([z.pattern for z in zones], np.uint8)[kind]
    detail = 1 / (1 + surface.depth.ravel()[where] / 18)  # What is far is smooth, or it would flicker.
    shade = 1 + detail * (0.22 * noise(x, y, scale=24.0) + 0.16 * noise(x, y, scale=5.0))
    shade *= 1 + 0.12 * noise(x, y, scale=1.3)
    joint = (part(lateral, 0.9) < 0.06) | (part(y, 0.9) < 0.06)
    shade = np.where((pattern == Pattern.SLABS) & joint, shade * (1 - 0.45 * detail), shade)
    cobble = chance(np.floor(lateral * 5), np.floor(y * 5), 0) - 0.5
    shade = np.where(pattern == Pattern.COBBLES, shade * (1 + 0.6 * detail * cobble), shade)
    blades = noise(x * 3, y, scale=40.0) * 0.35 * detail
    shade = np.where(pattern == Pattern.GRASS, shade * (1 + blades), shade)
    sleeper = (pattern == Pattern.SLEEPERS) & (part(y, 0.65) < 0.4)
    shade = np.where(sleeper, shade * (1 - 0.5 * detail), shade)
    colour *= shade[:, None].clip(0.2, 2.0)
    rail = (pattern == Pattern.SLEEPERS) & _is_rail(lateral, ground)
    colour[rail] = (0.45, 0.43, 0.42)
    surface.material.ravel()[where[rail]] = Material.METAL
    surface.colour.reshape(-1, 3)[where] = colour
    _tilt_water(surface, where[pattern == Pattern.RIPPLES])


def _is_rail(lateral: np.ndarray, ground: Ground) -> np.ndarray:
    """Whether a place lies on one of the two rails in the middle of its strip."""
    strip = np.searchsorted(ground.borders, lateral)
    borders = np.concatenate([[-1e3], ground.borders, [1e3]]).astype(np.float32)
    middle = (borders[strip] + borders[strip + 1]) / 2
    return np.asarray(np.abs(np.abs(lateral - middle) - 0.75) < 0.09)


def _tilt_water(surface: Surface, where: np.ndarray) -> None:
    """Ripples: normals that sway a little."""
    x, y, _ = surface.point.reshape(3, -1)[:, where]
    tilt = np.stack([0.1 * noise(x, y, scale=20), 0.1 * noise(y, x, scale=14), np.ones_like(x)], axis=1)
    surface.normal.reshape(-1, 3)[where] = tilt / np.linalg.norm(tilt, axis=1, keepdims=True)


@dataclass
class _Patch:
    """The pixels that show solids, as flat arrays of n: place on the body, and what is to be painted."""

    u: np.ndarray
    """Metres along the face, from its middle."""
    v: np.ndarray
    """Metres above the foot."""
    local: np.ndarray
    """(n, 3) metres from the body's centre, in its own frame."""
    size: np.ndarray
    """(n, 3) full extents."""
    face: np.ndarray
    """0 right or left, 1 front or back, 2 top or bottom."""
    is_front: np.ndarray
    detail: np.ndarray
    """1 near by, towards 0 far away."""
    body: np.ndarray
    salt: int
    colour: np.ndarray
    material: np.ndarray
    glow: np.ndarray
    signal: np.ndarray


def _paint_solids(surface: Surface, solids: Solids, *, salt: int) -> None:
    """Fill in the pixels that show bodies."""
    tag = surface.tag.ravel()
    where = np.flatnonzero((tag >= 0) & (tag < GROUND_TAG))
    body = tag[where]
    cos, sin = solids.turn[body].T
    away = surface.point.reshape(3, -1)[:, where].T - solids.centre[body]
    half = solids.half[body]
    local = np.stack([away[:, 0] * cos - away[:, 1] * sin, away[:, 0] * sin + away[:, 1] * cos, away[:, 2]], axis=1)
    unit = local / half
    shape = solids.shape[body]
    normal, face = _normals(unit, half, shape, solids.taper[body])
    turned = np.stack([normal[:, 0] * cos + normal[:, 1] * sin, normal[:, 1] * cos - normal[:, 0] * sin, normal[:, 2]])
    surface.normal.reshape(-1, 3)[where] = turned.T
    along = np.where(face == 0, local[:, 1], local[:, 0])
    patch = _Patch(
        u=np.where(shape == Shape.BOX, along, local[:, 0] + local[:, 1]),
        v=local[:, 2] + half[:, 2],
        local=local,
        size=2 * half,
        face=face,
        is_front=unit[:, 1] > 0,
        detail=1 / (1 + surface.depth.ravel()[where] / 25),
        body=body,
        salt=salt,
        colour=solids.colour[body],
        material=solids.material[body],
        glow=np.zeros(len(where), np.float32),
        signal=np.zeros(len(where), np.float32),
    )
    patch.colour *= (1 + 0.14 * patch.detail * noise(patch.u + np.float32(0.7) * patch.body, patch.v, scale=16))[:, None]
    texture = solids.texture[body]
    for kind, painter in PAINTERS.items():
        chosen = np.flatnonzero(texture == kind)
        if chosen.size:
            _apply(patch, chosen, painter)
    surface.label.ravel()[where] = solids.label[body]
    surface.material.ravel()[where] = patch.material
    surface.colour.reshape(-1, 3)[where] = patch.colour
    surface.glow.ravel()[where] = patch.glow
    surface.signal.ravel()[where] = patch.signal


def _normals(unit: np.ndarray, half: np.ndarray, shape: np.ndarray, taper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normals in the bodies' own frames from places on their unit shapes, and the dominant axis of each."""
    reach = np.abs(unit)
    reach[:, 1] += taper / 2 * (unit[:, 2] + 1)
    face = reach.argmax(axis=1)
    rows = np.arange(len(face))
    flat = np.zeros_like(unit)
    flat[rows, face] = np.sign(unit[rows, face])
    is_slope = (taper > 0) & (face == 1)
    slope = np.stack([0 * taper, np.sign(unit[:, 1]) / half[:, 1], taper / 2 / half[:, 2]], axis=1)[is_slope]
    flat[is_slope] = slope / np.linalg.norm(slope, axis=1, keepdims=True)
    bulge = unit / half
    is_side = (shape == Shape.CYLINDER) & (np.abs(unit[:, 2]) < 0.999)
    bulge[is_side, 2] = 0
    bulge /= np.maximum(np.linalg.norm(bulge, axis=1, keepdims=True), 1e-9)
    is_round = (shape == Shape.ELLIPSOID) | is_side
    top = (shape == Shape.CYLINDER) & ~is_side
    flat[top] = (0, 0, 1)
    return np.where(is_round[:, None], bulge, flat).astype(np.float32), face


Painter = Callable[[_Patch], None]


def _apply(patch: _Patch, chosen: np.ndarray, painter: Painter) -> None:
    """Let a painter work on some of the pixels."""
    fields = ("u", "v", "local", "size", "face", "is_front", "detail", "body", "colour", "material", "glow", "signal")
    piece = _Patch(salt=patch.salt, **{name: getattr(patch, name)[chosen] for name in fields})
    painter(piece)
    for name in ("colour", "material", "glow", "signal"):
        getattr(patch, name)[chosen] = getattr(piece, name)


def _glaze(patch: _Patch, pane: np.ndarray) -> None:
    """Turn some pixels into window glass."""
    patch.colour[pane] = (0.035, 0.045, 0.055)
    patch.material[pane] = Material.GLASS


def _windows(patch: _Patch) -> None:
    """Rows of windows, some of them lit at night; a door or a shop front below."""
    draw = chance(patch.body, 1, patch.salt)
    wide, tall = 1.8 + 1.8 * draw, 2.7 + 0.8 * chance(patch.body, 2, patch.salt)
    across, up = part(patch.u + 100, wide), part(patch.v, tall)
    side = patch.face != 2
    pane = side & (np.abs(across - 0.5) < 0.27) & (np.abs(up - 0.55) < 0.24)
    frame = side & ~pane & (np.abs(across - 0.5) < 0.31) & (np.abs(up - 0.55) < 0.29)
    patch.colour[frame] *= 1.35
    cell = chance(np.floor((patch.u + 100) / wide), np.floor(patch.v / tall), patch.body)
    _glaze(patch, pane)
    patch.glow[pane & (cell < 0.28)] = 0.55


def _bricks(patch: _Patch) -> None:
    """Courses of bricks with light joints."""
    row = np.floor(patch.v / 0.28)
    joint = (part(patch.v, 0.28) < 0.16) | (part(patch.u + 0.3 * row, 0.6) < 0.08)
    patch.colour *= np.where(joint, 1 + 0.5 * patch.detail, 1 - 0.1 * patch.detail)[:, None]
    tone = chance(np.floor((patch.u + 0.3 * row) / 0.6), row, patch.salt) - 0.5
    patch.colour *= (1 + 0.4 * patch.detail * tone)[:, None]


def _planks(patch: _Patch) -> None:
    """Upright boards."""
    gap = part(patch.u, 0.22) < 0.14
    tone = chance(np.floor(patch.u / 0.22), 0, patch.salt) - 0.5
    patch.colour *= (np.where(gap, 1 - 0.7 * patch.detail, 1.0) * (1 + 0.4 * patch.detail * tone))[:, None]


def _panels(patch: _Patch) -> None:
    """Large dark panels: on walls and trailers, much like windows."""
    panel = (np.abs(part(patch.u + 50, 1.5) - 0.5) < 0.3) & (np.abs(part(patch.v, 1.6) - 0.55) < 0.28)
    patch.colour[panel & (patch.face != 2)] *= 0.45


def _leaves(patch: _Patch) -> None:
    """Light and dark leaves."""
    x, y, z = patch.local.T
    clumps = noise(x + patch.body, z, scale=16) + noise(y, z + patch.body, scale=16) + noise(x, y, scale=16)
    leaves = noise(x, z, scale=90) + noise(y, z, scale=90) + noise(x, y, scale=90)
    inside = 0.6 + 0.6 * patch.v / patch.size[:, 2]
    shade = (1 + 0.28 * clumps + (0.15 + 0.3 * patch.detail) * leaves) * inside
    patch.colour *= shade.clip(0.12, 2.2)[:, None]


def _bodywork(patch: _Patch) -> None:
    """Wheels at the sides, lights at both ends."""
    half = patch.size[:, 1] / 2
    side, end = patch.face == 0, patch.face == 1
    hub = np.hypot(np.abs(patch.u) - 0.6 * half, patch.v - 0.2)
    wheel = side & (hub < 0.36)
    patch.colour[wheel] = (0.025, 0.025, 0.025)
    patch.material[wheel] = Material.RUBBER
    patch.colour[side & (hub < 0.18)] = (0.3, 0.3, 0.3)
    patch.colour[(patch.v < 0.12) & (patch.face != 2)] *= 0.25
    lamp = end & (np.abs(np.abs(patch.u) - 0.38 * patch.size[:, 0]) < 0.16) & (np.abs(patch.v - 0.55) < 0.1)
    rear, front = lamp & ~patch.is_front, lamp & patch.is_front
    patch.colour[rear], patch.colour[front] = (0.5, 0.02, 0.02), (0.7, 0.7, 0.65)
    patch.glow[rear], patch.glow[front] = 0.9, 1.6
    plate = end & (np.abs(patch.u) < 0.26) & (np.abs(patch.v - 0.32) < 0.07)
    patch.colour[plate] = (0.6, 0.6, 0.55)


def _cabin(patch: _Patch) -> None:
    """Glass all round between roof pillars."""
    width = np.where(patch.face == 0, patch.size[:, 1], patch.size[:, 0])
    height = patch.size[:, 2]
    inside = (np.abs(patch.u) < width / 2 - 0.09) & (patch.v < height - 0.08) & (patch.v > 0.04)
    pillar = (patch.face == 0) & (np.abs(patch.u) < 0.05)
    _glaze(patch, inside & (patch.face != 2) & ~pillar)


def _coach(patch: _Patch) -> None:
    """A bus: a band of windows, wheels, lights."""
    _bodywork(patch)
    side = (patch.face == 0) & (patch.v > 1.1) & (patch.v < 2.3) & (part(patch.u, 1.5) > 0.07)
    end = (patch.face == 1) & (patch.v > 1.0) & (patch.v < 2.5) & (np.abs(patch.u) < 1.1)
    _glaze(patch, side | end)
    patch.glow[side] = 0.35


def _sign(patch: _Patch) -> None:
    """A white rim and a symbol; the back is bare metal."""
    across, up = patch.u / patch.size[:, 0], patch.v / patch.size[:, 2] - 0.5
    rim = np.maximum(np.abs(across), np.abs(up)) > 0.41
    symbol = (np.abs(across) < 0.22) & (np.abs(up) < 0.1)
    patch.colour[rim | symbol] = (0.7, 0.7, 0.7)
    patch.colour[patch.is_front & (patch.face == 1)] = (0.3, 0.3, 0.3)
    patch.glow[~patch.is_front] = 0.03  # Signs throw light back.


def _signals(patch: _Patch) -> None:
    """Three lamps, one of them lit."""
    lit = np.floor(3 * chance(patch.body, 7, patch.salt))
    level = np.floor(patch.v / patch.size[:, 2] * 3)
    lamp = (np.hypot(patch.u, patch.v - (level + 0.5) * patch.size[:, 2] / 3) < 0.14) & (patch.face == 1)
    bright = lamp & (level == lit)
    patch.colour[lamp & ~bright] = (0.06, 0.06, 0.06)
    hues = np.array([(0.05, 0.9, 0.3), (0.9, 0.5, 0.03), (0.95, 0.04, 0.03)], np.float32)
    patch.colour[bright] = hues[level[bright].astype(np.int64)]
    patch.signal[bright] = 0.9


def _lamp(patch: _Patch) -> None:
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
