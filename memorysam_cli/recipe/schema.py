"""The one schema of a recipe, section by section, and how a person would write one as YAML.

A key is a field with a docstring; the pages and the JSON Schema for editors are made of both.
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
"""The type of pydantic's error for a name that a registry does not have."""
LORA_TARGETS = ("q", "k", "v", "proj")
"""Of the encoders that come with memorysam; others have names of their own."""

SUBSET, TEACHER = "subset", "teacher"
"""What the terms of ``robust.subset`` and ``robust.teacher`` are called among the losses."""

DEFAULT = "default"
"""The recipe of a training run that names none."""
AUTO = "auto"
"""As ``data.dataset``: the one that is prepared below the data root."""
ALL = "all"
"""As the only one of ``data.modalities``: all that the data set has."""


RETIRED = {"augment.aolp_flip": "reference"}
"""Keys that are no more, each with the one value that it ever allowed, and that nothing was computed by. Weights, runs
and checkpoints from before hold them: there, and in a recipe, the key with this value is silently ignored.
With any other value it is an unknown key."""


def is_retired(key: str, value: object) -> bool:
    """Whether a dotted key with its value says nothing any more; see :data:`RETIRED`."""
    return key in RETIRED and RETIRED[key] == value


def without_retired(content: Any) -> Any:
    """A recipe's plain content without what says nothing any more; anything else as it is."""
    if not isinstance(content, dict):
        return content
    return {
        section: {key: each for key, each in values.items() if not is_retired(f"{section}.{key}", each)}
        if isinstance(values, dict)
        else values
        for section, values in content.items()
    }


def _expected(names: Sequence[str]) -> str:
    """Names as pydantic lists them: 'a', 'b' or 'c'."""
    *most, last = (f"'{name}'" for name in names)
    return f"{', '.join(most)} or {last}" if most else last


def _registered(registry: Registry) -> Callable[[Any], Any]:
    """A check that a value is a registry's name."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in registry:
            words = {"expected": _expected(tuple(registry)), "hint": HINT}
            raise PydanticCustomError(UNKNOWN_NAME, "must be {expected}; {hint}", words)
        return value

    return check


def _choices(names: Sequence[str]) -> Any:
    """What the JSON Schema says of a name: those that come with memorysam."""
    return Field(json_schema_extra={"enum": list(names)})


EncoderName = Annotated[str, BeforeValidator(_registered(ENCODERS)), _choices(BACKBONES)]
FusionName = Annotated[str, BeforeValidator(_registered(FUSIONS)), _choices(FUSIONS.built_in)]
LoraTarget = Annotated[str, _choices(LORA_TARGETS)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
HEAVIEST = 1e6
ClassWeight = Annotated[float, Field(ge=0, le=HEAVIEST)]


def sensor_of(frame: str) -> str:
    """The sensor of more than three channels whose frame ``ms-2`` is: ``ms``; of any other name, that itself."""
    sensor, dash, number = frame.rpartition("-")
    return sensor if dash and number.isdecimal() else frame


class Section(Strict):
    """A part of the recipe; its numbers are finite, and the text below a key says what it means."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)


_ONE_LINE = r"^[^\x00-\x1f]*$"
"""Of a path: without control characters, which no file's name should have, and one of which none can have."""


