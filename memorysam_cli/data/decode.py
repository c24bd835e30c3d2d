"""Read files into arrays: the frames of a scene, and its label as classes.

First the files of a modality, then a label, in numbers or in colors, then a whole scene of one size. Nothing is scaled
or normalized here: frames keep the dtype of their files, so that the augmentation changes the same values as in the
reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.transforms import Array, Mask, Sample, is_exact, on_grid
from memorysam_cli.dataset import IGNORE, RAW_VALUES, Color, DatasetInfo, LabelRule, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images, rasters
from memorysam_cli.storage.headers import Header
from memorysam_cli.storage.images import Stored
from memorysam_cli.text import counted, shown

LARGEST = float(np.finfo(np.float32).max)
"""Range of stored values, with either sign."""
PHOTOS = ("rgb", "gray")
"""Kinds whose channels are the colors of one pixel."""
Size = tuple[int, int]
"""Height and width."""
CROPPED = 2
"""Number of pixels by which both sides of a frame may be cropped without counting as another resolution."""
ALLOWED = "allowed are uint8, uint16, int16 and floating point; save it as float32, in TIFF or .npy"
"""Types of a sensor's values."""
LISTED = 12
"""Number of valid values that a message lists one by one."""
_NUMBERS = "labels must be class numbers in one channel, lossless (PNG)"


def read_modality(paths: Sequence[Stored], modality: Modality, *, max_pixels: int | None = None) -> Array:
    """The values of :func:`read_frame` alone."""
    return read_frame(paths, modality, max_pixels=max_pixels)[0]


def read_frame(
    paths: Sequence[Stored], modality: Modality, *, max_pixels: int | None = None
) -> tuple[Array, Mask | None]:
    """Read a modality of a scene, and where it has no measurement.

    Args:
        paths: one file, or for an angle two: its sine and its cosine, stacked as [sin, cos, sin].
        modality: how to read the files, and which of their values are not measurements.
        max_pixels: larger pictures are refused; None: the default limit.

    Returns:
        (H, W, 3) uint8, uint16 or float32, as stored: the modality's three ``channels``. If it declares none, gray is
        repeated and alpha is dropped. And (H, W, 3) bool, True where the value is invalid and set to 0 (see
        :func:`find_invalid`); None if all are valid.

    Raises:
        DataError: a file is missing, damaged, or of another kind, or lacks a channel; the message names the file.

    Source: DATASETS §0 and §1.5 (MCubeS's angles).
    """
    if modality.kind == "angle" and len(paths) == 2:
        (sine, no_sine), (cosine, no_cosine) = (_plane(path, modality, max_pixels) for path in paths)
        if (sine.shape, sine.dtype) != (cosine.shape, cosine.dtype):
            raise DataError(
                f"{paths[0]}: sine is {_size(sine)} {sine.dtype}, but cosine ({paths[1].name}) is {_size(cosine)} "
                f"{cosine.dtype}; they must have the same size and type"
            )
        frame = np.stack([sine, cosine, sine], axis=-1)  # 2 × (H, W) -> (H, W, 3)
        if no_sine is None and no_cosine is None:
            return frame, None
        one, two = (np.zeros(sine.shape, bool) if gaps is None else gaps for gaps in (no_sine, no_cosine))
        return frame, np.stack([one, two, one], axis=-1)
    if len(paths) != 1:
        raise DataError(f"{paths[0]}: modality '{modality.name}' takes one file, not {len(paths)}")
    return _as_frame(*_read(paths[0], modality, max_pixels), path=paths[0])


def window_frame(
    array: Array, modality: Modality, *, tag: float | None, hidden: Mask | None, path: Path
) -> tuple[Array, Mask | None]:
    """A window of a raster in the form in which :func:`read_frame` returns the whole.

    Args:
        array: (H, W) or (H, W, C), as stored; changed in place.
        modality: its ``channels`` are indices into the array.
        tag: of the file, as ``Header.nodata``.
        hidden: (H, W), True where the file's mask hides a pixel.
        path: of the file.

    Raises:
        DataError: values of a type that no sensor has.
    """
    return _as_frame(modality, *_as_values(array, modality, tag=tag, hidden=hidden, path=path), path=path)


