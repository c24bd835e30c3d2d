"""Retention as some programs have it: make room first, then save, file after file."""

from __future__ import annotations

import shutil
from pathlib import Path

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.checkpoints import State


def write(folder: Path, state: State, *, keep: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir())[: -(keep - 1) or None]:
        shutil.rmtree(path)
    target = checkpoints.path_of(folder, state.position.step)
    target.mkdir(exist_ok=True)
    checkpoints._fill(target, state)
    return target
