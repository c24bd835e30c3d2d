"""What a new preparation replaces: people may have edited it, so what differs is kept beside the new files and told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import INFO, SCENES, Scene
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.errors import DataError
from memorysam_cli.storage import atomic, documents
from memorysam_cli.text import shown

FOUND = frozenset({"counts", "content_hash", "statistics"})
"""Keys of ``dataset.json`` that say what was found, not what is to be done."""
NAMED = 5
"""Keys that a message names."""


def keep(root: Path, info: DatasetInfo, scenes: Sequence[Scene]) -> list[str]:
    """Copy the files of an earlier preparation that the new ones would change to ``….bak``.

    Args:
        root: the data root.
        info: what ``dataset.json`` will say.
        scenes: what ``scenes.jsonl`` will list.

    Returns:
        A line per file that was kept, with what is different.

    Raises:
        EnvironmentFault: the copy cannot be written.
    """
    place = manifests.folder(root, info.name)
    said = []
    for path, difference in ((place / INFO, _of_info(place, info)), (place / SCENES, _of_scenes(place, scenes))):
        if difference:
            again = f"to use it, put it back and type: {manifests.sign_line(root, info.name)}"
            said.append(f"{shown(path)}: {difference}; the earlier one is kept as {_copied(path)} ({again})")
    return said


def _of_info(place: Path, info: DatasetInfo) -> str | None:
    """How the earlier ``dataset.json`` differs, apart from what was found."""
    if not (place / INFO).is_file():
        return None
    try:
        old = DatasetInfo.model_validate(documents.read_json(place / INFO))
    except (DataError, ValidationError):
        return "was damaged"
    keys = list(_differences(_settings(old), _settings(info)))
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return f"{', '.join(keys[:NAMED])}{more} had other values before" if keys else None


def _settings(info: DatasetInfo) -> dict[str, Any]:
    """What ``dataset.json`` says is to be done; modalities by their names, so that they are compared one by one."""
    settings = info.model_dump(mode="json", exclude=set(FOUND))
    return {**settings, "modalities": {each["name"]: each for each in settings["modalities"]}}


def _differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """The keys that are different, such as ``modalities.img.scale``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key


def _of_scenes(place: Path, scenes: Sequence[Scene]) -> str | None:
    """How the earlier ``scenes.jsonl`` differs, apart from the sizes of files."""
    if not (place / SCENES).is_file():
        return None
    try:
        lines = documents.read_json_lines(place / SCENES)
        old = {line["id"]: {key: value for key, value in line.items() if key != "bytes"} for line in lines}
    except (DataError, AttributeError, KeyError, TypeError):
        return "was damaged"
    new = {scene.id: _plain(scene) for scene in scenes}
    changed = [name for name in old if name in new and old[name] != new[name]]
    counts = {"more": len(new.keys() - old.keys()), "fewer": len(old.keys() - new.keys()), "changed": len(changed)}
    if not any(counts.values()):
        return None
    such = f" (such as {shown(changed[0])})" if changed else ""
    return f"{', '.join(f'{count} {what}' for what, count in counts.items() if count)}{such} than before"


def _plain(scene: Scene) -> dict[str, Any]:
    """A scene as JSON gives it back."""
    return {**asdict(scene), "files": {name: list(paths) for name, paths in scene.files.items()}}


def _copied(path: Path) -> str:
    """Copy a file to the first free name; gives the name."""
    data = path.read_bytes()
    for number in range(1, 1000):
        copy = path.with_name(f"{path.name}.bak{number if number > 1 else ''}")
        if not copy.exists():
            atomic.write_bytes(copy, data)
            return copy.name
        if copy.read_bytes() == data:
            return copy.name
    raise DataError(f"{shown(path)}: has 999 earlier copies (….bak) already; remove some")
