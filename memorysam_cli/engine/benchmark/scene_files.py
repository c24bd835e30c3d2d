"""Scenes as files, to read for a benchmark: a few rendered ones, listed as often as needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from memorysam_cli.data import preparation
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import DatasetInfo

DISTINCT = 4
"""Scenes that are rendered."""
SENSORS = ("img", "depth", "event", "lidar")
"""Of the rendered scenes; a benchmark with more of them reads them again under other names."""


def write(root: Path, *, names: tuple[str, ...], size: int, scenes: int) -> Manifest:
    """Render scenes into a folder.

    Args:
        root: an empty folder.
        names: of the modalities.
        size: side of the images in pixels.
        scenes: how many the manifest lists.

    Returns:
        A manifest whose scenes are all in the split ``train``; its PNG files are smaller than a camera's, and lie in
        the system's cache once they have been read.
    """
    preparation.render_synthetic(root, layout="deliver", scenes=DISTINCT, size=size, seed=0)
    found = preparation.survey_synthetic(root, layout="deliver")
    sources = {name: SENSORS[index % len(SENSORS)] for index, name in enumerate(names)}
    listed = []
    for number in range(scenes):
        scene = found.scenes[number % len(found.scenes)]
        files = {name: scene.files[source] for name, source in sources.items()}
        listed.append(dataclasses.replace(scene, id=f"{number:06d}", split="train", files=files))
    return Manifest(root, _info(found.info, sources, scenes=scenes), tuple(listed))


def bytes_per_scene(manifest: Manifest) -> float:
    """The mean size of a scene's files, its label among them."""
    total = 0
    for scene in manifest.scenes:
        paths = [*(path for group in scene.files.values() for path in group), *([scene.label] if scene.label else [])]
        total += sum((manifest.root / path).stat().st_size for path in paths)
    return total / len(manifest.scenes)


def _info(info: DatasetInfo, sources: dict[str, str], *, scenes: int) -> DatasetInfo:
    modalities = tuple(info.modality(source).model_copy(update={"name": name}) for name, source in sources.items())
    return info.model_copy(update={"modalities": modalities, "counts": {"train": scenes}})