def _as_frame(modality: Modality, array: Array, invalid: Mask | None, *, path: Stored) -> tuple[Array, Mask | None]:
    """The three channels of both arrays."""
    frame = _three_channels(array, modality, path=path)
    if invalid is None:
        return frame, None
    taken = _three_channels(invalid.astype(np.uint8), modality, path=path).astype(np.bool_)
    return frame, taken if taken.any() else None


def _three_channels(array: Array, modality: Modality, *, path: Stored) -> Array:
    """The three channels of a modality: (H, W) or (H, W, C) -> (H, W, 3)."""
    count = 1 if array.ndim == len("HW") else array.shape[2]
    if modality.channels is not None:
        return _take(array, modality, channels=modality.channels, count=count, path=path)
    if count == len("RGB"):
        return array
    if count == len("RGBA"):
        return cv2.cvtColor(array, cv2.COLOR_RGBA2RGB)  # (H, W, 4) -> (H, W, 3)
    if count != 1:
        raise DataError(f"{path}: {undeclared(array.shape, modality)}")
    if modality.kind == "angle":
        raise DataError(f"{path}: one plane is not an angle; '{modality.name}' needs its sine and its cosine")
    return cv2.merge([array] * 3)  # (H, W) -> (H, W, 3)


def undeclared(shape: tuple[int, ...], modality: Modality, *, is_raster: bool = False) -> str:
    """Why a file of (H, W, C) cannot be a modality without ``channels`` or ``bands``, and what to do."""
    count = shape[2]
    if is_raster:
        return (
            f"has {count} bands, and no three are chosen for '{modality.name}'; choose them with --bands "
            f"{modality.name}=1,2,{min(3, count)} in 'prepare folder', or as 'bands' in dataset.json"
        )
    if axes := images.axes(shape):
        return axes.removeprefix("; ")
    return (
        f"has {count} channels, and no three are chosen for '{modality.name}'; choose them with --channels "
        f"{modality.name}=0,1,{min(2, count - 1)} in 'prepare folder', or as 'channels' in dataset.json"
    )


def with_channels(modality: Modality, header: Header, *, path: Stored) -> Modality:
    """A modality with its bands looked up in a file and stored as ``channels``, from 0.

    Args:
        modality: with ``bands`` or not.
        header: of the file. Of a raster of three bands and alpha, the three are used unless bands are declared.
        path: of the file.

    Raises:
        DataError: the file is not a raster, or lacks a band, or two bands share a description; or no bands are declared
            and it has not one band, three, or three and alpha.
    """
    if header.format != "tiff":
        if modality.bands is None:
            return modality
        raise DataError(
            f"{path}: is a {header.format.upper()}, and bands are a raster's (TIFF); give --channels {modality.name}=…"
            ", which counts from 0"
        )
    if modality.bands is not None and header.has_palette:
        raise DataError(f"{path}: has a color table, which makes three channels of its band; leave --bands out")
    if modality.bands is not None:
        first, second, third = (_band(band, header, path=path) for band in modality.bands)
        return modality.model_copy(update={"channels": (first, second, third), "bands": None})
    is_plain = header.channels in (1, 3) or (header.channels == len("RGBA") and header.has_alpha)
    if modality.channels is None and not is_plain:
        shape = (header.height, header.width, header.channels)
        raise DataError(f"{path}: {undeclared(shape, modality, is_raster=True)}")
    return modality


def _band(band: int | str, header: Header, *, path: Stored) -> int:
    """The index of a band in a raster, from 0."""
    count = len(header.bands)
    if isinstance(band, int):
        if band > count:
            raise DataError(f"{path}: has {counted(count, 'band')}, counted from 1, and no band {band}")
        return band - 1
    places = [place for place, name in enumerate(header.bands) if name == band]
    if len(places) != 1:
        named = [name for name in header.bands if name]
        have = f"its {count} bands are called {', '.join(map(shown, named))}" if named else f"its {count} have no names"
        what = "several bands" if places else "no band"
        raise DataError(f"{path}: has {what} called '{shown(band)}' ({have}); give numbers, counted from 1")
    return places[0]


