"""Weights on disk: the tensors that training made, with a card that says all that is needed to use them."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from memorysam_cli import __version__
from memorysam_cli.dataset import DatasetInfo, Modality, Strict
from memorysam_cli.errors import DataError, WeightsError
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.base_weights import IMPORTED, Base, Sha256, copy_tensors, load_base, reload_base
from memorysam_cli.model.lora import add_folding_lora, add_lora, has_lora, merge_lora
from memorysam_cli.model.memory import Notes
from memorysam_cli.model.network import MemorySAM, Projection, is_fresh, set_trainable, start_fresh
from memorysam_cli.recipe import UNKNOWN_NAME, Model, Recipe
from memorysam_cli.recipe.schema import without_retired
from memorysam_cli.registry import FUSIONS
from memorysam_cli.storage import documents, hub, tensors
from memorysam_cli.text import requirement, shown

CARD = "memorysam"
"""The metadata key under which the card is stored, as JSON."""
SEAL = "memorysam_sha256"
"""That of the card's own SHA-256, in hex; the card has that of the tensors. Files of before it have none."""


NANO_1_SHA256 = "ad97f69f25da1b77e7dfad68fbe05e1b124ae547ca82019dc22e2236b641bbd4"
"""Of nano's base weights before it became wider."""
MOST_TOKENS, LARGEST_PX = 4096, 65536
"""Beyond these a card asks for memory that no machine has, before its tensors show that it lies."""


class Metric(Strict):
    """The validation result that these weights had."""

    miou: Annotated[float, Field(ge=0, le=100)]
    """Percent."""
    protocol: Literal["resized", "native"]
    split: Annotated[str, Field(min_length=1)]
    epoch: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)] | None
    """None where only the epoch is known, as of the authors' weights."""


class WeightsCard(Strict):
    """What a weights file says of itself.

    ``kind`` is ``trained`` where the file holds only what does not come from the base, ``complete`` where it holds
    every tensor and its LoRA apart (imported weights), and ``merged`` where it is complete and its LoRA is folded in.
    """

    format_version: Literal[1] = 1
    kind: Literal["trained", "complete", "merged"] = "trained"
    recipe: Recipe
    dataset: DatasetInfo
    base: Base
    tokens: Annotated[int, Field(gt=0, le=MOST_TOKENS)]
    """The decoder's class tokens, at least the data set's number of classes."""
    image_size: Annotated[int, Field(gt=0, le=LARGEST_PX, multiple_of=32)]
    tensors_sha256: Sha256 = ""
    """Over names, dtypes, shapes and bytes of the file's tensors."""
    versions: dict[str, str]
    metric: Metric | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> WeightsCard:
        if self.tokens < len(self.dataset.classes):
            raise ValueError(f"{self.tokens} tokens are too few for {len(self.dataset.classes)} classes")
        known = {modality.name for modality in self.dataset.modalities}
        if not known.issuperset(self.recipe.data.modalities):
            raise ValueError("the recipe uses a modality that the data set does not have")
        if self.base.backbone != self.recipe.model.backbone:
            raise ValueError(f"base: is of {self.base.backbone}, the recipe of {self.recipe.model.backbone}")
        if self.kind == "trained" and self.base.source.startswith(f"{IMPORTED}:"):
            raise ValueError("base: was imported, so the file must be complete, but is not")
        return self

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The sensors, in the order in which the memory sees them."""
        return self.dataset.chosen(self.recipe.data.modalities, antialias=self.recipe.data.antialias)


class Segmenter(MemorySAM):
    """A network together with the card that says what its classes and modalities are."""

    card: WeightsCard

    @property
    def image_size(self) -> int:
        """The short side in pixels at which images are meant to be seen."""
        return self.card.image_size


def build(card: WeightsCard) -> Segmenter:
    """The network of a card with PyTorch's initial values, drawn from the recipe's seed."""
    recipe = card.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        sam = build_sam2(recipe.model.backbone, tokens=card.tokens)
        classes, model = len(card.dataset.classes), recipe.model
        notes = Notes(
            sam.mem_dim,
            sensors=len(recipe.sensors) if model.modality_embedding else 0,
            classes=classes if model.memory_mask == "classes" else 0,
        )
        names = recipe.data.modalities
        places = {sensor: [names.index(name) for name in frames] for sensor, frames in recipe.sensors.items()}
        network = Segmenter(
            sam, classes=classes, object_gate=model.object_gate, notes=notes, projection=Projection(places),
        )  # fmt: skip
        start_fresh(network)
        network.fusion = FUSIONS.get(model.fusion)()  # last: what it draws changes nothing before
    network.card = card
    return network


def build_for_training(recipe: Recipe, dataset: DatasetInfo) -> Segmenter:
    """A network on its base weights, with LoRA, ready to train; all random values come from the recipe's seed."""
    network = build(_blank_card(recipe, dataset))
    base = load_base(network, recipe.model.backbone, source=recipe.model.base_weights, seed=recipe.train.seed)
    network.card = network.card.model_copy(update={"base": base})
    return _with_lora(network)


