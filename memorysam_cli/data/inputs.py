"""The scenes of ``memorysam predict SCENES``: five layouts, none of them guessed.

(a) a prepared data set: the data root, or the data set's folder;
(b) a folder with one sub-folder per modality, with the same file names, at any depth;
(c) a folder with one sub-folder per scene, at any depth, with one file per modality, named as the modality;
(d) one such scene folder;
(e) the layout of ``prepare folder``, from options or the weights' card: a recording by the same sensors.

A tree that can be read in two ways is refused; the message shows both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import published_in
from memorysam_cli.data.listing import Pairing, by_suffix, may_be_labels, pair, sample_names, walk
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.own.clocks import pair_by_time
from memorysam_cli.data.own.patterns import OURS, Match, Pattern, pair_by_name, pairing_name
from memorysam_cli.dataset import Layout
from memorysam_cli.errors import DataError, UsageError, did_you_mean
from memorysam_cli.storage.images import SUFFIXES
from memorysam_cli.text import counted, few, shown, typed

NAMED = 6
"""Number of unknown names in a message."""
PARTS = ("_sin", "_cos")
"""Suffixes of the names of an angle's two files, in their order."""
BESIDE = {
    ".txt", ".csv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".log", ".html", ".pdf", ".py", ".ipynb", ".ini",
    ".db", ".tfw", ".pgw", ".jgw", ".wld", ".prj", ".aux", ".cpg", ".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z",
    ".rar", ".mp4", ".avi", ".bag",
}  # fmt: skip
"""Suffixes of files that are never pictures; any other file named like a sensor is one, readable or not."""

Files = dict[str, tuple[str, ...]]
"""Modality → paths."""
Role = tuple[str, str]
"""A modality, and the part of it: one of PARTS, or "" for all of it."""
Tree = Mapping[str, list[str]]
"""Folder → the names of its image files; paths relative to the top folder, which is ""."""
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class PredictionInputs:
    """The scenes to predict."""

    root: Path
    """The folder to which the scenes' paths are relative."""
    scenes: tuple[Scene, ...]
    """Each has at least one modality; ids are unique, and give the outputs their names."""
    notes: tuple[str, ...]
    """Messages to print once, such as a missing modality."""


@dataclass(frozen=True)
class Reading:
    """A way to understand a tree."""

    what: str
    """Its description, for the message about an ambiguous tree."""
    scenes: dict[str, Files]
    """Scene id → its files, modalities in the requested order."""
    unknown: tuple[str, ...]
    """Names beside the known ones that are not modalities."""
    others: tuple[str, ...] = ()
    """Files in the scenes' folders that are not pictures, or that duplicate a used one."""
    is_by_number: bool = False
    """The files of a scene have the same number, not the same name."""
    notes: tuple[str, ...] = ()
    """A remark on how it was read, if necessary."""


def discover(
    path: Path,
    *,
    modalities: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    split: str | None = None,
    dataset: str | None = None,
    layout: Layout | None = None,
    is_asked: bool = False,
) -> PredictionInputs:
    """Find the scenes of ``memorysam predict SCENES``.

    Args:
        path: SCENES.
        modalities: the requested ones, in the order of the memory.
        aliases: modality → its name in these files or folders (``--map img=rgb``).
        split: only this split of a prepared data set.
        dataset: the weights' data set, preferred where several are prepared.
        layout: the patterns of the user's own sensors.
        is_asked: the layout was given for these scenes: all its patterns must match, and no other layout is tried.
            Otherwise it is the one stored in the weights, and is used if it fits.

    Raises:
        DataError: nothing to predict, an ambiguous tree, files that do not pair, unknown names while a modality is
            missing, two scenes with the same id.
        UsageError: an alias for a modality that is not used, or a split of scenes that are not prepared.
    """
    aliases = dict(aliases or {})
    for name in aliases:
        if name not in modalities:
            raise UsageError(
                f"--map {name}={aliases[name]}: '{name}' is not a modality in use{did_you_mean(name, modalities)}"
            )
    if not path.is_dir():
        raise DataError(f"{path}: {'is a file' if path.exists() else 'does not exist'}; SCENES must be a folder")
    wanted = {name: aliases.get(name, name) for name in modalities}
    prepared = None if is_asked else _prepared(path, dataset=dataset)
    if prepared is not None:
        return _of_manifest(prepared, wanted, split=split, dataset=dataset)
    if split is not None:
        raise UsageError(f"--split {split}: {path} is not a prepared data set; leave --split out, or prepare it first")
    remembered = None if layout is None or aliases else _of_layout(path, layout, modalities, is_asked=is_asked)
    if not aliases and remembered is None:
        _refuse_unprepared(path)
    reading = _chosen(path, wanted, remembered)
    scenes = tuple(
        Scene(id=name, split="", condition=None, case=None, files=files, label=None)
        for name, files in reading.scenes.items()
    )
    _refuse_unknown(path, reading, wanted)
    manifests.refuse_shared_ids(scenes)
    return PredictionInputs(path, scenes, (*_missing_notes(scenes, modalities), *_reading_notes(reading)))


