"""The vocabulary of the synthetic worlds: DELIVER's labels, MCubeS' materials and how materials answer light."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Label(IntEnum):
    """DELIVER's raw label values: class index + 1; 0 counts nowhere."""

    UNLABELED = 0
    BUILDING = 1
    FENCE = 2
    OTHER = 3
    PEDESTRIAN = 4
    POLE = 5
    ROAD_LINE = 6
    ROAD = 7
    SIDEWALK = 8
    VEGETATION = 9
    CAR = 10
    WALL = 11
    TRAFFIC_SIGN = 12
    SKY = 13
    GROUND = 14
    BRIDGE = 15
    RAIL_TRACK = 16
    GROUND_RAIL = 17
    TRAFFIC_LIGHT = 18
    STATIC = 19
    DYNAMIC = 20
    WATER = 21
    TERRAIN = 22
    TWO_WHEELER = 23
    BUS = 24
    TRUCK = 25


class Material(IntEnum):
    """MCubeS' 20 materials; the value is the class id of its label images."""

    ASPHALT = 0
    CONCRETE = 1
    METAL = 2
    ROAD_MARKING = 3
    FABRIC = 4
    GLASS = 5
    PLASTER = 6
    PLASTIC = 7
    RUBBER = 8
    SAND = 9
    GRAVEL = 10
    CERAMIC = 11
    COBBLESTONE = 12
    BRICK = 13
    GRASS = 14
    WOOD = 15
    LEAF = 16
    WATER = 17
    HUMAN = 18
    SKY = 19


def _table(values: dict[Material, float], *, default: float) -> np.ndarray:
    """One float32 per material, (20,)."""
    return np.array([values.get(material, default) for material in Material], np.float32)


NIR_REFLECTANCE = _table(
    {
        Material.ASPHALT: 0.14,
        Material.METAL: 0.42,
        Material.ROAD_MARKING: 0.7,
        Material.FABRIC: 0.62,
        Material.GLASS: 0.1,
        Material.PLASTER: 0.55,
        Material.RUBBER: 0.05,
        Material.GRASS: 0.78,
        Material.LEAF: 0.88,
        Material.WATER: 0.02,
        Material.HUMAN: 0.6,
        Material.WOOD: 0.5,
        Material.SKY: 0.25,
    },
    default=0.36,
)
"""Share of near-infrared light that a material sends back; leaves shine, water swallows."""

SHINE = _table(
    {
        Material.GLASS: 1.0,
        Material.WATER: 0.95,
        Material.METAL: 0.6,
        Material.CERAMIC: 0.5,
        Material.PLASTIC: 0.45,
        Material.ROAD_MARKING: 0.25,
        Material.ASPHALT: 0.2,
        Material.RUBBER: 0.2,
        Material.SKY: 0.3,
    },
    default=0.1,
)
"""How mirror-like a material is, 0..1: what polarises light."""
