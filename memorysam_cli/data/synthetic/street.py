"""Furnishes a street: what stands, drives and walks where."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from memorysam_cli.data.synthetic import furniture, living, structures, vehicles
from memorysam_cli.data.synthetic.ground import Ground
from memorysam_cli.data.synthetic.solids import Solid, Spot

STREET_END = 130.0
"""Metres ahead to which the street is furnished."""


class Street:
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
                self._add(structures.fence(rng, self._spot(side, margin + 0.4, middle), length=length))

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
                structures.building(rng, spot, frontage=length, depth=depth, height=height, is_pitched=is_pitched)
            )
        elif kind == 1 and self._is_dry(edge):
            self._add(structures.wall(rng, edge, length=length))
        elif kind == 2 and self._is_dry(edge):
            self._add(structures.fence(rng, edge, length=length))
        elif kind == 3:
            for _ in range(int(rng.integers(2, 5))):
                at = self._spot(side, setback + rng.uniform(0, 6), middle + rng.uniform(-0.5, 0.5) * length)
                if self._is_dry(at):
                    is_tree = rng.random() < 0.65
                    tall = float(rng.uniform(4, 10))
                    self._add(living.tree(rng, at, height=tall) if is_tree else living.bush(rng, at))

    def _lamps(self, side: int) -> None:
        """Street lamps at the kerb, more or less evenly spaced."""
        rng = self.rng
        for ahead in np.arange(rng.uniform(4, 16), STREET_END, rng.uniform(14, 24)):
            if not self._is_clear(ahead):
                continue
            solids = furniture.street_lamp(rng, self._spot(side, 0.5, ahead), inward=-side)
            head = solids[-1].foot
            self._add(solids)
            self.lamps.append((head.x, head.y, head.z))

    def _roadside(self, side: int) -> None:
        """Signs, guard rails, street trees, parked vehicles and things on the pavement."""
        rng = self.rng
        if rng.random() < 0.3:
            for ahead in np.arange(0, 90, 20.0):
                if self._is_clear(ahead + 10, 11):
                    self._add(structures.guard_rail(rng, self._spot(side, 0.3, ahead + 10), length=20))
        for _ in range(int(rng.integers(2, 6))):
            at = self._spot(side, rng.uniform(0.3, 1.2), self._near(7, 60))
            self._add(furniture.traffic_sign(rng, at))
        if rng.random() < 0.4:
            for ahead in np.arange(rng.uniform(6, 14), 90, rng.uniform(9, 14)):
                if self._is_clear(ahead):
                    self._add(living.tree(rng, self._spot(side, 1.1, ahead), height=float(rng.uniform(4, 7))))
        makers = (
            furniture.static_thing,
            furniture.static_thing,
            furniture.dynamic_thing,
            living.bush,
            furniture.oddity,
        )
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
        make = (vehicles.car, vehicles.truck, vehicles.two_wheeler)[int(rng.choice(3, p=(0.6, 0.08, 0.32)))]
        self._add(make(rng, spot, speed=0.0))

    def _people(self, side: int) -> None:
        """Pedestrians on the pavement, and now and then one who steps onto the street."""
        rng = self.rng
        for _ in range(int(rng.integers(3, 10))):
            at = self._spot(side, rng.uniform(0.7, 3.0), self._near(6, 45))
            heading = at.turned(float(rng.choice([0, math.pi])) + float(rng.normal(0, 0.3)))
            if self._is_dry(at):
                self._add(living.pedestrian(rng, heading, speed=float(rng.uniform(0.6, 1.6))))
        if rng.random() < 0.35:
            at = self.ground.spot(side * rng.uniform(1, self.ground.half_width), rng.uniform(14, 35))
            self._add(living.pedestrian(rng, at.turned(-side * math.pi / 2), speed=1.2))

    def _traffic(self) -> None:
        """Moving vehicles, lane by lane; those ahead of the camera keep away from it."""
        rng, ground = self.rng, self.ground
        width = 2 * ground.half_width / ground.lanes
        makers = (vehicles.car, vehicles.truck, vehicles.bus, vehicles.two_wheeler)
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
                self._add(structures.overpass(rng, at, half_span=ground.half_width + 1.2))
            return
        for side in (-1, 1):
            for ahead in (crossing.ahead - crossing.half_width - 1.5, crossing.ahead + crossing.half_width + 1.5):
                if rng.random() < 0.8:
                    self._add(furniture.traffic_light(rng, self._spot(side, 0.6, ahead), inward=-side))
        for side in (-1, 1):
            if rng.random() < 0.7:
                make = (vehicles.car, vehicles.truck, vehicles.bus)[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
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
                self._add(structures.building(rng, at, frontage=12, depth=wide, height=height, is_pitched=False))
            else:
                self._add(living.tree(rng, at, height=float(rng.uniform(12, 20))))
