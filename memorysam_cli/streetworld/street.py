"""A street: its ground, and the things on it.

The ground is strips along a bending street, a crossing, lane markings, and low steps between the strips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from memorysam_cli.streetworld import things
from memorysam_cli.streetworld.geometry import Camera, Solid, Spot
from memorysam_cli.streetworld.surfaces import Color, Label, Material, Rng, chance, phase, pick_foliage, pick_gray

FARTHEST = 600.0
"""Meters of depth beyond which the ground is not drawn."""


class Pattern(IntEnum):
    """How a zone is paved."""

    ROUGH = 0
    SLABS = 1
    COBBLES = 2
    GRASS = 3
    SLEEPERS = 4
    RIPPLES = 5
    PAINT = 6


class GroundKind(IntEnum):
    """The kinds of ground that every world has: indices of its zones."""

    ROAD = 0
    PAINT = 1
    SIDEWALK = 2
    GREEN = 3
    BARE = 4
    RAILS = 5
    WATER = 6


@dataclass(frozen=True, slots=True)
class Zone:
    """One kind of ground."""

    label: Label
    material: Material
    color: Color
    height: float
    """Meters above the carriageway."""
    pattern: Pattern = Pattern.ROUGH


@dataclass(frozen=True, slots=True)
class Crossing:
    """A street that crosses at ``ahead`` meters, ``half_width`` to each side of there."""

    ahead: float
    half_width: float


@dataclass(frozen=True)
class Ground:
    """Strips of zones along a street.

    Args:
        zones: one per :class:`GroundKind`.
        borders: (n,) ascending lateral borders in meters between strips, as seen from the street's center line.
        strips: (n + 1, 2) zone of each strip: its usual one, and the one that takes turns with it along the street.
        half_width: meters from the center line to the curb.
        lanes: lanes of the carriageway.
        bend: meters by which the street swings to the side, and the meters per radian of that swing.
        crossing: a crossing street, if there is one.
        salt: what makes the alternation of zones this world's own.
        margins: meters beyond the left and the right curb from where houses and fences may stand.
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

    def center(self, y: np.ndarray) -> np.ndarray:
        """Lateral position of the center line, meters, shape of ``y``."""
        swing, length = self.bend
        return np.float32(swing) * (1 - np.cos(y / np.float32(length)))

    def spot(self, lateral: float, ahead: float) -> Spot:
        """A place given in street coordinates, heading along the street, at carriageway height."""
        swing, length = self.bend
        slope = swing / length * np.sin(ahead / length)
        return Spot(float(self.center(np.array(ahead, np.float32))) + lateral, ahead, 0.0, float(np.arctan(slope)))

    def zone_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Zone index of places in meters; uint8, shape of ``x``."""
        lateral = x - self.center(y)
        zone = self._unmarked(lateral, y)
        return np.where((zone == GroundKind.ROAD) & self._is_marked(lateral, y), GroundKind.PAINT, zone).astype(
            np.uint8
        )

    def kind_at(self, lateral: float, ahead: float) -> GroundKind:
        """The kind of ground at one place in street coordinates; paint counts as road."""
        return GroundKind(int(self._unmarked(np.array([lateral], np.float32), np.array([ahead], np.float32))[0]))

    def lane_middles(self) -> list[float]:
        """Lateral middles of the lanes in meters, left to right; those from 0 on go our way."""
        width = 2 * self.half_width / self.lanes
        return [(lane + 0.5) * width - self.half_width for lane in range(self.lanes)]

    def _unmarked(self, lateral: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Zone index of places in street coordinates, without the paint."""
        strip = np.searchsorted(self.borders, lateral)
        turn = chance(np.floor(y / 17), strip, self.salt) < 0.4
        zone = self.strips[strip, turn.astype(np.int64)]
        if self.crossing is not None:
            offset = np.abs(y - self.crossing.ahead) - self.crossing.half_width
            dry = zone != GroundKind.WATER
            sidewalk = dry & (offset < 2.5) & (zone != GroundKind.ROAD)
            zone = np.where(dry & (offset < 0), GroundKind.ROAD, np.where(sidewalk, GroundKind.SIDEWALK, zone))
        return np.asarray(zone)

    def _is_marked(self, lateral: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether paint lies on the carriageway there."""
        lane = 2 * self.half_width / self.lanes
        aside = np.abs(lateral)
        to_line = np.abs(phase(lateral / lane + self.lanes / 2 + 0.5, 1.0) - 0.5) * lane
        edge = np.abs(aside - (self.half_width - 0.35)) < 0.09
        marked = edge | ((to_line < 0.1) & (phase(y, 6.0) < 0.5) & (aside < self.half_width - 1))
        if self.crossing is not None:
            offset = np.abs(y - self.crossing.ahead) - self.crossing.half_width
            on_street = aside < self.half_width
            stripes = on_street & (offset > 1.0) & (offset < 4.0) & (phase(lateral, 1.1) < 0.5)
            stop = on_street & (offset > 5.0) & (offset < 5.45)
            marked = ((marked & (offset > 5.5)) | stripes | stop) & (aside < self.half_width)
        return np.asarray(marked)

    def intersect(self, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """The part of the ground that the camera sees.

        Returns:
            (H, W) float32 depth in meters, ``inf`` above the horizon, and (H, W) uint8 zone index.
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

        # The zone at the greatest height gives the height for the second lookup, whose zone is the result,
        # except at the faces of steps, a few pixels high, which use the middle of both heights.
        heights = np.array([kind.height for kind in self.zones], np.float32)
        sought = heights[below(reach(heights.max()))]
        found = below(reach(sought))
        reached = reach((sought + heights[found]) / 2)
        depth[horizon:] = np.where(reached < FARTHEST, reached, np.float32(np.inf))
        zone[horizon:] = found
        return depth, zone


def draw_ground(rng: Rng) -> Ground:
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
        strips=np.array(
            [pair for _, pair in (*reversed(left), (0, (GroundKind.ROAD, GroundKind.ROAD)), *right)], np.uint8
        ),
        half_width=half_width,
        lanes=lanes,
        bend=(float(rng.normal(0, 5)), float(rng.uniform(55, 110))),
        crossing=Crossing(float(rng.uniform(24, 60)), float(rng.uniform(3, 5.5))) if has_crossing else None,
        salt=int(rng.integers(1 << 30)),
        margins=(left[-1][0], right[-1][0]),
    )


