"""Furnishes a street: what stands, drives and walks where."""

from __future__ import annotations

import math

import numpy as np

from memorysam_cli.data.synthetic import furniture, living, structures, vehicles
from memorysam_cli.data.synthetic.ground import Ground, Lie
from memorysam_cli.data.synthetic.solids import Solid, Spot

STREET_END = 130.0
"""Metres ahead to which the street is furnished."""
FRONTAGE = ("house", "wall", "fence", "trees", "open")
URBAN, SUBURBAN = (0.55, 0.13, 0.12, 0.12, 0.08), (0.3, 0.17, 0.2, 0.25, 0.08)
"""How often each kind of frontage occurs."""
THINGS = (furniture.static_thing, furniture.dynamic_thing, living.bush, furniture.oddity)
VEHICLES = (vehicles.car, vehicles.truck, vehicles.bus, vehicles.two_wheeler)


class Street:
    """Collects the solids and the lamps of one street while it is furnished, side by side."""

    def __init__(self, rng: np.random.Generator, ground: Ground) -> None:
        self.rng = rng
        self.ground = ground
        self.solids: list[Solid] = []
        self.lamps: list[tuple[float, float, float]] = []
        """Places of the lamps' heads in metres."""
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

    def _spot(self, side: int, beyond_kerb: float, ahead: float) -> Spot:
        """A place beside the carriageway, at the height of the ground there."""
        lateral = side * (self.ground.half_width + beyond_kerb)
        spot = self.ground.spot(lateral, ahead)
        return Spot(spot.x, spot.y, self.ground.zones[self.ground.lie_at(lateral, ahead)].height, spot.yaw)

    def _can_stand(self, side: int, beyond_kerb: float, ahead: float) -> bool:
        """Whether a thing can stand there: not in water, not on rails."""
        lie = self.ground.lie_at(side * (self.ground.half_width + beyond_kerb), ahead)
        return lie not in (Lie.WATER, Lie.RAILS)

    def _near(self, nearest: float, farthest: float) -> float:
        """Metres ahead, more often near than far."""
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
                self.solids += structures.wall(rng, edge, length=length)
            elif kind == "fence" or is_fenced:
                self.solids += structures.fence(rng, edge, length=length)

    def _place_house(self, side: int, setback: float, middle: float, *, length: float) -> None:
        """A house whose front is ``setback`` metres beyond the kerb."""
        rng, depth = self.rng, float(self.rng.uniform(7, 12))
        height = float(rng.uniform(6, 22) if self.is_urban else rng.uniform(3.5, 8))
        is_pitched = height < 9 and rng.random() < 0.75
        spot = self._spot(side, setback + depth / 2, middle)
        self.solids += structures.building(
            rng, spot, frontage=length, depth=depth, height=height, is_pitched=is_pitched
        )

    def _place_trees(self, side: int, setback: float, middle: float, *, length: float) -> None:
        """A few trees and bushes."""
        rng = self.rng
        for _ in range(int(rng.integers(2, 5))):
            beyond, ahead = setback + float(rng.uniform(0, 6)), middle + float(rng.uniform(-0.5, 0.5)) * length
            spot, height = self._spot(side, beyond, ahead), float(rng.uniform(4, 10))
            self.solids += living.tree(rng, spot, height=height) if rng.random() < 0.65 else living.bush(rng, spot)

    def _place_lamps(self, side: int) -> None:
        """Street lamps at the kerb, more or less evenly spaced."""
        rng = self.rng
        for ahead in np.arange(rng.uniform(4, 16), STREET_END, rng.uniform(14, 24)):
            if self._is_clear(ahead):
                solids = furniture.street_lamp(rng, self._spot(side, 0.5, float(ahead)), inward=-side)
                head = solids[-1].foot
                self.solids += solids
                self.lamps.append((head.x, head.y, head.z))

    def _place_guard_rail(self, side: int) -> None:
        """In pieces of 20 m, with gaps at the crossing."""
        for ahead in np.arange(10, 100, 20.0):
            if self._is_clear(ahead, 11):
                self.solids += structures.guard_rail(self.rng, self._spot(side, 0.3, float(ahead)), length=20)

    def _place_signs_and_trees(self, side: int) -> None:
        """Signs here and there, and often a row of trees."""
        rng = self.rng
        for _ in range(int(rng.integers(2, 6))):
            self.solids += furniture.traffic_sign(rng, self._spot(side, rng.uniform(0.3, 1.2), self._near(7, 60)))
        if rng.random() < 0.4:
            for ahead in np.arange(rng.uniform(6, 14), 90, rng.uniform(9, 14)):
                if self._is_clear(ahead):
                    spot = self._spot(side, 1.1, float(ahead))
                    self.solids += living.tree(rng, spot, height=float(rng.uniform(4, 7)))

    def _place_things(self, side: int) -> None:
        """Bins, crates, bushes and oddities on the pavement."""
        rng = self.rng
        for _ in range(int(rng.integers(5, 11))):
            beyond, ahead = float(rng.uniform(0.6, 4.0)), self._near(6, 50)
            make = THINGS[int(rng.choice(len(THINGS), p=(0.4, 0.4, 0.14, 0.06)))]
            spot = self._spot(side, beyond, ahead).turned(float(rng.uniform(0, 3)))
            if self._can_stand(side, beyond, ahead) and self._is_clear(ahead):
                self.solids += make(rng, spot)

    def _place_parked(self, side: int) -> None:
        """Vehicles at the kerb, half on the pavement where the street is narrow."""
        rng, beyond = self.rng, 0.15 if self.ground.lanes < 4 else -1.1
        for ahead in np.arange(rng.uniform(5, 12), 80, 7.5):
            if rng.random() < 0.4 and self._is_clear(ahead, 6):
                lateral = side * (self.ground.half_width + beyond)
                spot = self.ground.spot(lateral, float(ahead)).turned(float(rng.normal(0, 0.03)))
                make = VEHICLES[int(rng.choice(len(VEHICLES), p=(0.6, 0.08, 0, 0.32)))]
                self.solids += make(rng, spot, speed=0.0)

    def _place_people(self, side: int) -> None:
        """Pedestrians on the pavement, and now and then one who crosses the street."""
        rng = self.rng
        for _ in range(int(rng.integers(3, 10))):
            beyond, ahead = float(rng.uniform(0.7, 3.0)), self._near(6, 45)
            turn = float(rng.choice([0, math.pi])) + float(rng.normal(0, 0.3))
            if self._can_stand(side, beyond, ahead):
                spot = self._spot(side, beyond, ahead).turned(turn)
                self.solids += living.pedestrian(rng, spot, speed=float(rng.uniform(0.6, 1.6)))
        if rng.random() < 0.35:
            at = self.ground.spot(side * float(rng.uniform(1, self.ground.half_width)), float(rng.uniform(16, 35)))
            self.solids += living.pedestrian(rng, at.turned(-side * math.pi / 2), speed=1.2)

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
            self.solids += structures.overpass(self.rng, at, half_span=self.ground.half_width + 1.2)

    def _place_crossing(self, middle: float, half_width: float) -> None:
        """Signals at the corners of a crossing, and traffic on it."""
        rng = self.rng
        for side in (-1, 1):
            for ahead in (middle - half_width - 1.5, middle + half_width + 1.5):
                if rng.random() < 0.8:
                    self.solids += furniture.traffic_light(rng, self._spot(side, 0.6, ahead), inward=-side)
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
                self.solids += structures.building(rng, at, frontage=12, depth=depth, height=height, is_pitched=False)
            else:
                self.solids += living.tree(rng, at, height=float(rng.uniform(12, 20)))
