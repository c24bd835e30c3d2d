"""The network and its weights. This module reads the card of a weights file, its description, without torch.

Shapes use these letters everywhere: ``B`` batch, ``M`` modalities, ``K`` classes, ``C`` channels, ``H W`` pixels, ``h
w`` feature cells, ``L = h·w``.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from memorysam_cli.dataset import DatasetInfo, Modality, Strict
from memorysam_cli.errors import DataError, WeightsError
from memorysam_cli.recipe import UNKNOWN_NAME, Recipe
from memorysam_cli.recipe.schema import without_retired
from memorysam_cli.storage import documents, tensors
from memorysam_cli.text import counted, requirement, shown

if TYPE_CHECKING:
    from memorysam_cli.model.weights import Segmenter, load

__all__ = ["Base", "Metric", "Segmenter", "WeightsCard", "load", "read_card"]
CARD = "memorysam"
"""Metadata key of the card, stored as JSON."""
SEAL = "memorysam_sha256"
"""Metadata key of the card's own SHA-256, in hex; the card has that of the tensors. Files of earlier versions have
none."""
NANO_1_SHA256 = "ad97f69f25da1b77e7dfad68fbe05e1b124ae547ca82019dc22e2236b641bbd4"
"""SHA-256 of the base weights of the earlier, narrower nano."""
MOST_TOKENS, LARGEST_PX = 4096, 65536
"""Limits: a larger value in a card would need more memory than any machine has, before its tensors show that it is
wrong."""
IMPORTED = "import"
"""A kind of source that cannot be loaded: weights with this source are complete."""
Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
"""A SHA-256 in hex; empty if unknown."""


def __getattr__(name: str) -> Any:
    if name in ("Segmenter", "load"):  # loaded with torch when first used
        return getattr(import_module("memorysam_cli.model.weights"), name)
    raise AttributeError(f"module 'memorysam_cli.model' has no attribute '{name}'")


class Base(Strict):
    """The base weights that a network was built on; every checkpoint without these weights has this description."""

    backbone: str
    source: Annotated[str, Field(pattern=rf"^(package|random:[0-9]{{1,18}}|(hub|hf|file|{IMPORTED}):[^\x00-\x1f]+)$")]
    """``hub:facebook/…`` as published, ``hf://OWNER/NAME/FILE``, ``package``, ``random:SEED``, ``file:PATH``, or
    ``import:NAME`` for complete weights."""
    sha256: Sha256
    """SHA-256 of the file; for random weights, of the tensors' bytes."""


class Metric(Strict):
    """The validation result of these weights."""

    miou: Annotated[float, Field(ge=0, le=100)]
    """In %."""
    protocol: Literal["resized", "native"]
    split: Annotated[str, Field(min_length=1)]
    epoch: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)] | None
    """None if only the epoch is known, as for the authors' weights."""


class WeightsCard(Strict):
    """The description in a weights file.

    ``kind`` is ``trained`` if the file has only tensors that are not in the base weights, ``complete`` if it has every
    tensor with LoRA not merged (imported weights), and ``merged`` if it is complete with LoRA merged.
    """

    format_version: Literal[1] = 1
    kind: Literal["trained", "complete", "merged"] = "trained"
    recipe: Recipe
    dataset: DatasetInfo
    base: Base
    tokens: Annotated[int, Field(gt=0, le=MOST_TOKENS)]
    """Number of the decoder's class tokens, at least the data set's number of classes."""
    image_size: Annotated[int, Field(gt=0, le=LARGEST_PX, multiple_of=32)]
    tensors_sha256: Sha256 = ""
    """SHA-256 over names, dtypes, shapes and bytes of the file's tensors."""
    versions: dict[str, str]
    metric: Metric | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> WeightsCard:
        if self.tokens < len(self.dataset.classes):
            raise ValueError(
                f"{counted(self.tokens, 'token', 'is')} too few for {counted(len(self.dataset.classes), 'class')}"
            )
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


def read_card(path: Path) -> WeightsCard:
    """The card of a weights file, without its tensors."""
    return parse_card(tensors.read_metadata(path), where=path)


def seal_of(card: str) -> str:
    """SHA-256 of a card's text, in hex."""
    return hashlib.sha256(card.encode()).hexdigest()


def _name_the_first_nano(content: dict[str, Any]) -> None:
    """Weights from before nano became wider name their base nano, too; its name is now ``nano-1``."""
    base, recipe = content.get("base"), content.get("recipe")
    model = recipe.get("model") if isinstance(recipe, dict) else None
    if not isinstance(base, dict) or not isinstance(model, dict) or base.get("sha256") != NANO_1_SHA256:
        return
    if base.get("backbone") == model.get("backbone") == "nano":
        base["backbone"] = model["backbone"] = "nano-1"


def parse_card(metadata: dict[str, str], *, where: Path) -> WeightsCard:
    """The card in the metadata of a weights file; messages begin with ``where``."""
    if CARD not in metadata:
        raise WeightsError(
            f"{where}: is not a memorysam weights file (its metadata has no '{CARD}' entry); "
            "give a checkpoint from a run's checkpoints/ folder"
        )
    if seal_of(metadata[CARD]) != metadata.get(SEAL, seal_of(metadata[CARD])):
        raise WeightsError(f"{where}: its card was changed after writing (its SHA-256 differs); copy it again")
    try:
        # First our own JSON reader: pydantic accepts duplicate keys, 1e999 and NaN. Then pydantic's strict mode.
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