def is_prepared(path: Path, *, dataset: str | None = None) -> bool:
    """Whether SCENES means the scenes of a manifest.

    Raises:
        DataError: the manifest is damaged, or there are several and none belongs to the weights' data set.
    """
    return _prepared(path, dataset=dataset) is not None


def _prepared(path: Path, *, dataset: str | None) -> Manifest | None:
    """The prepared data set of ``path``: its root, its folder, or the folder of its manifest."""
    named = manifests.named_by(path)
    if named is not None:
        return manifests.read(*named)
    here = manifests.prepared(path)
    if here:
        if dataset not in here and len(here) > 1:
            raise DataError(
                f"{path}: {len(here)} data sets are prepared there, and none is the weights' '{dataset}'; give the "
                f"folder of one: {', '.join(typed(manifests.folder(path, name)) for name in here)}"
            )
        return manifests.read(path, dataset if dataset in here else here[0])
    for place in (path.absolute(), path.resolve()):
        for root in place.parents:
            inside = [name for name in manifests.prepared(root) if _covers(place, root=root, dataset=name)]
            if inside:
                return manifests.read(root, dataset if dataset in inside else inside[0])
    return None


def _covers(path: Path, *, root: Path, dataset: str) -> bool:
    """Whether ``path`` is a prepared data set's folder, or contains only it (below the data root)."""
    try:
        return (root / manifests.read_info(root, dataset).root).is_relative_to(path)
    except DataError:  # a broken manifest in a parent folder does not matter
        return False


def _of_manifest(
    manifest: Manifest, wanted: Mapping[str, str], *, split: str | None, dataset: str | None
) -> PredictionInputs:
    """A prepared data set's scenes with the requested modalities."""
    chosen = manifest.scenes if split is None else manifest.of_split(split)
    scenes = tuple(
        replace(scene, files={name: scene.files[here] for name, here in wanted.items() if here in scene.files})
        for scene in chosen
    )
    if not any(scene.files for scene in scenes):
        have = ", ".join(modality.name for modality in manifest.info.modalities)
        raise DataError(f"{manifest.info.name}: has none of {', '.join(wanted.values())} (it has: {have}); use --map")
    other = dataset is not None and dataset != manifest.info.name
    about = [f"the weights were trained on '{dataset}', these scenes are of '{manifest.info.name}'"] if other else []
    return PredictionInputs(manifest.root, scenes, (*about, *_missing_notes(scenes, list(wanted))))


def _refuse_unprepared(path: Path) -> None:
    """Refuse a known data set that is not prepared, because its folders do not have the names of its modalities."""
    layout = published_in(path)
    if layout is not None:
        raise DataError(
            f"{path}: is {layout.title}, whose folders are not named as its modalities; type: "
            f"{manifests.prepare_line(path, layout.name)} (or say with --map which folder is which modality)"
        )


def _chosen(path: Path, wanted: Mapping[str, str], remembered: Reading | None) -> Reading:
    """The stored layout if all its sensors are there; else the tree's own layout, or the stored one if there is
    none."""
    if remembered is None:
        return _only_reading(path, wanted)
    if all(set(wanted) <= set(files) for files in remembered.scenes.values()):
        return remembered
    try:
        readings = _readings(path, wanted)
    except DataError:
        readings = []
    if len(readings) != 1:
        return remembered
    sensors = [{name for files in each.scenes.values() for name in files} for each in (readings[0], remembered)]
    return readings[0] if len(sensors[0]) > len(sensors[1]) else remembered


