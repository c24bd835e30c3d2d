"""The training objective: the losses by name, the sensors of a second pass, and the exact gradients of an update with
any number of batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch, generator
from memorysam_cli.engine.processes import exchange_of
from memorysam_cli.engine.runtime import rng_state, set_rng_state
from memorysam_cli.errors import WeightsError
from memorysam_cli.losses.loss import Loss, LossInputs, Task
from memorysam_cli.model import Segmenter, WeightsCard, load, read_card
from memorysam_cli.model.fusion import Pass
from memorysam_cli.recipe import SUBSET, TEACHER, Recipe, loss_settings
from memorysam_cli.registry import LOSSES
from memorysam_cli.text import typed_path


@dataclass(frozen=True)
class Term:
    """A loss and its weight."""

    loss: Loss
    weight: float
    is_of_subset: bool = False
    """Whether it belongs to the second pass, whose weights grow at first (``robust.subset.ramp_epochs``)."""

    def __call__(self, inputs: LossInputs, *, ramp: float) -> Tensor:
        """The weighted loss of an update in this process, a float32 scalar."""
        if not self.is_of_subset:
            return self.weight * self.loss(inputs).float()
        return self.weight * ramp * self.loss(replace(inputs, logits=inputs.subset)).float()


class Objective:
    """The losses of a recipe by name, in order.

    Args:
        recipe: its settings and weights; names are those of :attr:`Recipe.terms`.
        task: the training task.
    """

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self.task = task
        self.terms = dict(_terms(recipe, task))

    def __call__(self, inputs: LossInputs, *, ramp: float = 1.0) -> Tensor:
        """The weighted losses of an update in this process: (T,) float32 in the order of :attr:`terms`.

        Args:
            inputs: of all batches.
            ramp: factor of the weights that grow.
        """
        return torch.stack([term(inputs, ramp=ramp) for term in self.terms.values()])

    @property
    def reads_alone(self) -> bool:
        """Whether a loss needs the logits of single frames."""
        return any(term.loss.reads_alone for term in self.terms.values())

    def state(self) -> dict[str, Tensor]:
        """The state of the losses, as ``name/key``, such as ``spmm/prototypes``."""
        return {
            f"{name}/{key}": value for name, term in self.terms.items() for key, value in term.loss.state_dict().items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state from :meth:`state`.

        Raises:
            KeyError: it belongs to a loss that is not here, or that has no such state.
            RuntimeError: it has another shape, or a part is missing.
        """
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self.terms}
        for flat, value in state.items():
            name, _, key = flat.partition("/")
            parts[name][key] = value
        for name, part in parts.items():
            self.terms[name].loss.load_state_dict(part)


def _terms(recipe: Recipe, task: Task) -> Iterator[tuple[str, Term]]:
    """The recipe's losses in order: those with a section of their own, then those below ``losses``."""
    yield "ohem", Term(LOSSES.get("ohem")(recipe.ohem, task), 1.0)
    yield "spmm", Term(LOSSES.get("spmm")(recipe.spmm, task), recipe.spmm.weight)
    second = {SUBSET: ("ohem", recipe.ohem), TEACHER: ("teacher", recipe.robust.teacher)}
    for name, (loss, settings) in second.items():
        if name in recipe.terms:
            yield name, Term(LOSSES.get(loss)(settings, task), recipe.robust.weights[name], is_of_subset=True)
    for name in recipe.losses:
        settings = loss_settings(recipe, name)
        yield name, Term(LOSSES.get(name)(settings, task), settings.weight)


def task_of(network: Segmenter, recipe: Recipe, device: torch.device) -> Task:
    """The training task."""
    dataset = network.card.dataset
    return Task(
        classes=tuple(dataset.classes),
        modalities=tuple(recipe.sensors),
        width=network.sam.sam_mask_decoder.conv_s0.out_channels,
        device=device,
        class_pixels=dataset.class_pixels.get(recipe.data.train_split),
    )


SPAWN, SPAWN_ORDER = (2,), (2, 1)
"""Spawn keys for drawing subsets and the order of the sensors. They are separate from those of an epoch's order and of
scenes. The draws depend neither on the division into batches nor on the number of processes, and use none of PyTorch's
random numbers."""


class Moment(NamedTuple):
    """The time of an update: all that its random draws depend on."""

    epoch: int
    """Epoch, from 0."""
    update: int
    """Update of the epoch, from 0."""
    epochs: float
    """Number of epochs finished with this update."""


class Draw(NamedTuple):
    """The sensors in the passes of an update, by their places in the recipe.

    Attributes:
        order: of all sensors in the first pass.
        places: the sensors of the second pass, in its order; M + N: a frame of zeros instead of sensor N of M. Empty:
            there is no second pass.
        ramp: the factor, from above 0 to 1, of the weights of the second pass's losses.
    """

    order: tuple[int, ...]
    places: tuple[int, ...] = ()
    ramp: float = 1.0


