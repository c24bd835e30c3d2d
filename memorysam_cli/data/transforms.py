"""Samples → samples: training augmentation, the sizes of the evaluation protocols, and the conversion to tensors.

First the steps of augmentation in their order, then evaluation and prediction, then shared functions, and the
conversion to tensors. Frames keep their dtype throughout, and normalization comes last, so padding becomes (0 - mean) /
std as in the reference. 8-bit and 16-bit values are rounded, never truncated, and clamped to their own range. (Clamping
8-bit values to [0, 1] is a common error.) Source: DATASETS §0, §1.3, METHOD §5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from memorysam_cli.dataset import IGNORE, IMAGENET, Crop, Flip, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Augment

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
STRIDE = 32
"""Sides of the network's inputs are multiples of this."""
LONGEST = 8
"""A frame longer than 8 times its short side is squeezed to that; otherwise 1×5000 pixels would become 1024×5120000."""
EXACT = ("depth", "event", "lidar")
"""Kinds whose values are never blended when a sensor is resampled to another resolution."""
NEGATED: dict[Flip, tuple[int, ...]] = {"mirror": (), "negate_sine": (0, 2), "negate_cosine": (1,)}
"""Channels of [sine, cosine, sine] whose sign a flip changes."""
JITTER = (0.5, 1.5)
"""Range of the brightness, contrast and saturation factors."""
LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R 601, as image libraries round them)."""
HALF = 0.5
"""Smallest weight of the valid values in a mean of neighbors; with less, the result is not a measurement."""
SIGMA_OF_3 = 0.8
"""Pixels: 0.3·((k - 1)/2 - 1) + 0.8 for a kernel of k = 3."""


@dataclass(frozen=True)
class Sample:
    """A scene's arrays, all of one height and width."""

    frames: dict[str, Array]
    """Modality → (H, W, 3) uint8, uint16 or float32, in the recipe's order."""
    label: Array | None
    """(H, W) uint8, 255 is ignored."""
    invalid: dict[str, Mask] = field(default_factory=dict)
    """Modality → (H, W, 3), True where there is no measurement, which becomes 0 after normalization. Only for frames
    with such values; these are 0 in the frame and never used in a mean of neighbors."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        height, width = next(iter(self.frames.values())).shape[:2]
        return height, width


@dataclass(frozen=True)
class Draw:
    """All random decisions for a sample, drawn at once in this order.

    Twelve uniform numbers in [0, 1), for any modalities and settings. So adding a modality or a photometric
    augmentation changes neither the geometry nor the next sample. New decisions are added at the end.
    """

    jitter: float
    brightness: float
    contrast: float
    saturation: float
    flip: float
    blur: float
    sigma: float
    scale: float
    top: float
    left: float
    rotate: float = 0.5
    stretch: float = 0.5

    @classmethod
    def by(cls, rng: np.random.Generator) -> Draw:
        """Draw all twelve from ``rng``."""
        return cls(*rng.random(12).tolist())


def augment(
    sample: Sample,
    *,
    modalities: Sequence[Modality],
    augment: Augment,
    size: int,
    rng: np.random.Generator,
) -> Sample:
    """Color jitter, flip, blur, then one random resized crop of all frames and the label; the blur may come last.

    Args:
        sample: of any size.
        modalities: of the sample's frames, with their photometric steps and interpolation.
        augment: probabilities and ranges; a probability of 0 is the identity, bit for bit.
        size: side of the crop in pixels.
        rng: twelve uniforms are drawn from it, see :class:`Draw`.

    Returns:
        Frames (size, size, 3) with their dtypes, padded at the right and bottom with the value that means 0; the label
        with 255.

    Raises:
        DataError: a modality's ``flip`` or ``turn`` is impossible with its range of values.

    Source: DATASETS §0. AoLP's [sin, cos, sin] is flipped like any image, as in the reference, unless the data set
    overrides it (``Modality.flip``).
    """
    draw = Draw.by(rng)
    flips = draw.flip < augment.flip
    known = {modality.name: modality for modality in modalities}

    def softened(some: Sample) -> Sample:
        soft = {
            name: soften(frame, known[name], augment=augment, draw=draw, invalid=some.invalid.get(name))
            for name, frame in some.frames.items()
        }
        return replace(some, frames=soft)

    frames, invalid = {}, {name: gaps[:, ::-1] if flips else gaps for name, gaps in sample.invalid.items()}
    for name, frame in sample.frames.items():
        jittered = change_colors(frame, known[name], augment=augment, draw=draw, invalid=sample.invalid.get(name))
        frames[name] = mirror(jittered, known[name]) if flips else jittered
    label = np.ascontiguousarray(sample.label[:, ::-1]) if sample.label is not None and flips else sample.label
    whole = Sample(frames, label, invalid)
    whole = whole if augment.blur_after_crop else softened(whole)
    cut = _resized_crop(whole, modalities=modalities, augment=augment, size=size, draw=draw)
    return softened(cut) if augment.blur_after_crop else cut


def change_colors(
    frame: Array, modality: Modality, *, augment: Augment, draw: Draw, invalid: Mask | None = None
) -> Array:
    """Jitter the colors of modalities that have this step, if drawn."""
    if "jitter" not in modality.photometric or draw.jitter >= augment.jitter:
        return frame
    return jitter_colors(
        frame,
        brightness=between(*JITTER, draw.brightness),
        contrast=between(*JITTER, draw.contrast),
        saturation=between(*JITTER, draw.saturation),
        full=full_scale(frame) if modality.scale is None or modality.offset else 1 / modality.scale,
        invalid=invalid,
    )


def jitter_colors(
    frame: Array,
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    full: float | None = None,
    invalid: Mask | None = None,
) -> Array:
    """Change brightness (times the factor), contrast (away from the mean gray), saturation (away from gray).

    Args:
        frame: (H, W, 3) RGB of any dtype.
        brightness: factor; 1 changes nothing.
        contrast: factor; 1 changes nothing.
        saturation: factor; 1 changes nothing.
        full: the value that counts as 1, such as 4095 for 12 bits in uint16; None: the dtype's highest.
        invalid: (H, W, 3), pixels with any True channel are left out of the mean gray.

    Returns:
        (H, W, 3) of the same dtype; each step is clamped to [0, full] unless the frame exceeds it; integers are rounded
        once at the end, and never overflow.
    """
    full = full_scale(frame) if full is None else full
    values = frame.astype(np.float32) / np.float32(full)
    is_bounded = values.min() >= 0 and values.max() <= 1

    def blend(other: Any, factor: float) -> Array:
        mixed = np.float32(factor) * values + np.float32(1 - factor) * other
        bounded: Array = np.clip(mixed, 0, 1) if is_bounded else mixed
        return bounded

    values = blend(np.float32(0), brightness)
    gray = _gray(values) if invalid is None else _gray(values)[~invalid.any(axis=2)]
    values = blend(np.float32(gray.mean(dtype=np.float64) if gray.size else 0), contrast)
    values = blend(_gray(values)[:, :, None], saturation)
    if frame.dtype.kind == "u":
        values = np.rint(values * np.float32(full)).clip(0, np.iinfo(frame.dtype).max)
    return values.astype(frame.dtype)


def _gray(values: Array) -> Array:
    """(H, W, 3) -> (H, W). Without a matrix product, whose sums may depend on the number of threads."""
    red, green, blue = (np.float32(weight) * values[:, :, index] for index, weight in enumerate(LUMA))
    gray: Array = red + green + blue
    return gray


def mirror(frame: Array, modality: Modality) -> Array:
    """Flip a frame by its modality's rule.

    Args:
        frame: (H, W, 3) uint8, uint16 or float32, as stored.
        modality: ``flip`` is the rule; ``scale`` and ``offset`` define where 0 is.

    Returns:
        (H, W, 3) of the same dtype; two flips give the original, except for integers that mean a value just beyond -1.

    Raises:
        DataError: the sign of integers must change whose range is not symmetric about 0.
    """
    mirrored = cv2.flip(np.ascontiguousarray(frame), 1)
    if modality.flip == "mirror":
        return mirrored
    reason = flip_refusal(frame.dtype, modality)
    if reason:
        raise DataError(f"modality '{modality.name}': {reason}")
    total = _total(frame.dtype, modality)
    result = mirrored.copy()
    for channel in NEGATED[modality.flip]:
        if frame.dtype.kind == "u":
            highest = np.iinfo(frame.dtype).max
            result[:, :, channel] = np.clip(round(total) - mirrored[:, :, channel].astype(np.int64), 0, highest)
        else:
            result[:, :, channel] = np.float32(total) - mirrored[:, :, channel]
    return result


def flip_refusal(dtype: np.dtype[Any], modality: Modality) -> str | None:
    """Why frames of this dtype cannot be flipped by the modality's rule; None if they can."""
    if modality.flip == "mirror" or dtype.kind != "u":
        return None
    if _is_symmetric(dtype, modality):
        return None
    return f"flip {modality.flip} {_needs_symmetry(dtype)}, or flip: mirror"


