"""One world per sequence: a street with what stands and moves in it, and the camera's way through it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from memorysam_cli.data.synthetic import objects
from memorysam_cli.data.synthetic.camera import Camera
from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.ground import Crossing, Ground, Pattern, Zone
from memorysam_cli.data.synthetic.solids import Solid, Solids, Spot, pack

STREET_END = 130.0
"""Metres ahead to which the street is furnished."""
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
    solids, lamps = _Street(rng, ground).furnished()
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
        glance=math.radians(float(rng.normal(0, 8))),
        sun=sun.astype(np.float32),
        tint=rng.uniform(0.88, 1.12, 3).astype(np.float32),
        salt=int(rng.integers(1 << 30)),
    )


def _ground(rng: np.random.Generator) -> Ground:
    """Draw the strips of the street; their colours overlap on purpose."""
    lanes = int(rng.choice([2, 3, 4], p=(0.55, 0.25, 0.2)))
    half_width = lanes * float(rng.uniform(3.0, 3.6)) / 2
    grey = objects.grey
    slabs = Pattern.SLABS if rng.random() < 0.6 else Pattern.ROUGH
    bare = (Material.SAND, Pattern.ROUGH) if rng.random() < 0.5 else (Material.COBBLESTONE, Pattern.COBBLES)
    zones = (
        Zone(Label.ROAD, Material.ASPHALT, grey(rng, 0.06, 0.3), 0.0),
        Zone(Label.ROAD_LINE, Material.ROAD_MARKING, grey(rng, 0.4, 0.75), 0.0, Pattern.PAINT),
        Zone(Label.SIDEWALK, Material.CONCRETE, grey(rng, 0.1, 0.42), KERB, slabs),
        Zone(Label.TERRAIN, Material.GRASS, objects.foliage(rng), 0.08, Pattern.GRASS),
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


class _Street:
    """Collects the solids of one street while it is furnished, side by side."""

    def __init__(self, rng: np.random.Generator, ground: Ground) -> None:
        self.rng = rng
        self.ground = ground
        self.solids: list[Solid] = []
        self.lamps: list[tuple[float, float, float]] = []
        self.is_urban = rng.random() < 0.6

    def furnished(self) -> tuple[list[Solid], list[tuple[float, float, float]]]:
        """Place everything."""
        for side in (-1, 1):
            self._frontage(side)
            self._lamps(side)
            self._roadside(side)
            self._people(side)
        self._traffic()
        self._crossing()
        self._far()
        return self.solids, self.lamps

    def _is_clear(self, ahead: float, margin: float = 3.0) -> bool:
        """Whether a place along the street is outside the crossing street."""
        crossing = self.ground.crossing
        return crossing is None or abs(ahead - crossing.ahead) > crossing.half_width + margin

    def _spot(self, side: int, beyond_kerb: float, ahead: float) -> Spot:
        """A place beside the carriageway, at the height of the ground there."""
        lateral = side * (self.ground.half_width + beyond_kerb)
        spot = self.ground.spot(lateral, ahead)
        return Spot(spot.x, spot.y, self.ground.height_at(lateral, ahead), spot.yaw)

    def _near(self, nearest: float, farthest: float) -> float:
        """Metres ahead, more often near than far."""
        return nearest + (farthest - nearest) * float(self.rng.random()) ** 1.7

    def _is_dry(self, spot: Spot) -> bool:
        """Whether a thing can stand there: not in water, not on rails."""
        return -0.5 < spot.z != 0.1

    def _add(self, solids: list[Solid]) -> None:
        self.solids += solids

    def _frontage(self, side: int) -> None:
        """Houses, walls, fences and trees, one after the other along a side."""
        rng, ahead = self.rng, -6.0
        margin = self.ground.margins[side > 0]
        setback = margin + float(rng.uniform(0.5, 3.5) if self.is_urban else rng.uniform(2.5, 8.0))
        weights = (0.55, 0.13, 0.12, 0.12, 0.08) if self.is_urban else (0.3, 0.17, 0.2, 0.25, 0.08)
        is_fenced = rng.random() < 0.3
        while ahead < STREET_END:
            length = float(rng.uniform(7, 17))
            middle = ahead + length / 2
            kind = rng.choice(5, p=weights)
            ahead += length + float(rng.uniform(0, 3))
            if not self._is_clear(middle, length / 2 + 1):
                continue
            self._front(int(kind), side=side, setback=setback, middle=middle, length=length)
            if is_fenced and kind != 1 and setback > margin + 1.5:
                self._add(objects.fence(rng, self._spot(side, margin + 0.4, middle), length=length))

    def _front(self, kind: int, *, side: int, setback: float, middle: float, length: float) -> None:
        """One piece of frontage: 0 house, 1 wall, 2 fence, 3 trees, 4 open ground."""
        rng = self.rng
        edge = self._spot(side, min(setback, self.ground.margins[side > 0] + 0.6), middle)
        if kind == 0:
            depth = float(rng.uniform(7, 12))
            height = float(rng.uniform(6, 22) if self.is_urban else rng.uniform(3.5, 8))
            spot = self._spot(side, setback + depth / 2, middle)
            is_pitched = height < 9 and rng.random() < 0.75
            self._add(
                objects.building(rng, spot, frontage=length, depth=depth, height=height, is_pitched=is_pitched)
            )
        elif kind == 1 and self._is_dry(edge):
            self._add(objects.wall(rng, edge, length=length))
        elif kind == 2 and self._is_dry(edge):
            self._add(objects.fence(rng, edge, length=length))
        elif kind == 3:
            for _ in range(int(rng.integers(2, 5))):
                at = self._spot(side, setback + rng.uniform(0, 6), middle + rng.uniform(-0.5, 0.5) * length)
                if self._is_dry(at):
                    is_tree = rng.random() < 0.65
                    tall = float(rng.uniform(4, 10))
                    self._add(objects.tree(rng, at, height=tall) if is_tree else objects.bush(rng, at))

    def _lamps(self, side: int) -> None:
        """Street lamps at the kerb, more or less evenly spaced."""
        rng = self.rng
        for ahead in np.arange(rng.uniform(4, 16), STREET_END, rng.uniform(14, 24)):
            if not self._is_clear(ahead):
                continue
            solids = objects.street_lamp(rng, self._spot(side, 0.5, ahead), inward=-side)
            head = solids[-1].foot
            self._add(solids)
            self.lamps.append((head.x, head.y, head.z))

    def _roadside(self, side: int) -> None:
        """Signs, guard rails, street trees, parked vehicles and things on the pavement."""
        rng = self.rng
        if rng.random() < 0.3:
            for ahead in np.arange(0, 90, 20.0):
                if self._is_clear(ahead + 10, 11):
                    self._add(objects.guard_rail(rng, self._spot(side, 0.3, ahead + 10), length=20))
        for _ in range(int(rng.integers(3, 7))):
            at = self._spot(side, rng.uniform(0.3, 1.2), self._near(7, 60))
            self._add(objects.traffic_sign(rng, at))
        if rng.random() < 0.4:
            for ahead in np.arange(rng.uniform(6, 14), 90, rng.uniform(9, 14)):
                if self._is_clear(ahead):
                    self._add(objects.tree(rng, self._spot(side, 1.1, ahead), height=float(rng.uniform(4, 7))))
        makers = (objects.static_thing, objects.static_thing, objects.dynamic_thing, objects.bush, objects.oddity)
        for _ in range(int(rng.integers(5, 11))):
            at = self._spot(side, rng.uniform(0.6, 4.0), self._near(6, 50))
            if self._is_dry(at) and self._is_clear(at.y):
                make = makers[int(rng.choice(len(makers), p=(0.26, 0.16, 0.38, 0.14, 0.06)))]
                self._add(make(rng, at.turned(float(rng.uniform(0, 3)))))
        for ahead in np.arange(rng.uniform(5, 12), 80, 6.5):
            if rng.random() < 0.4 and self._is_clear(ahead, 6):
                self._park(side, float(ahead))

    def _park(self, side: int, ahead: float) -> None:
        """One vehicle at the kerb, half on the pavement where the street is narrow."""
        rng = self.rng
        spot = self._spot(side, 0.15 if self.ground.lanes < 4 else -1.1, ahead)
        spot = Spot(spot.x, spot.y, 0.0, spot.yaw + float(rng.normal(0, 0.03)))
        make = (objects.car, objects.truck, objects.two_wheeler)[int(rng.choice(3, p=(0.6, 0.08, 0.32)))]
        self._add(make(rng, spot, speed=0.0))

    def _people(self, side: int) -> None:
        """Pedestrians on the pavement, and now and then one who steps onto the street."""
        rng = self.rng
        for _ in range(int(rng.integers(3, 10))):
            at = self._spot(side, rng.uniform(0.7, 3.0), self._near(6, 45))
            heading = at.turned(float(rng.choice([0, math.pi])) + float(rng.normal(0, 0.3)))
            if self._is_dry(at):
                self._add(objects.pedestrian(rng, heading, speed=float(rng.uniform(0.6, 1.6))))
        if rng.random() < 0.35:
            at = self.ground.spot(side * rng.uniform(1, self.ground.half_width), rng.uniform(14, 35))
            self._add(objects.pedestrian(rng, at.turned(-side * math.pi / 2), speed=1.2))

    def _traffic(self) -> None:
        """Moving vehicles, lane by lane; those ahead of the camera keep away from it."""
        rng, ground = self.rng, self.ground
        width = 2 * ground.half_width / ground.lanes
        makers = (objects.car, objects.truck, objects.bus, objects.two_wheeler)
        for lane in range(ground.lanes):
            lateral = (lane + 0.5) * width - ground.half_width
            is_ours = lateral >= 0
            ahead = float(rng.uniform(22, 40) if is_ours else rng.uniform(8, 30))
            while ahead < 110:
                make = makers[int(rng.choice(4, p=(0.56, 0.16, 0.12, 0.16)))]
                spot = ground.spot(lateral, ahead)
                if not is_ours:
                    spot = spot.turned(math.pi)
                self._add(make(rng, spot, speed=float(rng.uniform(6.5, 9.5) if is_ours else rng.uniform(2, 6))))
                ahead += float(rng.uniform(11, 45))

    def _crossing(self) -> None:
        """Signals at the corners of a crossing, and traffic on it; elsewhere perhaps a bridge above the street."""
        rng, ground = self.rng, self.ground
        crossing = ground.crossing
        if crossing is None:
            if rng.random() < 0.6:
                at = ground.spot(0.0, float(rng.uniform(26, 75)))
                self._add(objects.overpass(rng, at, half_span=ground.half_width + 1.2))
            return
        for side in (-1, 1):
            for ahead in (crossing.ahead - crossing.half_width - 1.5, crossing.ahead + crossing.half_width + 1.5):
                if rng.random() < 0.8:
                    self._add(objects.traffic_light(rng, self._spot(side, 0.6, ahead), inward=-side))
        for side in (-1, 1):
            if rng.random() < 0.7:
                make = (objects.car, objects.truck, objects.bus)[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
                lateral = side * (ground.half_width + float(rng.uniform(2, 14)))
                at = ground.spot(lateral, crossing.ahead - side * crossing.half_width / 2)
                self._add(make(rng, at.turned(-side * math.pi / 2), speed=1.0))

    def _far(self) -> None:
        """Houses and woods that close the view."""
        rng = self.rng
        for lateral in np.arange(-150, 151, 22.0):
            at = self.ground.spot(float(lateral), STREET_END + float(rng.uniform(15, 40)))
            if rng.random() < 0.5:
                height = float(rng.uniform(8, 26))
                wide = float(rng.uniform(12, 24))
                self._add(objects.building(rng, at, frontage=12, depth=wide, height=height, is_pitched=False))
            else:
                self._add(objects.tree(rng, at, height=float(rng.uniform(12, 20))))
