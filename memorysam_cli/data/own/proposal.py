"""The proposal of ``memorysam prepare folder DIR`` without a pattern: which files are which sensor, or labels.

Each file gets a role by the word in its folder's name or, if folders do not help, in its own name. Files of one role
become one pattern. The proposal has the form of the options. A tree that can be understood in two ways is refused; the
message shows both.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from memorysam_cli.data.listing import SEPARATORS, by_suffix, may_be_labels, sample_names, walk
from memorysam_cli.data.own.patterns import OURS, SPLIT, Pattern
from memorysam_cli.data.own.sensors import KINDS, told_kinds
from memorysam_cli.dataset import Kind, word_of
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import images
from memorysam_cli.storage.images import SUFFIXES
from memorysam_cli.text import counted, shown, typed

CLASS_FILES = (
    "classes.txt", "classes.csv", "class_dict.csv", "class_names.txt", "labelmap.txt", "labels.txt", "names.txt",
)  # fmt: skip
"""Usual names of class lists in the data root."""
ANGLES = ("sin", "cos")
"""The words for an angle's two parts, in their order."""
SPLIT_FOLDERS = {"train", "val", "test"}
LONG_SPLITS = {"training", "validation", "valid", "testing"}
"""Other usual names of train, val and test."""
LABELS = "(labels)"
"""The name of the labels among sensors, which no sensor can have."""
WRITTEN = (
    {"recipe.yaml", "environment.json"}, {"predictions.jsonl"}, {"report.json", "sheet.png"},
    {"dataset.json", "scenes.jsonl"}, {"proposal.png"},
)  # fmt: skip
"""Files that identify a folder written by memorysam (a run, predictions, a check, a manifest, a proposal), which has no
data."""
RASTERS = (".tif", ".tiff")
MOST = 12
"""Number of channels up to which all are proposed, as four frames; with more, the first three."""
STORED = (1, 3, 4)
"""Numbers of channels that need no option."""


@dataclass(frozen=True)
class Proposal:
    """The roles of files, in the form of the options."""

    modalities: dict[str, str]
    """Name → its pattern, or an angle's two joined by ``+``."""
    kinds: dict[str, Kind]
    """Kinds of sensors whose name does not show it."""
    channels: dict[str, str]
    """Channels of sensors with more than four, counted from 0."""
    bands: dict[str, str]
    """Bands of such rasters, counted from 1."""
    labels: str | None
    classes: Path | None
    files: dict[str, tuple[str, ...]]
    """Sensor, or :data:`LABELS` → its number of files."""
    notes: tuple[str, ...]

    def words(self) -> list[str]:
        """The options that name the same files."""
        found = [word for name, pattern in self.modalities.items() for word in ("--modality", f"{name}={pattern}")]
        found += ["--labels", self.labels] if self.labels else []
        return [*found, *(["--classes", str(self.classes)] if self.classes else [])]


@dataclass(frozen=True)
class _Role:
    """The property that files of one role share."""

    word: str
    """The folder, or the part of a name; "" for none."""
    place: int | None
    """Which of the folders it is; None: it is in the file's own name."""
    is_label: bool = False
    part: str = ""
    """For an angle: ``sin`` or ``cos``."""


