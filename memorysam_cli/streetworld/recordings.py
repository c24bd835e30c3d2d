"""The sensors and their failures: one surface in, one picture out.

Codes (all 8 bit):

* ``depth``: ``255 * ln(1 + d / 1 m) / ln(1001)`` in three equal channels; d is the depth along the axis, sky 255.
* ``hha``: root of the disparity ``255 * sqrt(1.8 m / d)``, height above the carriageway
  ``255 * sqrt((h + 0.25 m) / 25.25 m)``, and the angle between the surface's normal and the vertical
  (0 level ground, 128 upright); sky 0.
* ``lidar``: ``255 * exp(-r / 50 m)`` at the points, in three equal channels, r straight from the lens; 0 elsewhere.
* ``event``: 255 in the first channel where it grew brighter, in the third where darker; 0 elsewhere.

DELIVER's sensors come first, then their failures, then MCubeS' cameras for polarization and near infrared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import cv2
import numpy as np

from memorysam_cli.streetworld.light import LUMINANCE, Lighting, Weather, radiance
from memorysam_cli.streetworld.surfaces import NIR_REFLECTANCE, SHINE, Rng
from memorysam_cli.streetworld.world import Surface

DEPTH_END_M = 1000.0
LIDAR_RANGE_M = 95.0
LIDAR_FADE_M = 50.0
LIDAR_LINES = 28
EVENT_STEP = 0.2
"""Change of the logarithm of the light that makes an event."""
REFRACTION = 1.5
"""Index of refraction of whatever mirrors light."""
FAILURES = ("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres")
"""DELIVER's names of sensor failures; each changes one sensor's picture and no other."""


def picture(light: np.ndarray, surface: Surface, weather: Weather, *, case: str | None, rng: Rng) -> np.ndarray:
    """The color camera.

    Args:
        light: (H, W, 3) linear light.
        surface: the visible surface.
        weather: the condition; rain leaves streaks, night leaves noise.
        case: a failure's name; ``motionblur``, ``overexposure`` and ``underexposure`` have an effect here.
        rng: the camera's own generator.

    Returns:
        (H, W, 3) float32 in 0..1, gamma-coded, RGB.
    """
    light = smooth_edges(light, surface.tag)
    exposure = float(rng.uniform(0.85, 1.25)) * (2.2 if weather.is_night else 1.25)
    if weather.is_wet:
        light = _streaked(light, rng=rng)
    if case == "motionblur":
        light = motion_blur(light)
    exposure *= {"overexposure": 7.0, "underexposure": 0.06}.get(case or "", 1.0)
    coded = (1 - np.exp(-exposure * light)) ** np.float32(1 / 2.2)
    grain = rng.standard_normal(coded.shape, np.float32) * np.float32(weather.noise)
    grain += rng.standard_normal((*coded.shape[:2], 1), np.float32) * np.float32(weather.noise)
    if case == "underexposure":
        grain *= 2
    return np.asarray((coded + grain).clip(0, 1))


def smooth_edges(light: np.ndarray, tag: np.ndarray) -> np.ndarray:
    """Blend 3x3 pixels at the edges between two things, and nowhere else."""
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
    """0..1 -> 0..255, rounded and clamped."""
    return (share.clip(0, 1) * 255 + 0.5).astype(np.uint8)


@dataclass(frozen=True)
class Points:
    """LiDAR returns: pixel places and ranges in meters, (n,) each."""

    row: np.ndarray
    column: np.ndarray
    range_m: np.ndarray


def scan(surface: Surface, weather: Weather, *, rng: Rng) -> Points:
    """A scanner of 28 lines beside the camera: where its beams are in the picture, and their ranges."""
    camera = surface.camera
    azimuth = np.radians(np.arange(-60, 60, 0.6)).astype(np.float32)[None, :]
    elevation = np.radians(np.linspace(-25, 8, LIDAR_LINES, dtype=np.float32))[:, None]
    # Directions in the camera's frame: the scanner is leveled as the camera is.
    across, rise = np.tan(azimuth) + 0 * elevation, np.tan(elevation) / np.cos(azimuth)
    focal_px = camera.focal * camera.height
    column = np.floor(camera.width / 2 + focal_px * across).astype(np.int64).ravel()
    row = np.floor(camera.height / 2 - focal_px * rise).astype(np.int64).ravel()
    inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    row, column = row[inside], column[inside]
    stretch = np.sqrt((camera.rays[:, row, column] ** 2).sum(axis=0))
    range_m = surface.depth[row, column] * stretch
    # Haze swallows beams, most of all long ones; a few are always lost.
    kept = 0.96 * np.exp(-np.minimum(range_m, 1e3) * (0.3 * weather.fog_per_meter + 0.004 * weather.is_wet))
    returned = (range_m < LIDAR_RANGE_M) & (rng.random(len(range_m)) < kept)
    return Points(row[returned], column[returned], range_m[returned])


def lidar(points: Points, surface: Surface, *, case: str | None, rng: Rng) -> np.ndarray:
    """The folder ``lidar``: (H, W, 3) uint8; ``lidarjitter`` has an effect here."""
    height, width = surface.depth.shape
    row, column, range_m = points.row, points.column, points.range_m
    if case == "lidarjitter":
        row, column = jitter_points(row, column, height=height, rng=rng)
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
    """The folder ``event``: changes between two moments.

    Args:
        before: (H, W, 3) linear light.
        after: the same a moment later.
        weather: noise grows in the dark, drops make events in the rain.
        case: ``eventlowres`` has an effect here.
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
    return low_resolution(frame) if case == "eventlowres" else frame