def _zones(rng: Rng) -> tuple[Zone, ...]:
    """Draw the colors of the ground, in the order of :class:`GroundKind`; they overlap on purpose."""
    slabs = Pattern.SLABS if rng.random() < 0.6 else Pattern.ROUGH
    bare = (Material.SAND, Pattern.ROUGH) if rng.random() < 0.5 else (Material.COBBLESTONE, Pattern.COBBLES)
    return (
        Zone(Label.ROAD, Material.ASPHALT, pick_gray(rng, 0.06, 0.3), 0.0),
        Zone(Label.ROAD_LINE, Material.ROAD_MARKING, pick_gray(rng, 0.4, 0.75), 0.0, Pattern.PAINT),
        Zone(Label.SIDEWALK, Material.CONCRETE, pick_gray(rng, 0.1, 0.42), 0.15, slabs),
        Zone(Label.TERRAIN, Material.GRASS, pick_foliage(rng), 0.08, Pattern.GRASS),
        Zone(Label.GROUND, bare[0], pick_gray(rng, 0.1, 0.4), 0.02, bare[1]),
        Zone(Label.RAIL_TRACK, Material.GRAVEL, pick_gray(rng, 0.08, 0.3), 0.1, Pattern.SLEEPERS),
        Zone(Label.WATER, Material.WATER, pick_gray(rng, 0.02, 0.08), -0.9, Pattern.RIPPLES),
    )


Strip = tuple[float, tuple[GroundKind, GroundKind]]
"""Where a strip begins, in meters beyond the curb, and the two kinds of ground that take turns on it."""


