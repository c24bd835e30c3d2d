"""Pictures of scenes: colors, overlays, error maps and sheets with a legend; and galleries of them.

Pictures are NumPy arrays, RGB order, uint8; ``storage.images`` writes files. A gallery is a folder of small pictures,
layer by layer, for reports: ``gallery.json``, and its pictures. The JSON is written last and removed first, so its
pictures always exist.
"""

from __future__ import annotations

import re
import shutil
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from memorysam_cli.dataset import IGNORE
from memorysam_cli.errors import DataError
from memorysam_cli.storage import atomic, documents, images
from memorysam_cli.text import shown

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""
Mask = NDArray[np.integer]
"""(H, W) class indices, 255 for ignored pixels."""
Color = tuple[int, int, int]

WRONG: Color = (214, 39, 40)
INK: Color = (231, 233, 236)
MATTE: Color = (29, 32, 36)
"""Background of sheets: dark, so that they are not too bright in a dark report or beside pictures of the night."""
PAPER: Color = (255, 255, 255)
"""Background of a legend alone, which is used in other figures."""
OPACITY = 0.35
"""Opacity of a class's color inside its contour; the picture below stays readable."""
CONTOUR_SHARE = 1 / 500
"""Width of a contour on each side, as a share of the picture's short side; at least one pixel."""
SHOWN_PX = 1100
"""Width in pixels at which a report shows a sheet; wider sheets get larger letters."""
GAP_PX = 8
FONT = cv2.FONT_HERSHEY_SIMPLEX

GALLERY_FILE = "gallery.json"
GALLERY_VERSION = 1
LONG_SIDE = 480
"""Pixels of the long side: more than a card of a report shows, and small enough for many scenes."""
QUALITY = 82
"""JPEG quality for sensors; layers with flat colors are PNG."""
MAPS = {"label": "Label", "prediction": "Prediction", "error": "Errors", "confidence": "Confidence"}
"""The layers that are not sensors, and their titles."""

Rank = Literal["worst", "best", "chosen"]
Confidence = NDArray[np.float32]
"""(H, W), 0 to 1."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture of a sheet with its title."""

    title: str
    picture: Picture


def paint(mask: Mask, palette: Sequence[Color]) -> Picture:
    """Paint each class in its color; ignored pixels (255) become dark stripes.

    Args:
        mask: (H, W) integers in 0..K-1, or 255.
        palette: K colors.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: a value is neither a class nor 255.
    """
    ignored = _ignored(mask, len(palette))
    legal = np.where(ignored, 0, mask)
    if legal.size and not 0 <= int(legal.min()) <= int(legal.max()) < len(palette):
        raise ValueError(f"mask: values {legal.min()}..{legal.max()}, the palette has {len(palette)} colors")
    painted = np.asarray(palette, np.uint8)[legal]
    painted[ignored] = _stripes(mask.shape)[ignored]
    return painted


def overlay(image: Picture, mask: Mask, palette: Sequence[Color], alpha: float = OPACITY) -> Picture:
    """Tint an image with the mask's colors and outline each region in its own; ignored pixels show only the image.

    Args:
        image: (H, W, 3).
        mask: (H, W), of the image's size.
        palette: K colors.
        alpha: opacity of the mask's color inside the contours, 0..1.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: sizes differ, or as in :func:`paint`.
    """
    _same_size(image, mask)
    painted = paint(mask, palette)
    blend = cv2.addWeighted(image, 1 - alpha, painted, alpha, 0)
    blend[contours(mask)] = painted[contours(mask)]
    return np.where(_ignored(mask, len(palette))[..., None], image, blend).astype(np.uint8)