def semantic(surface: Surface) -> np.ndarray:
    """The folder ``semantic``: (H, W, 4) uint8, the raw label in the first channel, opaque."""
    frame = np.zeros((*surface.label.shape, 4), np.uint8)
    frame[..., 0] = surface.label
    frame[..., 3] = 255
    return frame


def motion_blur(light: np.ndarray) -> np.ndarray:
    """Smear linear light (H, W, 3) along a slightly rising line, a twelfth of the frame long."""
    length = max(3, round(light.shape[0] / 12)) | 1
    kernel = np.zeros((length, length), np.float32)
    middle = length // 2
    rise = max(1, length // 6)
    cv2.line(kernel, (0, middle + rise), (length - 1, middle - rise), 1.0)
    return np.asarray(cv2.filter2D(light, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE))


def jitter_points(
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


@dataclass(frozen=True)
class Polarization:
    """Linear polarization of the light from each pixel; all (H, W) float32.

    Args:
        sine: sine of twice the angle, as an angle of polarization repeats after half a turn.
        cosine: cosine of twice the angle.
        degree: 0 unpolarized … 1 fully polarized.
    """

    sine: np.ndarray
    cosine: np.ndarray
    degree: np.ndarray


def polarization(surface: Surface, weather: Weather, *, rng: Rng) -> Polarization:
    """Polarization by reflection: strong on shiny surfaces near Brewster's angle, along the surface's lie.

    Source: the Fresnel equations for an index of 1.5 (mirrored light), a tenth of it at right angles (diffuse light).
    """
    rays = surface.camera.rays
    sight = rays / np.sqrt((rays * rays).sum(axis=0))
    facing = np.abs((np.moveaxis(sight, 0, -1) * surface.normal).sum(axis=-1)).clip(0, 1)
    sine_square = 1 - facing * facing
    index_square = np.float32(REFRACTION**2)
    root = np.sqrt(index_square - sine_square)
    below = index_square - sine_square * (1 + index_square) + 2 * sine_square * sine_square
    mirrored = (2 * sine_square * facing * root / below).clip(0, 1)
    shine = SHINE[surface.material]
    right, up, _ = surface.camera.axes
    azimuth = np.arctan2(surface.normal @ up, surface.normal @ right)
    strength = shine * mirrored - 0.12 * (1 - shine) * sine_square  # Negative: at right angles.
    # The sky polarizes light too: most a quarter turn away from the sun; here by height alone.
    strength = np.where(surface.is_sky, 0.08 + 0.25 * np.abs(sight[2]), strength)
    cosine, sine = -np.cos(2 * azimuth) * strength, -np.sin(2 * azimuth) * strength
    # The noise is in the Stokes vector: if little is polarized, the angle is random.
    grain = np.float32(0.012 + weather.noise)
    cosine += rng.standard_normal(cosine.shape, np.float32) * grain
    sine += rng.standard_normal(sine.shape, np.float32) * grain
    length = np.maximum(np.hypot(cosine, sine), 1e-6)
    return Polarization(
        sine=(sine / length).astype(np.float32),
        cosine=(cosine / length).astype(np.float32),
        degree=length.clip(0, 1).astype(np.float32),
    )


def near_infrared(surface: Surface, lights: Lighting, *, rng: Rng) -> np.ndarray:
    """Near-infrared light: (H, W) float32 in 0..1, gamma-coded; leaves shine, water and sky are dark."""
    reflectance = NIR_REFLECTANCE[surface.material] * (0.65 + 0.8 * surface.color @ LUMINANCE)
    bare = replace(surface, color=np.repeat(reflectance[..., None], 3, axis=2))
    light = radiance(bare, lights).mean(axis=-1) * np.where(surface.is_sky, np.float32(0.45), np.float32(1))
    exposure = 2.2 if lights.weather.is_night else 1.0
    coded = (1 - np.exp(-np.float32(exposure) * light)) ** np.float32(1 / 2.2)
    grain = rng.standard_normal(coded.shape, np.float32) * np.float32(lights.weather.noise)
    return np.asarray((coded + grain).clip(0, 1))


def overlap(height: int, width: int, *, rng: Rng) -> np.ndarray:
    """Where the near-infrared camera's picture, warped to the color camera's, has content: (H, W) uint8, 0 or 255."""
    mask = np.zeros((height, width), np.uint8)
    left, right = (int(rng.uniform(0, 0.05) * width) for _ in range(2))
    top, bottom = (int(rng.uniform(0, 0.03) * height) for _ in range(2))
    mask[top : height - bottom, left : width - right] = 255
    return mask
