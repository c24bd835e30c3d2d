"""What learns: the network, its optimiser and the prototypes, one update at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine.processes import agree, exchange_of
from memorysam_cli.engine.runtime import rng_state, set_rng_state, tensor_cores
from memorysam_cli.engine.training.gradients import Gradients, label_of
from memorysam_cli.errors import is_out_of_memory
from memorysam_cli.model import Segmenter
from memorysam_cli.recipe import Optim, Recipe
from memorysam_cli.report import console

MOST_OVERFLOWS = 20
"""Updates in a row that the fp16 gradient scaler may skip before a run counts as diverged."""


@dataclass(frozen=True)
class Lesson:
    """What one update did.

    Attributes:
        loss: OHEM + λ·SPMM, the mean of all processes.
        ohem: the cross entropy of the hard pixels, likewise.
        spmm: λ times the prototypical adaptation loss, likewise.
        gradient_norm: of all trained parameters, before the update.
        is_finite: whether loss and gradient are, in every process; if not, nothing was updated.
        all_ignored: batches of all processes without a labelled pixel.
    """

    loss: float
    ohem: float
    spmm: float
    gradient_norm: float
    is_finite: bool
    all_ignored: int


@dataclass(frozen=True)
class Before:
    """What an update changes on its way, as it was before: random numbers and prototypes."""

    random: dict[str, Tensor]
    prototypes: dict[str, Tensor]


class Learner:
    """A network in training.

    Args:
        network: from :func:`memorysam_cli.model.weights.build_for_training`.
        recipe: its losses, optimiser, precision, memory saver and compilation.
        accelerator: device, processes and precision.
    """

    def __init__(self, network: Segmenter, recipe: Recipe, *, accelerator: Accelerator) -> None:
        self.network, self.recipe, self.accelerator = network.to(accelerator.device), recipe, accelerator
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        network.saver = starts_saving(recipe, accelerator.device)
        if recipe.train.compile:
            network.compile_blocks()
        self.model, self.optimizer = accelerator.prepare(
            network.train(), make_optimizer(list(self.parameters.values()), recipe.optim)
        )
        # prepare() makes forward autocast wherever it is called; here only a training step does, so that validation
        # computes what `memorysam evaluate` computes from the file.
        for module in (network, self.model):
            module.__dict__.pop("forward", None)
        self.gradients = Gradients(network, self.model, recipe, accelerator=accelerator)
        self.prototypes = self.gradients.prototypes
        self._exchange = exchange_of(accelerator)
        self._is_rehearsed = self._exchange is None or accelerator.device.type != "cuda"
        self._overflows = 0

    def learn(self, batches: Sequence[Batch], *, rate: float, meanwhile: Callable[[], object] | None = None) -> Lesson:
        """One update, the same as that of one batch as large as all of these.

        Nothing that is not finite reaches the weights: then weights, prototypes and random numbers are those of
        before. All work is handed to the device before it is read, and it is read once.

        Args:
            batches: with labels of one size, on any device.
            rate: the learning rate.
            meanwhile: called while the device is busy; should not raise.

        Raises:
            RuntimeError: out of memory, with the memory saver on, or with ``train.saver`` off.
        """
        before = self._before()
        with tensor_cores(self.recipe.train.precision):
            if not self._is_rehearsed:
                self._rehearse(batches[0], before)
            losses = self._add_gradients(batches, before)
            report = self._report(losses, batches)
            if meanwhile is not None:
                meanwhile()
            lesson = self._read(report)
            if lesson.is_finite:
                self._update(rate)
            else:
                self._undo(before)
        return lesson

    def state(self) -> dict[str, Tensor]:
        """Optimiser and prototypes as flat tensors, such as ``adamw/exp_avg/sam.…``; empty before the first update."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        state = {
            f"adamw/{key}/{names[id(parameter)]}": value
            for parameter, values in self.optimizer.optimizer.state.items()
            for key, value in values.items()
        }
        if self.prototypes is not None:
            state |= {f"spmm/{name}": value for name, value in self.prototypes.state_dict().items()}
        return state

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        prototypes = {}
        for flat, value in state.items():
            kind, _, rest = flat.partition("/")
            if kind == "spmm":
                prototypes[rest] = value
            elif kind == "adamw":
                key, _, name = rest.partition("/")
                parameter = self.parameters[name]
                # Adam keeps its step count on the CPU unless it is fused, as it is on CUDA.
                where = "cpu" if key == "step" and parameter.device.type != "cuda" else parameter.device
                self.optimizer.optimizer.state[parameter][key] = value.to(where, copy=True)
        if self.prototypes is not None:
            self.prototypes.load_state_dict(prototypes)

    def _add_gradients(self, batches: Sequence[Batch], before: Before) -> Tensor:
        """As :meth:`Gradients.add`; out of memory for the first time, once more with the memory saver on."""
        try:
            return self.gradients.add(batches)
        except RuntimeError as fault:
            # Where several processes are, the others wait in a sum, and this one cannot begin again.
            if not is_out_of_memory(fault) or not self._may_save() or self._exchange is not None:
                raise
        # Not in the handler: the traceback keeps every activation alive.
        self._undo(before)
        self._start_saving()
        return self.gradients.add(batches)

    def _rehearse(self, batch: Batch, before: Before) -> None:
        """Find out, before processes wait for each other, whether one of them needs the memory saver; all then use it.

        Every later update takes the same memory, for training crops have one size.
        """
        self._is_rehearsed, is_short = True, False
        if not self._may_save():
            return
        try:
            self.gradients.rehearse(batch)
        except RuntimeError as fault:
            if not is_out_of_memory(fault):
                raise
            is_short = True
        self._undo(before)
        if agree(is_short, self.accelerator):
            self._start_saving()

    def _may_save(self) -> bool:
        """Whether the memory saver is still to be had."""
        return self.recipe.train.saver == "auto" and not self.network.saver

    def _start_saving(self) -> None:
        self.network.saver = True
        if self.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.accelerator.is_main_process:
            console.note("out of memory; going on with train.saver=on: the same results, less memory, more time")

    def _report(self, losses: Tensor, batches: Sequence[Batch]) -> Tensor:
        """OHEM, SPMM, gradient norm and batches without a labelled pixel, added up over all processes: (4,) float32.

        Whatever is not finite in one process is not finite in the sum.
        """
        self.accelerator.unscale_gradients(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        ignored = [(label_of(batch) == IGNORE).all().to(norm.device, non_blocking=True) for batch in batches]
        report = torch.cat([losses.float(), norm.float()[None], torch.stack(ignored).sum().float()[None]])
        return report if self._exchange is None else self._exchange.sum(report)

    def _read(self, report: Tensor) -> Lesson:
        """Wait for the device; the same lesson in every process."""
        world = 1 if self._exchange is None else self._exchange.world
        *sums, ignored = report.tolist()
        ohem, spmm, norm = (value / world for value in sums)
        is_finite = math.isfinite(ohem + spmm) and self._is_fine(norm)
        return Lesson(ohem + spmm, ohem, spmm, norm, is_finite=is_finite, all_ignored=round(ignored))

    def _is_fine(self, norm: float) -> bool:
        """Whether a gradient norm may go on: in fp16 some overflows are expected, for the scaler skips such a step."""
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        allowed = MOST_OVERFLOWS if self.accelerator.scaler is not None else 0
        return self._overflows <= allowed

    def _before(self) -> Before:
        state = {} if self.prototypes is None else self.prototypes.state_dict()
        return Before(rng_state(self.accelerator.device), {name: value.clone() for name, value in state.items()})

    def _undo(self, before: Before) -> None:
        """Back to where the update began."""
        set_rng_state(before.random, self.accelerator.device)
        if self.prototypes is not None:
            self.prototypes.load_state_dict(before.prototypes)
        self.optimizer.zero_grad(set_to_none=True)

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def starts_saving(recipe: Recipe, device: torch.device) -> bool:
    """Whether the memory saver is on from the first update.

    ``auto`` is on where running out of memory cannot be caught (a CPU's process is killed), but for nano, which needs
    little; on CUDA it is off until memory runs out.
    """
    if recipe.train.saver == "auto":
        return device.type != "cuda" and recipe.model.backbone != "nano"
    return recipe.train.saver == "on"


def make_optimizer(parameters: list[nn.Parameter], settings: Optim) -> torch.optim.AdamW:
    """AdamW with weight decay on all but one-dimensional parameters (METHOD §4); on CUDA one kernel for all."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = True if all(p.device.type == "cuda" for p in parameters) else None
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)
