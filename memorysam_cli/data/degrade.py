"""Degraded sensors: damage that training may do to single sensors of a scene (``augment.degrade``).

Dirt on the lens, lost packets, glare, motion, dead rows, a moved mount: one kind of damage for each affected sensor,
independently, and never all sensors of a scene. It changes stored values, after the crop and before normalization.
There the saturation limits of a sensor are known, a picture of the batch shows the damage as a person would see it, and
missing values become 0 after normalization, as everywhere. Sizes are relative to the sensor's size on the network's
grid. Labels do not change. Gaussian and salt-and-pepper noise are used only by the robustness benchmark.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from memorysam_cli.data import transforms
from memorysam_cli.data.decode import PHOTOS
from memorysam_cli.data.transforms import Mask, Sample, between
from memorysam_cli.dataset import Modality

Array = npt.NDArray[Any]
SPARSE = ("event", "lidar")
"""Kinds in which 0 means "nothing there", and most pixels have it."""
ENDS = (1, 99)
"""Percentiles of a frame's valid values, between which a stuck block's value lies."""


@dataclass(frozen=True)
class Seen:
    """A frame during degradation.

    Attributes:
        frame: (H, W, 3) as stored.
        invalid: (H, W, 3), True where there is no measurement.
        modality: of the frame.
    """

    frame: Array
    invalid: Mask
    modality: Modality

    def without(self, gone: Mask) -> Seen:
        """The same frame without a measurement in these (H, W) pixels."""
        mask = gone[:, :, None]
        return replace(self, frame=np.where(mask, 0, self.frame).astype(self.frame.dtype), invalid=self.invalid | mask)

    def with_values(self, values: Array) -> Seen:
        """The same frame with other values, rounded and clamped to the dtype; invalid pixels stay invalid with 0."""
        dtype = self.frame.dtype
        if dtype.kind == "u":
            values = np.rint(values).clip(0, np.iinfo(dtype).max)
        return replace(self, frame=np.where(self.invalid, 0, values).astype(dtype))


def degrade(
    sample: Sample,
    *,
    modalities: Sequence[Modality],
    share: float,
    generator: Callable[[int], np.random.Generator],
    sensors: Mapping[str, str] | None = None,
) -> Sample:
    """Damage some of a scene's sensors.

    Args:
        sample: the augmented sample, of one size.
        modalities: of the sample's frames.
        share: the probability that a sensor is damaged; a single sensor never is.
        generator: random numbers for a sensor's own key, so that its damage does not depend on the other sensors or
            their order. If all would be damaged, the one with the largest draw is not.
        sensors: modality → its sensor, if a sensor has several frames: these are damaged together. None: each is a
            separate sensor.
    """
    owners = {modality.name: (sensors or {}).get(modality.name, modality.name) for modality in modalities}
    if share <= 0 or len({*owners.values()}) < 2:
        return sample
    rngs = {name: generator(zlib.crc32(owner.encode())) for name, owner in owners.items()}
    draws = {owners[name]: rng.random() for name, rng in rngs.items()}
    hit = sorted((draw, name) for name, draw in draws.items() if draw < share)
    spared = {hit[-1][1]} if len(hit) == len(draws) else set()
    frames, invalid = dict(sample.frames), dict(sample.invalid)
    for modality in modalities:
        name = modality.name
        if draws[owners[name]] >= share or owners[name] in spared:
            continue
        gaps = invalid.get(name)
        seen = Seen(frames[name], np.zeros(frames[name].shape, bool) if gaps is None else gaps, modality)
        bad = damage(seen, rng=rngs[name])
        frames[name] = bad.frame
        if gaps is not None or bad.invalid.any():
            invalid[name] = bad.invalid
    return replace(sample, frames=frames, invalid=invalid)


def damage(seen: Seen, *, rng: np.random.Generator, kind: str | None = None) -> Seen:
    """Apply one of :data:`KINDS` to a frame; a random one that the sensor can have, or the named one."""
    kinds = [
        name for name in KINDS if name != "exposure" or seen.modality.kind != "angle"
    ]  # an angle has no brightness
    drawn = kinds[int(rng.random() * len(kinds))]
    return KINDS[kind or drawn](seen, rng)


def _blocks(seen: Seen, rng: np.random.Generator) -> Seen:
    """One to six rectangles, each a tenth to a half as long as a side, stuck at one value: dirt, stickers, glare."""
    height, width = seen.frame.shape[:2]
    values = seen.frame.astype(np.float32)
    low, high = _ends(seen)
    for _ in range(1 + int(rng.random() * 6)):
        rows, columns = (max(1, round(between(0.1, 0.5, rng.random()) * side)) for side in (height, width))
        top, left = int(rng.random() * (height - rows + 1)), int(rng.random() * (width - columns + 1))
        values[top : top + rows, left : left + columns] = low + (high - low) * np.float32(rng.random())
    return seen.with_values(values)


def _holes(seen: Seen, rng: np.random.Generator) -> Seen:
    """A fifth to nine tenths of all cells of 4 to 32 pixels have no measurement: lost packets, no reflection."""
    height, width = seen.frame.shape[:2]
    cell = round(2 ** between(2, 5, rng.random()))
    share = between(0.2, 0.9, rng.random())
    lost = _some(rng, (-(-height // cell), -(-width // cell)), share)
    return seen.without(np.repeat(np.repeat(lost, cell, axis=0), cell, axis=1)[:height, :width])


def _exposure(seen: Seen, rng: np.random.Generator) -> Seen:
    """Values times 0.05 to 0.5, or 2 to 8, relative to the value that means 0, and cut off where the sensor
    saturates."""
    gain = 2 ** between(1, 3, rng.random()) if rng.random() < 0.5 else between(0.05, 0.5, rng.random())
    zero = np.float32(transforms.zero(seen.frame, seen.modality))
    values = zero + np.float32(gain) * (seen.frame.astype(np.float32) - zero)
    return seen.with_values(values.clip(*_limits(seen)))


def _limits(seen: Seen) -> tuple[float, float]:
    """Where a sensor saturates: photos at the value that counts as 1; others, whose limits are unknown, at the frame's
    own extremes."""
    modality = seen.modality
    if modality.kind in PHOTOS and not modality.offset:
        return 0.0, transforms.full_scale(seen.frame) if modality.scale is None else 1 / modality.scale
    return float(seen.frame.min()), float(seen.frame.max())


def _blur(seen: Seen, rng: np.random.Generator) -> Seen:
    """Uniform blur with sigma 1.5 to 6 pixels, or along a line of 5 to 25 pixels: out of focus, or motion."""
    length, turn = between(5, 25, rng.random()), np.pi * rng.random()
    sigma, moves = between(1.5, 6, rng.random()), rng.random() < 0.5

    def average(array: Array) -> Array:
        if not moves:
            return transforms.blur(array, sigma=sigma)
        return cv2.filter2D(np.ascontiguousarray(array), -1, _line(length, turn), borderType=cv2.BORDER_REFLECT_101)

    return seen.with_values(transforms.mean_of_valid(seen.frame, seen.invalid, average)[0].astype(np.float32))


def _line(length: float, turn: float) -> Array:
    """A kernel that averages along a line."""
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    for step in np.linspace(-length / 2, length / 2, 4 * half + 1):
        kernel[half + round(step * np.sin(turn)), half + round(step * np.cos(turn))] = 1
    kernel /= kernel.sum()
    return kernel


def _lines(seen: Seen, rng: np.random.Generator) -> Seen:
    """5 to 40 % of the rows or of the columns are dead: no measurement, or all saturated."""
    share, is_lost, are_rows = between(0.05, 0.4, rng.random()), rng.random() < 0.5, rng.random() < 0.5
    length = seen.frame.shape[0 if are_rows else 1]
    dead = _some(rng, (length,), share)
    gone = np.zeros(seen.frame.shape[:2], bool)
    gone[(dead, slice(None)) if are_rows else (slice(None), dead)] = True
    if is_lost:
        return seen.without(gone)
    return seen.with_values(np.where(gone[:, :, None], np.float32(_limits(seen)[1]), seen.frame.astype(np.float32)))


def _offset(seen: Seen, rng: np.random.Generator) -> Seen:
    """The frame is shifted by 2 to 10 % of its sides: a moved mount, a late clock."""
    rows, columns = (
        max(1, round(between(0.02, 0.1, rng.random()) * side)) * (1 if rng.random() < 0.5 else -1)
        for side in seen.frame.shape[:2]
    )
    moved = replace(
        seen,
        frame=np.roll(seen.frame, (rows, columns), axis=(0, 1)),
        invalid=np.roll(seen.invalid, (rows, columns), axis=(0, 1)),
    )
    uncovered = np.zeros(seen.frame.shape[:2], bool)
    uncovered[slice(0, rows) if rows > 0 else slice(rows, None)] = True
    uncovered[:, slice(0, columns) if columns > 0 else slice(columns, None)] = True
    return moved.without(uncovered)


def _some(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> Mask:
    """A share of places, at least one."""
    drawn = rng.random(shape)
    some: Mask = (drawn < share) | (drawn == drawn.min())
    return some


def _ends(seen: Seen) -> tuple[Array, Array]:
    """The low and the high end of each channel's valid values, float32; for sparse sensors 0 and the largest value."""
    valid = seen.frame[~seen.invalid.any(axis=2)]  # (N, 3)
    if not len(valid):
        return np.zeros(3, np.float32), np.zeros(3, np.float32)
    if seen.modality.kind in SPARSE:
        return np.zeros(3, np.float32), valid.max(axis=0).astype(np.float32)
    low, high = np.percentile(valid, ENDS, axis=0).astype(np.float32)
    return low, high


KINDS: dict[str, Callable[[Seen, np.random.Generator], Seen]] = {
    "blocks": _blocks, "holes": _holes, "exposure": _exposure, "blur": _blur, "lines": _lines, "offset": _offset,
}  # fmt: skip
"""The kinds of damage; all equally likely."""
