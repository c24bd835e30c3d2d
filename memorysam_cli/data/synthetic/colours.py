"""Colours that say little: classes share them on purpose, so that colour alone does not tell what a thing is."""

from __future__ import annotations

import numpy as np

from memorysam_cli.data.synthetic.solids import Colour

Rng = np.random.Generator
HUES: tuple[Colour, ...] = (
    (0.45, 0.04, 0.03),
    (0.05, 0.12, 0.4),
    (0.06, 0.2, 0.1),
    (0.6, 0.4, 0.05),
    (0.5, 0.18, 0.04),
    (0.04, 0.25, 0.32),
    (0.3, 0.22, 0.14),
)
"""Red, blue, green, yellow, orange, teal, beige."""


def grey(rng: Rng, low: float = 0.08, high: float = 0.5) -> Colour:
    """A colour that says little: asphalt, concrete, plaster, metal and dirt all draw from here."""
    level = float(rng.uniform(low, high))
    warm = float(rng.normal(0.0, 0.035))
    return (level * (1 + warm), level, level * (1 - warm))


def paint(rng: Rng) -> Colour:
    """A colour of cars, clothes and signs; every other one is greyish."""
    if rng.random() < 0.5:
        return grey(rng, 0.03, 0.75)
    hue = HUES[int(rng.integers(len(HUES)))]
    level, wash = float(rng.uniform(0.4, 1.1)), float(rng.uniform(0.0, 0.35))
    red, green, blue = (level * (part + wash * (0.3 - part)) for part in hue)
    return (red, green, blue)


def facade(rng: Rng) -> Colour:
    """A colour of houses, walls and trailers."""
    level = float(rng.uniform(0.12, 0.5))
    red, blue = rng.uniform(0.85, 1.45), rng.uniform(0.6, 1.0)
    return (level * float(red), level, level * float(blue))


def foliage(rng: Rng) -> Colour:
    """Green to brownish."""
    level = float(rng.uniform(0.06, 0.18))
    return (level * float(rng.uniform(0.6, 1.3)), level, level * float(rng.uniform(0.25, 0.6)))
