"""Which sensors a benchmark lets fail, and what the memory then sees. Source: DATASETS §1.6, §1.7."""

from __future__ import annotations

from itertools import combinations
from typing import Literal, NamedTuple, get_args

from memorysam_cli.engine.robustness import corruption

Kind = Literal["any", "emm", "rmm", "nm"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Missing = Literal["drop", "zero"]

CLEAN, ZERO = "clean", "zero"
"""Variants of a frame beside the levels of corruption."""

Variant = tuple[int, str]
"""A modality's place, and CLEAN, ZERO or a level of corruption."""


class Cell(NamedTuple):
    """One figure of a benchmark: a level (None where the kind has none, and without noise), and who is missing."""

    level: str | None
    missing: tuple[int, ...]
    """Places of the modalities."""


def missing_sets(count: int) -> list[tuple[int, ...]]:
    """Which of ``count`` sensors can be missing, from none to all but one; four give 15."""
    return [places for size in range(count) for places in combinations(range(count), size)]


def plan_of(kind: Kind, *, modalities: int, missing: Missing) -> dict[Cell, tuple[Variant, ...]]:
    """The figures of a benchmark, and the frames that the memory sees for each."""
    everyone, sets = range(modalities), missing_sets(modalities)
    if kind == "any" and missing == "drop":
        return {Cell(None, gone): tuple((place, CLEAN) for place in everyone if place not in gone) for gone in sets}
    if kind == "nm":
        clean = {Cell(None, ()): tuple((place, CLEAN) for place in everyone)}
        return clean | {Cell(level, ()): tuple((place, level) for place in everyone) for level in corruption.NOISES}
    levels: dict[str | None, str] = {level: level for level in corruption.SHARES} if kind == "rmm" else {None: ZERO}
    return {
        Cell(level, gone): tuple((place, variant if place in gone else CLEAN) for place in everyone)
        for level, variant in levels.items()
        for gone in sets
    }
