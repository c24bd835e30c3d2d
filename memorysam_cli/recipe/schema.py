"""The schema of a recipe, section by section, and how a recipe is written as YAML.

Each key is a field with a docstring. docs/recipe-keys.md and the JSON Schema for editors are generated from them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain, combinations
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from memorysam_cli.dataset import WORD, Name, Strict
from memorysam_cli.errors import UsageError
from memorysam_cli.registry import ENCODERS, FUSIONS, HINT, Registry
from memorysam_cli.storage.documents import parse_yaml

BACKBONES = ENCODERS.built_in
"""The backbones that come with memorysam."""
UNKNOWN_NAME = "unknown_name"
"""The type of pydantic's error for a name that is not in a registry."""
LORA_TARGETS = ("q", "k", "v", "proj")
"""LoRA targets of the encoders that come with memorysam; other encoders have their own names."""

SUBSET, TEACHER = "subset", "teacher"
"""Names of the losses of ``robust.subset`` and ``robust.teacher``."""

DEFAULT = "default"
"""The recipe of a training run without ``--recipe``."""
AUTO = "auto"
"""Value of ``data.dataset``: the only data set prepared below the data root."""
ALL = "all"
"""Only value of ``data.modalities``: all modalities of the data set."""


RETIRED = {"augment.aolp_flip": "reference"}
"""Removed keys, each with the only value that it allowed. The value never had an effect. Weights, runs and checkpoints
of earlier versions contain them: there, and in a recipe, the key with this value is silently ignored. With any other
value it is an unknown key."""


def is_retired(key: str, value: object) -> bool:
    """Whether a dotted key with this value has been removed; see :data:`RETIRED`."""
    return key in RETIRED and RETIRED[key] == value


def without_retired(content: Any) -> Any:
    """A recipe's plain content without removed keys; other content unchanged."""
    if not isinstance(content, dict):
        return content
    return {
        section: {key: each for key, each in values.items() if not is_retired(f"{section}.{key}", each)}
        if isinstance(values, dict)
        else values
        for section, values in content.items()
    }


def _expected(names: Sequence[str]) -> str:
    """Names in pydantic's format: 'a', 'b' or 'c'."""
    *most, last = (f"'{name}'" for name in names)
    return f"{', '.join(most)} or {last}" if most else last


def _registered(registry: Registry) -> Callable[[Any], Any]:
    """A check that a value is a name in the registry."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in registry:
            words = {"expected": _expected(tuple(registry)), "hint": HINT}
            raise PydanticCustomError(UNKNOWN_NAME, "must be {expected}; {hint}", words)
        return value

    return check


def _choices(names: Sequence[str]) -> Any:
    """The choices of a name in the JSON Schema: those that come with memorysam."""
    return Field(json_schema_extra={"enum": list(names)})


EncoderName = Annotated[str, BeforeValidator(_registered(ENCODERS)), _choices(BACKBONES)]
FusionName = Annotated[str, BeforeValidator(_registered(FUSIONS)), _choices(FUSIONS.built_in)]
LoraTarget = Annotated[str, _choices(LORA_TARGETS)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
HEAVIEST = 1e6
ClassWeight = Annotated[float, Field(ge=0, le=HEAVIEST)]


def sensor_of(frame: str) -> str:
    """The sensor of a frame: ``ms`` for ``ms-2`` (a sensor of more than three channels); any other name unchanged."""
    sensor, dash, number = frame.rpartition("-")
    return sensor if dash and number.isdecimal() else frame


class Section(Strict):
    """A section of the recipe. Its numbers are finite, and the docstring below a key describes the key."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)


_ONE_LINE = r"^[^\x00-\x1f]*$"
"""Pattern of a path: no control characters (NUL is impossible in a file name, the others are a mistake)."""


