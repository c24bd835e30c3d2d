"""HHA: depth as horizontal disparity, height above ground, and angle with gravity; one image, or a whole folder.

After Gupta, Girshick, Arbeláez and Malik, "Learning Rich Features from RGB-D Images for Object Detection and
Segmentation" (ECCV 2014), and their method to estimate gravity (CVPR 2013). Written from the papers. The scaling to 8
bits is that of common HHA images, and can be changed for scenes larger than a room.

Camera coordinates: x to the right, y down, z forwards, in meters. All arrays are (H, W) float64 unless stated
otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from memorysam_cli.data.decode import find_invalid
from memorysam_cli.data.listing import sample_names
from memorysam_cli.data.own.patterns import Pattern, notes_on_others
from memorysam_cli.dataset import Modality
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import documents, images

Map = npt.NDArray[np.float64]
Vector = tuple[float, float, float]

DOWN: Vector = (0.0, 1.0, 0.0)
"""Gravity for a level camera."""
DEGREES_OFFSET = 38
"""Added to the angle, so that 90° is 128."""
STEPS = ((45.0, 5), (15.0, 5))
"""Estimation of gravity: within how many degrees a surface counts as floor or wall, and the number of repetitions."""
LOWEST_PERCENT = 0.5
"""% of the points that may be below the ground, as noise."""
NEAR_GROUND_M, GUESSED_GROUND_M = 0.9, 1.3
"""If no point is this far below the camera, the ground is not visible and assumed to be GUESSED_GROUND_M below."""
MOST_NORMALS = 50_000
"""Number of surface normals, evenly chosen from the image, for estimating gravity."""
LEAST_POINTS = 8
"""Smallest number of measurements in a window for fitting a plane."""
MARKER = "hha.json"
"""File in the output folder with the settings of its images."""
MILLIMETRES = 0.001
"""In meters."""
DEPTH = Modality(name="depth", kind="depth")
THREADS = 8
"""Largest number of threads; each needs some 200 bytes per pixel."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion, in pixels of the depth images."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class Encoding:
    """How meters and degrees become 8 bits.

    Red: ``255 · nearest / z``, from 1 to 255. Green: ``255 · height / tallest``, from 0 to 255. Blue: the angle in
    degrees between gravity and the surface's normal, pointing away from the camera, plus 38: floor 38, wall 128,
    ceiling 218. A pixel without a measurement is 0 in all three. A pixel with too few neighbors for a surface has the
    angle of a wall.
    """

    nearest: float = 310 / 255
    """The distance in meters that becomes 255, as do smaller ones. Common HHA images have 31000 / centimeters."""
    tallest: float = 2.55
    """The height in meters that becomes 255, as do larger ones. Common: 1 cm is one step."""
    camera_height: float | None = None
    """Height of the camera above the ground in meters; None: the ground is at the lowest points of each image."""
    gravity: Vector | None = None
    """Direction of gravity, in camera coordinates; None: estimated in each image."""


def encode(depth: Map, camera: Camera, encoding: Encoding | None = None) -> npt.NDArray[np.uint8]:
    """Encode one depth image.

    Args:
        depth: (H, W) in meters along the optical axis; 0 for no measurement.
        camera: of this image size.
        encoding: the default is as in the paper's images.

    Returns:
        (H, W, 3) uint8: disparity, height, angle; see :class:`Encoding`.
    """
    encoding = encoding or Encoding()
    is_measured = depth > 0
    if not is_measured.any():
        return np.zeros((*depth.shape, 3), np.uint8)
    across, down = rays(depth.shape, camera)
    normals = surface_normals(depth, across, down)
    gravity = np.array(encoding.gravity or find_gravity(normals), np.float64)
    gravity /= np.linalg.norm(gravity)
    height = -depth * (across * gravity[0] + down * gravity[1] + gravity[2])
    height -= _ground(height[is_measured], encoding)
    angle = np.degrees(np.arccos(np.clip(normals @ gravity, -1, 1)))  # (H, W, 3) @ (3,) -> (H, W)
    angle[np.isnan(angle)] = 90
    with np.errstate(divide="ignore"):
        disparity = np.clip(255 * encoding.nearest / depth, 1, 255)
    stacked = np.stack([disparity, 255 * height / encoding.tallest, angle + DEGREES_OFFSET], axis=-1)
    stacked[~is_measured] = 0
    encoded: npt.NDArray[np.uint8] = np.clip(np.rint(stacked), 0, 255).astype(np.uint8)
    return encoded


