"""A checkpoint saved and an older one removed: ``python -m tests.faults.jobs_checkpoint FOLDER``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.checkpoints import Position, State

KEEP = 2
BEFORE, AFTER = (1, 2), 3
"""Steps whose checkpoints are there, and the one that is saved."""


def save(folder: Path, step: int) -> None:
    """Save a small state that only its step decides."""
    values = {name: torch.full((4, 5), float(step)) for name in ("a", "b")}
    rng = {"0/cpu": torch.arange(8, dtype=torch.uint8), "0/numpy": torch.zeros(4)}
    state = State(Position(step=step), model=values, optimizer=values, rng=rng, identity={"seed": 1})
    checkpoints.write(folder, state, keep=KEEP)


if __name__ == "__main__":
    save(Path(sys.argv[1]), AFTER)
    os._exit(0)
