"""Online hard example mining (OHEM) cross entropy: the mean loss of the hard pixels.

The loss of each pixel is computed without storing the class logits of every pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from memorysam_cli.dataset import IGNORE
from memorysam_cli.errors import UsageError
from memorysam_cli.losses.loss import Exchange, Loss, LossInputs, Task
from memorysam_cli.recipe import Ohem
from memorysam_cli.text import counted

SLAB_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
"""Upsampled logits of a slab: small enough for the caches of a CPU, large enough to keep a GPU busy."""
FRACTION = 2**20
"""The share of kept pixels is a multiple of 1/FRACTION."""
_LEAST = torch.finfo(torch.float32).tiny
"""Replaces a sum of weights that is 0, so that nothing counts."""


class OhemLoss(Loss):
    """The mean cross entropy of the hard pixels of an update (METHOD §3); its settings are the recipe's ``ohem``.

    Its state is the weights of the classes, if there are any: a resumed run keeps those that it started with.
    """

    Settings = Ohem
    settings: Ohem

    def __init__(self, settings: Ohem, task: Task) -> None:
        super().__init__(settings, task)
        self.class_weights = class_weights(settings.class_weights, task)

    def __call__(self, inputs: LossInputs) -> Tensor:
        pairs, smoothing = list(zip(inputs.logits, inputs.labels, strict=True)), self.settings.label_smoothing
        label = torch.cat(list(inputs.labels))
        plain = torch.cat([pixel_losses(logits.detach() if smoothing else logits, of) for logits, of in pairs])
        return ohem_mean(
            torch.cat([pixel_losses(*pair, smoothing=smoothing) for pair in pairs]) if smoothing else plain,
            label,
            threshold=self.settings.threshold,
            min_kept=self.settings.min_kept,
            exchange=inputs.exchange if self.settings.selection == "global" else None,
            hardness=plain,
            weights=None if self.class_weights is None else _weights_at(label, self.class_weights),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of the classes, if there are any."""
        return {} if self.class_weights is None else {"class_weights": self.class_weights}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As :meth:`Loss.load_state_dict`.

        Raises:
            KeyError: only one of the loss and the state has weights.
            RuntimeError: the weights are of another number of classes.
        """
        if self.class_weights is None:
            super().load_state_dict(state)
        else:
            self.class_weights.copy_(state["class_weights"])


def class_weights(wanted: str | Sequence[float], task: Task) -> Tensor | None:
    """The weight of each class's pixels: (K,) float32 on the task's device; None if all classes have the same weight.

    Args:
        wanted: the recipe's ``ohem.class_weights``.
        task: its ``class_pixels`` are the n of the formulas below.

    Returns:
        ``inverse``: 1 / n. ``effective``: 1 / (N·(1 − (1 − 1/N)ⁿ)), where N is the n of the median class. Both are
        scaled so that the mean weight of the classes with pixels is 1. A class without pixels has weight 0.

    Raises:
        UsageError: the length of a list is not the number of classes.

    Source: Cui et al. (2019), "Class-balanced loss based on effective number of samples", with β = 1 − 1/N.
    """
    if wanted == "none":
        return None
    if not isinstance(wanted, str):
        if len(wanted) != len(task.classes):
            raise UsageError(
                f"ohem.class_weights: has {counted(len(wanted), 'number')}, the data set "
                f"{counted(len(task.classes), 'class')}; give one for each, in this order: {', '.join(task.classes)}"
            )
        return torch.tensor(wanted, dtype=torch.float32, device=task.device)
    assert task.class_pixels is not None, "whoever wants such weights has counted the classes"
    present = sorted(pixels for pixels in task.class_pixels if pixels)
    median = max(2, present[len(present) // 2] if present else 0)
    effective = [pixels * 1.0 for pixels in task.class_pixels]
    if wanted == "effective":
        effective = [-median * math.expm1(pixels * math.log1p(-1 / median)) for pixels in effective]
    inverse = [1 / pixels if pixels else 0.0 for pixels in effective]
    scale = max(len(present), 1) / (sum(inverse) or 1)
    return torch.tensor([scale * weight for weight in inverse], dtype=torch.float32, device=task.device)


def _weights_at(label: Tensor, weights: Tensor) -> Tensor:
    """Each pixel's weight, 0 where it is ignored: (B, H, W) int64 -> (B, H, W) float32."""
    known = torch.cat([weights, weights.new_zeros(1)])
    return known[torch.where(label == IGNORE, len(weights), label)]


