"""The ways to cut a recipe's updates into batches, best first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memorysam_cli.recipe import Recipe, Train


@dataclass(frozen=True)
class Candidate:
    """One way; an update sees ``batch`` × ``accumulate`` scenes in each process."""

    batch: int
    accumulate: int
    saver: Literal["on", "off"]

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these values."""
        train = recipe.train.model_copy(update=vars(self))
        return recipe.model_copy(update={"train": train})

    def changes(self) -> list[str]:
        """As ``--set`` takes them."""
        return [f"train.{name}={value}" for name, value in vars(self).items()]

    def __str__(self) -> str:
        return f"batch {self.batch} × {self.accumulate} accumulated, saver {self.saver}"


def candidates(train: Train) -> list[Candidate]:
    """All ways that keep an update's number of scenes, the fastest first.

    The saver costs less time than halving the batch: accumulation is exact, so that it computes every batch's forward
    pass once more than the saver does at most. A saver that the recipe decides stays as it is.
    """
    scenes = train.batch * train.accumulate
    savers: list[Literal["on", "off"]] = ["off", "on"] if train.saver == "auto" else [train.saver]
    batches = [batch for batch in range(scenes, 0, -1) if scenes % batch == 0]
    return [Candidate(batch, scenes // batch, saver) for batch in batches for saver in savers]
