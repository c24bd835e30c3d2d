"""Patterns such as ``images/**/*_rgb.png`` or ``{split}/depth/*.png``: which files they match, and with what.

What the wildcards matched is the key by which the files of several sensors pair.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from memorysam_cli.data.listing import sample_names, walk
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage.images import SUFFIXES

SPLIT = "{split}"
OURS = "memorysam"
"""The folder of the manifests below a data root; never data."""
_WILD = re.compile(r"\*\*/|[*?]+|\{split\}")


@dataclass(frozen=True)
class Match:
    """One file that a pattern matched."""

    path: str
    """Relative to the data root, with forward slashes."""
    key: str
    """What the wildcards matched, joined by ``/``, without the file's suffix."""
    split: str | None
    """What ``{split}`` matched, if the pattern has it."""
    parts: tuple[str, ...]
    """What each wildcard matched, in the pattern's order."""


@dataclass(frozen=True)
class Pattern:
    """A pattern relative to the data root.

    ``*`` stands for any part of one name, ``?`` for one letter, ``**/`` for any folders or none, ``{split}`` for a
    name that is the scene's split. Hidden files, and the folder of the manifests, are never matched.

    Raises:
        UsageError: it leads out of the root, or has no wildcard.
    """

    text: str
    """Such as ``images/*.png``."""

    def __post_init__(self) -> None:
        where = f"pattern '{self.text}'"
        names = self.text.split("/")
        if not self.text or self.text.startswith("/") or "\\" in self.text or {"", ".", ".."} & set(names):
            raise UsageError(f"{where}: must be a path below ROOT with forward slashes, such as images/*.png")
        if any("**" in name and name != "**" for name in names) or names[-1] == "**":
            raise UsageError(f"{where}: '**' stands for whole folders, such as images/**/*.png")
        if not {"*", "?"} & set(self.text):
            raise UsageError(f"{where}: has no * to tell scenes apart, such as images/*.png or */rgb.png")

    @property
    def has_split(self) -> bool:
        """Whether the files' places tell their splits."""
        return SPLIT in self.text

    @property
    def folder(self) -> str:
        """The deepest folder that the pattern fixes; ``""`` for the root."""
        names = self.text.split("/")[:-1]
        wild = next((index for index, name in enumerate(names) if _WILD.search(f"{name}/")), len(names))
        return "/".join(names[:wild])

    def find(self, root: Path) -> list[Match]:
        """The files that match, sorted by path.

        Raises:
            DataError: none does (names two files that are there), or two files have one key.
        """
        found = sorted(self._matches(root), key=lambda match: match.path)
        if not found:
            place = root / self.folder
            seen = ", ".join(sample_names(place)) or ("no file" if place.is_dir() else "no such folder")
            raise DataError(f"{root}: no file matches '{self.text}' (saw in {self.folder or '.'}/: {seen})")
        first: dict[tuple[str | None, str], str] = {}
        for match in found:
            other = first.setdefault((match.split, match.key), match.path)
            if other != match.path:
                raise DataError(
                    f"{root}: '{self.text}' matches {other} and {match.path}, which would be one scene '{match.key}'; "
                    "write the suffix into the pattern, or move one"
                )
        return found

    def filled(self, parts: tuple[str, ...], split: str | None) -> str:
        """The path that another pattern's match lets expect; the pattern itself where that cannot be told."""
        rest = iter(parts)
        if sum(wild != SPLIT for wild in _WILD.findall(self.text)) != len(parts) or (self.has_split and split is None):
            return self.text
        return _WILD.sub(lambda wild: str(split) if wild[0] == SPLIT else next(rest), self.text)

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        """The pattern for relative paths; the split is a named group, met again it must be the same."""
        pieces, position, is_known = [], 0, False
        for wild in _WILD.finditer(self.text):
            pieces.append(re.escape(self.text[position : wild.start()]))
            pieces.append(_regex_of(wild[0], is_known=is_known))
            is_known |= wild[0] == SPLIT
            position = wild.end()
        return re.compile("".join([*pieces, re.escape(self.text[position:])]))

    def _matches(self, root: Path) -> Iterator[Match]:
        """Every readable file that matches, in no order."""
        top = self.folder
        for inside, names in walk(root / top):
            place = "/".join(part for part in (top, inside) if part)
            if place.split("/")[0] == OURS:
                continue
            for name in names:
                path = f"{place}/{name}" if place else name
                match = self._regex.fullmatch(path) if path.lower().endswith(SUFFIXES) else None
                if match is not None:
                    split_at = self._regex.groupindex.get("split")
                    groups = [(index, part or "") for index, part in enumerate(match.groups(), 1)]
                    parts = tuple(part for index, part in groups if index != split_at)
                    yield Match(path, self._key(parts), match["split"] if split_at else None, parts)

    def _key(self, parts: tuple[str, ...]) -> str:
        """The wildcards' parts as one name; a suffix that a wildcard matched tells nothing."""
        if self.text.endswith(".*"):
            parts = parts[:-1]
        key = "/".join(part.strip("/") for part in parts if part.strip("/"))
        suffix = PurePosixPath(key).suffix
        ends_wild = self.text.endswith(("*", "?"))
        return key.removesuffix(suffix) if ends_wild and suffix.lower() in SUFFIXES else key


def _regex_of(wild: str, *, is_known: bool) -> str:
    """What a wildcard matches, as one group: ``????`` and ``*`` may match the same text.

    Args:
        wild: ``**/``, ``{split}``, or a run of ``*`` and ``?``.
        is_known: the split was met before.
    """
    if wild == SPLIT:
        return "(?P=split)" if is_known else "(?P<split>[^/]+)"
    if wild == "**/":
        return "((?:[^/]+/)*)"
    return "(" + wild.replace("?", "[^/]").replace("*", "[^/]*") + ")"