class Data(Section):
    """Which scenes, which sensors, at what size."""

    dataset: Name
    """The prepared data set; ``auto``: the only one below the data root."""
    modalities: tuple[Name, ...] = Field(min_length=1)
    """Names of ``dataset.json``, in the order in which the memory sees them; ``[all]``: all, in its order."""
    image_size: int = Field(gt=0, multiple_of=32)
    """Side of the training crop, and short side in evaluation, in pixels."""
    train_split: Name = "train"
    """The split that is learned from."""
    selection_split: Name = "val"
    """The split that decides which checkpoint is best."""
    workers: int = Field(default=2, ge=0)
    """Processes that read ahead; 0: the training reads by itself."""
    max_bad: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training scenes that may turn out to be unreadable; others then stand in for them. 0: the first one
    ends the run."""
    antialias: bool | None = None
    """Average over all pixels that become one where bilinear images shrink, in training and evaluation; null: as
    ``dataset.json`` says of each modality. DELIVER's published code does, MCubeS's does not."""

    @field_validator("modalities")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a modality occurs twice")
        if ALL in value and len(value) > 1:
            raise ValueError("'all' stands alone; name the modalities, or give [all]")
        return value


class Augment(Section):
    """Training augmentation; one geometric draw serves all modalities and the label (as the reference does it)."""

    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal mirroring."""
    jitter: float = Field(default=0.2, ge=0, le=1)
    """Probability of brightness, contrast and saturation factors U(0.5, 1.5), for what is marked as photometric."""
    blur: float = Field(default=0.2, ge=0, le=1)
    """Probability of a Gaussian blur: 3×3, or as wide as ``blur_sigma`` asks; for what is marked as photometric."""
    blur_sigma: tuple[float, float] | None = None
    """Range of sigma in pixels; none: 0.8, what a 3×3 kernel means."""
    blur_after_crop: bool = False
    """Blur what the crop has left instead of the whole image before it (as the reference does it on MCubeS)."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the short side relative to ``data.image_size``."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest turn of the crop in degrees, either way; what lies outside of the image is ignored."""
    stretch: tuple[float, float] = (1.0, 1.0)
    """Range of width ÷ height relative to the image's own, evenly on a logarithmic scale; the area stays."""
    degrade: float = Field(default=0.0, ge=0, le=1)
    """Probability with which each sensor of a scene is there, but bad: stuck blocks, holes, wrong exposure, blur, dead
    lines, or an offset; never all sensors of a scene, and never the noise of ``evaluate --robustness``."""

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
    """Rank of each update: more can learn more, and has more weights."""
    alpha: float | None = Field(default=None, gt=0)
    """Its scale is alpha / rank; none: equal to the rank, so that the scale is 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which an input of the update is dropped in training."""
    targets: tuple[LoraTarget, ...] = Field(default=("q", "v"), min_length=1)
    """Which of attention's projections are adapted; an encoder of your own may name other layers."""
    dora: bool = False
    """Learn magnitude and direction apart (DoRA)."""
    rslora: bool = False
    """Scale by alpha / √rank instead of alpha / rank (rank-stabilised LoRA)."""


class Model(Section):
    """The network."""

    backbone: EncoderName
    """The size of SAM 2's image encoder; ``nano`` is a narrow one of ours for trials on a CPU. Others: extending.md."""
    base_weights: str = Field(default="published", pattern=_ONE_LINE)
    """``published`` (the Hub; for nano the file in this package), ``random`` (nano, and encoders of your own that have
    none published), or a file: Meta's .pt, or safetensors with Meta's names or those of the transformers library; also
    ``hf://OWNER/NAME[/FILE]``, such as ``hf://facebook/sam2.1-hiera-tiny-hf``."""
    init: str | None = Field(default=None, min_length=1, pattern=_ONE_LINE)
    """Trained weights of ours to begin from (``train --init``); none: the base weights, and the rest fresh."""
    encoder: Literal["lora", "full", "frozen"] = "lora"
    """What of the image encoder learns: a low-rank update, all of it, or nothing."""
    lora: Lora = Lora()
    object_gate: bool = True
    """SAM 2's own gate: where its object score is not above 0, a sensor says nothing of the scene."""
    fusion: FusionName = "mean"
    """How the sensors' results become one: ``mean`` is the paper's. ``two_pass`` looks at every sensor again, with the
    memories of all others; ``two_pass_alone`` does so after a first look at each alone. Others: extending.md."""
    order: Literal["recipe", "shuffled"] = "recipe"
    """The order in which training shows the sensors to the memory: as in ``data.modalities``, or drawn anew for each
    update. Validation, evaluation and prediction always take that of ``data.modalities``."""
    modality_embedding: bool = False
    """Tell the network which sensor a memory comes from, by a learned embedding of each; false: as in the paper, all
    memories look alike."""
    memory_mask: Literal["best", "classes"] = "best"
    """What a memory holds of the classes: the mask whose predicted IoU is best, as in the paper, or also how probable
    each class is in each cell, by a learned vector of each."""
    projection: tuple[Name, ...] = ()
    """Sensors of more than three channels, such as ``ms`` where ``data.modalities`` has its frames ``ms-1``, ``ms-2``:
    a learned 1×1 projection brings all their channels to one frame of three. None: each frame is a sensor of its
    own."""

    @field_validator("lora")
    @classmethod
    def _has_known_targets(cls, value: Lora, info: ValidationInfo) -> Lora:
        """Those of the encoders that come with memorysam; another one is asked for its own when it is built."""
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
    """Pixels whose probability is below this are kept."""
    min_kept: float = Field(default=1 / 16, gt=0, le=1)
    """At least this share of the valid pixels is kept."""
    selection: Literal["process", "global"] = "process"
    """Whether hard pixels are chosen, and averaged, in each process (as the reference does) or over all of them."""
    class_weights: Literal["none", "inverse", "effective"] | Annotated[tuple[ClassWeight, ...], Field(min_length=1)] = (
        "none"
    )
    """What the pixels of each class weigh among the hard ones: a number for each class in the data set's order,
    or worked out from how many pixels it has in the training split: ``inverse`` to it, or ``effective`` (Cui et al.
    2019: classes rarer than the median weigh more, common ones about the same)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each pixel's target that is spread over all classes; hard pixels are chosen without it."""

    @field_validator("class_weights", mode="before")
    @classmethod
    def _is_word_or_numbers(cls, value: Any) -> Any:
        # One message: the two kinds' own ones would both be told.
        is_list = isinstance(value, list | tuple) and bool(value)
        if value in ("none", "inverse", "effective"):
            return value
        if is_list and all(type(each) in (int, float) and 0 <= each <= HEAVIEST for each in value):
            return tuple(float(each) for each in value)  # what a validator hands on is not JSON any more
        raise ValueError("must be none, inverse, effective, or a number from 0 to 1e6 for each class, such as [1, 2.5]")