def build_for_measuring(recipe: Recipe, dataset: DatasetInfo) -> Segmenter:
    """As :func:`build_for_training`, but on random base weights of any backbone: as fast, as large, and no use."""
    return _with_lora(build(_blank_card(recipe, dataset)))


def prepare_training(network: MemorySAM, settings: Model, *, modalities: int, folding: bool = False) -> list[str]:
    """Add LoRA where the recipe wants it and set what is trained; returns the trainable names.

    Args:
        network: on its base weights.
        settings: what of the encoder learns, and how.
        modalities: sensors that the memory sees; with one, it is not trained.
        folding: make room for LoRA's tensors only, to be filled and merged.
    """
    if settings.encoder == "lora":
        (add_folding_lora if folding else add_lora)(network.encoder, settings.lora)
    return set_trainable(network, encoder=settings.encoder, modalities=modalities)


def own_tensors(network: Segmenter) -> dict[str, Tensor]:
    """The tensors that the base does not hold: what is trained, and what started fresh.

    Returns:
        Detached tensors by the network's own names, sharing its memory, in its dtype and on its device. LoRA's base
        layers are the base's and left out.
    """
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {
        name: tensor.detach()
        for name, tensor in network.state_dict().items()
        if name in trained or is_fresh(name)
    }  # fmt: skip


def save(network: Segmenter, path: Path, *, metric: Metric | None = None) -> str:
    """Write a network's own tensors and card, atomically; returns the file's SHA-256.

    Args:
        metric: the validation of exactly these weights, if there was one.
    """
    return _write(path, own_tensors(network), network.card.model_copy(update={"metric": metric}))


def save_merged(network: Segmenter, path: Path) -> str:
    """Write a complete file that needs no base; the network's LoRA must be merged."""
    assert not has_lora(network.encoder)
    return _write(path, dict(network.state_dict()), network.card.model_copy(update={"kind": "merged"}))


def save_complete(card: WeightsCard, state: dict[str, Tensor], path: Path) -> str:
    """Write a file of every tensor, LoRA not merged, that needs no base; returns the file's SHA-256.

    Args:
        state: names and shapes of a network with the card's LoRA; the caller has checked that none is missing.
    """
    return _write(path, state, card.model_copy(update={"kind": "complete"}))


def read_card(path: Path) -> WeightsCard:
    """The card of a weights file, without its tensors."""
    return _parse_card(tensors.read_metadata(path), where=path)


def read(path: Path) -> tuple[dict[str, Tensor], WeightsCard]:
    """The tensors and the card of a weights file, exactly as they were written.

    Raises:
        WeightsError: the file is damaged, in whatever bit, or not ours.
    """
    state, metadata = tensors.read(path)
    card = _parse_card(metadata, where=path)
    if tensors.digest(state) != card.tensors_sha256:
        raise WeightsError(f"{path}: its tensors were changed after writing (their SHA-256 differs); copy it again")
    return state, card


def load(path: str | Path, device: str | torch.device = "cpu", *, image_size: int | None = None) -> Segmenter:
    """Load trained weights for use: complete, LoRA merged, in eval mode.

    Args:
        path: a file written by ``memorysam train`` or ``memorysam weights merge``, or ``hf://OWNER/NAME[/FILE]``.
        device: where to put the network.
        image_size: overrides the short side stored with the weights, in pixels, divisible by 32.

    Raises:
        WeightsError: the file is damaged, not ours, incomplete, or its base is missing or another one.
    """
    if image_size is not None and (image_size <= 0 or image_size % 32):
        raise WeightsError(f"image_size: {image_size} is not a positive multiple of 32")
    path = hub.local_path(path)
    network = _load(path, folding=True)
    if image_size is not None:
        network.card = network.card.model_copy(update={"image_size": image_size})
    merge_lora(network.encoder)
    # What is finite by itself may not be so when LoRA is multiplied out.
    tensors.check_finite(dict(network.encoder.state_dict()), where=f"{path}: with its LoRA merged")
    return network.requires_grad_(False).eval().to(device)  # merging makes new layers