def _of_layout(path: Path, layout: Layout, modalities: Sequence[str], *, is_asked: bool) -> Reading | None:
    """A new recording by the patterns of ``prepare folder``; None if none of them matches a file.

    Raises:
        DataError: one matches none, though it was given for this recording; or the files do not pair.
    """
    matches: dict[str, list[Match]] = {}
    parts: dict[str, list[str]] = {}
    for name in (each for each in modalities if each in layout.modalities):
        roles = [f"{name}+{number}" if number else name for number, _ in enumerate(layout.modalities[name])]
        try:
            found = [Pattern(text).find(path) for text in layout.modalities[name]]
        except DataError:
            if is_asked:
                raise
            continue
        matches |= dict(zip(roles, found, strict=True))
        parts[name] = roles
    if not matches:
        return None
    missing = [name for name in layout.times if not (path / name).is_file()]
    if layout.pair == "nearest" and missing:
        raise DataError(
            f"{shown(path / missing[0])}: does not exist, and files of these weights' rig pair by its times; give "
            "--modality patterns with --pair nearest, --tolerance and --times for this recording"
        )
    try:
        paired = pair_by_time(path, matches, layout, whole=()) if layout.pair == "nearest" else pair_by_name(matches)
    except DataError:
        if is_asked or layout.pair == "nearest":
            raise
        return None  # not as stored
    scenes: dict[str, Files] = {}
    for row in paired.rows:
        whole = {name: roles for name, roles in parts.items() if all(role in row for role in roles)}
        files = {name: tuple(row[role].path for role in roles) for name, roles in whole.items()}
        if files:
            _put(scenes, pairing_name(next(iter(row.values()))), files)
    patterns = ", ".join(f"{name}={'+'.join(layout.modalities[name])}" for name in parts)
    said = [] if is_asked else [f"read as the weights' own data were: {patterns}"]
    unread = () if is_asked else _unread(path, layout)
    return Reading("the weights' own layout", scenes, unread, notes=(*said, *paired.notes))


def _unread(path: Path, layout: Layout) -> tuple[str, ...]:
    """Folders with images that no pattern of a layout covers."""
    texts = [text for group in (*layout.modalities.values(), (layout.labels,)) for text in group if text]
    known = [Pattern(text) for text in texts]
    return tuple(
        f"{inside}/"
        for inside, names in walk(path)
        if inside.split("/")[0] not in ("", OURS)
        and any(map(_is_image, names))
        and not any(pattern.match(f"{inside}/{name}") for name in names for pattern in known)
    )


def _only_reading(path: Path, wanted: Mapping[str, str]) -> Reading:
    """The only way in which the tree can be read."""
    found = _readings(path, wanted)
    if len(found) > 1:
        ways = " or as ".join(reading.what for reading in found)
        raise DataError(f"{path}: can be read as {ways}; give one of them, or rename what is not meant")
    if not found:
        raise DataError(f"{path}: no scene found: {_why_none(path, wanted)}")
    return found[0]


def _why_none(path: Path, wanted: Mapping[str, str]) -> str:
    """The message for a tree without a scene: what was expected, what was found, and what to do."""
    unread = [
        f"{inside}/{name}" if inside else name
        for inside, names in walk(path)
        for name in names
        if _role(inside.partition("/")[0], wanted) is not None or _role(_stem(name), wanted) is not None
    ]
    if unread:
        return (
            f"none of the {by_suffix(unread)} can be read, such as {shown(unread[0])}; save them as PNG (read are "
            f"{', '.join(SUFFIXES)})"
        )
    seen = ", ".join(map(shown, sample_names(path))) or "no file at all"
    names = ", ".join(wanted.values())
    return (
        f"looked for folders or image files named {names} (saw {seen}); name them with --map {next(iter(wanted))}=NAME"
    )


def _readings(path: Path, wanted: Mapping[str, str]) -> list[Reading]:
    """All ways to read a folder as scenes; refuses two files for one thing, half an angle, folders that do not pair."""
    everything = dict(walk(path, must_see=lambda inside: _role(inside.partition("/")[0], wanted) is not None))
    _refuse_folders(path, everything, wanted)
    return [*_per_modality(everything, wanted), *_per_scene(everything, wanted, own_name=path.resolve().name)]


