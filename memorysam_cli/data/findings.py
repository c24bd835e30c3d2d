"""The findings of a check: facts about each file, remarks over all files, and the report, for people and machines.

A file with the size and time of its last reading is not read again. Errors are never cached: a refused file is read
again each time. Additionally, a label's raw values are counted as classes directly by the rule, to verify the loader's
look-up table.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from memorysam_cli.data import DATASETS, decode
from memorysam_cli.data.manifest import Scene, count_splits, folder
from memorysam_cli.dataset import IGNORE, RAW_VALUES, DatasetInfo, LabelRule, Modality, Strict
from memorysam_cli.errors import DataError, EnvironmentFault, LawBroken, Laws
from memorysam_cli.storage import atomic, documents, images
from memorysam_cli.text import counted, shown

SHOWN = 10
"""Number of occurrences of each kind that are named; the others are counted."""
CACHE = "checked.jsonl"
"""Cache file beside the manifest."""
VERSION = 2
"""Version of the facts; with another version, all files are read again."""
BYTE = 255
SHARED = 0.001
"""Share of a file's valid pixels with its smallest or largest value, above which this value may have another
meaning."""
FAR = 0.5
"""Factor: such a value lies outside the 1 to 99 % range of the others by this many times that range."""
FEWEST = 16
"""Smallest number of different other values: two or three are a mask."""
SAMPLED = 65536
"""Number of a file's values used for percentiles."""
DENSE = ("depth", "thermal", "angle")
"""Kinds in which an extreme value is neither light nor background."""


class FileFacts(Strict):
    """Facts about one file of a modality, or about a label."""

    height: int
    width: int
    channels: int
    dtype: str
    low: float | None = None
    """The smallest valid stored value; None if only the header was read, for labels, and without a valid pixel."""
    high: float | None = None
    invalid: int = 0
    """Number of pixels with a value that is not a measurement: NaN, infinity, nodata."""
    nodata: float | None = None
    """The nodata value of the file's own tag."""
    shared: dict[float, int] = Field(default_factory=dict)
    """The smallest or largest value → pixels, if many share it and the others are far from it."""
    digest: str = ""
    """Hash of the pixels of the first modality, to find one picture under two names."""
    is_turned: bool = False
    """Whether it has an EXIF rotation, which is ignored."""
    pixels: dict[int, int] = Field(default_factory=dict)
    """Class (255: ignored) → pixels, for a label."""


class _CacheLine(Strict):
    """A line of the cache."""

    path: str
    size: int
    mtime_ns: int
    role: str
    """The settings that affect the facts, besides the file."""
    is_whole: bool
    """Whether the file was decoded, not only its header read."""
    facts: FileFacts


