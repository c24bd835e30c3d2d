"""Class lists: a name per line, optionally with a color and a label value; also CamVid's and CVAT's files.

Classes without a color get one that can be distinguished by everybody, also with color blindness.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from memorysam_cli.data import decode
from memorysam_cli.dataset import IGNORE, RAW_VALUES, Color, LabelRule
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import documents, images
from memorysam_cli.text import counted, shown

_LEVELS = 9
"""Steps of red, green and blue, from which colors are chosen."""
VISIONS: dict[str, NDArray[np.float64]] = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
"""Matrices for how linear red, green and blue are seen. Source: Machado, Oliveira and Fernandes 2009, severity 1."""
_VALUE = re.compile(r"(\d{1,5})\s*:\s*")
_HEX = re.compile(r"(?:^|[\s,;]+)#([0-9a-fA-F]{6})$")
_RGB = re.compile(r"[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})$")
_CVAT = re.compile(r"(.+?)\s*:\s*(\d{1,3}),\s*(\d{1,3}),\s*(\d{1,3})\s*:[^:]*:[^:]*")
"""``label:color_rgb:parts:actions``, a line of CVAT's and Datumaro's ``labelmap.txt``."""
_WORDS = {
    "name": "name names class classes class_name label labels label_name category",
    "value": "id idx index value class_id label_id class_index",
    "red": "r red", "green": "g green", "blue": "b blue",
    "color": "color colour hex rgb color_rgb",
}  # fmt: skip
"""The meaning of words in a header line, such as CamVid's ``name,r,g,b``."""
_MEANINGS = {word: meaning for meaning, words in _WORDS.items() for word in words.split()}
_DELIMITERS = ",;\t"

Row = tuple[int | None, str, Color | None]
"""Value, name and color of a class."""


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, in the order of their numbers."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    has_colors: bool
    """Whether the colors are from the file."""
    mapping: tuple[tuple[int, int], ...]
    """(value in the label files, class), if the file gives values."""


def read_classes(path: Path, *, is_safe: bool = False) -> ClassList:
    """Read a class list.

    Args:
        path: of the file.
        is_safe: use colors that can be distinguished with color blindness instead of the file's own.

    Each line is ``name``, ``name r g b`` or ``name #rrggbb``, with ``value:`` in front if the label files do not have
    0, 1, 2, …. Empty lines and lines that begin with ``#`` are skipped. A first line such as ``name,r,g,b`` (CamVid's
    ``class_dict.csv``) names the columns of the others. Lines of CVAT's ``labelmap.txt`` are also read. A ``.json`` has
    the form that ``predict`` and ``convert`` write beside masks: a list of ``id``, ``name`` and ``color``.

    Raises:
        UsageError: ``file:line`` and the problem; or no class, more than 255, a name, color or value twice.
    """
    rows = _rows_of_json(path) if path.suffix.lower() == ".json" else _rows(path)
    if not 0 < len(rows) <= IGNORE:
        raise UsageError(f"{path}: {counted(len(rows), 'class')}; from 1 to {IGNORE} are possible, one per line")
    values, names, colors = zip(*rows, strict=True)
    for what, items in (("name", names), ("color", colors), ("value", values)):
        given = [item for item in items if item is not None]
        twice = next((item for item in given if given.count(item) > 1), None)
        if twice is not None:
            raise UsageError(f"{path}: the {what} '{twice}' is given to two classes")
        if 0 < len(given) < len(items):
            raise UsageError(f"{path}: '{names[items.index(None)]}' has no {what}, others have; give all or none")
    has_colors = colors[0] is not None
    return ClassList(
        names=names,
        palette=colors if has_colors and not is_safe else safe_palette(len(rows)),
        has_colors=has_colors,
        mapping=() if values[0] is None else tuple(zip(values, range(len(values)), strict=True)),
    )


