"""Samples → samples: training augmentation, the evaluation protocols' sizes, and the last step to tensors.

Frames keep their dtype throughout, and normalisation comes last, so that padding becomes (0 - mean) / std as in the
reference. Source: DATASETS §0, §1.3, METHOD §5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from memorysam_cli import recipe
from memorysam_cli.data.mirroring import mirror
from memorysam_cli.data.photometric import Draw, between, change_colours, full_scale, soften
from memorysam_cli.data.resizing import resize_bilinear, resize_nearest
from memorysam_cli.data.sample import Array, Sample
from memorysam_cli.dataset import IGNORE, Crop, Modality
from memorysam_cli.errors import DataError

STRIDE = 32
"""Sides that the network takes are multiples of this."""
LONGEST = 8
"""A frame longer than 8 times its short side is squeezed to that; else 1×5000 pixels would become 1024×5120000."""


def augment(
    sample: Sample,
    *,
    modalities: Sequence[Modality],
    augment: recipe.Augment,
    size: int,
    rng: np.random.Generator,
) -> Sample:
    """Colour jitter, flip, blur, then one random resized crop of all frames and the label.

    Args:
        sample: of any size.
        modalities: of the sample's frames; say which photometric steps act, and the interpolation.
        augment: probabilities and ranges; a probability of 0 is the identity, bit for bit.
        size: side of the crop in pixels.
        rng: ten uniforms are drawn from it, see :class:`Draw`.

    Returns:
        Frames (size, size, 3) with their dtypes, padded at the right and bottom with what means 0; the label with 255.

    Raises:
        DataError: a modality's ``flip`` is impossible with its range of values.

    Source: DATASETS §0. AoLP's [sin, cos, sin] is flipped like any image, as the reference does it, unless the data set
    says otherwise (``Modality.flip``).
    """
    draw = Draw.by(rng)
    flips = draw.flip < augment.flip
    known = {modality.name: modality for modality in modalities}
    frames = {}
    for name, frame in sample.frames.items():
        jittered = change_colours(frame, known[name], augment=augment, draw=draw)
        flipped = mirror(jittered, known[name]) if flips else jittered
        frames[name] = soften(flipped, known[name], augment=augment, draw=draw)
    label = np.ascontiguousarray(sample.label[:, ::-1]) if sample.label is not None and flips else sample.label
    return _resized_crop(Sample(frames, label), modalities=modalities, scale=augment.scale, size=size, draw=draw)


def for_scoring(sample: Sample, *, modalities: Sequence[Modality], size: int, crop: Crop | None) -> Sample:
    """The ``resized`` protocol: frames and label at the size that published figures are scored at.

    Without a crop: the short side becomes ``size``, then each side goes up to a multiple of 32 (the aspect changes
    slightly). With one: the left columns are dropped, the short side becomes ``size``, the centre square is cut.

    Args:
        sample: with its label.
        modalities: of the sample's frames.
        size: short side in pixels, a multiple of 32.
        crop: the data set's.

    Returns:
        Frames bilinear (or as the modality says), label floor-nearest; 1042×1042 at 1024 becomes 1024×1024.

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
    """The whole frame at the network's size; a label stays as it is.

    Args:
        sample: with or without a label.
        modalities: of the sample's frames.
        size: short side in pixels; then each side goes up to a multiple of 32.
    """
    height, width = _short_side(*sample.size, size)
    frames = _resize(Sample(sample.frames, None), modalities=modalities, height=height, width=width)
    aligned = _resize(frames, modalities=modalities, height=_up(height), width=_up(width))
    return Sample(aligned.frames, sample.label)


def without_left(sample: Sample, crop: Crop | None) -> Sample:
    """Drop the columns at the left that the published protocol leaves out, in training too (MCubeS: 192 of 1224)."""
    if crop is None or not crop.left:
        return sample
    height, width = sample.size
    columns = round(crop.left * height / crop.of_height)
    if columns >= width:
        raise DataError(f"a frame of {height}×{width} has nothing left after the {columns} columns that are dropped")
    return _each(sample, lambda array: array[:, columns:])


def to_tensor(frame: Array, modality: Modality) -> torch.Tensor:
    """Stored values → what the modality says they mean, then normalised.

    Args:
        frame: (H, W, 3) uint8, uint16 or float32.
        modality: gives ``scale`` (none: uint8 / 255, uint16 / 65535, floating point as stored) and ``offset``, mean and
            standard deviation, if any.

    Returns:
        (3, H, W) float32, contiguous.
    """
    # Planes of their own: ten times as fast as arithmetic between triples.
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
    return torch.from_numpy(values)


def _resized_crop(
    sample: Sample, *, modalities: Sequence[Modality], scale: tuple[float, float], size: int, draw: Draw
) -> Sample:
    """Scale so that the short side is r·size, cut a random square, pad at the right and bottom."""
    short_px = max(1, round(between(*scale, draw.scale) * size))
    height, width = _short_side(*sample.size, short_px)
    sample = _resize(sample, modalities=modalities, height=height, width=width)
    top, left = int(draw.top * (max(height - size, 0) + 1)), int(draw.left * (max(width - size, 0) + 1))
    cut = _each(sample, lambda array: array[top : top + size, left : left + size])
    known = {modality.name: modality for modality in modalities}
    return Sample(
        {name: _pad(frame, size=size, value=_zero(frame, known[name])) for name, frame in cut.frames.items()},
        None if cut.label is None else _pad(cut.label, size=size, value=IGNORE),
    )


def _resize(sample: Sample, *, modalities: Sequence[Modality], height: int, width: int) -> Sample:
    """Frames as their modality says, the label floor-nearest."""
    how = {modality.name: modality.interpolation for modality in modalities}
    return Sample(
        {
            name: (resize_nearest if how[name] == "nearest" else resize_bilinear)(frame, height=height, width=width)
            for name, frame in sample.frames.items()
        },
        None if sample.label is None else resize_nearest(sample.label, height=height, width=width),
    )


def _each(sample: Sample, change: Callable[[Array], Array]) -> Sample:
    """The same change to every frame and to the label."""
    frames = {name: change(frame) for name, frame in sample.frames.items()}
    return Sample(frames, None if sample.label is None else change(sample.label))


def _short_side(height: int, width: int, short_px: int) -> tuple[int, int]:
    """Height and width, the short side being ``short_px``; see LONGEST."""
    shorter = min(height, width)
    rows, columns = (min(round(side * short_px / shorter), LONGEST * short_px) for side in (height, width))
    return rows, columns


def _up(side: int) -> int:
    """The next multiple of STRIDE."""
    return -(-side // STRIDE) * STRIDE


def _zero(frame: Array, modality: Modality) -> float:
    """The stored value that means 0: 0 itself, unless the modality has an offset (MUSES' 16-bit pictures)."""
    stored = -modality.offset * full_scale(frame) if modality.scale is None else -modality.offset / modality.scale
    return stored if frame.dtype.kind == "f" else min(max(round(stored), 0), int(np.iinfo(frame.dtype).max))


def _pad(array: Array, *, size: int, value: float) -> Array:
    """Fill up to (size, size) at the right and bottom."""
    missing = [(0, size - array.shape[0]), (0, size - array.shape[1]), (0, 0)][: array.ndim]
    return np.ascontiguousarray(np.pad(array, missing, constant_values=value) if np.any(missing) else array)