class Reader:
    """Reads files for the check, and caches their facts.

    Args:
        root: the data root.
        info: the data set.
        headers_only: do not decode the modalities' files (labels are always decoded).
        max_pixels: larger pictures are refused from their headers.
    """

    def __init__(self, root: Path, info: DatasetInfo, *, headers_only: bool, max_pixels: int) -> None:
        self.root, self.info = root, info
        self.headers_only, self.max_pixels = headers_only, max_pixels
        self._place = folder(root, info.name) / CACHE
        self._old = {(line.path, line.role): line for line in _cache_lines(self._place)}
        self._new: dict[tuple[str, str], _CacheLine] = {}
        self._label_role = f"label {_fingerprint(info)}"

    def frame(self, path: str, modality: Modality) -> FileFacts:
        """The facts of a modality's file.

        Args:
            path: relative to the root.
            modality: of the file.

        Raises:
            FileNotFoundError: it does not exist.
            DataError: it cannot be used; the message starts with ``path``.
        """
        is_first = modality.name == self.info.modalities[0].name
        kind = "photo" if modality.kind in decode.PHOTOS else "dense" if modality.kind in DENSE else "sparse"
        taken = modality.bands and f"bands {modality.bands}"
        role = f"{'first ' if is_first else ''}frame {VERSION} {kind} {modality.channels or taken or ''} "
        role += f"{modality.nodata or ''}"
        return self._facts(path, role, "header" if self.headers_only else "frame", modality)

    def label(self, path: str) -> FileFacts:
        """The facts of a label; otherwise as :meth:`frame`."""
        return self._facts(path, self._label_role, "label", None)

    def save(self, *, is_complete: bool) -> None:
        """Write the cache, if it has changed.

        Args:
            is_complete: all files were checked; entries for other files are removed.
        """
        kept = self._new if is_complete else self._old | self._new
        if kept == self._old:
            return
        text = "".join(documents.to_json(kept[key].model_dump(exclude_defaults=True)) + "\n" for key in sorted(kept))
        try:
            atomic.write_text(self._place, text, fsync=False)
        except EnvironmentFault:  # the cache only saves time; writing the manifest reports such errors
            return

    def _facts(
        self, path: str, role: str, how: Literal["header", "frame", "label"], modality: Modality | None
    ) -> FileFacts:
        """Cached facts, or those of the file."""
        status = os.stat(f"{self.root}/{path}")  # noqa: PTH116  (text is three times as fast, for 40,000 files)
        is_whole = how != "header"
        line = self._old.get((path, role))
        if line is not None and line.facts.height * line.facts.width > self.max_pixels:
            line = None  # an earlier run allowed more
        if line is None or (line.size, line.mtime_ns) != (status.st_size, status.st_mtime_ns):
            line = None
        if line is None or (is_whole and not line.is_whole):
            try:
                facts = self._read(self.root / path, how, modality)
            except DataError as error:
                raise DataError(f"{shown(path)}: {str(error).removeprefix(f'{shown(self.root / path)}: ')}") from error
            line = _CacheLine(
                path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, role=role, is_whole=is_whole, facts=facts
            )
        self._new[path, role] = line
        return line.facts

    def _read(self, path: Path, how: Literal["header", "frame", "label"], modality: Modality | None) -> FileFacts:
        """Read the facts from a file."""
        header = images.header(path)
        images.refuse_size(path, header, max_pixels=self.max_pixels)
        form = FileFacts(
            height=header.height,
            width=header.width,
            channels=header.channels,
            dtype=header.dtype,
            is_turned=header.is_turned,
            nodata=header.nodata if header.nodata is not None and np.isfinite(header.nodata) else None,
        )
        if how == "label":
            label = decode.read_label(
                path,
                self.info.label,
                len(self.info.classes),
                palette=self.info.palette,
                max_pixels=self.max_pixels,
            )
            counts = class_histogram(label)
            if not self.info.label.colors:
                raw = decode.raw_label(path, self.info.label, max_pixels=self.max_pixels)
                refuse_changed(path, raw_histogram(raw, self.info.label), counts)
            return form.model_copy(update={"pixels": counts})
        if modality is not None:
            modality = decode.with_channels(modality, header, path=path)
        if how == "header" or modality is None:
            return form
        array = images.load(path, max_pixels=self.max_pixels)[1]
        found = _values(array, modality, tag=header.nodata, hidden=images.hidden(path, header, array))
        if modality.name == self.info.modalities[0].name:
            found["digest"] = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=12).hexdigest()
        return form.model_copy(update=found)


def _values(
    array: npt.NDArray[Any], modality: Modality, *, tag: float | None, hidden: npt.NDArray[np.bool_] | None
) -> dict[str, object]:
    """Facts about the valid values of a frame, as fields of :class:`FileFacts`."""
    invalid = decode.find_invalid(array, modality, tag=tag, hidden=hidden)
    taken = _taken(array, modality)
    if invalid is None:
        return {"low": float(taken.min()), "high": float(taken.max()), "shared": shared_far_out(taken, modality)}
    gaps = _taken(invalid, modality)
    gone = int(np.count_nonzero(gaps if gaps.ndim == len("HW") else gaps.any(axis=2)))
    valid = taken[~gaps]
    if not valid.size:
        return {"invalid": gone}
    ends = {"low": float(valid.min()), "high": float(valid.max())}
    return {**ends, "shared": shared_far_out(valid, modality), "invalid": gone}


