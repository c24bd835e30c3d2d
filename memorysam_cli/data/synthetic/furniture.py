"""What stands on a pavement: lamps, signals, signs, bins, crates, and things that fit no class."""

from __future__ import annotations

import numpy as np

from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.colours import grey, paint
from memorysam_cli.data.synthetic.solids import Colour, Shape, Solid, Spot, Texture

Rng = np.random.Generator


def _post(rng: Rng, spot: Spot, *, height: float, colour: Colour) -> Solid:
    """A thin upright pole."""
    width = float(rng.uniform(0.12, 0.22))
    return Solid(spot, (width, width, height), Label.POLE, Material.METAL, colour, shape=Shape.CYLINDER)


def street_lamp(rng: Rng, spot: Spot, *, inward: float) -> list[Solid]:
    """A lamp post whose arm reaches over the street (``inward`` is -1 or 1: which way the street lies)."""
    colour, height, reach = grey(rng, 0.08, 0.45), float(rng.uniform(5.0, 7.5)), float(rng.uniform(1.0, 2.0))
    arm = Solid(spot.beside(inward * reach / 2, 0, height - 0.1), (reach, 0.1, 0.1), Label.POLE, Material.METAL, colour)
    head = Solid(
        spot.beside(inward * reach, 0, height - 0.22),
        (0.7, 0.25, 0.16),
        Label.POLE,
        Material.GLASS,
        (0.7, 0.7, 0.65),
        texture=Texture.LAMP,
    )
    return [_post(rng, spot, height=height, colour=colour), arm, head]


def traffic_light(rng: Rng, spot: Spot, *, inward: float) -> list[Solid]:
    """Two signal heads, one on the post and often one over the street."""
    colour, height = grey(rng, 0.08, 0.4), float(rng.uniform(3.4, 5.2))
    heads = [spot.beside(0, -0.2, 2.1)]
    parts = [_post(rng, spot, height=height, colour=colour)]
    if rng.random() < 0.6:
        reach = float(rng.uniform(2.0, 3.5))
        at = spot.beside(inward * reach / 2, 0, height - 0.1)
        parts.append(Solid(at, (reach, 0.12, 0.12), Label.POLE, Material.METAL, colour))
        heads.append(spot.beside(inward * reach, -0.1, height - 0.9))
    casing = grey(rng, 0.02, 0.12)
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
        paint(rng),
        texture=Texture.SIGN,
    )
    return [_post(rng, spot, height=height, colour=grey(rng, 0.1, 0.5)), plate]


def static_thing(rng: Rng, spot: Spot) -> list[Solid]:
    """Street furniture that stays: a bin, a bench, a kiosk or a bus shelter's screen."""
    kind = rng.integers(4)
    colour = paint(rng)
    if kind == 0:
        extent, material, shape = (0.6, 0.6, 1.1), Material.PLASTIC, Shape.CYLINDER
    elif kind == 1:
        extent, material, shape = (0.6, 1.8, 0.8), Material.WOOD, Shape.BOX
    elif kind == 2:
        extent, material, shape = (1.2, 1.6, 2.2), Material.METAL, Shape.BOX
    else:
        extent, material, shape = (0.9, 1.3, 1.3), Material.PLASTIC, Shape.BOX
    return [Solid(spot, extent, Label.STATIC, material, colour, shape=shape)]


def dynamic_thing(rng: Rng, spot: Spot) -> list[Solid]:
    """Things that people leave about: barrels, crates, a trolley."""
    if rng.random() < 0.5:
        extent, shape = (0.55, 0.55, float(rng.uniform(0.7, 1.0))), Shape.CYLINDER
    else:
        extent, shape = (float(rng.uniform(0.5, 1.1)), 0.8, float(rng.uniform(0.4, 0.9))), Shape.BOX
    return [Solid(spot, extent, Label.DYNAMIC, Material.PLASTIC, paint(rng), shape=shape)]


def oddity(rng: Rng, spot: Spot) -> list[Solid]:
    """Something that fits no class: labelled Other or, as often, not at all."""
    label = Label.OTHER if rng.random() < 0.5 else Label.UNLABELED
    at = spot.beside(0, 0, 0.0)
    size = float(rng.uniform(0.9, 1.8))
    plinth = Solid(at, (0.8 * size, 0.8 * size, 0.5 * size), label, Material.CONCRETE, grey(rng, 0.2))
    ball = Solid(
        at.beside(0, 0, 0.5 * size), (size, size, size), label, Material.CERAMIC, grey(rng, 0.2), shape=Shape.ELLIPSOID
    )
    return [plinth, ball]
