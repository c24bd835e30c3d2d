"""What a data set is: classes, palette, modalities and their normalization.

Written by ``memorysam prepare`` as ``dataset.json``, carried inside every weights file, and read by
training, evaluation and prediction alike.
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
"""Of float32, in which values are computed."""
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
RAW_VALUES = 65536
"""Label files hold at most 16 bits."""
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Of RGB in [0, 1], as SAM 2 was trained; every other modality is only scaled. Source: METHOD §5, DATASETS §0."""


_SPELLED = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "ø": "oe", "æ": "ae"}
)
"""Letters as their languages write them without a mark."""
WORD = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""The pattern of what can name a folder, a data set, a modality."""


def is_word(text: str) -> bool:
    """Whether a text can name a folder, a data set, a modality."""
    return re.fullmatch(WORD, text) is not None


def word_of(text: str) -> str:
    """A text as a word: ``Wärmebild links`` becomes ``Waermebild-links``; "" where no letter or digit is left."""
    spelled = unicodedata.normalize("NFC", text).translate(_SPELLED)
    plain = unicodedata.normalize("NFKD", spelled).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:100]


def _word(text: str) -> str:
    if not is_word(text):
        raise ValueError("must be a word of letters, digits, '.', '_' and '-', beginning with a letter or a digit")
    return text


Name = Annotated[str, AfterValidator(_word), Field(json_schema_extra={"pattern": f"^{WORD}$"})]
"""A word that can name a folder."""


_LEADS_OUT = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)|[\\\0]|^[A-Za-z]:")
"""An empty part, ``.`` or ``..``; a backslash or NUL anywhere; a drive of Windows."""


def is_inside(path: str) -> bool:
    """Whether a path leads below its root: relative, forward slashes, no ``..``, ``.`` or empty part, no NUL."""
    # A few looks for single letters take a tenth of the pattern's time, and a manifest has millions of paths.
    is_plain = not ("\\" in path or "\0" in path or ":" in path[1:2] or "//" in f"/{path}/" or "/." in f"/{path}")
    return is_plain or _LEADS_OUT.search(path) is None


def _twice(values: Iterable[object]) -> list[object]:
    """Those that are there more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


class Strict(BaseModel):
    """Base of all our schemas: unknown keys are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Modality(Strict):
    """One sensor: how its files become a (3, H, W) float tensor.

    Three of the stored channels are taken, stored values become ``x = stored · scale + offset``, and then
    ``(x - mean) / std`` where both are given. Source: the reference's pre-processing for DELIVER and MCubeS.
    """

    name: Name
    kind: Kind
    mean: tuple[Number, Number, Number] | None = None
    std: tuple[Number, Number, Number] | None = None
    interpolation: Interpolation = "bilinear"
    antialias: bool = False
    """Where a bilinear image shrinks, average over all pixels that become one (a triangle filter as wide as the
    shrinking factor) instead of reading two of them. The recipe's ``data.antialias`` overrides it."""
    photometric: tuple[Literal["jitter", "blur"], ...] = ()
    """Which photometric augmentations act on this modality (geometry always acts on all)."""
    channels: tuple[Channel, Channel, Channel] | None = None
    """Which stored channels are the three, from 0. None: gray is repeated, alpha is dropped; any other number of
    channels needs this."""
    bands: tuple[Band, Band, Band] | None = None
    """The same of a raster (TIFF), whose bands are counted from 1, or go by their descriptions; instead of
    ``channels``."""
    scale: Number | None = None
    """Of stored values. None: by dtype, uint8 / 255, uint16 / 65535, floating point as stored."""
    offset: Number = 0.0
    """Added to scaled values."""
    nodata: tuple[Finite, ...] = ()
    """Stored values that are no measurement, beside those that a TIFF's own tag declares, NaN and infinity."""
    flip: Flip = "mirror"
    """What a horizontal flip does beside mirroring the pixels. An angle given as [sine, cosine, sine] may have to
    change the sign of one, by its convention; ``mirror`` is what the reference does. The others need a range of values
    that is symmetric about 0: floating point, or integers with ``scale`` and ``offset``."""
    turn: Annotated[float, Field(ge=-4, le=4)] | None = None
    """How far an angle given as [sine, cosine, sine] turns where the picture turns by one degree counterclockwise: 2
    where it is stored doubled, as polarization has to be (its period is 180°), negative where it counts clockwise.
    None: not known; then pixels alone are turned where ``flip`` is ``mirror``, and else ``augment.rotate`` is
    refused."""

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

    ``raw + shift`` is the class, or what ``mapping`` says where there is one; values in ``ignore`` become 255;
    anything else outside 0..K-1 is refused, never wrapped.
    """

    shift: Annotated[int, Field(gt=-RAW_VALUES, lt=RAW_VALUES)] = 0
    ignore: tuple[int, ...] = (IGNORE,)
    mapping: tuple[tuple[int, int], ...] = ()
    """(raw, class) pairs; where there are any, all raw values must be listed here or in ``ignore``."""
    colors: bool = Field(default=False, validation_alias=AliasChoices("colors", "colours"))
    """The files are RGB pictures in the palette's colors; other colors become 255, and the check counts them."""
    first_channel: bool = False
    """Of four channels the first is the number, whatever the others hold (DELIVER). Without, four channels are a number
    only where R = G = B or G = B = 0: anything else is a picture in colors."""

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
    """Then cut the center square."""


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
    """How one modality's files are stored, as they are read, before ``scale`` and ``offset``."""

    scenes: Annotated[int, Field(gt=0)]
    """Evenly taken ones that were looked at."""
    dtypes: Annotated[tuple[Literal["uint8", "uint16", "float32"], ...], Field(min_length=1)]
    """The commonest first."""
    low: Finite
    """The 1st percentile of the valid values."""
    middle: Finite
    """The median."""
    high: Finite
    """The 99th percentile."""
    nodata: tuple[Finite, ...] = ()
    """Declared by ``Modality.nodata`` or by the files' own tags."""