def draw(recipe: Recipe, moment: Moment | None) -> Draw:
    """Draw the passes of an update: the order of the sensors and, if the recipe has it, the second pass.

    First the number of its sensors is drawn, uniformly from 1 to all but one. Then the sensors are drawn one by one,
    each with a probability proportional to its odds among the remaining ones (by a race of exponential clocks).

    Args:
        recipe: with every modality named.
        moment: None: outside a training run; the largest pass, so that a measurement is an upper bound.
    """
    settings, sensors = recipe.robust.subset, recipe.sensors
    count = len(sensors)
    order = tuple(range(count))
    if recipe.model.order == "shuffled" and moment is not None:
        shuffled = generator(recipe.train.seed, moment.epoch, moment.update, spawn_key=SPAWN_ORDER).permutation(count)
        order = tuple(shuffled.tolist())
    if not recipe.trains_subsets:
        return Draw(order)
    if moment is None:
        kept, is_zeroed, ramp = range(1, count), settings.zeroed > 0, 1.0
    else:
        rng = generator(recipe.train.seed, moment.epoch, moment.update, spawn_key=SPAWN)
        size = 1 + int(rng.random() * (count - 1))
        is_weak = [not {sensor, *frames}.isdisjoint(settings.weak) for sensor, frames in sensors.items()]
        odds = np.where(is_weak, settings.weak_odds, 1.0)
        finish = -np.log1p(-rng.random(count)) / odds
        kept = np.argsort(finish, kind="stable")[:size].tolist()
        is_zeroed = bool(rng.random() < settings.zeroed)
        ramp = min(1.0, moment.epochs / settings.ramp_epochs) if settings.ramp_epochs else 1.0
    if is_zeroed:
        return Draw(order, tuple(place if place in kept else count + place for place in order), ramp)
    return Draw(order, tuple(place for place in order if place in kept), ramp)


