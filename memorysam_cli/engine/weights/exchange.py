"""Import of the authors' released weights, and export of our weights to other layouts.

First the import: complete, with a card, and nothing left out; then the content of the file's name, the recipe that
follows from it, the data set, and the card. Then the export, and the check of a weights file. Options, headers and
cards are checked without torch.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from memorysam_cli import data as datasets
from memorysam_cli import model as models
from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine.train.start import resolve
from memorysam_cli.errors import UsageError, WeightsError, did_you_mean
from memorysam_cli.model import CARD, Base, Metric, WeightsCard, read_card
from memorysam_cli.recipe import BACKBONES, Recipe
from memorysam_cli.registry import ENCODERS
from memorysam_cli.storage import atomic, documents, tensors
from memorysam_cli.text import counted, shown

if TYPE_CHECKING:
    from torch import Tensor

    from memorysam_cli.model.reference import Identity
    from memorysam_cli.model.weights import Segmenter

LETTERS = {
    "deliver": {"RGB": "img", "I": "img", "D": "depth", "E": "event", "L": "lidar"},
    "mcubes": {"RGB": "image", "I": "image", "A": "aolp", "D": "dolp", "N": "nir"},
}
"""Data set → letter → modality."""
ANTIALIASED = {"deliver": True, "mcubes": False}
"""Data set → whether the authors' code antialiases when images shrink (METHOD §5)."""
SELECTED_ON_TEST = ("mcubes",)
"""Data sets whose "val" list in the authors' code is the test list, so that the published weights were selected on it
(METHOD §5)."""
_RESULT = re.compile(r"epoch[_-]?(?P<epoch>\d+)_(?P<miou>\d{1,3}(?:\.\d+)?)(?![\d.]*\d)")
# RGB in any case; a single I only as a capital, because "in" and "id" are words.
_SENSORS = re.compile(r"(?<![A-Za-z])(?:(?i:RGB)|I(?=[-_]?[ADELN]))(?:[-_]?(?i:[ADELN]))*(?![A-Za-z])")
_SMALL = re.compile(r"(?<![A-Za-z])i[adeln]+(?![A-Za-z])")
_DATASET = re.compile(rf"(?<![A-Za-z])({'|'.join(LETTERS)})(?![A-Za-z])", re.IGNORECASE)


@dataclass(frozen=True)
class ImportedWeights:
    """The result of an import."""

    card: WeightsCard
    tensors: int
    """Number of tensors in the file; all are in the output."""
    sha256: str
    notes: tuple[str, ...]
    """The sources of values, and remarks."""


def import_reference(
    path: Path, out: Path, *, recipe: str | None = None, modalities: tuple[str, ...] | None = None,
    root: Path | None = None,
) -> ImportedWeights:  # fmt: skip
    """Write a checkpoint of the authors' code as a memorysam weights file.

    Args:
        path: a .pth (a state dict, or one under ``model_state_dict``) or a .safetensors of the same names.
        out: the file to write.
        recipe: a shipped recipe's name or a .yaml file; None: from the file's name. ``auto`` and ``all`` in it mean the
            data prepared in ``root``.
        modalities: in the order of training; None: from the file's name or the recipe.
        root: a data root with the prepared data set; None: the default root if it is prepared there, else the data set
            as published.

    Raises:
        UsageError: the name and the options contradict each other, or are not sufficient.
        WeightsError: it is unsafe, damaged, incomplete or not a MemorySAM checkpoint.
        DataError: ``root`` does not have the data set.
    """
    _refuse_own(path)
    # Options that do not fit are told before the seconds that torch takes; a name that says nothing, after the file.
    asked = recipe is not None or modalities is not None
    planned = _planned(path, recipe=recipe, modalities=modalities, root=root) if asked else None
    from memorysam_cli.model.reference import from_reference, identify
    from memorysam_cli.model.weights import save_complete, versions

    state = _read(path)
    identity = identify(state, where=shown(path))
    chosen, dataset = planned or _planned(path, recipe=recipe, modalities=modalities, root=root)
    if identity.tokens < len(dataset.classes):
        raise WeightsError(
            f"{shown(path)}: has {identity.tokens} class tokens, but {dataset.title} has "
            f"{counted(len(dataset.classes), 'class')}; give the --recipe of the data set that it was trained on"
        )
    trained = _trained_by(chosen, identity)
    card = WeightsCard(
        kind="complete", recipe=trained, dataset=dataset, tokens=identity.tokens, image_size=trained.data.image_size,
        base=Base(backbone=identity.backbone, source=f"import:{shown(path.name)}", sha256=tensors.sha256(path)),
        versions=versions(), metric=_metric(read_name(path), trained),
    )  # fmt: skip
    own = {name: tensor.float() for name, tensor in from_reference(state).items()}
    digest = save_complete(card, own, out)
    return ImportedWeights(card=card, tensors=len(state), sha256=digest, notes=_notes(card, chosen, identity))


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of either format, without prefixes from training."""
    from memorysam_cli.model.reference import unwrapped
    from memorysam_cli.storage import foreign

    return unwrapped(tensors.read(path)[0] if path.suffix == ".safetensors" else foreign.read_torch(path))


def _refuse_own(path: Path) -> None:
    """Refuse memorysam's own files, and files that are no weights by their first bytes."""
    tensors.check_file(path)
    if path.suffix == ".safetensors" and CARD in tensors.read_metadata(path):
        raise WeightsError(f"{shown(path)}: is already a memorysam weights file; use it as it is")


