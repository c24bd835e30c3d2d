"""One world per sequence, and what every pixel shows of it, without light.

A world is a street with its standing and moving things, and the camera's path through it. A surface is depth, label,
material, color and normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memorysam_cli.streetworld.geometry import Camera, Shape, Solids, Spot, cast, pack
from memorysam_cli.streetworld.street import Ground, Pattern, Street, draw_ground
from memorysam_cli.streetworld.surfaces import Label, Material, Patch, Rng, chance, noise, paint_patch, phase

STRIDE = 6.0
"""Meters that the camera drives from one frame to the next."""
SECONDS_PER_FRAME = 0.7


@dataclass(frozen=True)
class World:
    """A street at time 0.

    Args:
        ground: its ground.
        solids: its bodies.
        lamps: (L, 3) float32 positions of the street lamps' heads in meters.
        lane: lateral position of the camera in meters from the center line.
        lens_height: meters above the carriageway.
        pitch: radians of the camera above the horizontal.
        glance: radians by which the camera looks past the street's direction.
        sun: (3,) float32 unit vector towards the sun.
        tint: (3,) float32 color of the light, about 1.
        salt: what makes windows and the like this world's own.
    """

    ground: Ground
    solids: Solids
    lamps: np.ndarray
    lane: float
    lens_height: float
    pitch: float
    glance: float
    sun: np.ndarray
    tint: np.ndarray
    salt: int

    def camera(self, *, frame: int, height: int, width: int, seconds: float = 0.0) -> Camera:
        """The camera of a frame, ``seconds`` after that frame was taken."""
        ahead = STRIDE * (frame + seconds / SECONDS_PER_FRAME)
        spot = self.ground.spot(self.lane, ahead).turned(self.glance + 0.25 * seconds)
        lens = Spot(spot.x, spot.y, self.lens_height, spot.yaw)
        return Camera(lens, self.pitch - 0.1 * seconds, height, width)

    def solids_at(self, *, frame: int, seconds: float = 0.0) -> Solids:
        """The bodies of a frame, ``seconds`` after that frame was taken."""
        return self.solids.at(frame * SECONDS_PER_FRAME + seconds)


def build_world(rng: Rng) -> World:
    """Draw a world."""
    ground = draw_ground(rng)
    street = Street(rng, ground)
    street.furnish()
    ours = [lateral for lateral in ground.lane_middles() if lateral >= 0]
    # Of four lanes the outer ones are lined with parked cars.
    lane = float(rng.choice(ours[:1] if ground.lanes == 4 else ours))
    height, bearing = rng.uniform(0.35, 1.2), rng.uniform(0, 2 * math.pi)
    sun = np.array([math.cos(height) * math.sin(bearing), math.cos(height) * math.cos(bearing), math.sin(height)])
    return World(
        ground=ground,
        solids=pack(street.solids),
        lamps=np.array(street.lamps, np.float32).reshape(-1, 3),
        lane=lane,
        lens_height=float(rng.uniform(1.5, 2.3)),
        pitch=math.radians(float(rng.uniform(-7, 1))),
        glance=math.radians(float(rng.normal(0, 12))),
        sun=sun.astype(np.float32),
        tint=rng.uniform(0.88, 1.12, 3).astype(np.float32),
        salt=int(rng.integers(1 << 30)),
    )


SKY = -1
GROUND_TAG = 10_000
"""Tags of ground zones start here; below are indices of solids."""


@dataclass
class Surface:
    """The visible surface; all arrays are (H, W, ...).

    Args:
        camera: the view.
        depth: float32 meters along the optical axis, ``inf`` for sky.
        point: (3, H, W) float32 meters; meaningless for sky.
        normal: (H, W, 3) float32 unit vectors; 0 for sky.
        label: uint8 raw labels.
        material: uint8.
        tag: int32 identity of the body or zone; -1 for sky.
        color: (H, W, 3) float32 linear reflectance.
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
    color: np.ndarray
    glow: np.ndarray
    signal: np.ndarray

    @property
    def is_sky(self) -> np.ndarray:
        """(H, W) bool."""
        return np.asarray(self.tag == SKY)

    @property
    def is_ground(self) -> np.ndarray:
        """(H, W) bool."""
        return np.asarray(self.tag >= GROUND_TAG)


