"""What a data set is: classes, palette, modalities and their normalisation.

Written by ``memorysam prepare`` as ``dataset.json``, carried inside every weights file, and read by
training, evaluation and prediction alike.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

IGNORE = 255
"""The label value of a pixel that counts nowhere."""

Kind = Literal["rgb", "gray", "depth", "hha", "event", "lidar", "thermal", "angle"]
Interpolation = Literal["bilinear", "nearest"]
Flip = Literal["mirror", "negate_sine", "negate_cosine"]
Colour = tuple[int, int, int]


class Strict(BaseModel):
    """Base of all our schemas: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Modality(Strict):
    """One sensor: how its files become a (3, H, W) float tensor.

    Three of the stored channels are taken, stored values become ``x = stored · scale + offset``, and then
    ``(x - mean) / std`` where both are given. Source: the reference's pre-processing for DELIVER and MCubeS.
    """

    name: str
    kind: Kind
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Interpolation = "bilinear"
    photometric: tuple[Literal["jitter", "blur"], ...] = ()
    """Which photometric augmentations act on this modality (geometry always acts on all)."""
    channels: tuple[int, int, int] | None = None
    """Which stored channels are the three, from 0. None: grey is repeated, alpha is dropped; any other number of
    channels needs this."""
    scale: float | None = None
    """Of stored values. None: by dtype, uint8 / 255, uint16 / 65535, floating point as stored."""
    offset: float = 0.0
    """Added to scaled values."""
    flip: Flip = "mirror"
    """What a horizontal flip does beside mirroring the pixels. An angle given as [sine, cosine, sine] may have to
    change the sign of one, by its convention; ``mirror`` is what the reference does. The others need a range of values
    that is symmetric about 0: floating point, or integers with ``scale`` and ``offset``."""


class LabelRule(Strict):
    """How a raw label value becomes a class index.

    ``raw + shift`` is the class, or what ``mapping`` says where there is one; values in ``ignore`` become 255;
    anything else outside 0..K-1 is refused, never wrapped.
    """

    shift: int = 0
    ignore: tuple[int, ...] = (IGNORE,)
    mapping: tuple[tuple[int, int], ...] = ()
    """(raw, class) pairs; where there are any, all raw values must be listed here or in ``ignore``."""
    colours: bool = False
    """The files are RGB pictures in the palette's colours; other colours become 255, and the check counts them."""


class Crop(Strict):
    """Columns that the published protocol leaves out (MCubeS drops 192 of 1224 at the left)."""

    left: int = 0
    """Columns dropped at the left at the native height ``of_height``."""
    of_height: int = 1024
    square: bool = False
    """Then cut the centre square."""


class Statistics(Strict):
    """The values of one modality over a split, after ``scale`` and ``offset``, before normalisation."""

    split: str
    scenes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    low: float
    high: float


class DatasetInfo(Strict):
    """The content of ``dataset.json``."""

    schema_version: Literal[1] = 1
    name: str
    title: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    modalities: tuple[Modality, ...]
    """All that the data set has, in its own order."""
    label: LabelRule = LabelRule()
    unlabelled: tuple[str, ...] = ()
    """Splits whose labels are not published; their scenes can be predicted, not scored."""
    statistics: dict[str, Statistics] = Field(default_factory=dict)
    """Modality → what ``prepare --measure`` found; for information, ``mean`` and ``std`` of the modality decide."""
    crop: Crop | None = None
    """Only for data sets whose published protocol scores a part of the frame."""
    root: str = "."
    """The data set's folder, relative to the data root; scene paths already contain it."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Scenes per split."""
    content_hash: str = ""
    """SHA-256 over ``scenes.jsonl`` and the sizes of all files that it names."""

    @model_validator(mode="after")
    def _one_colour_per_class(self) -> DatasetInfo:
        if not self.classes or len(self.classes) != len(self.palette):
            raise ValueError(f"{len(self.classes)} classes need as many colours, not {len(self.palette)}")
        return self

    def modality(self, name: str) -> Modality:
        """The modality called ``name``; ``KeyError`` if there is none."""
        return {m.name: m for m in self.modalities}[name]