class Spmm(Section):
    """The Semantic Prototype Memory Module; variant and weight have no default (METHOD §3)."""

    variant: Literal["reference", "paper", "off"]
    """As the authors' code computes it, as the paper writes it, or not at all."""
    weight: float = Field(ge=0)
    """λ, the weight of the prototypical adaptation loss."""
    momentum: Momentum = 0.8
    """Share of a class's old prototype that stays at each update."""


class LossSettings(Section):
    """What every further loss has; its own keys come with it."""

    weight: float = Field(default=1.0, ge=0)
    """What the loss is multiplied by before it is added to the others."""


class Focal(LossSettings):
    """``losses.focal``."""

    gamma: float = Field(default=2.0, ge=0, le=100)
    """How much less a pixel counts that is right already; 0: the plain cross entropy."""


class Subset(Section):
    """A second pass of each update, over some of the sensors; the scenes' encodings serve both passes."""

    weight: float = Field(default=0.0, ge=0)
    """What the cross entropy (``ohem``) of the second pass is multiplied by before it is added to that of all sensors;
    0: none."""
    zeroed: float = Field(default=0.0, ge=0, le=1)
    """Probability that an update shows its absent sensors as frames of zeros (after normalization, as ``evaluate
    --missing zero`` does) instead of leaving them out."""
    ramp_epochs: float = Field(default=0.0, ge=0)
    """Epochs in which the weight of all that the second pass adds grows in a line from 0."""
    weak: tuple[Name, ...] = ()
    """Sensors that should be in the second pass more often. How many it sees is drawn first, from 1 to all but one
    alike; then which."""
    weak_odds: float = Field(default=2.0, gt=0, le=1000)
    """How many times as likely as another sensor a weak one is to be drawn."""


class Teacher(Section):
    """What the second pass says of each pixel comes closer to what all sensors say of it together."""

    weight: float = Field(default=0.0, ge=0)
    """What their divergence (KL, times the square of ``temperature``) is multiplied by before it is added; 0: none. The
    second pass is that of ``robust.subset``, whose own weight may be 0."""
    temperature: float = Field(default=2.0, gt=0, le=1000)
    """What logits are divided by first: above 1, classes that are less likely count more."""
    weights: str | None = Field(default=None, min_length=1, pattern=_ONE_LINE)
    """Trained weights of ours, of the same classes and sensors, that say it; they stay as they are. None: the network
    in training says it by its first pass, which gets no gradient from this."""


class Robust(Section):
    """Training for sensors that fail, which goes beyond the paper; off unless a recipe gives a weight."""

    subset: Subset = Subset()
    teacher: Teacher = Teacher()

    @property
    def weights(self) -> dict[str, float]:
        """The losses of the second pass by name, and their weights."""
        return {SUBSET: self.subset.weight, TEACHER: self.teacher.weight}


class Optim(Section):
    """AdamW and its per-iteration schedule (METHOD §4)."""

    # lr and weight_decay are bounded so that their product is still a float32.
    lr: float = Field(gt=0, le=1e30)
    """The learning rate at the end of the warm-up, from which it falls."""
    weight_decay: float = Field(default=0.01, ge=0, le=1e6)
    """AdamW's; biases and norms have none."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """AdamW's: how long the gradient's mean and its square are remembered."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's: keeps the division by the gradient's size finite."""
    warmup_epochs: float = Field(default=10, ge=0)
    """Epochs in which the learning rate grows in a line to ``lr``."""
    warmup_ratio: float = Field(default=0.1, gt=0, le=1)
    """Where it begins, as a share of ``lr``."""
    power: float = Field(default=0.9, gt=0)
    """Of the polynomial by which it then falls: 1 is a straight line, less falls later."""
    ema: Momentum = 0.0
    """Share that each update keeps of the moving average of the weights, such as 0.999; the averaged weights are then
    what is validated and saved. 0: no average."""


