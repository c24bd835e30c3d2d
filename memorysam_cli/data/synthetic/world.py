"""One world per sequence: a street with what stands and moves in it, and the camera's way through it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memorysam_cli.data.synthetic.camera import Camera
from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.colours import foliage, grey
from memorysam_cli.data.synthetic.ground import Crossing, Ground, Pattern, Zone
from memorysam_cli.data.synthetic.solids import Solids, Spot, pack
from memorysam_cli.data.synthetic.street import Street

STRIDE = 6.0
"""Metres that the camera drives from one frame to the next."""
SECONDS_PER_FRAME = 0.7
KERB = 0.15
"""Height of a pavement in metres."""


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
    solids, lamps = Street(rng, ground).furnished()
    lanes_right = max(1, ground.lanes // 2)
    lane_width = 2 * ground.half_width / ground.lanes
    height, bearing = rng.uniform(0.35, 1.2), rng.uniform(0, 2 * math.pi)
    sun = np.array([math.cos(height) * math.sin(bearing), math.cos(height) * math.cos(bearing), math.sin(height)])
    return World(
        ground=ground,
        solids=pack(solids),
        lamps=np.array(lamps, np.float32).reshape(-1, 3),
        lane=lane_width * (float(rng.integers(lanes_right)) + 0.5),
        lens_height=float(rng.uniform(1.5, 2.3)),
        pitch=math.radians(float(rng.uniform(-7, 1))),
        glance=math.radians(float(rng.normal(0, 12))),
        sun=sun.astype(np.float32),
        tint=rng.uniform(0.88, 1.12, 3).astype(np.float32),
        salt=int(rng.integers(1 << 30)),
    )


def _ground(rng: np.random.Generator) -> Ground:
    """Draw the strips of the street; their colours overlap on purpose."""
    lanes = int(rng.choice([2, 3, 4], p=(0.55, 0.25, 0.2)))
    half_width = lanes * float(rng.uniform(2.8, 3.4)) / 2
    slabs = Pattern.SLABS if rng.random() < 0.6 else Pattern.ROUGH
    bare = (Material.SAND, Pattern.ROUGH) if rng.random() < 0.5 else (Material.COBBLESTONE, Pattern.COBBLES)
    zones = (
        Zone(Label.ROAD, Material.ASPHALT, grey(rng, 0.06, 0.3), 0.0),
        Zone(Label.ROAD_LINE, Material.ROAD_MARKING, grey(rng, 0.4, 0.75), 0.0, Pattern.PAINT),
        Zone(Label.SIDEWALK, Material.CONCRETE, grey(rng, 0.1, 0.42), KERB, slabs),
        Zone(Label.TERRAIN, Material.GRASS, foliage(rng), 0.08, Pattern.GRASS),
        Zone(Label.GROUND, bare[0], grey(rng, 0.1, 0.4), 0.02, bare[1]),
        Zone(Label.RAIL_TRACK, Material.GRAVEL, grey(rng, 0.08, 0.3), 0.1, Pattern.SLEEPERS),
        Zone(Label.WATER, Material.WATER, grey(rng, 0.02, 0.08), -0.9, Pattern.RIPPLES),
    )
    (left, left_margin), (right, right_margin) = _side(rng, half_width), _side(rng, half_width)
    borders = [-border for border, _ in reversed(left)] + [border for border, _ in right]
    strips = [pair for _, pair in reversed(left)] + [(0, 0)] + [pair for _, pair in right]
    has_crossing = rng.random() < 0.55
    return Ground(
        zones=zones,
        borders=np.array(borders, np.float32),
        strips=np.array(strips, np.uint8),
        half_width=half_width,
        lanes=lanes,
        bend=(float(rng.normal(0, 5)), float(rng.uniform(55, 110))),
        crossing=Crossing(float(rng.uniform(24, 60)), float(rng.uniform(3, 5.5))) if has_crossing else None,
        salt=int(rng.integers(1 << 30)),
        margins=(left_margin, right_margin),
    )


def _side(rng: np.random.Generator, kerb: float) -> tuple[list[tuple[float, tuple[int, int]]], float]:
    """Strips from the kerb outwards, each (border in metres, the two zones beyond it that take turns), and the margin."""
    strips: list[tuple[float, tuple[int, int]]] = []
    border = kerb
    if rng.random() < 0.85:
        strips.append((border, (2, 2)))
        border += float(rng.uniform(1.6, 4.0))
    green_or_bare = (3, 4) if rng.random() < 0.5 else (4, 3)
    strips.append((border, green_or_bare))
    draw = rng.random()
    if draw < 0.36:
        border += float(rng.uniform(0.4, 2.0))
        zone = 5 if draw < 0.2 else 6
        strips.append((border, (zone, zone)))
        border += float(rng.uniform(3.2, 4.0)) if zone == 5 else float(rng.uniform(4, 10))
        strips.append((border, green_or_bare))
    return strips, border - kerb
