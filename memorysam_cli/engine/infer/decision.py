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

ONE_BYTE = 255
"""So many classes fit into a byte beside 255, which counts nowhere."""
AT_ONCE = 2**26
"""Logits that are brought to a scene's own size at once: 25 classes of 100 megapixels would be 10 GB."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a scene's logits; may still be on its way from the device."""

    classes: Tensor
    """(H, W) uint8, or int32 where there are more than 255 classes."""
    sureness: Tensor | None
    """(H, W) uint8: the probability of that class × 255, where it is wanted."""
    arrival: torch.cuda.Event | None = None
    """Happens when all of the batch has come from the device; None where it is here."""

    def arrays(self) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Mask (uint8 or uint16) and sureness, once they have come; any thread may wait for them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        mask = self.classes.numpy()
        sureness = None if self.sureness is None else self.sureness.numpy()
        return mask if mask.dtype == np.uint8 else mask.astype(np.uint16), sureness


def decide(
    logits: Tensor, sizes: Sequence[tuple[int, int]], *, classes: int, with_sureness: bool = False
) -> list[Decision]:
    """Decide a batch at its scenes' own sizes, and start copying the result to the host.

    Args:
        logits: (B, K, h, w) of any size and floating type.
        sizes: height and width of each of the B scenes.
        classes: K.
        with_sureness: whether the probabilities are wanted.

    Returns:
        B decisions; on CUDA the copies go to pinned memory, and one event tells that all have arrived.

    Source: METHOD §5, ``native``: the logits are brought to the scene's own size before the argmax.
    """
    arrival = torch.cuda.Event(blocking=True) if logits.is_cuda else None  # type: ignore[no-untyped-call]
    dtype = torch.uint8 if classes <= ONE_BYTE else torch.int32  # no uint16: few of torch's devices know it
    decisions = []
    for one, (height, width) in zip(logits, sizes, strict=True):
        mask, sureness = _decide(one.float(), height=height, width=width, dtype=dtype, with_sureness=with_sureness)
        decisions.append(Decision(_to_host(mask), None if sureness is None else _to_host(sureness), arrival))
    if arrival is not None:
        arrival.record(torch.cuda.current_stream(logits.device))
    return decisions


def class_map(logits: Tensor, *, height: int, width: int) -> Tensor:
    """The class of each pixel of a scene at its own size: (K, h, w) -> (height, width) int64."""
    return _decide(logits, height=height, width=width, dtype=torch.int64)[0]


def _decide(
    logits: Tensor, *, height: int, width: int, dtype: torch.dtype, with_sureness: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(K, h, w) -> (height, width) classes, and the best class's probability × 255; some rows at a time."""
    mask = logits.new_empty((height, width), dtype=dtype)
    sureness = logits.new_empty((height, width), dtype=torch.uint8) if with_sureness else None
    for rows, some in own_rows(logits, height=height, width=width):
        # max, not argmax: the same first best class, and 2.6 times as fast on a CPU.
        mask[rows] = some.max(0).indices.to(dtype)
        if sureness is not None:
            sureness[rows] = (some.softmax(0).amax(0) * 255).round().to(torch.uint8)
    return mask, sureness


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
