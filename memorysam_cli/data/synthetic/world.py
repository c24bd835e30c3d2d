"""One world per sequence: a street with what stands and moves in it, and the camera's way through it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memorysam_cli.data.synthetic.camera import Camera
from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.colours import foliage, grey
from memorysam_cli.data.synthetic.ground import Crossing, Ground, Lie, Pattern, Zone
from memorysam_cli.data.synthetic.solids import Solids, Spot, pack
from memorysam_cli.data.synthetic.street import Street

STRIDE = 6.0
"""Metres that the camera drives from one frame to the next."""
SECONDS_PER_FRAME = 0.7


@dataclass(frozen=True)
class World:
    """A street at time 0.

    Args:
        ground: its ground.
        solids: its bodies.
        lamps: (L, 3) float32 positions of the street lamps' heads in metres.
        lane: lateral position of the camera in metres from the centre line.
        lens_height: metres above the carriageway.
        pitch: radians of the camera above the horizontal.
        glance: radians by which the camera looks past the street's direction.
        sun: (3,) float32 unit vector towards the sun.
        tint: (3,) float32 colour of the light, about 1.
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


def build(rng: np.random.Generator) -> World:
    """Draw a world."""
    ground = _ground(rng)
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


def _ground(rng: np.random.Generator) -> Ground:
    """Draw the strips of the street."""
    lanes = int(rng.choice([2, 3, 4], p=(0.55, 0.25, 0.2)))
    half_width = lanes * float(rng.uniform(2.8, 3.4)) / 2
    left, right = _strips(rng), _strips(rng)
    has_crossing = rng.random() < 0.55
    return Ground(
        zones=_zones(rng),
        borders=np.array(
            [-half_width - border for border, _ in reversed(left)] + [half_width + border for border, _ in right],
            np.float32,
        ),
        strips=np.array([pair for _, pair in (*reversed(left), (0, (Lie.ROAD, Lie.ROAD)), *right)], np.uint8),
        half_width=half_width,
        lanes=lanes,
        bend=(float(rng.normal(0, 5)), float(rng.uniform(55, 110))),
        crossing=Crossing(float(rng.uniform(24, 60)), float(rng.uniform(3, 5.5))) if has_crossing else None,
        salt=int(rng.integers(1 << 30)),
        margins=(left[-1][0], right[-1][0]),
    )


def _zones(rng: np.random.Generator) -> tuple[Zone, ...]:
    """Draw the looks of the ground, in the order of :class:`Lie`; the colours overlap on purpose."""
    slabs = Pattern.SLABS if rng.random() < 0.6 else Pattern.ROUGH
    bare = (Material.SAND, Pattern.ROUGH) if rng.random() < 0.5 else (Material.COBBLESTONE, Pattern.COBBLES)
    return (
        Zone(Label.ROAD, Material.ASPHALT, grey(rng, 0.06, 0.3), 0.0),
        Zone(Label.ROAD_LINE, Material.ROAD_MARKING, grey(rng, 0.4, 0.75), 0.0, Pattern.PAINT),
        Zone(Label.SIDEWALK, Material.CONCRETE, grey(rng, 0.1, 0.42), 0.15, slabs),
        Zone(Label.TERRAIN, Material.GRASS, foliage(rng), 0.08, Pattern.GRASS),
        Zone(Label.GROUND, bare[0], grey(rng, 0.1, 0.4), 0.02, bare[1]),
        Zone(Label.RAIL_TRACK, Material.GRAVEL, grey(rng, 0.08, 0.3), 0.1, Pattern.SLEEPERS),
        Zone(Label.WATER, Material.WATER, grey(rng, 0.02, 0.08), -0.9, Pattern.RIPPLES),
    )


Strip = tuple[float, tuple[Lie, Lie]]
"""Where a strip begins, in metres beyond the kerb, and the two kinds of ground that take turns on it."""


def _strips(rng: np.random.Generator) -> list[Strip]:
    """Draw one side from the kerb outwards: often a pavement, sometimes rails or a canal, then open ground."""
    strips: list[Strip] = []
    border = 0.0
    if rng.random() < 0.85:
        strips.append((border, (Lie.PAVEMENT, Lie.PAVEMENT)))
        border += float(rng.uniform(1.6, 4.0))
    open_ground = (Lie.GREEN, Lie.BARE) if rng.random() < 0.5 else (Lie.BARE, Lie.GREEN)
    strips.append((border, open_ground))
    draw = rng.random()
    if draw < 0.42:
        kind, width = (Lie.RAILS, rng.uniform(3.2, 4.0)) if draw < 0.2 else (Lie.WATER, rng.uniform(4, 10))
        border += float(rng.uniform(1.3, 2.2))  # Room for lamps and signs.
        strips.append((border, (kind, kind)))
        strips.append((border + float(width), open_ground))
    return strips
