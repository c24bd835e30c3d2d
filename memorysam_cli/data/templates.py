"""Path templates such as ``img/{condition}/{split}/{frame}_rgb_front.png``: whole path components, nothing else.

A field matches inside one component; ``{split:train|test}`` says what it may be. A template that knows its fields gives
a path, a path gives its fields back, and a folder gives all the fields that it has a file for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path

from memorysam_cli.data.listing import files_in, subfolders

Fields = dict[str, str]

FIELD = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
ANYTHING = r"[^/\\]+?"
UNSAFE = frozenset({".", ".."})


class Tree:
    """A folder whose listings are read once, however many templates are looked for in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._folders: dict[str, frozenset[str]] = {}
        self._files: dict[str, frozenset[str]] = {}

    def folders(self, inside: str) -> frozenset[str]:
        """The names of the folders in a folder, which is relative ("" for the whole); hidden ones left out."""
        if inside not in self._folders:
            self._folders[inside] = frozenset(subfolders(self.folder / inside))
        return self._folders[inside]

    def files(self, inside: str) -> frozenset[str]:
        """The names of the files in a folder; hidden ones left out."""
        if inside not in self._files:
            self._files[inside] = frozenset(files_in(self.folder / inside))
        return self._files[inside]

    def has(self, path: str) -> bool:
        """Whether there is a file of this relative path."""
        place, _, name = path.rpartition("/")
        return name in self.files(place)


@cache
def compiled(text: str) -> Template:
    """The template of a text, compiled once."""
    return Template(text)


class Template:
    """A path with fields, relative to a data set's folder, with forward slashes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fields: tuple[str, ...] = tuple(match[1] for match in FIELD.finditer(text))
        """Their names, from left to right."""

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    @cached_property
    def _parts(self) -> tuple[tuple[str, re.Pattern[str] | None], ...]:
        """Each component as text, and as a pattern where it has a field."""
        return tuple((part, _pattern(part) if FIELD.search(part) else None) for part in self.text.split("/"))

    @cached_property
    def _format(self) -> str:
        return FIELD.sub(r"{\1}", self.text)

    @cached_property
    def shown(self) -> str:
        """For people: ``{a,b}`` for what a field may be, ``<name>`` for one that may be anything."""
        return FIELD.sub(
            lambda match: f"<{match[1]}>" if match[2] is None else f"{{{match[2].replace('|', ',')}}}", self.text
        )

    def fill(self, fields: Mapping[str, str]) -> str:
        """The path for all the template's fields."""
        return self._format.format_map(fields)

    def match(self, path: str) -> Fields | None:
        """The fields of a path, or None if the path is not of this form, or leads out of the folder."""
        names = path.split("/")
        if len(names) != len(self._parts):
            return None
        found: Fields = {}
        for (text, pattern), name in zip(self._parts, names, strict=True):
            if pattern is None:
                if name != text:
                    return None
                continue
            match = pattern.fullmatch(name)
            if match is None or name in UNSAFE:
                return None
            found |= match.groupdict()
        return found

    def found_in(self, tree: Tree) -> Iterator[Fields]:
        """The fields of every file of this form, in no particular order."""
        last, last_pattern = self._parts[-1]
        for place, fields in self._places(tree, "", 0):
            if last_pattern is None:
                if last in tree.files(place):
                    yield fields
                continue
            for name in tree.files(place):
                match = last_pattern.fullmatch(name)
                if match is not None:
                    yield {**fields, **match.groupdict()}

    def folders_in(self, tree: Tree) -> Iterator[str]:
        """The folders in which files of this form may lie, as far as they exist."""
        return (place for place, _ in self._places(tree, "", 0))

    def is_in(self, tree: Tree) -> bool:
        """Whether a file or a folder of this form exists."""
        last, pattern = self._parts[-1]
        for place, _ in self._places(tree, "", 0):
            names = tree.files(place) | tree.folders(place)
            if last in names if pattern is None else any(pattern.fullmatch(name) for name in names):
                return True
        return False

    def _places(self, tree: Tree, place: str, depth: int) -> Iterator[tuple[str, Fields]]:
        """Every folder that the template's folder part names, with the fields so far."""
        if depth == len(self._parts) - 1:
            yield place, {}
            return
        text, pattern = self._parts[depth]
        for name in tree.folders(place):
            match = None if pattern is None else pattern.fullmatch(name)
            if match is None if pattern is not None else name != text:
                continue
            mine = match.groupdict() if match is not None else {}
            for below, fields in self._places(tree, f"{place}/{name}" if place else name, depth + 1):
                yield below, {**mine, **fields}


def _pattern(part: str) -> re.Pattern[str]:
    """One component as a regular expression with a group for each field."""
    pieces, end = [], 0
    for match in FIELD.finditer(part):
        pieces += [re.escape(part[end : match.start()]), f"(?P<{match[1]}>{match[2] or ANYTHING})"]
        end = match.end()
    return re.compile("".join(pieces) + re.escape(part[end:]))