def shared_far_out(values: npt.NDArray[Any], modality: Modality) -> dict[float, int]:
    """The smallest or largest value, if many pixels share it and all others are far from it, or if it is a depth of 0.

    Saturated sensors give such values, and those that use 0 or 65535 for "nothing". Light, and the background of sparse
    sensors, look the same but are real values, so only dense measurements are checked.

    Args:
        values: valid values of a frame, of any shape.
        modality: of the frame.

    Returns:
        Value → number of pixels with it.
    """
    if modality.kind not in DENSE:
        return {}
    shares = {float(end): int(np.count_nonzero(values == end)) for end in (values.min(), values.max())}
    many = {end: count for end, count in shares.items() if count >= SHARED * values.size}
    if not many:
        return {}
    # Without both extremes: a sensor may use 0 for "too near" and 65535 for "too far".
    others = values[~np.isin(values, list(many))].ravel()
    if others.size < FEWEST:
        return {}
    others = others[:: max(1, others.size // SAMPLED)].astype(np.float64)
    low, high = np.percentile(others, (1, 99))
    is_mask = len(np.unique(others)) < FEWEST
    return (
        {}
        if is_mask
        else {
            end: n
            for end, n in many.items()
            if max(low - end, end - high) > FAR * (high - low) or (_is_no_depth(end, modality) and low > end)
        }
    )


def _is_no_depth(value: float, modality: Modality) -> bool:
    """Whether the value means that a depth camera has no measurement, because nothing has a distance of 0."""
    return modality.kind == "depth" and value == 0


def _taken(array: npt.NDArray[Any], modality: Modality) -> npt.NDArray[Any]:
    """The channels of the frame; alpha's constant 255 would distort the range."""
    if array.ndim < 3:
        return array
    if modality.channels is not None and max(modality.channels) < array.shape[2]:
        return array[:, :, sorted(set(modality.channels))]
    return array[:, :, :3] if array.shape[2] == 4 else array


def _fingerprint(info: DatasetInfo) -> str:
    """A hash of the settings that affect how a label is read."""
    rule = {"label": info.label.model_dump(mode="json"), "classes": len(info.classes), "palette": info.palette}
    return hashlib.sha256(documents.to_json([VERSION, rule]).encode()).hexdigest()[:16]


def _cache_lines(path: Path) -> Iterable[_CacheLine]:
    """The lines of a cache; if it is damaged, its complete lines."""
    try:
        values = documents.read_json_lines(path)
    except DataError:  # missing or damaged: all files are read again
        return
    for value in values:
        try:
            yield _CacheLine.model_validate(value)
        except ValidationError:
            continue


def raw_histogram(raw: npt.NDArray[Any], rule: LabelRule) -> dict[int, int]:
    """Class or 255 → pixels.

    Args:
        raw: (H, W) integers as stored, all of them valid.
        rule: how each becomes a class; not for colors.
    """
    mapping = dict(rule.mapping)
    found: dict[int, int] = {}
    for value, count in _value_counts(raw).items():
        index = IGNORE if value in rule.ignore else mapping[value] if mapping else value + rule.shift
        found[index] = found.get(index, 0) + count
    return found


def class_histogram(label: npt.NDArray[np.uint8]) -> dict[int, int]:
    """Class or 255 → pixels, of the loader's result: (H, W) uint8."""
    return _value_counts(label)


def refuse_changed(path: Path, before: Mapping[int, int], after: Mapping[int, int]) -> None:
    """Check that reading a label kept every pixel's class.

    Raises:
        LawBroken: the histograms differ; the message names the file and the first class.
    """
    if before == after:
        return
    first = min(index for index in {*before, *after} if before.get(index, 0) != after.get(index, 0))
    raise LawBroken(
        f"{shown(path)}: class {first} has {counted(before.get(first, 0), 'pixel')} in the file and "
        f"{after.get(first, 0)} as it is read; do not train on this, and report this bug"
    )


def _value_counts(values: npt.NDArray[Any]) -> dict[int, int]:
    """Value → number of pixels."""
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and values.size >= RAW_VALUES):
        counts = np.bincount(values.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, numbers = np.unique(values, return_counts=True)
    return {int(value): int(number) for value, number in zip(found, numbers, strict=True)}


@dataclass(frozen=True)
class Problem:
    """A kind of problem."""

    kind: str
    count: int
    first: tuple[str, ...]
    """The first ten, each with the scene and the path."""

    @classmethod
    def of(cls, kind: str, messages: Sequence[str]) -> Self:
        """Name the first ten, count all."""
        return cls(kind, len(messages), tuple(messages[:SHOWN]))

    @property
    def heading(self) -> str:
        """The number, and the number of named ones: ``3``, or ``25, the first 10``."""
        return f"{self.count:,}" + (f", the first {len(self.first)}" if len(self.first) < self.count else "")

    def to_json(self) -> dict[str, Any]:
        """The object for ``--json``."""
        return {"kind": self.kind, "count": self.count, "first": list(self.first)}


@dataclass(frozen=True)
class StoredForm:
    """A form in which a modality's files are stored."""

    dtype: str
    channels: int
    scenes: int
    low: float | None
    """The smallest and the largest valid value in all files; None if only headers were read."""
    high: float | None
    pixels: int = 0
    """Number of pixels in all files."""
    invalid: int = 0
    """Number of pixels without a measurement: NaN, infinity, nodata."""

    def to_json(self) -> dict[str, Any]:
        """The object for ``--json``."""
        return {
            "dtype": self.dtype,
            "channels": self.channels,
            "scenes": self.scenes,
            "low": self.low,
            "high": self.high,
            "invalid": self.invalid,
        }


@dataclass(frozen=True)
class Dropped:
    """A scene that is left out, with the reason."""

    scene: Scene
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Its line in ``dropped.jsonl``."""
        return {"scene": self.scene.id, "split": self.scene.split, "reasons": list(self.reasons)}


class Oddities:
    """Collects facts about scenes, and reports what is unusual.

    Args:
        info: of the data set.
        max_pixels: the limit of the other commands.
    """

    def __init__(self, info: DatasetInfo, *, max_pixels: int) -> None:
        self.info, self.max_pixels = info, max_pixels
        self._forms: dict[str, dict[tuple[str, int], StoredForm]] = defaultdict(dict)
        self._pictures: dict[str, list[Scene]] = defaultdict(list)
        self._empty: list[str] = []
        self._blank: list[str] = []
        self._tags: dict[str, set[float]] = defaultdict(set)
        self._shared: dict[str, Counter[float]] = defaultdict(Counter)
        self._turned: list[str] = []
        self._large: dict[str, int] = {}
        self._strangers: Counter[str] = Counter()

    def add(self, scene: Scene, frames: Mapping[str, FileFacts], label: FileFacts | None) -> None:
        """Add a scene: the facts of its modalities, and of its label."""
        for name, facts in frames.items():
            self._add_form(name, facts)
            self._add_size(scene.files[name][0], facts)
            self._shared[name].update(facts.shared)
            if facts.nodata is not None:
                self._tags[name].add(facts.nodata)
            if facts.invalid == facts.height * facts.width:
                self._blank.append(scene.files[name][0])
            if facts.is_turned:
                self._turned.append(scene.files[name][0])
            if facts.digest:
                self._pictures[facts.digest].append(scene)
        if label is not None and scene.label is not None:
            self._add_size(scene.label, label)
            if set(label.pixels) == {IGNORE}:
                self._empty.append(scene.label)
            if self.info.label.colors and IGNORE in label.pixels:
                self._strangers[scene.label] = label.pixels[IGNORE]

    def stored(self) -> dict[str, tuple[StoredForm, ...]]:
        """Modality → the forms of its files, the most common first."""
        return {
            modality.name: tuple(sorted(self._forms[modality.name].values(), key=lambda form: -form.scenes))
            for modality in self.info.modalities
        }

    def lines(self) -> Iterator[str]:
        """All warnings, a line each."""
        for modality in self.info.modalities:
            forms = self.stored()[modality.name]
            yield from _of_modality(modality, forms)
            yield from self._of_validity(modality, forms)
        if self._turned:
            yield f"{_some(self._turned)} an EXIF rotation, which is ignored: labels are drawn on the stored pixels"
        if self._empty:
            yield f"{_some(self._empty)} no class at all: every pixel of these labels is ignored"
        if self._blank:
            yield f"{_some(self._blank)} no valid pixel at all: every one is nodata or not finite"
        if self._strangers:
            pixels = sum(self._strangers.values())
            ignored = f"({counted(pixels, 'pixel')} in all), which are ignored"
            yield f"{_some(list(self._strangers))} colors of no class {ignored}"
        if self._large:
            yield (
                f"{_some(list(self._large))} more pixels than the other commands take; let them with "
                f"MEMORYSAM_MAX_PIXELS={max(self._large.values())}"
            )
        yield from self._twins()

    def remarks(self) -> Iterator[str]:
        """Lines on values declared as nodata, one for each sensor."""
        for modality in self.info.modalities:
            if modality.nodata:
                yield from self._gaps(modality, self.stored()[modality.name])

    def _gaps(self, modality: Modality, forms: Sequence[StoredForm]) -> Iterator[str]:
        """The share of a sensor without a measurement."""
        gone, pixels = sum(form.invalid for form in forms), sum(form.pixels for form in forms)
        if gone:
            values = sorted({*self._tags[modality.name], *modality.nodata})
            which = (
                f"nodata {', '.join(f'{value:.7g}' for value in values)}, NaN, infinity" if values else "NaN, infinity"
            )
            yield (
                f"'{modality.name}': {gone:,} of {counted(pixels, 'pixel')} ({100 * gone / pixels:.2g} %) are no "
                f"measurement ({which}): they have no part in range, mean and deviation, and are 0 after normalization"
            )

    def _of_validity(self, modality: Modality, forms: Sequence[StoredForm]) -> Iterator[str]:
        """Missing measurements that were not declared, and values that may be missing measurements."""
        name, pixels = modality.name, sum(form.pixels for form in forms)
        if not modality.nodata:
            yield from self._gaps(modality, forms)
        is_own = self.info.name not in DATASETS and not self.info.name.startswith("synthetic")
        for value, count in sorted(self._shared[name].items()) if is_own else ():
            why = (
                "as depth cameras write it for no measurement"
                if _is_no_depth(value, modality)
                else "far from all others"
            )
            yield (
                f"'{name}': {count:,} of {counted(pixels, 'pixel')} ({100 * count / pixels:.2g} %) hold {value:.7g}, "
                f"{why}; if that is not a measurement, prepare with --nodata {name}={value:.7g}"
            )

    def _add_size(self, path: str, facts: FileFacts) -> None:
        """Record a picture that is larger than the other commands' limit."""
        if facts.height * facts.width > self.max_pixels:
            self._large[path] = facts.height * facts.width

    def _add_form(self, name: str, facts: FileFacts) -> None:
        """Count a file's form and extend its range."""
        key = (facts.dtype, facts.channels)
        old = self._forms[name].get(key, StoredForm(*key, scenes=0, low=None, high=None))
        lows = [end for end in (old.low, facts.low) if end is not None]
        highs = [end for end in (old.high, facts.high) if end is not None]
        self._forms[name][key] = StoredForm(
            *key,
            scenes=old.scenes + 1,
            low=min(lows, default=None),
            high=max(highs, default=None),
            pixels=old.pixels + facts.height * facts.width,
            invalid=old.invalid + facts.invalid,
        )

    def _twins(self) -> Iterator[str]:
        """Pictures that are in two splits under two names."""
        found = [scenes for scenes in self._pictures.values() if len({scene.split for scene in scenes}) > 1]
        if found:
            one_each = {scene.split: scene for scene in reversed(found[0])}  # the first of each split
            pair = [scene for scene in found[0] if scene is one_each[scene.split]][:2]
            first = " and ".join(f"{shown(scene.id)} ({scene.split})" for scene in pair)
            name = self.info.modalities[0].name
            yield f"{counted(len(found), 'picture')} of '{name}' in more than one split, such as {first}"


def _of_modality(modality: Modality, forms: tuple[StoredForm, ...]) -> Iterator[str]:
    """Warnings about one modality's files."""
    name = modality.name
    if len(forms) > 1:
        counts = ", ".join(f"{form.scenes} of {form.dtype} in {counted(form.channels, 'channel')}" for form in forms)
        scaled = "each is scaled by its own dtype" if modality.scale is None else "all are scaled in the same way"
        yield f"'{name}' is stored in several ways ({counts}); {scaled}"
    elif any(form.channels == 4 for form in forms) and modality.channels is None and modality.bands is None:
        yield f"'{name}' has an alpha channel, which is dropped"
    for form in forms:
        if form.low is None or form.high is None:
            continue
        if form.low == form.high:
            yield f"'{name}' contains only {form.low:g}"
        elif form.dtype == "uint16" and form.high <= BYTE and modality.scale is None:
            yield (
                f"'{name}' is stored in 16 bits, but no value is above {form.high:g}: divided by 65535 it is nearly "
                "black; set its 'scale' in dataset.json"
            )


def _some(paths: list[str]) -> str:
    """``3 files (such as a.png) have`` or ``a.png has``."""
    return f"{shown(paths[0])} has" if len(paths) == 1 else f"{len(paths)} files (such as {shown(paths[0])}) have"


@dataclass(frozen=True)
class CheckReport:
    """The result of a check."""

    dataset: str
    root: Path
    scenes: tuple[Scene, ...]
    """All scenes; with ``drop_incomplete`` only the usable ones."""
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    problems: tuple[Problem, ...]
    """Empty if the whole data set can be used."""
    warnings: tuple[str, ...]
    pixels: dict[str, tuple[int, ...]]
    """Split → labeled pixels per class, and then the ignored ones."""
    stored: dict[str, tuple[StoredForm, ...]] = field(default_factory=dict)
    """Modality → the forms of its files, the most common first."""
    dropped: tuple[Dropped, ...] = ()
    published: dict[str, int] = field(default_factory=dict)
    """Scenes per split as published; empty for the user's own data sets."""
    notes: tuple[str, ...] = ()
    """Assumptions made before the check; already printed."""
    remarks: tuple[str, ...] = ()
    """Remarks for information, which need no action."""
    strays: Problem | None = None
    """Files in the data set's folders that belong to no scene."""
    offsets: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """For files that pair by time: sensor (and ``labels``) → nanoseconds after the first sensor, one per scene."""
    laws: Laws = field(default_factory=dict)
    """The checked laws: every scene is in the result or listed as left out."""

    @property
    def splits(self) -> dict[str, int]:
        """Scenes per split."""
        return count_splits(self.scenes)

    def to_json(self) -> dict[str, Any]:
        """The facts under the keys of ``memorysam prepare --json``."""
        strays = self.strays or Problem("stray", 0, ())
        return {
            "dataset": self.dataset,
            "root": str(self.root),
            "scenes": len(self.scenes),
            "splits": self.splits,
            "published": self.published,
            "modalities": list(self.modalities),
            "stored": {name: [form.to_json() for form in forms] for name, forms in self.stored.items()},
            "classes": len(self.classes),
            "pixels": {split: list(counts) for split, counts in self.pixels.items()},
            "problems": [problem.to_json() for problem in self.problems],
            "dropped": len(self.dropped),
            "strays": {"count": strays.count, "first": list(strays.first)},
            "offsets": {
                name: {
                    "pairs": len(each),
                    "least_ms": min(each) / 1e6,
                    "median_ms": median(each) / 1e6,
                    "most_ms": max(each) / 1e6,
                }
                for name, each in self.offsets.items()
            },
            "laws": self.laws,
            "warnings": [*self.notes, *self.remarks, *self.warnings],
        }
