"""Tileable noise, and patterns that depend on the place alone, so that they stick to their surface."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

TILE = 256
_ROW = 1024


@lru_cache(maxsize=1)
def _tile() -> np.ndarray:
    """(257, 257) float32 noise of several octaves in -1..1 that repeats without a seam; the same in every world."""
    rng = np.random.Generator(np.random.PCG64(20240503))
    total = np.zeros((TILE, TILE), np.float32)
    for cells, weight in ((8, 1.0), (16, 0.8), (32, 0.7), (64, 0.6), (128, 0.5)):
        grid = rng.standard_normal((cells, cells)).astype(np.float32)
        padded = np.pad(grid, 2, mode="wrap")
        zoom = TILE // cells
        large = cv2.resize(padded, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        total += np.float32(weight) * large[2 * zoom : -2 * zoom, 2 * zoom : -2 * zoom]
    return np.pad(np.tanh(total / (1.2 * total.std())), (0, 1), mode="wrap").astype(np.float32)


def noise(u: np.ndarray, v: np.ndarray, *, scale: float) -> np.ndarray:
    """Noise at a place.

    Args:
        u: places in metres, float32, any shape.
        v: as ``u``.
        scale: cells of the tile per metre; the coarsest bumps are 32 cells wide, the finest 2.

    Returns:
        Values in -1..1, shape of ``u``, float32.
    """
    # OpenCV samples much faster than NumPy gathers, but wants a picture with sides below 32768.
    columns = min(max(u.size, 1), _ROW)
    maps = np.zeros((2, max(1, -(-u.size // columns)), columns), np.float32)
    for place, flat in zip((u, v), maps.reshape(2, -1), strict=True):
        cells = place.ravel() * np.float32(scale)
        flat[: u.size] = cells - np.floor(cells * np.float32(1 / TILE)) * np.float32(TILE)
    sampled = cv2.remap(_tile(), maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled.ravel()[: u.size].reshape(u.shape))


def chance(u: np.ndarray, v: np.ndarray | int, salt: np.ndarray | int) -> np.ndarray:
    """A repeatable number per cell.

    Args:
        u: integer-valued cells, any shape.
        v: as ``u``, or one for all.
        salt: what makes this pattern differ from others.

    Returns:
        float32 in 0..1, shape of the arguments together.
    """
    with np.errstate(over="ignore"):
        # A sum: places near each other never share a value before the mixing, which is one-to-one.
        mixed: np.ndarray = np.asarray(
            np.uint32(0x9E3779B1) * _word(u) + np.uint32(0x85EBCA77) * _word(v) + np.uint32(0xC2B2AE3D) * _word(salt)
        )
        mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
        mixed = (mixed ^ (mixed >> np.uint32(12))) * np.uint32(0x297A2D39)
        mixed ^= mixed >> np.uint32(15)
    return np.asarray((mixed >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24))


def _word(value: np.ndarray | int) -> np.ndarray:
    """Integers as 32-bit words, negative ones wrapped around."""
    return np.asarray(value).astype(np.int64).astype(np.uint32)


def part(value: np.ndarray, period: np.ndarray | float) -> np.ndarray:
    """Position within a repeating period, 0..1."""
    share = value / period
    return np.asarray(share - np.floor(share))
