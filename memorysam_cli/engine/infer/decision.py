"""From logits to the class of each pixel of a scene at its own size.

:func:`decide` does it for prediction: one byte per pixel leaves the device, and nobody waits for it. :func:`class_map`
is the same for scoring, where the classes stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from memorysam_cli.dataset import IGNORE

ONE_BYTE = 255
"""So many classes fit into a byte beside 255, which is ignored."""
AT_ONCE = 2**26
"""Logits that are brought to a scene's own size at once: 25 classes of 100 megapixels would be 10 GB."""


@dataclass(frozen=True)
class Wanted:
    """What is decided of each pixel beside its class, and how sure a class must be.

    Probabilities are float16 or float32, or uint8: times 255, rounded.
    """

    sureness: torch.dtype | None = None
    """Of the winning class's probability; None: it is not wanted."""
    probabilities: torch.dtype | None = None
    """Of every class's probability; None: they are not wanted."""
    thresholds: tuple[float, ...] = ()
    """The probability that each of the K classes needs where it wins; none: no class needs any."""
    unsure: int = IGNORE
    """What the pixel becomes whose winning class has less: a class, or 255."""

    @property
    def needs_probabilities(self) -> bool:
        """Whether logits alone do not decide."""
        return bool(self.thresholds) or self.sureness is not None or self.probabilities is not None


PLAIN = Wanted()
"""The classes alone."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a scene's logits; may still be on its way from the device."""

    classes: Tensor
    """(H, W) uint8, or int32 where there are more than 255 classes."""
    sureness: Tensor | None = None
    """(H, W): the probability of the winning class, where it is wanted."""
    probabilities: Tensor | None = None
    """(K, H, W): of all classes, where they are wanted."""
    arrival: torch.cuda.Event | None = None
    """Happens when all of the batch has come from the device; None where it is here."""

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
        """Mask (uint8 or uint16), sureness and probabilities, once they have come; any thread may wait for them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        mask = self.classes.numpy()
        others = [None if each is None else each.numpy() for each in (self.sureness, self.probabilities)]
        return mask if mask.dtype == np.uint8 else mask.astype(np.uint16), others[0], others[1]


def decide(logits: Tensor, sizes: Sequence[tuple[int, int]], *, classes: int, wanted: Wanted = PLAIN) -> list[Decision]:
    """Decide a batch at its scenes' own sizes, and start copying the result to the host.

    Args:
        logits: (B, K, h, w) of any size and floating type.
        sizes: height and width of each of the B scenes.
        classes: K.
        wanted: what else is decided.

    Returns:
        B decisions; on CUDA the copies go to pinned memory, and one event tells that all have arrived.

    Source: METHOD §5, ``native``: the logits are brought to the scene's own size before the argmax.
    """
    arrival = torch.cuda.Event(blocking=True) if logits.is_cuda else None  # type: ignore[no-untyped-call]
    dtype = torch.uint8 if classes <= ONE_BYTE else torch.int32  # no uint16: few of torch's devices know it
    decisions = []
    for one, (height, width) in zip(logits, sizes, strict=True):
        found = _decide(one.float(), height=height, width=width, dtype=dtype, wanted=wanted)
        sureness, every = (None if each is None else _to_host(each) for each in found[1:])
        decisions.append(Decision(_to_host(found[0]), sureness, every, arrival))
    if arrival is not None:
        arrival.record(torch.cuda.current_stream(logits.device))
    return decisions


def class_map(logits: Tensor, *, height: int, width: int) -> Tensor:
    """The class of each pixel of a scene at its own size: (K, h, w) -> (height, width) int64."""
    return _decide(logits, height=height, width=width, dtype=torch.int64)[0]


def probabilities(logits: Tensor, *, height: int, width: int) -> Tensor:
    """Those of all classes in each pixel of a scene at its own size: (K, h, w) -> (K, height, width) float32."""
    wanted = Wanted(probabilities=torch.float32)
    found = _decide(logits.float(), height=height, width=width, dtype=torch.int64, wanted=wanted)[2]
    assert found is not None
    return found


def _decide(
    logits: Tensor, *, height: int, width: int, dtype: torch.dtype, wanted: Wanted = PLAIN
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(K, h, w) -> (height, width) classes, and sureness and probabilities as wanted; some rows at a time."""
    mask = logits.new_empty((height, width), dtype=dtype)
    sureness = None if wanted.sureness is None else logits.new_empty((height, width), dtype=wanted.sureness)
    every = None
    if wanted.probabilities is not None:
        every = logits.new_empty((len(logits), height, width), dtype=wanted.probabilities)
    for rows, some in own_rows(logits, height=height, width=width):
        # max, not argmax: the same first best class, and 2.6 times as fast on a CPU.
        winner = some.max(0).indices
        if wanted.needs_probabilities:
            probability = some.softmax(0)
            best = probability.amax(0)
            if sureness is not None:
                sureness[rows] = _stored(best, sureness.dtype)
            if every is not None:
                every[:, rows] = _stored(probability, every.dtype)
            if wanted.thresholds:
                winner = winner.masked_fill(best < best.new_tensor(wanted.thresholds)[winner], wanted.unsure)
        mask[rows] = winner.to(dtype)
    return mask, sureness, every


def _stored(probability: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers from 0 to 1 in another type; in bytes 0 to 255, rounded."""
    return (probability * 255).round().to(dtype) if dtype == torch.uint8 else probability.to(dtype)


def own_rows(logits: Tensor, *, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """As :func:`own_size`, some rows at a time where all of them would be more than :data:`AT_ONCE` numbers.

    Yields:
        Which rows, and their (K, rows, width); together all of them once. The view is only good until the next one.
    """
    classes, source = logits.shape[0], logits.shape[1]
    count = max(1, AT_ONCE // (classes * width))
    if count >= height or logits.shape[-2:] == (height, width):
        yield slice(0, height), own_size(logits, height=height, width=width)
        return
    for top in range(0, height, count):
        rows = slice(top, min(top + count, height))
        place = torch.arange(rows.start, rows.stop, device=logits.device, dtype=torch.float64)
        place = ((place + 0.5) * (source / height) - 0.5).clamp(min=0)
        above = place.floor().long()
        below, share = (above + 1).clamp(max=source - 1), (place - above).to(logits.dtype)
        between = torch.lerp(logits[:, above], logits[:, below], share[:, None])  # (K, h, w) -> (K, rows, w)
        yield rows, own_size(between, height=between.shape[1], width=width)


def own_size(logits: Tensor, *, height: int, width: int) -> Tensor:
    """Bring one scene's logits to its own size: (K, h, w) -> (K, height, width), bilinear as METHOD §5 says."""
    if logits.shape[-2:] == (height, width):
        return logits
    return F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def _to_host(values: Tensor) -> Tensor:
    """The same on the host; from CUDA without waiting, which only pinned memory allows."""
    if not values.is_cuda:
        return values.cpu()
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return pinned.copy_(values, non_blocking=True)
