"""Patterns of the files of sensors and labels, and the division into splits.

A pattern is such as ``images/**/*_rgb.png`` or ``{split}/depth/*.png``. Files of several sensors pair by the text that
the wildcards match. Splits are made by shares, or by lists.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from memorysam_cli.data.listing import by_suffix, pair, sample_names, subfolders, walk
from memorysam_cli.data.manifest import SPLITS
from memorysam_cli.errors import DataError, UsageError, did_you_mean
from memorysam_cli.storage import documents
from memorysam_cli.storage.images import SUFFIXES
from memorysam_cli.text import counted, shown

SPLIT = "{split}"
OURS = "memorysam"
"""The folder of the manifests below a data root; it has no data."""
TEXTS = {".txt", ".csv", ".json", ".jsonl", ".yaml", ".yml", ".md"}
"""Suffixes of class lists, split lists and notes, which are expected in the data root itself."""
_WILD = re.compile(r"\*\*/|[*?]+|\{split\}")
Shares = tuple[float, float, float]
"""Shares of train, val and test; their sum is 1."""


@dataclass(frozen=True)
class Match:
    """A file that matches a pattern."""

    path: str
    """Path relative to the data root, with forward slashes."""
    key: str
    """The text of all wildcards, joined by ``/``, without the file's suffix."""
    split: str | None
    """The text of ``{split}``, if the pattern has it."""
    parts: tuple[str, ...]
    """The text of each wildcard, in the pattern's order."""
    places: tuple[str, ...] = ()
    """Those of the wildcards in folders, not in the file's own name."""