def _is_symmetric(dtype: np.dtype[Any], modality: Modality) -> bool:
    """Whether integers of this dtype represent values from -1 to 1, or another range that is symmetric about 0."""
    # One step more: (s - 128) / 128 has no +1; its -1 becomes 127 / 128.
    return abs(_total(dtype, modality) - int(np.iinfo(dtype).max)) <= 1


def _needs_symmetry(dtype: np.dtype[Any]) -> str:
    return (
        f"needs {dtype} values whose range is symmetric about 0; give scale and offset, such as "
        f"2/{np.iinfo(dtype).max} and -1"
    )


def _total(dtype: np.dtype[Any], modality: Modality) -> float:
    """The sum of a stored value and the one with the opposite sign: -(s·scale + offset) = s'·scale + offset."""
    full = int(np.iinfo(dtype).max) if dtype.kind == "u" else 1
    return -2 * modality.offset * (full if modality.scale is None else 1 / modality.scale)


def soften(frame: Array, modality: Modality, *, augment: Augment, draw: Draw, invalid: Mask | None = None) -> Array:
    """Blur modalities that have this step, if drawn; invalid values stay invalid, with 0."""
    if "blur" not in modality.photometric or draw.blur >= augment.blur:
        return frame
    sigma = None if augment.blur_sigma is None else between(*augment.blur_sigma, draw.sigma)
    if invalid is None:
        return blur(frame, sigma=sigma)
    values, _ = mean_of_valid(frame, invalid, lambda array: blur(array, sigma=sigma))
    values[invalid] = 0
    return values