def _strips(rng: Rng) -> list[Strip]:
    """Draw one side from the curb outwards: often a sidewalk, sometimes rails or a canal, then open ground."""
    strips: list[Strip] = []
    border = 0.0
    if rng.random() < 0.85:
        strips.append((border, (GroundKind.SIDEWALK, GroundKind.SIDEWALK)))
        border += float(rng.uniform(1.6, 4.0))
    open_ground = (GroundKind.GREEN, GroundKind.BARE) if rng.random() < 0.5 else (GroundKind.BARE, GroundKind.GREEN)
    strips.append((border, open_ground))
    draw = rng.random()
    if draw < 0.42:
        kind, width = (
            (GroundKind.RAILS, rng.uniform(3.2, 4.0)) if draw < 0.2 else (GroundKind.WATER, rng.uniform(4, 10))
        )
        border += float(rng.uniform(1.3, 2.2))  # Room for lamps and signs.
        strips.append((border, (kind, kind)))
        strips.append((border + float(width), open_ground))
    return strips


STREET_END = 130.0
"""Meters ahead to which the street is furnished."""
FRONTAGE = ("house", "wall", "fence", "trees", "open")
URBAN, SUBURBAN = (0.55, 0.13, 0.12, 0.12, 0.08), (0.3, 0.17, 0.2, 0.25, 0.08)
"""How often each kind of frontage occurs."""
THINGS = (things.static_thing, things.dynamic_thing, things.bush, things.oddity)
VEHICLES = (things.car, things.truck, things.bus, things.two_wheeler)