def _planned(
    path: Path, *, recipe: str | None, modalities: tuple[str, ...] | None, root: Path | None
) -> tuple[Recipe, DatasetInfo]:
    """The recipe and the data set of imported weights, from the file's name and the options."""
    chosen = resolve(choose_recipe(path, recipe=recipe, modalities=modalities), manifests.data_root(root))
    return chosen, _dataset(chosen, root=root)


@dataclass(frozen=True)
class FileName:
    """The information in the name of a file, or of its folder; None for values that are not in it."""

    dataset: str | None = None
    sensors: str | None = None
    """Letters, such as ``RGBDEL``."""
    epoch: int | None = None
    miou: float | None = None
    """In %."""
    recipe: str | None = None
    """The shipped recipe with the folder's name."""

    def modalities(self, dataset: str) -> tuple[str, ...] | None:
        """The sensors in a data set's names, or None if they are not that data set's."""
        if self.sensors is None or dataset not in LETTERS:
            return None
        known = LETTERS[dataset]
        first = "RGB" if self.sensors.startswith("RGB") else "I"
        letters = (first, *self.sensors.removeprefix(first))
        if len(set(letters)) < len(letters) or not known.keys() >= set(letters):
            return None
        return tuple(known[letter] for letter in letters)

    def datasets(self) -> list[str]:
        """The data sets that the name can mean."""
        if self.dataset is not None:
            return [self.dataset]
        return [dataset for dataset in LETTERS if self.modalities(dataset)] if self.sensors else []


def read_name(path: Path) -> FileName:
    """Read a file's name and, if it has no sensors, its folder's name."""
    result = _RESULT.search(path.stem)
    epoch, miou = (int(result["epoch"]), float(result["miou"])) if result else (None, None)
    name = _words(path.stem)
    if name.sensors is None and result:  # only then the training code created the folder
        folder = path.absolute().parent.name
        if folder in recipes.shipped():
            name = FileName(recipe=folder)
        elif _DATASET.search(folder) and _words(folder).sensors:
            name = _words(folder)
    is_score = miou is not None and miou <= 100
    return dataclasses.replace(name, epoch=epoch, miou=miou if is_score else None)


def _words(text: str) -> FileName:
    """Data set and sensors in a text."""
    dataset = _DATASET.search(text)
    sensors = _SENSORS.search(text) or (_SMALL.search(text) if dataset else None)
    return FileName(
        dataset=dataset[1].lower() if dataset else None,
        sensors=re.sub("[-_]", "", sensors[0]).upper() if sensors else None,
    )


def choose_recipe(path: Path, *, recipe: str | None, modalities: tuple[str, ...] | None) -> Recipe:
    """The training recipe of weights, from the file's name and the user's options.

    Args:
        path: the file.
        recipe: a shipped recipe's name or a .yaml file; None: the shipped one that fits the name.
        modalities: in the order of training; None: the name's, else the recipe's.

    Raises:
        UsageError: the name and the options contradict each other, or are not sufficient.
    """
    name = read_name(path)
    if recipe is None and name.recipe is not None:
        recipe = name.recipe
    base = recipes.load(recipe, with_extensions=True) if recipe is not None else _shipped(path, name, modalities)
    dataset = base.data.dataset
    chosen = modalities or (name.modalities(dataset) if recipe is None else None) or base.data.modalities
    _refuse_contradiction(path, name, dataset=dataset, chosen=chosen)
    content = base.model_dump(mode="json")
    content["data"]["modalities"] = list(chosen)
    return recipes.parse(content, where="--modalities")


