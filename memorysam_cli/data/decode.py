"""Files → arrays: one frame per modality, and the label.

Nothing is scaled or normalised here: frames keep the dtype of their files, so that the augmentation acts on the same
values as the reference's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memorysam_cli.data.manifest import Scene
from memorysam_cli.data.resizing import resize_nearest
from memorysam_cli.data.transforms import Sample
from memorysam_cli.dataset import IGNORE, LabelRule, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

Frame = npt.NDArray[Any]

RAW_VALUES = 65536
"""Label files hold at most 16 bits."""
ILLEGAL = -1


def read_modality(paths: Sequence[Path], modality: Modality) -> Frame:
    """Read one modality of one scene.

    Args:
        paths: one file, or for an angle two: its sine and its cosine, stacked as [sin, cos, sin].
        modality: what the files are.

    Returns:
        (H, W, 3) uint8, uint16 or float32, as stored; grey is repeated, alpha is dropped.

    Raises:
        DataError: a file is missing, damaged, or of another kind; names the file.

    Source: DATASETS §0 and §1.5 (MCubeS's angles).
    """
    if modality.kind == "angle" and len(paths) == 2:
        sine, cosine = (_plane(path) for path in paths)
        if (sine.shape, sine.dtype) != (cosine.shape, cosine.dtype):
            raise DataError(
                f"{paths[0]}: sine is {_size(sine)} {sine.dtype}, but cosine ({paths[1].name}) is {_size(cosine)} "
                f"{cosine.dtype}; they must be alike"
            )
        return np.stack([sine, cosine, sine], axis=-1)  # 2 × (H, W) -> (H, W, 3)
    if len(paths) != 1:
        raise DataError(f"{paths[0]}: modality '{modality.name}' takes one file, not {len(paths)}")
    array = _read(paths[0])
    if array.shape[2] != 1:
        return array
    if modality.kind == "angle":
        raise DataError(f"{paths[0]}: one plane is no angle; '{modality.name}' needs its sine and its cosine")
    return np.repeat(array, 3, axis=2)  # (H, W, 1) -> (H, W, 3)


def read_label(path: Path, rule: LabelRule, classes: int) -> npt.NDArray[np.uint8]:
    """Read a label and turn its raw values into classes.

    Args:
        path: one channel, or four of which the first counts (DELIVER); 8 or 16 bits; lossless.
        rule: how raw values map to classes.
        classes: K, at most 255.

    Returns:
        (H, W) uint8: 0..K-1, or 255 where the pixel counts nowhere.

    Raises:
        DataError: the file is unusable, or holds a value that is no class: file, value, how many pixels,
            the first (row, column), and what is legal.
    """
    raw = _raw_label(path)
    table = _class_table(rule, classes)
    inside = raw if raw.dtype in (np.uint8, np.uint16) else np.clip(raw, 0, RAW_VALUES - 1)
    label = table[inside]
    if inside is not raw:
        label[inside != raw] = ILLEGAL
    if label.min() < 0:
        raise DataError(_illegal(path, raw, label, rule=rule, classes=classes))
    return label.astype(np.uint8)


def read_sample(
    root: Path,
    scene: Scene,
    *,
    modalities: Sequence[Modality],
    rule: LabelRule | None = None,
    classes: int = 0,
) -> Sample:
    """Read a scene's frames, and its label where a rule is given, all of one size.

    Args:
        root: the data root.
        scene: which files; modalities that it lacks are refused.
        modalities: which frames, in this order.
        rule: the label's rule; none leaves the label out.
        classes: K, with ``rule``.

    Returns:
        Frames of one size; low-resolution events are enlarged by nearest.

    Raises:
        DataError: a file is unusable, a modality or the label is missing, or sizes differ (scene and sizes).
    """
    frames: dict[str, Frame] = {}
    for modality in modalities:
        if modality.name not in scene.files:
            have = ", ".join(scene.files)
            raise DataError(f"scene {scene.id}: has no '{modality.name}' (it has: {have}); choose with --modalities")
        frames[modality.name] = read_modality([root / path for path in scene.files[modality.name]], modality)
    label = None
    if rule is not None:
        if scene.label is None:
            raise DataError(f"scene {scene.id}: has no label; only 'predict' works without labels")
        label = read_label(root / scene.label, rule, classes)
    return Sample(frames=_of_one_size(frames, label, scene=scene, modalities=modalities), label=label)


def fits(height: int, width: int, *, kind: str, frame: tuple[int, int]) -> bool:
    """Whether a modality of this size belongs to a frame (H, W): events alone may be smaller (``eventlowres``)."""
    return (height, width) == frame or (kind == "event" and height <= frame[0] and width <= frame[1])


def _of_one_size(
    frames: dict[str, Frame], label: Frame | None, *, scene: Scene, modalities: Sequence[Modality]
) -> dict[str, Frame]:
    """Enlarge low-resolution events; refuse every other difference in size."""
    sizes = {name: frame.shape[:2] for name, frame in frames.items()}
    if label is not None:
        sizes["label"] = label.shape
    kinds: Mapping[str, str] = {modality.name: modality.kind for modality in modalities}
    sharp = [size for name, size in sizes.items() if kinds.get(name) != "event"]
    height, width = sharp[0] if sharp else max(sizes.values())
    if not all(fits(*size, kind=kinds.get(name, ""), frame=(height, width)) for name, size in sizes.items()):
        listed = ", ".join(f"{name} {rows}×{columns}" for name, (rows, columns) in sizes.items())
        raise DataError(f"scene {scene.id}: sizes differ ({listed}); all must be equal, events alone may be smaller")
    return {name: resize_nearest(frame, height=height, width=width) for name, frame in frames.items()}


def _read(path: Path) -> Frame:
    """(H, W, 1) or (H, W, 3), uint8, uint16 or float32."""
    array = images.read(path)
    array = array[:, :, None] if array.ndim == len("HW") else array
    array = array[:, :, :3] if array.shape[2] == len("RGBA") else array
    if array.shape[2] not in (1, 3):
        raise DataError(f"{path}: has {array.shape[2]} channels; allowed are one, three or four")
    if array.dtype in (np.float16, np.float64):
        array = array.astype(np.float32)
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise DataError(f"{path}: holds {array.dtype}; allowed are uint8, uint16 and floating point")
    return np.ascontiguousarray(array)


def _plane(path: Path) -> Frame:
    """A file with one channel: (H, W)."""
    array = _read(path)
    if array.shape[2] != 1:
        raise DataError(f"{path}: has {array.shape[2]} channels; the sine or cosine of an angle has one")
    return array[:, :, 0]


def _raw_label(path: Path) -> Frame:
    """(H, W) integers as stored."""
    header = images.header(path)
    if header.format == "jpeg" or header.has_palette or header.channels not in (1, 4):
        what = "a JPEG" if header.format == "jpeg" else "a palette picture" if header.has_palette else "in colour"
        raise DataError(f"{path}: is {what}; labels must be class numbers in one channel, lossless (PNG)")
    array = images.read(path)
    if array.dtype.kind not in "iu":
        raise DataError(f"{path}: holds {array.dtype}; labels must be whole numbers")
    return array if array.ndim == len("HW") else array[:, :, 0]


@lru_cache(maxsize=8)
def _class_table(rule: LabelRule, classes: int) -> npt.NDArray[np.int32]:
    """Raw value → class, 255, or ILLEGAL. int32: in uint8 a shift of -1 would turn 0 into 255."""
    if not 0 < classes <= IGNORE:
        raise DataError(f"{classes} classes: from 1 to {IGNORE} are possible")
    table = np.arange(RAW_VALUES, dtype=np.int32) + rule.shift
    table[(table < 0) | (table >= classes)] = ILLEGAL
    table[list(rule.ignore)] = IGNORE
    return table


def _illegal(path: Path, raw: Frame, label: Frame, *, rule: LabelRule, classes: int) -> str:
    """The message on the first illegal pixel."""
    row, column = (int(index) for index in np.argwhere(label < 0)[0])
    value = int(raw[row, column])
    others = int((label < 0).sum() - (raw == value).sum())
    more = f" (and {others} pixels of other illegal values)" if others else ""
    ignored = ", ".join(str(number) for number in rule.ignore)
    return (
        f"{path}: label value {value} in {int((raw == value).sum())} pixels, first at (row {row}, column {column})"
        f"{more}; legal are {-rule.shift}..{classes - 1 - rule.shift}, and {ignored} for 'ignored'"
    )


def _size(frame: Frame) -> str:
    """Height × width for a message."""
    return f"{frame.shape[0]}×{frame.shape[1]}"