class Data(Section):
    """The scenes, the sensors and the image size."""

    dataset: Name
    """Name of the prepared data set. ``auto``: the only one below the data root."""
    modalities: tuple[Name, ...] = Field(min_length=1)
    """Names of sensors from ``dataset.json``, in the order in which the memory sees them. ``[all]``: all, in the order
    of ``dataset.json``."""
    image_size: int = Field(gt=0, multiple_of=32)
    """Side of the training crop, and short side in evaluation, in pixels."""
    train_split: Name = "train"
    """The split for training."""
    selection_split: Name = "val"
    """The split for validation, which selects the best checkpoint."""
    workers: int = Field(default=2, ge=0)
    """Number of processes that load data. 0: the training process loads data itself."""
    max_bad: float = Field(default=0.0, ge=0, lt=1)
    """Largest share of training scenes that may be unreadable; other scenes replace them. 0: the first unreadable scene
    ends the run."""
    antialias: bool | None = None
    """Antialias bilinear images when they shrink: average over all pixels that become one, in training and evaluation.
    null: as ``dataset.json`` states for each modality. DELIVER's published code does this, MCubeS's does not."""

    @field_validator("modalities")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a modality occurs twice")
        if ALL in value and len(value) > 1:
            raise ValueError("'all' must be the only value; name the modalities, or give [all]")
        return value


class Augment(Section):
    """Training augmentation. All modalities and the label get the same geometric changes (as in the reference)."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    jitter: float = Field(default=0.2, ge=0, le=1)
    """Probability of random brightness, contrast and saturation, with factors from U(0.5, 1.5). Only for modalities
    marked as photometric."""
    blur: float = Field(default=0.2, ge=0, le=1)
    """Probability of a Gaussian blur, 3×3 or as wide as ``blur_sigma`` requires. Only for modalities marked as
    photometric."""
    blur_sigma: tuple[float, float] | None = None
    """Range of sigma in pixels. null: 0.8, the sigma of a 3×3 kernel."""
    blur_after_crop: bool = False
    """Blur after the crop instead of before it (as the reference does on MCubeS)."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the short side relative to ``data.image_size``."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest rotation in degrees, in both directions. Pixels from outside the image are ignored."""
    stretch: tuple[float, float] = (1.0, 1.0)
    """Range of the aspect ratio (width ÷ height) relative to the image's own, uniform on a logarithmic scale. The area
    does not change."""
    degrade: float = Field(default=0.0, ge=0, le=1)
    """Probability that a sensor of a scene is degraded: stuck blocks, holes, wrong exposure, blur, dead lines, or an
    offset. Never all sensors of a scene, and never the noise of ``evaluate --robustness``."""

    @field_validator("scale", "stretch")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two numbers, 0 < low <= high")
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _ordered_from_zero(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1]:
            raise ValueError("must be two numbers, 0 <= low <= high")
        return value


class Lora(Section):
    """Low-rank adaptation of Hiera's attention, by PEFT."""

    rank: int = Field(default=4, gt=0, le=4096)
    """Rank of each low-rank matrix. A higher rank can learn more and has more weights."""
    alpha: float | None = Field(default=None, gt=0)
    """The low-rank update is multiplied by alpha / rank. null: alpha equals the rank, so the factor is 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout probability of the inputs of the low-rank update in training."""
    targets: tuple[LoraTarget, ...] = Field(default=("q", "v"), min_length=1)
    """The adapted projections of attention. Your own encoder may define other names."""
    dora: bool = False
    """Learn magnitude and direction separately (DoRA)."""
    rslora: bool = False
    """Multiply by alpha / √rank instead of alpha / rank (rank-stabilized LoRA)."""


