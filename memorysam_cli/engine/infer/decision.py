"""From logits to the class of each pixel of a scene at its own size.

:func:`decide` is for prediction: one byte per pixel leaves the device, without waiting. :func:`class_map` is the same
for evaluation, where the classes stay on the device. torch is imported only inside the functions that compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from memorysam_cli.dataset import IGNORE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ONE_BYTE = 255
"""Largest number of classes that fit into a byte besides 255, which is ignored."""
AT_ONCE = 2**26
"""Number of logits that are resized at once: 25 classes of 100 megapixels would be 10 GB."""
Share = Literal["float16", "float32", "uint8"]
"""Types for storing a probability."""


@dataclass(frozen=True)
class Wanted:
    """What to compute for each pixel besides its class, and the thresholds of classes.

    Probabilities have a torch type: float16 or float32, or uint8 (times 255, rounded).
    """

    sureness: Share | None = None
    """Type for the probability of the winning class; None: not requested."""
    probabilities: Share | None = None
    """Type for the probabilities of all classes; None: not requested."""
    thresholds: tuple[float, ...] = ()
    """For each of the K classes, the probability below which a pixel that it wins is unsure; empty: no thresholds."""
    unsure: int = IGNORE
    """The value of a pixel below the threshold: a class, or 255."""

    @property
    def needs_probabilities(self) -> bool:
        """Whether probabilities are needed in addition to logits."""
        return bool(self.thresholds) or self.sureness is not None or self.probabilities is not None


PLAIN = Wanted()
"""Only the classes."""


@dataclass(frozen=True)
class Decision:
    """The result for a scene, which may still be on its way from the device."""

    classes: Tensor
    """(H, W) uint8, or int32 for more than 255 classes."""
    sureness: Tensor | None = None
    """(H, W): the probability of the winning class, if requested."""
    probabilities: Tensor | None = None
    """(K, H, W): the probabilities of all classes, if requested."""
    arrival: torch.cuda.Event | None = None
    """Event after which all of the batch has arrived from the device; None if it is already here."""

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
        """Mask (uint8 or uint16), confidence and probabilities, after they have arrived; any thread may wait for
        them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        mask = self.classes.numpy()
        others = [None if each is None else each.numpy() for each in (self.sureness, self.probabilities)]
        return mask if mask.dtype == np.uint8 else mask.astype(np.uint16), others[0], others[1]


def decide(logits: Tensor, sizes: Sequence[tuple[int, int]], *, classes: int, wanted: Wanted = PLAIN) -> list[Decision]:
    """Compute the results of a batch at its scenes' own sizes, and start copying them to the host.

    Args:
        logits: (B, K, h, w) of any size and floating type.
        sizes: height and width of each of the B scenes.
        classes: K.
        wanted: what else to compute.

    Returns:
        B decisions. On CUDA the copies go to pinned memory, and one event signals that all have arrived.

    Source: METHOD §5, ``native``: the logits are resized to the scene's own size before the argmax.
    """
    import torch

    arrival = torch.cuda.Event(blocking=True) if logits.is_cuda else None  # type: ignore[no-untyped-call]
    dtype = torch.uint8 if classes <= ONE_BYTE else torch.int32  # not uint16, which few of torch's devices support
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
    import torch

    return _decide(logits, height=height, width=width, dtype=torch.int64)[0]


def probabilities(logits: Tensor, *, height: int, width: int) -> Tensor:
    """The probabilities of all classes in each pixel at the scene's own size: (K, h, w) -> (K, height, width)
    float32."""
    import torch

    wanted = Wanted(probabilities="float32")
    found = _decide(logits.float(), height=height, width=width, dtype=torch.int64, wanted=wanted)[2]
    assert found is not None
    return found


def _decide(
    logits: Tensor, *, height: int, width: int, dtype: torch.dtype, wanted: Wanted = PLAIN
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(K, h, w) -> (height, width) classes, and confidence and probabilities if requested; some rows at a time."""
    import torch

    mask, sureness, every = logits.new_empty((height, width), dtype=dtype), None, None
    if wanted.sureness is not None:
        sureness = logits.new_empty((height, width), dtype=getattr(torch, wanted.sureness))
    if wanted.probabilities is not None:
        every = logits.new_empty((len(logits), height, width), dtype=getattr(torch, wanted.probabilities))
    for rows, some in own_rows(logits, height=height, width=width):
        # max instead of argmax: the same first best class, 2.6 times as fast on a CPU.
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
    """Numbers from 0 to 1 in another type; for uint8 0 to 255, rounded."""
    import torch

    return (probability * 255).round().to(dtype) if dtype == torch.uint8 else probability.to(dtype)


def own_rows(logits: Tensor, *, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """As :func:`own_size`, in blocks of rows if all rows would be more than :data:`AT_ONCE` numbers.

    Yields:
        The rows, and their (K, rows, width); every row once. The view is valid only until the next one.
    """
    import torch

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
    """Resize one scene's logits to its own size: (K, h, w) -> (K, height, width), bilinear as in METHOD §5."""
    if logits.shape[-2:] == (height, width):
        return logits
    import torch.nn.functional as F

    return F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def _to_host(values: Tensor) -> Tensor:
    """The tensor on the host; from CUDA without waiting, which only pinned memory allows."""
    if not values.is_cuda:
        return values.cpu()
    import torch

    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return pinned.copy_(values, non_blocking=True)
