"""Galleries: small pictures of scenes on the disk, layer by layer, for reports to flip through.

A gallery is a folder: ``gallery.json``, and the pictures that it names beside it. The JSON is written last and removed
first, so that whoever finds it finds the pictures.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from memorysam_cli.report import overlays
from memorysam_cli.report.overlays import Colour, Mask, Picture
from memorysam_cli.storage import atomic, documents, images

NAME = "gallery.json"
SCHEMA_VERSION = 1
LONG_SIDE = 480
"""Pixels: more than a card of a report shows, and few enough for many scenes."""
QUALITY = 82
"""Of the sensors' JPEGs; what has flat colours is PNG."""
MAPS = {"label": "Label", "prediction": "Prediction", "error": "Errors", "confidence": "Confidence"}
"""The layers that are no sensor, and their titles."""

Rank = Literal["worst", "best", "chosen"]
Share = NDArray[np.float32]
"""(H, W), 0 to 1."""


@dataclass(frozen=True)
class Layer:
    """One picture of a scene."""

    key: str
    """A modality's name, or one of :data:`MAPS`."""
    title: str
    file: str
    """Relative to the gallery's folder."""


@dataclass(frozen=True)
class GalleryScene:
    """A scene's pictures, and how well it was segmented."""

    scene: str
    split: str
    condition: str | None
    case: str | None
    rank: Rank
    miou_present: float | None
    """Per cent; None without a label."""
    accuracy: float | None
    size: tuple[int, int]
    """Height and width of the scene itself."""
    layers: tuple[Layer, ...]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Scenes of one data set."""

    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    """RGB."""
    scenes: tuple[GalleryScene, ...]


def pictures(
    frames: Mapping[str, NDArray[np.generic]],
    prediction: Mask,
    *,
    palette: Sequence[Colour],
    label: Mask | None = None,
    confidence: Share | None = None,
) -> dict[str, Picture]:
    """A scene's layers as pictures of at most :data:`LONG_SIDE` pixels.

    Args:
        frames: modality → (H, W) or (H, W, 3), all of one size.
        prediction: (H, W) class indices, of that size.
        palette: K colours.
        label: (H, W) class indices or 255; without it neither label nor errors.
        confidence: (H, W), 0 to 1: the probability of the predicted class.

    Returns:
        The modalities, then those of :data:`MAPS` that there are, in that order.
    """
    sensors = {name: overlays.as_picture(frame) for name, frame in frames.items()}
    found = {name: shrunk(picture, smooth=True) for name, picture in sensors.items()}
    seen = shrunk(prediction)
    if label is not None:
        truth = shrunk(label)
        found["label"] = overlays.colour(truth, palette)
    found["prediction"] = overlays.colour(seen, palette)
    if label is not None:
        found["error"] = overlays.errors(next(iter(found.values())), seen, truth)
    if confidence is not None:
        found["confidence"] = heat(shrunk(confidence))
    return found


def store(folder: Path, number: int, layers: Mapping[str, Picture]) -> tuple[Layer, ...]:
    """Write a scene's pictures into a gallery's folder: sensors as JPEG, maps as PNG.

    Args:
        folder: the gallery's.
        number: of the scene, from 0; names are made of it, for a scene's id may be no file name.
        layers: as of :func:`pictures`.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    stored: list[Layer] = []
    for key, picture in layers.items():
        is_map = key in MAPS
        name = f"{number:03d}-{len(stored)}-{re.sub(r'[^A-Za-z0-9-]', '_', key)[:40]}.{'png' if is_map else 'jpg'}"
        data = images.encode_png(picture) if is_map else images.encode_jpeg(picture, quality=QUALITY)
        atomic.write_bytes(folder / name, data, fsync=False)
        stored.append(Layer(key, MAPS.get(key, key), name))
    return tuple(stored)


def clear(folder: Path) -> None:
    """Remove a gallery that is there, its list first; a folder without a gallery is left alone."""
    if (folder / NAME).is_file():
        with atomic.faults(folder):
            (folder / NAME).unlink()
            shutil.rmtree(folder)


def write(folder: Path, gallery: Gallery) -> None:
    """Write the list of a gallery whose pictures are stored.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    documents.write_json(folder / NAME, {"schema_version": SCHEMA_VERSION, **asdict(gallery)})


def read(folder: Path) -> Gallery | None:
    """The gallery of a folder, or None if there is none.

    Raises:
        DataError: ``gallery.json`` is damaged, or was not written by us.
    """
    path = folder / NAME
    return parse(documents.read_json(path), where=str(path)) if path.is_file() else None


def parse(found: Any, *, where: str) -> Gallery:
    """A gallery from what ``gallery.json`` holds.

    Raises:
        DataError: it is no such document, or names files outside its folder.
    """
    from memorysam_cli.errors import DataError

    try:
        scenes = tuple(_scene(each) for each in found["scenes"])
        palette = tuple((int(r), int(g), int(b)) for r, g, b in found["palette"])
        gallery = Gallery(tuple(map(str, found["classes"])), palette, scenes)
        names = [layer.file for scene in scenes for layer in scene.layers]
        if found["schema_version"] != SCHEMA_VERSION or any(Path(name).name != name for name in names):
            raise ValueError
    except (KeyError, TypeError, ValueError) as fault:
        raise DataError(
            f"{where}: is no gallery of this version of memorysam; run `memorysam evaluate` again to make it anew"
        ) from fault
    return gallery


def _scene(found: dict[str, Any]) -> GalleryScene:
    height, width = found["size"]
    layers = tuple(Layer(str(each["key"]), str(each["title"]), str(each["file"])) for each in found["layers"])
    return GalleryScene(**{**found, "size": (int(height), int(width)), "layers": layers})


def shrunk(array: NDArray[Any], *, smooth: bool = False, long_side: int = LONG_SIDE) -> NDArray[Any]:
    """The array with at most so many pixels a side; a map of classes keeps its values."""
    height, width = array.shape[:2]
    share = long_side / max(height, width)
    if share >= 1:
        return array
    size = max(1, round(width * share)), max(1, round(height * share))
    how = cv2.INTER_AREA if smooth else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(array), size, interpolation=how)


def heat(share: Share) -> Picture:
    """0 to 1 as dark to light, in a map that the colour-blind read alike."""
    painted = cv2.applyColorMap(np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_CIVIDIS)
    return cv2.cvtColor(painted, cv2.COLOR_BGR2RGB).astype(np.uint8)
