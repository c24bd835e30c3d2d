"""Weights files: the trained tensors, with a card that has everything needed to use them."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from memorysam_cli import __version__
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.errors import WeightsError
from memorysam_cli.model import CARD, SEAL, Base, Metric, WeightsCard, parse_card, seal_of
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.base_weights import copy_tensors, load_base, reload_base
from memorysam_cli.model.lora import add_folding_lora, add_lora, has_lora, merge_lora
from memorysam_cli.model.memory import Notes
from memorysam_cli.model.network import MemorySAM, Projection, is_fresh, set_trainable, start_fresh
from memorysam_cli.recipe import Model, Recipe
from memorysam_cli.registry import FUSIONS
from memorysam_cli.storage import hub, tensors


class Segmenter(MemorySAM):
    """A network together with the card that describes its classes and modalities."""

    card: WeightsCard

    @property
    def image_size(self) -> int:
        """The short side in pixels at which images should be processed."""
        return self.card.image_size


class Undrawn(TorchFunctionMode):
    """Inside it, layers draw no initial values, which takes most of the time of building a large network.

    Their values are then whatever the memory holds, until they are filled from a file.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Give the tensor back unchanged where a function draws."""
        if function in _DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


_DRAWS = {nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_}


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
        network.fusion = FUSIONS.get(model.fusion)()  # last: its random draws then affect nothing else
    network.card = card
    return network


def build_for_training(recipe: Recipe, dataset: DatasetInfo) -> Segmenter:
    """A network on its base weights, with LoRA, ready to train; all random values depend on the recipe's seed."""
    network = build(_blank_card(recipe, dataset))
    base = load_base(network, recipe.model.backbone, source=recipe.model.base_weights, seed=recipe.train.seed)
    network.card = network.card.model_copy(update={"base": base})
    return _with_lora(network)


def build_for_measuring(recipe: Recipe, dataset: DatasetInfo) -> Segmenter:
    """As :func:`build_for_training`, but with random base weights of any backbone: same speed and size, useless
    results."""
    return _with_lora(build(_blank_card(recipe, dataset)))


def prepare_training(network: MemorySAM, settings: Model, *, modalities: int, folding: bool = False) -> list[str]:
    """Add LoRA if the recipe requests it and set which parameters are trained; returns their names.

    Args:
        network: on its base weights.
        settings: how the encoder is trained.
        modalities: number of sensors; with one, the memory is not trained.
        folding: add only layers for LoRA's tensors, to be filled and merged.
    """
    if settings.encoder == "lora":
        (add_folding_lora if folding else add_lora)(network.encoder, settings.lora)
    return set_trainable(network, encoder=settings.encoder, modalities=modalities)


def own_tensors(network: Segmenter) -> dict[str, Tensor]:
    """The tensors that the base weights do not have: trained and newly initialized ones.

    Returns:
        Detached tensors under the network's own names, sharing its memory, in its dtype and on its device. LoRA's base
        layers belong to the base weights and are left out.
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
        metric: the validation result of exactly these weights, if there is one.
    """
    return _write(path, own_tensors(network), network.card.model_copy(update={"metric": metric}))


def save_merged(network: Segmenter, path: Path) -> str:
    """Write a complete file that needs no base weights; the network's LoRA must be merged."""
    assert not has_lora(network.encoder)
    return _write(path, dict(network.state_dict()), network.card.model_copy(update={"kind": "merged"}))


def save_complete(card: WeightsCard, state: dict[str, Tensor], path: Path) -> str:
    """Write a file with every tensor, LoRA not merged, that needs no base weights; returns the file's SHA-256.

    Args:
        state: names and shapes of a network with the card's LoRA; the caller has checked that none is missing.
    """
    return _write(path, state, card.model_copy(update={"kind": "complete"}))


def read(path: Path) -> tuple[dict[str, Tensor], WeightsCard]:
    """The tensors and the card of a weights file, exactly as written.

    Raises:
        WeightsError: the file is damaged (even by one bit), or not a memorysam file.
    """
    state, metadata = tensors.read(path)
    card = parse_card(metadata, where=path)
    if tensors.digest(state) != card.tensors_sha256:
        raise WeightsError(f"{path}: its tensors were changed after writing (their SHA-256 differs); copy it again")
    return state, card


def load(path: str | Path, device: str | torch.device = "cpu", *, image_size: int | None = None) -> Segmenter:
    """Load trained weights for use: complete, LoRA merged, in eval mode.

    Args:
        path: a file written by ``memorysam train`` or ``memorysam weights merge``, or ``hf://OWNER/NAME[/FILE]``.
        device: the device of the network.
        image_size: overrides the short side stored with the weights, in pixels, divisible by 32.

    Raises:
        WeightsError: the file is damaged, not a memorysam file, incomplete, or its base is missing or another one.
    """
    if image_size is not None and (image_size <= 0 or image_size % 32):
        raise WeightsError(f"image_size: {image_size} is not a positive multiple of 32")
    path = hub.local_path(path)
    network = _load(path, folding=True)
    if image_size is not None:
        network.card = network.card.model_copy(update={"image_size": image_size})
    merge_lora(network.encoder)
    # Finite tensors may have an infinite product when LoRA is merged.
    tensors.check_finite(dict(network.encoder.state_dict()), where=f"{path}: with its LoRA merged")
    return network.requires_grad_(False).eval().to(device)  # merging makes new layers


def load_unmerged(path: str | Path) -> Segmenter:
    """Load trained weights with LoRA not merged, on the CPU, in eval mode; otherwise as :func:`load`."""
    return _load(Path(path), folding=False)


def _load(path: Path, *, folding: bool) -> Segmenter:
    """Load weights with PEFT's LoRA or, if ``folding``, with LoRA's tensors only for merging."""
    state, card = read(path)
    with nullcontext() if card.base.source.startswith("random:") else Undrawn():
        network = build(card)
    if card.kind == "trained":
        reload_base(network, card.base, where=str(path))
    if card.kind != "merged":
        with Undrawn():
            prepare_training(network, card.recipe.model, modalities=len(card.recipe.sensors), folding=folding)
    if card.kind == "trained":
        fill_own(network, state, where=str(path))
    else:
        _fill(dict(network.state_dict()), state, where=str(path))
    return network.requires_grad_(False).eval()


def fill_own(network: Segmenter, state: dict[str, Tensor], *, where: str) -> None:
    """Copy a checkpoint's tensors into a network prepared for training; all must match."""
    _fill(own_tensors(network), state, where=where)


def versions() -> dict[str, str]:
    """The versions of the packages that affect results."""
    names = ("torch", "sam2", "peft", "numpy", "opencv-python-headless", "safetensors")
    return {"memorysam": __version__} | {name: version(name) for name in names}


def _blank_card(recipe: Recipe, dataset: DatasetInfo) -> WeightsCard:
    """The card of a network on random base weights."""
    return WeightsCard(
        recipe=recipe, dataset=dataset, base=Base(backbone=recipe.model.backbone, source="random:0", sha256=""),
        tokens=len(dataset.classes), image_size=recipe.data.image_size, versions=versions(),
    )  # fmt: skip


def _with_lora(network: Segmenter) -> Segmenter:
    """Prepare a network for training, with LoRA drawn from the recipe's seed."""
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
