"""Statistics of sensors' values: mean and deviation in one pass over all files, and the range stored in weights.

The range is an estimate from a few scenes, in stored units: enough to notice meters instead of millimeters.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memorysam_cli.data import decode
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.transforms import Mask, full_scale
from memorysam_cli.dataset import IGNORE, DatasetInfo, Modality, Statistics, ValueRange
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

THREADS = 8
"""Largest number of threads; decoding releases Python's lock."""

LOOKED_AT = 32
"""Number of evenly chosen scenes for a range."""
VALUES = 4096
"""Number of random pixels of each; even steps might always hit one column."""
MARGIN = 0.1
"""A median further outside than this many times the known range counts as different."""

RESOLUTION = 1e-6
"""Precision of float32, in which values are normalized: a deviation below this share of the values is rounding."""

Values = npt.NDArray[Any]
Triple = tuple[float, float, float]
ZEROS: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Moments:
    """Moments of one frame's values, per channel; a few numbers for a frame of any size."""

    count: int
    """Number of valid pixels, whose three values are all measurements."""
    mean: Triple
    squares: Triple
    """Sums of squared differences from ``mean``."""
    low: float
    high: float
    invalid: int = 0
    """Number of invalid pixels."""

    @classmethod
    def of(cls, frame: Values, modality: Modality, *, invalid: Mask | None = None) -> Moments:
        """The moments of a frame's valid pixels, after the modality's scale and offset.

        Args:
            frame: (H, W, 3) as stored.
            modality: has scale and offset.
            invalid: (H, W, 3), True where there is no measurement.
        """
        scale = modality.scale if modality.scale is not None else 1 / full_scale(frame)
        valid = frame.reshape(-1, 3) if invalid is None else frame[~invalid.any(axis=2)]  # (H, W, 3) -> (N, 3)
        gone = frame.shape[0] * frame.shape[1] - len(valid)
        if not len(valid):
            return cls(count=0, mean=ZEROS, squares=ZEROS, low=math.inf, high=-math.inf, invalid=gone)
        values = valid.astype(np.float64) * scale + modality.offset
        mean = values.mean(axis=0)
        return cls(
            count=len(values),
            mean=_triple(mean),
            squares=_triple(np.square(values - mean).sum(axis=0)),
            low=float(values.min()),
            high=float(values.max()),
            invalid=gone,
        )


def merge(parts: Sequence[Moments]) -> Moments:
    """The moments of all frames together; they do not depend on the order, because the sums are exact.

    Args:
        parts: at least one; all is 0 if none has a valid pixel.
    """
    count, invalid = sum(part.count for part in parts), sum(part.invalid for part in parts)
    if not count:
        return Moments(count=0, mean=ZEROS, squares=ZEROS, low=0.0, high=0.0, invalid=invalid)
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
        invalid=invalid,
    )


def measure(
    manifest: Manifest,
    *,
    split: str = "train",
    names: Iterable[str] | None = None,
    max_pixels: int | None = None,
    advance: Callable[[], object] | None = None,
) -> dict[str, Statistics]:
    """Measure the modalities of a data set over one split; memory does not grow with its size.

    Args:
        manifest: written or not; all files exist.
        split: the split to measure; all scenes if it has none.
        names: of the modalities to measure; None: all.
        max_pixels: larger pictures are refused; None: the default limit.
        advance: called after each scene.

    Returns:
        Modality → statistics over its valid pixels; 0 is a measurement unless it is declared as nodata.

    Raises:
        DataError: a file is missing or damaged.
    """
    scenes = measured_scenes(manifest, split=split)
    known = manifest.info.modalities
    chosen_ones = [modality for modality in known if names is None or modality.name in set(names)]
    parts: dict[str, list[Moments]] = {modality.name: [] for modality in chosen_ones}
    for found in _of_each(manifest, chosen_ones, scenes, max_pixels=max_pixels):
        for name, moments in found.items():
            parts[name].append(moments)
        if advance is not None:
            advance()
    chosen = split if scenes[0].split == split else "all"
    return {name: _statistics(merge(found), split=chosen, scenes=len(scenes)) for name, found in parts.items()}