def _refuse_folders(path: Path, folders: Iterable[str], wanted: Mapping[str, str]) -> None:
    """Refuse a folder with the name of a modality's image, because the scene would seem to lack that modality."""
    for inside in folders:
        name = PurePosixPath(inside).name
        if _is_image(name) and _role(_stem(name), wanted) is not None:
            raise DataError(f"{path / inside}: is a folder named as an image; rename it, or put the image in its place")


def _per_modality(tree: Tree, wanted: Mapping[str, str]) -> Iterator[Reading]:
    """A sub-folder per modality; a scene has the name of its first modality's file."""
    sources: dict[str, dict[str, str]] = {}
    unreadable: dict[str, dict[str, str]] = {}
    unknown: dict[str, None] = {}
    everything: list[str] = []
    for inside, names in tree.items():
        top, _, below = inside.partition("/")
        if not top or not names:
            continue
        if _role(top, wanted) is None:
            unknown |= {f"{top}/": None} if any(map(_is_image, names)) else {}
            continue
        for name in names:
            everything.append(f"{inside}/{name}")
            key = str(PurePosixPath(below, _stem(name)))
            if _is_image(name):
                _put(sources.setdefault(top, {}), key, f"{inside}/{name}")
            elif _may_be_image(name):
                unreadable.setdefault(top, {}).setdefault(key, f"{inside}/{name}")
    if not sources:
        return
    sources, pairing = _with_unreadable(sources, unreadable)
    scenes: dict[str, Files] = {}
    for row in pairing.rows:
        files = _files({top: sources[top][key] for top, key in row.items()}, wanted)
        first = PurePosixPath(next(iter(files.values()))[0])
        _put(scenes, str(PurePosixPath(*first.parts[1:]).with_suffix("")), files)
    folders = ", ".join(f"{top}/" for top in sources)
    what = f"one folder per modality ({folders}; {counted(len(scenes), 'scene')}, such as {next(iter(scenes))})"
    yield Reading(what, scenes, tuple(unknown), _others(everything, scenes), pairing.is_by_number)


def _with_unreadable(
    sources: dict[str, dict[str, str]], unreadable: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, dict[str, str]], Pairing]:
    """Pair the files; unreadable files belong to a scene if they pair, so that the scene does not seem to lack the
    sensor."""
    tops = [*sources, *(top for top in unreadable if top not in sources)]
    both = {top: {**unreadable.get(top, {}), **sources.get(top, {})} for top in tops}
    try:
        pairing = pair(both)
    except DataError:  # some of them are something else
        return sources, pair(sources)
    rows = [row for row in pairing.rows if any(key in sources.get(top, {}) for top, key in row.items())]
    return both, Pairing(rows, pairing.is_by_number)


def _per_scene(tree: Tree, wanted: Mapping[str, str], *, own_name: str) -> Iterator[Reading]:
    """The folder itself is a scene; another way to read it: the folders below it are scenes."""
    scenes: dict[str, Files] = {}
    unknown: dict[str, dict[str, None]] = {}
    everything: dict[str, list[str]] = {}
    for inside, names in tree.items():
        pictures = {name: _stem(name) for name in names if _is_image(name)}
        known = {name: stem for name, stem in pictures.items() if _role(stem, wanted) is not None}
        if known:
            stems: dict[str, str] = {}
            for name, stem in known.items():
                _put(stems, stem, str(PurePosixPath(inside, name)))
            for name in names:
                if name not in pictures and _may_be_image(name) and _role(_stem(name), wanted) is not None:
                    stems.setdefault(_stem(name), str(PurePosixPath(inside, name)))
            scenes[inside] = _files(stems, wanted)
            unknown[inside] = {stem: None for name, stem in pictures.items() if name not in known}
            everything[inside] = [str(PurePosixPath(inside, name)) for name in names if not _is_image(name)]
    if "" in scenes:
        files = scenes.pop("")
        listed = ", ".join(path for paths in files.values() for path in paths)
        here = {own_name: files}
        yield Reading(f"one scene ({listed})", here, tuple(unknown.pop("")), _others(everything.pop(""), here))
    if scenes:
        what = f"one folder per scene ({counted(len(scenes), 'scene')}, such as {next(iter(scenes))}/)"
        others = _others([path for paths in everything.values() for path in paths], scenes)
        yield Reading(what, scenes, tuple({name: None for names in unknown.values() for name in names}), others)


def _others(paths: Iterable[str], scenes: Mapping[str, Files]) -> tuple[str, ...]:
    """The paths that belong to no scene."""
    taken = {path for files in scenes.values() for group in files.values() for path in group}
    return tuple(path for path in paths if path not in taken)


