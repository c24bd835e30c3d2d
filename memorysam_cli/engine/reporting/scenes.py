"""Scenes for a report's gallery: pictures as addresses that hold them, as many as the report has room for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memorysam_cli.engine.reporting.documents import picture, understood
from memorysam_cli.report import galleries, pages

ROOM = pages.MOST_BYTES * 2 // 3
"""Characters for pictures; the rest is for curves, tables and the recipe."""


def of_evaluation(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """The scenes of a stored gallery, and a note for the reader.

    Raises:
        DataError: the gallery is damaged.
    """
    found = galleries.read(folder)
    if found is None:
        return [], "No pictures were kept. Run memorysam evaluate with --gallery 4 to have the worst and best scenes."
    scenes = []
    for each in found.scenes:
        words = [each.rank, each.condition, each.case]
        words += [f"mIoU {each.miou_present:.1f}"] if each.miou_present is not None else []
        with understood(folder / galleries.NAME):
            layers = [layer(kept.key, kept.title, folder / kept.file) for kept in each.layers]
        scenes.append(scene(each.scene, words, layers))
    return fitting(scenes)


def scene(name: str, words: Iterable[str | None], layers: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A scene as the templates take it."""
    return {"name": name, "caption": " · ".join(word for word in words if word), "layers": list(layers)}


def layer(key: str, title: str, path: Path) -> dict[str, str]:
    """A layer whose picture is a file."""
    return {"key": key, "title": title, "src": picture(path)}


def fitting(scenes: list[dict[str, Any]], *, room: int = ROOM) -> tuple[list[dict[str, Any]], str]:
    """The first scenes that there is room for, and a note if that is not all.

    A picture stands twice in the page: for the viewer, and the first one for the list.
    """
    kept, size = [], 0
    for each in scenes:
        size += sum(len(layer["src"]) for layer in each["layers"]) + len(each["layers"][0]["src"])
        if size > room:
            break
        kept.append(each)
    if len(kept) == len(scenes):
        return kept, ""
    return kept, f"{len(scenes) - len(kept)} of {len(scenes)} scenes are left out, so that this file stays small."
