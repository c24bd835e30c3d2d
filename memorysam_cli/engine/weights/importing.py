"""The authors' weights, made into a file of ours: complete, with a card, and nothing left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from memorysam_cli import data as datasets
from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine.training.starting import resolve
from memorysam_cli.engine.weights.released import Name, choose_recipe, read_name
from memorysam_cli.errors import UsageError, WeightsError, did_you_mean
from memorysam_cli.model import weights
from memorysam_cli.model.base_weights import Base
from memorysam_cli.model.reference import Identity, from_reference, identify, unwrapped
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import foreign, tensors
from memorysam_cli.text import shown

SELECTED_ON_TEST = ("mcubes",)
"""Data sets whose upstream "val" list is the test list, so that the published weights were chosen on it (METHOD §5)."""


@dataclass(frozen=True)
class Imported:
    """What was written."""

    card: weights.WeightsCard
    tensors: int
    """How many the file had; all are in what was written."""
    sha256: str
    notes: tuple[str, ...]
    """What was taken from where, and what is worth knowing."""


def import_reference(
    path: Path, out: Path, *, recipe: str | None = None, modalities: tuple[str, ...] | None = None,
    root: Path | None = None,
) -> Imported:  # fmt: skip
    """Write an upstream checkpoint as a weights file of ours.

    Args:
        path: a .pth (a state dict, or one under ``model_state_dict``) or a .safetensors of the same names.
        out: the file to write.
        recipe: a shipped recipe's name or a .yaml file; None: as the file's name says. ``auto`` and ``all`` in it
            are what is prepared in ``root``.
        modalities: in the order of training; None: as the file's name or the recipe says.
        root: a data root where the data set is prepared; None: the default root if it is prepared there, else the
            data set as published.

    Raises:
        UsageError: the name and the options contradict each other, or do not say enough.
        WeightsError: it is unsafe, damaged, incomplete or no MemorySAM checkpoint.
        DataError: ``root`` does not have the data set.
    """
    if recipe is not None:
        recipes.load(recipe, with_extensions=True)  # a wrong recipe is told before a large file is read
    state = _read(path)
    identity = identify(state, where=shown(path))
    asked = resolve(choose_recipe(path, recipe=recipe, modalities=modalities), manifest.data_root(root))
    dataset = _dataset(asked, root=root)
    if identity.tokens < len(dataset.classes):
        raise WeightsError(
            f"{shown(path)}: has {identity.tokens} class tokens, but {dataset.title} has {len(dataset.classes)} "
            "classes; give the --recipe of the data set that it was trained on"
        )
    said = read_name(path)
    resolved = _resolved(asked, identity)
    card = weights.WeightsCard(
        recipe=resolved, dataset=dataset, tokens=identity.tokens, image_size=resolved.data.image_size,
        base=Base(backbone=identity.backbone, source=f"import:{shown(path.name)}", sha256=tensors.sha256(path)),
        versions=weights.versions(), metric=_metric(said, resolved),
    )  # fmt: skip
    own = {name: tensor.float() for name, tensor in from_reference(state).items()}
    digest = weights.save_complete(card, own, out)
    return Imported(card=card, tensors=len(state), sha256=digest, notes=_notes(card, asked, identity))


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of either container, without the wrappers of training."""
    if path.suffix != ".safetensors":
        return unwrapped(foreign.read_torch(path))
    state, metadata = tensors.read(path)
    if weights.CARD in metadata:
        raise WeightsError(f"{shown(path)}: is a memorysam weights file already; use it as it is")
    return unwrapped(state)


def _dataset(recipe: Recipe, *, root: Path | None) -> DatasetInfo:
    """The data set as prepared, else as published; with all modalities of the recipe."""
    name, wanted = recipe.data.dataset, set(recipe.data.modalities)
    place = manifest.data_root(root)
    is_published = name in datasets.DATASETS
    if root is not None or name in manifest.prepared(place):
        found = manifest.read_info(place, name)
        # A copy prepared without some sensors must not stand in the way, unless it was asked for.
        if root is not None or not is_published or wanted <= {modality.name for modality in found.modalities}:
            return _with_modalities(found, recipe, where=str(manifest.folder(place, name) / manifest.INFO))
    if not is_published:
        raise UsageError(
            f"recipe {recipe.name}: its data set '{name}' is none of the published ones and not prepared in {place}; "
            "give --data ROOT, where it is prepared"
        )
    return _with_modalities(datasets.published_info(name), recipe, where=name)


def _with_modalities(found: DatasetInfo, recipe: Recipe, *, where: str) -> DatasetInfo:
    known = [modality.name for modality in found.modalities]
    for name in recipe.data.modalities:
        if name not in known:
            raise UsageError(f"{where}: has no modality '{name}'{did_you_mean(name, known)}")
    return found


def _resolved(asked: Recipe, identity: Identity) -> Recipe:
    """The recipe with what the tensors say and with what upstream's training code does."""
    content = asked.model_dump(mode="json")
    content["model"] |= {"backbone": identity.backbone, "encoder": "lora", "object_gate": True}
    content["model"] |= {"base_weights": "published", "lora": {"rank": identity.rank}}
    if asked.data.dataset in SELECTED_ON_TEST:
        content["data"]["selection_split"] = "test"
    return recipes.parse(content, where=f"recipe {asked.name}")


def _metric(said: Name, recipe: Recipe) -> weights.Metric | None:
    if said.miou is None or said.epoch is None:
        return None
    split = recipe.data.selection_split
    return weights.Metric(miou=said.miou, protocol="resized", split=split, epoch=said.epoch, step=None)


def _notes(card: weights.WeightsCard, asked: Recipe, identity: Identity) -> tuple[str, ...]:
    found = []
    if asked.model.backbone != identity.backbone:
        found.append(f"the tensors are of {identity.backbone}; recipe {asked.name} says {asked.model.backbone}")
    if asked.model.lora.rank != identity.rank:
        found.append(f"LoRA has rank {identity.rank}; recipe {asked.name} says {asked.model.lora.rank}")
    classes = len(card.dataset.classes)
    if identity.tokens > classes:
        found.append(f"{identity.tokens} class tokens; the {classes} of {card.dataset.title} compete in the argmax")
    if card.recipe.data.selection_split != asked.data.selection_split:
        found.append(
            f"upstream chose these weights on the {card.recipe.data.selection_split} list: no independent test"
        )
    if card.metric is None:
        found.append("the file's name does not say epoch and mIoU; the card has no result")
    return tuple(found)
