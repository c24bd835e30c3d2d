"""What is built along a street: houses, walls, fences, guard rails, bridges."""

from __future__ import annotations

import math

import numpy as np

from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.colours import facade, grey
from memorysam_cli.data.synthetic.solids import Shape, Solid, Spot, Texture

Rng = np.random.Generator


def building(rng: Rng, spot: Spot, *, frontage: float, depth: float, height: float, is_pitched: bool) -> list[Solid]:
    """A house with windows, or now and then a blind brick front; ``spot`` is the middle of its footprint."""
    blind = rng.random() < 0.2
    material = Material.BRICK if blind or rng.random() < 0.25 else Material.PLASTER
    texture = Texture.BRICK if blind else Texture.WINDOWS
    colour = facade(rng) if rng.random() < 0.6 else grey(rng, 0.15)
    body = Solid(spot, (depth, frontage, height), Label.BUILDING, material, colour, texture=texture)
    rise = float(rng.uniform(1.8, 3.5) if is_pitched else rng.uniform(0.3, 0.9))
    roof = Solid(
        spot.beside(0, 0, height).turned(math.pi / 2),
        (frontage + 0.3, depth + 0.7, rise),
        Label.BUILDING,
        Material.CERAMIC,
        facade(rng) if is_pitched else grey(rng, 0.05, 0.3),
        texture=Texture.BRICK if is_pitched else Texture.PLAIN,
        taper=0.97 if is_pitched else 0.0,
    )
    return [body, roof]


def wall(rng: Rng, spot: Spot, *, length: float) -> list[Solid]:
    """A free-standing wall along the street: brick, concrete or panels that resemble windows."""
    texture = rng.choice([Texture.BRICK, Texture.PLAIN, Texture.PANELS])
    material = Material.BRICK if texture == Texture.BRICK else Material.CONCRETE
    colour = facade(rng) if rng.random() < 0.5 else grey(rng, 0.15)
    extent = (0.35, length, float(rng.uniform(1.4, 3.4)))
    return [Solid(spot, extent, Label.WALL, material, colour, texture=Texture(texture))]


def fence(rng: Rng, spot: Spot, *, length: float) -> list[Solid]:
    """Wooden planks, or a railing of posts and bars that one sees through."""
    if rng.random() < 0.55:
        extent = (0.12, length, float(rng.uniform(1.1, 1.9)))
        return [Solid(spot, extent, Label.FENCE, Material.WOOD, facade(rng), texture=Texture.PLANKS)]
    colour, height = grey(rng, 0.05, 0.4), float(rng.uniform(1.0, 1.4))
    bars = [
        Solid(spot.beside(0, 0, height * level), (0.06, length, 0.12), Label.FENCE, Material.METAL, colour)
        for level in (0.15, 0.5, 0.88)
    ]
    count = max(2, round(length / 2))
    posts = [
        Solid(
            spot.beside(0, (i / (count - 1) - 0.5) * length), (0.09, 0.09, height), Label.FENCE, Material.METAL, colour
        )
        for i in range(count)
    ]
    return bars + posts


def guard_rail(rng: Rng, spot: Spot, *, length: float) -> list[Solid]:
    """A steel band on posts along the carriageway."""
    colour = grey(rng, 0.25, 0.5)
    band = Solid(spot.beside(0, 0, 0.45), (0.1, length, 0.32), Label.GROUND_RAIL, Material.METAL, colour)
    posts = [
        Solid(spot.beside(0.05, offset), (0.1, 0.1, 0.6), Label.GROUND_RAIL, Material.METAL, colour)
        for offset in np.arange(-length / 2 + 1, length / 2, 4.0)
    ]
    return [band, *posts]


def overpass(rng: Rng, spot: Spot, *, half_span: float) -> list[Solid]:
    """A bridge over the street: a deck with parapets, and pillars at both sides."""
    colour, clearance, width = grey(rng, 0.15, 0.45), float(rng.uniform(4.8, 6.5)), float(rng.uniform(5, 10))
    kind = (Label.BRIDGE, Material.CONCRETE, colour)
    deck = Solid(spot.beside(0, 0, clearance), (2 * half_span + 60, width, 1.1), *kind)
    parapet = Solid(spot.beside(0, -width / 2, clearance + 1.1), (2 * half_span + 60, 0.3, 0.8), *kind)
    pillars = [
        Solid(spot.beside(side * half_span, ahead), (1.0, 1.0, clearance), *kind, shape=Shape.CYLINDER)
        for side in (-1, 1)
        for ahead in (-width / 3, width / 3)
    ]
    return [deck, parapet, *pillars]
