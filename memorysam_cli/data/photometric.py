"""Random changes of colour and sharpness, and the random numbers of one training sample.

8-bit and 16-bit values are rounded, never truncated, and clamped to their own range: clamping 8-bit values to [0, 1]
is a classic of this field. Source: DATASETS §0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from memorysam_cli.dataset import Modality
from memorysam_cli.recipe import Augment

Array = npt.NDArray[Any]

JITTER = (0.5, 1.5)
"""Range of the brightness, contrast and saturation factors."""
LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R 601, as image libraries round them)."""
SIGMA_OF_3 = 0.8
"""Pixels: 0.3·((k - 1)/2 - 1) + 0.8 for a kernel of k = 3."""


@dataclass(frozen=True)
class Draw:
    """All random decisions for one sample, drawn at once in this order.

    Ten uniforms in [0, 1), whatever the modalities are and whatever is switched on: adding a modality or a photometric
    augmentation changes neither the geometry nor the next sample.
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

    @classmethod
    def by(cls, rng: np.random.Generator) -> Draw:
        """Draw all ten from ``rng``."""
        return cls(*rng.random(10).tolist())


def change_colours(frame: Array, modality: Modality, *, augment: Augment, draw: Draw) -> Array:
    """Jitter the colours, where the modality asks for it and the draw hits."""
    if "jitter" not in modality.photometric or draw.jitter >= augment.jitter:
        return frame
    return jitter_colours(
        frame,
        brightness=between(*JITTER, draw.brightness),
        contrast=between(*JITTER, draw.contrast),
        saturation=between(*JITTER, draw.saturation),
        full=full_scale(frame) if modality.scale is None or modality.offset else 1 / modality.scale,
    )


def soften(frame: Array, modality: Modality, *, augment: Augment, draw: Draw) -> Array:
    """Blur, where the modality asks for it and the draw hits."""
    if "blur" not in modality.photometric or draw.blur >= augment.blur:
        return frame
    return blur(frame, sigma=None if augment.blur_sigma is None else between(*augment.blur_sigma, draw.sigma))


def jitter_colours(
    frame: Array, *, brightness: float, contrast: float, saturation: float, full: float | None = None
) -> Array:
    """Change brightness (times the factor), contrast (away from the mean grey), saturation (away from grey).

    Args:
        frame: (H, W, 3) RGB of any dtype.
        brightness: factor; 1 changes nothing.
        contrast: factor; 1 changes nothing.
        saturation: factor; 1 changes nothing.
        full: the value that counts as 1, such as 4095 for 12 bits in uint16; None: the dtype's highest.

    Returns:
        (H, W, 3) of the same dtype; each step is clamped to [0, full] unless the frame goes beyond it, integers are
        rounded once at the end, and never wrap.
    """
    full = full_scale(frame) if full is None else full
    values = frame.astype(np.float32) / np.float32(full)
    is_bounded = values.min() >= 0 and values.max() <= 1

    def blend(other: Any, factor: float) -> Array:
        mixed = np.float32(factor) * values + np.float32(1 - factor) * other
        bounded: Array = np.clip(mixed, 0, 1) if is_bounded else mixed
        return bounded

    values = blend(np.float32(0), brightness)
    values = blend(np.float32(_grey(values).mean(dtype=np.float64)), contrast)
    values = blend(_grey(values)[:, :, None], saturation)
    if frame.dtype.kind == "u":
        values = np.rint(values * np.float32(full)).clip(0, np.iinfo(frame.dtype).max)
    return values.astype(frame.dtype)


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


def _grey(values: Array) -> Array:
    """(H, W, 3) -> (H, W). No matrix product: its sums may depend on the number of threads."""
    red, green, blue = (np.float32(weight) * values[:, :, index] for index, weight in enumerate(LUMA))
    grey: Array = red + green + blue
    return grey


def between(low: float, high: float, share: float) -> float:
    """``low`` at 0, ``high`` at 1."""
    return low + (high - low) * share


def full_scale(frame: Array) -> int:
    """The value that counts as 1."""
    return int(np.iinfo(frame.dtype).max) if frame.dtype.kind == "u" else 1
