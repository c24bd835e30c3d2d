"""One update: its batches, its learning rate, and the :class:`Learner` that makes it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine.processes import agree, exchange_of
from memorysam_cli.engine.runtime import rng_state, set_rng_state, tensor_cores
from memorysam_cli.engine.train.objective import Draw, Gradients, Moment, draw, label_of
from memorysam_cli.errors import MemorySamError, is_out_of_memory
from memorysam_cli.model import Segmenter
from memorysam_cli.recipe import Optim, Recipe
from memorysam_cli.report import console

OPTIMIZER = "adamw"
"""Prefix of the optimizer's tensors in a checkpoint."""
AVERAGE = "ema"
"""Prefix of the averaged weights in a checkpoint."""
MOST_OVERFLOWS = 20
"""Updates in a row that the fp16 gradient scaler may skip before a run counts as diverged."""


class BatchGroups:
    """Groups of batches, each for one update. Iterate over it, and call :meth:`fetch` while the device is busy.

    Args:
        batches: of an epoch.
        size: batches per group; an incomplete group at the end is dropped.
        device: the first batch of a group is sent to it in advance; the others wait in pinned memory.
    """

    def __init__(self, batches: Iterable[Batch], *, size: int, device: torch.device) -> None:
        self._batches, self._size, self._device = iter(batches), size, device
        self._ready: list[Batch] | None = None
        self._error: MemorySamError | None = None
        self._waited = 0.0

    def __iter__(self) -> Iterator[list[Batch]]:
        while True:
            self.fetch()
            group, self._ready = self._ready, None
            if self._error is not None:
                raise self._error
            if not group:
                return
            yield group

    def fetch(self) -> None:
        """Fetch the next group. The error of an unreadable scene is raised when its group is used."""
        if self._ready is not None or self._error is not None:
            return
        begun = time.monotonic()
        try:
            group = list(islice(self._batches, self._size))
        except MemorySamError as error:
            group, self._error = [], error
        self._waited += time.monotonic() - begun
        self._ready = [] if len(group) < self._size else [group[0].to(self._device), *group[1:]]

    def waited(self) -> float:
        """Seconds spent on fetching since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


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


@dataclass(frozen=True)
class StepResult:
    """The result of an update.

    Attributes:
        terms: each weighted loss by name, in the objective's order; the mean of all processes.
        gradient_norm: of all trained parameters, before the update.
        is_finite: whether loss and gradient are finite in every process; if not, nothing was updated.
        all_ignored: number of batches of all processes without a labeled pixel.
    """

    terms: dict[str, float]
    gradient_norm: float
    is_finite: bool
    all_ignored: int

    @property
    def loss(self) -> float:
        """The sum of the losses."""
        return sum(self.terms.values())


class Learner:
    """A network in training.

    Args:
        network: from :func:`memorysam_cli.model.weights.build_for_training`.
        recipe: its losses, optimizer, precision, memory saver and compilation.
        accelerator: device, processes and precision.
    """

    def __init__(self, network: Segmenter, recipe: Recipe, *, accelerator: Accelerator) -> None:
        self.network, self.recipe, self.accelerator = network.to(accelerator.device), recipe, accelerator
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.average = Average(self.parameters, decay=recipe.optim.ema)
        network.saver = starts_saving(recipe, accelerator.device)
        if recipe.train.compile:
            network.compile_blocks()
        self.model, self.optimizer = accelerator.prepare(
            network.train(), make_optimizer(list(self.parameters.values()), recipe.optim)
        )
        # prepare() makes every forward pass autocast. Here only a training step does, so that validation
        # computes the same as `memorysam evaluate` from the file.
        for module in (network, self.model):
            module.__dict__.pop("forward", None)
        self.gradients = Gradients(network, self.model, recipe, accelerator=accelerator)
        self.objective = self.gradients.objective
        self._exchange = exchange_of(accelerator)
        self._is_rehearsed = self._exchange is None or accelerator.device.type != "cuda"
        self._overflows = 0

    def learn(
        self,
        batches: Sequence[Batch],
        *,
        rate: float,
        moment: Moment | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> StepResult:
        """Make one update, equal to that of one batch as large as all of these.

        Values that are not finite never reach the weights: weights, random numbers and the state of the losses are then
        restored. All work is queued on the device before the result is read, once.

        Args:
            batches: with labels of one size, on any device.
            rate: the learning rate.
            moment: time of the update, which its random draws depend on. None: outside a training run; the largest
                second pass is used.
            meanwhile: called while the device is busy; should not raise.

        Raises:
            RuntimeError: out of memory, with the memory saver on, or with ``train.saver`` off.
        """
        before = self._snapshot()
        with tensor_cores(self.recipe.train.precision):
            if not self._is_rehearsed:
                self._rehearse(batches[0], before)
            terms = self._add_gradients(batches, draw(self.recipe, moment), before)
            report = self._report(terms, batches)
            if meanwhile is not None:
                meanwhile()
            result = self._read(report)
            if result.is_finite:
                self._update(rate)
            else:
                self._undo(before)
        return result

    def _snapshot(self) -> Snapshot:
        losses = {name: value.clone() for name, value in self.objective.state().items()}
        return Snapshot(rng_state(self.accelerator.device), losses)

    def _rehearse(self, batch: Batch, before: Snapshot) -> None:
        """Find out, before processes wait for each other, whether one of them needs the memory saver; then all use it.

        Every later update needs the same memory or less, because training crops have one size.
        """
        self._is_rehearsed, is_short = True, False
        if not self._may_save():
            return
        try:
            self.gradients.rehearse(batch, draw(self.recipe, None))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            is_short = True
        self._undo(before)
        if agree(is_short, self.accelerator):
            self._start_saving()

    def _add_gradients(self, batches: Sequence[Batch], drawn: Draw, before: Snapshot) -> Tensor:
        """As :meth:`Gradients.add`; if memory runs out for the first time, repeat with the memory saver on."""
        try:
            return self.gradients.add(batches, drawn)
        except RuntimeError as error:
            # With several processes, the others are waiting in a sum, so this one cannot repeat the update.
            if not is_out_of_memory(error) or not self._may_save() or self._exchange is not None:
                raise
        # Not in the handler: the traceback keeps every activation alive.
        self._undo(before)
        self._start_saving()
        return self.gradients.add(batches, drawn)

    def _may_save(self) -> bool:
        """Whether the memory saver can still be switched on."""
        return self.recipe.train.saver == "auto" and not self.network.saver

    def _start_saving(self) -> None:
        self.network.saver = True
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.accelerator.is_main_process:
            console.note("out of memory; continuing with train.saver=on: the same results, less memory, more time")

    def _report(self, terms: Tensor, batches: Sequence[Batch]) -> Tensor:
        """Losses, gradient norm and batches without a labeled pixel, added up over all processes: (T + 2,) float32.

        A value that is not finite in one process is not finite in the sum.
        """
        self.accelerator.unscale_gradients(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        ignored = [(label_of(batch) == IGNORE).all().to(norm.device, non_blocking=True) for batch in batches]
        report = torch.cat([terms.float(), norm.float()[None], torch.stack(ignored).sum().float()[None]])
        return report if self._exchange is None else self._exchange.sum(report)

    def _read(self, report: Tensor) -> StepResult:
        """Wait for the device; the same result in every process."""
        world = 1 if self._exchange is None else self._exchange.world
        *sums, ignored = report.tolist()
        *means, norm = (value / world for value in sums)
        terms = dict(zip(self.objective.terms, means, strict=True))
        is_finite = math.isfinite(sum(means)) and self._is_fine(norm)
        return StepResult(terms, norm, is_finite=is_finite, all_ignored=round(ignored))

    def _is_fine(self, norm: float) -> bool:
        """Whether a gradient norm is acceptable: in fp16 some overflows are expected, and the scaler skips such a
        step."""
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        allowed = MOST_OVERFLOWS if self.accelerator.scaler is not None else 0
        return self._overflows <= allowed

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if not getattr(self.optimizer, "step_was_skipped", False):  # the fp16 scaler reports it after an overflow
            self.average.add()
        self.optimizer.zero_grad(set_to_none=True)

    def _undo(self, before: Snapshot) -> None:
        """Restore the state from before the update."""
        set_rng_state(before.random, self.accelerator.device)
        self.objective.restore(before.losses)
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Optimizer, averaged weights and losses as flat tensors, such as ``adamw/exp_avg/sam.…``, ``spmm/prototypes``.

        The optimizer's are empty before the first update.
        """
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        state = {
            f"{OPTIMIZER}/{key}/{names[id(parameter)]}": value
            for parameter, values in self.optimizer.optimizer.state.items()
            for key, value in values.items()
        }
        return state | self.average.state() | self.objective.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the state from :meth:`state`.

        Raises:
            KeyError: a parameter or a loss is not here.
            RuntimeError: the state of a loss does not fit.
        """
        losses: dict[str, Tensor] = {}
        average: dict[str, Tensor] = {}
        for flat, value in state.items():
            kind, _, rest = flat.partition("/")
            if kind != OPTIMIZER:
                (average if kind == AVERAGE else losses)[flat] = value
                continue
            key, _, name = rest.partition("/")
            parameter = self.parameters[name]
            # Adam keeps its step count on the CPU unless it is fused, as it is on CUDA.
            where = "cpu" if key == "step" and parameter.device.type != "cuda" else parameter.device
            self.optimizer.optimizer.state[parameter][key] = value.to(where, copy=True)
        self.average.restore(average)
        self.objective.restore(losses)


class Average:
    """The exponential moving average of the trained weights. The averaged weights are validated and saved.

    Args:
        parameters: the trained parameters by name.
        decay: the share of the average that an update keeps. The first updates keep (1 + n) / (10 + n) if that is less,
            because the average has few values. 0: no average; all methods do nothing.

    Source: TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, decay: float) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()} if decay else {}

    def add(self) -> None:
        """Add the current weights to the average."""
        self.updates += 1
        share = 1 - min(self.decay, self.updates / (9 + self.updates))
        for name, average in self.tensors.items():
            average.lerp_(self.parameters[name].detach(), share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the averaged weights within the block; afterwards the trained ones, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.tensors.items():
            trained = self.parameters[name].detach().clone()
            self.parameters[name].copy_(average)
            average.copy_(trained)

    def state(self) -> dict[str, Tensor]:
        """The average by the parameters' names, below ``ema/``, and how many updates it has."""
        if not self.tensors:
            return {}
        named = {f"{AVERAGE}/{name}": average for name, average in self.tensors.items()}
        return named | {f"{AVERAGE}/updates": torch.tensor([self.updates])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state from :meth:`state`.

        Raises:
            KeyError: a parameter is unknown or missing.
            RuntimeError: a parameter has another shape.
        """
        if not state and not self.tensors:
            return
        given = {flat.removeprefix(f"{AVERAGE}/"): value for flat, value in state.items()}
        self.updates = int(given.pop("updates"))
        for name in given.keys() | self.tensors.keys():
            self.tensors[name].copy_(given[name])


@dataclass(frozen=True)
class Snapshot:
    """Random numbers and the state of the losses before an update."""

    random: dict[str, Tensor]
    losses: dict[str, Tensor]


def make_optimizer(parameters: list[nn.Parameter], settings: Optim) -> torch.optim.AdamW:
    """AdamW with weight decay on all but one-dimensional parameters (METHOD §4); on CUDA as one fused kernel."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = True if all(p.device.type == "cuda" for p in parameters) else None
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def starts_saving(recipe: Recipe, device: torch.device) -> bool:
    """Whether the memory saver is on from the first update.

    ``auto`` is on where running out of memory cannot be caught (on a CPU the process is killed), except for nano, which
    needs little. On CUDA it is off until memory runs out.
    """
    if recipe.train.saver == "auto":
        return device.type != "cuda" and recipe.model.backbone != "nano"
    return recipe.train.saver == "on"
