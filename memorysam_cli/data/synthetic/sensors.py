"""The sensors: one surface in, one picture out.

Codes (all 8 bit):

* ``depth``: ``255 * ln(1 + d / 1 m) / ln(1001)`` in three equal channels; d is the depth along the axis, sky 255.
* ``hha``: root of the disparity ``255 * sqrt(1.8 m / d)``, height above the carriageway
  ``255 * sqrt((h + 0.25 m) / 25.25 m)``, and the angle between the surface's normal and the vertical
  (0 level ground, 128 upright); sky 0.
* ``lidar``: ``255 * exp(-r / 50 m)`` at the points, in three equal channels, r straight from the lens; 0 elsewhere.
* ``event``: 255 in the first channel where it grew brighter, in the third where darker; 0 elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from memorysam_cli.data.synthetic import failures
from memorysam_cli.data.synthetic.light import LUMINANCE
from memorysam_cli.data.synthetic.surface import Surface
from memorysam_cli.data.synthetic.weather import Weather

Rng = np.random.Generator
DEPTH_END_M = 1000.0
LIDAR_RANGE_M = 95.0
LIDAR_FADE_M = 50.0
LIDAR_LINES = 28
EVENT_STEP = 0.2
"""Change of the logarithm of the light that makes an event."""


def picture(light: np.ndarray, surface: Surface, weather: Weather, *, case: str | None, rng: Rng) -> np.ndarray:
    """The colour camera.

    Args:
        light: (H, W, 3) linear light.
        surface: what is seen.
        weather: the condition; rain leaves streaks, night leaves noise.
        case: a failure's name; ``motionblur``, ``overexposure`` and ``underexposure`` act here.
        rng: the camera's own generator.

    Returns:
        (H, W, 3) float32 in 0..1, gamma-coded, RGB.
    """
    light = smooth_edges(light, surface.tag)
    exposure = float(rng.uniform(0.85, 1.25)) * (2.2 if weather.is_night else 1.25)
    if weather.is_wet:
        light = _streaked(light, rng=rng)
    if case == "motionblur":
        light = failures.motion_blur(light)
    exposure *= {"overexposure": 7.0, "underexposure": 0.06}.get(case or "", 1.0)
    coded = (1 - np.exp(-exposure * light)) ** np.float32(1 / 2.2)
    grain = rng.standard_normal(coded.shape, np.float32) * np.float32(weather.noise)
    grain += rng.standard_normal((*coded.shape[:2], 1), np.float32) * np.float32(weather.noise)
    if case == "underexposure":
        grain *= 2
    return np.asarray((coded + grain).clip(0, 1))


def smooth_edges(light: np.ndarray, tag: np.ndarray) -> np.ndarray:
    """Soften the stairs where two things meet: a 3x3 blend there, nothing elsewhere."""
    edge = np.zeros(tag.shape, bool)
    across, down = tag[:, 1:] != tag[:, :-1], tag[1:] != tag[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    soft = cv2.GaussianBlur(light, (3, 3), 0.6)
    return np.where(edge[..., None], soft, light)


def _streaked(light: np.ndarray, *, rng: Rng) -> np.ndarray:
    """Falling drops: short bright slanting lines."""
    height, width = light.shape[:2]
    veil = np.zeros((height, width), np.float32)
    count = int(rng.integers(90, 160))
    x, y = rng.uniform(0, width, count), rng.uniform(-0.05, 1, count) * height
    length, slant = rng.uniform(0.03, 0.11, count) * height, rng.normal(0.12, 0.05)
    thickness = max(1, round(height / 420))
    for i in range(count):
        end = (round(x[i] + slant * length[i]), round(y[i] + length[i]))
        cv2.line(veil, (round(x[i]), round(y[i])), end, float(0.2 + 0.5 * (i % 3) / 2), thickness, cv2.LINE_8)
    veil = cv2.GaussianBlur(veil, (3, 3), 0.5 + 0.3 * thickness)[..., None] * np.float32(0.55)
    return np.asarray(light * (1 - veil) + np.float32(0.5) * veil)


def depth_code(surface: Surface) -> np.ndarray:
    """The folder ``depth``: (H, W, 3) uint8."""
    code = np.log1p(np.minimum(surface.depth, np.float32(DEPTH_END_M))) / np.float32(np.log1p(DEPTH_END_M))
    return np.repeat(_byte(code)[..., None], 3, axis=2)


def hha(surface: Surface) -> np.ndarray:
    """The folder ``hha``: (H, W, 3) uint8."""
    disparity = np.sqrt(np.float32(1.8) / np.maximum(surface.depth, np.float32(1.8)))
    height = np.sqrt((surface.point[2] + np.float32(0.25)).clip(0, 25.25) / np.float32(25.25))
    angle = np.arccos(surface.normal[..., 2].clip(-1, 1)) / np.float32(np.pi)
    code = _byte(np.stack([disparity, height, angle], axis=-1))
    code[surface.is_sky] = 0
    return code


def _byte(share: np.ndarray) -> np.ndarray:
    """0..1 -> 0..255, rounded; what is outside is held at the end."""
    return (share.clip(0, 1) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Points:
    """LiDAR returns: pixel places and ranges in metres, (n,) each."""

    row: np.ndarray
    column: np.ndarray
    range_m: np.ndarray


def scan(surface: Surface, weather: Weather, *, rng: Rng) -> Points:
    """A scanner of 28 lines beside the camera: where its beams land in the picture, and how far."""
    camera = surface.camera
    azimuth = np.radians(np.arange(-60, 60, 0.6)).astype(np.float32)[None, :]
    elevation = np.radians(np.linspace(-25, 8, LIDAR_LINES, dtype=np.float32))[:, None]
    # Directions in the camera's frame: the scanner is levelled as the camera is.
    across, rise = np.tan(azimuth) + 0 * elevation, np.tan(elevation) / np.cos(azimuth)
    focal_px = camera.focal * camera.height
    column = np.floor(camera.width / 2 + focal_px * across).astype(np.int64).ravel()
    row = np.floor(camera.height / 2 - focal_px * rise).astype(np.int64).ravel()
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    row, column = row[inside], column[inside]
    stretch = np.sqrt((camera.rays[:, row, column] ** 2).sum(axis=0))
    range_m = surface.depth[row, column] * stretch
    # Haze swallows beams, most of all long ones; a few are always lost.
    kept = 0.96 * np.exp(-np.minimum(range_m, 1e3) * (0.3 * weather.fog_per_metre + 0.004 * weather.is_wet))
    returned = (range_m < LIDAR_RANGE_M) & (rng.random(len(range_m)) < kept)
    return Points(row[returned], column[returned], range_m[returned])


def lidar(points: Points, surface: Surface, *, case: str | None, rng: Rng) -> np.ndarray:
    """The folder ``lidar``: (H, W, 3) uint8; ``lidarjitter`` acts here."""
    height, width = surface.depth.shape
    row, column, range_m = points.row, points.column, points.range_m
    if case == "lidarjitter":
        row, column = failures.jitter(row, column, height=height, rng=rng)
        range_m = (range_m * rng.normal(1, 0.05, len(range_m))).clip(0.5, LIDAR_RANGE_M)
    value = _byte(np.exp(-range_m / np.float32(LIDAR_FADE_M)))
    order = np.argsort(value, kind="stable")  # Near ones are drawn last.
    row, column, value = row[order], column[order], value[order]
    frame = np.zeros((height, width), np.uint8)
    reach = height // 400  # A point is one pixel small; in large frames it would be lost.
    for down, across in product(range(-reach, reach + 1), repeat=2):
        at, beside = row + down, column + across
        inside = (at >= 0) & (at < height) & (beside >= 0) & (beside < width)
        frame[at[inside], beside[inside]] = value[inside]
    return np.repeat(frame[..., None], 3, axis=2)


def event(before: np.ndarray, after: np.ndarray, weather: Weather, *, case: str | None, rng: Rng) -> np.ndarray:
    """The folder ``event``: what changed between two moments.

    Args:
        before: (H, W, 3) linear light.
        after: the same a moment later.
        weather: noise grows in the dark, drops make events in the rain.
        case: ``eventlowres`` acts here.
        rng: the sensor's own generator.

    Returns:
        (H, W, 3) uint8, or a quarter of the size in each direction with ``eventlowres``.
    """
    floor = np.float32(0.004 if weather.is_night else 0.02)
    change = np.log(after @ LUMINANCE + floor) - np.log(before @ LUMINANCE + floor)
    grain = 0.1 if weather.is_night else 0.05
    change = change + rng.standard_normal(change.shape, np.float32) * np.float32(grain)
    if weather.is_wet:
        blank = np.zeros_like(before)
        change = change + (_streaked(blank, rng=rng) - _streaked(blank, rng=rng))[..., 0] * 2
    frame = np.zeros((*change.shape, 3), np.uint8)
    frame[..., 0] = (change > EVENT_STEP) * np.uint8(255)
    frame[..., 2] = (change < -EVENT_STEP) * np.uint8(255)
    return failures.low_resolution(frame) if case == "eventlowres" else frame


def semantic(surface: Surface) -> np.ndarray:
    """The folder ``semantic``: (H, W, 4) uint8, the raw label in the first channel, opaque."""
    frame = np.zeros((*surface.label.shape, 4), np.uint8)
    frame[..., 0] = surface.label
    frame[..., 3] = 255
    return frame
