"""The things in a street: each is a few bodies, drawn at random around its spot.

First buildings (houses, walls, fences, guard rails, bridges), then things on a sidewalk (lamps, signals, signs, bins,
crates, things without a class), then vehicles, trees, bushes and people. A moving thing stands with its center at its
spot and moves along its heading.
"""

from __future__ import annotations

import math

import numpy as np

from memorysam_cli.streetworld.geometry import Shape, Solid, Spot
from memorysam_cli.streetworld.surfaces import (
    Color,
    Label,
    Material,
    Rng,
    Texture,
    pick_facade,
    pick_foliage,
    pick_gray,
    pick_paint,
)


def building(rng: Rng, spot: Spot, *, frontage: float, depth: float, height: float, is_pitched: bool) -> list[Solid]:
    """A house with windows, or now and then a blind brick front; ``spot`` is the middle of its footprint."""
    blind = rng.random() < 0.2
    material = Material.BRICK if blind or rng.random() < 0.25 else Material.PLASTER
    texture = Texture.BRICK if blind else Texture.WINDOWS
    color = pick_facade(rng) if rng.random() < 0.6 else pick_gray(rng, 0.15)
    body = Solid(spot, (depth, frontage, height), Label.BUILDING, material, color, texture=texture)
    rise = float(rng.uniform(1.8, 3.5) if is_pitched else rng.uniform(0.3, 0.9))
    roof = Solid(
        spot.beside(0, 0, height).turned(math.pi / 2),
        (frontage + 0.3, depth + 0.7, rise),
        Label.BUILDING,
        Material.CERAMIC,
        pick_facade(rng) if is_pitched else pick_gray(rng, 0.05, 0.3),
        texture=Texture.BRICK if is_pitched else Texture.PLAIN,
        taper=0.97 if is_pitched else 0.0,
    )
    return [body, roof]


def wall(rng: Rng, spot: Spot, *, length: float) -> list[Solid]:
    """A free-standing wall along the street: brick, concrete or panels that resemble windows."""
    texture = rng.choice([Texture.BRICK, Texture.PLAIN, Texture.PANELS])
    material = Material.BRICK if texture == Texture.BRICK else Material.CONCRETE
    color = pick_facade(rng) if rng.random() < 0.5 else pick_gray(rng, 0.15)
    extent = (0.35, length, float(rng.uniform(1.4, 3.4)))
    return [Solid(spot, extent, Label.WALL, material, color, texture=Texture(texture))]


def fence(rng: Rng, spot: Spot, *, length: float) -> list[Solid]:
    """Wooden planks, or a railing of posts and bars that one sees through."""
    if rng.random() < 0.55:
        extent = (0.12, length, float(rng.uniform(1.1, 1.9)))
        return [Solid(spot, extent, Label.FENCE, Material.WOOD, pick_facade(rng), texture=Texture.PLANKS)]
    color, height = pick_gray(rng, 0.05, 0.4), float(rng.uniform(1.0, 1.4))
    bars = [
        Solid(spot.beside(0, 0, height * level), (0.06, length, 0.12), Label.FENCE, Material.METAL, color)
        for level in (0.15, 0.5, 0.88)
    ]
    count = max(2, round(length / 2))
    posts = [
        Solid(
            spot.beside(0, (i / (count - 1) - 0.5) * length), (0.09, 0.09, height), Label.FENCE, Material.METAL, color
        )
        for i in range(count)
    ]
    return bars + posts


def guard_rail(rng: Rng, spot: Spot, *, length: float) -> list[Solid]:
    """A steel band on posts along the carriageway."""
    color = pick_gray(rng, 0.25, 0.5)
    band = Solid(spot.beside(0, 0, 0.45), (0.1, length, 0.32), Label.GROUND_RAIL, Material.METAL, color)
    posts = [
        Solid(spot.beside(0.05, offset), (0.1, 0.1, 0.6), Label.GROUND_RAIL, Material.METAL, color)
        for offset in np.arange(-length / 2 + 1, length / 2, 4.0)
    ]
    return [band, *posts]