@dataclass(frozen=True)
class Pattern:
    """A pattern relative to the data root.

    ``*`` means any part of one name, ``?`` one letter, ``**/`` any number of folders, ``{split}`` a name that is the
    scene's split. A suffix matches in upper and lower case. Hidden files and the folder of the manifests never match.

    Raises:
        UsageError: it leads out of the root, or has no wildcard.
    """

    text: str
    """The pattern, such as ``images/*.png``."""

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
        """Whether the files' paths contain their splits."""
        return SPLIT in self.text

    @property
    def folder(self) -> str:
        """The deepest fixed folder of the pattern; ``""`` for the root."""
        names = self.text.split("/")[:-1]
        wild = next((index for index, name in enumerate(names) if _WILD.search(f"{name}/")), len(names))
        return "/".join(names[:wild])

    def find(self, root: Path) -> list[Match]:
        """The files that match, sorted by path.

        Raises:
            DataError: none does (the message names two existing files), or two files have the same key.
        """
        found = sorted(self._matches(root), key=lambda match: match.path)
        if not found:
            raise DataError(f"{shown(root)}: no file matches '{self.text}' ({self._why_none(root)})")
        first: dict[tuple[str | None, str], str] = {}
        for match in found:
            other = first.setdefault((match.split, match.key), match.path)
            if other != match.path:
                suffixes = {PurePosixPath(path).suffix.lower() for path in (other, match.path)}
                remedy = "write the suffix into the pattern, or move one" if len(suffixes) > 1 else "move one"
                raise DataError(
                    f"{shown(root)}: '{self.text}' matches {shown(other)} and {shown(match.path)}, which would be one "
                    f"scene '{shown(match.key)}'; {remedy}"
                )
        return found

    def match(self, path: str) -> Match | None:
        """The wildcards' text in a path below the root, if it matches."""
        match = self._regex.fullmatch(path)
        if match is None:
            return None
        split_at = self._regex.groupindex.get("split")
        groups = [(index, part or "") for index, part in enumerate(match.groups(), 1)]
        parts = tuple(part for index, part in groups if index != split_at)
        folder_wilds = sum(wild != SPLIT for wild in _WILD.findall(self.text[: self.text.rfind("/") + 1]))
        places = tuple(part.strip("/") for part in parts[:folder_wilds] if part)
        return Match(path, self._key(parts), match["split"] if split_at else None, parts, places)

    def filled(self, parts: tuple[str, ...], split: str | None) -> str:
        """The expected path for another pattern's match; the pattern itself if it cannot be known."""
        rest = iter(parts)
        if sum(wild != SPLIT for wild in _WILD.findall(self.text)) != len(parts) or (self.has_split and split is None):
            return self.text
        return _WILD.sub(lambda wild: str(split) if wild[0] == SPLIT else next(rest), self.text)

    def narrowed(self, found: Iterable[Match]) -> Pattern | None:
        """A pattern for the same files with the common part of their names: ``rgb/*.png`` as ``rgb/rgb_*.png``.

        Args:
            found: matches of this pattern.

        Returns:
            None if there is no common part, or if the last name is not one ``*`` and a suffix.
        """
        folder, slash, last = self.text.rpartition("/")
        if len(_WILD.findall(last)) != 1 or last.endswith(("*", "?")):
            return None
        parts = [match.parts[-1] for match in found]
        # Common digits at the start or end may distinguish frames in another folder.
        before = _beginning(parts).rstrip("0123456789")
        after = _beginning([part[len(before) :][::-1] for part in parts])[::-1].lstrip("0123456789")
        if not before + after or set("*?{}") & set(before + after) or any(part == before + after for part in parts):
            return None
        return Pattern(folder + slash + _WILD.sub(lambda wild: before + wild[0] + after, last))

    def covers(self, place: str) -> bool:
        """Whether files of a folder could match, judged by the folder's path relative to the root."""
        folder, slash, _ = self.text.rpartition("/")
        return re.fullmatch(_expression(folder + slash), f"{place}/" if place else "") is not None

    def is_near(self, path: str) -> bool:
        """Whether a file would match if upper and lower case were ignored."""
        return self._loose.fullmatch(path) is not None

    def _why_none(self, root: Path) -> str:
        """The existing files, for the message if none matches."""
        place = root / self.folder
        if not place.is_dir():
            others = subfolders(root)
            return f"{self.folder}/: no such folder{did_you_mean(self.folder, others) if others else ''}"
        paths = [path for _, path in self.files(root)]
        unread = [path for path in paths if self._regex.fullmatch(path)]
        if unread:
            return f"{by_suffix(unread)} would, but only these are read: {', '.join(SUFFIXES)}; save them as PNG"
        near = [path for path in paths if self._loose.fullmatch(path)]
        if near:
            return f"{len(near)} would but for upper and lower case, such as {shown(near[0])}"
        return f"saw in {self.folder or '.'}/: {', '.join(map(shown, sample_names(place))) or 'no file'}"

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        """The pattern for relative paths."""
        return re.compile(_expression(self.text))

    @cached_property
    def _suffix_wilds(self) -> int:
        """Wildcards within the suffix, as in ``*.*`` and ``*.tif*``."""
        suffix = self.text.rpartition("/")[2].rpartition(".")[2] if "." in self.text.rpartition("/")[2] else ""
        is_suffix = any(re.fullmatch(_expression(suffix), known[1:], re.IGNORECASE) for known in SUFFIXES)
        return len(_WILD.findall(suffix)) if is_suffix else 0

    @cached_property
    def _loose(self) -> re.Pattern[str]:
        """The same in any case."""
        return re.compile(_expression(self.text), re.IGNORECASE)

    def files(self, root: Path) -> Iterator[tuple[str, str]]:
        """The folder and the path of every file below the fixed folder, relative to the root."""
        top = self.folder
        deepest = math.inf if "**" in self.text else self.text.count("/")

        def may_match(inside: str) -> bool:
            return len(PurePosixPath(top, inside).parts) <= deepest

        for inside, names in walk(root / top, must_see=may_match):
            place = "/".join(part for part in (top, inside) if part)
            if place.split("/")[0] != OURS:
                yield from ((place, f"{place}/{name}" if place else name) for name in names)

    def _matches(self, root: Path) -> Iterator[Match]:
        """Every readable file that matches, in no particular order."""
        for _, path in self.files(root):
            match = self.match(path) if path.lower().endswith(SUFFIXES) else None
            if match is not None:
                yield match

    def _key(self, parts: tuple[str, ...]) -> str:
        """The wildcards' text as one name, without a suffix that a wildcard matched."""
        parts = parts[: len(parts) - self._suffix_wilds]
        key = "/".join(part.strip("/") for part in parts if part.strip("/"))
        suffix = PurePosixPath(key).suffix
        ends_wild = self.text.endswith(("*", "?"))
        return key.removesuffix(suffix) if ends_wild and suffix.lower() in SUFFIXES else key


