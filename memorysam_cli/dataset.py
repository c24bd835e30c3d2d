"""Description of a data set: classes, palette, modalities and their normalization.

``memorysam prepare`` writes it as ``dataset.json``. Every weights file contains it. Training, evaluation and prediction
read it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, field_validator, model_validator

from memorysam_cli.text import counted

IGNORE = 255
"""The label value of an ignored pixel."""

Kind = Literal["rgb", "gray", "depth", "hha", "event", "lidar", "thermal", "angle"]
Interpolation = Literal["bilinear", "nearest"]
Flip = Literal["mirror", "negate_sine", "negate_cosine"]
Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]
Channel = Annotated[int, Field(ge=0)]
Band = Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1)]
LARGEST, SMALLEST = 3.4e38, 1.2e-38
"""The largest float32; values are computed in float32."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
RAW_VALUES = 65536
"""Label files hold at most 16 bits."""
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Normalization of RGB in [0, 1], as SAM 2 was trained; every other modality is only scaled. Source: METHOD §5,
DATASETS §0."""


_SPELLED = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "ø": "oe", "æ": "ae"}
)
"""Letters and their usual replacement without a mark."""
WORD = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""Pattern of a name of a folder, data set or modality."""


def is_word(text: str) -> bool:
    """Whether a text can be the name of a folder, a data set or a modality."""
    return re.fullmatch(WORD, text) is not None


def word_of(text: str) -> str:
    """A text as a valid name: ``Wärmebild links`` becomes ``Waermebild-links``; "" if no letter or digit is left."""
    spelled = unicodedata.normalize("NFC", text).translate(_SPELLED)
    plain = unicodedata.normalize("NFKD", spelled).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:100]


def _word(text: str) -> str:
    if not is_word(text):
        raise ValueError("must be a word of letters, digits, '.', '_' and '-', beginning with a letter or a digit")
    return text


Name = Annotated[str, AfterValidator(_word), Field(json_schema_extra={"pattern": f"^{WORD}$"})]
"""A name that can be a folder's name."""


_LEADS_OUT = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)|[\\\0]|^[A-Za-z]:")
"""Pattern of path parts that are refused: an empty part, ``.`` or ``..``; a backslash or NUL anywhere; a Windows
drive."""


def is_inside(path: str) -> bool:
    """Whether a path leads below its root: relative, with forward slashes, without ``..``, ``.``, empty parts and
    NUL."""
    # Searching for single letters takes a tenth of the pattern's time, and a manifest has millions of paths.
    is_plain = not ("\\" in path or "\0" in path or ":" in path[1:2] or "//" in f"/{path}/" or "/." in f"/{path}")
    return is_plain or _LEADS_OUT.search(path) is None


def _twice(values: Iterable[object]) -> list[object]:
    """The values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


class Strict(BaseModel):
    """Base of all our schemas: unknown keys are errors, numbers are finite, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Modality(Strict):
    """A sensor: how its files become a (3, H, W) float tensor.

    Three of the stored channels are used. Stored values become ``x = stored · scale + offset``, and then ``(x - mean) /
    std`` if both are given. Source: the reference's pre-processing for DELIVER and MCubeS.
    """

    name: Name
    kind: Kind
    mean: tuple[Number, Number, Number] | None = None
    std: tuple[Number, Number, Number] | None = None
    interpolation: Interpolation = "bilinear"
    antialias: bool = False
    """Antialiasing: when a bilinear image shrinks, average over all pixels that become one (a triangle filter as wide
    as the shrinking factor) instead of reading two of them. The recipe's ``data.antialias`` overrides it."""
    photometric: tuple[Literal["jitter", "blur"], ...] = ()
    """The photometric augmentations for this modality. (Geometric ones apply to all modalities.)"""
    channels: tuple[Channel, Channel, Channel] | None = None
    """The three stored channels to use, from 0. None: gray is repeated, alpha is dropped; any other number of channels
    needs this key."""
    bands: tuple[Band, Band, Band] | None = None
    """The same for a raster (TIFF), whose bands are counted from 1 or named by their descriptions. Replaces
    ``channels``."""
    scale: Number | None = None
    """Factor for stored values. None: by dtype, uint8 / 255, uint16 / 65535, floating point unchanged."""
    offset: Number = 0.0
    """Added to scaled values."""
    nodata: tuple[Finite, ...] = ()
    """Stored values that are not measurements, besides those of a TIFF's own tag, NaN and infinity."""
    flip: Flip = "mirror"
    """The effect of a horizontal flip besides mirroring the pixels. For an angle stored as [sine, cosine, sine], some
    conventions require a sign change of one of them; ``mirror`` is the reference's behavior. The other choices need a
    range of values that is symmetric about 0: floating point, or integers with ``scale`` and ``offset``."""
    turn: Annotated[float, Field(ge=-4, le=4)] | None = None
    """For an angle stored as [sine, cosine, sine]: its change when the picture turns by one degree counterclockwise. 2
    for doubled angles, as polarization needs (its period is 180°); negative for angles that count clockwise. None:
    unknown; then only pixels are turned if ``flip`` is ``mirror``, and otherwise ``augment.rotate`` is refused."""

    @model_validator(mode="after")
    def _keeps_values_apart(self) -> Modality:
        if self.scale is not None and abs(self.scale) < SMALLEST:
            raise ValueError(f"scale {self.scale:g} would make all values one; leave it out or give another, such as 1")
        if self.channels is not None and self.bands is not None:
            raise ValueError("channels and bands: give one; channels are counted from 0, the bands of a TIFF from 1")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std: give both or neither")
        if self.std is not None and min(self.std) < SMALLEST:
            raise ValueError(f"std {min(self.std):g}: must be above 0; 1 leaves values as they are")
        return self