class Street:
    """Collects the solids and the lamps of a street while it is furnished, side by side."""

    def __init__(self, rng: Rng, ground: Ground) -> None:
        self.rng = rng
        self.ground = ground
        self.solids: list[Solid] = []
        self.lamps: list[tuple[float, float, float]] = []
        """Places of the lamps' heads in meters."""
        self.is_urban = rng.random() < 0.6

    def furnish(self) -> None:
        """Place everything."""
        for side in (-1, 1):
            self._place_frontage(side)
            self._place_lamps(side)
            self._place_signs_and_trees(side)
            self._place_things(side)
            # Nobody parks where a guard rail stands.
            self._place_guard_rail(side) if self.rng.random() < 0.3 else self._place_parked(side)
            self._place_people(side)
        self._place_traffic()
        if self.ground.crossing is None:
            self._place_overpass()
        else:
            self._place_crossing(self.ground.crossing.ahead, self.ground.crossing.half_width)
        self._place_horizon()

    def _is_clear(self, ahead: float, margin: float = 3.0) -> bool:
        """Whether a place along the street is outside the crossing street."""
        crossing = self.ground.crossing
        return crossing is None or abs(ahead - crossing.ahead) > crossing.half_width + margin

    def _spot(self, side: int, beyond_curb: float, ahead: float) -> Spot:
        """A place beside the carriageway, at the height of the ground there."""
        lateral = side * (self.ground.half_width + beyond_curb)
        spot = self.ground.spot(lateral, ahead)
        return Spot(spot.x, spot.y, self.ground.zones[self.ground.kind_at(lateral, ahead)].height, spot.yaw)

    def _can_stand(self, side: int, beyond_curb: float, ahead: float) -> bool:
        """Whether a thing can stand there: not in water, not on rails."""
        lie = self.ground.kind_at(side * (self.ground.half_width + beyond_curb), ahead)
        return lie not in (GroundKind.WATER, GroundKind.RAILS)

    def _near(self, nearest: float, farthest: float) -> float:
        """Meters ahead, more often near than far."""
        return nearest + (farthest - nearest) * float(self.rng.random() ** 1.7)

    def _place_frontage(self, side: int) -> None:
        """Houses, walls, fences and trees, one after the other along a side."""
        rng, ahead = self.rng, -6.0
        margin = self.ground.margins[side > 0]
        setback = margin + float(rng.uniform(0.5, 3.5) if self.is_urban else rng.uniform(2.5, 8.0))
        is_fenced = setback > margin + 1.5 and rng.random() < 0.3
        while ahead < STREET_END:
            length = float(rng.uniform(7, 17))
            middle = ahead + length / 2
            kind = str(rng.choice(FRONTAGE, p=URBAN if self.is_urban else SUBURBAN))
            ahead += length + float(rng.uniform(0, 3))
            if not self._is_clear(middle, length / 2 + 1):
                continue
            if kind == "house":
                self._place_house(side, setback, middle, length=length)
            elif kind == "trees":
                self._place_trees(side, setback, middle, length=length)
            edge = self._spot(side, margin + 0.6, middle)
            if kind == "wall":
                self.solids += things.wall(rng, edge, length=length)
            elif kind == "fence" or is_fenced:
                self.solids += things.fence(rng, edge, length=length)

    def _place_house(self, side: int, setback: float, middle: float, *, length: float) -> None:
        """A house whose front is ``setback`` meters beyond the curb."""
        rng, depth = self.rng, float(self.rng.uniform(7, 12))
        height = float(rng.uniform(6, 22) if self.is_urban else rng.uniform(3.5, 8))
        is_pitched = height < 9 and rng.random() < 0.75
        spot = self._spot(side, setback + depth / 2, middle)
        self.solids += things.building(rng, spot, frontage=length, depth=depth, height=height, is_pitched=is_pitched)

    def _place_trees(self, side: int, setback: float, middle: float, *, length: float) -> None:
        """A few trees and bushes."""
        rng = self.rng
        for _ in range(int(rng.integers(2, 5))):
            beyond, ahead = setback + float(rng.uniform(0, 6)), middle + float(rng.uniform(-0.5, 0.5)) * length
            spot, height = self._spot(side, beyond, ahead), float(rng.uniform(4, 10))
            self.solids += things.tree(rng, spot, height=height) if rng.random() < 0.65 else things.bush(rng, spot)

    def _place_lamps(self, side: int) -> None:
        """Street lamps at the curb, more or less evenly spaced."""
        rng = self.rng
        for ahead in np.arange(rng.uniform(4, 16), STREET_END, rng.uniform(14, 24)):
            if self._is_clear(ahead):
                solids = things.street_lamp(rng, self._spot(side, 0.5, float(ahead)), inward=-side)
                head = solids[-1].foot
                self.solids += solids
                self.lamps.append((head.x, head.y, head.z))

    def _place_guard_rail(self, side: int) -> None:
        """In pieces of 20 m, with gaps at the crossing."""
        for ahead in np.arange(10, 100, 20.0):
            if self._is_clear(ahead, 11):
                self.solids += things.guard_rail(self.rng, self._spot(side, 0.3, float(ahead)), length=20)

    def _place_signs_and_trees(self, side: int) -> None:
        """Signs here and there, and often a row of trees."""
        rng = self.rng
        for _ in range(int(rng.integers(2, 6))):
            self.solids += things.traffic_sign(rng, self._spot(side, rng.uniform(0.3, 1.2), self._near(7, 60)))
        if rng.random() < 0.4:
            for ahead in np.arange(rng.uniform(6, 14), 90, rng.uniform(9, 14)):
                if self._is_clear(ahead):
                    spot = self._spot(side, 1.1, float(ahead))
                    self.solids += things.tree(rng, spot, height=float(rng.uniform(4, 7)))

    def _place_things(self, side: int) -> None:
        """Bins, crates, bushes and oddities on the sidewalk."""
        rng = self.rng
        for _ in range(int(rng.integers(5, 11))):
            beyond, ahead = float(rng.uniform(0.6, 4.0)), self._near(6, 50)
            make = THINGS[int(rng.choice(len(THINGS), p=(0.4, 0.4, 0.14, 0.06)))]
            spot = self._spot(side, beyond, ahead).turned(float(rng.uniform(0, 3)))
            if self._can_stand(side, beyond, ahead) and self._is_clear(ahead):
                self.solids += make(rng, spot)

    def _place_parked(self, side: int) -> None:
        """Vehicles at the curb, half on the sidewalk where the street is narrow."""
        rng, beyond = self.rng, 0.15 if self.ground.lanes < 4 else -1.1
        for ahead in np.arange(rng.uniform(5, 12), 80, 7.5):
            if rng.random() < 0.4 and self._is_clear(ahead, 6):
                lateral = side * (self.ground.half_width + beyond)
                spot = self.ground.spot(lateral, float(ahead)).turned(float(rng.normal(0, 0.03)))
                make = VEHICLES[int(rng.choice(len(VEHICLES), p=(0.6, 0.08, 0, 0.32)))]
                self.solids += make(rng, spot, speed=0.0)

    def _place_people(self, side: int) -> None:
        """Pedestrians on the sidewalk, and now and then one who crosses the street."""
        rng = self.rng
        for _ in range(int(rng.integers(3, 10))):
            beyond, ahead = float(rng.uniform(0.7, 3.0)), self._near(6, 45)
            turn = float(rng.choice([0, math.pi])) + float(rng.normal(0, 0.3))
            if self._can_stand(side, beyond, ahead):
                spot = self._spot(side, beyond, ahead).turned(turn)
                self.solids += things.pedestrian(rng, spot, speed=float(rng.uniform(0.6, 1.6)))
        if rng.random() < 0.35:
            at = self.ground.spot(side * float(rng.uniform(1, self.ground.half_width)), float(rng.uniform(16, 35)))
            self.solids += things.pedestrian(rng, at.turned(-side * math.pi / 2), speed=1.2)

    def _place_traffic(self) -> None:
        """Moving vehicles, lane by lane; those ahead of the camera keep away from it."""
        rng = self.rng
        for lateral in self.ground.lane_middles():
            is_ours = lateral >= 0
            ahead = float(rng.uniform(22, 40) if is_ours else rng.uniform(8, 30))
            while ahead < 110:
                make = VEHICLES[int(rng.choice(len(VEHICLES), p=(0.56, 0.16, 0.12, 0.16)))]
                spot = self.ground.spot(lateral, ahead).turned(0.0 if is_ours else math.pi)
                self.solids += make(rng, spot, speed=float(rng.uniform(6.5, 9.5) if is_ours else rng.uniform(2, 6)))
                ahead += float(rng.uniform(12, 45))

    def _place_overpass(self) -> None:
        """Perhaps a bridge above the street."""
        if self.rng.random() < 0.6:
            at = self.ground.spot(0.0, float(self.rng.uniform(26, 75)))
            self.solids += things.overpass(self.rng, at, half_span=self.ground.half_width + 1.2)

    def _place_crossing(self, middle: float, half_width: float) -> None:
        """Signals at the corners of a crossing, and traffic on it."""
        rng = self.rng
        for side in (-1, 1):
            for ahead in (middle - half_width - 1.5, middle + half_width + 1.5):
                if rng.random() < 0.8:
                    self.solids += things.traffic_light(rng, self._spot(side, 0.6, ahead), inward=-side)
            if rng.random() < 0.7:
                make = VEHICLES[int(rng.choice(len(VEHICLES), p=(0.6, 0.2, 0.2, 0)))]
                lateral = side * (self.ground.half_width + float(rng.uniform(6, 16)))
                at = self.ground.spot(lateral, middle - side * half_width / 2)
                self.solids += make(rng, at.turned(-side * math.pi / 2), speed=1.0)

    def _place_horizon(self) -> None:
        """Houses and woods that close the view."""
        rng = self.rng
        for lateral in np.arange(-150, 151, 22.0):
            at = self.ground.spot(float(lateral), STREET_END + float(rng.uniform(15, 40)))
            if rng.random() < 0.5:
                depth, height = float(rng.uniform(12, 24)), float(rng.uniform(8, 26))
                self.solids += things.building(rng, at, frontage=12, depth=depth, height=height, is_pitched=False)
            else:
                self.solids += things.tree(rng, at, height=float(rng.uniform(12, 20)))
