"""Which files belong together and where they belong: patterns, and the division into splits.

A pattern is such as ``images/**/*_rgb.png`` or ``{split}/depth/*.png``; what its wildcards matched is the key by which
the files of several sensors pair. Splits are made by shares, or by lists.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from memorysam_cli.data.listing import sample_names, walk
from memorysam_cli.data.manifest import SPLITS
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import documents
from memorysam_cli.storage.images import SUFFIXES

SPLIT = "{split}"
OURS = "memorysam"
"""The folder of the manifests below a data root; never data."""
_WILD = re.compile(r"\*\*/|[*?]+|\{split\}")
Shares = tuple[float, float, float]
"""Of train, val and test; they sum to 1."""


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


def read_shares(text: str) -> Shares:
    """Shares such as ``0.8/0.1/0.1`` or ``80/20``.

    Raises:
        UsageError: not two or three numbers, one of them negative, train or val nothing.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    total = sum(numbers)
    is_whole = abs(total - 1) < 1e-6 or abs(total - 100) < 1e-4
    if len(numbers) not in (2, 3) or not is_whole or min(numbers) < 0 or min(numbers[:2]) == 0:
        raise UsageError(
            f"--split {text}: give the shares of train, val and test, such as 0.8/0.1/0.1 or 0.9/0.1, or a list of "
            "scenes for each split, such as --split train=train.txt --split val=val.txt"
        )
    train, val, test = (number / total for number in (*numbers, 0.0)[:3])
    return train, val, test


def split_by_shares(names: Sequence[str], shares: Shares, *, seed: int) -> dict[str, str]:
    """Name → split, by a hash of seed and name.

    A scene keeps its split when others come or go. Where a split would get no scene, it gets the one whose hash is
    nearest to its part of [0, 1); with two scenes, there is no test split.

    Raises:
        DataError: fewer than two scenes.
    """
    if len(names) < 2:
        raise DataError(f"{len(names)} labelled scene: cannot be divided into train and val; label at least two")
    places = {name: _place(name, seed) for name in names}
    first, second = shares[0], shares[0] + shares[1]
    found = {
        name: "train" if place < first else "val" if place < second or shares[2] == 0 else "test"
        for name, place in places.items()
    }
    for split, low, high in (("val", first, second), ("train", 0.0, first), ("test", second, 1.0)):
        counts = Counter(found.values())
        # A scene of a split that can spare one; for a test split alone, train and val are not given up.
        spare = [name for name in names if counts[found[name]] > 1 or (found[name] == "test" and split != "test")]
        if counts[split] == 0 and low < high and spare:
            middle = (low + high) / 2
            found[min(spare, key=lambda name: (abs(places[name] - middle), name))] = split
    return found


def split_by_lists(known: Mapping[str, Sequence[str]], lists: Mapping[str, Path]) -> dict[str, str]:
    """Scene → split, by files that list scenes.

    Args:
        known: scene id → the paths of its files below the data root.
        lists: split → a text file; the first word of each line is a scene's id, a file of it, or the last part of
            either if that says which; empty lines and lines that begin with ``#`` count for nothing.

    Returns:
        Scenes that no list names are left out.

    Raises:
        UsageError: a list cannot be read.
        DataError: a list is empty, a line names no scene, or several, or a scene is in two lists; ``file:line``.
    """
    names = _names(known)
    found: dict[str, tuple[str, str]] = {}
    for split, path in lists.items():
        lines = _lines(path)
        if not lines:
            raise DataError(f"{path}: names no scene for '{split}'; write one per line, or leave the list out")
        for number, line in lines:
            where, word = f"{path}:{number}", line.split()[0]
            # Some lists name the label in a second word; a name may as well hold blanks.
            scenes = names.get(_bare(line)) or names.get(_bare(word), set())
            if len(scenes) != 1:
                why = "is no scene" if not scenes else f"may be {' or '.join(sorted(scenes)[:3])}"
                raise DataError(f"{where}: '{word}' {why} (a scene is called, for example, {next(iter(known))})")
            (scene,) = scenes
            before, place = found.setdefault(scene, (split, where))
            if before != split:
                raise DataError(f"{where}: scene '{scene}' is in '{before}' already ({place}); remove it from one list")
    return {scene: split for scene, (split, _) in found.items()}


def splits_in_order(splits: Sequence[str]) -> list[str]:
    """train, val, test, then others by name."""
    return sorted(set(splits), key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def _place(name: str, seed: int) -> float:
    """A number in [0, 1) that seed and name alone decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) / 2**64


def _names(known: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """What a line may call a scene → the scenes; whole names go before last parts."""
    whole: dict[str, set[str]] = {}
    short: dict[str, set[str]] = {}
    for scene, paths in known.items():
        for name in {scene, *(_bare(path) for path in paths)}:
            whole.setdefault(name, set()).add(scene)
            short.setdefault(PurePosixPath(name).name, set()).add(scene)
    return short | whole


def _bare(name: str) -> str:
    """Without ``./`` before and an image's suffix behind."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix if suffix.lower() in SUFFIXES else "").removeprefix("./")


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that say something, and their numbers."""
    limit = documents.MAX_JSON_BYTES  # a list of millions of scenes
    lines = documents.read_text(path, kind=UsageError, limit=limit, option="--split").splitlines()
    stripped = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]