class LabelRule(Strict):
    """How a raw label value becomes a class index.

    The class is ``raw + shift``, or the value in ``mapping`` if that is given. Values in ``ignore`` become 255. Any
    other value outside 0..K-1 is refused; it never overflows.
    """

    shift: Annotated[int, Field(gt=-RAW_VALUES, lt=RAW_VALUES)] = 0
    ignore: tuple[int, ...] = (IGNORE,)
    mapping: tuple[tuple[int, int], ...] = ()
    """(raw, class) pairs. If there are any, all raw values must be listed here or in ``ignore``."""
    colors: bool = Field(default=False, validation_alias=AliasChoices("colors", "colours"))
    """The files are RGB pictures in the palette's colors; other colors become 255, and the check counts them."""
    first_channel: bool = False
    """The first of four channels is the class number, whatever the others contain (DELIVER). If false, four channels
    are a number only if R = G = B or G = B = 0; anything else is a color picture."""

    @model_validator(mode="after")
    def _one_meaning_per_value(self) -> LabelRule:
        raw = [value for value, _ in self.mapping]
        twice = _twice(raw) or [value for value in raw if value in self.ignore]
        if twice:
            raise ValueError(f"value {twice[0]} has two meanings in mapping and ignore; leave one")
        return self


class Crop(Strict):
    """Columns that the published protocol leaves out (MCubeS drops 192 of 1224 at the left)."""

    left: Annotated[int, Field(ge=0)] = 0
    """Columns dropped at the left at the native height ``of_height``."""
    of_height: Annotated[int, Field(gt=0)] = 1024
    square: bool = False
    """Then crop the center square."""


class Statistics(Strict):
    """The values of one modality over a split, after ``scale`` and ``offset``, before normalization."""

    split: str
    scenes: Annotated[int, Field(ge=0)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    low: float
    high: float
    invalid: int = 0
    """Pixels that were left out: NaN, infinity, nodata."""


class ValueRange(Strict):
    """How the files of a modality are stored, as read, before ``scale`` and ``offset``."""

    scenes: Annotated[int, Field(gt=0)]
    """The number of evenly chosen scenes that were read."""
    dtypes: Annotated[tuple[Literal["uint8", "uint16", "float32"], ...], Field(min_length=1)]
    """Data types, the most common first."""
    low: Finite
    """The 1st percentile of the valid values."""
    middle: Finite
    """The median."""
    high: Finite
    """The 99th percentile."""
    nodata: tuple[Finite, ...] = ()
    """Nodata values, from ``Modality.nodata`` or the files' own tags."""


class Layout(Strict):
    """The files of the user's own sensors and how they pair; ``predict`` uses it for a new recording."""

    modalities: dict[Name, Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]]
    """Sensor → its pattern below the data root, or an angle's two."""
    labels: str | None = None
    """The labels' pattern."""
    pair: Literal["name", "nearest"] = "name"
    """Pairing by names (or their numbers), or by the nearest time."""
    tolerance_ns: Annotated[int, Field(gt=0)] | None = None
    """Largest time difference of a pair."""
    times: tuple[str, ...] = ()
    """Tables of files and their times, relative to the data root. None: the file names contain the times."""