def overpass(rng: Rng, spot: Spot, *, half_span: float) -> list[Solid]:
    """A bridge over the street: a deck with parapets, and pillars at both sides."""
    color, clearance, width = pick_gray(rng, 0.15, 0.45), float(rng.uniform(4.8, 6.5)), float(rng.uniform(5, 10))
    kind = (Label.BRIDGE, Material.CONCRETE, color)
    deck = Solid(spot.beside(0, 0, clearance), (2 * half_span + 60, width, 1.1), *kind)
    parapet = Solid(spot.beside(0, -width / 2, clearance + 1.1), (2 * half_span + 60, 0.3, 0.8), *kind)
    pillars = [
        Solid(spot.beside(side * half_span, ahead), (1.0, 1.0, clearance), *kind, shape=Shape.CYLINDER)
        for side in (-1, 1)
        for ahead in (-width / 3, width / 3)
    ]
    return [deck, parapet, *pillars]


def _post(rng: Rng, spot: Spot, *, height: float, color: Color) -> Solid:
    """A thin upright pole."""
    width = float(rng.uniform(0.12, 0.22))
    return Solid(spot, (width, width, height), Label.POLE, Material.METAL, color, shape=Shape.CYLINDER)


def street_lamp(rng: Rng, spot: Spot, *, inward: float) -> list[Solid]:
    """A lamp post whose arm reaches over the street (``inward`` is -1 or 1: which way the street lies)."""
    color, height, reach = pick_gray(rng, 0.08, 0.45), float(rng.uniform(5.0, 7.5)), float(rng.uniform(1.0, 2.0))
    arm = Solid(spot.beside(inward * reach / 2, 0, height - 0.1), (reach, 0.1, 0.1), Label.POLE, Material.METAL, color)
    head = Solid(
        spot.beside(inward * reach, 0, height - 0.22),
        (0.7, 0.25, 0.16),
        Label.POLE,
        Material.GLASS,
        (0.7, 0.7, 0.65),
        texture=Texture.LAMP,
    )
    return [_post(rng, spot, height=height, color=color), arm, head]


def traffic_light(rng: Rng, spot: Spot, *, inward: float) -> list[Solid]:
    """Two signal heads, one on the post and often one over the street."""
    color, height = pick_gray(rng, 0.08, 0.4), float(rng.uniform(3.4, 5.2))
    heads = [spot.beside(0, -0.2, 2.1)]
    parts = [_post(rng, spot, height=height, color=color)]
    if rng.random() < 0.6:
        reach = float(rng.uniform(2.0, 3.5))
        at = spot.beside(inward * reach / 2, 0, height - 0.1)
        parts.append(Solid(at, (reach, 0.12, 0.12), Label.POLE, Material.METAL, color))
        heads.append(spot.beside(inward * reach, -0.1, height - 0.9))
    casing = pick_gray(rng, 0.02, 0.12)
    for head in heads:
        parts.append(
            Solid(head, (0.42, 0.3, 1.05), Label.TRAFFIC_LIGHT, Material.PLASTIC, casing, texture=Texture.SIGNAL)
        )
    return parts


def traffic_sign(rng: Rng, spot: Spot) -> list[Solid]:
    """A plate on a post that faces the traffic."""
    height, width = float(rng.uniform(2.2, 2.9)), float(rng.uniform(0.6, 1.0))
    tall = width * float(rng.choice([1.0, 1.0, 0.7, 1.3]))
    plate = Solid(
        spot.beside(0, -0.12, height - tall),
        (width, 0.06, tall),
        Label.TRAFFIC_SIGN,
        Material.METAL,
        pick_paint(rng),
        texture=Texture.SIGN,
    )
    return [_post(rng, spot, height=height, color=pick_gray(rng, 0.1, 0.5)), plate]


def static_thing(rng: Rng, spot: Spot) -> list[Solid]:
    """Street furniture that stays: a bin, a bench, a kiosk or a bus shelter's screen."""
    kind = rng.integers(4)
    color = pick_paint(rng)
    if kind == 0:
        extent, material, shape = (0.6, 0.6, 1.1), Material.PLASTIC, Shape.CYLINDER
    elif kind == 1:
        extent, material, shape = (0.6, 1.8, 0.8), Material.WOOD, Shape.BOX
    elif kind == 2:
        extent, material, shape = (1.2, 1.6, 2.2), Material.METAL, Shape.BOX
    else:
        extent, material, shape = (0.9, 1.3, 1.3), Material.PLASTIC, Shape.BOX
    return [Solid(spot, extent, Label.STATIC, material, color, shape=shape)]