def contours(mask: Mask) -> NDArray[np.bool_]:
    """The borders between regions of different classes: (H, W), on both sides, with the width of
    :data:`CONTOUR_SHARE`."""
    edge = np.zeros(mask.shape, np.uint8)
    across, along = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    for half, found in ((edge[:, 1:], across), (edge[:, :-1], across), (edge[1:], along), (edge[:-1], along)):
        half[found] = 1
    width = round(CONTOUR_SHARE * min(mask.shape))
    if width > 1:
        return cv2.dilate(edge, np.ones((2 * width - 1, 2 * width - 1), np.uint8)).astype(np.bool_)
    return edge.astype(np.bool_)


def errors(image: Picture, prediction: Mask, label: Mask) -> Picture:
    """Show where the prediction is wrong: red over the faded image, stripes for ignored pixels.

    Args:
        image: (H, W, 3).
        prediction: (H, W) class indices.
        label: (H, W) class indices or 255.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: sizes differ.
    """
    _same_size(image, prediction)
    _same_size(image, label)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    shown: Picture = np.repeat((48 + gray // 2).astype(np.uint8)[..., None], 3, axis=2)
    shown[prediction != label] = WRONG
    ignored = label == IGNORE
    shown[ignored] = _stripes(label.shape)[ignored]
    return shown


def as_picture(frame: NDArray[np.generic]) -> Picture:
    """Any modality's frame as a picture: 8-bit as it is, others stretched from their 1st to 99th percentile.

    Args:
        frame: (H, W) or (H, W, C); uint8, uint16 or float. Zeros (no measurement) do not affect the range. With more
            than three channels the first three are shown; with fewer the last one is repeated.

    Returns:
        (H, W, 3).
    """
    channels = frame[..., None] if frame.ndim == 2 else frame
    spread = channels[..., [min(place, channels.shape[2] - 1) for place in range(3)]]
    if spread.dtype == np.uint8:
        return spread.astype(np.uint8)
    values = spread.astype(np.float32)
    measured = values[values != 0]
    low, high = np.percentile(measured, (1, 99)) if measured.size else (0.0, 1.0)
    if measured.size < values.size:
        low = min(low, 0.0)  # pixels without a measurement stay darkest
    scaled = (values - low) / max(high - low, 1e-12)
    shown: Picture = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return shown


def comparison(
    frames: Mapping[str, NDArray[np.generic]],
    prediction: Mask,
    *,
    palette: Sequence[Color],
    label: Mask | None = None,
) -> list[Panel]:
    """One scene as a row of panels: its modalities, the label, the prediction, and the errors.

    Args:
        frames: modality → (H, W) or (H, W, 3), all of one size; the first one is under the error map.
        prediction: (H, W), of the same size.
        palette: K colors.
        label: (H, W); without it, the panels of label and errors are left out.
    """
    pictures = {name: as_picture(frame) for name, frame in frames.items()}
    panels = [Panel(name, picture) for name, picture in pictures.items()]
    if label is not None:
        panels.append(Panel("label", paint(label, palette)))
    panels.append(Panel("prediction", paint(prediction, palette)))
    if label is not None:
        panels.append(Panel("wrong in red", errors(next(iter(pictures.values())), prediction, label)))
    return panels


def legend(masks: Sequence[Mask], *, classes: Sequence[str], palette: Sequence[Color]) -> list[tuple[str, Color]]:
    """Name and color of each class in any of the masks, in the order of the classes."""
    present = {int(index) for mask in masks for index in np.unique(mask)}
    return [(name, palette[index]) for index, name in enumerate(classes) if index in present]


def sheet(
    rows: Sequence[Sequence[Panel]],
    entries: Sequence[tuple[str, Color]] = (),
    *,
    captions: Sequence[str] = (),
    panel_px: int = 256,
) -> Picture:
    """Arrange panels in rows, with titles where they change and a legend of classes below.

    Args:
        rows: panels of any size; each is scaled to ``panel_px`` high (enlarged without smoothing).
        entries: name and color of the legend, from :func:`legend`.
        captions: a line above each row, such as the scene's name; or none.
        panel_px: height of each panel in pixels.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: there is no panel.
    """
    if not any(rows):
        raise ValueError("a sheet needs at least one panel")
    size = _sheet_text_size(rows, panel_px=panel_px)
    strips: list[Picture] = []
    before: list[str] = []
    for number, row in enumerate(rows):
        titles = [panel.title for panel in row]
        if not row:
            continue
        strip = _row(row, panel_px=panel_px, text_size=size, is_titled=titles != before)
        if captions:
            strips.append(_caption(captions[number], width=strip.shape[1], text_size=size))
        strips.append(strip)
        before = titles
    width = max(strip.shape[1] for strip in strips)
    if entries:
        strips.append(_legend_strip(entries, width=width, text_size=size))
        width = max(width, strips[-1].shape[1])
    return np.concatenate([_widen(strip, width) for strip in strips])


def key(entries: Sequence[tuple[str, Color]], *, width: int) -> Picture:
    """Names and colors alone, in columns, on a white background.

    Args:
        entries: name and color.
        width: smallest width in pixels; long names need more.

    Returns:
        (H, W, 3).
    """
    return _legend_strip(entries, width=width, text_size=0.5, paper=PAPER, ink=MATTE)


def _sheet_text_size(rows: Sequence[Sequence[Panel]], *, panel_px: int) -> float:
    """Size of the letters: it grows with the panels, and with the sheet's width, because a page shrinks wide sheets."""
    widths = [sum(_shown_width(panel, panel_px) + 2 * GAP_PX for panel in row) for row in rows]
    return 0.5 * max(1.0, panel_px / 400, max(widths) / SHOWN_PX)


def _shown_width(panel: Panel, panel_px: int) -> int:
    height, width = panel.picture.shape[:2]
    shown: int = max(1, round(width * panel_px / height))
    return shown


def _row(panels: Sequence[Panel], *, panel_px: int, text_size: float, is_titled: bool) -> Picture:
    """The panels side by side, below their titles if these have changed."""
    return np.concatenate(
        [_titled(panel, panel_px=panel_px, text_size=text_size, is_titled=is_titled) for panel in panels], axis=1
    )


def _caption(text: str, *, width: int, text_size: float) -> Picture:
    """A line of text as wide as its row."""
    canvas = _blank(_line_px(text_size), width)
    _write(canvas, _fitting(text, width - 2 * GAP_PX, text_size), x=GAP_PX, y=0, text_size=text_size)
    return canvas


def _titled(panel: Panel, *, panel_px: int, text_size: float, is_titled: bool) -> Picture:
    """A panel at its height, with its title above (cut to its width) and a margin."""
    shown_width = _shown_width(panel, panel_px)
    how = cv2.INTER_NEAREST if panel_px >= panel.picture.shape[0] else cv2.INTER_AREA
    shown = cv2.resize(panel.picture, (shown_width, panel_px), interpolation=how)
    line_px = _line_px(text_size) if is_titled else 0
    canvas = _blank(panel_px + line_px + GAP_PX, shown_width + 2 * GAP_PX)
    canvas[line_px : line_px + panel_px, GAP_PX : GAP_PX + shown_width] = shown
    if is_titled:
        _write(canvas, _fitting(panel.title, shown_width, text_size), x=GAP_PX, y=0, text_size=text_size)
    return canvas


def _legend_strip(
    entries: Sequence[tuple[str, Color]],
    *,
    width: int,
    text_size: float,
    paper: Color = MATTE,
    ink: Color = INK,
) -> Picture:
    """Color samples and names in equal columns, as many as fit."""
    line_px = _line_px(text_size)
    column_px = line_px + GAP_PX + max(_text_px(name, text_size) for name, _ in entries) + 2 * GAP_PX
    columns = max(1, min(len(entries), (width - GAP_PX) // column_px))
    lines = -(-len(entries) // columns)
    canvas = _blank(lines * line_px + GAP_PX, max(width, columns * column_px + GAP_PX), paper=paper)
    for index, (name, shade) in enumerate(entries):
        column, line = divmod(index, lines)
        x, y = GAP_PX + column * column_px, line * line_px
        swatch = (slice(y + 3, y + line_px - 3), slice(x, x + line_px))
        canvas[swatch] = (128, 128, 128)  # a frame, so that white and near-white classes are visible
        canvas[y + 4 : y + line_px - 4, x + 1 : x + line_px - 1] = shade
        _write(canvas, name, x=x + line_px + GAP_PX, y=y, text_size=text_size, ink=ink)
    return canvas


def _fitting(text: str, width: int, text_size: float) -> str:
    """The text, without its beginning if it is wider than ``width`` pixels, because scene ids differ at the end."""
    if _text_px(text, text_size) <= width:
        return text
    cut = bisect_left(range(len(text)), True, key=lambda cut: _text_px("..." + text[cut:], text_size) <= width)
    return "..." + text[cut:]


def _write(canvas: Picture, text: str, *, x: int, y: int, text_size: float, ink: Color = INK) -> None:
    """Write one line of text whose box begins at (x, y)."""
    base = y + round(_line_px(text_size) * 0.72)
    cv2.putText(canvas, shown(text), (x, base), FONT, text_size, ink, 1, cv2.LINE_AA)


def _text_px(text: str, text_size: float) -> int:
    return int(cv2.getTextSize(shown(text), FONT, text_size, 1)[0][0])


def _line_px(text_size: float) -> int:
    return round(44 * text_size)


def _blank(height: int, width: int, *, paper: Color = MATTE) -> Picture:
    return np.full((height, width, 3), paper, np.uint8)


def _widen(strip: Picture, width: int) -> Picture:
    """The strip with a margin at its right, extended to ``width``."""
    return np.concatenate([strip, _blank(strip.shape[0], width - strip.shape[1])], axis=1)


def _stripes(shape: tuple[int, ...]) -> Picture:
    """Dark diagonal stripes, 4 pixels each, which cannot be mistaken for a class's color."""
    rows, columns = np.indices(shape)
    tone = np.where((rows + columns) // 4 % 2, 70, 20).astype(np.uint8)
    return np.repeat(tone[..., None], 3, axis=2)


def _ignored(mask: Mask, classes: int) -> NDArray[np.bool_]:
    """Where the mask is 255 and 255 is not a class."""
    return np.asarray((mask == IGNORE) & (classes <= IGNORE))


def _same_size(image: Picture, mask: Mask) -> None:
    if image.shape[:2] != mask.shape:
        raise ValueError(f"the image is {image.shape[:2]}, the mask {mask.shape}")


@dataclass(frozen=True)
class Layer:
    """A picture of a scene."""

    key: str
    """A modality's name, or one of :data:`MAPS`."""
    title: str
    file: str
    """Path relative to the gallery's folder."""


@dataclass(frozen=True)
class GalleryScene:
    """A scene's pictures and score."""

    scene: str
    split: str
    condition: str | None
    case: str | None
    rank: Rank
    miou_present: float | None
    """In %; None without a label."""
    accuracy: float | None
    size: tuple[int, int]
    """Height and width of the original scene."""
    layers: tuple[Layer, ...]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Scenes of one data set."""

    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    """RGB."""
    scenes: tuple[GalleryScene, ...]


def gallery_layers(
    frames: Mapping[str, NDArray[np.generic]],
    prediction: Mask,
    *,
    palette: Sequence[Color],
    label: Mask | None = None,
    confidence: Confidence | None = None,
) -> dict[str, Picture]:
    """A scene's layers as pictures of at most :data:`LONG_SIDE` pixels.

    Args:
        frames: modality → (H, W) or (H, W, 3), all of one size.
        prediction: (H, W) class indices, of that size.
        palette: K colors.
        label: (H, W) class indices or 255; without it, label and errors are left out.
        confidence: (H, W), 0 to 1: the probability of the predicted class.

    Returns:
        The modalities, then the existing ones of :data:`MAPS`, in that order.
    """
    sensors = {name: as_picture(frame) for name, frame in frames.items()}
    layers = {name: shrunk(picture, smooth=True) for name, picture in sensors.items()}
    seen = shrunk(prediction)
    if label is not None:
        truth = shrunk(label)
        layers["label"] = paint(truth, palette)
    layers["prediction"] = paint(seen, palette)
    if label is not None:
        layers["error"] = errors(next(iter(layers.values())), seen, truth)
    if confidence is not None:
        layers["confidence"] = heat(shrunk(confidence))
    return layers


def store_layers(folder: Path, number: int, layers: Mapping[str, Picture]) -> tuple[Layer, ...]:
    """Write a scene's pictures into a gallery's folder: sensors as JPEG, maps as PNG.

    Args:
        folder: the gallery's.
        number: number of the scene, from 0; file names use it, because a scene's id may not be a valid file name.
        layers: from :func:`gallery_layers`.

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


def clear_gallery(folder: Path) -> None:
    """Remove an existing gallery, its list first; a folder without a gallery does not change."""
    if (folder / GALLERY_FILE).is_file():
        with atomic.faults(folder):
            (folder / GALLERY_FILE).unlink()
            shutil.rmtree(folder)


def write_gallery(folder: Path, gallery: Gallery) -> None:
    """Write the list of a gallery whose pictures are stored.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    documents.write_json(folder / GALLERY_FILE, {"schema_version": GALLERY_VERSION, **asdict(gallery)})


def read_gallery(folder: Path) -> Gallery | None:
    """The gallery of a folder, or None if there is none.

    Raises:
        DataError: ``gallery.json`` is damaged, or was not written by us.
    """
    path = folder / GALLERY_FILE
    return parse_gallery(documents.read_json(path), where=str(path)) if path.is_file() else None


def parse_gallery(document: Any, *, where: str) -> Gallery:
    """The gallery from the content of ``gallery.json``.

    Raises:
        DataError: it is not such a document, or names files outside its folder.
    """
    try:
        scenes = tuple(_gallery_scene(each) for each in document["scenes"])
        palette = tuple((int(r), int(g), int(b)) for r, g, b in document["palette"])
        gallery = Gallery(tuple(map(str, document["classes"])), palette, scenes)
        names = [layer.file for scene in scenes for layer in scene.layers]
        if document["schema_version"] != GALLERY_VERSION or any(Path(name).name != name for name in names):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: is not a gallery of this version of memorysam; run `memorysam evaluate` again"
        ) from error
    return gallery


def _gallery_scene(stored: dict[str, Any]) -> GalleryScene:
    height, width = stored["size"]
    layers = tuple(Layer(str(each["key"]), str(each["title"]), str(each["file"])) for each in stored["layers"])
    return GalleryScene(**{**stored, "size": (int(height), int(width)), "layers": layers})


def shrunk(array: NDArray[Any], *, smooth: bool = False, long_side: int = LONG_SIDE) -> NDArray[Any]:
    """The array with sides of at most this number of pixels; a class map keeps its values."""
    height, width = array.shape[:2]
    share = long_side / max(height, width)
    if share >= 1:
        return array
    size = max(1, round(width * share)), max(1, round(height * share))
    how = cv2.INTER_AREA if smooth else cv2.INTER_NEAREST
    return cv2.resize(np.ascontiguousarray(array), size, interpolation=how)


def heat(confidence: Confidence) -> Picture:
    """0 to 1 as dark to light, in a color map that is safe for color blindness."""
    painted = cv2.applyColorMap(np.rint(np.clip(confidence, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_CIVIDIS)
    return cv2.cvtColor(painted, cv2.COLOR_BGR2RGB).astype(np.uint8)