class Model(Section):
    """The network."""

    backbone: EncoderName
    """SAM 2's image encoder and its size. ``nano`` is our own small encoder for trials on a CPU. For your own, see
    extending.md."""
    base_weights: str = Field(default="published", pattern=_ONE_LINE)
    """``published`` (from the Hub; for nano the file in this package), ``random`` (only for nano, and for your own
    encoders without published weights), or a file: Meta's .pt, or safetensors with Meta's names or those of the
    transformers library. Also ``hf://OWNER/NAME[/FILE]``, such as ``hf://facebook/sam2.1-hiera-tiny-hf``."""
    init: str | None = Field(default=None, min_length=1, pattern=_ONE_LINE)
    """Weights trained with memorysam to start from (``train --init``). null: start from the base weights, with all
    other parameters newly initialized."""
    encoder: Literal["lora", "full", "frozen"] = "lora"
    """How the image encoder is trained: a low-rank update (LoRA), all parameters, or nothing."""
    lora: Lora = Lora()
    object_gate: bool = True
    """Use SAM 2's gate: a sensor whose object score is 0 or less does not contribute to the result."""
    fusion: FusionName = "mean"
    """How the sensors' results become one. ``mean``: as in the paper. ``two_pass``: a second pass, in which every
    sensor sees the memories of all others. ``two_pass_alone``: the same, but in the first pass each sensor sees no
    memory. For your own, see extending.md."""
    order: Literal["recipe", "shuffled"] = "recipe"
    """The order of the sensors in training: as in ``data.modalities``, or drawn at random for each update. Validation,
    evaluation and prediction always use the order of ``data.modalities``."""
    modality_embedding: bool = False
    """Add a learned embedding per sensor to its memories, so that the network can distinguish sensors. false: as in the
    paper, it cannot."""
    memory_mask: Literal["best", "classes"] = "best"
    """Class information in a memory. ``best``: the mask with the highest predicted IoU, as in the paper. ``classes``:
    also the probability of each class in each cell, times a learned vector per class."""
    projection: tuple[Name, ...] = ()
    """Sensors of more than three channels, such as ``ms`` for the frames ``ms-1``, ``ms-2`` in ``data.modalities``. A
    learned 1×1 projection reduces all their channels to one frame of three channels. Empty: each frame is a separate
    sensor."""

    @field_validator("lora")
    @classmethod
    def _has_known_targets(cls, value: Lora, info: ValidationInfo) -> Lora:
        """Check targets of the encoders that come with memorysam; others are checked when the encoder is built."""
        unknown = [place for place, target in enumerate(value.targets) if target not in LORA_TARGETS]
        if unknown and info.data.get("backbone") in BACKBONES:
            expected = {"expected": _expected(LORA_TARGETS)}
            error = PydanticCustomError("literal_error", "must be {expected}", expected)
            raise ValidationError.from_exception_data(
                "Lora",
                [InitErrorDetails(type=error, loc=("targets", place), input=value.targets[place]) for place in unknown],
            )
        return value

    @model_validator(mode="after")
    def _random_is_for_nano(self) -> Model:
        if self.base_weights == "random" and self.backbone in BACKBONES and self.backbone != "nano":
            raise ValueError("base_weights: 'random' is allowed for the backbone nano only")
        return self


class Ohem(Section):
    """Online hard example mining for the cross entropy (METHOD §3)."""

    threshold: float = Field(default=0.7, gt=0, lt=1)
    """Pixels whose true class has a probability below this are hard and kept."""
    min_kept: float = Field(default=1 / 16, gt=0, le=1)
    """At least this share of the valid pixels is kept."""
    selection: Literal["process", "global"] = "process"
    """Choose and average the hard pixels in each process (as in the reference), or over all processes."""
    class_weights: Literal["none", "inverse", "effective"] | Annotated[tuple[ClassWeight, ...], Field(min_length=1)] = (
        "none"
    )
    """Weights of the classes for the hard pixels: a number per class in the data set's order, or computed from the
    number of pixels that each class has in the training split. ``inverse``: inversely proportional to it. ``effective``
    (Cui et al. 2019): classes rarer than the median weigh more, common ones about the same."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each pixel's target that is spread over all classes. Hard pixels are chosen without it."""

    @field_validator("class_weights", mode="before")
    @classmethod
    def _is_word_or_numbers(cls, value: Any) -> Any:
        # One message: pydantic would print one for each of the two allowed types.
        is_list = isinstance(value, list | tuple) and bool(value)
        if value in ("none", "inverse", "effective"):
            return value
        if is_list and all(type(each) in (int, float) and 0 <= each <= HEAVIEST for each in value):
            return tuple(float(each) for each in value)  # what a validator returns is not JSON any more
        raise ValueError("must be none, inverse, effective, or a number from 0 to 1e6 for each class, such as [1, 2.5]")