def _shipped(path: Path, name: FileName, modalities: tuple[str, ...] | None) -> Recipe:
    """The shipped recipe for the data set and modalities in the name."""
    possible = name.datasets()
    if not possible and modalities is not None:
        possible = [dataset for dataset, letters in LETTERS.items() if set(letters.values()) >= set(modalities)]
    # RGB-D is DELIVER's: of MCubeS, only I-A, I-A-D and I-A-D-N were ever published. RGB alone could be either.
    if len(possible) > 1 and name.sensors in {"RGBD", "ID"}:
        possible = ["deliver"]
    if len(possible) != 1:
        raise UsageError(_not_stated(path, "which data set and modalities they were trained with"))
    chosen = modalities or name.modalities(possible[0])
    if chosen is None:
        raise UsageError(_not_stated(path, f"which modalities of {possible[0]} they were trained with"))
    of_dataset = [each for each in _published().values() if each.data.dataset == possible[0]]
    exact = [each for each in of_dataset if each.data.modalities == chosen]
    return (exact or of_dataset)[0]


def _published() -> dict[str, Recipe]:
    """The shipped recipes that are possible for the authors' weights: those of the paper's data sets with only its
    losses."""
    shipped = {name: recipes.load(name) for name in recipes.shipped()}
    return {
        name: each
        for name, each in shipped.items()
        if each.data.dataset in LETTERS and each.terms == ("ohem", "spmm")
    }  # fmt: skip


def _not_stated(path: Path, what: str) -> str:
    """The message for a file whose recipe is unclear."""
    known = ", ".join(_published())
    return (
        f"{shown(path)}: neither the tensors nor the file's name say {what}; "
        f"give --recipe ({known}) or --recipe and --modalities, in the order of the training"
    )


def _refuse_contradiction(path: Path, name: FileName, *, dataset: str, chosen: tuple[str, ...]) -> None:
    """Refuse options that contradict the name, which can only mean data sets of the authors' code."""
    if dataset not in LETTERS:
        return
    named = name.modalities(dataset)
    is_other = name.sensors is not None and named != chosen
    if is_other or name.dataset not in {None, dataset}:
        words = " ".join(filter(None, (name.dataset, name.sensors)))
        meaning = f" ({', '.join(named)})" if named else ""
        raise UsageError(
            f"{shown(path)}: its name says {words}{meaning}, "
            f"but the options mean {dataset} with {', '.join(chosen)}; leave --recipe and --modalities out, "
            "give what the name says, or rename the file if its name is wrong"
        )


def _dataset(recipe: Recipe, *, root: Path | None) -> DatasetInfo:
    """The data set as prepared, else as published; with all modalities of the recipe."""
    name, wanted = recipe.data.dataset, set(recipe.data.modalities)
    place = manifests.data_root(root)
    is_published = name in datasets.DATASETS
    if root is not None or name in manifests.prepared(place):
        info = manifests.read_info(place, name)
        # A copy prepared without some sensors is ignored, unless --data names it.
        if root is not None or not is_published or wanted <= {modality.name for modality in info.modalities}:
            return _with_modalities(info, recipe, where=str(manifests.folder(place, name) / manifests.INFO))
    if not is_published:
        raise UsageError(
            f"recipe {recipe.name}: its data set '{name}' is neither published nor prepared in {place}; "
            "give --data ROOT, where it is prepared"
        )
    return _with_modalities(datasets.published_info(name), recipe, where=name)


def _with_modalities(info: DatasetInfo, recipe: Recipe, *, where: str) -> DatasetInfo:
    """The data set, if it has all modalities of the recipe."""
    known = [modality.name for modality in info.modalities]
    for name in recipe.data.modalities:
        if name not in known:
            raise UsageError(f"{where}: has no modality '{name}'{did_you_mean(name, known)}")
    return info


