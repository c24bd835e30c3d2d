"""Online hard example mining cross entropy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from memorysam_cli.dataset import IGNORE

FRACTION = 2**20
"""The share of kept pixels is a multiple of 1/FRACTION."""


def ohem_cross_entropy(logits: Tensor, label: Tensor, *, threshold: float = 0.7, min_kept: float = 1 / 16) -> Tensor:
    """The mean cross entropy of the hard pixels.

    Pixels with a loss above −ln(threshold) are kept; if they are fewer than n_min = valid pixels × ``min_kept``
    (rounded down), the n_min largest losses are kept instead.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) int64 classes, 255 = ignored.

    Returns:
        A scalar; 0 where no pixel is valid (the reference gives NaN there).

    Source: METHOD §3.
    """
    losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none").flatten()
    valid = (label != IGNORE).sum()
    # In integers: float32 would lose units above 2**24 pixels, and MPS has no float64.
    least = valid * round(min_kept * FRACTION) // FRACTION
    is_hard = losses > -math.log(threshold)
    # Both answers are formed with masks: no count leaves the device, so nothing waits for it.
    ranked, _ = losses.sort(descending=True)
    is_largest = torch.arange(ranked.numel(), device=ranked.device) < least
    enough = is_hard.sum() >= least
    kept = torch.where(enough, is_hard, False)
    total = torch.where(enough, (losses * kept).sum(), (ranked * is_largest).sum())
    number = torch.where(enough, kept.sum(), least)
    return total / number.clamp(min=1)