def rays(shape: tuple[int, ...], camera: Camera) -> tuple[Map, Map]:
    """x / z and y / z of every pixel: two (H, W) maps."""
    rows, columns = np.indices(shape, dtype=np.float64)
    return (columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy


def surface_normals(depth: Map, across: Map, down: Map) -> Map:
    """The unit normal of the surface at every pixel, pointing away from the camera.

    In image coordinates a plane is linear in inverse depth: ``1/z = a·x/z + b·y/z + c``. It is fitted by least squares
    in a square window. At edges, of nine windows around the pixel, the one that fits best and agrees with the pixel
    itself is used.

    Args:
        depth: (H, W) in meters, 0 for no measurement.
        across: x / z.
        down: y / z.

    Returns:
        (H, W, 3); NaN if there are too few measurements.
    """
    radius = max(2, round(depth.shape[0] / 96))
    is_measured = depth > 0
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=is_measured)
    planes, spread = _planes(inverse, is_measured, across, down, radius=radius)

    def misfit(shift: tuple[int, int]) -> tuple[Map, Map]:
        """The planes of the windows with this shift, and their error at each pixel."""
        shifted, rms = _moved(planes, shift), _moved(spread, shift)
        predicted = shifted[..., 0] * across + shifted[..., 1] * down + shifted[..., 2]
        worse = np.abs(predicted - inverse) + rms
        worse[np.isnan(worse)] = np.inf
        return shifted, worse

    best, best_misfit = misfit((0, 0))
    best_misfit = best_misfit / 2  # on a flat surface the centered window is best
    for rows in (-radius, 0, radius):
        for columns in (-radius, 0, radius):
            shifted, worse = misfit((rows, columns))
            is_better = worse < best_misfit
            best = np.where(is_better[..., None], shifted, best)
            best_misfit = np.minimum(worse, best_misfit)
    best[~is_measured] = np.nan
    normals: Map = best / np.linalg.norm(best, axis=-1, keepdims=True)
    return normals