def _trained_by(recipe: Recipe, identity: Identity) -> Recipe:
    """The recipe with values from the tensors and from the authors' training code."""
    content = recipe.model_dump(mode="json")
    content["model"] |= {"backbone": identity.backbone, "encoder": "lora", "object_gate": True}
    content["model"] |= {"base_weights": "published", "lora": {"rank": identity.rank}}
    content["data"]["antialias"] = ANTIALIASED.get(recipe.data.dataset, recipe.data.antialias)
    if recipe.data.dataset in SELECTED_ON_TEST:
        content["data"]["selection_split"] = "test"
    return recipes.parse(content, where=f"recipe {recipe.name}")


def _metric(name: FileName, recipe: Recipe) -> Metric | None:
    if name.miou is None or name.epoch is None:
        return None
    split = recipe.data.selection_split
    return Metric(miou=name.miou, protocol="resized", split=split, epoch=name.epoch, step=None)


def _notes(card: WeightsCard, chosen: Recipe, identity: Identity) -> tuple[str, ...]:
    """Differences between tensors, recipe and name, and other remarks."""
    notes = []
    if chosen.model.backbone != identity.backbone:
        notes.append(f"the tensors are of {identity.backbone}; recipe {chosen.name} says {chosen.model.backbone}")
    if chosen.model.lora.rank != identity.rank:
        notes.append(f"LoRA has rank {identity.rank}; recipe {chosen.name} says {chosen.model.lora.rank}")
    classes = len(card.dataset.classes)
    if identity.tokens > classes:
        notes.append(f"{identity.tokens} class tokens; the {classes} of {card.dataset.title} compete in the argmax")
    if card.recipe.data.selection_split != chosen.data.selection_split:
        notes.append(
            f"upstream chose these weights on the {card.recipe.data.selection_split} list: no independent test"
        )
    if card.metric is None:
        notes.append("the file's name does not say epoch and mIoU; the card has no result")
    return tuple(notes)


WeightsFormat = Literal["reference", "peft", "merged"]
UPSTREAM_TOKENS = 25
ADAPTER_FILE = "adapter_model.safetensors"
TEST_PX = 64
"""Side of the images for the check of weights."""


@dataclass(frozen=True)
class ExportedWeights:
    """The result of an export."""

    tensors: int
    sha256: str
    """SHA-256 of the file; for ``peft``, of the adapter's tensors file."""
    notes: tuple[str, ...] = ()


def export(path: Path, out: Path, *, form: WeightsFormat) -> ExportedWeights:
    """Write weights in another layout.

    Args:
        path: a weights file of ours; its base weights are loaded if necessary.
        out: a file whose suffix decides the format, or a folder for ``peft``.
        form: ``reference`` is the state dict of the authors' code; ``peft`` only LoRA; ``merged`` is a state dict with
            the names of plain ``sam2``, LoRA merged, the decoder with the class tokens.

    Raises:
        WeightsError: the layout cannot represent these weights (the message says why, and what can), or they are
            refused.
        EnvironmentFault: it cannot be written.
    """
    card = read_card(path)
    refuse_layout(card, form=form, where=shown(path))
    # Here: what was typed, and what the card says, has been looked at, and torch takes seconds.
    from memorysam_cli.model.lora import scale_of
    from memorysam_cli.model.reference import to_reference
    from memorysam_cli.model.weights import load_unmerged

    if form == "merged":
        state = {name.removeprefix("sam."): tensor for name, tensor in models.load(path).state_dict().items()}
        return ExportedWeights(len(state), _write(out, state))
    network = load_unmerged(path)
    if form == "peft":
        return _write_adapter(network, out)
    try:
        state = to_reference(network.state_dict(), scale=scale_of(card.recipe.model.lora))
    except WeightsError as error:
        raise WeightsError(f"{shown(path)}: {error}") from None
    is_usual = card.tokens == UPSTREAM_TOKENS
    note = f"these weights have {card.tokens} class tokens; upstream's code builds {UPSTREAM_TOKENS}: change it there"
    return ExportedWeights(len(state), _write(out, state), notes=() if is_usual else (note,))