def ohem_mean(
    losses: Tensor,
    label: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
    exchange: Exchange | None = None,
    hardness: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean loss of the hard pixels.

    Pixels with a loss above −ln(threshold) are kept. If they are fewer than n_min = valid pixels × ``min_kept``
    (rounded down), the n_min largest losses are kept instead. Pixels with equal losses share the last of these places,
    so the result depends neither on the order of the pixels nor on the division into batches.

    Args:
        losses: float32, at least 0; at ignored pixels 0.
        label: of the same shape; int64 classes, 255 = ignored.
        exchange: to choose among the pixels of all processes. Each process then returns its share × the number of
            processes. DDP averages the gradients over the processes, so the result equals that of one process with all
            pixels.
        hardness: of the same shape; used instead of ``losses`` to choose pixels.
        weights: of the same shape, 0 where ignored; weights for the mean of the kept pixels. They do not affect which
            pixels are kept.

    Returns:
        A scalar; 0 if no pixel is valid (the reference returns NaN).

    Source: METHOD §3.
    """
    losses, is_valid = losses.flatten(), (label != IGNORE).flatten()
    hardness = (losses if hardness is None else hardness.flatten()).detach()
    shares, number = _choose(hardness, is_valid, -math.log(threshold), min_kept, exchange)
    if weights is not None:
        shares = shares * weights.flatten()
        number = _total(shares.sum(), exchange)
    # A product instead of a selection, so that NaN at any place is visible in the sum.
    mean = (losses * shares).sum() / (number.clamp(min=1) if weights is None else number.clamp(min=_LEAST))
    return mean if exchange is None else mean * exchange.world


def _choose(
    losses: Tensor, is_valid: Tensor, hard: float, min_kept: float, exchange: Exchange | None
) -> tuple[Tensor, Tensor]:
    """The kept share of each pixel, and the number of kept pixels in all processes.

    No count leaves the device, so nothing waits for it. Both results are computed, and one is selected.
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
    """The n-th largest loss of all processes, found bit by bit.

    Non-negative floats have the same order as their bits, so 31 counts find the value exactly. This needs a fraction of
    a sort's time and memory. Processes exchange 31 numbers instead of their largest losses.
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
        samples: samples of the batch.
        cells: rows of the logits: the band's own and, inside the image, one more on each side for the interpolation.
        spread: the rows of pixels to which ``cells`` are upsampled.
        crop: the band's own rows within ``spread``.
        pixels: the band's own rows in the image.
    """

    samples: slice
    cells: slice
    spread: slice
    crop: slice
    pixels: slice


def pixel_losses(logits: Tensor, label: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """The cross entropy of the bilinearly upsampled logits (align_corners false), pixel by pixel.

    The batch is processed in bands of rows, forward and backward; only the arguments are stored in between. The results
    equal those of the whole image, bit for bit if the stride is a power of two. Everything is float32, also under
    autocast.

    Args:
        logits: (B, K, h, w) of any float type.
        label: (B, H, W) int64 classes below K, 255 = ignored; H/h and W/w are the same whole number.
        smoothing: share ε of the target that is spread evenly over all K classes.

    Returns:
        (B, H, W) float32, 0 where ignored; can be differentiated once.

    Raises:
        ValueError: H/h and W/w are not the same whole number.
        IndexError: a class outside 0 to K − 1, on the CPU (CUDA asserts in the kernel).
    """
    losses: Tensor = _PixelLosses.apply(logits, label, _stride(logits, label), smoothing)  # type: ignore[no-untyped-call]
    return losses


class _PixelLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, stride: int, smoothing: float) -> Tensor:
        ctx.save_for_backward(logits, label)
        ctx.stride, ctx.smoothing = stride, smoothing
        losses = torch.empty(label.shape, dtype=torch.float32, device=label.device)
        with torch.autocast(logits.device.type, enabled=False):
            cells = _channels_last(logits)
            for slab in _slabs(cells, stride):
                upsampled = _upsample(cells[slab.samples, :, slab.cells], stride)[:, :, slab.crop]
                log_p = upsampled.permute(0, 2, 3, 1).log_softmax(dim=-1)  # (B, K, rows, W) -> (B, rows, W, K)
                classes = label[slab.samples, slab.pixels]
                picked = F.nll_loss(log_p.flatten(0, 2), classes.flatten(), ignore_index=IGNORE, reduction="none")
                if smoothing:
                    even = -log_p.mean(dim=-1).flatten()
                    picked = torch.where(classes.flatten() == IGNORE, 0.0, picked.lerp(even, smoothing))
                losses[slab.samples, slab.pixels] = picked.view(classes.shape)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, label = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):
            cells = _channels_last(logits)
            total = torch.zeros_like(cells)
            weights = torch.where(label == IGNORE, 0.0, gradient.float())
            for slab in _slabs(cells, ctx.stride):
                # Only on the CPU: on a GPU this check would wait for all queued work.
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
                    smoothing=ctx.smoothing,
                )
        return total.to(logits.dtype), None, None, None


def _gradient(cells: Tensor, label: Tensor, weight: Tensor, *, stride: int, smoothing: float) -> Tensor:
    """Gradient of the weighted sum of the pixels' losses by ``cells``: (softmax − target) × weight, added up per
    cell."""
    leaf = cells.detach().requires_grad_()
    with torch.enable_grad():
        upsampled = _upsample(leaf, stride)
    p = upsampled.detach().permute(0, 2, 3, 1).softmax(dim=-1)  # (B, K, rows, W) -> (B, rows, W, K)
    classes = torch.where(label == IGNORE, 0, label).unsqueeze(-1)
    p.scatter_add_(-1, classes, p.new_full((), smoothing - 1.0).expand_as(classes))
    if smoothing:
        p -= smoothing / p.shape[-1]
    p.mul_(weight.unsqueeze(-1))
    (gradient,) = torch.autograd.grad(upsampled, leaf, p.permute(0, 3, 1, 2))
    return gradient


def _upsample(cells: Tensor, stride: int) -> Tensor:
    """(B, K, h, w) -> (B, K, H, W)."""
    size = (cells.shape[-2] * stride, cells.shape[-1] * stride)
    return F.interpolate(cells, size=size, mode="bilinear", align_corners=False)


def _channels_last(logits: Tensor) -> Tensor:
    """float32, with a cell's classes next to each other in memory: interpolation is several times as fast."""
    return logits.detach().float().contiguous(memory_format=torch.channels_last)


def _slabs(cells: Tensor, stride: int) -> Iterator[Slab]:
    """Pieces of the batch in the best size for the device: some samples, or some rows of one."""
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