class Spmm(Section):
    """The Semantic Prototype Memory Module. Variant and weight have no default (METHOD §3)."""

    variant: Literal["reference", "paper", "off"]
    """``reference``: as in the authors' code. ``paper``: as in the paper. ``off``: no SPMM."""
    weight: float = Field(ge=0)
    """λ, the weight of the prototypical adaptation loss."""
    momentum: Momentum = 0.8
    """Share of a class's old prototype that remains after each update."""


class LossSettings(Section):
    """The keys of every further loss; each loss adds its own."""

    weight: float = Field(default=1.0, ge=0)
    """Factor of the loss in the sum of all losses."""


class Focal(LossSettings):
    """``losses.focal``."""

    gamma: float = Field(default=2.0, ge=0, le=100)
    """Exponent that reduces the weight of pixels that are already right. 0: plain cross entropy."""


class Subset(Section):
    """A second pass of each update over some of the sensors. Both passes share the encodings of the scenes."""

    weight: float = Field(default=0.0, ge=0)
    """Factor of the second pass's cross entropy (``ohem``) in the sum of all losses. 0: off."""
    zeroed: float = Field(default=0.0, ge=0, le=1)
    """Probability that absent sensors of an update are frames of zeros (after normalization, as with ``evaluate
    --missing zero``). Otherwise they are left out."""
    ramp_epochs: float = Field(default=0.0, ge=0)
    """Number of epochs in which the weights of the second pass's losses grow linearly from 0."""
    weak: tuple[Name, ...] = ()
    """Sensors that should be in the second pass more often. First the number of sensors is drawn, uniformly from 1 to
    all but one; then the sensors."""
    weak_odds: float = Field(default=2.0, gt=0, le=1000)
    """How many times as likely a weak sensor is drawn as another one."""


class Teacher(Section):
    """Distillation: the second pass, over some of the sensors, learns from the output of all sensors."""

    weight: float = Field(default=0.0, ge=0)
    """Factor of the divergence (KL, times the square of ``temperature``) in the sum of all losses. 0: off. The second
    pass is that of ``robust.subset``, whose own weight may be 0."""
    temperature: float = Field(default=2.0, gt=0, le=1000)
    """Divisor of the logits. Above 1, less likely classes have more influence."""
    weights: str | None = Field(default=None, min_length=1, pattern=_ONE_LINE)
    """Weights trained with memorysam on the same classes and sensors, as a frozen teacher. null: the teacher is the
    first pass of the network in training, without gradient."""


class Robust(Section):
    """Training for missing sensors, which is not in the paper. Off unless a recipe sets a weight."""

    subset: Subset = Subset()
    teacher: Teacher = Teacher()

    @property
    def weights(self) -> dict[str, float]:
        """Name and weight of the second pass's losses."""
        return {SUBSET: self.subset.weight, TEACHER: self.teacher.weight}