class Layout(Strict):
    """Where one's own sensors put their files, and how these pair: what ``predict`` takes for a new recording."""

    modalities: dict[Name, Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]]
    """Sensor → its pattern below the data root, or an angle's two."""
    labels: str | None = None
    """The labels' pattern."""
    pair: Literal["name", "nearest"] = "name"
    """By names (or their numbers), or by the nearest time."""
    tolerance_ns: Annotated[int, Field(gt=0)] | None = None
    """Farther times are no pair."""
    times: tuple[str, ...] = ()
    """Tables of files and their times, relative to the data root; without, names hold the times."""


class DatasetInfo(Strict):
    """The content of ``dataset.json``."""

    schema_version: Literal[1] = 1
    name: Name
    title: str
    classes: tuple[Annotated[str, Field(min_length=1)], ...]
    palette: tuple[Color, ...]
    modalities: tuple[Modality, ...]
    """All that the data set has, in its own order."""
    label: LabelRule = LabelRule()
    unlabeled: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("unlabeled", "unlabelled"))
    """Splits whose labels are not published; their scenes can be predicted, not scored."""
    statistics: dict[str, Statistics] = Field(default_factory=dict)
    """Modality → what ``prepare --measure`` found; for information, ``mean`` and ``std`` of the modality decide."""
    ranges: dict[str, ValueRange] = Field(default_factory=dict)
    """Modality → what its files hold; for information, and to notice scenes of another unit later. Those of an earlier
    version have none."""
    class_pixels: dict[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(default_factory=dict)
    """Split → pixels of each class, where weights of classes were worked out from them."""
    layout: Layout | None = None
    """Of one's own sensors; data sets of earlier versions, and published ones, have none."""
    crop: Crop | None = None
    """Only for data sets whose published protocol scores a part of the frame."""
    root: str = "."
    """The data set's folder, relative to the data root; scene paths already contain it."""
    counts: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Scenes per split."""
    content_hash: str = ""
    """SHA-256 over ``scenes.jsonl`` and the sizes of all files that it names."""

    @field_validator("root")
    @classmethod
    def _stays_inside(cls, root: str) -> str:
        if root != "." and not is_inside(root):
            raise ValueError(
                f"{root!r} is not a folder below the data root, with single forward slashes and without '..'"
            )
        return root

    # Afterwards: what a validator before it hands on is not JSON any more, whose lists are tuples.
    @model_validator(mode="after")
    def _knows_older_files(self) -> DatasetInfo:
        """A DELIVER of an earlier version has labels of four channels, of which the first counted unsaid."""
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
        """The modalities of these names, in this order, as a recipe wants them.

        Args:
            names: of the modalities; ``KeyError`` if there is none of a name.
            antialias: the recipe's ``data.antialias``; None: as each modality says.
        """
        update = {} if antialias is None else {"antialias": antialias}
        return tuple(self.modality(name).model_copy(update=update) for name in names)
