"""What training minimizes: a weighted sum of losses by name, ``ohem`` and ``spmm`` first, then what the recipe adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from memorysam_cli.losses.loss import Loss, LossInputs, Task
from memorysam_cli.model import Segmenter
from memorysam_cli.recipe import Recipe, loss_settings
from memorysam_cli.registry import LOSSES


@dataclass(frozen=True)
class Term:
    """A loss and its weight."""

    loss: Loss
    weight: float


class Objective:
    """An ordered mapping from a term's name to its loss.

    Args:
        recipe: its settings and weights; names are those of :attr:`Recipe.terms`.
        task: what the network is trained for.
    """

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self.task = task
        self.terms = dict(_terms(recipe, task))

    def __call__(self, inputs: LossInputs) -> Tensor:
        """The weighted terms of one update in this process: (T,) float32 in the order of :attr:`terms`."""
        return torch.stack([term.weight * term.loss(inputs).float() for term in self.terms.values()])

    def state(self) -> dict[str, Tensor]:
        """What the losses keep from one update to the next, as ``name/key``, such as ``spmm/prototypes``."""
        return {
            f"{name}/{key}": value for name, term in self.terms.items() for key, value in term.loss.state_dict().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`state` gave.

        Raises:
            KeyError: it is of a loss that is not here, or that keeps no such state.
            RuntimeError: it has another shape, or some of it is missing.
        """
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self.terms}
        for flat, value in state.items():
            name, _, key = flat.partition("/")
            parts[name][key] = value
        for name, part in parts.items():
            self.terms[name].loss.load_state_dict(part)


def task_of(network: Segmenter, recipe: Recipe, device: torch.device) -> Task:
    """What a network is trained for."""
    return Task(
        classes=tuple(network.card.dataset.classes),
        modalities=recipe.data.modalities,
        width=network.sam.sam_mask_decoder.conv_s0.out_channels,
        device=device,
    )


def _terms(recipe: Recipe, task: Task) -> Iterator[tuple[str, Term]]:
    """The recipe's losses in order: the two that have a section of their own, then those below ``losses``."""
    yield "ohem", Term(LOSSES.get("ohem")(recipe.ohem, task), 1.0)
    yield "spmm", Term(LOSSES.get("spmm")(recipe.spmm, task), recipe.spmm.weight)
    for name in recipe.losses:
        settings = loss_settings(recipe, name)
        yield name, Term(LOSSES.get(name)(settings, task), settings.weight)
