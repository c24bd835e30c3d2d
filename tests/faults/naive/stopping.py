"""A training run that takes no note of signals, and one that writes its checkpoints where they will be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.checkpoints import State
from memorysam_cli.engine.train.endings import StopRequest


@contextmanager
def catch_stop() -> Iterator[StopRequest]:
    """Whatever a signal does, it does at once."""
    yield StopRequest()


def write(folder: Path, state: State, *, keep: int) -> Path:
    """File after file, in place."""
    target = checkpoints.path_of(folder, state.position.step)
    target.mkdir(parents=True, exist_ok=True)
    checkpoints._fill(target, state)
    return target
