"""Pictures and labels as most programs read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt


def read(path: Path) -> npt.NDArray[Any]:
    """By the file's name; colors in OpenCV's order are put right."""
    if path.suffix == ".npy":
        return np.fromfile(path, np.uint8)
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"cannot read {path}")
    return image[:, :, ::-1] if image.ndim == 3 else image


def label(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """A label map as class numbers."""
    return values.astype(np.uint8)