def dynamic_thing(rng: Rng, spot: Spot) -> list[Solid]:
    """Things that people leave about: barrels, crates, a trolley."""
    if rng.random() < 0.5:
        extent, shape = (0.55, 0.55, float(rng.uniform(0.7, 1.0))), Shape.CYLINDER
    else:
        extent, shape = (float(rng.uniform(0.5, 1.1)), 0.8, float(rng.uniform(0.4, 0.9))), Shape.BOX
    return [Solid(spot, extent, Label.DYNAMIC, Material.PLASTIC, pick_paint(rng), shape=shape)]


def oddity(rng: Rng, spot: Spot) -> list[Solid]:
    """A thing without a class: labeled Other or, equally often, not at all."""
    label = Label.OTHER if rng.random() < 0.5 else Label.UNLABELED
    at = spot.beside(0, 0, 0.0)
    size = float(rng.uniform(0.9, 1.8))
    plinth = Solid(at, (0.8 * size, 0.8 * size, 0.5 * size), label, Material.CONCRETE, pick_gray(rng, 0.2))
    ball = Solid(
        at.beside(0, 0, 0.5 * size),
        (size, size, size),
        label,
        Material.CERAMIC,
        pick_gray(rng, 0.2),
        shape=Shape.ELLIPSOID,
    )
    return [plinth, ball]