def _rows(path: Path) -> list[Row]:
    """The classes of a text, in its order."""
    lines = documents.read_text(path, kind=UsageError, option="--classes").splitlines()
    entries = [(f"{path}:{number}", line.strip()) for number, line in enumerate(lines, 1)]
    entries = [(where, line) for where, line in entries if line and not line.startswith("#")]
    columns = _columns(entries[0][1]) if entries else []
    return [
        _row_of_columns(line, columns, where=where) if columns else _row(line, where=where)
        for where, line in entries[bool(columns) :]
    ]


def _rows_of_json(path: Path) -> list[Row]:
    """The classes of a ``classes.json``, in its order."""
    data = documents.read_bytes(path, kind=UsageError, limit=documents.MAX_BYTES, option="--classes")
    try:
        rows: list[Any] = [
            (entry["id"], entry["name"], tuple(entry["color"])) for entry in documents.parse_json(data, where="")
        ]
        are_right = all(
            type(value) is int and 0 <= value < RAW_VALUES and isinstance(name, str) and name.strip()
            and len(color) == len("RGB") and all(type(part) is int and 0 <= part <= 255 for part in color)
            for value, name, color in rows
        )  # fmt: skip
    except (DataError, TypeError, LookupError):
        rows, are_right = [], False
    if not are_right:
        raise UsageError(
            f"--classes {shown(path)}: must be a list of objects with 'id', 'name' and 'color' (three numbers to 255), "
            "as predict and convert write it; or a text with a class per line"
        )
    return rows


def classes_of_values(root: Path, paths: Sequence[str], *, ignored: Sequence[int] | None = None) -> ClassList:
    """Classes named after the values in the label files, if there is no class list.

    Args:
        root: the data root.
        paths: all labels; the check reports unreadable ones.
        ignored: values to ignore; None: 255, unless only one other value would be left (masks of 0 and 255).

    Returns:
        Classes ``class_0``, … with the colors of the files' palette, if they have one.

    Raises:
        DataError: no label has class numbers, or they have more than 255.
    """
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as executor:
        found = list(executor.map(lambda path: _values(root / path), paths))
    values = sorted(set().union(*(each for each in found if not isinstance(each, DataError))))
    faults = [each for each in found if isinstance(each, DataError)]
    if faults and not values:
        raise DataError(f"{faults[0]}; --classes gives names, and colors where labels are pictures in colors")
    kept = [value for value in values if value not in (ignored or (IGNORE,))]
    kept = values if ignored is None and len(kept) < 2 else kept
    if not 0 < len(kept) <= IGNORE or kept[0] < 0:
        raise DataError(
            f"{shown(root / paths[0])}: labels hold {len(kept)} values ({', '.join(map(str, kept[:5]))}, …); classes "
            f"are 1 to {IGNORE} whole numbers from 0: give --ignore for those that are none, or other files as --labels"
        )
    return ClassList(
        names=tuple(f"class_{value}" for value in kept),
        palette=_palette_of_files(root, paths, kept) or safe_palette(len(kept)),
        has_colors=False,
        mapping=() if kept == list(range(len(kept))) else tuple((value, index) for index, value in enumerate(kept)),
    )


def _values(path: Path) -> set[int] | DataError:
    """The values of a label, or why it has none."""
    try:
        return {int(value) for value in np.unique(decode.raw_label(path, LabelRule()))}
    except DataError as error:
        return error


def _palette_of_files(root: Path, paths: Sequence[str], values: Sequence[int]) -> tuple[Color, ...]:
    """The palette colors of these values; empty if a value has no own color, or all colors are gray."""
    found: dict[int, Color] = {}
    for path in paths:
        with suppress(DataError):
            if not images.header(root / path).has_palette:
                return ()
            colors, numbers = images.read(root / path), images.read(root / path, as_numbers=True)
            for value in sorted({int(each) for each in np.unique(numbers)} - set(found)):
                pixel = colors[tuple(np.argwhere(numbers == value)[0])]
                red, green, blue = (int(part) for part in np.broadcast_to(pixel, 3))
                found[value] = (red, green, blue)
        if all(value in found for value in values):
            break
    chosen = tuple(found[value] for value in values if value in found)
    is_gray = all(red == green == blue for red, green, blue in chosen)
    return () if is_gray or len(set(chosen)) != len(values) else chosen