def measured_scenes(manifest: Manifest, *, split: str = "train") -> list[Scene]:
    """The scenes that :func:`measure` reads."""
    return [scene for scene in manifest.scenes if scene.split == split] or list(manifest.scenes)


def with_statistics(info: DatasetInfo, found: Mapping[str, Statistics], *, normalize: bool) -> DatasetInfo:
    """The data set with its statistics.

    Args:
        info: of the data set.
        found: from :func:`measure`.
        normalize: use them as mean and deviation of every modality in ``found``; otherwise they are only for
            information, and published data sets keep the papers' normalization. A channel that is constant up to
            rounding keeps a deviation of 1.
    """
    info = info.model_copy(update={"statistics": dict(found)})
    if not normalize:
        return info
    modalities = tuple(
        modality.model_copy(
            update={
                "mean": found[modality.name].mean,
                "std": _divisors(found[modality.name]),
            }
        )
        if modality.name in found
        else modality
        for modality in info.modalities
    )
    return info.model_copy(update={"modalities": modalities})


def with_ranges(manifest: Manifest) -> Manifest:
    """A manifest with the sensors' ranges; for one of an earlier version, a few scenes are read."""
    if manifest.info.ranges:
        return manifest
    found = value_ranges(manifest.root, measured_scenes(manifest), manifest.info.modalities)
    return replace(manifest, info=manifest.info.model_copy(update={"ranges": found}))


def with_class_pixels(manifest: Manifest, *, split: str) -> Manifest:
    """A manifest with the number of pixels of each class in a split.

    Unreadable labels are skipped; other code reports them.
    """
    info, classes = manifest.info, len(manifest.info.classes)

    def look(path: str) -> Values:
        try:
            label = decode.read_label(manifest.root / path, info.label, classes, palette=info.palette)
        except DataError:
            return np.zeros(classes, np.int64)
        return np.bincount(label.ravel(), minlength=IGNORE + 1)[:classes]

    paths = [scene.label for scene in manifest.of_split(split) if scene.label is not None]
    with ThreadPoolExecutor(max_workers=min(THREADS, os.cpu_count() or 1)) as executor:
        total = sum(executor.map(look, paths), np.zeros(classes, np.int64))
    counts = {split: tuple(int(count) for count in total)}
    return replace(manifest, info=info.model_copy(update={"class_pixels": counts}))