def load_unmerged(path: str | Path) -> Segmenter:
    """Load trained weights with their LoRA as it is, on the CPU, in eval mode; otherwise as :func:`load`."""
    return _load(Path(path), folding=False)


def _load(path: Path, *, folding: bool) -> Segmenter:
    """Load weights with their LoRA as PEFT's, or, ``folding``, as tensors that are only there to be merged."""
    state, card = read(path)
    network = build(card)
    if card.kind == "trained":
        reload_base(network, card.base, where=str(path))
    if card.kind != "merged":
        prepare_training(network, card.recipe.model, modalities=len(card.recipe.sensors), folding=folding)
    if card.kind == "trained":
        fill_own(network, state, where=str(path))
    else:
        _fill(dict(network.state_dict()), state, where=str(path))
    return network.requires_grad_(False).eval()


def fill_own(network: Segmenter, state: dict[str, Tensor], *, where: str) -> None:
    """Copy a checkpoint's tensors into a network that is set up for training; all must match."""
    _fill(own_tensors(network), state, where=where)


def versions() -> dict[str, str]:
    """The versions of the packages that decide a result."""
    names = ("torch", "sam2", "peft", "numpy", "opencv-python-headless", "safetensors")
    return {"memorysam": __version__} | {name: version(name) for name in names}


def _blank_card(recipe: Recipe, dataset: DatasetInfo) -> WeightsCard:
    """The card of a network on random base weights."""
    return WeightsCard(
        recipe=recipe, dataset=dataset, base=Base(backbone=recipe.model.backbone, source="random:0", sha256=""),
        tokens=len(dataset.classes), image_size=recipe.data.image_size, versions=versions(),
    )  # fmt: skip


def _with_lora(network: Segmenter) -> Segmenter:
    """Set up for training, with LoRA drawn from the recipe's seed."""
    recipe = network.card.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed + 1)
        prepare_training(network, recipe.model, modalities=len(recipe.sensors))
    return network


def _fill(wanted: dict[str, Tensor], given: dict[str, Tensor], *, where: str) -> None:
    copy_tensors(given, wanted, where=where, whose="this model", remedy="give a file of the same recipe")


def _write(path: Path, state: dict[str, Tensor], card: WeightsCard) -> str:
    signed = card.model_copy(update={"tensors_sha256": tensors.digest(state)})
    text = signed.model_dump_json()
    return tensors.write(path, state, {CARD: text, SEAL: seal_of(text)})


def seal_of(card: str) -> str:
    """SHA-256 of a card's text, in hex."""
    return hashlib.sha256(card.encode()).hexdigest()


def _name_the_first_nano(content: dict[str, Any]) -> None:
    """Weights of before nano became wider call its base nano, too; it is ``nano-1`` now."""
    base, recipe = content.get("base"), content.get("recipe")
    model = recipe.get("model") if isinstance(recipe, dict) else None
    if not isinstance(base, dict) or not isinstance(model, dict) or base.get("sha256") != NANO_1_SHA256:
        return
    if base.get("backbone") == model.get("backbone") == "nano":
        base["backbone"] = model["backbone"] = "nano-1"


def _parse_card(metadata: dict[str, str], *, where: Path) -> WeightsCard:
    if CARD not in metadata:
        raise WeightsError(
            f"{where}: is not a memorysam weights file (its metadata has no '{CARD}' entry); "
            "give a checkpoint from a run's checkpoints/ folder"
        )
    if seal_of(metadata[CARD]) != metadata.get(SEAL, seal_of(metadata[CARD])):
        raise WeightsError(f"{where}: its card was changed after writing (its SHA-256 differs); copy it again")
    try:
        # As our JSON first: a key that is given twice, 1e999 and NaN pass pydantic. Then strictly: no true for 1.
        content = documents.parse_json(metadata[CARD].encode(), where="its card")
        if isinstance(content, dict):
            content["recipe"] = without_retired(content.get("recipe"))
            _name_the_first_nano(content)
        return WeightsCard.model_validate_json(documents.to_json(content), strict=True)
    except DataError as error:
        raise WeightsError(f"{where}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == UNKNOWN_NAME:
            raise WeightsError(
                f"{where}: its card names {place} '{shown(str(first['input'])[:80])}', which memorysam does not know; "
                "code is never loaded because a file names it: memorysam --extend FILE …"
            ) from None
        raise WeightsError(
            f"{where}: its card is not readable by this version: {place}: {requirement(first['msg'])}"
        ) from None
