"""Curves of one line of text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-:=+*#"
GAP = " "


def sparkline(values: Sequence[float | None], *, width: int, blocks: str = BLOCKS) -> str:
    """Values as a line of blocks, the lowest to the highest.

    Args:
        values: in their order; None leaves a gap.
        width: letters at most; more values are averaged in stretches of one length.
        blocks: eight letters of rising height.

    Returns:
        At most ``width`` letters; equal values all have the middle's height.
    """
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [_mean(values[start:end]) for start, end in itertools.pairwise(edges)]
    known = [mean for mean in means if mean is not None]
    if not known:
        return GAP * count
    low, span = min(known), max(known) - min(known)

    def letter(mean: float | None) -> str:
        if mean is None:
            return GAP
        share = (mean - low) / span if span > 0 else 0.5
        return blocks[min(len(blocks) - 1, int(share * len(blocks)))]

    return "".join(map(letter, means))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
