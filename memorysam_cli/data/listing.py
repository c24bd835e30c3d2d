"""File names: listings, path templates with fields, and which files show the same scene.

First listings: sorted, the same on every file system, without hidden names. Then path templates such as
``img/{condition}/{split}/{frame}_rgb_front.png``, which match whole path components. A field matches inside one
component; ``{split:train|test}`` lists its allowed values. A template can build a path from fields, read the fields of
a path, and find the fields of all files in a folder. Then the pairing of folders without a template.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path, PurePosixPath

from memorysam_cli.errors import DataError, EnvironmentFault, raise_shortage
from memorysam_cli.text import counted, few

LEFTOVERS = {"__MACOSX", "lost+found"}
"""Folders that are skipped: macOS adds one to archives, with the same names for its metadata; repairs of a disk create
one at its root that only its owner can read."""
LABELS = re.compile(
    r"label|mask|annot|semantic|segm|groundtruth|gt(?:$|[0-9]|fine|coarse)|(?:truth|targets?|seg|anno?)$"
)
"""Prefixes of the names of labels; sensors do not have them."""
SHOWN_COLLISIONS = 10
"""Number of pairs of names in a message."""


def subfolders(folder: Path) -> list[str]:
    """The names of the folders directly in a folder, sorted, without hidden ones; none if the folder does not exist.

    Raises:
        EnvironmentFault: it exists but cannot be read.
    """
    return _names(folder, lambda entry: entry.is_dir() and entry.name not in LEFTOVERS)


def files_in(folder: Path) -> list[str]:
    """The names of the files directly inside a folder; otherwise as :func:`subfolders`."""
    return _names(folder, lambda entry: not entry.is_dir())


def _names(folder: Path, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """The names in a folder, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_wanted(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # an unreadable sensor must not count as missing
        raise_shortage(error)
        raise EnvironmentFault(f"{folder}: cannot be listed ({error.strerror}); allow reading there") from error


def relative(folder: Path, root: Path) -> PurePosixPath:
    """``folder`` relative to ``root``, with forward slashes."""
    return PurePosixPath(folder.relative_to(root).as_posix())


def walk(folder: Path, *, must_see: Callable[[str], bool] = lambda _: False) -> Iterator[tuple[str, list[str]]]:
    """Every folder below ``folder`` and itself, as a relative path ("" for itself), with its files' names.

    Links to folders are followed, and each folder is visited once. Unreadable folders are skipped.

    Args:
        folder: where to start.
        must_see: whether a folder, by its relative path, was requested; it is then never skipped.

    Raises:
        EnvironmentFault: a requested folder cannot be read.
    """
    visited: set[Path] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop(0)
        real = (folder / inside).resolve()
        if real in visited:
            continue
        visited.add(real)
        try:
            names, below = files_in(folder / inside), subfolders(folder / inside)
        except EnvironmentFault as error:
            if isinstance(error.__cause__, OSError):
                raise_shortage(error.__cause__)  # all files count: none may be missed because descriptors run out
            if must_see(inside):
                raise
            continue
        yield inside, names
        waiting += [f"{inside}/{name}" if inside else name for name in below]


def sample_names(folder: Path, *, count: int = 2) -> list[str]:
    """The first few files below a folder, as relative paths, for a message."""
    found = (f"{inside}/{name}" if inside else name for inside, names in walk(folder) for name in names)
    return list(islice(found, count))


def may_be_labels(name: str) -> bool:
    """Whether a folder's or file's name is usual for labels: ``gt``, ``masks/``, ``labelIds``, ``ground_truth``."""
    words = re.findall(r"[a-z0-9]+", name.casefold())
    return any(LABELS.match(word) for word in (*words, "".join(words)))


def by_suffix(names: Iterable[str]) -> str:
    """Files by suffix and count, the most common first: ``2 .bmp, 1 .txt, 1 without suffix``; spelled as found, counted
    ignoring case."""
    counts = Counter(PurePosixPath(name).suffix or "without suffix" for name in names)
    return ", ".join(
        f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    )


Fields = dict[str, str]
FIELD = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
ANYTHING = r"[^/\\]+?"
UNSAFE = frozenset({".", ".."})


class Tree:
    """A folder whose listings are read once, for any number of templates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._folders: dict[str, frozenset[str]] = {}
        self._files: dict[str, frozenset[str]] = {}

    def folders(self, inside: str) -> frozenset[str]:
        """The names of the folders in a folder, given relative ("" for the whole); without hidden ones."""
        if inside not in self._folders:
            self._folders[inside] = frozenset(subfolders(self.folder / inside))
        return self._folders[inside]

    def files(self, inside: str) -> frozenset[str]:
        """The names of the files in a folder; without hidden ones."""
        if inside not in self._files:
            self._files[inside] = frozenset(files_in(self.folder / inside))
        return self._files[inside]

    def has(self, path: str) -> bool:
        """Whether a file with this relative path exists."""
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
        """The fields' names, from left to right."""

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    @cached_property
    def _parts(self) -> tuple[tuple[str, re.Pattern[str] | None], ...]:
        """Each component as text, or as a pattern if it has a field."""
        return tuple((part, _pattern(part) if FIELD.search(part) else None) for part in self.text.split("/"))

    @cached_property
    def _format(self) -> str:
        return FIELD.sub(r"{\1}", self.text)

    @cached_property
    def shown(self) -> str:
        """For messages: ``{a,b}`` for a field's allowed values, ``<name>`` for a field with any value."""
        return FIELD.sub(
            lambda match: f"<{match[1]}>" if match[2] is None else f"{{{match[2].replace('|', ',')}}}", self.text
        )

    def fill(self, fields: Mapping[str, str]) -> str:
        """The path for values of all fields."""
        return self._format.format_map(fields)

    def match(self, path: str) -> Fields | None:
        """The fields of a path, or None if the path does not match, or leads out of the folder."""
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
        """The existing folders that may contain such files."""
        return (place for place, _ in self._places(tree, "", 0))

    def is_in(self, tree: Tree) -> bool:
        """Whether such a file or folder exists."""
        last, pattern = self._parts[-1]
        for place, _ in self._places(tree, "", 0):
            names = tree.files(place) | tree.folders(place)
            if last in names if pattern is None else any(pattern.fullmatch(name) for name in names):
                return True
        return False

    def _places(self, tree: Tree, place: str, depth: int) -> Iterator[tuple[str, Fields]]:
        """Every folder that matches the template's folder part, with the fields so far."""
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


Keys = dict[str, str]
"""A file's own name (relative path without suffix) → the name for pairing."""
SEPARATORS = re.compile(r"[_\-. ]")
NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Pairing:
    """Which files of several folders show the same scene."""

    rows: list[dict[str, str]]
    """One entry per scene, sorted: folder → relative path without suffix. A folder may lack files of some scenes."""
    is_by_number: bool = False
    """The files pair by number, not by name; this is reported."""


def pair(sources: Mapping[str, Mapping[str, str]]) -> Pairing:
    """Pair the files of several folders, by their relative paths without suffix.

    If no two folders share a path, the names may contain the sensor's name. ``000050_rgb_front`` and
    ``000050_depth_front`` pair if, after splitting names at ``_ - .`` and blanks, exactly one part is the same within
    each folder, differs between folders, and is not a number. Otherwise ``rgb_0001`` and ``frame1`` pair by their
    numbers, if the names of each folder differ only in numbers and all folders have exactly the same ones. (If one
    folder begins at 0 and another at 1, every scene would be off by one.)

    Args:
        sources: folder → file's relative path without suffix → anything.

    Raises:
        DataError: no file of a folder pairs with any other folder's.
    """
    for is_by_number, keys in _ways(sources):
        if keys and unpaired(keys) is None:
            rows: dict[str, dict[str, str]] = {}
            for folder, names in keys.items():
                for name, key in names.items():
                    rows.setdefault(key, {})[folder] = name
            return Pairing([rows[key] for key in sorted(rows)], is_by_number)
    lonely = unpaired(_exact(sources))
    assert lonely is not None  # else the exact names pair
    other = next(folder for folder in sources if folder != lonely)
    raise DataError(
        f"{lonely}/: none of its files pairs with one of another folder (such as {lonely}/{min(sources[lonely])} and "
        f"{other}/{min(sources[other])}); give the files of one scene the same name in every folder"
    )


def _ways(sources: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[bool, dict[str, Keys]]]:
    """The names for pairing, and whether these are numbers; the safest way first."""
    yield False, _exact(sources)
    yield False, _without_sensor(sources)
    yield True, _by_number(sources)


def _exact(sources: Mapping[str, Mapping[str, str]]) -> dict[str, Keys]:
    """Each file by its own name."""
    return {folder: {name: name for name in files} for folder, files in sources.items()}


def unpaired(keys: Mapping[str, Mapping[str, str]]) -> str | None:
    """A folder that shares nothing with any other, if there are several.

    Args:
        keys: folder → file's own name → the name for pairing.
    """
    for folder, names in keys.items():
        others = {key for other, more in keys.items() if other != folder for key in more.values()}
        if len(keys) > 1 and others.isdisjoint(names.values()):
            return folder
    return None


def _without_sensor(sources: Mapping[str, Mapping[str, str]]) -> dict[str, Keys]:
    """Names without the one part that is the sensor's name; empty if there is no such part."""
    cut = {folder: {name: _parts(name) for name in files} for folder, files in sources.items()}
    if len({len(parts) for names in cut.values() for _, parts in names.values()}) != 1:
        return {}
    # Position → the words there, one for each folder.
    telling: dict[int, set[str]] = {}
    for position, _ in enumerate(next(parts for names in cut.values() for _, parts in names.values())):
        words = [{parts[position] for _, parts in names.values()} for names in cut.values()]
        if all(len(found) == 1 for found in words) and len(set.union(*words)) > 1:
            telling[position] = set.union(*words)
    # A number distinguishes frames, not sensors.
    if len(telling) != 1 or any(word.isdecimal() for found in telling.values() for word in found):
        return {}
    (position,) = telling
    keys = {
        folder: {
            name: "_".join((place, *parts[:position], *parts[position + 1 :])) for name, (place, parts) in names.items()
        }
        for folder, names in cut.items()
    }
    is_injective = all(len(set(names.values())) == len(names) for names in keys.values())
    return keys if is_injective else {}


def _by_number(sources: Mapping[str, Mapping[str, str]]) -> dict[str, Keys]:
    """Names by the numbers that distinguish a folder's files; empty unless these are the same in all folders."""
    keys = {folder: _numbered(files) for folder, files in sources.items()}
    found = [set(names.values()) for names in keys.values()]
    is_injective = all(names and len(set(names.values())) == len(names) for names in keys.values())
    return keys if is_injective and all(each == found[0] for each in found) else {}


def _numbered(names: Iterable[str]) -> Keys:
    """Each name's folder and numbers, without those that are constant; empty if more than numbers differ."""
    places = {name: name.rpartition("/") for name in names}
    if len({NUMBER.sub("#", last) for _, _, last in places.values()}) != 1:
        return {}
    numbers = {name: [int(digits) for digits in NUMBER.findall(last)] for name, (_, _, last) in places.items()}
    columns = list(zip(*numbers.values(), strict=True))
    telling = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    if not telling:
        return {}
    return {
        name: "/".join((places[name][0], *(f"{numbers[name][index]:020}" for index in telling))) for name in numbers
    }


def _parts(name: str) -> tuple[str, list[str]]:
    """The folder of a relative path, and its last name split at separators."""
    place, slash, last = name.rpartition("/")
    return place + slash, SEPARATORS.split(last)


def refuse_collisions(names: Sequence[str]) -> None:
    """Refuse names of scenes whose outputs would be the same file, also on a file system that ignores case.

    Args:
        names: of the scenes, with forward slashes and without a suffix.

    Raises:
        DataError: the first ten pairs and their number; or a name that would leave the output folder.
    """
    owners: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name:
            raise DataError(f"scene {name!r}: is not a name for an output file; rename the scene")
        key = _one_file(f"{path}.png")
        if key in owners:
            pairs.append((owners[key], name))
        owners.setdefault(key, name)
    for name in names:  # `a` is written as a.png, and so `a.png/b` cannot be a file in a folder of that name
        for parent in PurePosixPath(name).parents:
            if _one_file(str(parent)) in owners:
                pairs.append((owners[_one_file(str(parent))], name))
    if pairs:
        listed = few([f"{first!r} and {second!r}" for first, second in pairs], SHOWN_COLLISIONS)
        raise DataError(f"{counted(len(pairs), 'pair')} of scenes would share an output file: {listed}; rename them")


def _one_file(path: str) -> str:
    """Equal for paths that are one file on a file system that ignores case and Unicode form."""
    return unicodedata.normalize("NFC", path).casefold()
