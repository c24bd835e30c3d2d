"""``classes.txt``: a name per line, with a colour and a label value where they matter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memorysam_cli.data.own import palettes
from memorysam_cli.dataset import IGNORE, Colour
from memorysam_cli.errors import UsageError

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


def read(path: Path, *, is_safe: bool = False) -> ClassList:
    """Read ``classes.txt``.

    Args:
        path: of the file.
        is_safe: take colours that the colour-blind tell apart in the place of the file's own.

    Each line is ``name``, ``name r g b`` or ``name #rrggbb``, with ``value:`` before it where the label files do not
    hold 0, 1, 2, …; empty lines and lines that begin with ``#`` count for nothing.

    Raises:
        UsageError: ``file:line`` and what is wrong; or no class, more than 255, a name, colour or value twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "not UTF-8 text"
        raise UsageError(f"--classes {path}: {reason}; give a text file with one class per line") from None
    said = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    rows = [_row(line, where=f"{path}:{number}") for number, line in said if line and not line.startswith("#")]
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
        palette=colours if has_colours and not is_safe else palettes.safe(len(rows)),
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
