"""The five sensor failures: each acts on one sensor's picture and leaves the others alone."""

from __future__ import annotations

import cv2
import numpy as np


def motion_blur(light: np.ndarray) -> np.ndarray:
    """Smear linear light (H, W, 3) along a slightly rising line, a twelfth of the frame long."""
    length = max(3, round(light.shape[0] / 12)) | 1
    kernel = np.zeros((length, length), np.float32)
    middle = length // 2
    rise = max(1, length // 6)
    cv2.line(kernel, (0, middle + rise), (length - 1, middle - rise), 1.0)
    return np.asarray(cv2.filter2D(light, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE))


def jitter(
    row: np.ndarray, column: np.ndarray, *, height: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Displace LiDAR points: runs of 64 slip sideways together, and every point trembles.

    Args:
        row: (n,) pixels, in the order of the scan.
        column: (n,) pixels.
        height: of the frame in pixels.
        rng: the scanner's own generator.

    Returns:
        New rows and columns, (n,) int64; they may lie outside the frame.
    """
    count = len(row)
    slips = np.repeat(rng.normal(0, 0.02 * height, count // 64 + 1), 64)[:count]
    tremble = rng.normal(0, 0.012 * height, (2, count))
    return np.rint(row + tremble[0]).astype(np.int64), np.rint(column + slips + tremble[1]).astype(np.int64)


def low_resolution(event: np.ndarray) -> np.ndarray:
    """Every fourth pixel of an event picture (H, W, 3) -> (H/4, W/4, 3), as a coarser sensor would see it."""
    height, width = event.shape[:2]
    size = (max(1, width // 4), max(1, height // 4))
    return np.asarray(cv2.resize(event, size, interpolation=cv2.INTER_NEAREST))