def find_gravity(normals: Map) -> Vector:
    """The direction parallel to most floor normals and perpendicular to most wall normals, by iteration.

    Args:
        normals: (H, W, 3) from :func:`surface_normals`; NaN is left out.

    Returns:
        A unit vector in camera coordinates; that of a level camera if there is no information.
    """
    known = normals[~np.isnan(normals[..., 0])]  # (H, W, 3) -> (N, 3)
    known = known[:: max(1, len(known) // MOST_NORMALS)]
    gravity = np.array(DOWN)
    for degrees, times in STEPS:
        for _ in range(times):
            along = np.abs(known @ gravity)
            floors = known[along > np.cos(np.radians(degrees))]
            walls = known[along < np.sin(np.radians(degrees))]
            if len(floors) + len(walls) == 0:
                break
            _, vectors = np.linalg.eigh(walls.T @ walls - floors.T @ floors)
            found = vectors[:, 0]  # of the smallest eigenvalue
            gravity = found if found @ gravity >= 0 else -found
    x, y, z = (float(value) for value in gravity)
    return x, y, z


def _ground(height: Map, encoding: Encoding) -> float:
    """The ground's height relative to the camera, which is negative."""
    if encoding.camera_height is not None:
        return -encoding.camera_height
    lowest = float(np.percentile(height, LOWEST_PERCENT))
    return lowest if lowest < -NEAR_GROUND_M else -GUESSED_GROUND_M


def _planes(inverse: Map, is_measured: Any, across: Map, down: Map, *, radius: int) -> tuple[Map, Map]:
    """The plane (a, b, c) around every pixel, (H, W, 3), and its root mean square error; NaN: no plane."""
    weight = is_measured.astype(np.float64)
    side = 2 * radius + 1

    def total(values: Map) -> Map:
        found: Map = cv2.boxFilter(values * weight, cv2.CV_64F, (side, side), normalize=False, borderType=0)
        return found

    count = total(np.ones_like(inverse))
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v, q = (total(values) / count for values in (across, down, inverse))
        uu, uv, vv = (
            total(across**2) / count - u * u,
            total(across * down) / count - u * v,
            total(down**2) / count - v * v,
        )
        uq, vq = total(across * inverse) / count - u * q, total(down * inverse) / count - v * q
        qq = total(inverse**2) / count - q * q
        determinant = uu * vv - uv * uv
        a, b = (vv * uq - uv * vq) / determinant, (uu * vq - uv * uq) / determinant
        planes = np.stack([a, b, q - a * u - b * v], axis=-1)
        rms = np.sqrt(np.clip(qq - a * uq - b * vq, 0, None))
    # Measurements in one row or column of pixels fix no plane.
    pixel = abs(across[0, 0] - across[0, -1]) / max(1, across.shape[1] - 1)
    is_known = (count >= LEAST_POINTS) & (determinant > (0.1 * pixel * pixel) ** 2)
    planes[~is_known], rms[~is_known] = np.nan, np.nan
    return planes, rms


def _moved(values: Map, shift: tuple[int, int]) -> Map:
    """``values`` of the pixel ``shift`` rows and columns away; NaN beyond the border."""
    moved = np.full_like(values, np.nan)
    rows, columns = shift
    height, width = values.shape[:2]
    to = (slice(max(0, -rows), min(height, height - rows)), slice(max(0, -columns), min(width, width - columns)))
    source = (slice(max(0, rows), min(height, height + rows)), slice(max(0, columns), min(width, width + columns)))
    if all(part.stop > part.start for part in to):
        moved[to] = values[source]
    return moved


@dataclass(frozen=True)
class Depths:
    """How stored values become meters."""

    scale: float | None = None
    """Meters per unit; None: 0.001 for integers, 1 for floating point."""
    farthest: float | None = None
    """Meters; larger distances count as not measured."""

    def read(self, path: Path) -> Map:
        """A depth image in meters, 0 for no measurement.

        No measurement are 0, negative values, the largest integer of the type, NaN, infinity, and a TIFF's own nodata
        value.

        Returns:
            (H, W) float64.

        Raises:
            DataError: the file is unusable, or has several channels that differ.
        """
        header, stored = images.load(path)
        invalid = find_invalid(stored, DEPTH, tag=header.nodata)
        if invalid is not None:
            stored[invalid] = 0
        if stored.ndim == 3:
            if (stored[..., 1:3] != stored[..., :1]).any():
                raise DataError(
                    f"{path}: has {stored.shape[2]} channels that differ; depth has one (is it HHA or a photo?)"
                )
            stored = stored[..., 0]
        is_whole = stored.dtype.kind in "iu"
        scale = self.scale if self.scale is not None else MILLIMETRES if is_whole else 1.0
        depth: Map = stored.astype(np.float64) * scale
        is_saturated = stored == np.iinfo(stored.dtype).max if is_whole else np.zeros(stored.shape, bool)
        depth[is_saturated | (depth < 0) | (depth > (self.farthest or np.inf))] = 0
        return depth


@dataclass(frozen=True)
class HhaSettings:
    """The settings of a conversion."""

    camera: Camera
    depths: Depths = field(default_factory=Depths)
    encoding: Encoding = field(default_factory=Encoding)


@dataclass(frozen=True)
class Conversion:
    """The work to do."""

    jobs: tuple[tuple[Path, Path], ...]
    """Depth image and HHA image, for each that is not done."""
    done: int
    """HHA images that are newer than their depth image."""
    out: Path
    settings: HhaSettings
    notes: tuple[str, ...] = ()
    """Other files beside the depth images, by suffix and count."""


def plan_conversion(root: Path, pattern: Pattern, out: Path, *, settings: HhaSettings) -> Conversion:
    """Find out what to do; nothing is written.

    Args:
        root: the data root.
        pattern: of the depth images.
        out: the output folder. An HHA image has the same path in it as its depth image below the pattern's fixed
            folder.
        settings: stored with the images.

    Raises:
        DataError: no depth image, or two would become one HHA image.
        UsageError: the folder has other files, or HHA images with other settings; it does not change.
    """
    _refuse_foreign(out, settings)
    targets: dict[Path, Path] = {}
    matches = pattern.find(root)
    for match in matches:
        inside = PurePosixPath(match.path).relative_to(pattern.folder).with_suffix(".png")
        other = targets.setdefault(out / inside, root / match.path)
        if other != root / match.path:
            raise DataError(f"{other} and {root / match.path} would both become {out / inside}; choose by the pattern")
    jobs = tuple((depth, target) for target, depth in targets.items() if not _is_done(depth, target))
    # A pattern without a folder matches all sensors, and the files written here.
    notes = notes_on_others(root, [pattern], {match.path for match in matches}) if pattern.folder else []
    return Conversion(jobs, done=len(targets) - len(jobs), out=out, settings=settings, notes=tuple(notes))


def convert(work: Conversion, *, advance: Callable[[], object] | None = None) -> None:
    """Write the missing HHA images, each completely or not at all, with several threads.

    Raises:
        DataError: a depth image is unusable; finished images stay.
        UsageError: the camera's center is outside an image.
        EnvironmentFault: the disk is full or read-only.
    """
    camera = work.settings.camera

    def make(job: tuple[Path, Path]) -> None:
        depth = work.settings.depths.read(job[0])
        height, width = depth.shape
        if not (0 <= camera.cx <= width and 0 <= camera.cy <= height):
            raise UsageError(
                f"--camera: its center ({camera.cx:g}, {camera.cy:g}) lies outside {job[0]} ({height}×{width}); the "
                "camera's numbers must be those of this image size"
            )
        images.write_png(job[1], encode(depth, camera, work.settings.encoding), fsync=False)

    if not work.jobs:
        return
    documents.write_json(work.out / MARKER, asdict(work.settings))
    executor = ThreadPoolExecutor(max_workers=min(THREADS, os.cpu_count() or 1))
    try:
        for _ in executor.map(make, work.jobs):
            if advance is not None:
                advance()
    finally:
        executor.shutdown(cancel_futures=True)


def _refuse_foreign(out: Path, settings: HhaSettings) -> None:
    """Refuse an output folder that is not ours or has other settings."""
    if not (out / MARKER).is_file():
        if out.is_file() or sample_names(out, count=1):
            raise UsageError(f"--out {out}: holds other files, not HHA images of ours; give another folder")
        return
    # As JSON, which has no tuples. A first run that failed at once has left only the settings.
    is_begun = sample_names(out) != [MARKER]
    if is_begun and documents.to_json(documents.read_json(out / MARKER)) != documents.to_json(asdict(settings)):
        raise UsageError(
            f"--out {out}: holds HHA images made with other settings (see {MARKER} there); give another folder, or "
            "remove this one"
        )


def _is_done(depth: Path, target: Path) -> bool:
    """Whether an HHA image is newer than its depth image."""
    try:
        return target.stat().st_mtime_ns >= depth.stat().st_mtime_ns
    except OSError:
        return False
