"""The Semantic Prototype Memory Module (SPMM): prototypes of the classes, used only in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from memorysam_cli.losses.loss import Exchange, Loss, LossInputs, Task
from memorysam_cli.recipe import Spmm

REFERENCE_CLASSES = 25
"""The reference always takes its mean over this number of classes; it is a constant in its code."""


class SpmmLoss(Loss):
    """The prototypical adaptation loss of an update. Its settings are the recipe's ``spmm``, its state the prototypes.

    With the variant ``off`` the loss is 0 and has no state.
    """

    Settings = Spmm
    settings: Spmm

    def __init__(self, settings: Spmm, task: Task) -> None:
        super().__init__(settings, task)
        self.memory: PrototypeMemory | None = None
        if settings.variant != "off":
            self.memory = PrototypeMemory(
                len(task.classes), width=task.width, variant=settings.variant, momentum=settings.momentum,
                mean_over=REFERENCE_CLASSES,
            ).to(task.device)  # fmt: skip

    def __call__(self, inputs: LossInputs) -> Tensor:
        if self.memory is None:
            return torch.zeros((), device=self.task.device)
        features, label = torch.cat(list(inputs.features)), torch.cat(list(inputs.labels))
        return self.memory.forward(features, label, exchange=inputs.exchange)

    def state_dict(self) -> dict[str, Tensor]:
        """The prototypes, and which of them have been initialized."""
        return {} if self.memory is None else dict(self.memory.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As :meth:`Loss.load_state_dict`.

        Raises:
            KeyError: the variant is ``off``, but the state has prototypes.
            RuntimeError: the prototypes have another number of classes or channels.
        """
        if self.memory is None:
            super().load_state_dict(state)
        else:
            self.memory.load_state_dict(state)


def resize_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, H, W) labels to a feature map's (h, w) by floor-nearest: source index ⌊i·H/h⌋."""
    (height, width), device = label.shape[-2:], label.device
    rows = torch.arange(size[0], device=device) * height // size[0]
    columns = torch.arange(size[1], device=device) * width // size[1]
    return label[:, rows][:, :, columns]


class PrototypeMemory(nn.Module):
    """Global class prototypes G and the prototypical adaptation loss.

    Args:
        classes: C, the number of classes.
        width: D, the channels of the feature map.
        variant: ``reference`` with the public code's quirks (absent classes pull G to 0, means are divided by the pixel
            count twice, G is updated before the loss), or ``paper``.
        momentum: the share of the old G that an update keeps.
        mean_over: the number of classes that the ``reference`` variant's mean counts, even if there are fewer or more;
            None: C.

    Source: METHOD §3.
    """

    prototypes: Tensor
    seen: Tensor

    def __init__(
        self, classes: int, *, width: int, variant: Literal["reference", "paper"], momentum: float = 0.8,
        mean_over: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.variant = variant
        self.momentum = momentum
        self.mean_over = mean_over or classes
        self.register_buffer("prototypes", torch.zeros(classes, width))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def forward(self, features: Tensor, label: Tensor, *, exchange: Exchange | None = None) -> Tensor:
        """The loss of a batch; updates G.

        Args:
            features: (B, D, h, w) mean feature map of the modalities.
            label: (B, H, W) int64 classes at any size, 255 = ignored.
            exchange: for sums over processes, so that N ranks × B equal one rank × N·B.

        Returns:
            A scalar, without the weight λ.
        """
        sums, counts = class_sums(
            features, resize_label(label, (features.shape[-2], features.shape[-1])), len(self.prototypes)
        )
        if exchange is not None:
            sums, counts = exchange.sum(sums), exchange.sum(counts)
        means = sums / counts.clamp(min=1).unsqueeze(1)
        return self._reference(means, counts) if self.variant == "reference" else self._paper(means, counts)

    def _reference(self, means: Tensor, counts: Tensor) -> Tensor:
        local = means / counts.clamp(min=1).unsqueeze(1)  # the reference also divides twice
        with torch.no_grad():
            self._blend(local, torch.ones_like(self.seen))
            self.seen |= counts > 0
        return (local - self.prototypes).square().sum() / (self.mean_over * local.shape[1])

    def _paper(self, means: Tensor, counts: Tensor) -> Tensor:
        present = counts > 0
        before = torch.where(self.seen.unsqueeze(1), self.prototypes, means.detach())
        loss = ((means - before).square().mean(dim=1) * present).sum() / present.sum().clamp(min=1)
        with torch.no_grad():
            self.prototypes.copy_(before.where(present.unsqueeze(1), self.prototypes))
            self._blend(means, present)
            self.seen |= present
        return loss

    def _blend(self, local: Tensor, rows: Tensor) -> None:
        """G ← m·G + (1 − m)·p in the given rows."""
        blended = self.momentum * self.prototypes + (1 - self.momentum) * local
        self.prototypes.copy_(blended.where(rows.unsqueeze(1), self.prototypes))


def class_sums(features: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sum the features of each class's pixels.

    Uses a product with the one-hot labels. On CUDA this adds in the same order in every run, unlike ``index_add``; on a
    CPU both take a few milliseconds.

    Args:
        features: (B, D, h, w).
        label: (B, h, w) int64, 255 = ignored.

    Returns:
        (C, D) float32 sums and (C,) float32 pixel counts.
    """
    with torch.autocast(features.device.type, enabled=False):
        known = torch.arange(classes, device=label.device)
        one_hot = (label.flatten(1).unsqueeze(1) == known.unsqueeze(1)).float()  # (B, h, w) -> (B, C, h·w)
        sums = one_hot @ features.float().flatten(2).transpose(1, 2)  # (B, C, h·w) × (B, h·w, D) -> (B, C, D)
    return sums.sum(dim=0), one_hot.sum(dim=(0, 2))