def refuse_layout(card: WeightsCard, *, form: WeightsFormat, where: str) -> None:
    """Refuse a layout that cannot hold the weights, from their card alone.

    Raises:
        WeightsError: the message says why, and names a layout that can.
    """
    if form == "merged":
        _refuse_beyond_sam2(card, where=where, whose="plain sam2")
        return
    _refuse_without_lora(card, form=form, where=where)
    if form == "reference":
        _refuse_other_networks(card, where=where)
        _refuse_other_lora(card, where=where)


def _refuse_without_lora(card: WeightsCard, *, form: WeightsFormat, where: str) -> None:
    encoder = card.recipe.model.encoder
    if card.kind == "merged" and encoder == "lora":
        raise WeightsError(
            f"{where}: its LoRA is folded in; --format {form} needs the file that it was merged from, "
            "--format merged works"
        )
    if encoder != "lora":
        raise WeightsError(f"{where}: was trained with encoder '{encoder}', without LoRA; use --format merged")


def _refuse_other_networks(card: WeightsCard, *, where: str) -> None:
    """Refuse networks that the authors' code cannot build: it has only SAM 2's Hiera and the mean of the frames."""
    model = card.recipe.model
    if model.backbone not in BACKBONES:
        raise WeightsError(
            f"{where}: its encoder is '{shown(model.backbone)}'; the authors' layout supports only SAM 2's Hiera; "
            "use --format merged"
        )
    _refuse_beyond_sam2(card, where=where, whose="the upstream code")


def _refuse_beyond_sam2(card: WeightsCard, *, where: str, whose: str) -> None:
    """Refuse parts beyond SAM 2 and other fusions than the mean: other code would silently ignore them."""
    plain = {"fusion": "mean", "modality_embedding": False, "memory_mask": "best", "projection": ()}
    for key, value in plain.items():
        if getattr(card.recipe.model, key) != value:
            raise WeightsError(
                f"{where}: was trained with model.{key}, which {whose} has no place for; `memorysam weights merge` "
                "writes one complete file for memorysam, `memorysam export` one for other programs"
            )


def _refuse_other_lora(card: WeightsCard, *, where: str) -> None:
    """Refuse other kinds of LoRA, which the authors' code does not have."""
    lora = card.recipe.model.lora
    if lora.dora or set(lora.targets) != {"q", "v"}:
        kind = "DoRA" if lora.dora else f"LoRA on {', '.join(lora.targets)}"
        raise WeightsError(
            f"{where}: has {kind}; the authors' layout supports only LoRA on q and v; use --format merged"
        )


def _write(out: Path, state: dict[str, Tensor]) -> str:
    if out.suffix == ".safetensors":
        return tensors.write(out, state, {"format": "pt"})
    from memorysam_cli.storage import foreign

    return foreign.write_torch(out, state)


def _write_adapter(network: Segmenter, out: Path) -> ExportedWeights:
    """Write an adapter folder in PEFT's format: ``PeftModel.from_pretrained`` loads it onto a split trunk."""
    from memorysam_cli.model.lora import adapter_config, adapter_state

    model = network.card.recipe.model
    published = ENCODERS.get(model.backbone).published
    config = adapter_config(model.lora, network.encoder).to_dict()
    config |= {"inference_mode": True, "base_model_name_or_path": published.repository if published else None}
    state = adapter_state(network.encoder)
    with atomic.new_folder(out) as folder:
        digest = tensors.write(folder / ADAPTER_FILE, state, {"format": "pt"})
        documents.write_json(folder / "adapter_config.json", config)
    return ExportedWeights(len(state), digest)


def verify_weights(path: Path) -> dict[str, Any]:
    """Load weights with all their checks and run them once.

    Returns:
        ``tensors`` (number of the network's tensors), ``base``, ``kind``, ``sha256`` of the file.

    Raises:
        WeightsError: any check fails, or the logits of a small test image are not finite.
    """
    import torch

    network = models.load(path)
    frames = [torch.zeros(1, 3, TEST_PX, TEST_PX) for _ in network.card.modalities]
    with torch.inference_mode():
        logits = network.logits(frames)
    if not bool(torch.isfinite(logits).all()):
        raise WeightsError(f"{path}: loads, but gives logits that are not finite; do not use these weights")
    card = network.card
    return {
        "kind": card.kind,
        "tensors": len(network.state_dict()),
        "base": card.base.source,
        "sha256": tensors.sha256(path),
    }