def not_taken(root: Path, patterns: Iterable[Pattern], taken: Container[str]) -> dict[str, list[str]]:
    """Files in the folders of the patterns that were not used.

    Args:
        root: the data root.
        patterns: all of the request.
        taken: the used files, as paths below the root.

    Returns:
        Fixed folder of a pattern → the other files of its folders, sorted, without text files in the root itself.
    """
    found: dict[str, set[str]] = defaultdict(set)
    known: set[str] = set()
    for pattern in patterns:
        for place, path in pattern.files(root):
            is_text = not place and PurePosixPath(path).suffix.lower() in TEXTS
            if path not in taken and path not in known and not is_text and pattern.covers(place):
                known.add(path)
                found[pattern.folder].add(path)
    return {folder: sorted(paths) for folder, paths in found.items()}


def notes_on_others(root: Path, patterns: Sequence[Pattern], taken: Container[str]) -> list[str]:
    """A line for each folder of patterns with unused files, by suffix and count; see :func:`not_taken`."""
    lines = []
    for folder, paths in not_taken(root, patterns, taken).items():
        near = [path for path in paths if any(pattern.is_near(path) for pattern in patterns)]
        case = f"; {len(near)} would match but for upper and lower case, such as {shown(near[0])}" if near else ""
        such = "" if near else f", such as {shown(paths[0])}"
        files = counted(len(paths), "file", "is")
        lines.append(f"{folder or '.'}/: {files} not taken ({by_suffix(paths)}){such}{case}")
    return lines


Role = str
"""A modality, ``aolp+1`` for an angle's second file, or the labels."""


@dataclass(frozen=True)
class Paired:
    """The matches that show one scene."""

    rows: list[dict[Role, Match]]
    """One row per scene, by the first role's paths; a scene may lack roles."""
    notes: list[str]
    left_out: int
    """Files in no row."""


def pair_by_name(matches: Mapping[Role, Sequence[Match]]) -> Paired:
    """Pair by the wildcards' text; see :func:`~memorysam_cli.data.listing.pair`.

    Raises:
        DataError: no file of a role pairs.
    """
    sources = {role: {pairing_name(match): match for match in found} for role, found in matches.items()}
    pairing = pair({role: dict.fromkeys(found, "") for role, found in sources.items()})
    rows = [{role: sources[role][name] for role, name in row.items()} for row in pairing.rows]
    first = ", ".join(shown(match.path) for match in rows[0].values())
    said = f"files pair by their numbers, which are the same in all folders: {first}"
    return Paired(rows, [said] * pairing.is_by_number, 0)


def pairing_name(match: Match) -> str:
    """The name for pairing a file."""
    return f"{match.split}/{match.key}" if match.split else match.key


def _beginning(texts: Sequence[str]) -> str:
    """The common beginning of all texts."""
    first, last = min(texts), max(texts)
    return first[: next((index for index, letter in enumerate(first) if last[index : index + 1] != letter), None)]


def _expression(text: str) -> str:
    """A pattern or its folder as a regular expression; the split is a named group, and its repetition must be equal."""
    suffix = text.rfind(".", text.rfind("/") + 1)
    pieces, position, is_known = [], 0, False
    for wild in _WILD.finditer(text):
        pieces += [_literal(text, position, wild.start(), suffix=suffix), _regex_of(wild[0], is_known=is_known)]
        is_known |= wild[0] == SPLIT
        position = wild.end()
    return "".join([*pieces, _literal(text, position, len(text), suffix=suffix)])


def _literal(text: str, start: int, end: int, *, suffix: int) -> str:
    """A part of a pattern between wildcards; from the suffix on, in upper and lower case."""
    cut = min(max(start, suffix), end) if suffix >= 0 else end
    loose = f"(?i:{re.escape(text[cut:end])})" if cut < end else ""
    return re.escape(text[start:cut]) + loose


