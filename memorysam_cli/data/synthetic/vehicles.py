"""What drives in a street; each stands with its middle at its spot and moves along its heading."""

from __future__ import annotations

import numpy as np

from memorysam_cli.data.synthetic.classes import Label, Material
from memorysam_cli.data.synthetic.colours import facade, grey, paint
from memorysam_cli.data.synthetic.solids import Shape, Solid, Spot, Texture

Rng = np.random.Generator


def car(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """Body with wheels and lights, and a glazed cabin."""
    width, length, height = rng.uniform(1.7, 1.95), rng.uniform(3.8, 4.9), rng.uniform(1.4, 1.75)
    colour = paint(rng)
    body = Solid(
        spot.beside(0, 0, 0.12),
        (float(width), float(length), float(0.55 * height)),
        Label.CAR,
        Material.METAL,
        colour,
        texture=Texture.BODYWORK,
        speed=speed,
    )
    cabin = Solid(
        spot.beside(0, float(rng.uniform(-0.35, 0.0)), 0.12 + 0.55 * float(height)),
        (float(0.88 * width), float(length * rng.uniform(0.55, 0.72)), float(0.42 * height)),
        Label.CAR,
        Material.METAL,
        colour,
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
        facade(rng) if rng.random() < 0.5 else grey(rng, 0.2, 0.7),
        texture=Texture(rng.choice([Texture.PLAIN, Texture.PANELS])),
        speed=speed,
    )
    ahead = length / 2 - 0.1
    cab = Solid(
        spot.beside(0, ahead, 0.9),
        (width * 0.95, 2.0, 1.6),
        *kind,
        paint(rng),
        texture=Texture.CABIN,
        speed=speed,
        taper=0.2,
    )
    chassis = Solid(
        spot.beside(0, -0.05, 0.12),
        (width * 0.96, length + 2.2, 0.58),
        *kind,
        grey(rng, 0.03, 0.1),
        texture=Texture.BODYWORK,
        speed=speed,
    )
    return [cargo, cab, chassis]


def bus(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """One long coach."""
    extent = (2.5, float(rng.uniform(8.5, 12)), float(rng.uniform(2.7, 3.1)))
    return [
        Solid(
            spot.beside(0, 0, 0.15), extent, Label.BUS, Material.METAL, paint(rng), texture=Texture.COACH, speed=speed
        )
    ]


def two_wheeler(rng: Rng, spot: Spot, *, speed: float) -> list[Solid]:
    """A bicycle or motorbike: two wheels and a frame; with a rider if it moves."""
    wheel, colour = float(rng.uniform(0.58, 0.7)), paint(rng)
    label = Label.TWO_WHEELER
    parts = [
        Solid(
            spot.beside(0, offset),
            (0.1, wheel, wheel),
            label,
            Material.RUBBER,
            grey(rng, 0.02, 0.08),
            shape=Shape.ELLIPSOID,
            speed=speed,
        )
        for offset in (-0.52, 0.52)
    ]
    parts.append(Solid(spot.beside(0, 0, 0.45), (0.16, 1.0, 0.35), label, Material.METAL, colour, speed=speed))
    parts.append(Solid(spot.beside(0, 0.45, 0.95), (0.6, 0.08, 0.08), label, Material.METAL, colour, speed=speed))
    if speed:
        parts += [
            Solid(
                spot.beside(0, -0.12, 0.6),
                (0.44, 0.42, 0.85),
                label,
                Material.FABRIC,
                paint(rng),
                shape=Shape.ELLIPSOID,
                speed=speed,
            ),
            Solid(
                spot.beside(0, 0.02, 1.38),
                (0.26, 0.26, 0.28),
                label,
                Material.PLASTIC,
                paint(rng),
                shape=Shape.ELLIPSOID,
                speed=speed,
            ),
        ]
    return parts
