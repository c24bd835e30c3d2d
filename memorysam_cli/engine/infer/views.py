"""Views: a network sees a scene with zeros for missing sensors, at several scales and mirrored, or in windows.

Each view is itself a network, so evaluation and prediction need no other code. Views that average several results
return the logarithm of the mean probability: its argmax is the class, and its softmax the confidence.

torch is imported only inside the functions that compute.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from memorysam_cli.data.transforms import STRIDE
from memorysam_cli.dataset import Modality

if TYPE_CHECKING:
    from torch import Tensor

Missing = Literal["drop", "zero"]

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Scales of test-time augmentation that the reference intends to use."""
OVERLAP = 0.25
ROWS = 64
"""Number of rows that are divided by their weights at once."""
SIGNS = {"mirror": (1, 1, 1), "negate_sine": (-1, 1, -1), "negate_cosine": (1, -1, 1)}
"""Factors of [sine, cosine, sine] for a horizontal flip, by ``Modality.flip``."""


class Shown(Protocol):
    """The interface of a model with a view: it knows the sensors of its frames."""

    @property
    def training(self) -> bool:
        """Whether dropout is on."""

    def eval(self) -> Any:
        """Switch dropout off."""

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on, or off."""

    def logits(self, frames: list[Tensor]) -> Tensor:
        """M × (B, 3, H, W) -> (B, K, H, W)."""


class Network(Shown, Protocol):
    """The interface of a model for inference, loaded from a file or still in training."""

    def logits(self, frames: list[Tensor], *, sensors: Sequence[int] | None = None) -> Tensor:
        """M × (B, 3, H, W) -> (B, K, H, W); if sensors are missing, ``sensors`` must name those of the frames."""


@dataclass(frozen=True)
class View:
    """How scenes are shown to a network."""

    missing: Missing = "drop"
    """How missing modalities are replaced: not at all, or by zeros after normalization."""
    scales: tuple[float, ...] = ()
    """Scales of test-time augmentation, each also mirrored; none: no augmentation."""
    tile: bool = False
    """Whether large frames keep their own resolution and are processed in windows of the network's size."""
    overlap: float = OVERLAP
    """Least overlap of neighboring windows, as a share of their side."""

    @property
    def name(self) -> str:
        """Name for a folder of results, such as ``tta``, ``tta-0.75-1`` or ``tta-tile``; empty for the default view."""
        words = [("tta", *(() if self.scales == SCALES else (f"{scale:g}" for scale in self.scales)))] * bool(
            self.scales
        )
        words += [("tile", *(() if self.overlap == OVERLAP else (f"{self.overlap:g}",)))] * self.tile
        return "-".join(itertools.chain(*words))

    def to_json(self, *, size: int) -> dict[str, Any]:
        """The keys ``missing``, ``tta`` and ``tile`` of a report.

        Args:
            size: the network's, in pixels.
        """
        return {
            "missing": self.missing,
            "tta": {"scales": list(self.scales), "flip": True} if self.scales else None,
            "tile": {"window": size, "overlap": self.overlap} if self.tile else None,
        }


def show(
    network: Network, view: View, *, modalities: Sequence[Modality], known: Sequence[Modality], size: int
) -> Shown:
    """A network with a view; the network itself if the view changes nothing.

    Args:
        network: takes frames as in an evaluation without a view.
        view: each of its windows is augmented, and each augmented frame is completed by zeros.
        modalities: of the frames, in the order of the memory.
        known: all modalities of training, in the order of the memory.
        size: the network's, in pixels.
    """
    shown: Shown = network
    if len(modalities) < len(known):
        shown = (WithZeros if view.missing == "zero" else WithSensors)(network, modalities=modalities, known=known)
    if view.scales:
        shown = Augmented(shown, modalities=modalities, scales=view.scales)
    if view.tile:
        shown = Tiled(shown, size=size, overlap=view.overlap)
    return shown


Inner = TypeVar("Inner", bound=Shown)


