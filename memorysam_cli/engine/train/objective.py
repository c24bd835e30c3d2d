"""What is minimized: the losses by name, and an update's exact gradients for any number of batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch
from memorysam_cli.engine.processes import exchange_of
from memorysam_cli.engine.runtime import rng_state, set_rng_state
from memorysam_cli.losses.loss import Loss, LossInputs, Task
from memorysam_cli.model import Segmenter
from memorysam_cli.model.fusion import Output
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


def _terms(recipe: Recipe, task: Task) -> Iterator[tuple[str, Term]]:
    """The recipe's losses in order: the two that have a section of their own, then those below ``losses``."""
    yield "ohem", Term(LOSSES.get("ohem")(recipe.ohem, task), 1.0)
    yield "spmm", Term(LOSSES.get("spmm")(recipe.spmm, task), recipe.spmm.weight)
    for name in recipe.losses:
        settings = loss_settings(recipe, name)
        yield name, Term(LOSSES.get(name)(settings, task), settings.weight)


def task_of(network: Segmenter, recipe: Recipe, device: torch.device) -> Task:
    """What a network is trained for."""
    dataset = network.card.dataset
    return Task(
        classes=tuple(dataset.classes),
        modalities=recipe.data.modalities,
        width=network.sam.sam_mask_decoder.conv_s0.out_channels,
        device=device,
        class_pixels=dataset.class_pixels.get(recipe.data.train_split),
    )


class Gradients:
    """Adds the gradients of an update to the network's parameters.

    Args:
        network: what is trained.
        model: the same, as accelerate has wrapped it for several processes.
        recipe: its losses.
        accelerator: device, processes and precision.
    """

    def __init__(self, network: Segmenter, model: nn.Module, recipe: Recipe, *, accelerator: Accelerator) -> None:
        self.network, self.model, self.accelerator = network, model, accelerator
        self.objective = Objective(recipe, task_of(network, recipe, accelerator.device))
        self._exchange = exchange_of(accelerator)

    def add(self, batches: Sequence[Batch]) -> Tensor:
        """The gradients of one batch as large as all of these; what the losses keep moves on.

        Hard pixels are chosen among those of all batches, and prototypes are means over all of them, so losses need
        every batch's outputs at once; activations are kept of one batch only. Outputs are small: all batches but the
        last run once for these alone, the losses are computed once, and each batch then runs again to be handed the
        gradients of its outputs. It draws the same random numbers both times.

        Args:
            batches: with labels of one size, on any device.

        Returns:
            (T,) the weighted terms of this process in the objective's order, without a graph.

        Source: GradCache (arXiv 2101.06983) does so for contrastive losses.
        """
        device, last = self.accelerator.device, len(batches) - 1
        outputs, states = [], []
        for place, batch in enumerate(batches):
            states.append(rng_state(device))
            outputs.append(self._forward(batch, place=place) if place == last else self._outline(batch))
        leaves = [_Leaf(*(_cut(part) for part in (output.logits, output.features))) for output in outputs]
        terms = self.objective(self._inputs(leaves, batches))
        end = rng_state(device)  # a loss may draw random numbers too
        self.accelerator.backward(terms.sum())
        for place in range(last, -1, -1):
            output = outputs.pop()
            if place != last:
                set_rng_state(states[place], device)
                output = self._forward(batches[place], place=place)
            with self._sending(place):
                _hand_back(output, leaves[place])
        set_rng_state(end, device)
        return terms.detach()

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward of a batch, with nothing sent to other processes.

        The bare network: an error in DDP's forward pass would leave it out of step with the other processes'.
        """
        with self.accelerator.autocast():
            output = self.network(batch.to(self.accelerator.device).frames)
        (output.logits.float().sum() + output.features.float().sum()).backward()

    def _outline(self, batch: Batch) -> Output:
        """The outputs alone; by the bare network, for DDP would make ready for a backward pass.

        With gradients on, though the graph is dropped at once: without them the encoder takes kernels that round
        otherwise in bf16, and the outputs would not be those of the second time.
        """
        with self.accelerator.autocast():
            output = self.network(batch.to(self.accelerator.device).frames)
        return Output(*(part.detach() for part in output))

    def _forward(self, batch: Batch, *, place: int) -> Output:
        """The outputs with their graph."""
        with self._sending(place), self.accelerator.autocast():
            output: Output = self.model(batch.to(self.accelerator.device).frames)
        return output

    def _sending(self, place: int) -> contextlib.AbstractContextManager[None]:
        """Gradients travel between processes once, with the batch whose backward pass is the last: the first one."""
        return contextlib.nullcontext() if place == 0 else self.accelerator.no_sync(self.model)

    def _inputs(self, leaves: Sequence[_Leaf], batches: Sequence[Batch]) -> LossInputs:
        """What the losses see."""
        task = self.objective.task
        return LossInputs(
            logits=[leaf.logits[:, : len(task.classes)] for leaf in leaves],
            features=[leaf.features for leaf in leaves],
            labels=[label_of(batch).to(task.device, non_blocking=True) for batch in batches],
            frames=[batch.frames for batch in batches],
            task=task,
            exchange=self._exchange,
        )


class _Leaf(NamedTuple):
    """What the losses see of one batch, cut off from the network, so that gradients stop here."""

    logits: Tensor
    features: Tensor


def _cut(output: Tensor) -> Tensor:
    """The same numbers without their graph."""
    return output.detach().requires_grad_()


def _hand_back(output: Output, leaf: _Leaf) -> None:
    """Let the gradients that have come to a leaf go on into the network."""
    pairs = [(output.logits, leaf.logits.grad), (output.features, leaf.features.grad)]
    # Nothing comes to the features where no loss reads them.
    tensors, gradients = zip(*[pair for pair in pairs if pair[1] is not None], strict=True)
    torch.autograd.backward(tensors, gradients)


def label_of(batch: Batch) -> Tensor:
    """(B, H, W); a batch to learn from has one."""
    assert batch.label is not None
    return batch.label