def mean_of_valid(frame: Array, invalid: Mask, average: Callable[[Array], Array]) -> tuple[Array, Array]:
    """A filter that averages neighbors, without invalid values.

    Args:
        frame: (H, W, 3) uint8, uint16 or float32.
        invalid: (H, W, 3).
        average: the filter, for float32 frames; may change their size.

    Returns:
        The filtered frame of the same dtype, integers rounded; and float32 of its shape: the weight of valid values in
        each mean, 0 to 1. A mean without valid values is 0.

    Source: normalized convolution (Knutsson and Westin, 1993).
    """
    weight = average((~invalid).astype(np.float32))
    total = average(np.where(invalid, 0, frame).astype(np.float32))
    values = np.divide(total, weight, out=np.zeros_like(total), where=weight > np.finfo(np.float32).eps)
    if frame.dtype.kind == "u":
        values = np.rint(values).clip(0, np.iinfo(frame.dtype).max)
    return values.astype(frame.dtype), weight


def blur(frame: Array, *, sigma: float | None) -> Array:
    """Gaussian blur, mirrored at the borders.

    Args:
        frame: (H, W, 3) uint8, uint16 or float32.
        sigma: in pixels, with a kernel reaching 3 sigma; None: 3×3 with sigma 0.8.

    Returns:
        (H, W, 3) of the same dtype.
    """
    if sigma is None:
        kernel, sigma = 3, SIGMA_OF_3
    else:
        kernel = 2 * int(np.ceil(3 * sigma)) + 1
    if kernel == 1:
        return frame
    return cv2.GaussianBlur(np.ascontiguousarray(frame), (kernel, kernel), sigma)


