"""An update as most programs make it: cross entropy, clipped gradients, AdamW; nobody looks at the numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch


def pixel_losses(logits: Tensor, label: Tensor) -> Tensor:
    """(B, H, W); at ignored pixels some class's."""
    return -F.log_softmax(logits, dim=1).gather(1, label.clamp(max=logits.shape[1] - 1).unsqueeze(1)).squeeze(1)


class Learner:
    """A layer in training."""

    def __init__(self, channels: int, classes: int) -> None:
        torch.manual_seed(0)
        self.network = nn.Conv2d(channels, classes, 1)
        self.parameters = dict(self.network.named_parameters())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2)

    def learn(self, batches: list[Batch], *, rate: float) -> None:
        (batch,) = batches
        assert batch.label is not None
        self.optimizer.zero_grad()
        losses, is_valid = pixel_losses(self.network(torch.cat(batch.frames, dim=1)), batch.label), batch.label != 255
        ((losses * is_valid).sum() / is_valid.sum()).backward()
        self._report()
        self.optimizer.step()

    def _report(self) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
