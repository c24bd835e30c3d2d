"""Online hard example mining cross entropy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memorysam_cli.dataset import IGNORE
from memorysam_cli.losses.exchange import Exchange

FRACTION = 2**20
"""The share of kept pixels is a multiple of 1/FRACTION."""


def ohem_mean(
    losses: Tensor,
    label: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
    exchange: Exchange | None = None,
) -> Tensor:
    """The mean loss of the hard pixels.

    Pixels with a loss above −ln(threshold) are kept; if they are fewer than n_min = valid pixels × ``min_kept``
    (rounded down), the n_min largest losses are kept instead. Pixels that tie for the last of these places share them,
    so that neither their order nor a partition of the batch matters.

    Args:
        losses: float32, at least 0; at ignored pixels 0.
        label: of the same shape; int64 classes, 255 = ignored.
        exchange: to choose among all processes' pixels. Each process then returns its share × the number of processes:
            the mean over the processes, which DDP takes of the gradients, is that of one process with all pixels.

    Returns:
        A scalar; 0 where no pixel is valid (the reference gives NaN there).

    Source: METHOD §3.
    """
    losses, is_valid = losses.flatten(), (label != IGNORE).flatten()
    weights, number = _choose(losses.detach(), is_valid, -math.log(threshold), min_kept, exchange)
    # A product, no selection: a loss that is not a number shows, wherever it is.
    mean = (losses * weights).sum() / number.clamp(min=1)
    return mean if exchange is None else mean * exchange.world


def _choose(
    losses: Tensor, is_valid: Tensor, hard: float, min_kept: float, exchange: Exchange | None
) -> tuple[Tensor, Tensor]:
    """The share of each pixel that is kept, and how many pixels these are in all processes.

    No count leaves the device, so nothing waits for it; both answers are formed, and one is taken.
    """
    is_hard = losses > hard
    counted = _total(torch.stack([is_valid.sum(), is_hard.sum()]), exchange)
    # In integers: float32 would lose units above 2**24 pixels, and MPS has no float64.
    least = counted[0] * round(min_kept * FRACTION) // FRACTION
    last = _nth_largest(losses, least, exchange)
    is_larger, is_last = losses > last, (losses == last) & is_valid
    places = _total(torch.stack([is_larger.sum(), is_last.sum()]), exchange)
    share = (least - places[0]) / places[1].clamp(min=1)
    is_enough = counted[1] >= least
    largest = torch.where(is_last, share, is_larger.float())
    return torch.where(is_enough, is_hard.float(), largest), torch.where(is_enough, counted[1], least)


def _nth_largest(losses: Tensor, n: Tensor, exchange: Exchange | None) -> Tensor:
    """The n-th largest of all processes' losses, found bit by bit.

    Floats that are not negative are ordered as their bits are, so 31 counts find the value exactly. That takes a
    fraction of a sort's time and memory, and between processes 31 numbers instead of their largest losses.
    """
    bits, found = losses.view(torch.int32), n.new_zeros((), dtype=torch.int32)
    for bit in reversed(range(31)):
        candidate = found + 2**bit
        reached = _total(torch.count_nonzero(bits >= candidate), exchange)
        found = torch.where(reached >= n, candidate, found)
    return found.view(torch.float32)


def _total(counts: Tensor, exchange: Exchange | None) -> Tensor:
    return counts if exchange is None else exchange.sum(counts)
