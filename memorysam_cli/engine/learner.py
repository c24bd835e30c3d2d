"""What learns: the network, its optimiser and the prototypes, one batch at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch
from memorysam_cli.engine.runtime import agree, sum_over_processes
from memorysam_cli.losses.ohem import ohem_cross_entropy
from memorysam_cli.losses.spmm import PrototypeMemory
from memorysam_cli.model import Segmenter
from memorysam_cli.model.network import upsample
from memorysam_cli.recipe import Optim, Recipe, Spmm


@dataclass(frozen=True)
class Lesson:
    """What one batch did.

    Attributes:
        loss: OHEM + λ·SPMM.
        ohem: the cross entropy of the hard pixels.
        spmm: λ times the prototypical adaptation loss.
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
        self.prototypes = make_prototypes(network, recipe.spmm)
        if self.prototypes is not None:
            self.prototypes.to(accelerator.device)

    def learn(self, batch: Batch, *, rate: float) -> Lesson:
        """Forward, losses, backward and, at the end of an accumulation, the update.

        Nothing that is not finite reaches the weights or the prototypes.

        Args:
            batch: with labels, on any device.
            rate: the learning rate of the update.
        """
        batch = batch.to(self.accelerator.device)
        assert batch.label is not None
        kept = None if self.prototypes is None else {k: v.clone() for k, v in self.prototypes.state_dict().items()}
        with self.accelerator.accumulate(self.model):
            ohem, spmm = self._losses(batch.frames, batch.label)
            self.accelerator.backward(ohem + spmm)
            is_complete: bool = self.accelerator.sync_gradients
            norm = self._gradient_norm() if is_complete else 0.0
            loss = (ohem + spmm).item()
            # In fp16 an overflow is expected now and then: the scaler skips the step and lowers its scale.
            is_finite = math.isfinite(loss) and (math.isfinite(norm) or self.accelerator.scaler is not None)
            is_finite = agree(is_finite, self.accelerator, all_must=True)
            if not is_finite and self.prototypes is not None and kept is not None:
                self.prototypes.load_state_dict(kept)
            if is_finite and is_complete:
                self._update(rate)
        return Lesson(loss, ohem.item(), spmm.item(), norm, is_complete=is_complete, is_finite=is_finite)

    def state(self) -> dict[str, Tensor]:
        """Optimiser and prototypes as flat tensors, such as ``adamw/exp_avg/sam.…``."""
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
        logits = upsample(output, size=(label.shape[-2], label.shape[-1]))[:, : self.network.classes]
        settings = self.recipe.ohem
        ohem = ohem_cross_entropy(logits, label, threshold=settings.threshold, min_kept=settings.min_kept)
        if self.prototypes is None:
            return ohem, ohem.new_zeros(())
        reduce = sum_over_processes if self.accelerator.num_processes > 1 else None
        return ohem, self.recipe.spmm.weight * self.prototypes(output.features, label, reduce=reduce)

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
