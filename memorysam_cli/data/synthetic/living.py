"""What lives in a street: trees, bushes, pedestrians."""

from __future__ import annotations

import numpy as np

from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.colours import foliage, grey, paint
from memorysam_cli.data.synthetic.solids import Colour, Shape, Solid, Spot, Texture

Rng = np.random.Generator


def tree(rng: Rng, spot: Spot, *, height: float) -> list[Solid]:
    """A trunk and one to three leafy crowns."""
    colour, width = foliage(rng), height * float(rng.uniform(0.45, 0.75))
    bark = grey(rng, 0.05, 0.25)
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
        parts.append(_crown(at, (size, size, height * 0.62), colour))
    return parts


def _crown(spot: Spot, extent: tuple[float, float, float], colour: Colour) -> Solid:
    """A ball of leaves."""
    return Solid(spot, extent, Label.VEGETATION, Material.LEAF, colour, shape=Shape.ELLIPSOID, texture=Texture.LEAVES)


def bush(rng: Rng, spot: Spot) -> list[Solid]:
    """A low ball of leaves, half in the ground."""
    width, height = rng.uniform(0.9, 2.6), rng.uniform(0.8, 2.0)
    return [_crown(spot.beside(0, 0, -0.25 * height), (float(width), float(width), float(height)), foliage(rng))]


def pedestrian(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """Legs, torso and head."""
    height = float(rng.uniform(1.5, 1.95))
    skin_level = float(rng.uniform(0.1, 0.45))
    skin = (skin_level * 1.25, skin_level, skin_level * 0.8)
    kind = (Label.PEDESTRIAN, Material.FABRIC)
    trousers, stride = paint(rng), float(rng.uniform(0.05, 0.28))
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
        paint(rng),
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
