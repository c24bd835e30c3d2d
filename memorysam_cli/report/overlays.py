"""Pictures of masks for people: colours, blends, error maps, and sheets with a legend.

Everything here is NumPy arrays in and out, RGB order, uint8; files are written by ``storage.images``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from memorysam_cli.dataset import IGNORE

Picture = NDArray[np.uint8]
"""(H, W, 3) RGB."""
Mask = NDArray[np.integer]
"""(H, W) class indices, 255 where nothing counts."""
Colour = tuple[int, int, int]

WRONG: Colour = (214, 39, 40)
INK: Colour = (30, 30, 30)
PAPER: Colour = (255, 255, 255)
GAP_PX = 8
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, slots=True)
class Panel:
    """One titled picture of a sheet."""

    title: str
    picture: Picture


def colour(mask: Mask, palette: Sequence[Colour]) -> Picture:
    """Paint each class in its colour; what is ignored (255) becomes dark stripes.

    Args:
        mask: (H, W) integers in 0..K-1, or 255.
        palette: K colours.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: a value is neither a class nor 255.
    """
    ignored = _ignored(mask, len(palette))
    legal = np.where(ignored, 0, mask)
    if legal.size and not 0 <= int(legal.min()) <= int(legal.max()) < len(palette):
        raise ValueError(f"mask: values {legal.min()}..{legal.max()}, the palette has {len(palette)} colours")
    painted = np.asarray(palette, np.uint8)[legal]
    painted[ignored] = _stripes(mask.shape)[ignored]
    return painted


def overlay(image: Picture, mask: Mask, palette: Sequence[Colour], alpha: float = 0.5) -> Picture:
    """Blend the mask's colours over an image; ignored pixels show the image alone.

    Args:
        image: (H, W, 3).
        mask: (H, W), of the image's size.
        palette: K colours.
        alpha: the share of the mask's colour, 0..1.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: sizes differ, or as in :func:`colour`.
    """
    _same_size(image, mask)
    blend = cv2.addWeighted(image, 1 - alpha, colour(mask, palette), alpha, 0)
    return np.where(_ignored(mask, len(palette))[..., None], image, blend).astype(np.uint8)


def errors(image: Picture, prediction: Mask, label: Mask) -> Picture:
    """Show where the prediction is wrong: red over the faded image, stripes where nothing counts.

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
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    shown: Picture = np.repeat((96 + grey // 2).astype(np.uint8)[..., None], 3, axis=2)
    shown[prediction != label] = WRONG
    ignored = label == IGNORE
    shown[ignored] = _stripes(label.shape)[ignored]
    return shown


def as_picture(frame: NDArray[np.generic]) -> Picture:
    """Any modality's frame as a picture: 8-bit as it is, others stretched from their 1st to 99th percentile.

    Args:
        frame: (H, W) or (H, W, 3); uint8, uint16 or float. Zeros (no measurement) do not set the range.

    Returns:
        (H, W, 3).
    """
    spread = frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=2)
    if spread.dtype == np.uint8:
        return spread.astype(np.uint8)
    values = spread.astype(np.float32)
    measured = values[values != 0]
    low, high = np.percentile(measured, (1, 99)) if measured.size else (0.0, 1.0)
    if measured.size < values.size:
        low = min(low, 0.0)  # what was not measured stays darkest
    scaled = (values - low) / max(high - low, 1e-12)
    shown: Picture = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return shown


def comparison(
    frames: Mapping[str, NDArray[np.generic]],
    prediction: Mask,
    *,
    palette: Sequence[Colour],
    label: Mask | None = None,
) -> list[Panel]:
    """One scene as a row of panels: its modalities, the label, the prediction, and what is wrong.

    Args:
        frames: modality → (H, W) or (H, W, 3), all of one size; the first one is under the error map.
        prediction: (H, W), of the same size.
        palette: K colours.
        label: (H, W); without it there are no panels of label and errors.
    """
    pictures = {name: as_picture(frame) for name, frame in frames.items()}
    panels = [Panel(name, picture) for name, picture in pictures.items()]
    if label is not None:
        panels.append(Panel("label", colour(label, palette)))
    panels.append(Panel("prediction", colour(prediction, palette)))
    if label is not None:
        panels.append(Panel("wrong in red", errors(next(iter(pictures.values())), prediction, label)))
    return panels


def legend(masks: Sequence[Mask], *, classes: Sequence[str], palette: Sequence[Colour]) -> list[tuple[str, Colour]]:
    """Name and colour of each class that occurs in any of the masks, in the order of the classes."""
    present = {int(index) for mask in masks for index in np.unique(mask)}
    return [(name, palette[index]) for index, name in enumerate(classes) if index in present]


def sheet(
    rows: Sequence[Sequence[Panel]], entries: Sequence[tuple[str, Colour]] = (), *, panel_px: int = 256
) -> Picture:
    """Set panels in rows, each titled, with a legend of classes below.

    Args:
        rows: panels of any size; each is scaled to ``panel_px`` high (enlarged without smoothing).
        entries: name and colour of the legend, as of :func:`legend`.
        panel_px: height of each panel in pixels.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: there is no panel.
    """
    if not any(rows):
        raise ValueError("a sheet needs at least one panel")
    size = 0.5 * max(1.0, panel_px / 400)
    strips = [_row(row, panel_px=panel_px, text_size=size) for row in rows if row]
    width = max(strip.shape[1] for strip in strips)
    if entries:
        strips.append(_legend_strip(entries, width=width, text_size=size))
        width = max(width, strips[-1].shape[1])
    return np.concatenate([_widen(strip, width) for strip in strips])


def key(entries: Sequence[tuple[str, Colour]], *, width: int) -> Picture:
    """Names and colours alone, in columns.

    Args:
        entries: name and colour.
        width: pixels, at least; long names take more.

    Returns:
        (H, W, 3).
    """
    return _legend_strip(entries, width=width, text_size=0.5)


def _row(panels: Sequence[Panel], *, panel_px: int, text_size: float) -> Picture:
    """The panels side by side under their titles."""
    return np.concatenate([_titled(panel, panel_px=panel_px, text_size=text_size) for panel in panels], axis=1)


def _titled(panel: Panel, *, panel_px: int, text_size: float) -> Picture:
    """One panel at its height, its title above (cut to its width), a margin around."""
    height, width = panel.picture.shape[:2]
    shown_width = max(1, round(width * panel_px / height))
    how = cv2.INTER_NEAREST if panel_px >= height else cv2.INTER_AREA
    shown = cv2.resize(panel.picture, (shown_width, panel_px), interpolation=how)
    line_px = _line_px(text_size)
    canvas = _blank(panel_px + line_px + GAP_PX, shown_width + 2 * GAP_PX)
    canvas[line_px : line_px + panel_px, GAP_PX : GAP_PX + shown_width] = shown
    _write(canvas, _fitting(panel.title, shown_width, text_size), x=GAP_PX, y=0, text_size=text_size)
    return canvas


def _legend_strip(entries: Sequence[tuple[str, Colour]], *, width: int, text_size: float) -> Picture:
    """Swatches and names in as many equal columns as the width holds."""
    line_px = _line_px(text_size)
    column_px = line_px + GAP_PX + max(_text_px(name, text_size) for name, _ in entries) + 2 * GAP_PX
    columns = max(1, min(len(entries), (width - GAP_PX) // column_px))
    lines = -(-len(entries) // columns)
    canvas = _blank(lines * line_px + GAP_PX, max(width, columns * column_px + GAP_PX))
    for index, (name, shade) in enumerate(entries):
        column, line = divmod(index, lines)
        x, y = GAP_PX + column * column_px, line * line_px
        swatch = (slice(y + 3, y + line_px - 3), slice(x, x + line_px))
        canvas[swatch] = (128, 128, 128)  # a frame, so that white and near-white classes show
        canvas[y + 4 : y + line_px - 4, x + 1 : x + line_px - 1] = shade
        _write(canvas, name, x=x + line_px + GAP_PX, y=y, text_size=text_size)
    return canvas


def _fitting(text: str, width: int, text_size: float) -> str:
    """The text, without its beginning where it is wider than ``width`` pixels: a scene's id differs at its end."""
    if _text_px(text, text_size) <= width:
        return text
    while text and _text_px("..." + text, text_size) > width:
        text = text[1:]
    return "..." + text


def _write(canvas: Picture, text: str, *, x: int, y: int, text_size: float) -> None:
    """Write one line of text whose line box begins at (x, y)."""
    base = y + round(_line_px(text_size) * 0.72)
    cv2.putText(canvas, text, (x, base), FONT, text_size, INK, 1, cv2.LINE_AA)


def _text_px(text: str, text_size: float) -> int:
    return int(cv2.getTextSize(text, FONT, text_size, 1)[0][0])


def _line_px(text_size: float) -> int:
    return round(44 * text_size)


def _blank(height: int, width: int) -> Picture:
    return np.full((height, width, 3), PAPER, np.uint8)


def _widen(strip: Picture, width: int) -> Picture:
    """The strip with paper at its right, up to ``width``."""
    return np.concatenate([strip, _blank(strip.shape[0], width - strip.shape[1])], axis=1)


def _stripes(shape: tuple[int, ...]) -> Picture:
    """Dark diagonal stripes, 4 pixels each, that no palette's plain colour can be mistaken for."""
    rows, columns = np.indices(shape)
    tone = np.where((rows + columns) // 4 % 2, 70, 20).astype(np.uint8)
    return np.repeat(tone[..., None], 3, axis=2)


def _ignored(mask: Mask, classes: int) -> NDArray[np.bool_]:
    """Where the mask says 255 and 255 is no class."""
    return np.asarray((mask == IGNORE) & (classes <= IGNORE))


def _same_size(image: Picture, mask: Mask) -> None:
    if image.shape[:2] != mask.shape:
        raise ValueError(f"the image is {image.shape[:2]}, the mask {mask.shape}")