class Gradients:
    """Adds the gradients of an update to the network's parameters.

    Args:
        network: in training.
        model: the same, wrapped by accelerate for several processes.
        recipe: its losses.
        accelerator: device, processes and precision.
    """

    def __init__(self, network: Segmenter, model: nn.Module, recipe: Recipe, *, accelerator: Accelerator) -> None:
        self.network, self.model, self.accelerator = network, model, accelerator
        self.objective = Objective(recipe, task_of(network, recipe, accelerator.device))
        self._teacher = _teacher(recipe, self.objective.task)
        self._exchange = exchange_of(accelerator)

    def add(self, batches: Sequence[Batch], draw: Draw) -> Tensor:
        """Add the gradients of one batch as large as all of these, and update the state of the losses.

        Hard pixels are chosen among those of all batches, and prototypes are means over all of them, so losses need the
        outputs of all batches at once. But activations are stored only for one batch. So all batches but the last first
        run once, only for their outputs, which are small. The losses are computed once. Then each batch runs again and
        gets the gradients of its outputs. It draws the same random numbers both times.

        Args:
            batches: with labels of one size, on any device.
            draw: the passes, the same in every process.

        Returns:
            (T,) the weighted losses of this process in the objective's order, without a graph.

        Source: GradCache (arXiv 2101.06983) does so for contrastive losses.
        """
        device, last = self.accelerator.device, len(batches) - 1
        outputs, states = [], []
        for place, batch in enumerate(batches):
            states.append(rng_state(device))
            outputs.append(self._forward(batch, draw, place) if place == last else self._outline(batch, draw))
        leaves = [{name: _cut(part) for name, part in output.items()} for output in outputs]
        terms = self.objective(self._inputs(leaves, batches), ramp=draw.ramp)
        end = rng_state(device)  # a loss may draw random numbers too
        self.accelerator.backward(terms.sum())
        for place in range(last, -1, -1):
            output = outputs.pop()
            if place != last:
                set_rng_state(states[place], device)
                output = self._forward(batches[place], draw, place)
            with self._sending(place):
                _hand_back(output, leaves[place])
        set_rng_state(end, device)
        return terms.detach()

    def rehearse(self, batch: Batch, draw: Draw) -> None:
        """Forward and backward pass of a batch without communication.

        It uses the network without DDP, whose processes would get out of step if one forward pass fails.
        """
        with self.accelerator.autocast():
            outputs = self._outputs(self.network, batch, draw)
        torch.stack([part.float().sum() for part in outputs.values()]).sum().backward()  # type: ignore[no-untyped-call]

    def _outputs(self, model: nn.Module, batch: Batch, draw: Draw) -> Outputs:
        """The outputs of the network for a batch that the losses may read."""
        frames = batch.to(self.accelerator.device).frames
        passes = [draw.order, *([draw.places] if draw.places else [])]
        found: list[Pass] = model(frames, passes, alone=[0] if self.objective.reads_alone else [])
        outputs = {"logits": found[0].output.logits, "features": found[0].output.features}
        outputs |= {_alone(number): logits for number, logits in enumerate(found[0].frames)}
        if draw.places:
            outputs[SUBSET] = found[1].output.logits
        return outputs

    def _outline(self, batch: Batch, draw: Draw) -> Outputs:
        """Only the values of the outputs, from the network without DDP, which would prepare for a backward pass.

        Gradients stay on, although the graph is dropped at once. Without them the encoder uses kernels that round
        differently in bf16, and the outputs would differ from those of the second run.
        """
        with self.accelerator.autocast():
            outputs = self._outputs(self.network, batch, draw)
        return {name: part.detach() for name, part in outputs.items()}

    def _forward(self, batch: Batch, draw: Draw, place: int) -> Outputs:
        """The outputs with their graph."""
        with self._sending(place), self.accelerator.autocast():
            return self._outputs(self.model, batch, draw)

    def _sending(self, place: int) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once, in the last backward pass, which is that of the first batch."""
        return contextlib.nullcontext() if place == 0 else self.accelerator.no_sync(self.model)

    def _inputs(self, leaves: Sequence[Outputs], batches: Sequence[Batch]) -> LossInputs:
        """The inputs of the losses: the outputs, detached from the network, so that gradients stop here."""
        task = self.objective.task
        classes = len(task.classes)  # imported weights may have more outputs
        frames = range(len(task.modalities) if self.objective.reads_alone else 0)
        return LossInputs(
            logits=[leaf["logits"][:, :classes] for leaf in leaves],
            features=[leaf["features"] for leaf in leaves],
            labels=[label_of(batch).to(task.device, non_blocking=True) for batch in batches],
            frames=[batch.frames for batch in batches],
            task=task,
            exchange=self._exchange,
            alone=[[leaf[_alone(number)][:, :classes] for number in frames] for leaf in leaves],
            subset=[leaf[SUBSET][:, :classes] for leaf in leaves if SUBSET in leaf],
            teacher=self._taught(leaves, batches) if TEACHER in self.objective.terms else (),
        )

    def _taught(self, leaves: Sequence[Outputs], batches: Sequence[Batch]) -> list[Tensor]:
        """The target logits of the second pass for each batch."""
        classes = len(self.objective.task.classes)
        if self._teacher is None:
            return [leaf["logits"][:, :classes].detach() for leaf in leaves]
        with torch.no_grad(), self.accelerator.autocast():
            outputs = [self._teacher(batch.to(self.accelerator.device).frames) for batch in batches]
        return [output.logits[:, :classes] for output in outputs]


def teacher_file(recipe: Recipe) -> tuple[Path, WeightsCard] | None:
    """The file of ``robust.teacher.weights`` and its card; None if the recipe has no such teacher.

    Raises:
        WeightsError: it does not exist, or is not a memorysam file.
    """
    if TEACHER not in recipe.terms or recipe.robust.teacher.weights is None:
        return None
    path = typed_path(recipe.robust.teacher.weights)
    if not path.is_file():
        why = "is not a file" if path.exists() else "does not exist"
        raise WeightsError(f"robust.teacher.weights: {path} {why}; give weights of `memorysam train`")
    return path, read_card(path)


def _teacher(recipe: Recipe, task: Task) -> Segmenter | None:
    """The frozen network of ``robust.teacher.weights``; None if the recipe has no such teacher.

    Raises:
        WeightsError: the file is damaged, not a memorysam file, or has other classes or sensors.
    """
    file = teacher_file(recipe)
    if file is None:
        return None
    path, card = file
    for what, theirs, ours in (
        ("classes", len(card.dataset.classes), len(task.classes)),
        ("sensors", ", ".join(card.recipe.data.modalities), ", ".join(recipe.data.modalities)),
    ):
        if theirs != ours:
            raise WeightsError(
                f"robust.teacher.weights: {path} has the {what} {theirs}, this run {ours}; give weights of the same"
            )
    return load(path, task.device)


Outputs = dict[str, Tensor]
"""The network's outputs for one batch, by name."""


def _alone(number: int) -> str:
    """The name of a single frame's logits, by its number."""
    return f"alone/{number}"


def _cut(output: Tensor) -> Tensor:
    """The same numbers without their graph."""
    return output.detach().requires_grad_()


def _hand_back(outputs: Outputs, leaves: Outputs) -> None:
    """Pass the gradients of the detached outputs on to the network."""
    # Outputs that no loss reads get no gradient.
    pairs = [(outputs[name], leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None]
    tensors, gradients = zip(*pairs, strict=True)
    torch.autograd.backward(tensors, gradients)


def label_of(batch: Batch) -> Tensor:
    """(B, H, W) labels; every training batch has them."""
    assert batch.label is not None
    return batch.label
