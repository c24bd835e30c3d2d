"""The ways in which a folder's tree can be read as scenes; nothing is opened, names alone decide.

Files or folders are named as modalities. ``aolp_sin`` and ``aolp_cos`` together stand for the modality ``aolp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from memorysam_cli.data.listing import pair, walk
from memorysam_cli.errors import DataError
from memorysam_cli.storage.images import SUFFIXES

PARTS = ("_sin", "_cos")
"""Endings of the two files of an angle, in their order."""

Files = dict[str, tuple[str, ...]]
"""Modality → paths."""
Role = tuple[str, str]
"""A modality, and the part of it: one of PARTS, or "" for all of it."""
Tree = Mapping[str, list[str]]
"""Folder → the names of its image files; paths relative to the top, which is ""."""
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Reading:
    """One way to understand a tree."""

    what: str
    """For the message on an ambiguous tree."""
    scenes: dict[str, Files]
    """Scene id → its files, modalities in the wanted order."""
    unknown: tuple[str, ...]
    """Names beside the known ones that stand for no modality."""


def readings(path: Path, wanted: Mapping[str, str]) -> list[Reading]:
    """All ways to read a folder as scenes.

    Args:
        path: the folder.
        wanted: modality → the name that its files or its folder have here, in the order of the memory.

    Raises:
        DataError: two files stand for the same thing, half of an angle is missing, or folders do not pair.
    """
    everything = dict(walk(path))
    _refuse_folders(path, everything, wanted)
    tree = {inside: [name for name in names if _is_image(name)] for inside, names in everything.items()}
    return [*_per_modality(tree, wanted), *_per_scene(tree, wanted, own_name=path.resolve().name)]


def _refuse_folders(path: Path, folders: Iterable[str], wanted: Mapping[str, str]) -> None:
    """Refuse a folder that has the name of a modality's image: the scene would seem to lack that modality."""
    for inside in folders:
        name = PurePosixPath(inside).name
        if _is_image(name) and _role(_stem(name), wanted) is not None:
            raise DataError(f"{path / inside}: is a folder named as an image; rename it, or put the image in its place")


def _per_modality(tree: Tree, wanted: Mapping[str, str]) -> Iterator[Reading]:
    """A sub-folder per modality; a scene is called as the file of its first modality."""
    sources: dict[str, dict[str, str]] = {}
    unknown: dict[str, None] = {}
    for inside, names in tree.items():
        top, _, below = inside.partition("/")
        if not top or not names:
            continue
        if _role(top, wanted) is None:
            unknown[f"{top}/"] = None
            continue
        for name in names:
            _put(sources.setdefault(top, {}), str(PurePosixPath(below, _stem(name))), f"{inside}/{name}")
    if not sources:
        return
    scenes: dict[str, Files] = {}
    for row in pair(sources):
        files = _files({top: sources[top][key] for top, key in row.items()}, wanted)
        first = PurePosixPath(next(iter(files.values()))[0])
        _put(scenes, str(PurePosixPath(*first.parts[1:]).with_suffix("")), files)
    folders = ", ".join(f"{top}/" for top in sources)
    what = f"one folder per modality ({folders}; {len(scenes)} scenes, such as {next(iter(scenes))})"
    yield Reading(what, scenes, tuple(unknown))


def _per_scene(tree: Tree, wanted: Mapping[str, str], *, own_name: str) -> Iterator[Reading]:
    """The folder itself is a scene; and, another reading, folders below it are."""
    scenes: dict[str, Files] = {}
    unknown: dict[str, dict[str, None]] = {}
    for inside, names in tree.items():
        known = [name for name in names if _role(_stem(name), wanted) is not None]
        if known:
            stems: dict[str, str] = {}
            for name in known:
                _put(stems, _stem(name), str(PurePosixPath(inside, name)))
            scenes[inside] = _files(stems, wanted)
            unknown[inside] = {_stem(name): None for name in names if name not in known}
    if "" in scenes:
        files = scenes.pop("")
        listed = ", ".join(path for paths in files.values() for path in paths)
        yield Reading(f"one scene ({listed})", {own_name: files}, tuple(unknown.pop("")))
    if scenes:
        what = f"one folder per scene ({len(scenes)} scenes, such as {next(iter(scenes))}/)"
        yield Reading(what, scenes, tuple({name: None for names in unknown.values() for name in names}))


def _role(text: str, wanted: Mapping[str, str]) -> Role | None:
    """What a folder's or file's name stands for; case does not matter."""
    for modality, name in wanted.items():
        for part in ("", *PARTS):
            if text.casefold() == f"{name}{part}".casefold():
                return modality, part
    return None


def _files(named: Mapping[str, str], wanted: Mapping[str, str]) -> Files:
    """Name → path becomes modality → paths, in the wanted order, an angle's two parts together."""
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
    """Add an entry; two for one key are refused."""
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
