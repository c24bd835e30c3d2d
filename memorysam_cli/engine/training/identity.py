"""What a run is, as far as its checkpoints must agree: what it computes, and what it is computed with."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from memorysam_cli import __version__
from memorysam_cli.errors import UsageError
from memorysam_cli.recipe import Recipe, comparing
from memorysam_cli.recipe.schema import is_retired

MAY_CHANGE = {
    "name", "about", "extensions", "data.max_bad", "data.workers", "model.init", "train.checkpoint_minutes",
    "train.checkpoint_steps", "train.keep_checkpoints", "train.max_steps", "train.saver", "train.validate_every",
}  # fmt: skip
"""Recipe keys that say how the work is done and how long; what is computed may not change in a run. Of ``model.init``
the content counts, not the path."""
ADDED = {"model.fusion": "mean"}
"""What keys meant before recipes had them."""


def identity_of(recipe: Recipe, *, dataset: str, base: str, initial: str | None) -> dict[str, Any]:
    """What must not change between a run and its continuation, by dotted key.

    Args:
        recipe: of the run.
        dataset: the content hash of the data set.
        base: the SHA-256 of the base weights.
        initial: the SHA-256 of the weights that the run began from, if not from the base weights.
    """
    values = dict(comparing.leaves(recipe.model_dump(mode="json")))
    kept = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    return {**kept, "data set": dataset, "base weights": base, "initial weights": initial}


def refuse_other(then: dict[str, Any], now: dict[str, Any], *, worlds: tuple[int, int], where: str) -> None:
    """Refuse to go on from a checkpoint of another run.

    Args:
        then: the identity in the checkpoint.
        now: that of the run that wants to go on.
        worlds: the numbers of processes, then and now.
        where: the checkpoint, for messages.

    Raises:
        UsageError: the run would compute something else, or has another number of processes.
    """
    then = ADDED | {key: value for key, value in then.items() if not is_retired(key, value)}
    keys = [key for key in now | then if now.get(key) != then.get(key)]
    if keys:
        differing = "; ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys)
        raise UsageError(
            f"{where}: cannot be resumed, for it began otherwise: {differing}; start a new run, or undo the change"
        )
    if worlds[0] != worlds[1]:
        raise UsageError(
            f"{where}: was trained by {worlds[0]} processes and cannot be resumed by {worlds[1]}; start as many"
        )


def conditions(accelerator: Accelerator) -> dict[str, Any]:
    """What else decides the last bits of a result; a run may go on under others, and says so."""
    return {
        "memorysam": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": accelerator.device.type,
        "world": accelerator.num_processes,
    }


def changed(then: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Which conditions are others: key → what it was, what it is."""
    return {key: [then.get(key), now.get(key)] for key in now | then if then.get(key) != now.get(key)}
