"""``classes.txt``: a name per line, with a colour and a label value where they matter.

Colours for classes that have none: told apart by everybody, those who see no red or no green too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from memorysam_cli.dataset import IGNORE, Colour
from memorysam_cli.errors import UsageError
from memorysam_cli.storage import documents

_LEVELS = 9
"""Steps of red, green and blue among which colours are chosen."""
VISIONS: dict[str, NDArray[np.float64]] = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""How linear red, green and blue are seen. Source: Machado, Oliveira and Fernandes 2009, severity 1."""
_VALUE = re.compile(r"(\d{1,5})\s*:\s*")
_HEX = re.compile(r"(?:^|[\s,;]+)#([0-9a-fA-F]{6})$")
_RGB = re.compile(r"[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})$")


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, in the order of their numbers."""

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    has_colours: bool
    """The colours are the file's, not ours."""
    mapping: tuple[tuple[int, int], ...]
    """(value in the label files, class), if the file gives values."""


def read_classes(path: Path, *, is_safe: bool = False) -> ClassList:
    """Read ``classes.txt``.

    Args:
        path: of the file.
        is_safe: take colours that the colour-blind tell apart in the place of the file's own.

    Each line is ``name``, ``name r g b`` or ``name #rrggbb``, with ``value:`` before it where the label files do not
    hold 0, 1, 2, …; empty lines and lines that begin with ``#`` count for nothing.

    Raises:
        UsageError: ``file:line`` and what is wrong; or no class, more than 255, a name, colour or value twice.
    """
    lines = documents.read_text(path, kind=UsageError, option="--classes").splitlines()
    entries = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    rows = [_row(line, where=f"{path}:{number}") for number, line in entries if line and not line.startswith("#")]
    if not 0 < len(rows) <= IGNORE:
        raise UsageError(f"{path}: {len(rows)} classes; from 1 to {IGNORE} are possible, one per line")
    values, names, colours = zip(*rows, strict=True)
    for what, items in (("name", names), ("colour", colours), ("value", values)):
        given = [item for item in items if item is not None]
        twice = next((item for item in given if given.count(item) > 1), None)
        if twice is not None:
            raise UsageError(f"{path}: the {what} '{twice}' is given to two classes")
        if 0 < len(given) < len(items):
            raise UsageError(f"{path}: '{names[items.index(None)]}' has no {what}, others have; give all or none")
    has_colours = colours[0] is not None
    return ClassList(
        names=names,
        palette=colours if has_colours and not is_safe else safe_palette(len(rows)),
        has_colours=has_colours,
        mapping=() if values[0] is None else tuple(zip(values, range(len(values)), strict=True)),
    )


def _row(line: str, *, where: str) -> tuple[int | None, str, Colour | None]:
    """Value, name and colour of a line."""
    value = _VALUE.match(line)
    rest = line[value.end() :] if value else line
    colour: Sequence[int] | None = None
    if hexadecimal := _HEX.search(rest):
        colour, rest = tuple(bytes.fromhex(hexadecimal[1])), rest[: hexadecimal.start()]
    elif numbers := _RGB.search(rest):
        colour, rest = tuple(int(number) for number in numbers.groups()), rest[: numbers.start()]
    if colour is not None and max(colour) > 255:
        raise UsageError(f"{where}: a colour is three numbers from 0 to 255, not {' '.join(map(str, colour))}")
    if not rest.strip():
        raise UsageError(f"{where}: a class needs a name, such as 'road 128 64 128'")
    found = None if colour is None else (colour[0], colour[1], colour[2])
    return (int(value[1]) if value else None), rest.strip(" \t,;"), found


def safe_palette(count: int) -> tuple[Colour, ...]:
    """Colours that are easily told apart, from each other and from black and white, in each of :data:`VISIONS`.

    Each is the one that is farthest (CIELAB distance, in the vision where it is nearest) from all before it, so that
    more classes change no colour.
    """
    steps = np.linspace(0, 1, _LEVELS)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = appearances(grid)
    nearest = np.minimum(_distance(seen, 0), _distance(seen, -1))
    chosen = []
    for _ in range(count):
        best = int(np.argmax(nearest))
        red, green, blue = (int(value) for value in np.rint(grid[best] * 255))
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, _distance(seen, best))
    return tuple(chosen)


def appearances(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """How colours look in each of :data:`VISIONS`.

    Args:
        colours: (N, 3) sRGB, 0 to 1.

    Returns:
        (visions, N, 3) CIELAB.
    """
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return np.stack([_lab(np.clip(linear @ vision.T, 0, 1)) for vision in VISIONS.values()])


def _lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) linear RGB -> (N, 3) CIELAB."""
    lab = cv2.cvtColor(linear.astype(np.float32)[None], cv2.COLOR_LRGB2Lab)  # an image of one row
    return np.asarray(lab[0], np.float64)


def _distance(seen: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """(visions, N, 3) -> (N,): how far each colour is from one of them, where they look most alike."""
    distance: NDArray[np.float64] = np.linalg.norm(seen - seen[:, index, None], axis=2).min(axis=0)
    return distance
