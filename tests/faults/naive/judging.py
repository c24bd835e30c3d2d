"""The best score as most programs find it."""

from __future__ import annotations

from memorysam_cli.engine.train.checkpoints import Position


def judge(score: float, position: Position) -> None:
    position.best_miou = score if position.best_miou is None else max(position.best_miou, score)
