"""A training step as the reference does it: float32, anomaly detection, full resolution, a wait at every step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine import runtime
from memorysam_cli.engine.benchmark.plain import Plain
from memorysam_cli.losses.spmm import resize_label
from memorysam_cli.recipe import Ohem, Recipe, Spmm


class PlainLesson(NamedTuple):
    """What one step did.

    Attributes:
        loss: OHEM + λ·SPMM.
        ohem: the cross entropy of the hard pixels.
        spmm: λ times the prototypical adaptation loss.
    """

    loss: float
    ohem: float
    spmm: float


class PlainLearner:
    """A plain network in training.

    Args:
        network: the twin of a network that is set up for training.
        recipe: its losses and optimiser; precision, saver, compilation and accumulation are not the reference's.
    """

    def __init__(self, network: Plain, recipe: Recipe) -> None:
        self.network, self.recipe = network, recipe
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        settings = recipe.optim
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
                {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=settings.lr, betas=settings.betas, eps=settings.eps,
        )  # fmt: skip
        width = network.sam.sam_mask_decoder.conv_s0.out_channels
        device = network.sam.no_mem_embed.device
        self.prototypes = PlainPrototypes(network.classes, width=width, settings=recipe.spmm, device=device)

    def learn(self, batch: Batch, *, rate: float) -> PlainLesson:
        """One update from one batch with labels, which is on the network's device."""
        assert batch.label is not None
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        device = batch.frames[0].device
        with runtime.computing("fp32", device), torch.autograd.set_detect_anomaly(True):
            ohem, spmm = self.losses(batch)
            (ohem + spmm).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()  # last, for the parameters are another network's too
        return PlainLesson((ohem + spmm).item(), ohem.item(), spmm.item())

    def gradient(self, batch: Batch) -> tuple[float, float, float]:
        """OHEM, λ·SPMM and the gradient's norm of a batch, for comparison; the parameters stay as they are."""
        with runtime.computing("fp32", batch.frames[0].device):
            ohem, spmm = self.losses(batch)
            (ohem + spmm).backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters.values() if p.grad is not None])
        self.optimizer.zero_grad()
        return ohem.item(), spmm.item(), norm.item()

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """OHEM and λ·SPMM of a batch; the prototypes move on."""
        assert batch.label is not None
        output = self.network(batch.frames)
        ohem = plain_ohem(output.logits, batch.label, settings=self.recipe.ohem)
        return ohem, self.recipe.spmm.weight * self.prototypes(output.features, batch.label)


def plain_ohem(logits: Tensor, label: Tensor, *, settings: Ohem) -> Tensor:
    """OHEM cross entropy of METHOD §3 on full-resolution logits.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) int64, 255 = ignored.
        settings: threshold and the least share.

    Returns:
        A scalar, 0 without a valid pixel.
    """
    losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none").view(-1)
    least = int(int((label != IGNORE).sum()) * settings.min_kept)
    hard = losses[losses > -math.log(settings.threshold)]
    if hard.numel() < least:
        hard, _ = losses.topk(least)
    return hard.mean() if hard.numel() else losses.sum() * 0


class PlainPrototypes:
    """The prototypes and the prototypical adaptation loss of METHOD §3, class by class.

    Args:
        classes: C.
        width: D, the channels of the feature map.
        settings: variant and momentum.
        device: of the features.
    """

    def __init__(self, classes: int, *, width: int, settings: Spmm, device: torch.device) -> None:
        self.settings = settings
        self.known = torch.zeros(classes, width, device=device)
        self.seen = [False] * classes

    def __call__(self, features: Tensor, label: Tensor) -> Tensor:
        """The loss, not yet weighted.

        Args:
            features: (B, D, h, w).
            label: (B, H, W) int64, 255 = ignored.
        """
        if self.settings.variant == "off":
            return features.new_zeros(())
        small = resize_label(label, (features.shape[-2], features.shape[-1]))
        pixels = features.permute(0, 2, 3, 1)  # (B, D, h, w) -> (B, h, w, D)
        local: list[Tensor | None] = []
        for index in range(len(self.known)):
            of_class = pixels[small == index]  # (n, D)
            local.append(of_class.mean(dim=0) if len(of_class) else None)
            if self.settings.variant == "reference" and len(of_class):
                local[-1] = of_class.mean(dim=0) / len(of_class)  # the second division is the reference's
        return self._reference(local) if self.settings.variant == "reference" else self._paper(local)

    def _reference(self, local: list[Tensor | None]) -> Tensor:
        """Absent classes count as zeros; G moves first."""
        means = torch.stack([torch.zeros_like(self.known[0]) if mean is None else mean for mean in local])
        self.known = self._blend(self.known, means.detach())
        return (means - self.known).square().mean()

    def _paper(self, local: list[Tensor | None]) -> Tensor:
        """Only classes that are present; G as it was before."""
        losses = []
        for index, mean in enumerate(local):
            if mean is not None:
                before = self.known[index].clone() if self.seen[index] else mean.detach()
                losses.append((mean - before).square().mean())
                self.known[index], self.seen[index] = self._blend(before, mean.detach()), True
        return torch.stack(losses).mean() if losses else self.known.new_zeros(())

    def _blend(self, known: Tensor, local: Tensor) -> Tensor:
        return self.settings.momentum * known + (1 - self.settings.momentum) * local