def _columns(line: str) -> list[str]:
    """The meaning of each column of a header line, "" for an unknown word; empty if it is not a header."""
    words = [cell.lower().replace(" ", "_").replace("-", "_") for cell in _cells(line)]
    found = [_MEANINGS.get(word, "") for word in words]
    known = [meaning for meaning in found if meaning]
    is_header = "name" in known and len(set(known)) == len(known) and (len(known) > 1 or len(words) == 1)
    return found if is_header else []


def _cells(line: str) -> list[str]:
    """The cells of a line, separated by commas, semicolons or tabs, otherwise by blanks."""
    delimiter = max(_DELIMITERS, key=line.count)
    return [cell.strip(' "') for cell in line.split(delimiter if delimiter in line else None)]


def _row_of_columns(line: str, columns: Sequence[str], *, where: str) -> Row:
    """As :func:`_row`, for a line below a header; a name may contain blanks or delimiters."""
    cells, place = _cells(line), columns.index("name")
    more = len(cells) - len(columns)
    if more < 0:
        raise UsageError(
            f"{where}: {counted(len(cells), 'cell')}, but the header line has {len(columns)}; give each line as many"
        )
    cells[place : place + more + 1] = [" ".join(cells[place : place + more + 1])]
    row = dict(zip(columns, cells, strict=True))
    value = row.get("value")
    if value is not None and not re.fullmatch(r"[0-9]{1,5}", value):
        raise UsageError(f"{where}: a class's value is a whole number from 0 to 65535, not '{value}'")
    parts = [row[part] for part in ("red", "green", "blue") if part in row]
    color = f" {row.get('color', '')}" if not parts else " " + " ".join(parts)
    return _row(f"{'' if value is None else f'{value}: '}{row['name']}{color.rstrip()}", where=where)


def _row(line: str, *, where: str) -> Row:
    """Value, name and color of a line."""
    if cvat := _CVAT.fullmatch(line):
        line = f"{cvat[1]} {cvat[2]} {cvat[3]} {cvat[4]}"
    value = _VALUE.match(line)
    rest = line[value.end() :] if value else line
    color: Sequence[int] | None = None
    if hexadecimal := _HEX.search(rest):
        color, rest = tuple(bytes.fromhex(hexadecimal[1])), rest[: hexadecimal.start()]
    elif numbers := _RGB.search(rest):
        color, rest = tuple(int(number) for number in numbers.groups()), rest[: numbers.start()]
    if color is not None and max(color) > 255:
        raise UsageError(f"{where}: a color is three numbers from 0 to 255, not {' '.join(map(str, color))}")
    if not rest.strip():
        raise UsageError(f"{where}: a class needs a name, such as 'road 128 64 128'")
    found = None if color is None else (color[0], color[1], color[2])
    return (int(value[1]) if value else None), rest.strip(" \t,;"), found


def safe_palette(count: int) -> tuple[Color, ...]:
    """Colors that are easy to distinguish from each other and from black and white, in each of :data:`VISIONS`.

    Each color has the largest distance from all before it (CIELAB, in the vision where this distance is smallest), so
    more classes do not change earlier colors.
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


def appearances(colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The colors as seen in each of :data:`VISIONS`.

    Args:
        colors: (N, 3) sRGB, 0 to 1.

    Returns:
        (visions, N, 3) CIELAB.
    """
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return np.stack([_lab(np.clip(linear @ vision.T, 0, 1)) for vision in VISIONS.values()])


def _lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 3) linear RGB -> (N, 3) CIELAB."""
    lab = cv2.cvtColor(linear.astype(np.float32)[None], cv2.COLOR_LRGB2Lab)  # an image of one row
    return np.asarray(lab[0], np.float64)


def _distance(seen: NDArray[np.float64], index: int) -> NDArray[np.float64]:
    """(visions, N, 3) -> (N,): distance of each color from one of them, in the vision where they are most similar."""
    distance: NDArray[np.float64] = np.linalg.norm(seen - seen[:, index, None], axis=2).min(axis=0)
    return distance
