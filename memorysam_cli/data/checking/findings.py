"""What the check finds in one file, and the memory of it that makes a second run instant.

A file that has the size and the time of its last reading is not read again. Faults are never remembered: a file that
was refused is read anew each time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from memorysam_cli.data import decode
from memorysam_cli.data.checking import histograms
from memorysam_cli.data.manifest import folder
from memorysam_cli.dataset import DatasetInfo, Modality, Strict
from memorysam_cli.errors import DataError, EnvironmentFault
from memorysam_cli.storage import atomic, documents, images
from memorysam_cli.text import shown

CACHE = "checked.jsonl"
"""Beside the manifest."""
VERSION = 1
"""Of what is read off a file; another number, and all files are read again."""


class Facts(Strict):
    """What one file holds; of a modality's file or of a label."""

    height: int
    width: int
    channels: int
    dtype: str
    low: float | None = None
    """The least stored value; None where the header alone was read, and for labels."""
    high: float | None = None
    digest: str = ""
    """Of the pixels of the first modality, so that one picture under two names is noticed."""
    is_turned: bool = False
    """Has an EXIF rotation, which we ignore."""
    pixels: dict[int, int] = Field(default_factory=dict)
    """Class (255: ignored) → pixels, of a label."""


class _Line(Strict):
    """One line of the cache."""

    path: str
    size: int
    mtime_ns: int
    role: str
    """What decides the facts, beside the file."""
    is_whole: bool
    """The file was decoded, not only its header read."""
    facts: Facts


class Reader:
    """Reads files for the check, and remembers what they hold.

    Args:
        root: the data root.
        info: the data set.
        headers_only: do not decode the modalities' files (labels always are).
        max_pixels: larger pictures are refused from their headers.
    """

    def __init__(self, root: Path, info: DatasetInfo, *, headers_only: bool, max_pixels: int) -> None:
        self.root, self.info = root, info
        self.headers_only, self.max_pixels = headers_only, max_pixels
        self._place = folder(root, info.name) / CACHE
        self._old = {(line.path, line.role): line for line in _lines(self._place)}
        self._new: dict[tuple[str, str], _Line] = {}
        self._label_role = f"label {_fingerprint(info)}"

    def frame(self, path: str, modality: Modality) -> Facts:
        """One file of a modality.

        Args:
            path: relative to the root.
            modality: what the file belongs to.

        Raises:
            FileNotFoundError: it is not there.
            DataError: it cannot be used; the message starts with ``path``.
        """
        is_first = modality.name == self.info.modalities[0].name
        role = f"{'first ' if is_first else ''}frame {VERSION} {modality.channels or ''}"
        return self._facts(path, role, "header" if self.headers_only else "frame", modality)

    def label(self, path: str) -> Facts:
        """A label; otherwise as :meth:`frame`."""
        return self._facts(path, self._label_role, "label", None)

    def save(self, *, is_complete: bool) -> None:
        """Write the cache, if anything is new.

        Args:
            is_complete: all files were looked at; what the cache knows of others is forgotten.
        """
        kept = self._new if is_complete else self._old | self._new
        if kept == self._old:
            return
        text = "".join(documents.to_json(kept[key].model_dump(exclude_defaults=True)) + "\n" for key in sorted(kept))
        try:
            atomic.write_text(self._place, text, fsync=False)
        except EnvironmentFault:  # the cache saves time; whether the manifest can be written is told by its writing
            return

    def _facts(
        self, path: str, role: str, how: Literal["header", "frame", "label"], modality: Modality | None
    ) -> Facts:
        """Remembered facts, or those of the file."""
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
            except DataError as fault:
                raise DataError(f"{shown(path)}: {str(fault).removeprefix(f'{shown(self.root / path)}: ')}") from fault
            line = _Line(
                path=path, size=status.st_size, mtime_ns=status.st_mtime_ns, role=role, is_whole=is_whole, facts=facts
            )
        self._new[path, role] = line
        return line.facts

    def _read(self, path: Path, how: Literal["header", "frame", "label"], modality: Modality | None) -> Facts:
        """Look into a file."""
        header = images.header(path)
        images.refuse_size(path, header, max_pixels=self.max_pixels)
        form = Facts(
            height=header.height,
            width=header.width,
            channels=header.channels,
            dtype=header.dtype,
            is_turned=header.is_turned,
        )
        if how == "label":
            label = decode.read_label(
                path,
                self.info.label,
                len(self.info.classes),
                palette=self.info.palette,
                max_pixels=self.max_pixels,
            )
            counts = histograms.of_classes(label)
            if not self.info.label.colours:
                raw = images.read(path, max_pixels=self.max_pixels)
                plane = raw if raw.ndim == len("HW") else raw[:, :, 0]
                histograms.refuse_changed(path, histograms.of_raw(plane, self.info.label), counts)
            return form.model_copy(update={"pixels": counts})
        if how == "header" or modality is None:
            return form
        array = images.read(path, max_pixels=self.max_pixels)
        taken = _taken(array, modality)
        found: dict[str, object] = {"low": float(taken.min()), "high": float(taken.max())}
        if modality.name == self.info.modalities[0].name:
            found["digest"] = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=12).hexdigest()
        return form.model_copy(update=found)


def _taken(array: npt.NDArray[Any], modality: Modality) -> npt.NDArray[Any]:
    """The channels that become the frame: alpha's constant 255 says nothing of the range."""
    if array.ndim < 3:
        return array
    if modality.channels is not None and max(modality.channels) < array.shape[2]:
        return array[:, :, sorted(set(modality.channels))]
    return array[:, :, :3] if array.shape[2] == 4 else array


def _fingerprint(info: DatasetInfo) -> str:
    """What decides how a label is understood."""
    rule = {"label": info.label.model_dump(mode="json"), "classes": len(info.classes), "palette": info.palette}
    return hashlib.sha256(documents.to_json([VERSION, rule]).encode()).hexdigest()[:16]


def _lines(path: Path) -> Iterable[_Line]:
    """The lines of a cache; of a damaged one, those that are whole."""
    try:
        values = documents.read_json_lines(path)
    except DataError:  # there is none, or it is damaged: all files are read again
        return
    for value in values:
        try:
            yield _Line.model_validate(value)
        except ValidationError:
            continue
