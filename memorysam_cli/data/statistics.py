"""What every sensor's values are: mean and deviation in one pass over the files, and the range that weights know.

The second is an estimate from a few scenes, in stored units: enough to notice meters where there were millimeters.
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
"""At most; decoding leaves Python's lock."""

LOOKED_AT = 32
"""Scenes whose values make a range; evenly taken."""
VALUES = 4096
"""Pixels of each of them; drawn, as even steps might all meet one column."""
MARGIN = 0.1
"""Times the known range: values that are no further outside are no strangers."""

RESOLUTION = 1e-6
"""Of float32, in which values are normalized: a deviation below this part of the values is rounding."""

Values = npt.NDArray[Any]
Triple = tuple[float, float, float]
ZEROS: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Moments:
    """What one frame's values amount to, per channel; a few numbers, however large the frame."""

    count: int
    """Valid pixels: those whose three values are all measurements."""
    mean: Triple
    squares: Triple
    """Sums of squared differences from ``mean``."""
    low: float
    high: float
    invalid: int = 0
    """Pixels that are not valid."""

    @classmethod
    def of(cls, frame: Values, modality: Modality, *, invalid: Mask | None = None) -> Moments:
        """The moments of a frame's valid pixels, after the modality's scale and offset.

        Args:
            frame: (H, W, 3) as stored.
            modality: gives scale and offset.
            invalid: (H, W, 3), True where nothing was measured.
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
    """The moments of all frames together; the same for any order, as its sums are exact.

    Args:
        parts: at least one; without a valid pixel in any of them, all is 0.
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
        manifest: written or not; all files are there.
        split: whose scenes count; all scenes where it has none.
        names: of the modalities that are measured; None: all.
        max_pixels: larger pictures are refused; None: as everywhere.
        advance: called after each scene.

    Returns:
        Modality → statistics over its valid pixels; a 0 that is not declared to be no measurement counts as one.

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
    """The scenes that :func:`measure` looks at."""
    return [scene for scene in manifest.scenes if scene.split == split] or list(manifest.scenes)


def with_statistics(info: DatasetInfo, found: Mapping[str, Statistics], *, normalize: bool) -> DatasetInfo:
    """The data set with its statistics.

    Args:
        info: of the data set.
        found: from :func:`measure`.
        normalize: take them as mean and deviation of every modality in ``found``; else they are for information, and
            published data sets keep the papers' normalization. A constant channel, up to rounding, keeps a deviation
            of 1.
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
    """A manifest whose sensors' ranges are known; for one of an earlier version, a few scenes are looked at."""
    if manifest.info.ranges:
        return manifest
    found = value_ranges(manifest.root, measured_scenes(manifest), manifest.info.modalities)
    return replace(manifest, info=manifest.info.model_copy(update={"ranges": found}))


def with_class_pixels(manifest: Manifest, *, split: str) -> Manifest:
    """A manifest that says how many pixels each class has in a split.

    Labels that cannot be read are passed over: who needs them will say so.
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
    """What the files of a few scenes hold, evenly taken from all.

    Args:
        root: what the scenes' paths are relative to.
        scenes: may lack modalities.
        modalities: those that are looked at.
        most: scenes that are looked at.
        max_pixels: larger pictures are passed over; None: as everywhere.

    Returns:
        Modality → its range; none of those without a valid value. Files that cannot be read are passed over: who needs
        them will say so.
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
        modality: whose.
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
    """A file's tag, and valid values of drawn pixels, as stored; None of a file that cannot be read."""
    try:
        frame, invalid = decode.read_frame(paths, modality, max_pixels=max_pixels)
        tag = images.header(paths[0]).nodata
    except DataError:
        return None
    pixels = np.random.Generator(np.random.PCG64(0)).integers(0, frame.shape[0] * frame.shape[1], VALUES)
    values = frame.reshape(-1, 3)[pixels]  # (H, W, 3) -> (N, 3)
    return tag, values.ravel() if invalid is None else values[~invalid.reshape(-1, 3)[pixels]]


def strangers(known: Mapping[str, ValueRange], found: Mapping[str, ValueRange]) -> list[str]:
    """Which sensors' values are not those that weights were trained on, a line each with both ranges.

    Args:
        known: of the training data; what it does not have is not judged.
        found: of the scenes, from :func:`value_ranges`.

    Returns:
        Lines on those of another dtype, or with a median outside the known range: then most values are.
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
    """Such as ``uint16 805 to 4028 (1–99 %)``."""
    return f"{' and '.join(values.dtypes)} {values.low:.6g} to {values.high:.6g} (1–99 %)"


def _divisors(found: Statistics) -> Triple:
    """The deviations, or 1 where there is none but that of rounding."""
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