def bands_taken(modality: Modality, header: Header, *, path: Stored) -> str:
    """The bands of a raster that a modality uses, in words: ``bands 4, 3, 2 (B4, B3, B2)``."""
    places = with_channels(modality, header, path=path).channels or tuple(range(min(3, header.channels)))
    places = tuple(dict.fromkeys(places))
    names = [header.bands[place] for place in places]
    numbers = f"band{'s' * (len(places) > 1)} {', '.join(str(place + 1) for place in places)}"
    return f"{numbers} ({', '.join(map(shown, names))})" if all(names) else numbers


def find_invalid(
    array: Array, modality: Modality, *, tag: float | None, hidden: Mask | None = None
) -> Mask | None:  # fmt: skip
    """Where a file has no measurement: NaN, infinity, a value in ``modality.nodata`` or of the file's own tag.

    Black is a color, so a photo's pixel is invalid only if all its channels have such a value. In other sensors each
    value counts separately, because bands may fail one by one.

    Args:
        array: (H, W) or (H, W, C), as stored, of any numeric type.
        modality: the modality of the file.
        tag: of the file, as ``Header.nodata``.
        hidden: (H, W), of the file, from :func:`memorysam_cli.storage.images.hidden`.

    Returns:
        Bool of the array's shape; None if all values are valid.

    Source: GDAL's masks of bands, and rasterio's ``dataset_mask`` (valid if one band is) for photos.
    """
    invalid = ~np.isfinite(array) if array.dtype.kind == "f" else None
    for value in (*modality.nodata, *(() if tag is None else (tag,))):
        same = _equal(array, value)
        if same is not None and array.ndim > len("HW") and modality.kind in PHOTOS:
            colors = [index for index in modality.channels or range(3) if index < array.shape[2]]
            same = same & same[:, :, colors].all(axis=2, keepdims=True)
        if same is not None:
            invalid = same if invalid is None else invalid | same
    if hidden is not None:
        shown_as = hidden if array.ndim == len("HW") else hidden[:, :, None]
        invalid = np.broadcast_to(shown_as, array.shape) if invalid is None else invalid | shown_as
    return invalid if invalid is not None and invalid.any() else None


def _equal(array: Array, value: float) -> Mask | None:
    """Where the array equals a value, rounded to the array's type; None if that type cannot represent it."""
    stored = rasters.storable(value, array.dtype)
    if stored is None:
        return None
    same: Mask = array == stored
    return same


def _read(path: Stored, modality: Modality, max_pixels: int | None) -> tuple[Modality, Array, Mask | None]:
    """The modality from :func:`with_channels`; (H, W) or (H, W, C) with C > 1, uint8, uint16 or float32; and where it
    is invalid, with 0 there."""
    header, array = images.load(path, max_pixels=max_pixels)
    modality = with_channels(modality, header, path=path)
    hidden = images.hidden(path, header, array)
    return modality, *_as_values(array, modality, tag=header.nodata, hidden=hidden, path=path)


def _as_values(
    array: Array, modality: Modality, *, tag: float | None, hidden: Mask | None, path: Stored
) -> tuple[Array, Mask | None]:
    """Stored numbers as a frame's: uint8, uint16 or float32; and where they are invalid, with 0 there."""
    array = array[:, :, 0] if array.ndim > len("HW") and array.shape[2] == 1 else array
    invalid = find_invalid(array, modality, tag=tag, hidden=hidden)
    if invalid is not None:
        array[invalid] = 0
    if array.dtype in (np.int16, np.float16, np.float64):
        if array.dtype == np.float64 and max(-array.min(), array.max()) > LARGEST:
            raise DataError(f"{path}: holds values beyond {LARGEST:.2g}, too large for the network; rescale them")
        array = array.astype(np.float32)
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise DataError(f"{path}: holds {array.dtype}; {ALLOWED}")
    return np.ascontiguousarray(array), invalid