def propose(
    root: Path, *, labels: str | None = None, classes: Path | None = None, kinds: Mapping[str, Kind] | None = None
) -> Proposal:
    """Understand a tree.

    Args:
        root: the data root.
        labels: the pattern of the labels, if known.
        classes: the class list, if known; else one of :data:`CLASS_FILES` is used.
        kinds: of sensors, if known.

    Raises:
        DataError: there is no picture below the root, or two files of a sensor would belong to one scene.
        UsageError: two kinds of files may be the labels, none can be a sensor, a pattern would match other files, or a
            sensor's kind is unknown.
    """
    paths = _pictures(root)
    if not paths:
        seen = ", ".join(map(shown, sample_names(root))) or "no file at all"
        raise DataError(f"{shown(root)}: no picture below it (saw {seen}; read are {', '.join(SUFFIXES)})")
    known = {match.path for match in Pattern(labels).find(root)} if labels else set()
    groups, notes = _groups([path for path in paths if path not in known])
    has_splits = {"train", "val"} <= {name for path in paths for name in PurePosixPath(path).parts[:-1]}
    patterns = {role: _pattern(role, found, paths, has_splits=has_splits) for role, found in groups.items()}
    notes += _notes_on_splits(paths)
    taken, label_notes = _labels(root, patterns, labels)
    sensors = {role: pattern for role, pattern in patterns.items() if not role.is_label}
    if not sensors:
        raise UsageError(
            f"{shown(root)}: {counted(len(paths), 'picture', 'looks')} like labels, none like a sensor's; say what "
            "is what, such as --modality 'rgb=images/*.png'"
        )
    names, name_notes = _names(sensors)
    first = {name: groups[roles[0]][0] for name, roles in names.items()}
    asked = {name: kind for name, kind in (kinds or {}).items() if name in names}
    guessed = {name: _kind_by_content(root, name, path) for name, path in first.items() if _is_untold(name, asked)}
    channels, bands, channel_notes = _channels(root, {name: first[name] for name in names if len(names[name]) == 1})
    found = (
        None if not taken else classes or next((root / each for each in CLASS_FILES if (root / each).is_file()), None)
    )
    return Proposal(
        modalities={name: "+".join(sensors[role] for role in roles) for name, roles in names.items()},
        kinds=guessed,
        channels=channels,
        bands=bands,
        labels=taken,
        classes=found,
        files={name: tuple(path for role in roles for path in groups[role]) for name, roles in names.items()}
        | ({LABELS: tuple(sorted(known) or _files_of(groups))} if taken else {}),
        notes=(*notes, *label_notes, *name_notes, *channel_notes),
    )


def _files_of(groups: Mapping[_Role, Sequence[str]]) -> list[str]:
    """The labels' files."""
    return [path for role, paths in groups.items() if role.is_label for path in paths]


def _pictures(root: Path) -> list[str]:
    """All files below the root with an image's suffix and a name that fits into a pattern, sorted."""
    tree = {inside: list(names) for inside, names in walk(root)}
    written = {inside for inside, names in tree.items() if inside and any(each <= set(names) for each in WRITTEN)}
    found = (
        f"{inside}/{name}" if inside else name
        for inside, names in tree.items()
        if inside.split("/")[0] != OURS and not _all_above(inside) & written
        for name in names
    )
    return sorted(path for path in found if path.lower().endswith(SUFFIXES) and not set("*?{}\\") & set(path))


def _all_above(inside: str) -> set[str]:
    """A folder and all its parents below the root."""
    return {inside, *map(str, PurePosixPath(inside).parents)}


def _groups(paths: Sequence[str]) -> tuple[dict[_Role, list[str]], list[str]]:
    """The files by their roles, photos first, labels last; and a line on roles with only one file."""
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    common = len(_shared(folders))
    is_all_labels: dict[tuple[str, ...], bool] = defaultdict(lambda: True)
    for path, inside in zip(paths, folders, strict=True):
        is_all_labels[inside] &= bool(_label_word(path))
    groups: dict[_Role, list[str]] = defaultdict(list)
    for path, inside in zip(paths, folders, strict=True):
        groups[_role(path, common=common, names_tell=not is_all_labels[inside])].append(path)
    lonely = [path for found in groups.values() if len(found) == 1 for path in found]
    if lonely and len(lonely) < len(groups):
        groups = {role: found for role, found in groups.items() if len(found) > 1}
        files = counted(len(lonely), "picture", "is")
        notes = [f"{files} not taken ({by_suffix(lonely)}), such as {shown(lonely[0])}: the only one of its kind"]
    else:
        notes = []
    return {role: groups[role] for role in sorted(groups, key=_rank)}, notes


def _rank(role: _Role) -> tuple[bool, int, str, str, int]:
    """Sort key of a role: by kind, labels last, a sine before its cosine."""
    told = told_kinds(role.word)
    kind = KINDS.index(told[0]) if told else len(KINDS)
    return role.is_label, kind, role.word.casefold(), role.word, ANGLES.index(role.part) if role.part else 0