class Wrapper(Generic[Inner]):
    """A network in front of another one, with the same mode."""

    def __init__(self, network: Inner) -> None:
        self.network = network

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        return self.network.training

    def eval(self) -> Any:
        """Switch dropout off."""
        self.network.eval()
        return self

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on, or off."""
        self.network.train(mode)
        return self


class WithSensors(Wrapper[Network]):
    """Tells a network which sensors the frames belong to if some are missing. WithZeros needs no such information.

    Args:
        network: takes frames of any of its sensors.
        modalities: of the given frames, in the order of ``known``.
        known: all, in the order of the memory.

    Raises:
        ValueError: a modality is unknown, or the order is different.
    """

    def __init__(self, network: Network, *, modalities: Sequence[Modality], known: Sequence[Modality]) -> None:
        super().__init__(network)
        self.sensors = sensors_of(modalities, known)

    def logits(self, frames: list[Tensor]) -> Tensor:
        """Given M × (B, 3, H, W) -> (B, K, H, W)."""
        return self.network.logits(frames, sensors=self.sensors)


class WithZeros(Wrapper[Shown]):
    """Feeds zeros for missing modalities, as the benchmarks in the literature do.

    Args:
        network: takes a frame for each of ``known``.
        modalities: of the given frames, in the order of ``known``.
        known: all, in the order of the memory.

    Raises:
        ValueError: a modality is unknown, or the order is different.

    Source: DATASETS §1.6: zero after normalization, which is the mean color for RGB and black for the others.
    """

    def __init__(self, network: Shown, *, modalities: Sequence[Modality], known: Sequence[Modality]) -> None:
        super().__init__(network)
        given = sensors_of(modalities, known)
        self.is_given = [place in given for place in range(len(known))]

    def logits(self, frames: list[Tensor]) -> Tensor:
        """Given M × (B, 3, H, W) -> (B, K, H, W)."""
        import torch

        rest = iter(frames)
        zero = torch.zeros_like(frames[0])
        return self.network.logits([next(rest) if is_given else zero for is_given in self.is_given])


def sensors_of(modalities: Sequence[Modality], known: Sequence[Modality]) -> list[int]:
    """The places of modalities among all that a network knows.

    Raises:
        ValueError: one is unknown, or the order is different.
    """
    given = [modality.name for modality in modalities]
    if given != [modality.name for modality in known if modality.name in given]:
        raise ValueError(f"modalities {', '.join(given)} are not those of the network in its order")
    return [place for place, modality in enumerate(known) if modality.name in given]


class Augmented(Wrapper[Shown]):
    """Averages the probabilities over scales, each also mirrored.

    Args:
        network: takes frames of any size that is a multiple of 32.
        modalities: of the frames, with the method of resizing and the effect of a flip on their values.
        scales: of the frames' sides, which are then rounded up to multiples of 32.
        flip: whether each scale is also mirrored.

    Raises:
        ValueError: no scale, or one that is not positive.

    Source: the intention of the reference's evaluation with several scales and flip: mean of the softmax at the size of
    the frames. All resizing is bilinear without antialiasing, as in METHOD §5.
    """

    def __init__(
        self, network: Shown, *, modalities: Sequence[Modality], scales: Sequence[float], flip: bool = True
    ) -> None:
        super().__init__(network)
        if not scales or not all(scale > 0 for scale in scales):
            raise ValueError(f"scales {scales}: must be positive numbers, at least one")
        self.modalities, self.scales, self.flip = tuple(modalities), tuple(scales), flip

    def logits(self, frames: list[Tensor]) -> Tensor:
        """M × (B, 3, H, W) -> (B, K, H, W), logarithms of probabilities."""
        height, width = frames[0].shape[-2:]
        return _log_of_mean(
            self._seen(frames, scale=scale, is_flipped=is_flipped, height=height, width=width)
            for scale in self.scales
            for is_flipped in ((False, True) if self.flip else (False,))
        )

    def _seen(self, frames: list[Tensor], *, scale: float, is_flipped: bool, height: int, width: int) -> Tensor:
        """The logits of one scale, resized back: (B, K, H, W)."""
        size = tuple(_rounded_up(side * scale) for side in (height, width))
        pairs = list(zip(frames, self.modalities, strict=True))
        shown = [_resized(frame, size=size, how=modality.interpolation) for frame, modality in pairs]
        if is_flipped:
            shown = [flipped(frame, modality) for frame, modality in zip(shown, self.modalities, strict=True)]
        logits = self.network.logits(shown)
        back = logits.flip(-1) if is_flipped else logits
        return _resized(back, size=(height, width), how="bilinear")


class Tiled(Wrapper[Shown]):
    """Processes large frames in overlapping windows, and blends their probabilities smoothly.

    Args:
        network: takes frames of ``size`` × ``size``, and smaller ones whose sides are multiples of 32.
        size: side of a window, in pixels, a multiple of 32.
        overlap: least overlap of neighboring windows, as a share of the side; windows are spread evenly.

    Raises:
        ValueError: a size that is not a positive multiple of 32, or an overlap outside 0 ≤ overlap < 1.
    """

    def __init__(self, network: Shown, *, size: int, overlap: float) -> None:
        super().__init__(network)
        if size <= 0 or size % STRIDE or not 0 <= overlap < 1:
            raise ValueError(
                f"size {size} must be a positive multiple of {STRIDE}, overlap {overlap} from 0 to below 1"
            )
        self.size, self.overlap = size, overlap

    def logits(self, frames: list[Tensor]) -> Tensor:
        """M × (B, 3, H, W) -> (B, K, H, W); logarithms of probabilities if there are several windows."""
        import torch

        height, width = frames[0].shape[-2:]

        def see(top: int, left: int) -> Tensor:
            part = (..., slice(top, top + self.size), slice(left, left + self.size))
            return self.network.logits([frame[part].contiguous() for frame in frames])

        if max(height, width) <= self.size:
            return self.network.logits(frames)
        whole = torch.zeros(())
        (stripe,) = self.stripes(width)
        for rows, blended in self.rows(see, stripe, height=height):
            if not whole.ndim:  # only the network knows the number of classes
                whole = blended.new_empty(*blended.shape[:2], height, width)
            whole[..., rows, :] = blended
        return whole

    def stripes(self, width: int, *, most_px: int | None = None) -> list[Stripe]:
        """Cut a frame into vertical stripes, each of which is blended separately.

        Args:
            width: of the frame, in pixels.
            most_px: limit for the width of a stripe's windows, if at least one window fits; None: one stripe.

        Returns:
            Stripes from left to right. Windows across a stripe's edge belong to both stripes.
        """
        starts = window_starts(width, size=self.size, overlap=self.overlap)
        found, left = [], 0
        while left < width:
            rights = [right for right in (*starts, width) if right > left]
            made = [Stripe(left, right, width, self.size, tuple(starts)) for right in rights]
            fitting = [stripe for stripe in made if most_px is None or stripe.end - stripe.begin <= most_px]
            found.append(fitting[-1] if fitting else made[0])
            left = found[-1].right
        return found

    def rows(
        self, see: Callable[[int, int], Tensor], stripe: Stripe, *, height: int, first: int = 0
    ) -> Iterator[tuple[slice, Tensor]]:
        """Process a stripe of a frame window by window, and yield its rows as soon as no window changes them.

        The result does not depend on the stripes or on ``first``, bit for bit.

        Args:
            see: gives the logits of the window that begins at a row and a column: (B, K, h, w), where h and w are the
                window's side, or the frame's if that is shorter.
            stripe: from :meth:`stripes`.
            height: of the frame, in pixels.
            first: the first row to yield.

        Yields:
            Some rows of the frame, and their (B, K, rows, columns of the stripe), logarithms of probabilities; from top
            to bottom, each row from ``first`` on once.
        """
        import torch

        tops, tall = window_starts(height, size=self.size, overlap=self.overlap), min(self.size, height)
        blended, total, weight = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for top, after in itertools.pairwise((*tops, height)):
            if top + tall <= first:
                continue
            for left in stripe.columns:
                seen = see(top, left).float().softmax(1)
                if not blended.ndim:
                    down = _ramp(tall, starts=tops, like=seen)
                    weight = down[:, None] * _ramp(seen.shape[-1], starts=stripe.starts, like=seen)
                    total = seen.new_zeros(tall, stripe.end - stripe.begin)
                    blended = seen.new_zeros(*seen.shape[:2], *total.shape)
                place = (..., slice(left - stripe.begin, left - stripe.begin + seen.shape[-1]))
                blended[place] += seen.mul_(weight)
                total[place] += weight
            inside = slice(stripe.left - stripe.begin, stripe.right - stripe.begin)
            for row in range(max(top, first), after, ROWS):
                rows = slice(row, min(row + ROWS, after))
                here = (..., slice(rows.start - top, rows.stop - top), inside)
                yield rows, _log(blended[here] / total[here])
            _move_up(blended, after - top)
            _move_up(total, after - top)


@dataclass(frozen=True)
class Stripe:
    """Columns of a frame that are blended separately."""

    left: int
    right: int
    """In pixels; the stripe ends before this column."""
    width: int
    """Of the frame."""
    size: int
    """Of a window."""
    starts: tuple[int, ...]
    """The starts of all windows of the frame."""

    @property
    def columns(self) -> list[int]:
        """The starts of the windows that overlap the stripe."""
        return [start for start in self.starts if start < self.right and start + self.size > self.left]

    @property
    def begin(self) -> int:
        """Start of its first window."""
        return self.columns[0]

    @property
    def end(self) -> int:
        """End of its last window."""
        return min(self.columns[-1] + self.size, self.width)


def _move_up(values: Tensor, count: int) -> None:
    """Drop the first rows of (…, H, W), in place, and append rows of zeros."""
    left = values.shape[-2] - count
    for row in range(0, left, count):  # parts that do not overlap themselves: no second buffer
        stop = min(row + count, left)
        values[..., row:stop, :] = values[..., row + count : stop + count, :]
    values[..., left:, :] = 0


def flipped(frame: Tensor, modality: Modality) -> Tensor:
    """Mirror a normalized frame, with the modality's rule for its values.

    Args:
        frame: (B, 3, H, W), normalized.
        modality: its ``flip`` may change the sign of a sine or cosine; its mean and deviation define where 0 is.
    """
    mirrored = frame.flip(-1)
    if modality.flip == "mirror":
        return mirrored
    sign = frame.new_tensor(SIGNS[modality.flip]).view(1, 3, 1, 1)
    if modality.mean is None or modality.std is None:
        return mirrored * sign
    zero = -frame.new_tensor(modality.mean) / frame.new_tensor(modality.std)  # where the value 0 lies now
    return (mirrored - zero.view(1, 3, 1, 1)) * sign + zero.view(1, 3, 1, 1)


def window_starts(length: int, *, size: int, overlap: float) -> list[int]:
    """The starts of windows that cover a length and overlap by at least ``overlap`` of their side.

    Args:
        length: of the frame's side, in pixels.
        size: of a window, in pixels.
        overlap: 0 ≤ overlap < 1.

    Returns:
        Increasing starts, from 0 to the last one, whose window ends with the frame; as few as possible, evenly spread.
        ``[0]`` if one window is enough.
    """
    if length <= size:
        return [0]
    stride = max(1, math.floor(size * (1 - overlap)))
    count = math.ceil((length - size) / stride) + 1
    return [round(index * (length - size) / (count - 1)) for index in range(count)]


def _ramp(length: int, *, starts: Sequence[int], like: Tensor) -> Tensor:
    """Weights along a window's side: 1 inside, falling smoothly to almost 0 where windows overlap."""
    import torch

    shared = 0 if len(starts) == 1 else length - min(b - a for a, b in itertools.pairwise(starts))
    place = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    distance = torch.minimum(place, length - place)  # to the nearer end
    if shared <= 0:
        return torch.ones_like(distance)
    return torch.sin(torch.clamp(distance / shared, max=1) * (math.pi / 2)).square()


def _log_of_mean(views: Iterable[Tensor]) -> Tensor:
    """The logarithm of the mean probability over the logits of several views, one in memory at a time."""
    import torch

    total, count = torch.zeros(()), 0
    for logits in views:
        probability = logits.float().softmax(1)
        total = total.add_(probability) if count else probability
        count += 1
    return _log(total.div_(count))


def _log(probability: Tensor) -> Tensor:
    """The logarithm, in place; finite also if a probability is too small for float32, because -inf would become NaN
    when interpolated."""
    import torch

    return probability.clamp_(min=torch.finfo(probability.dtype).tiny).log_()


def _resized(values: Tensor, *, size: tuple[int, ...], how: str) -> Tensor:
    """(B, C, H, W) at another size, bilinear or floor-nearest; unchanged if the size is right."""
    if values.shape[-2:] == size:
        return values
    import torch.nn.functional as F

    if how == "nearest":
        return F.interpolate(values, size=size, mode="nearest")
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)


def _rounded_up(side: float) -> int:
    """The next multiple of STRIDE."""
    return max(1, math.ceil(round(side, 6) / STRIDE)) * STRIDE