def _regex_of(wild: str, *, is_known: bool) -> str:
    """The expression of a wildcard, as one group: ``????`` and ``*`` may match the same text.

    Args:
        wild: ``**/``, ``{split}``, or a run of ``*`` and ``?``.
        is_known: the split occurred before.
    """
    if wild == SPLIT:
        return "(?P=split)" if is_known else "(?P<split>[^/]+)"
    if wild == "**/":
        return "((?:[^/]+/)*)"
    return "(" + wild.replace("?", "[^/]").replace("*", "[^/]*") + ")"


def read_shares(text: str) -> Shares:
    """Shares such as ``0.8/0.1/0.1`` or ``80/20``.

    Raises:
        UsageError: not two or three numbers, a negative one, or 0 for train or val.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    total = sum(numbers)
    is_whole = abs(total - 1) < 1e-6 or abs(total - 100) < 1e-4
    if len(numbers) not in (2, 3) or not is_whole or min(numbers) < 0 or min(numbers[:2]) == 0:
        wrong = f"they add up to {total:.4g}, not to 1 (or 100); " if numbers and not is_whole else ""
        raise UsageError(
            f"--split {text}: {wrong}give the shares of train, val and test, such as 0.8/0.1/0.1 or 0.9/0.1, or a list "
            "of scenes for each split, such as --split train=train.txt --split val=val.txt"
        )
    train, val, test = (number / total for number in (*numbers, 0.0)[:3])
    return train, val, test


def split_by_shares(names: Sequence[str], shares: Shares, *, seed: int) -> dict[str, str]:
    """Name → split, by a hash of seed and name.

    A scene keeps its split when others are added or removed. A split without a scene gets the one whose hash is nearest
    to its part of [0, 1); with two scenes, there is no test split.

    Raises:
        DataError: fewer than two scenes.
    """
    if len(names) < 2:
        raise DataError(f"{len(names)} labeled scene: cannot be divided into train and val; label at least two")
    places = {name: _place(name, seed) for name in names}
    first, second = shares[0], shares[0] + shares[1]
    found = {
        name: "train" if place < first else "val" if place < second or shares[2] == 0 else "test"
        for name, place in places.items()
    }
    for split, low, high in (("val", first, second), ("train", 0.0, first), ("test", second, 1.0)):
        counts = Counter(found.values())
        # From a split with several scenes; train and val never become empty for a test split.
        spare = [name for name in names if counts[found[name]] > 1 or (found[name] == "test" and split != "test")]
        if counts[split] == 0 and low < high and spare:
            middle = (low + high) / 2
            found[min(spare, key=lambda name: (abs(places[name] - middle), name))] = split
    return found


def split_by_lists(known: Mapping[str, Sequence[str]], lists: Mapping[str, Path]) -> dict[str, str]:
    """Scene → split, by files that list scenes.

    Args:
        known: scene id → the paths of its files below the data root.
        lists: split → a text file. The first word of each line is a scene's id, one of its files, or the last part of
            either if that is unique. Empty lines and lines that begin with ``#`` are skipped.

    Returns:
        The split of each listed scene; other scenes are left out.

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
            # Some lists name the label in a second word; but a name may also contain blanks.
            scenes = names.get(_bare(line)) or names.get(_bare(word), set())
            if len(scenes) != 1:
                why = "is not a scene" if not scenes else f"may be {' or '.join(sorted(scenes)[:3])}"
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
    """A number in [0, 1) that depends only on seed and name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) / 2**64


def _names(known: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Possible names of a scene in a line → the scenes; whole names have priority over last parts."""
    whole: dict[str, set[str]] = {}
    short: dict[str, set[str]] = {}
    for scene, paths in known.items():
        for name in {scene, *(_bare(path) for path in paths)}:
            whole.setdefault(name, set()).add(scene)
            short.setdefault(PurePosixPath(name).name, set()).add(scene)
    return short | whole


def _bare(name: str) -> str:
    """A name without ``./`` in front and an image's suffix at the end."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix if suffix.lower() in SUFFIXES else "").removeprefix("./")


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines with content, and their numbers."""
    limit = documents.MAX_JSON_BYTES  # a list of millions of scenes
    lines = documents.read_text(path, kind=UsageError, limit=limit, option="--split").splitlines()
    stripped = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    return [(number, line) for number, line in stripped if line and not line.startswith("#")]