def _role(text: str, wanted: Mapping[str, str]) -> Role | None:
    """The modality of a folder's or file's name, ignoring case."""
    for modality, name in wanted.items():
        for part in ("", *PARTS):
            if text.casefold() == f"{name}{part}".casefold():
                return modality, part
    return None


def _files(named: Mapping[str, str], wanted: Mapping[str, str]) -> Files:
    """Convert name → path into modality → paths, in the requested order, an angle's two parts together."""
    found: dict[Role, str] = {}
    for text, path in named.items():
        role = _role(text, wanted)
        assert role is not None  # the callers have sorted out the others
        _put(found, role, path)
    files: Files = {}
    for modality, name in wanted.items():
        whole = [found[modality, ""]] if (modality, "") in found else []
        parts = [found[modality, part] for part in PARTS if (modality, part) in found]
        if len(parts) == 1 or (parts and whole):
            both = " and ".join(f"{name}{part}" for part in PARTS)
            raise DataError(f"{', '.join((*parts, *whole))}: '{modality}' needs {both}, or {name} alone")
        if parts or whole:
            files[modality] = tuple(parts or whole)
    return files


def _put(into: dict[Key, Value], key: Key, value: Value) -> None:
    """Add an entry; two entries for one key are refused."""
    if key in into:
        raise DataError(
            f"{_first_path(into[key])} and {_first_path(value)}: stand for the same thing; keep one of them"
        )
    into[key] = value


def _first_path(value: object) -> str:
    """A path, or the first of a scene's."""
    return str(next(iter(value.values()))[0]) if isinstance(value, dict) else str(value)


def _stem(name: str) -> str:
    """A file's name without its suffix."""
    return PurePosixPath(name).stem


def _is_image(name: str) -> bool:
    """Whether a file can be read as an image, by its name."""
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _may_be_image(name: str) -> bool:
    """Whether a file may be a picture in an unsupported format, by its name."""
    return PurePosixPath(name).suffix.lower() not in BESIDE


def _refuse_unknown(path: Path, reading: Reading, wanted: Mapping[str, str]) -> None:
    """Refuse unknown names if a modality is missing everywhere: one may be the other."""
    found = {name for files in reading.scenes.values() for name in files}
    missing = [name for name in wanted if name not in found]
    sensors = [name for name in reading.unknown if not may_be_labels(name)]
    if missing and sensors:
        have = ",".join(name for name in wanted if name in found)
        raise DataError(
            f"{path}: no {few(missing, NAMED)}, but there is {few(sensors, NAMED)}; name each one, such as "
            f"--map {missing[0]}={_base(sensors[0], sensors)}, or take the rest with --modalities {have}"
        )


def _base(name: str, others: Sequence[str]) -> str:
    """An unknown name in the form of ``--map``: for both parts of an angle, their common part."""
    plain = [other.rstrip("/") for other in others]
    bases = [name.rstrip("/").removesuffix(part) for part in PARTS]
    return next((base for base in bases if all(f"{base}{part}" in plain for part in PARTS)), name.rstrip("/"))


def _reading_notes(reading: Reading) -> list[str]:
    """Remarks on a tree: unused files, by suffix and count, and scenes that pair by number only."""
    notes = list(reading.notes)
    notes += [f"not used: {few(reading.unknown, NAMED)}"] if reading.unknown else []
    if reading.others:
        files = counted(len(reading.others), "file", "is")
        notes.append(f"{files} not taken ({by_suffix(reading.others)}), such as {shown(reading.others[0])}")
    if reading.is_by_number:
        first = next(iter(reading.scenes.values()))
        names = ", ".join(shown(path) for paths in first.values() for path in paths)
        notes.append(f"files pair by their numbers, which are the same in all folders: {names}")
    return notes


def _missing_notes(scenes: Sequence[Scene], modalities: Sequence[str]) -> list[str]:
    """A remark per modality that is missing in some scenes or in all."""
    notes = []
    for name in modalities:
        count = sum(name not in scene.files for scene in scenes)
        if count:
            where = "no scene has" if count == len(scenes) else f"{count} of {counted(len(scenes), 'scene', 'lacks')}"
            notes.append(f"{where} '{name}'; predicting with the other modalities")
    return notes
