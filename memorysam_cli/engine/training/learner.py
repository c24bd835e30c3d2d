"""What learns: the network, its optimiser and the prototypes, one batch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch
from memorysam_cli.engine.runtime import agree, rng_state, set_rng_state, sum_over_processes
from memorysam_cli.losses.ohem import ohem_cross_entropy
from memorysam_cli.losses.spmm import PrototypeMemory
from memorysam_cli.model import Segmenter
from memorysam_cli.recipe import Optim, Recipe, Spmm

MOST_OVERFLOWS = 20
"""Updates in a row that the fp16 gradient scaler may skip before a run counts as diverged."""


@dataclass(frozen=True)
class Lesson:
    """What one batch did.

    Attributes:
        loss: OHEM + λ·SPMM, the mean of the accumulation so far and of all processes.
        ohem: the cross entropy of the hard pixels, likewise.
        spmm: λ times the prototypical adaptation loss, likewise.
        gradient_norm: of all trained parameters, before the update.
        is_complete: an accumulation is over; the weights were updated if all is finite.
        is_finite: whether loss and gradient are, in every process.
    """

    loss: float
    ohem: float
    spmm: float
    gradient_norm: float
    is_complete: bool
    is_finite: bool


class Learner:
    """A network in training.

    Args:
        network: from :func:`memorysam_cli.model.weights.build_for_training`.
        recipe: its losses, optimiser and precision.
        accelerator: device, processes and precision.
    """

    def __init__(self, network: Segmenter, recipe: Recipe, *, accelerator: Accelerator) -> None:
        self.network, self.recipe, self.accelerator = network, recipe, accelerator
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.model, self.optimizer = accelerator.prepare(
            network.train(), make_optimizer(list(self.parameters.values()), recipe.optim)
        )
        # prepare() makes forward autocast wherever it is called; here only a training step does, so that validation
        # computes what `memorysam evaluate` computes from the file.
        for module in (network, self.model):
            module.__dict__.pop("forward", None)
        self.prototypes = make_prototypes(network, recipe.spmm)
        if self.prototypes is not None:
            self.prototypes.to(accelerator.device)
        self._begun: tuple[dict[str, Tensor], dict[str, Tensor]] | None = None
        self._losses_so_far: list[Tensor] = []
        self._overflows = 0

    def learn(self, batch: Batch, *, rate: float) -> Lesson:
        """Forward, losses, backward and, at the end of an accumulation, the update.

        Nothing that is not finite reaches the weights: then weights, prototypes and random numbers are those of before
        the accumulation.

        Args:
            batch: with labels, on any device.
            rate: the learning rate of the update.
        """
        batch = batch.to(self.accelerator.device)
        assert batch.label is not None
        if self._begun is None:
            self._begun = rng_state(self.accelerator.device), self._prototype_state()
        with self.accelerator.accumulate(self.model):
            with self.accelerator.autocast():
                ohem, spmm = self._losses(batch.frames, batch.label)
            self.accelerator.backward(ohem + spmm)
            is_complete: bool = self.accelerator.sync_gradients
            norm = self._gradient_norm() if is_complete else 0.0
            ohem_so_far, spmm_so_far = self._mean_losses(ohem, spmm)
            is_finite = math.isfinite(ohem_so_far + spmm_so_far) and self._is_fine(norm)
            is_finite = agree(is_finite, self.accelerator, all_must=True)
            if not is_finite:
                self._undo()
            elif is_complete:
                self._update(rate)
        if is_complete or not is_finite:
            self._begun, self._losses_so_far = None, []
        total = ohem_so_far + spmm_so_far
        return Lesson(total, ohem_so_far, spmm_so_far, norm, is_complete=is_complete, is_finite=is_finite)

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
                # Adam keeps its step count on the CPU unless it is fused.
                where = "cpu" if key == "step" else parameter.device
                self.optimizer.optimizer.state[parameter][key] = value.to(where, copy=True)
        if self.prototypes is not None:
            self.prototypes.load_state_dict(prototypes)

    def _losses(self, frames: list[Tensor], label: Tensor) -> tuple[Tensor, Tensor]:
        """OHEM and the weighted SPMM loss."""
        output = self.model(frames)
        logits = self.network.upsample(output, size=(label.shape[-2], label.shape[-1]))
        settings = self.recipe.ohem
        ohem = ohem_cross_entropy(logits, label, threshold=settings.threshold, min_kept=settings.min_kept)
        if self.prototypes is None:
            return ohem, ohem.new_zeros(())
        reduce = sum_over_processes if self.accelerator.num_processes > 1 else None
        return ohem, self.recipe.spmm.weight * self.prototypes(output.features, label, reduce=reduce)

    def _mean_losses(self, ohem: Tensor, spmm: Tensor) -> tuple[float, float]:
        """Means over the accumulation so far and all processes."""
        self._losses_so_far.append(torch.stack([ohem.detach().float(), spmm.detach().float()]))
        mean = torch.stack(self._losses_so_far).mean(dim=0)
        if self.accelerator.num_processes > 1:
            mean = self.accelerator.reduce(mean, reduction="mean")
        first, second = mean.tolist()
        return first, second

    def _is_fine(self, norm: float) -> bool:
        """Whether a gradient norm may go on: in fp16 some overflows are expected, for the scaler skips such a step."""
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        allowed = MOST_OVERFLOWS if self.accelerator.scaler is not None else 0
        return self._overflows <= allowed

    def _prototype_state(self) -> dict[str, Tensor]:
        state = {} if self.prototypes is None else self.prototypes.state_dict()
        return {name: value.clone() for name, value in state.items()}

    def _undo(self) -> None:
        """Back to where the accumulation began."""
        assert self._begun is not None
        random, prototypes = self._begun
        set_rng_state(random, self.accelerator.device)
        if self.prototypes is not None:
            self.prototypes.load_state_dict(prototypes)
        self.optimizer.zero_grad(set_to_none=True)

    def _gradient_norm(self) -> float:
        self.accelerator.unscale_gradients(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def make_optimizer(parameters: list[nn.Parameter], settings: Optim) -> torch.optim.AdamW:
    """AdamW with weight decay on all but one-dimensional parameters (METHOD §4)."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def make_prototypes(network: Segmenter, settings: Spmm) -> PrototypeMemory | None:
    """The SPMM as the recipe wants it; none where it is off."""
    if settings.variant == "off":
        return None
    width = network.sam.sam_mask_decoder.conv_s0.out_channels
    return PrototypeMemory(network.classes, width=width, variant=settings.variant, momentum=settings.momentum)
