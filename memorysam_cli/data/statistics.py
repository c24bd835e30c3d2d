"""Mean, deviation and range of every sensor's values, in one pass over the files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from memorysam_cli.data import decode
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.transforms import full_scale
from memorysam_cli.dataset import DatasetInfo, Modality, Statistics

THREADS = 8
"""At most; decoding leaves Python's lock."""

RESOLUTION = 1e-6
"""Of float32, in which values are normalised: a deviation below this part of the values is rounding."""

Values = npt.NDArray[Any]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Moments:
    """What one frame's values amount to, per channel; a few numbers, however large the frame."""

    count: int
    """Values per channel."""
    mean: Triple
    squares: Triple
    """Sums of squared differences from ``mean``."""
    low: float
    high: float

    @classmethod
    def of(cls, frame: Values, modality: Modality) -> Moments:
        """The moments of a frame, after the modality's scale and offset.

        Args:
            frame: (H, W, 3) as stored.
            modality: gives scale and offset.
        """
        scale = modality.scale if modality.scale is not None else 1 / full_scale(frame)
        values = frame.reshape(-1, 3).astype(np.float64) * scale + modality.offset  # (H, W, 3) -> (H·W, 3)
        mean = values.mean(axis=0)
        return cls(
            count=len(values),
            mean=_triple(mean),
            squares=_triple(np.square(values - mean).sum(axis=0)),
            low=float(values.min()),
            high=float(values.max()),
        )


def merge(parts: Sequence[Moments]) -> Moments:
    """The moments of all frames together; the same for any order, as its sums are exact.

    Args:
        parts: at least one.
    """
    count = sum(part.count for part in parts)
    means, squares = [], []
    for channel in range(3):
        mean = math.fsum(part.count * part.mean[channel] for part in parts) / count
        between = (part.count * (part.mean[channel] - mean) ** 2 for part in parts)
        means.append(mean)
        squares.append(math.fsum([*(part.squares[channel] for part in parts), *between]))
    return Moments(
        count=count,
        mean=_triple(means),
        squares=_triple(squares),
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
    )


def measure(
    manifest: Manifest,
    *,
    split: str = "train",
    max_pixels: int | None = None,
    advance: Callable[[], object] | None = None,
) -> dict[str, Statistics]:
    """Measure every modality of a data set over one split; memory does not grow with its size.

    Args:
        manifest: written or not; all files are there.
        split: whose scenes count; all scenes where it has none.
        max_pixels: larger pictures are refused; None: as everywhere.
        advance: called after each scene.

    Returns:
        Modality → statistics over all pixels, those without a measurement too: that is what is normalised later.

    Raises:
        DataError: a file is missing, damaged, or not finite.
    """
    scenes = measured_scenes(manifest, split=split)
    parts: dict[str, list[Moments]] = {modality.name: [] for modality in manifest.info.modalities}
    for found in _of_each(manifest, scenes, max_pixels=max_pixels):
        for name, moments in found.items():
            parts[name].append(moments)
        if advance is not None:
            advance()
    chosen = split if scenes[0].split == split else "all"
    return {name: _statistics(merge(found), split=chosen, scenes=len(scenes)) for name, found in parts.items()}


def measured_scenes(manifest: Manifest, *, split: str = "train") -> list[Scene]:
    """The scenes that :func:`measure` looks at."""
    return [scene for scene in manifest.scenes if scene.split == split] or list(manifest.scenes)


def with_statistics(info: DatasetInfo, found: Mapping[str, Statistics], *, normalise: bool) -> DatasetInfo:
    """The data set with its statistics.

    Args:
        info: of the data set.
        found: from :func:`measure`.
        normalise: take them as mean and deviation of every modality; else they are for information, and published
            data sets keep the papers' normalisation. A constant channel, up to rounding, keeps a deviation of 1.
    """
    info = info.model_copy(update={"statistics": dict(found)})
    if not normalise:
        return info
    modalities = tuple(
        modality.model_copy(
            update={
                "mean": found[modality.name].mean,
                "std": _divisors(found[modality.name]),
            }
        )
        for modality in info.modalities
    )
    return info.model_copy(update={"modalities": modalities})


def _divisors(found: Statistics) -> Triple:
    """The deviations, or 1 where there is none but that of rounding."""
    largest = max(abs(found.low), abs(found.high), float(np.finfo(np.float32).tiny))
    return _triple(value if value > RESOLUTION * largest else 1.0 for value in found.std)


def _of_each(manifest: Manifest, scenes: Iterable[Scene], *, max_pixels: int | None) -> Iterator[dict[str, Moments]]:
    """The moments of each scene's frames, with several threads, in order."""

    def look(scene: Scene) -> dict[str, Moments]:
        found = {}
        for modality in manifest.info.modalities:
            paths = [manifest.root / path for path in scene.files[modality.name]]
            frame = decode.read_modality(paths, modality, max_pixels=max_pixels)
            found[modality.name] = Moments.of(frame, modality)
        return found

    executor = ThreadPoolExecutor(max_workers=min(THREADS, os.cpu_count() or 1))
    try:
        yield from executor.map(look, scenes)
    finally:
        executor.shutdown(cancel_futures=True)


def _statistics(moments: Moments, *, split: str, scenes: int) -> Statistics:
    """Mean and standard deviation (of the whole, not of a sample)."""
    deviations = [math.sqrt(square / moments.count) for square in moments.squares]
    return Statistics(
        split=split, scenes=scenes, mean=moments.mean, std=_triple(deviations), low=moments.low, high=moments.high
    )


def _triple(values: Any) -> Triple:
    """Three plain numbers."""
    first, second, third = (float(value) for value in values)
    return first, second, third
