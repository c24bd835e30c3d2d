"""Tiny worlds whose pictures can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from memorysam_cli.streetworld.geometry import Camera, Shape, Solid, Spot
from memorysam_cli.streetworld.scenes import PlannedScene
from memorysam_cli.streetworld.street import Crossing, Ground, GroundKind, Zone
from memorysam_cli.streetworld.surfaces import Label, Material

BoxMaker = Callable[..., Solid]


@pytest.fixture
def box() -> BoxMaker:
    """Makes a gray body at a spot."""

    def make(
        spot: Spot,
        extent: tuple[float, float, float],
        *,
        shape: Shape = Shape.BOX,
        taper: float = 0.0,
        speed: float = 0.0,
    ) -> Solid:
        gray = (0.5, 0.5, 0.5)
        return Solid(spot, extent, Label.STATIC, Material.CONCRETE, gray, shape=shape, taper=taper, speed=speed)

    return make


@pytest.fixture
def level_camera() -> Camera:
    """1.5 m above the origin, looking along the street; 64x64 px, focal length 64 px."""
    return Camera(Spot(0.0, 0.0, 1.5), 0.0, 64, 64, focal=1.0)


@pytest.fixture
def straight_street() -> Ground:
    """Two lanes of 3 m, sidewalks of 2 m to both sides, grass beyond; no bend, no crossing."""
    return street(crossing=None)


def street(*, crossing: Crossing | None) -> Ground:
    """A straight street with sidewalks 0.2 m high."""
    heights = {GroundKind.SIDEWALK: 0.2, GroundKind.WATER: -0.9}
    labels = (Label.ROAD, Label.ROAD_LINE, Label.SIDEWALK, Label.TERRAIN, Label.GROUND, Label.RAIL_TRACK, Label.WATER)
    gray = (0.3, 0.3, 0.3)
    kinds = GroundKind
    strips = (kinds.GREEN, kinds.SIDEWALK, kinds.ROAD, kinds.SIDEWALK, kinds.GREEN)
    return Ground(
        zones=tuple(Zone(labels[kind], Material.ASPHALT, gray, heights.get(kind, 0.0)) for kind in GroundKind),
        borders=np.array([-5, -3, 3, 5], np.float32),
        strips=np.array([[kind, kind] for kind in strips], np.uint8),
        half_width=3.0,
        lanes=2,
        bend=(0.0, 100.0),
        crossing=crossing,
        salt=1,
        margins=(2.0, 2.0),
    )


@pytest.fixture
def planned() -> PlannedScene:
    """A sunny scene without failure."""
    return PlannedScene("train", 4, 1, "sun", None, 1, 1)


@pytest.fixture
def make_street() -> Callable[..., Ground]:
    """Makes the straight street, with a crossing."""
    return street