class Train(Section):
    """How long, how much at once, and how often to look."""

    epochs: int = Field(gt=0)
    """How often each scene is seen."""
    batch: int = Field(default=4, gt=0)
    """Scenes per process and step."""
    accumulate: int = Field(default=1, gt=0)
    """Batches that make one update, which is that of one batch as large as all of them."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many updates (for trials); the schedule is not changed."""
    seed: int = Field(default=3407, ge=0, lt=10**18)
    """Seed of all random numbers."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Precision: exact, or faster on GPUs (tf32, bf16, fp16; bf16 also on new CPUs)."""
    saver: Literal["auto", "on", "off"] = "auto"
    """Recompute activations in the backward pass instead of keeping them: the same numbers, less memory, more time."""
    compile: bool = False
    """Compile the encoder's blocks with ``torch.compile``: faster after a slow start."""
    deterministic: bool = False
    """Only kernels that give the same bits at every run on the same machine: on GPUs slower, on CPUs they do anyway."""
    validate_every: int = Field(default=1, gt=0)
    """Epochs between validations; the last epoch is always validated."""
    patience: int | None = Field(default=None, gt=0)
    """End after so many validations in a row without a better score; null: train to the last epoch."""
    checkpoint_minutes: float = Field(default=10, gt=0)
    """Minutes between checkpoints, from which a run can continue."""
    checkpoint_steps: int | None = Field(default=None, gt=0)
    """Also save after every so many updates."""
    keep_checkpoints: int = Field(default=2, ge=2)
    """At least two: the newest may turn out to be damaged."""


class Recipe(Section):
    """A whole recipe, every value explicit once resolved."""

    name: Name
    """What runs are called by; none: as the file."""
    about: str = ""
    """One line for ``recipes list``."""
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
    """Further losses by name, each with its settings, such as ``{dice: {weight: 0.5}}``; null: none of that name."""
    robust: Robust = Robust()
    optim: Optim
    train: Train
    extensions: tuple[str, ...] = ()
    """Python files of yours that register encoders, fusions or losses, relative to this file. They run only where this
    file is given to ``--recipe``; anywhere else name them with ``memorysam --extend FILE``."""

    @field_validator("losses", mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        # What a recipe inherits it can take back only so.
        return {name: each for name, each in value.items() if each is not None} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _joins_frames(self) -> Recipe:
        if self.data.modalities != (ALL,):
            _ = self.sensors
        return self

    @property
    def sensors(self) -> dict[str, tuple[str, ...]]:
        """What the memory sees, in its order: sensor → its modalities, of which ``model.projection`` joins several.

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
        """The names of all losses, in the order in which they are reported; the pixels' own comes first."""
        second = [name for name, weight in self.robust.weights.items() if weight and self.trains_subsets]
        return ("ohem", "spmm", *second, *self.losses)

    @property
    def trains_subsets(self) -> bool:
        """Whether updates have a second pass over some of the sensors: of a single one there is no smaller set."""
        is_known = self.data.modalities != (ALL,)
        return any(self.robust.weights.values()) and not (is_known and len(self.sensors) == 1)

    def trained_subsets(self, *, zeroed: bool) -> tuple[tuple[str, ...], ...]:
        """The sets of sensors that training shows the network, all sensors first, in the order of the recipe.

        Args:
            zeroed: those whose other sensors are frames of zeros; else those whose other sensors are left out.
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
        """Whether training shows the network these sensors: :meth:`trained_subsets`, of any number of sensors at once.

        Args:
            names: at least one, all of the recipe.
            zeroed: the others are frames of zeros; else they are left out.
        """
        known, given = self.data.modalities, set(names)
        is_whole = all(given.isdisjoint(frames) or given.issuperset(frames) for frames in self.sensors.values())
        return given == set(known) or (is_whole and self._shows_subsets(zeroed=zeroed))

    def _shows_subsets(self, *, zeroed: bool) -> bool:
        """Whether any set of sensors may come up in training: in a second pass, or as a beginning of a random order."""
        is_drawn = self.trains_subsets and self.robust.subset.zeroed != (0 if zeroed else 1)
        is_begun = "prefix" in self.losses and self.model.order == "shuffled" and self.model.fusion == "mean"
        return is_drawn or (is_begun and not zeroed)

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Most recipes have no extensions, and say nothing of them."""
        written: dict[str, Any] = write(self)
        if not self.extensions:
            written.pop("extensions", None)
        return written

    def for_dataset(self, dataset: str, modalities: Sequence[str]) -> Recipe:
        """The recipe with ``auto`` and ``all`` filled in.

        Args:
            dataset: the data set that ``auto`` means here.
            modalities: all that it has.

        Raises:
            UsageError: ``model.projection`` does not fit them.
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
        """The recipe with every value written out, in the schema's order; ``load`` reads the same recipe from it."""
        return yaml.dump(self.model_dump(mode="json"), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


class Dumper(yaml.SafeDumper):
    """Lists on one line, and quotes around every text that our reader would take for a number."""


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
