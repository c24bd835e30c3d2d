"""Horizontal flips in stored values: of an angle, the sine or the cosine may have to change its sign."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from memorysam_cli.dataset import Flip, Modality
from memorysam_cli.errors import DataError

Array = npt.NDArray[Any]

NEGATED: dict[Flip, tuple[int, ...]] = {"mirror": (), "negate_sine": (0, 2), "negate_cosine": (1,)}
"""Channels of [sine, cosine, sine] whose sign a flip changes."""


def mirror(frame: Array, modality: Modality) -> Array:
    """Flip a frame as its modality says.

    Args:
        frame: (H, W, 3) uint8, uint16 or float32, as stored.
        modality: ``flip`` says what happens beside mirroring, ``scale`` and ``offset`` where 0 lies.

    Returns:
        (H, W, 3) of the same dtype; flipped twice it is what it was, but for integers that stand for just beyond -1.

    Raises:
        DataError: the sign of integers is to change whose range is not symmetric about 0.
    """
    mirrored = cv2.flip(np.ascontiguousarray(frame), 1)
    if modality.flip == "mirror":
        return mirrored
    reason = refusal(frame.dtype, modality)
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


def refusal(dtype: np.dtype[Any], modality: Modality) -> str | None:
    """Why frames of this dtype cannot be flipped as the modality says, if they cannot."""
    if modality.flip == "mirror" or dtype.kind != "u":
        return None
    highest = np.iinfo(dtype).max
    # One step more: (s - 128) / 128 has no +1; its -1 becomes 127 / 128.
    if abs(_total(dtype, modality) - highest) <= 1:
        return None
    return (
        f"flip {modality.flip} needs {dtype} values whose range is symmetric about 0; give scale and offset, such as "
        f"2/{highest} and -1, or flip: mirror"
    )


def _total(dtype: np.dtype[Any], modality: Modality) -> float:
    """What a stored value and the one of the other sign add up to: -(s·scale + offset) = s'·scale + offset."""
    full = int(np.iinfo(dtype).max) if dtype.kind == "u" else 1
    return -2 * modality.offset * (full if modality.scale is None else 1 / modality.scale)
