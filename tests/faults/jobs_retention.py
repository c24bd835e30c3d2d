"""Checkpoints that are saved, and older ones removed, one after another, in a warm child."""

from __future__ import annotations

from pathlib import Path

import torch

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.checkpoints import Position, State
from memorysam_cli.storage import atomic
from tests.faults.naive import keeping

KEEP = 2
SAVED = "saved"
"""Beside the checkpoints: a line for each that was said to be saved."""


def warm() -> None:
    """One thread, for what is forked has no other."""
    torch.set_num_threads(1)


def run(folder: str, first: int, way: str) -> None:
    """Save the checkpoints from ``first`` on; ends by being killed.

    Args:
        folder: of the checkpoints.
        first: the first step to save.
        way: ``ours``, or ``naive``, which removes the old before it saves the new.
    """
    place, write = Path(folder), checkpoints.write if way == "ours" else keeping.write
    with atomic.open_log(place.parent / SAVED) as log:
        for step in range(first, first + 10_000):
            write(place, state(step), keep=KEEP)
            log.write(f"{step}\n")


def state(step: int) -> State:
    """A small state that only its step decides."""
    values = {name: torch.full((64, 64), float(step)) for name in ("a", "b")}
    rng = {"0/cpu": torch.arange(8, dtype=torch.uint8)}
    return State(Position(step=step), model=values, optimizer=values, rng=rng, identity={"seed": 1})