def _resized_crop(sample: Sample, *, modalities: Sequence[Modality], augment: Augment, size: int, draw: Draw) -> Sample:
    """Scale so that the short side is r·size, stretch, crop a random square, rotated if requested, and pad.

    Padding is at the right and bottom, and in the corners that a rotation leaves empty.
    """
    short_px = max(1, round(between(*augment.scale, draw.scale) * size))
    height, width = _stretched(*_short_side(*sample.size, short_px), augment=augment, draw=draw)
    sample = _resize(sample, modalities=modalities, height=height, width=width)
    top, left = int(draw.top * (max(height - size, 0) + 1)), int(draw.left * (max(width - size, 0) + 1))
    degrees = between(-augment.rotate, augment.rotate, draw.rotate)
    if degrees:
        return _turned_crop(sample, modalities=modalities, size=size, corner=(top, left), degrees=degrees)
    cut = _each(sample, lambda array: array[top : top + size, left : left + size])
    known = {modality.name: modality for modality in modalities}
    invalid = dict(cut.invalid)
    if cut.size != (size, size):
        bare = {name: frame for name, frame in cut.frames.items() if _has_own_mean(known[name])}
        invalid = {**{name: np.zeros(frame.shape, bool) for name, frame in bare.items()}, **invalid}
    return Sample(
        {name: _pad(frame, size=size, value=zero(frame, known[name])) for name, frame in cut.frames.items()},
        None if cut.label is None else _pad(cut.label, size=size, value=IGNORE),
        {name: _pad(gaps, size=size, value=_has_own_mean(known[name])) for name, gaps in invalid.items()},
    )


def _stretched(height: int, width: int, *, augment: Augment, draw: Draw) -> tuple[int, int]:
    """A size with another aspect ratio and about the same area; wider and narrower are equally likely."""
    if augment.stretch == (1, 1):
        return height, width
    low, high = augment.stretch
    root = math.exp(between(math.log(low), math.log(high), draw.stretch) / 2)
    return max(1, round(height / root)), max(1, round(width * root))


def _turned_crop(
    sample: Sample, *, modalities: Sequence[Modality], size: int, corner: tuple[int, int], degrees: float
) -> Sample:
    """The square at a corner (top, left), after rotating the sample about the square's center.

    Frames bilinear or nearest, as their modality defines; the label nearest. Angles are also turned if their modality
    defines how (``Modality.turn``).
    """
    turn = _turn_to_source(sample.size, size=size, corner=corner, degrees=degrees)
    inside = _warped(np.ones(sample.size, np.float32), turn, size=size, flag=cv2.INTER_LINEAR) >= HALF
    known = {modality.name: modality for modality in modalities}
    frames, invalid = {}, {}
    for name, frame in sample.frames.items():
        modality, gaps = known[name], sample.invalid.get(name)
        values, lost = _turned(frame, modality, np.zeros(frame.shape, bool) if gaps is None else gaps, turn, size=size)
        values = turn_angles(values, modality, degrees=degrees)
        values[~inside] = zero(frame, modality)
        lost[~inside] = _has_own_mean(modality)
        values[lost] = 0
        frames[name] = values
        if gaps is not None or lost.any():
            invalid[name] = lost
    label = sample.label
    if label is not None:
        label = _warped(label, turn, size=size, flag=cv2.INTER_NEAREST, border=IGNORE)
        label[~inside] = IGNORE
    return Sample(frames, label, invalid)


def _turned(frame: Array, modality: Modality, gaps: Mask, turn: Array, *, size: int) -> tuple[Array, Mask]:
    """A frame's rotated square, and where less than half of a pixel's weight was measured; outside the frame all is
    0."""
    if modality.interpolation == "nearest":
        lost = _warped(gaps.astype(np.uint8), turn, size=size, flag=cv2.INTER_NEAREST) > 0
        return _warped(frame, turn, size=size, flag=cv2.INTER_NEAREST), lost

    def average(array: Array) -> Array:
        return _warped(array, turn, size=size, flag=cv2.INTER_LINEAR)

    values, weight = mean_of_valid(frame, gaps, average)
    return values, weight < HALF


def _turn_to_source(shape: tuple[int, int], *, size: int, corner: tuple[int, int], degrees: float) -> Array:
    """(2, 3): the source of a pixel (x, y) of the rotated square; degrees are counterclockwise."""
    (height, width), (top, left) = shape, corner
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, -sine], [sine, cosine]])  # y points down
    middle = np.array([min(size, width) - 1, min(size, height) - 1]) / 2
    return np.column_stack([turn, middle + np.array([left, top]) - turn @ middle])


def _warped(array: Array, turn: Array, *, size: int, flag: int, border: int = 0) -> Array:
    """The square that a matrix reads from an array; ``border`` outside the array."""
    result = cv2.warpAffine(
        np.ascontiguousarray(array), turn, (size, size), flags=flag | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(border,) * 4,
    )  # fmt: skip
    return np.asarray(result)


