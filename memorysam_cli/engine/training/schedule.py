"""The learning rate, per update."""

from __future__ import annotations

from memorysam_cli.recipe import Optim


def learning_rate(step: int, *, optim: Optim, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of update number ``step`` (from 0).

    Linear warm-up from ``warmup_ratio`` × lr, then (1 − α)^power with α = (step − warm) / (total − warm) and
    total = (epochs + 1) × steps per epoch.

    Source: METHOD §4.
    """
    warmup = optim.warmup_epochs * steps_per_epoch
    if step < warmup:
        return optim.lr * (optim.warmup_ratio + (1 - optim.warmup_ratio) * step / warmup)
    total = (epochs + 1) * steps_per_epoch
    return float(optim.lr * (1 - (step - warmup) / (total - warmup)) ** optim.power)