def value_ranges(
    root: Path,
    scenes: Sequence[Scene],
    modalities: Sequence[Modality],
    *,
    most: int = LOOKED_AT,
    max_pixels: int | None = None,
) -> dict[str, ValueRange]:
    """The value ranges of a few scenes, evenly chosen.

    Args:
        root: the folder to which the scenes' paths are relative.
        scenes: may lack modalities.
        modalities: to read.
        most: largest number of scenes to read.
        max_pixels: larger pictures are skipped; None: the default limit.

    Returns:
        Modality → its range, without modalities that have no valid value. Unreadable files are skipped; other code
        reports them.
    """
    found = {}
    for modality in modalities:
        with_it = [scene for scene in scenes if modality.name in scene.files]
        count = min(most, len(with_it))
        paths = [with_it[index * len(with_it) // count].sources(root, modality.name) for index in range(count)]
        one = value_range(paths, modality, max_pixels=max_pixels)
        if one is not None:
            found[modality.name] = one
    return found


def value_range(
    scenes: Sequence[Sequence[images.Stored]], modality: Modality, *, max_pixels: int | None = None
) -> ValueRange | None:
    """The range of one modality's files, a list for each scene; None without a valid value."""
    with ThreadPoolExecutor(max_workers=min(THREADS, os.cpu_count() or 1)) as executor:
        looks = list(executor.map(lambda paths: _drawn(paths, modality, max_pixels), scenes))
    return range_of([look for look in looks if look is not None], modality)


def range_of(looks: Sequence[tuple[float | None, Values]], modality: Modality) -> ValueRange | None:
    """The range of some valid values of a modality, each with its file's nodata; None without a valid value.

    Args:
        looks: a file's tag, and values of it, as stored; one for each scene.
        modality: of the files.
    """
    seen = [look for look in looks if look[1].size]
    if not seen:
        return None
    dtypes = Counter(str(values.dtype) for _, values in seen)
    low, middle, high = np.percentile(np.concatenate([values.astype(np.float64) for _, values in seen]), (1, 50, 99))
    tags = {tag for tag, _ in seen if tag is not None and math.isfinite(tag)}
    found = {
        "scenes": len(seen), "dtypes": [name for name, _ in dtypes.most_common()], "low": low, "middle": middle,
        "high": high, "nodata": sorted({*modality.nodata, *tags}),
    }  # fmt: skip
    return ValueRange.model_validate(found)


def _drawn(
    paths: Sequence[images.Stored], modality: Modality, max_pixels: int | None
) -> tuple[float | None, Values] | None:
    """A file's tag, and valid values of random pixels, as stored; None if the file cannot be read."""
    try:
        frame, invalid = decode.read_frame(paths, modality, max_pixels=max_pixels)
        tag = images.header(paths[0]).nodata
    except DataError:
        return None
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, frame.shape[0] * frame.shape[1], VALUES)
    values = frame.reshape(-1, 3)[pixels]  # (H, W, 3) -> (N, 3)
    return tag, values.ravel() if invalid is None else values[~invalid.reshape(-1, 3)[pixels]]


def strangers(known: Mapping[str, ValueRange], found: Mapping[str, ValueRange]) -> list[str]:
    """The sensors whose values differ from those in training, a line each with both ranges.

    Args:
        known: of the training data; modalities without a range are not compared.
        found: of the scenes, from :func:`value_ranges`.

    Returns:
        Lines on sensors with another dtype, or with a median outside the known range, so that most values are.
    """
    lines = []
    for name, now in found.items():
        then = known.get(name)
        if then is None:
            continue
        margin = MARGIN * (then.high - then.low)
        is_outside = not then.low - margin <= now.middle <= then.high + margin
        if not set(now.dtypes) <= set(then.dtypes) or is_outside:
            lines.append(
                f"'{name}': the weights were trained on {range_text(then)}, these scenes hold {range_text(now)}; "
                "expect poor masks, unless both mean the same: give the scenes in the type and unit of the training"
            )
    return lines


def range_text(values: ValueRange) -> str:
    """A range as text, such as ``uint16 805 to 4028 (1–99 %)``."""
    return f"{' and '.join(values.dtypes)} {values.low:.6g} to {values.high:.6g} (1–99 %)"


def _divisors(found: Statistics) -> Triple:
    """The deviations, or 1 where the deviation is only rounding."""
    largest = max(abs(found.low), abs(found.high), float(np.finfo(np.float32).tiny))
    return _triple(value if value > RESOLUTION * largest else 1.0 for value in found.std)


def _of_each(
    manifest: Manifest, modalities: Sequence[Modality], scenes: Iterable[Scene], *, max_pixels: int | None
) -> Iterator[dict[str, Moments]]:
    """The moments of each scene's frames, with several threads, in order."""

    def look(scene: Scene) -> dict[str, Moments]:
        found = {}
        for modality in modalities:
            paths = [manifest.root / path for path in scene.files[modality.name]]
            frame, invalid = decode.read_frame(paths, modality, max_pixels=max_pixels)
            found[modality.name] = Moments.of(frame, modality, invalid=invalid)
        return found

    executor = ThreadPoolExecutor(max_workers=min(THREADS, os.cpu_count() or 1))
    try:
        yield from executor.map(look, scenes)
    finally:
        executor.shutdown(cancel_futures=True)


def _statistics(moments: Moments, *, split: str, scenes: int) -> Statistics:
    """Mean and standard deviation (of the whole, not of a sample)."""
    deviations = [math.sqrt(square / max(moments.count, 1)) for square in moments.squares]
    return Statistics(
        split=split, scenes=scenes, mean=moments.mean, std=_triple(deviations), low=moments.low, high=moments.high,
        invalid=moments.invalid,
    )  # fmt: skip


def _triple(values: Any) -> Triple:
    """Three plain numbers."""
    first, second, third = (float(value) for value in values)
    return first, second, third
