"""``train --init``: a new run that begins from trained weights, all of them or none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, equal

from memorysam_cli.errors import WeightsError
from memorysam_cli.model import Segmenter, base_weights
from memorysam_cli.model.weights import WeightsCard, fill_own, own_tensors, read
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import tensors

_NEW_RUN = "give other weights, or begin without --init"


def sum_of(recipe: Recipe, then: str | None = None) -> str | None:
    """The SHA-256 of the weights that a recipe begins from; none where it begins from none.

    Args:
        recipe: its ``model.init`` names the file.
        then: the sum that a run began with. It needs the file no more, so a file that is gone counts as that one.

    Raises:
        WeightsError: the file is not there.
    """
    if recipe.model.init is None:
        return None
    path = _path(recipe.model.init)
    if not path.is_file():
        if then is not None:
            return then
        raise WeightsError(f"--init {path}: is not a file; give weights of `memorysam train`")
    return tensors.sha256(path)


def begin_from(network: Segmenter, name: str) -> int:
    """Fill a network that is ready to train with trained weights.

    Args:
        network: of :func:`memorysam_cli.model.weights.build_for_training`.
        name: a file of ``memorysam train``, or of ``memorysam weights import``.

    Returns:
        The number of tensors that were taken.

    Raises:
        WeightsError: the file is damaged, or of another base, backbone, LoRA, classes or kind of input; says which.
    """
    path = _path(name)
    if not path.is_file():
        raise WeightsError(f"--init {path}: is not a file; give weights of `memorysam train`")
    state, card = read(path)
    if reasons := list(_obstacles(card, network.card)):
        raise WeightsError(f"--init {path}: does not fit this run: {'; '.join(reasons)}; {_NEW_RUN}")
    own = own_tensors(network)
    if card.kind == "complete":
        state = _without_base(state, network, own, where=path)
    fill_own(network, state, where=f"--init {path}")
    if card.modalities != network.card.modalities:
        then, now = (", ".join(each.name for each in c.modalities) for c in (card, network.card))
        console.note(f"--init {path}: was trained on {then}, goes on with {now}")
    return len(own)


def _obstacles(given: WeightsCard, wanted: WeightsCard) -> Iterator[str]:
    """Why weights cannot be what a run begins from."""
    if given.kind == "merged":
        yield "its LoRA is merged into the base; give the run's own best.safetensors"
        return
    pairs = {
        "model.backbone": (given.recipe.model.backbone, wanted.recipe.model.backbone),
        "model.encoder": (given.recipe.model.encoder, wanted.recipe.model.encoder),
        "model.object_gate": (given.recipe.model.object_gate, wanted.recipe.model.object_gate),
        **_lora(given, wanted),
    }
    yield from (f"{key} was {then}, is {now}" for key, (then, now) in pairs.items() if then != now)
    if given.kind == "trained" and given.base.sha256 != wanted.base.sha256:
        yield (
            f"its base weights are {given.base.source} ({given.base.sha256[:12]}…), this run's "
            f"{wanted.base.source} ({wanted.base.sha256[:12]}…)"
        )
    classes = given.dataset.classes, wanted.dataset.classes
    if given.tokens != wanted.tokens or len(classes[0]) != len(classes[1]):
        yield f"it has {len(classes[0])} classes, this data set {len(classes[1])}: a head is not cut or filled up"
    elif classes[0] != classes[1]:
        then, now = next(pair for pair in zip(*classes, strict=True) if pair[0] != pair[1])
        yield f"its classes are others ('{then}' where this data set has '{now}')"
    alone = [len(card.modalities) == 1 for card in (given, wanted)]
    if alone[0] != alone[1]:
        yield (
            f"it was trained on {len(given.modalities)} modalities, this run has {len(wanted.modalities)}: the memory "
            "is trained only where there are several"
        )


def _lora(given: WeightsCard, wanted: WeightsCard) -> dict[str, tuple[Any, Any]]:
    """The settings of LoRA that decide what its tensors are and mean; none where it is not used."""
    if wanted.recipe.model.encoder != "lora":
        return {}
    then, now = given.recipe.model.lora, wanted.recipe.model.lora
    found: dict[str, tuple[Any, Any]] = {
        "rank": (then.rank, now.rank),
        "targets": (then.targets, now.targets),
        "dora": (then.dora, now.dora),
        "rslora": (then.rslora, now.rslora),
        "alpha": (then.alpha or then.rank, now.alpha or now.rank),
    }
    return {f"model.lora.{key}": pair for key, pair in found.items()}


def _without_base(
    state: dict[str, Tensor], network: Segmenter, own: dict[str, Tensor], *, where: Path
) -> dict[str, Tensor]:
    """The trained part of a complete file, whose base must be this run's."""
    base = {name: tensor for name, tensor in network.state_dict().items() if name not in own}
    others = [name for name, tensor in base.items() if name not in state or not equal(state[name], tensor)]
    if others:
        raise WeightsError(
            f"--init {where}: its base weights are not this run's: {len(others)} of {len(base)} tensors differ "
            f"({base_weights.few_names(others)}); {_NEW_RUN}"
        )
    return {name: tensor for name, tensor in state.items() if name not in base}


def _path(name: str) -> Path:
    return Path(name).expanduser()