def turn_angles(frame: Array, modality: Modality, *, degrees: float) -> Array:
    """Turn the angle of [sine, cosine, sine] when the picture turns.

    Args:
        frame: (H, W, 3) uint8, uint16 or float32, as stored.
        modality: ``turn`` is the change of the angle relative to the picture's; None or 0: nothing changes.
        degrees: rotation of the picture, counterclockwise.

    Returns:
        (H, W, 3) of the same dtype.

    Raises:
        DataError: the values are integers whose range is not symmetric about 0.
    """
    if not modality.turn:
        return frame
    if frame.dtype.kind == "u" and not _is_symmetric(frame.dtype, modality):
        raise DataError(f"modality '{modality.name}': turn {_needs_symmetry(frame.dtype)}, or leave augment.rotate out")
    scale = np.float32(1 / full_scale(frame) if modality.scale is None else modality.scale)
    meant = frame.astype(np.float32) * scale + np.float32(modality.offset)
    radians = np.radians(modality.turn * degrees)
    cosine, sine = np.float32(np.cos(radians)), np.float32(np.sin(radians))
    turned = meant * cosine + meant[:, :, [1, 0, 1]] * np.array([sine, -sine, sine])
    values = (turned - np.float32(modality.offset)) / scale
    if frame.dtype.kind == "u":
        values = np.rint(values).clip(0, np.iinfo(frame.dtype).max)
    result: Array = values.astype(frame.dtype)
    return result


def between(low: float, high: float, share: float) -> float:
    """Linear interpolation: ``low`` at 0, ``high`` at 1."""
    return low + (high - low) * share


def _has_own_mean(modality: Modality) -> bool:
    """Whether padding means no measurement, rather than the value 0.

    The reference pads photos with black. A sensor that is normalized by its own mean may never have 0: raw thermal
    values of 300 K would be padded with -65 deviations. Sparse sensors have 0 as "nothing", also where they measure.
    """
    is_own = modality.mean is not None and tuple(modality.mean) != IMAGENET["mean"]
    return is_own and modality.kind not in ("event", "lidar")


def zero(frame: Array, modality: Modality) -> float:
    """The stored value that means 0: 0 itself, unless the modality has an offset (MUSES' 16-bit pictures)."""
    stored = -modality.offset * full_scale(frame) if modality.scale is None else -modality.offset / modality.scale
    return stored if frame.dtype.kind == "f" else min(max(round(stored), 0), int(np.iinfo(frame.dtype).max))


def _pad(array: Array, *, size: int, value: float) -> Array:
    """Pad to (size, size) at the right and bottom."""
    missing = [(0, size - array.shape[0]), (0, size - array.shape[1]), (0, 0)][: array.ndim]
    return np.ascontiguousarray(np.pad(array, missing, constant_values=value) if np.any(missing) else array)


def for_scoring(sample: Sample, *, modalities: Sequence[Modality], size: int, crop: Crop | None) -> Sample:
    """The ``resized`` protocol: frames and label at the size of published scores.

    Without a crop: the short side becomes ``size``, then each side is rounded up to a multiple of 32 (the aspect ratio
    changes slightly). With a crop: the left columns are dropped, the short side becomes ``size``, and the center square
    is cropped.

    Args:
        sample: with its label.
        modalities: of the sample's frames.
        size: short side in pixels, a multiple of 32.
        crop: the data set's.

    Returns:
        Frames bilinear (or as the modality defines), label floor-nearest; 1042×1042 at 1024 becomes 1024×1024.

    Source: METHOD §5, DATASETS §1.3, §1.5.
    """
    sample = without_left(sample, crop)
    sizes = _short_side(*sample.size, size)
    sample = _resize(sample, modalities=modalities, height=sizes[0], width=sizes[1])
    if crop is None or not crop.square:
        return _resize(sample, modalities=modalities, height=_up(sizes[0]), width=_up(sizes[1]))
    top, left = (sizes[0] - size) // 2, (sizes[1] - size) // 2
    return _each(sample, lambda array: array[top : top + size, left : left + size])


