"""How much a fault test tries: a share in ``make test``, all in CI, a night's worth under ``make soak``."""

from __future__ import annotations

import os

SOAK = os.environ.get("MEMORYSAM_SOAK") == "1"
SLOW = os.environ.get("MEMORYSAM_SLOW") == "1"
CASES, SHARE = 4, 0.25
"""Of a test with more cases than four ``make test`` tries four, or a quarter if that is more; each run draws others."""


def amount(usual: int, *, soak: int, few: int | None = None) -> int:
    """``usual`` in CI and in any ``MEMORYSAM_SLOW=1 make test``, ``soak`` in ``make soak``, ``few`` in ``make test``.

    Args:
        usual: as many as docs/reliability.md publishes.
        soak: about ten times as many.
        few: of what is drawn at random a share; each run draws another. None: ``usual``.
    """
    if SOAK:
        return soak
    return usual if SLOW or few is None else few


def seconds(usual: float) -> float:
    """A time limit of ``usual`` seconds in ``make test``; a soak tries about ten times as much."""
    return usual * (20 if SOAK else 1)
