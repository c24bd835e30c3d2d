"""How long a training is: scenes of an update, updates of an epoch, updates in all."""

from __future__ import annotations

from dataclasses import dataclass

from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Recipe


@dataclass(frozen=True)
class Extent:
    """What a recipe comes to on a data set, for a number of processes."""

    scenes_per_step: int
    """Of all processes."""
    steps_per_epoch: int
    last_step: int


def extent_of(recipe: Recipe, *, scenes: int, processes: int, dataset: str) -> Extent:
    """The extent of a training.

    Args:
        recipe: batch, accumulation, epochs, ``train.max_steps``.
        scenes: of the training split.
        processes: that train together.
        dataset: its name, for messages.

    Raises:
        DataError: the scenes do not suffice for one update.
    """
    settings = recipe.train
    at_once = settings.batch * settings.accumulate * processes
    if scenes < at_once:
        raise DataError(
            f"{dataset}: split '{recipe.data.train_split}' has {scenes} scenes, fewer than the {at_once} of one "
            "update; lower train.batch or train.accumulate"
        )
    whole = scenes // at_once * settings.epochs
    return Extent(at_once, scenes // at_once, min(whole, settings.max_steps or whole))