def for_prediction(sample: Sample, *, modalities: Sequence[Modality], size: int) -> Sample:
    """The whole frame at the network's size; a label does not change.

    Args:
        sample: with or without a label.
        modalities: of the sample's frames.
        size: short side in pixels; then each side is rounded up to a multiple of 32.
    """
    height, width = _short_side(*sample.size, size)
    frames = _resize(replace(sample, label=None), modalities=modalities, height=height, width=width)
    aligned = _resize(frames, modalities=modalities, height=_up(height), width=_up(width))
    return replace(aligned, label=sample.label)


def without_left(sample: Sample, crop: Crop | None) -> Sample:
    """Drop the columns at the left that the published protocol leaves out, in training too (MCubeS: 192 of 1224)."""
    if crop is None or not crop.left:
        return sample
    height, width = sample.size
    columns = round(crop.left * height / crop.of_height)
    if columns >= width:
        raise DataError(f"a frame of {height}×{width} has nothing left after the {columns} columns that are dropped")
    return _each(sample, lambda array: array[:, columns:])


def _resize(sample: Sample, *, modalities: Sequence[Modality], height: int, width: int) -> Sample:
    """Frames resized as their modality defines, the label floor-nearest."""
    known = {modality.name: modality for modality in modalities}
    frames, invalid = {}, {}
    for name, frame in sample.frames.items():
        frames[name], gaps = _resized(frame, known[name], sample.invalid.get(name), height=height, width=width)
        if gaps is not None:
            invalid[name] = gaps
    label = None if sample.label is None else resize_nearest(sample.label, height=height, width=width)
    return Sample(frames, label, invalid)


def _resized(
    frame: Array, modality: Modality, invalid: Mask | None, *, height: int, width: int
) -> tuple[Array, Mask | None]:
    """A frame and its invalid pixels at another size; a mean is invalid if valid values have less than half of its
    weight."""
    if modality.interpolation == "nearest":
        gaps = None if invalid is None else resize_nearest(invalid, height=height, width=width)
        return resize_nearest(frame, height=height, width=width), gaps

    def resize(array: Array) -> Array:
        return resize_bilinear(array, height=height, width=width, antialias=modality.antialias)

    if invalid is None or frame.shape[:2] == (height, width):
        return resize(frame), invalid
    values, weight = mean_of_valid(frame, invalid, resize)
    gaps = weight < HALF
    values[gaps] = 0
    return values, gaps


def on_grid(sample: Sample, *, modalities: Sequence[Modality], height: int, width: int) -> Sample:
    """Resample aligned sensors of another resolution: nearest for distances and sparse sensors, others bilinear.

    Args:
        sample: its frames may have different sizes; its label, if any, has the wanted one.
        modalities: of the sample's frames.
        height: of the result, in pixels.
        width: of the result, in pixels.
    """
    exact = [
        modality.model_copy(update={"interpolation": "nearest"}) if is_exact(modality) else modality
        for modality in modalities
    ]
    frames = _resize(replace(sample, label=None), modalities=exact, height=height, width=width)
    return replace(frames, label=sample.label)


def is_exact(modality: Modality) -> bool:
    """Whether interpolating a sensor's values is wrong: between a wall and an object in front of it there is
    nothing."""
    return modality.interpolation == "nearest" or modality.kind in EXACT


def resize_nearest(array: Array, *, height: int, width: int) -> Array:
    """Floor-nearest: output row i is input row ⌊i·H / height⌋, in exact integers; no value is invented.

    Args:
        array: (H, W) or (H, W, C), any dtype.
        height: of the result, in pixels.
        width: of the result, in pixels.

    Returns:
        (height, width[, C]) of the same dtype; the array itself if its size is right.

    Source: DATASETS §1.3: "nearest-exact" differs by 1.3 points of mIoU, float index arithmetic by single pixels.
    """
    rows, columns = array.shape[:2]
    if (rows, columns) == (height, width):
        return array
    row_index = np.arange(height, dtype=np.int64) * rows // height
    column_index = np.arange(width, dtype=np.int64) * columns // width
    result: Array = array.take(column_index, axis=1).take(row_index, axis=0)
    return result