class Optim(Section):
    """The optimizer AdamW and its learning rate schedule per update (METHOD §4)."""

    # lr and weight_decay are bounded so that their product is still a float32.
    lr: float = Field(gt=0, le=1e30)
    """The highest learning rate, at the end of the warm-up."""
    weight_decay: float = Field(default=0.01, ge=0, le=1e6)
    """AdamW's weight decay; not applied to biases and norms."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """AdamW's betas: decay rates of the averages of the gradient and of its square."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's eps, added to the denominator."""
    warmup_epochs: float = Field(default=10, ge=0)
    """Number of epochs in which the learning rate grows linearly to ``lr``."""
    warmup_ratio: float = Field(default=0.1, gt=0, le=1)
    """The first learning rate, as a share of ``lr``."""
    power: float = Field(default=0.9, gt=0)
    """Exponent of the polynomial decay after the warm-up. 1: linear. Below 1: most of the decay comes late."""
    ema: Momentum = 0.0
    """Decay of the moving average of the weights, such as 0.999. The averaged weights are validated and saved. 0: no
    average."""


class Train(Section):
    """Length of training, batch size, precision, validation and checkpoints."""

    epochs: int = Field(gt=0)
    """Number of times that each scene is used."""
    batch: int = Field(default=4, gt=0)
    """Scenes per batch in each process."""
    accumulate: int = Field(default=1, gt=0)
    """Number of batches per update. The update is the same as with one batch of all their scenes."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many updates (for trials). The learning rate schedule does not change."""
    seed: int = Field(default=3407, ge=0, lt=10**18)
    """Seed of all random numbers."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Numerical precision. fp32 is the most exact; tf32, bf16 and fp16 are faster on GPUs, bf16 also on new CPUs."""
    saver: Literal["auto", "on", "off"] = "auto"
    """Memory saver: recompute activations in the backward pass instead of storing them. The results are the same, with
    less memory and more time."""
    compile: bool = False
    """Compile the encoder's blocks with ``torch.compile``: faster after a slow start."""
    deterministic: bool = False
    """Use only kernels that give the same bits in every run on the same machine. Slower on GPUs; CPUs
    always use such kernels."""
    validate_every: int = Field(default=1, gt=0)
    """Number of epochs between validations. The last epoch is always validated."""
    patience: int | None = Field(default=None, gt=0)
    """Stop after this many validations in a row without a better score. null: train to the last epoch."""
    checkpoint_minutes: float = Field(default=10, gt=0)
    """Minutes between checkpoints, from which a run can resume."""
    checkpoint_steps: int | None = Field(default=None, gt=0)
    """Also save a checkpoint after every this many updates."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """Number of checkpoints to keep. At least two, in case the newest is damaged."""


class Recipe(Section):
    """A whole recipe. A resolved recipe has every value."""

    name: Name
    """Name used for runs. Default: the name of the file."""
    about: str = ""
    """A line that describes the recipe in ``recipes list``."""
    data: Data
    augment: Augment = Augment()
    model: Model
    ohem: Ohem = Ohem()
    spmm: Spmm
    losses: dict[Name, dict[str, Any]] = Field(
        default={},
        json_schema_extra={
            "patternProperties": {f"^{WORD}$": {"type": ["object", "null"]}},
            "additionalProperties": False,
        },
    )
    """Further losses by name, each with its settings, such as ``{dice: {weight: 0.5}}``. null removes an inherited
    loss."""
    robust: Robust = Robust()
    optim: Optim
    train: Train
    extensions: tuple[str, ...] = ()
    """Your Python files that register encoders, fusions or losses, relative to this file. They run only if you give
    this file to ``--recipe``. Otherwise name them with ``memorysam --extend FILE``."""

    @field_validator("losses", mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        # The only way to remove an inherited loss.
        return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _joins_frames(self) -> Recipe:
        if self.data.modalities != (ALL,):
            _ = self.sensors
        return self

    @property
    def sensors(self) -> dict[str, tuple[str, ...]]:
        """The sensors in the order in which the memory sees them, each with its modalities.

        A sensor has one modality, or several that ``model.projection`` joins.

        Raises:
            ValueError: a sensor of ``model.projection`` has no frames to join.
        """
        names, found = self.data.modalities, dict[str, tuple[str, ...]]()
        for sensor in self.model.projection:
            if sensor in names:
                raise ValueError(f"model.projection: '{sensor}' is a single frame, a modality of data.modalities")
            if sum(sensor_of(name) == sensor for name in names) < len(("one", "another")):
                raise ValueError(
                    f"model.projection: '{sensor}' needs frames to join, {sensor}-1 and {sensor}-2 at least, and "
                    f"data.modalities has {', '.join(names)}"
                )
        for name in names:
            sensor = sensor_of(name) if sensor_of(name) in self.model.projection else name
            found[sensor] = (*found.get(sensor, ()), name)
        return found

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of all losses, in the order in which they are reported; the cross entropy comes first."""
        second = [name for name, weight in self.robust.weights.items() if weight and self.trains_subsets]
        return ("ohem", "spmm", *second, *self.losses)

    @property
    def trains_subsets(self) -> bool:
        """Whether updates have a second pass over some of the sensors; never with a single sensor."""
        is_known = self.data.modalities != (ALL,)
        return any(self.robust.weights.values()) and not (is_known and len(self.sensors) == 1)

    def trained_subsets(self, *, zeroed: bool) -> tuple[tuple[str, ...], ...]:
        """The sets of sensors that the network sees in training, all sensors first, in the order of the recipe.

        Args:
            zeroed: sets whose other sensors are frames of zeros; else sets whose other sensors are left out.
        """
        if not self._shows_subsets(zeroed=zeroed):
            return (self.data.modalities,)
        sensors = list(self.sensors.values())
        return tuple(
            tuple(chain.from_iterable(some))
            for size in range(len(sensors), 0, -1)
            for some in combinations(sensors, size)
        )

    def trains_on(self, names: Collection[str], *, zeroed: bool) -> bool:
        """Whether these sensors are one of the :meth:`trained_subsets`, without listing them all.

        Args:
            names: at least one modality, all of them in the recipe.
            zeroed: the others are frames of zeros; else they are left out.
        """
        known, given = self.data.modalities, set(names)
        is_whole = all(given.isdisjoint(frames) or given.issuperset(frames) for frames in self.sensors.values())
        return given == set(known) or (is_whole and self._shows_subsets(zeroed=zeroed))

    def _shows_subsets(self, *, zeroed: bool) -> bool:
        """Whether any set of sensors can occur in training: in a second pass, or as the start of a random order."""
        is_drawn = self.trains_subsets and self.robust.subset.zeroed != (0 if zeroed else 1)
        is_begun = "prefix" in self.losses and self.model.order == "shuffled" and self.model.fusion == "mean"
        return is_drawn or (is_begun and not zeroed)

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write ``extensions`` only if there are some."""
        written: dict[str, Any] = write(self)
        if not self.extensions:
            written.pop("extensions", None)
        return written

    def for_dataset(self, dataset: str, modalities: Sequence[str]) -> Recipe:
        """The recipe with ``auto`` and ``all`` replaced.

        Args:
            dataset: the data set in place of ``auto``.
            modalities: all modalities of the data set.

        Raises:
            UsageError: ``model.projection`` does not fit the modalities.
        """
        names = tuple(modalities) if self.data.modalities == (ALL,) else self.data.modalities
        data = self.data.model_copy(update={"dataset": dataset, "modalities": names})
        filled = self.model_copy(update={"data": data})
        try:
            _ = filled.sensors
        except ValueError as error:
            raise UsageError(f"recipe {self.name}: {error}") from None
        return filled

    def to_yaml(self) -> str:
        """The recipe as YAML with every value, in the schema's order; ``load`` reads the same recipe from it."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


class Dumper(yaml.SafeDumper):
    """Writes lists on one line, and quotes every text that our reader would take for a number."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        is_plain = parse_yaml(text, where="") == text
    except UsageError:
        is_plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


Dumper.add_representer(str, _represent_text)
Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)
