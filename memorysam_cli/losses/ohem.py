"""Online hard example mining cross entropy: each pixel's loss, without holding the class logits of every pixel, and the
mean of those that are hard."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from memorysam_cli.dataset import IGNORE
from memorysam_cli.losses.loss import Exchange, Loss, LossInputs
from memorysam_cli.recipe import Ohem

SLAB_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
"""Upsampled logits of one slab: on a CPU they stay in its cache, on a GPU they fill it."""
FRACTION = 2**20
"""The share of kept pixels is a multiple of 1/FRACTION."""


class OhemLoss(Loss):
    """The mean cross entropy of the hard pixels of an update (METHOD §3); its settings are the recipe's ``ohem``."""

    Settings = Ohem
    settings: Ohem

    def __call__(self, inputs: LossInputs) -> Tensor:
        pairs = zip(inputs.logits, inputs.labels, strict=True)
        return ohem_mean(
            torch.cat([pixel_losses(logits, label) for logits, label in pairs]),
            torch.cat(list(inputs.labels)),
            threshold=self.settings.threshold,
            min_kept=self.settings.min_kept,
            exchange=inputs.exchange if self.settings.selection == "global" else None,
        )


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


class Slab(NamedTuple):
    """A band of rows of some samples.

    Attributes:
        samples: of the batch.
        cells: rows of the logits: the band's own and, inside the image, one more on each side, which interpolation
            reads.
        spread: the rows of pixels that ``cells`` upsample to.
        crop: the band's own among them.
        pixels: the band's own in the image.
    """

    samples: slice
    cells: slice
    spread: slice
    crop: slice
    pixels: slice


def pixel_losses(logits: Tensor, label: Tensor) -> Tensor:
    """The cross entropy of the bilinearly upsampled logits (align_corners false), pixel by pixel.

    The batch is worked off in bands of rows, forward and backward; only the arguments are kept in between. A band's
    numbers are those of the whole image, bit for bit where the stride is a power of two. All is float32, also under
    autocast.

    Args:
        logits: (B, K, h, w) of any float type.
        label: (B, H, W) int64 classes below K, 255 = ignored; H/h and W/w are one whole number.

    Returns:
        (B, H, W) float32, 0 where ignored; can be differentiated once.

    Raises:
        ValueError: the sizes have no common whole ratio.
        IndexError: a class outside 0 to K − 1, on the CPU (CUDA asserts in the kernel).
    """
    losses: Tensor = _PixelLosses.apply(logits, label, _stride(logits, label))  # type: ignore[no-untyped-call]
    return losses


class _PixelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(logits, label)
        ctx.stride = stride
        losses = torch.empty(label.shape, dtype=torch.float32, device=label.device)
        with torch.autocast(logits.device.type, enabled=False):
            cells = _channels_last(logits)
            for slab in _slabs(cells, stride):
                upsampled = _upsample(cells[slab.samples, :, slab.cells], stride)[:, :, slab.crop]
                log_p = upsampled.permute(0, 2, 3, 1).log_softmax(dim=-1)  # (B, K, rows, W) -> (B, rows, W, K)
                classes = label[slab.samples, slab.pixels]
                picked = F.nll_loss(log_p.flatten(0, 2), classes.flatten(), ignore_index=IGNORE, reduction="none")
                losses[slab.samples, slab.pixels] = picked.view(classes.shape)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, label = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):
            cells = _channels_last(logits)
            total = torch.zeros_like(cells)
            weights = torch.where(label == IGNORE, 0.0, gradient.float())
            for slab in _slabs(cells, ctx.stride):
                # Only on the CPU: on a GPU this look would wait for all that is queued.
                if label.device.type == "cpu" and not weights[slab.samples, slab.pixels].any():
                    continue
                weight = weights[slab.samples, slab.spread].clone()
                weight[:, : slab.crop.start] = 0
                weight[:, slab.crop.stop :] = 0
                total[slab.samples, :, slab.cells] += _gradient(
                    cells[slab.samples, :, slab.cells],
                    label[slab.samples, slab.spread],
                    weight,
                    stride=ctx.stride,
                )
        return total.to(logits.dtype), None, None


def _gradient(cells: Tensor, label: Tensor, weight: Tensor, *, stride: int) -> Tensor:
    """Of the weighted sum of the pixels' losses, by ``cells``: (softmax − one-hot) × weight, brought back to cells."""
    leaf = cells.detach().requires_grad_()
    with torch.enable_grad():
        upsampled = _upsample(leaf, stride)
    p = upsampled.detach().permute(0, 2, 3, 1).softmax(dim=-1)  # (B, K, rows, W) -> (B, rows, W, K)
    classes = torch.where(label == IGNORE, 0, label).unsqueeze(-1)
    p.scatter_add_(-1, classes, p.new_full((), -1.0).expand_as(classes)).mul_(weight.unsqueeze(-1))
    (gradient,) = torch.autograd.grad(upsampled, leaf, p.permute(0, 3, 1, 2))
    return gradient


def _upsample(cells: Tensor, stride: int) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W)."""
    size = (cells.shape[-2] * stride, cells.shape[-1] * stride)
    return F.interpolate(cells, size=size, mode="bilinear", align_corners=False)


def _channels_last(logits: Tensor) -> Tensor:
    """float32, a cell's classes side by side: interpolation is several times as fast that way."""
    return logits.detach().float().contiguous(memory_format=torch.channels_last)


def _slabs(cells: Tensor, stride: int) -> Iterator[Slab]:
    """Pieces of the batch as large as the device likes to see at once: some samples, or some rows of one."""
    batch, classes, h, w = cells.shape
    allowed = SLAB_BYTES.get(cells.device.type, SLAB_BYTES["cuda"]) // (classes * w * stride**2 * 4)  # rows of cells
    samples = max(1, allowed // h)
    rows = max(1, min(allowed // samples, h))
    for sample, begin in itertools.product(range(0, batch, samples), range(0, h, rows)):
        end = min(begin + rows, h)
        first, last = max(begin - 1, 0), min(end + 1, h)
        yield Slab(
            samples=slice(sample, sample + samples),
            cells=slice(first, last),
            spread=slice(first * stride, last * stride),
            crop=slice((begin - first) * stride, (end - first) * stride),
            pixels=slice(begin * stride, end * stride),
        )


def _stride(logits: Tensor, label: Tensor) -> int:
    """Pixels per cell."""
    (h, w), (height, width) = logits.shape[-2:], label.shape[-2:]
    stride = height // h if h else 0
    if stride == 0 or (h * stride, w * stride) != (height, width):
        raise ValueError(f"label: {height}×{width} pixels for {h}×{w} cells; a cell needs one whole number of pixels")
    return stride