class DatasetInfo(Strict):
    """The content of ``dataset.json``."""

    schema_version: Literal[1] = 1
    name: Name
    title: str
    classes: tuple[Annotated[str, Field(min_length=1)], ...]
    palette: tuple[Color, ...]
    modalities: tuple[Modality, ...]
    """All modalities of the data set, in its own order."""
    label: LabelRule = LabelRule()
    unlabeled: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("unlabeled", "unlabelled"))
    """Splits whose labels are not published; their scenes can be predicted, not scored."""
    statistics: dict[str, Statistics] = Field(default_factory=dict)
    """Modality → the result of ``prepare --measure``. For information only; ``mean`` and ``std`` of the modality are
    used."""
    ranges: dict[str, ValueRange] = Field(default_factory=dict)
    """Modality → values in its files. For information, and to detect scenes in other units later. Data sets of earlier
    versions have none."""
    class_pixels: dict[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(default_factory=dict)
    """Split → pixels of each class, if class weights were computed from them."""
    layout: Layout | None = None
    """Only for the user's own sensors. Published data sets, and data sets of earlier versions, have none."""
    crop: Crop | None = None
    """Only for data sets whose published protocol scores only a part of the frame."""
    root: str = "."
    """The data set's folder, relative to the data root; scene paths already include it."""
    counts: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Scenes per split."""
    content_hash: str = ""
    """SHA-256 over ``scenes.jsonl`` and the sizes of all files in it."""

    @field_validator("root")
    @classmethod
    def _stays_inside(cls, root: str) -> str:
        if root != "." and not is_inside(root):
            raise ValueError(
                f"{root!r} is not a folder below the data root, with single forward slashes and without '..'"
            )
        return root

    # After validation: values from a validator before it are not JSON any more, and lists are not accepted for tuples.
    @model_validator(mode="after")
    def _knows_older_files(self) -> DatasetInfo:
        """A DELIVER manifest of an earlier version has labels with four channels, of which the first counts, without
        stating it."""
        if self.name == "deliver" and "first_channel" not in self.label.model_fields_set:
            object.__setattr__(self, "label", self.label.model_copy(update={"first_channel": True}))
        return self

    @model_validator(mode="after")
    def _labels_are_classes(self) -> DatasetInfo:
        wrong = [index for _, index in self.label.mapping if not 0 <= index < len(self.classes)]
        if wrong:
            raise ValueError(f"label: mapping leads to class {wrong[0]}; there are 0 to {len(self.classes) - 1}")
        return self

    @model_validator(mode="after")
    def _one_color_per_class(self) -> DatasetInfo:
        if not self.classes or len(self.classes) != len(self.palette):
            raise ValueError(f"{counted(len(self.classes), 'class', 'needs')} as many colors, not {len(self.palette)}")
        return self

    @model_validator(mode="after")
    def _names_tell_apart(self) -> DatasetInfo:
        if not self.modalities:
            raise ValueError("modalities: there must be at least one")
        for what, names in (("classes", self.classes), ("modalities", [each.name for each in self.modalities])):
            if twice := _twice(names):
                raise ValueError(f"{what}: '{twice[0]}' is listed twice; give each its own name")
        if len(self.classes) > IGNORE:
            raise ValueError(f"{counted(len(self.classes), 'class')}; from 1 to {IGNORE} are possible")
        return self

    def modality(self, name: str) -> Modality:
        """The modality called ``name``; ``KeyError`` if there is none."""
        return {m.name: m for m in self.modalities}[name]

    def chosen(self, names: Iterable[str], *, antialias: bool | None = None) -> tuple[Modality, ...]:
        """The modalities with these names, in this order, with the recipe's settings.

        Args:
            names: of the modalities; ``KeyError`` for an unknown name.
            antialias: the recipe's ``data.antialias``; None: the modality's own setting.
        """
        update = {} if antialias is None else {"antialias": antialias}
        return tuple(self.modality(name).model_copy(update=update) for name in names)