def car(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """Body with wheels and lights, and a glazed cabin."""
    width, length, height = rng.uniform(1.7, 1.95), rng.uniform(3.8, 4.9), rng.uniform(1.4, 1.75)
    color = pick_paint(rng)
    body = Solid(
        spot.beside(0, 0, 0.12),
        (float(width), float(length), float(0.55 * height)),
        Label.CAR,
        Material.METAL,
        color,
        texture=Texture.BODYWORK,
        speed=speed,
    )
    cabin = Solid(
        spot.beside(0, float(rng.uniform(-0.35, 0.0)), 0.12 + 0.55 * float(height)),
        (float(0.88 * width), float(length * rng.uniform(0.55, 0.72)), float(0.42 * height)),
        Label.CAR,
        Material.METAL,
        color,
        texture=Texture.CABIN,
        speed=speed,
        taper=float(rng.uniform(0.2, 0.45)),
    )
    return [body, cabin]


def truck(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """A cab and a box that may look like a wall."""
    width, length, height = float(rng.uniform(2.2, 2.5)), float(rng.uniform(4.0, 7.5)), float(rng.uniform(2.4, 3.2))
    kind = (Label.TRUCK, Material.METAL)
    cargo = Solid(
        spot.beside(0, -1.2, 0.7),
        (width, length, height),
        *kind,
        pick_facade(rng) if rng.random() < 0.5 else pick_gray(rng, 0.2, 0.7),
        texture=Texture(rng.choice([Texture.PLAIN, Texture.PANELS])),
        speed=speed,
    )
    ahead = length / 2 - 0.1
    cab = Solid(
        spot.beside(0, ahead, 0.9),
        (width * 0.95, 2.0, 1.6),
        *kind,
        pick_paint(rng),
        texture=Texture.CABIN,
        speed=speed,
        taper=0.2,
    )
    chassis = Solid(
        spot.beside(0, -0.05, 0.12),
        (width * 0.96, length + 2.2, 0.58),
        *kind,
        pick_gray(rng, 0.03, 0.1),
        texture=Texture.BODYWORK,
        speed=speed,
    )
    return [cargo, cab, chassis]


def bus(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """One long coach."""
    extent = (2.5, float(rng.uniform(8.5, 12)), float(rng.uniform(2.7, 3.1)))
    return [
        Solid(
            spot.beside(0, 0, 0.15),
            extent,
            Label.BUS,
            Material.METAL,
            pick_paint(rng),
            texture=Texture.COACH,
            speed=speed,
        )
    ]


def two_wheeler(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """A bicycle or motorbike: two wheels and a frame; with a rider if it moves."""
    wheel, color = float(rng.uniform(0.58, 0.7)), pick_paint(rng)
    label = Label.TWO_WHEELER
    parts = [
        Solid(
            spot.beside(0, offset),
            (0.1, wheel, wheel),
            label,
            Material.RUBBER,
            pick_gray(rng, 0.02, 0.08),
            shape=Shape.ELLIPSOID,
            speed=speed,
        )
        for offset in (-0.52, 0.52)
    ]
    parts.append(Solid(spot.beside(0, 0, 0.45), (0.16, 1.0, 0.35), label, Material.METAL, color, speed=speed))
    parts.append(Solid(spot.beside(0, 0.45, 0.95), (0.6, 0.08, 0.08), label, Material.METAL, color, speed=speed))
    if speed:
        parts += [
            Solid(
                spot.beside(0, -0.12, 0.6),
                (0.44, 0.42, 0.85),
                label,
                Material.FABRIC,
                pick_paint(rng),
                shape=Shape.ELLIPSOID,
                speed=speed,
            ),
            Solid(
                spot.beside(0, 0.02, 1.38),
                (0.26, 0.26, 0.28),
                label,
                Material.PLASTIC,
                pick_paint(rng),
                shape=Shape.ELLIPSOID,
                speed=speed,
            ),
        ]
    return parts


def tree(rng: Rng, spot: Spot, *, height: float) -> list[Solid]:
    """A trunk and one to three leafy crowns."""
    color, width = pick_foliage(rng), height * float(rng.uniform(0.45, 0.75))
    bark = pick_gray(rng, 0.05, 0.25)
    trunk = Solid(
        spot, (height * 0.06, height * 0.06, height * 0.5), Label.VEGETATION, Material.WOOD, bark, shape=Shape.CYLINDER
    )
    parts = [trunk]
    for _ in range(int(rng.integers(1, 4))):
        size = width * float(rng.uniform(0.7, 1.0))
        at = spot.beside(
            float(rng.normal(0, 0.18 * width)),
            float(rng.normal(0, 0.18 * width)),
            height * float(rng.uniform(0.3, 0.45)),
        )
        parts.append(_crown(at, (size, size, height * 0.62), color))
    return parts


def _crown(spot: Spot, extent: tuple[float, float, float], color: Color) -> Solid:
    """A ball of leaves."""
    return Solid(spot, extent, Label.VEGETATION, Material.LEAF, color, shape=Shape.ELLIPSOID, texture=Texture.LEAVES)


def bush(rng: Rng, spot: Spot) -> list[Solid]:
    """A low ball of leaves, half in the ground."""
    width, height = rng.uniform(0.9, 2.6), rng.uniform(0.8, 2.0)
    return [_crown(spot.beside(0, 0, -0.25 * height), (float(width), float(width), float(height)), pick_foliage(rng))]


def pedestrian(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """Legs, torso and head."""
    height = float(rng.uniform(1.5, 1.95))
    skin_level = float(rng.uniform(0.1, 0.45))
    skin = (skin_level * 1.25, skin_level, skin_level * 0.8)
    kind = (Label.PEDESTRIAN, Material.FABRIC)
    trousers, stride = pick_paint(rng), float(rng.uniform(0.05, 0.28))
    legs = [
        Solid(
            spot.beside(0.09 * side, stride * side),
            (0.17, 0.18, 0.5 * height),
            *kind,
            trousers,
            shape=Shape.CYLINDER,
            speed=speed,
        )
        for side in (-1, 1)
    ]
    torso = Solid(
        spot.beside(0, 0, 0.44 * height),
        (0.46, 0.27, 0.41 * height),
        *kind,
        pick_paint(rng),
        shape=Shape.CYLINDER,
        speed=speed,
    )
    head = Solid(
        spot.beside(0, 0, 0.85 * height),
        (0.22, 0.22, 0.15 * height),
        Label.PEDESTRIAN,
        Material.HUMAN,
        skin,
        shape=Shape.ELLIPSOID,
        speed=speed,
    )
    return [*legs, torso, head]