def resize_bilinear(array: Array, *, height: int, width: int, antialias: bool = False) -> Array:
    """Bilinear between pixel centers, computed in float32.

    Args:
        array: (H, W, 3) uint8, uint16 or float32.
        height: of the result, in pixels.
        width: of the result, in pixels.
        antialias: when a side shrinks, average over all pixels that become one: a triangle filter as wide as the
            shrinking factor. Without it, two pixels per side are used at every scale.

    Returns:
        (height, width, 3) of the same dtype, rounded to the nearest integer; the array itself if its size is right.

    Source: METHOD §5, "How the reference resizes".
    """
    rows, columns = array.shape[:2]
    if (rows, columns) == (height, width):
        return array
    if antialias and (height < rows or width < columns):
        return cv2.merge([_antialiased(plane, height=height, width=width) for plane in cv2.split(array)])
    # OpenCV's 8-bit arithmetic is one level too low in an eighth of the results; for other types it uses float32.
    values = np.ascontiguousarray(array, np.float32 if array.dtype == np.uint8 else array.dtype)
    return _rounded(cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR), array.dtype)


def _antialiased(plane: Array, *, height: int, width: int) -> Array:
    """One channel through PyTorch's triangle filter, the same as in the reference: (H, W) -> (height, width)."""
    import torch  # imported here, as in to_tensor

    values = torch.from_numpy(np.ascontiguousarray(plane, np.float32))[None, None]  # (H, W) -> (1, 1, H, W)
    result = torch.nn.functional.interpolate(values, size=(height, width), mode="bilinear", antialias=True)
    return _rounded(result[0, 0].numpy(), plane.dtype)


def _rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """float32 values in a dtype's range converted to this dtype; integers rounded to the nearest, halves to even."""
    if values.dtype == dtype:
        return values
    # OpenCV rounds 8 bits and casts at once, five times as fast.
    return cv2.convertScaleAbs(values) if dtype == np.uint8 else np.rint(values).astype(dtype)


def _each(sample: Sample, change: Callable[[Array], Array]) -> Sample:
    """The same change for every frame, its invalid pixels, and the label."""
    frames = {name: change(frame) for name, frame in sample.frames.items()}
    invalid = {name: change(gaps) for name, gaps in sample.invalid.items()}
    return Sample(frames, None if sample.label is None else change(sample.label), invalid)


def _short_side(height: int, width: int, short_px: int) -> tuple[int, int]:
    """Height and width with a short side of ``short_px``; see LONGEST."""
    shorter = min(height, width)
    rows, columns = (min(round(side * short_px / shorter), LONGEST * short_px) for side in (height, width))
    return rows, columns


def seen_size(height: int, width: int, *, size: int) -> tuple[int, int]:
    """Height and width of a whole frame at the network's size, as in :func:`for_prediction`."""
    rows, columns = _short_side(height, width, size)
    return _up(rows), _up(columns)


def _up(side: int) -> int:
    """The next multiple of STRIDE."""
    return -(-side // STRIDE) * STRIDE


def full_scale(frame: Array) -> int:
    """The stored value that counts as 1."""
    return int(np.iinfo(frame.dtype).max) if frame.dtype.kind == "u" else 1


def to_tensor(frame: Array, modality: Modality, *, invalid: Mask | None = None) -> torch.Tensor:
    """Stored values → scaled and normalized values; 0 where there is no measurement.

    Args:
        frame: (H, W, 3) uint8, uint16 or float32.
        modality: has ``scale`` (None: uint8 / 255, uint16 / 65535, floating point unchanged) and ``offset``, and
            possibly mean and standard deviation.
        invalid: (H, W, 3), True where there is no measurement.

    Returns:
        (3, H, W) float32, contiguous.
    """
    import torch  # imported here, so that preparing a data set needs no torch

    # Separate planes: ten times as fast as arithmetic on triples.
    values = np.empty((frame.shape[2], *frame.shape[:2]), np.float32)
    values[:] = frame.transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    if modality.scale is None:
        values /= full_scale(frame)
    else:
        values *= np.float32(modality.scale)
    if modality.offset:
        values += np.float32(modality.offset)
    if modality.mean is not None and modality.std is not None:
        values -= np.array(modality.mean, dtype=np.float32)[:, None, None]
        values /= np.array(modality.std, dtype=np.float32)[:, None, None]
    if invalid is not None:
        values[invalid.transpose(2, 0, 1)] = 0  # (H, W, 3) -> (3, H, W)
    return torch.from_numpy(values)
