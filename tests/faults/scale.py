"""How much a fault test tries: what fits into minutes, or a night's worth under ``make soak``."""

from __future__ import annotations

import os

SOAK = os.environ.get("MEMORYSAM_SOAK") == "1"


def amount(usual: int, *, soak: int) -> int:
    """``usual`` in ``make test``, ``soak`` in ``make soak``."""
    return soak if SOAK else usual


def seconds(usual: float) -> float:
    """A time limit of ``usual`` seconds in ``make test``; a soak tries about ten times as much."""
    return usual * (20 if SOAK else 1)