def _plane(path: Stored, modality: Modality, max_pixels: int | None) -> tuple[Array, Mask | None]:
    """A file with one channel: (H, W), as from :func:`_read`."""
    _, array, invalid = _read(path, modality, max_pixels)
    if array.ndim != len("HW"):
        raise DataError(f"{path}: has {counted(array.shape[2], 'channel')}; the sine or cosine of an angle has one")
    return array, invalid


def _take(array: Array, modality: Modality, *, channels: tuple[int, int, int], count: int, path: Stored) -> Array:
    """The three declared channels: (H, W) or (H, W, C) -> (H, W, 3)."""
    if not 0 <= min(channels) <= max(channels) < count:
        raise DataError(
            f"{path}: has {counted(count, 'channel')}, but '{modality.name}' takes {', '.join(map(str, channels))} "
            f"(from 0); fix --channels, or 'channels' in dataset.json{images.axes(array.shape)}"
        )
    if count == 1:
        return cv2.merge([array] * 3)
    if channels == (0, 1, 2) and count == len(channels):
        return array
    return cv2.merge([cv2.extractChannel(array, channel) for channel in channels])


def _size(frame: Array) -> str:
    """Height × width for a message."""
    return f"{frame.shape[0]}×{frame.shape[1]}"


def read_label(
    path: Path,
    rule: LabelRule,
    classes: int,
    *,
    palette: Sequence[Color] = (),
    max_pixels: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Read a label and convert its raw values into classes.

    Args:
        path: a lossless file with one channel of integers, or the indices of a palette, or four channels that are a
            number (see :func:`is_number`) or of which the first counts (``rule.first_channel``). With ``rule.colors``
            an RGB picture; alpha is dropped.
        rule: how raw values become classes.
        classes: K, at most 255.
        palette: K colors; for ``rule.colors``.
        max_pixels: larger pictures are refused; None: the default limit.

    Returns:
        (H, W) uint8: 0..K-1, or 255 for ignored pixels.

    Raises:
        DataError: the file is unusable, or has a value that is not a class (the message has file, value, number of
            pixels, the first (row, column), and the valid values), or the rule itself is impossible.
    """
    if rule.colors:
        return _of_colors(path, tuple(palette)[:classes], max_pixels)
    raw = raw_label(path, rule, max_pixels=max_pixels)
    table, is_illegal = _class_table(rule, classes)
    inside = raw if raw.dtype in (np.uint8, np.uint16) else np.clip(raw, 0, RAW_VALUES - 1)
    label = table.take(inside)
    wrong = is_illegal.take(inside)
    if inside is not raw:
        wrong |= inside != raw
        # Values below 0 or above 16 bits may be ignored, but are never classes.
        outside = np.isin(raw, [value for value in rule.ignore if not 0 <= value < RAW_VALUES])
        label[outside], wrong[outside] = IGNORE, False
    if wrong.any():
        raise DataError(_illegal(path, raw, wrong, rule=rule, classes=classes))
    return label


def raw_label(path: Path, rule: LabelRule, *, max_pixels: int | None = None) -> Array:
    """A label's stored numbers, before the rule converts them: (H, W) integers; for a palette, the indices.

    Raises:
        DataError: the file is unusable, or has no such numbers.
    """
    header = images.header(path)
    if header.is_lossy:
        raise DataError(f"{path}: is {lossy(header)}; {_NUMBERS}")
    array = images.read(path, max_pixels=max_pixels, as_numbers=True)
    if array.dtype.kind not in "iu":
        raise DataError(f"{path}: holds {array.dtype}; labels must be whole numbers")
    is_first = rule.first_channel and array.ndim > len("HW") and array.shape[2] == len("RGBA")
    if not is_first and not is_number(array):
        raise DataError(f"{path}: is in color; {_NUMBERS}, or colors that the class list gives")
    return array if array.ndim == len("HW") else array[:, :, 0]


def is_number(array: Array) -> bool:
    """Whether each pixel is one number: one channel, or four with R = G = B or G = B = 0 in all pixels.

    Args:
        array: (H, W) or (H, W, C) as read.
    """
    if array.ndim == len("HW") or array.shape[2] == 1:
        return True
    if array.shape[2] != len("RGBA"):
        return False
    red, green, blue = (array[:, :, channel] for channel in range(3))
    return bool((green == blue).all() and ((green == red).all() or not green.any()))


def lossy(header: Header) -> str:
    """The name of a format whose compression changes values."""
    return {"jpeg": "a JPEG", "webp": "a lossy WebP"}.get(header.format, f"a {header.format.upper()} of JPEG pixels")


@lru_cache(maxsize=8)
def _class_table(rule: LabelRule, classes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Raw value → class or 255, and whether it is invalid."""
    if not 0 < classes <= IGNORE:
        raise DataError(f"{counted(classes, 'class')}: from 1 to {IGNORE} are possible")
    # int32: in uint8 a shift of -1 would turn 0 into 255.
    table = np.arange(RAW_VALUES, dtype=np.int32) + rule.shift
    if rule.mapping:
        table[:] = -1
        for raw, index in rule.mapping:
            if not (0 <= raw < RAW_VALUES and 0 <= index < classes):
                raise DataError(
                    f"label.mapping: {raw} → {index} is impossible; raw values are 0..{RAW_VALUES - 1}, classes "
                    f"0..{classes - 1}; fix dataset.json"
                )
            table[raw] = index
    is_illegal = (table < 0) | (table >= classes)
    ignored = [value for value in rule.ignore if 0 <= value < RAW_VALUES]
    is_illegal[ignored] = False
    table[is_illegal] = 0
    table[ignored] = IGNORE
    return table.astype(np.uint8), is_illegal


def _illegal(path: Path, raw: Array, wrong: npt.NDArray[np.bool_], *, rule: LabelRule, classes: int) -> str:
    """The message for the first invalid pixel."""
    row, column = (int(index) for index in np.argwhere(wrong)[0])
    value = int(raw[row, column])
    same = int((raw == value).sum())
    others = int(wrong.sum()) - same
    more = f" (and {counted(others, 'pixel')} of other illegal values)" if others else ""
    return (
        f"{path}: label value {value} in {counted(same, 'pixel')}, first at (row {row}, column {column})"
        f"{more}; legal are {_legal(rule, classes)}, and {_few(rule.ignore)} for 'ignored'"
    )


def _legal(rule: LabelRule, classes: int) -> str:
    """The raw values that are classes."""
    if rule.mapping:
        return _few(sorted(raw for raw, _ in rule.mapping))
    return f"{-rule.shift}..{classes - 1 - rule.shift}"


def _few(values: Sequence[int]) -> str:
    """Some values as text; all of them if they are few."""
    more = f" … {values[-1]}" if len(values) > LISTED else ""
    return ", ".join(str(value) for value in values[:LISTED]) + more


def _of_colors(path: Path, palette: tuple[Color, ...], max_pixels: int | None) -> npt.NDArray[np.uint8]:
    """(H, W) classes of a picture in the palette's colors; other colors become 255."""
    header = images.header(path)
    if header.is_lossy:
        raise DataError(f"{path}: is {lossy(header)}; labels in colors must be lossless (PNG), or no color is exact")
    array = images.read(path, max_pixels=max_pixels)
    if array.ndim == len("HW") or array.shape[2] not in (3, 4) or array.dtype != np.uint8:
        raise DataError(f"{path}: is not an 8-bit RGB picture, but labels of this data set are (label.colors)")
    packed = array[:, :, 0].astype(np.int32) << 8  # (H, W, 3) -> (H, W)
    packed |= array[:, :, 1]
    packed <<= 8
    packed |= array[:, :, 2]
    return _color_table(palette).take(packed)


@lru_cache(maxsize=1)
def _color_table(palette: tuple[Color, ...]) -> npt.NDArray[np.uint8]:
    """Color as one number of 24 bits → class, or 255; 16 MB."""
    if not palette or len(set(palette)) != len(palette):
        raise DataError(f"labels in colors need a different color for every class; the palette is {palette}")
    table = np.full(1 << 24, IGNORE, np.uint8)
    for index, (red, green, blue) in enumerate(palette):
        table[red << 16 | green << 8 | blue] = index
    return table


def read_sample(
    root: Path,
    scene: Scene,
    *,
    modalities: Sequence[Modality],
    labels: DatasetInfo | None = None,
) -> Sample:
    """Read a scene's frames and, if requested, its label, all of one size.

    Args:
        root: the data root.
        scene: its files; a missing modality is an error.
        modalities: the frames, in this order.
        labels: the data set, whose rule, classes and palette describe the labels; None leaves the label out.

    Returns:
        Frames of one size, see :func:`frame_size`; sensors of another size are resampled, see
        :func:`~memorysam_cli.data.transforms.on_grid`. The sample also has where they are invalid.

    Raises:
        DataError: a file is unusable, a modality or the label is missing, or sizes differ (the message has scene and
            sizes).
    """
    frames: dict[str, Array] = {}
    invalid: dict[str, Mask] = {}
    for modality in modalities:
        if modality.name not in scene.files:
            have = ", ".join(scene.files)
            raise DataError(f"scene {scene.id}: has no '{modality.name}' (it has: {have}); choose with --modalities")
        frame, gaps = read_frame(scene.sources(root, modality.name), modality)
        frames[modality.name] = frame
        if gaps is not None:
            invalid[modality.name] = gaps
    label = None
    if labels is not None:
        if scene.label is None:
            raise DataError(f"scene {scene.id}: has no label; only 'predict' works without labels")
        label = read_label(root / scene.label, labels.label, len(labels.classes), palette=labels.palette)
    sizes = {name: (int(frame.shape[0]), int(frame.shape[1])) for name, frame in frames.items()}
    own = None if label is None else (int(label.shape[0]), int(label.shape[1]))
    size = frame_size(sizes, kinds={modality.name: modality.kind for modality in modalities}, label=own)
    if size is None:
        raise DataError(f"scene {scene.id}: {sizes_differ(sizes, label=own)}")
    return on_grid(Sample(frames, label, invalid), modalities=modalities, height=size[0], width=size[1])


def frame_size(sizes: Mapping[str, Size], *, kinds: Mapping[str, str], label: Size | None) -> Size | None:
    """The common grid of a scene's sensors: the label's, else that of the sensor with the most pixels.

    Sensors are aligned: they show the same view at any resolution, so height and width have the same ratio. Only events
    may be smaller with another ratio (``eventlowres``).

    Args:
        sizes: modality → height and width of its file, in the memory's order.
        kinds: modality → kind.
        label: height and width of the label, if there is one.

    Returns:
        Height and width; None if a sensor shows another view.
    """
    sharp = [size for name, size in sizes.items() if kinds[name] != "event"] or list(sizes.values())
    frame = label or max(sharp, key=lambda size: size[0] * size[1])
    is_one = all(
        _is_registered(size, frame) or (kinds[name] == "event" and size[0] <= frame[0] and size[1] <= frame[1])
        for name, size in sizes.items()
    )
    return frame if is_one else None


def _is_registered(size: Size, frame: Size) -> bool:
    """Whether two sizes are one view at two resolutions, up to rounding to whole pixels; or differ by a crop of one or
    two pixels."""
    apart = [abs(side - other) for side, other in zip(size, frame, strict=True)]
    if size == frame or min(apart) == 0 or max(apart) <= CROPPED:
        return size == frame
    return 2 * abs(size[0] * frame[1] - size[1] * frame[0]) <= max(*size, *frame)


def sizes_differ(sizes: Mapping[str, Size], *, label: Size | None) -> str:
    """The message for sizes that cannot belong to one scene, and what is allowed."""
    everything = {**sizes, **({} if label is None else {"label": label})}
    listed = ", ".join(f"{name} {height}×{width}" for name, (height, width) in everything.items())
    allowed = "one view, at any resolution, the label at that of a sensor"
    return f"sizes differ ({listed}); sensors must be registered: {allowed}"


def resampling(modality: Modality, own: Size, frame: Size) -> str:
    """The resampling of a sensor whose resolution differs from the frame's, in words."""
    how = "nearest" if is_exact(modality) else "bilinear"
    return f"'{modality.name}' is {own[0]}×{own[1]} and the frame {frame[0]}×{frame[1]}: resampled ({how})"