def _shared(folders: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The common parent folders of all paths."""
    first, last = min(folders), max(folders)
    count = next((index for index, (one, two) in enumerate(zip(first, last, strict=False)) if one != two), None)
    return first[: min(len(first), len(last)) if count is None else count]


def _role(path: str, *, common: int, names_tell: bool) -> _Role:
    """The role of a file: labels before sensors, words for a kind before words that any sensor may have.

    Args:
        path: of the file.
        common: folders that all files share; used only if nothing else helps.
        names_tell: whether a label-like name is told from others beside it.
    """
    folders = PurePosixPath(path).parts[:-1]
    own, all_places = range(common, len(folders)), range(len(folders))
    words = [word for word in SEPARATORS.split(PurePosixPath(path).stem) if word]
    labels = [place for place in own if may_be_labels(folders[place])]
    if labels:
        return _Role(folders[labels[0]], labels[0], is_label=True)
    strong = [place for place in own if told_kinds(folders[place], is_strict=True)]
    label = _label_word(path)
    if label and (names_tell or not strong):
        return _Role(label, None, is_label=True)
    if strong:
        return _sensor(path, folders[strong[-1]], strong[-1])
    named = [word for word in words if told_kinds(word, is_strict=True)]
    if named:
        return _sensor(path, named[0], None)
    weak = [place for place in own if told_kinds(folders[place])]
    place = next(iter([*weak, *own, *reversed(all_places)]), None)
    if any(told_kinds(word) for word in words) and not weak:
        return _sensor(path, next(word for word in words if told_kinds(word)), None)
    return _Role("", None) if place is None else _Role(folders[place], place, may_be_labels(folders[place]))


def _label_word(path: str) -> str:
    """The part of a file's name that means labels; "" for none."""
    words = [word for word in SEPARATORS.split(PurePosixPath(path).stem) if word]
    return next((word for word in words if may_be_labels(word)), "")


def _sensor(path: str, word: str, place: int | None) -> _Role:
    """A sensor's role; an angle's two parts are two roles."""
    if told_kinds(word) != ["angle"]:
        return _Role(word if place is not None else word.rstrip("0123456789"), place)
    words = re.split(r"[^a-z]+", path.rpartition(".")[0].lower())
    part = next((part for part in ANGLES if part in words), "")
    return _Role(re.sub(rf"[_\-. ]?({'|'.join(ANGLES)})$", "", word, flags=re.IGNORECASE), place, part=part)


def _pattern(role: _Role, paths: Sequence[str], everything: Sequence[str], *, has_splits: bool) -> str:
    """A pattern that matches a role's files, and no others."""
    folders = [PurePosixPath(path).parts[:-1] for path in paths]
    stems = {PurePosixPath(path).stem for path in paths}
    suffixes = {PurePosixPath(path).suffix.lower() for path in paths}
    place = "".join(f"{name}/" for name in _wild(folders, has_splits=has_splits))
    suffix = next(iter(suffixes)) if len(suffixes) == 1 else ".*"
    name = next(iter(stems)) if len(stems) == 1 and "*" in place else "*"
    wide = Pattern(f"{place}{name}{suffix}")
    narrow = wide.narrowed([match for match in map(wide.match, paths) if match])
    tries = [wide, *([narrow] if narrow else [])]
    if role.place is None and role.word:
        tries = [*tries[::-1], Pattern(f"{place}*{role.word}*{suffix}")]
    wanted, other = set(paths), ""
    for pattern in tries:
        matched = [path for path in everything if pattern.match(path)]
        if set(matched) == wanted:
            return pattern.text
        other = other or next((path for path in matched if path not in wanted), "")
    raise UsageError(
        f"{shown(paths[0])} and {shown(other)}: no pattern can separate these files; give the patterns (--modality, "
        "--labels), or move one kind into its own folder"
    )


def _wild(folders: Sequence[tuple[str, ...]], *, has_splits: bool) -> list[str]:
    """Folders as a pattern: the common part unchanged, ``{split}``, ``*`` or, if depths differ, ``**``."""
    found: list[str] = []
    for column in range(min(map(len, folders))):
        names = {inside[column] for inside in folders}
        if has_splits and names <= SPLIT_FOLDERS:
            found.append(SPLIT)
        else:
            found.append(next(iter(names)) if len(names) == 1 else "*")
    return [*found, "**"] if len({len(inside) for inside in folders}) > 1 else found


def _notes_on_splits(paths: Sequence[str]) -> list[str]:
    """A line on folders that are splits under other names."""
    names = {name.lower() for path in paths for name in PurePosixPath(path).parts[:-1]}
    long = sorted(names & LONG_SPLITS)
    if not long:
        return []
    return [
        f"{' and '.join(f'{name}/' for name in long)}: splits must be named train, val and test; rename the folders"
    ]


def _labels(root: Path, patterns: Mapping[_Role, str], given: str | None) -> tuple[str | None, list[str]]:
    """The labels' pattern, and remarks on it."""
    found = [pattern for role, pattern in patterns.items() if role.is_label]
    if given is not None:
        return given, [f"'{pattern}' may be labels, too, and is left out" for pattern in found]
    if len(found) > 1:
        ways = " or ".join(f"--labels {typed(pattern)}" for pattern in found)
        raise UsageError(f"{shown(root)}: {len(found)} kinds of files may be the labels; choose one: {ways}")
    if not found:
        return None, ["nothing looks like labels: the scenes can only be predicted (--labels PATTERN names them)"]
    return found[0], []


def _names(sensors: Mapping[_Role, str]) -> tuple[dict[str, list[_Role]], list[str]]:
    """Sensor → its role, or both of an angle; and a line on each name that differs from its files'."""
    whole: dict[tuple[str, int | None], list[_Role]] = defaultdict(list)
    for role in sensors:
        whole[role.word, role.place].append(role)
    names: dict[str, list[_Role]] = {}
    notes = []
    strong = Counter(role.word.casefold() for role in sensors)
    for (word, _), roles in whole.items():
        is_weak = told_kinds(word) == ["rgb"] and not told_kinds(word, is_strict=True)
        plain = word_of(word).removeprefix(OURS) or "sensor"
        name = "rgb" if (is_weak or not word) and "rgb" not in {*names, *strong} else plain
        name = name if name != "all" and name not in names else f"{name}-{len(names) + 1}"
        names[name] = roles
        if word and name != word and not is_weak:
            notes.append(
                f"'{shown(word)}' is renamed to '{name}': a sensor's name has letters, digits, '.', '_' and '-'"
            )
    return names, notes


def _is_untold(name: str, known: Mapping[str, Kind]) -> bool:
    """Whether a sensor's kind can only be seen in its files."""
    return name not in known and len(told_kinds(name)) != 1


def _kind_by_content(root: Path, name: str, path: str) -> Kind:
    """The kind of a photo, by its first file's type; None for other sensors."""
    head = images.header(root / path)
    if head.dtype == "uint8" and head.channels in STORED:
        return "gray" if head.channels == 1 else "rgb"
    raise UsageError(
        f"{shown(root / path)}: holds {counted(head.channels, 'channel')} of {head.dtype}, and its name means no "
        f"kind of sensor; add --kind {name}=KIND, one of {', '.join(KINDS)}"
    )


def _channels(root: Path, first: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Channels and raster bands to use, for files with more than a picture has, and a line on each."""
    channels: dict[str, str] = {}
    bands: dict[str, str] = {}
    notes = []
    for name, path in first.items():
        count = images.header(root / path).channels
        if count in STORED:
            continue
        is_raster = path.lower().endswith(RASTERS)
        last = count - 1 + is_raster
        few_enough = len("RGBA") < count <= MOST
        chosen = f"{int(is_raster)}-{last}" if few_enough else ",".join(str(min(n + is_raster, last)) for n in range(3))
        (bands if is_raster else channels)[name] = chosen
        option = f"--{'bands' if is_raster else 'channels'} {name}"
        notes.append(f"'{name}' has {count} channels; {option}={chosen} is used; {option}=… overrides this")
    return channels, bands, notes
