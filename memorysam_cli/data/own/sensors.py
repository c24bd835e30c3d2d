"""Kinds of sensors: how a kind is guessed and treated, and remarks on a sensor's values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from memorysam_cli.data import decode
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.data.statistics import range_text, value_range
from memorysam_cli.dataset import IMAGENET, DatasetInfo, Flip, Interpolation, Kind, Modality, ValueRange
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import images

Chosen = TypeVar("Chosen", int, int | str)
Measured = Literal["all", "others", "none"]
"""Which sensors are normalized by their own mean and deviation; ``others``: those that are not photos."""
KINDS: tuple[Kind, ...] = get_args(Kind)
LOOKED_AT = 3
"""Number of files of each sensor, and of labels, that are read for remarks."""
FAR = 8.0
"""Values beyond this many times the range [-1, 1] are too large for the network."""
SMALL = 0.3
"""If the largest value is smaller, too little of the range is used: 14 bits in 16 reach 0.25."""
NARROW = 1 / 8
"""The same if all values are within less than this."""
FULL = {"uint8": 255, "uint16": 65535}
"""Stored values that become 1; floating point does not change."""


@dataclass(frozen=True)
class Defaults:
    """The treatment of a kind's frames."""

    looks_like_a_photo: bool = False
    """Whether it is normalized like ImageNet's photos, and changed in color and sharpness during training; others are
    not, as in the reference."""
    interpolation: Interpolation = "bilinear"
    flip: Flip = "mirror"


DEFAULTS: dict[Kind, Defaults] = {
    "rgb": Defaults(looks_like_a_photo=True),
    "gray": Defaults(looks_like_a_photo=True),
    # Between a wall and an object in front of it there is nothing, so distances are not blended.
    "depth": Defaults(interpolation="nearest"),
    "hha": Defaults(),
    # Sparse: most pixels mean "nothing", which must not be blended with the others.
    "event": Defaults(interpolation="nearest"),
    "lidar": Defaults(interpolation="nearest"),
    "thermal": Defaults(),
    # Whether a flip changes the sign of sine or cosine depends on the sensor's convention, set in dataset.json.
    "angle": Defaults(),
}

WORDS: dict[Kind, str] = {
    "rgb": "rgb img image images color colour camera cam visible vis photo ms multispectral hyperspectral",
    "gray": "gray grey mono pan panchromatic nir swir dolp",
    "depth": "depth disparity disp distance range dsm dem tiefe",
    "hha": "hha",
    "event": "event events dvs",
    "lidar": "lidar radar velodyne points sar",
    "thermal": "thermal ther ir lwir mwir infrared flir heat thermo waerme waermebild",
    "angle": "angle aolp aop orientation azimuth",
}
"""The words in a modality's name by which its kind is guessed."""
WEAK = frozenset({"img", "image", "images", "camera", "cam", "visible", "vis", "photo"})
"""Words that any sensor's name may have, as in ``thermal camera``; used only if there is no other word."""


def guess_kind(name: str) -> Kind:
    """The kind for a modality's name, such as depth for ``depth_left`` and thermal for ``IR2``.

    Raises:
        UsageError: no word of the name is known, or two words mean different kinds.
    """
    found = told_kinds(name)
    if len(found) != 1:
        why = "means no known kind" if not found else f"may mean {' and '.join(found)}"
        raise UsageError(f"--modality {name}: its name {why}; give --kind {name}=KIND, one of {', '.join(KINDS)}")
    return found[0]


def told_kinds(name: str, *, is_strict: bool = False) -> list[Kind]:
    """The kinds of the words in a name; those of WEAK words only if there are no others, or not at all.

    Args:
        name: of a modality, a folder or a file.
        is_strict: WEAK words never count.
    """
    words = {word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name.lower())}
    strong = [kind for kind, known in WORDS.items() if words & (set(known.split()) - WEAK)]
    return strong or (["rgb"] if words & WEAK and not is_strict else [])


def make_modality(
    name: str,
    kind: Kind,
    *,
    scale: float | None = None,
    channels: Sequence[int] | None = None,
    bands: Sequence[int | str] | None = None,
) -> Modality:
    """A modality with the defaults of its kind.

    Args:
        name: of the modality.
        kind: decides normalization, interpolation, photometric augmentation and flip.
        scale: factor of stored values; None: by dtype.
        channels: the three stored channels to use, from 0; a single one is used three times.
        bands: the same of rasters, from 1 or by description.
    """
    defaults = DEFAULTS[kind]
    is_photo = defaults.looks_like_a_photo
    return Modality(
        name=name,
        kind=kind,
        mean=IMAGENET["mean"] if is_photo else None,
        std=IMAGENET["std"] if is_photo else None,
        interpolation=defaults.interpolation,
        photometric=("jitter", "blur") if is_photo else (),
        channels=_three(channels),
        bands=_three(bands),
        scale=scale,
        flip=defaults.flip,
    )


def frames_of(name: str, chosen: Sequence[Chosen]) -> dict[str, tuple[Chosen, ...]]:
    """The frames of a sensor: itself, or with more than three channels ⌈C/3⌉ frames, the last one filled up.

    Returns:
        Name → its channels: ``ms`` of 0 to 4 becomes ``ms-1`` of 0, 1, 2 and ``ms-2`` of 3, 4, 4.
    """
    if len(chosen) <= len("RGB"):
        return {name: tuple(chosen)}
    thirds = [tuple(chosen[start : start + 3]) for start in range(0, len(chosen), 3)]
    return {f"{name}-{number}": (third + third[-1:] * 2)[:3] for number, third in enumerate(thirds, 1)}