def survey(camera: Camera, ground: Ground, solids: Solids, *, salt: int) -> Surface:
    """The visible surface of a world: cast the rays, then fill in the properties of the hits."""
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
        color=np.zeros((*shape, 3), np.float32),
        glow=np.zeros(shape, np.float32),
        signal=np.zeros(shape, np.float32),
    )
    _lay_ground(surface, ground, zone)
    _paint_solids(surface, solids, salt=salt)
    return surface


def _lay_ground(surface: Surface, ground: Ground, zone: np.ndarray) -> None:
    """Fill in the pixels that show the ground."""
    where = np.flatnonzero(surface.is_ground)
    kind = zone.ravel()[where]
    x, y, _ = surface.point.reshape(3, -1)[:, where]
    lateral = x - ground.center(y)
    zones = ground.zones
    surface.label.ravel()[where] = np.array([z.label for z in zones], np.uint8)[kind]
    surface.material.ravel()[where] = np.array([z.material for z in zones], np.uint8)[kind]
    surface.normal.reshape(-1, 3)[where] = (0, 0, 1)
    color = np.array([z.color for z in zones], np.float32)[kind]
    pattern = np.array([z.pattern for z in zones], np.uint8)[kind]
    detail = 1 / (1 + surface.depth.ravel()[where] / 18)  # Distant surfaces are smooth; otherwise they would flicker.
    shade = 1 + detail * (0.22 * noise(x, y, scale=24.0) + 0.16 * noise(x, y, scale=5.0))
    shade *= 1 + 0.12 * noise(x, y, scale=1.3)
    joint = (phase(lateral, 0.9) < 0.06) | (phase(y, 0.9) < 0.06)
    shade = np.where((pattern == Pattern.SLABS) & joint, shade * (1 - 0.45 * detail), shade)
    cobble = chance(np.floor(lateral * 5), np.floor(y * 5), 0) - 0.5
    shade = np.where(pattern == Pattern.COBBLES, shade * (1 + 0.6 * detail * cobble), shade)
    blades = noise(x * 3, y, scale=40.0) * 0.35 * detail
    shade = np.where(pattern == Pattern.GRASS, shade * (1 + blades), shade)
    sleeper = (pattern == Pattern.SLEEPERS) & (phase(y, 0.65) < 0.4)
    shade = np.where(sleeper, shade * (1 - 0.5 * detail), shade)
    color *= shade[:, None].clip(0.2, 2.0)
    rail = (pattern == Pattern.SLEEPERS) & _is_rail(lateral, ground)
    color[rail] = (0.45, 0.43, 0.42)
    surface.material.ravel()[where[rail]] = Material.METAL
    surface.color.reshape(-1, 3)[where] = color
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


def _paint_solids(surface: Surface, solids: Solids, *, salt: int) -> None:
    """Fill in the pixels that show bodies."""
    tag = surface.tag.ravel()
    where = np.flatnonzero((tag >= 0) & (tag < GROUND_TAG))
    body = tag[where]
    cos, sin = solids.turn[body].T
    away = surface.point.reshape(3, -1)[:, where].T - solids.center[body]
    half = solids.half[body]
    local = np.stack([away[:, 0] * cos - away[:, 1] * sin, away[:, 0] * sin + away[:, 1] * cos, away[:, 2]], axis=1)
    unit = local / half
    shape = solids.shape[body]
    normal, face = _normals(unit, half, shape, solids.taper[body])
    turned = np.stack([normal[:, 0] * cos + normal[:, 1] * sin, normal[:, 1] * cos - normal[:, 0] * sin, normal[:, 2]])
    surface.normal.reshape(-1, 3)[where] = turned.T
    along = np.where(face == 0, local[:, 1], local[:, 0])
    patch = Patch(
        u=np.where(shape == Shape.BOX, along, local[:, 0] + local[:, 1]),
        v=local[:, 2] + half[:, 2],
        local=local,
        size=2 * half,
        face=face,
        is_front=unit[:, 1] > 0,
        detail=1 / (1 + surface.depth.ravel()[where] / 25),
        body=body,
        salt=salt,
        color=solids.color[body],
        material=solids.material[body],
        glow=np.zeros(len(where), np.float32),
        signal=np.zeros(len(where), np.float32),
    )
    paint_patch(patch, solids.texture[body])
    surface.label.ravel()[where] = solids.label[body]
    surface.material.ravel()[where] = patch.material
    surface.color.reshape(-1, 3)[where] = patch.color
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
