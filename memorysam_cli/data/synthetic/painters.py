"""The patterns on bodies: windows, bricks, leaves, wheels … painted where a picture shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memorysam_cli.data.synthetic.classes import Material
from memorysam_cli.data.synthetic.solids import Texture
from memorysam_cli.data.synthetic.texture import chance, noise, part


@dataclass
class Patch:
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


Painter = Callable[[Patch], None]


def paint(patch: Patch, texture: np.ndarray) -> None:
    """Change colour, material and glow in place, by each pixel's texture (n,)."""
    patch.colour *= (1 + 0.14 * patch.detail * noise(patch.u + np.float32(0.7) * patch.body, patch.v, scale=16))[
        :, None
    ]
    for kind, painter in PAINTERS.items():
        chosen = np.flatnonzero(texture == kind)
        if chosen.size:
            _apply(patch, chosen, painter)


def _apply(patch: Patch, chosen: np.ndarray, painter: Painter) -> None:
    """Let a painter work on some of the pixels."""
    fields = ("u", "v", "local", "size", "face", "is_front", "detail", "body", "colour", "material", "glow", "signal")
    piece = Patch(salt=patch.salt, **{name: getattr(patch, name)[chosen] for name in fields})
    painter(piece)
    for name in ("colour", "material", "glow", "signal"):
        getattr(patch, name)[chosen] = getattr(piece, name)


def _glaze(patch: Patch, pane: np.ndarray) -> None:
    """Turn some pixels into window glass."""
    patch.colour[pane] = (0.035, 0.045, 0.055)
    patch.material[pane] = Material.GLASS


def _windows(patch: Patch) -> None:
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


def _bricks(patch: Patch) -> None:
    """Courses of bricks with light joints."""
    row = np.floor(patch.v / 0.28)
    joint = (part(patch.v, 0.28) < 0.16) | (part(patch.u + 0.3 * row, 0.6) < 0.08)
    patch.colour *= np.where(joint, 1 + 0.5 * patch.detail, 1 - 0.1 * patch.detail)[:, None]
    tone = chance(np.floor((patch.u + 0.3 * row) / 0.6), row, patch.salt) - 0.5
    patch.colour *= (1 + 0.4 * patch.detail * tone)[:, None]


def _planks(patch: Patch) -> None:
    """Upright boards."""
    gap = part(patch.u, 0.22) < 0.14
    tone = chance(np.floor(patch.u / 0.22), 0, patch.salt) - 0.5
    patch.colour *= (np.where(gap, 1 - 0.7 * patch.detail, 1.0) * (1 + 0.4 * patch.detail * tone))[:, None]


def _panels(patch: Patch) -> None:
    """Large dark panels: on walls and trailers, much like windows."""
    panel = (np.abs(part(patch.u + 50, 1.5) - 0.5) < 0.3) & (np.abs(part(patch.v, 1.6) - 0.55) < 0.28)
    patch.colour[panel & (patch.face != 2)] *= 0.45


def _leaves(patch: Patch) -> None:
    """Light and dark leaves."""
    x, y, z = patch.local.T
    clumps = noise(x + patch.body, z, scale=16) + noise(y, z + patch.body, scale=16) + noise(x, y, scale=16)
    leaves = noise(x, z, scale=90) + noise(y, z, scale=90) + noise(x, y, scale=90)
    inside = 0.6 + 0.6 * patch.v / patch.size[:, 2]
    shade = (1 + 0.28 * clumps + (0.15 + 0.3 * patch.detail) * leaves) * inside
    patch.colour *= shade.clip(0.12, 2.2)[:, None]


def _bodywork(patch: Patch) -> None:
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
    side = (patch.face == 0) & (patch.v > 1.1) & (patch.v < 2.3) & (part(patch.u, 1.5) > 0.07)
    end = (patch.face == 1) & (patch.v > 1.0) & (patch.v < 2.5) & (np.abs(patch.u) < 1.1)
    _glaze(patch, side | end)
    patch.glow[side] = 0.35


def _sign(patch: Patch) -> None:
    """A white rim and a symbol; the back is bare metal."""
    across, up = patch.u / patch.size[:, 0], patch.v / patch.size[:, 2] - 0.5
    rim = np.maximum(np.abs(across), np.abs(up)) > 0.41
    symbol = (np.abs(across) < 0.22) & (np.abs(up) < 0.1)
    patch.colour[rim | symbol] = (0.7, 0.7, 0.7)
    patch.colour[patch.is_front & (patch.face == 1)] = (0.3, 0.3, 0.3)
    patch.glow[~patch.is_front] = 0.03  # Signs throw light back.


def _signals(patch: Patch) -> None:
    """Three lamps, one of them lit."""
    lit = np.floor(3 * chance(patch.body, 7, patch.salt))
    level = np.floor(patch.v / patch.size[:, 2] * 3)
    lamp = (np.hypot(patch.u, patch.v - (level + 0.5) * patch.size[:, 2] / 3) < 0.14) & (patch.face == 1)
    bright = lamp & (level == lit)
    patch.colour[lamp & ~bright] = (0.06, 0.06, 0.06)
    hues = np.array([(0.05, 0.9, 0.3), (0.9, 0.5, 0.03), (0.95, 0.04, 0.03)], np.float32)
    patch.colour[bright] = hues[level[bright].astype(np.int64)]
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