def _three(chosen: Sequence[Chosen] | None) -> tuple[Chosen, Chosen, Chosen] | None:
    """Three of three, or one three times."""
    if not chosen:
        return None
    first, second, third = chosen if len(chosen) > 1 else [chosen[0]] * 3
    return first, second, third


def names_to_measure(modalities: Sequence[Modality], measured: Measured) -> tuple[str, ...]:
    """The sensors that are normalized by their own mean and deviation."""
    if measured == "none":
        return ()
    return tuple(each.name for each in modalities if measured == "all" or not DEFAULTS[each.kind].looks_like_a_photo)


def notes_on_values(manifest: Manifest, *, measured: Sequence[str]) -> list[str]:
    """Remarks on the values of the first few files of each sensor.

    Args:
        manifest: not written yet.
        measured: sensors that are normalized by their own values.
    """
    notes = []
    for modality in manifest.info.modalities:
        name = modality.name
        scenes = [[manifest.root / path for path in scene.files[name]] for scene in manifest.scenes[:LOOKED_AT]]
        if (
            modality.bands is None
            and modality.channels is None
            and any(_channels(paths[0]) == len("RGBA") for paths in scenes)
        ):
            notes.append(f"'{name}': the fourth channel is treated as alpha and dropped (--channels overrides this)")
        found = None if name in measured else value_range(scenes, modality)
        note = None if found is None else _note_on_range(found, modality)
        if note is not None:
            notes.append(f"'{name}': {note}")
    return notes


def _note_on_range(found: ValueRange, modality: Modality) -> str | None:
    """A remark on the range that the network would see, for any type."""
    factor = _factor(found.dtypes[0], modality)
    low, high = sorted(end * factor + modality.offset for end in (found.low, found.high))
    top, stored = max(abs(low), abs(high)), f"{range_text(found)} in the first files"
    remedy = f"normalize with --measure, or give --scale {modality.name}={{:.1g}}"
    if top > FAR:
        return f"{stored} become values up to {top:.4g}, the network is used to about 1; {remedy.format(factor / top)}"
    if modality.scale is not None or top == 0:
        return None
    if top < SMALL:
        return f"{stored} use only {100 * top:.2g} % of the range; {remedy.format(factor / top)}"
    # Most of a sparse sensor's pixels mean "nothing", which is one value.
    if high - low < NARROW and modality.kind not in ("event", "lidar"):
        return f"{stored} use a span of only {100 * (high - low):.2g} % of the range; normalize with --measure"
    return None


def notes_on_bands(manifest: Manifest) -> list[str]:
    """The bands of rasters that are used, with their descriptions in the first scene; a line per sensor."""
    notes = []
    for modality in manifest.info.modalities if manifest.scenes else ():
        path = manifest.scenes[0].files.get(modality.name, ("",))[0]
        if modality.bands is None or not path:
            continue
        with suppress(DataError):  # the check reports it
            header = images.header(manifest.root / path)
            notes.append(f"'{modality.name}' takes {decode.bands_taken(modality, header, path=Path(path))} of {path}")
    return notes


def _channels(path: Path) -> int:
    """The channels in a file's header; 0 if it cannot be read, which the check reports."""
    try:
        return images.header(path).channels
    except DataError:
        return 0


def choices(info: DatasetInfo, *, names: Sequence[str] | None = None) -> list[str]:
    """How each sensor's values are interpreted, a line each.

    Args:
        info: as written, with the sensors' ranges; that of an earlier version has none.
        names: of the sensors, in their order; None: all.
    """
    lines = []
    for modality in info.modalities if names is None else map(info.modality, names):
        found = info.ranges.get(modality.name)
        held = range_text(found) if found else "no valid value" if info.ranges else "range not known"
        gone = f", nodata {', '.join(f'{value:.7g}' for value in found.nodata)}" if found and found.nodata else ""
        taken = f"bands {', '.join(map(str, dict.fromkeys(modality.bands)))}, " if modality.bands else ""
        lines.append(f"{modality.name} ({modality.kind}): {taken}{held}{gone}; {_treatment(modality, found)}")
    return lines


def _treatment(modality: Modality, found: ValueRange | None) -> str:
    """The treatment of stored values, in words."""
    full = None if found is None or modality.scale is not None else FULL.get(found.dtypes[0])
    scaled = "as stored" if full is None else f"÷ {full}"
    scaled = scaled if modality.scale is None else f"× {modality.scale:g}"
    scaled = f"{scaled} + {modality.offset:g}" if modality.offset else scaled
    if modality.mean is None or modality.std is None:
        return f"{scaled}, not normalized"
    if (modality.mean, modality.std) == (IMAGENET["mean"], IMAGENET["std"]):
        return f"{scaled}, normalized by ImageNet's mean and deviation"
    mean, std = (
        ", ".join(dict.fromkeys(f"{value:.6g}" for value in triple)) for triple in (modality.mean, modality.std)
    )
    return f"{scaled}, normalized by its own mean {mean} and deviation {std}"


def _factor(dtype: str, modality: Modality) -> float:
    """The factor of stored values."""
    return modality.scale if modality.scale is not None else 1 / FULL.get(dtype, 1)
