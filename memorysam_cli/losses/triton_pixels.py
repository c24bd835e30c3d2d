"""The cross entropy of every pixel as two Triton kernels, which hold nothing per class and pixel at all.

So far they were run in Triton's interpreter and compiled for GPUs, never run on one; therefore
:mod:`memorysam_cli.losses.pixels` takes them on request only.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from memorysam_cli.dataset import IGNORE

BLOCK = 128
"""Neighbours in a row, pixels or cells, that one program computes."""
OPTIONS = {"enable_fp_fusion": True}
"""Said aloud: Triton 3.9 warns where its default, which is about to change, is relied on."""


def pixel_losses(logits: Tensor, label: Tensor, stride: int) -> Tensor:
    """As :func:`memorysam_cli.losses.pixels.pixel_losses`, for sizes that were checked there.

    The forward kernel goes once over the classes of a pixel. The backward kernel adds up, for a class of a cell, the
    at most 2·stride × 2·stride pixels that read it: nothing is added by several programs, so two runs are equal bit
    for bit.

    Args:
        logits: (B, K, h, w) of any float type.
        label: (B, h·stride, w·stride) int64 classes below K, 255 = ignored.
        stride: pixels per cell.

    Returns:
        (B, H, W) float32; can be differentiated once.
    """
    losses: Tensor = _PixelLosses.apply(logits, label, stride)  # type: ignore[no-untyped-call]
    return losses


class _PixelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, stride: int) -> Tensor:
        cells, label = logits.detach().float().contiguous(), label.contiguous()
        (_, classes, h, w), (batch, height, width) = cells.shape, label.shape
        losses = torch.empty(label.shape, dtype=torch.float32, device=label.device)
        log_sums = torch.empty_like(losses)
        grid = (triton.cdiv(width, BLOCK), height, batch)
        _forward[grid](cells, label, losses, log_sums, classes, h, w, stride, IGNORE, BLOCK, **OPTIONS)
        ctx.save_for_backward(logits, label, log_sums)
        ctx.stride = stride
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, label, log_sums = ctx.saved_tensors
        cells = logits.detach().float().contiguous()
        batch, classes, h, w = cells.shape
        total = torch.empty_like(cells)
        grid = (triton.cdiv(w, BLOCK), h, batch * classes)
        _backward[grid](
            cells,
            label,
            log_sums,
            gradient.float().contiguous(),
            total,
            classes,
            h,
            w,
            ctx.stride,
            IGNORE,
            BLOCK,
            **OPTIONS,
        )
        return total.to(logits.dtype), None, None


@triton.jit
def _taps(pixel, cells, stride):  # type: ignore[no-untyped-def]
    """The two cells that a pixel lies between, and its way from the first to the second (align_corners false)."""
    # In integers, as (pixel + 1/2) / stride − 1/2 is not exact for a stride such as 3.
    place = tl.maximum(2 * pixel + 1 - stride, 0)
    lower = place // (2 * stride)
    return lower, tl.minimum(lower + 1, cells - 1), (place % (2 * stride)) / (2.0 * stride)


@triton.jit
def _interpolate(plane, y0, y1, ty, x0, x1, tx, w, mask):  # type: ignore[no-untyped-def]
    """One class's logits at the pixels of a row."""
    top = tl.load(plane + y0 * w + x0, mask, 0.0) * (1 - tx) + tl.load(plane + y0 * w + x1, mask, 0.0) * tx
    bottom = tl.load(plane + y1 * w + x0, mask, 0.0) * (1 - tx) + tl.load(plane + y1 * w + x1, mask, 0.0) * tx
    return top * (1 - ty) + bottom * ty


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    cells, label, losses, log_sums, classes, h, w, stride: tl.constexpr, ignore: tl.constexpr, block: tl.constexpr
):
    """A program: ``block`` pixels of a row. A running maximum keeps the exponentials finite."""
    x, y, sample = tl.program_id(0) * block + tl.arange(0, block), tl.program_id(1), tl.program_id(2).to(tl.int64)
    mask = x < w * stride
    pixel = (sample * h * stride + y) * w * stride + x
    target = tl.load(label + pixel, mask, ignore)
    y0, y1, ty = _taps(y, h, stride)
    x0, x1, tx = _taps(x, w, stride)
    largest = tl.full((block,), float("-inf"), tl.float32)
    total = tl.zeros((block,), tl.float32)
    picked = tl.zeros((block,), tl.float32)
    for index in range(classes):
        value = _interpolate(cells + (sample * classes + index) * h * w, y0, y1, ty, x0, x1, tx, w, mask)
        above = tl.maximum(largest, value)
        total = total * tl.exp(largest - above) + tl.exp(value - above)
        largest = above
        picked = tl.where(target == index, value, picked)
    log_sum = largest + tl.log(total)
    tl.store(log_sums + pixel, log_sum, mask)
    tl.store(losses + pixel, tl.where(target == ignore, 0.0, log_sum - picked), mask)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    cells,
    label,
    log_sums,
    weights,
    total,
    classes,
    h,
    w,
    stride: tl.constexpr,
    ignore: tl.constexpr,
    block: tl.constexpr,
):
    """A program: one class of ``block`` cells of a row; it looks at every pixel that one of them takes part in."""
    j, i, plane = tl.program_id(0) * block + tl.arange(0, block), tl.program_id(1), tl.program_id(2).to(tl.int64)
    sample, index = plane // classes, plane % classes
    gathered = tl.zeros((block,), tl.float32)
    for y in range(tl.maximum(i * stride - stride // 2, 0), tl.minimum((i + 1) * stride + stride // 2, h * stride)):
        y0, y1, ty = _taps(y, h, stride)
        share_y = tl.where(y0 == i, 1 - ty, 0.0) + tl.where(y1 == i, ty, 0.0)
        for dx in range(2 * stride):
            x = j * stride - stride // 2 + dx
            mask = (x >= 0) & (x < w * stride)
            x0, x1, tx = _taps(x, w, stride)
            share = share_y * (tl.where(x0 == j, 1 - tx, 0.0) + tl.where(x1 == j, tx, 0.0))
            pixel = (sample * h * stride + y) * w * stride + x
            target = tl.load(label + pixel, mask, ignore)
            weight = tl.load(weights + pixel, mask & (target != ignore), 0.0)
            value = _interpolate(cells + plane * h * w, y0, y1, ty, x0, x1, tx, w, mask)
            p = tl.exp(value - tl.load(log_sums + pixel, mask, 0.0))
            gathered += share * weight * (p - tl.where(target == index, 1.0, 0.0))
    tl.store(total + (plane * h + i) * w + j, gathered, j < w)
