"""HHA images for a whole folder of depth images."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from memorysam_cli.data.listing import sample_names
from memorysam_cli.data.own.globs import Pattern
from memorysam_cli.data.own.hha import Camera, Encoding, Map, encode
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import documents, images

MARKER = "hha.json"
"""In the output folder: how its images were made."""
MILLIMETRES = 0.001
THREADS = 8
"""At most; each needs some 200 bytes per pixel."""


@dataclass(frozen=True)
class Depths:
    """How stored values become metres."""

    scale: float | None = None
    """Metres per unit; None: a thousandth for whole numbers, 1 for floating point."""
    farthest: float | None = None
    """Metres; what is farther counts as not measured."""

    def read(self, path: Path) -> Map:
        """A depth image in metres, 0 where nothing was measured: 0 itself, less, or the largest whole number there is.

        Returns:
            (H, W) float64.

        Raises:
            DataError: the file is unusable, or has several channels that differ.
        """
        stored = images.read(path)
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
class Settings:
    """How depth images become HHA images."""

    camera: Camera
    depths: Depths = field(default_factory=Depths)
    encoding: Encoding = field(default_factory=Encoding)


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    jobs: tuple[tuple[Path, Path], ...]
    """Depth image and HHA image, of those that are not done."""
    done: int
    """HHA images that are newer than their depth image."""
    out: Path
    settings: Settings


def plan(root: Path, pattern: Pattern, out: Path, *, settings: Settings) -> Work:
    """Find out what is to be done; nothing is written.

    Args:
        root: the data root.
        pattern: of the depth images.
        out: the output folder; each HHA image lies in it as its depth image lies below the pattern's fixed folder.
        settings: stored with the images.

    Raises:
        DataError: no depth image, or two would become one HHA image.
        UsageError: the folder holds other things, or HHA images made with other arguments; it is left untouched.
    """
    _refuse_foreign(out, settings)
    targets: dict[Path, Path] = {}
    for match in pattern.find(root):
        inside = PurePosixPath(match.path).relative_to(pattern.folder).with_suffix(".png")
        other = targets.setdefault(out / inside, root / match.path)
        if other != root / match.path:
            raise DataError(f"{other} and {root / match.path} would both become {out / inside}; choose by the pattern")
    jobs = tuple((depth, target) for target, depth in targets.items() if not _is_done(depth, target))
    return Work(jobs, done=len(targets) - len(jobs), out=out, settings=settings)


def convert(work: Work, *, advance: Callable[[], object] | None = None) -> None:
    """Write the HHA images that are missing, each all or nothing, with several threads.

    Raises:
        DataError: a depth image is unusable; what is done stays.
        UsageError: the camera's centre lies outside an image.
        EnvironmentFault: the disk is full or read-only.
    """
    camera = work.settings.camera

    def make(job: tuple[Path, Path]) -> None:
        depth = work.settings.depths.read(job[0])
        height, width = depth.shape
        if not (0 <= camera.cx <= width and 0 <= camera.cy <= height):
            raise UsageError(
                f"--camera: its centre ({camera.cx:g}, {camera.cy:g}) lies outside {job[0]} ({height}×{width}); the "
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


def _refuse_foreign(out: Path, settings: Settings) -> None:
    """Refuse an output folder that is not ours or was made otherwise."""
    if not (out / MARKER).is_file():
        if out.is_file() or sample_names(out, count=1):
            raise UsageError(f"--out {out}: holds other files, not HHA images of ours; give another folder")
        return
    # As JSON, which has no tuples. A first run that failed at once has left nothing but the settings.
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
