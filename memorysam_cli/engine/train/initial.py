"""Start a run from trained weights (``--init``): all of them, or the part that fits.

The encoder, LoRA, and everything that sensors and classes share are taken completely. A class keeps its head if the
weights have a class of the same name. Everything else is newly initialized. Each difference is reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor, equal

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.infer.inference import compared
from memorysam_cli.engine.train.objective import teacher_file
from memorysam_cli.errors import WeightsError
from memorysam_cli.model import Segmenter, WeightsCard, base_weights, read_card
from memorysam_cli.model.network import MEMORY, NOTES
from memorysam_cli.model.weights import fill_own, own_tensors, read
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import tensors
from memorysam_cli.text import counted, typed_path

READING = {"mean", "std", "channels", "bands", "scale", "offset"}
"""The settings of a sensor that affect the values in the network."""
_OTHER_WEIGHTS = "give other weights, or begin without --init"
_DECODER = "sam.sam_mask_decoder."
_HEADS = re.compile(re.escape(f"{_DECODER}output_hypernetworks_mlps.") + r"(\d+)\.(.+)")
"""Names of a token's own head: the token's number, and the tensor."""
_ROWS = re.compile(re.escape(_DECODER) + r"(mask_tokens\.weight|iou_prediction_head\.layers\.2\.(weight|bias))")
"""Tensors with a row per token."""


@dataclass(frozen=True)
class Initial:
    """The result of loading initial weights."""

    taken: int
    """Number of tensors taken, completely or in part."""
    fresh: int = 0
    """Number of newly initialized tensors."""
    notes: tuple[str, ...] = ()
    """The differences from those weights, line by line."""


def initial_sha256(recipe: Recipe, then: str | None = None) -> str | None:
    """The SHA-256 of a recipe's initial weights; None if there are none.

    Args:
        recipe: its ``model.init`` names the file.
        then: the SHA-256 at the start of the run. A resumed run does not need the file, so a missing file counts as
            unchanged.

    Raises:
        WeightsError: the file does not exist.
    """
    if recipe.model.init is None:
        return None
    path = typed_path(recipe.model.init)
    if not path.is_file():
        if then is not None:
            return then
        raise WeightsError(f"--init {path}: {_why_none(path)}; give weights of `memorysam train`")
    return tensors.sha256(path)


def teacher_sha256(recipe: Recipe, ours: WeightsCard) -> str | None:
    """The SHA-256 of the weights of a recipe's teacher; None if the teacher has no weights of its own.

    Args:
        recipe: its ``robust.teacher.weights`` names the file.
        ours: the card of the network in training.

    Raises:
        WeightsError: the file is missing or not a memorysam file, or its classes or sensors differ from this run's.
    """
    file = teacher_file(recipe)
    if file is None:
        return None
    path, card = file
    where, remedy = f"robust.teacher.weights: {path}", "give weights of the same classes and sensors"
    if card.dataset.classes != ours.dataset.classes:
        pairs = zip_longest(card.dataset.classes, ours.dataset.classes)
        number, (theirs, here) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
        raise WeightsError(f"{where}: its class {number} is {theirs!r}, that of this data set {here!r}; {remedy}")
    theirs, here = ([modality.name for modality in each.modalities] for each in (card, ours))
    if theirs != here:
        raise WeightsError(f"{where}: was trained on {', '.join(theirs)}, this run is on {', '.join(here)}; {remedy}")
    if changed := [each for each in _changed_settings(card, ours) if each.split()[1] in READING]:
        raise WeightsError(f"{where}: reads its sensors differently: {', '.join(changed)}; {remedy}")
    return tensors.sha256(path)


def doubts(recipe: Recipe, manifest: Manifest, *, strict: bool) -> list[str]:
    """The sensors whose values differ from those that the weights of ``--init`` were trained on.

    Args:
        recipe: its ``model.init`` names the file; other code refuses a missing file.
        manifest: the training data with its ranges.
        strict: raise instead of returning them.

    Raises:
        DataError: there are such sensors, and ``strict`` is true.
        WeightsError: the file is not a memorysam file.
    """
    path = None if recipe.model.init is None else typed_path(recipe.model.init)
    if path is None or not path.is_file():
        return []
    found = {name: manifest.info.ranges[name] for name in recipe.data.modalities if name in manifest.info.ranges}
    return compared(read_card(path).dataset, found, strict=strict)


def load_initial(network: Segmenter, name: str) -> Initial:
    """Fill a network that is ready for training with trained weights, as far as they fit.

    Args:
        network: from :func:`memorysam_cli.model.weights.build_for_training`.
        name: a file from ``memorysam train`` or ``memorysam weights import``.

    Returns:
        What was taken, and what is newly initialized.

    Raises:
        WeightsError: the file is damaged, or has another base, backbone or LoRA; the message says which.
    """
    path = typed_path(name)
    if not path.is_file():
        raise WeightsError(f"--init {path}: {_why_none(path)}; give weights of `memorysam train`")
    state, card = read(path)
    if reasons := list(_obstacles(card, network.card)):
        raise WeightsError(f"--init {path}: does not fit this run: {'; '.join(reasons)}; {_OTHER_WEIGHTS}")
    own = own_tensors(network)
    if card.kind == "complete":
        state = _without_base(state, network, own, where=path)
    notes = [*_sensor_notes(card, network.card), *_class_notes(card, network.card)]
    fresh: list[str] = []
    if _shares_shape(card, network.card):
        fill_own(network, state, where=f"--init {path}")
    else:
        state, fresh, others = _fitting(state, card, network, own)
        notes += others
        fill_own(network, state, where=f"--init {path}")
    return Initial(len(own) - len(fresh), len(fresh), tuple(f"--init {path}: {note}" for note in notes))


def _shares_shape(initial: WeightsCard, ours: WeightsCard) -> bool:
    """Whether the tensors of both have the same meaning, so that the file must have exactly these."""
    then, now = initial.recipe, ours.recipe
    return (
        initial.tokens == ours.tokens
        and then.model.modality_embedding == now.model.modality_embedding
        and (list(then.sensors) == list(now.sensors) or not now.model.modality_embedding)
        and then.model.projection == now.model.projection
        and (then.sensors == now.sensors or not now.model.projection)
        and then.model.memory_mask == now.model.memory_mask
        and initial.dataset.classes == ours.dataset.classes
        and (len(then.sensors) == 1) == (len(now.sensors) == 1)
        and then.model.fusion == now.model.fusion
    )


def _fitting(
    state: Mapping[str, Tensor], card: WeightsCard, network: Segmenter, own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Weights for all of a network's own tensors, the names of newly initialized ones, and notes for the user.

    Tokens count from 1 for class 0; token 0 belongs to no class, and every network has it.
    """
    pairs = {0: 0} | {there + 1: here + 1 for there, here in _same_classes(card, network.card)}
    from_token = {here: there for there, here in pairs.items()}
    state = {**state, **_memory_notes(state, card, network.card, own)}
    filled, fresh = {}, []
    for name, tensor in own.items():
        filled[name] = tensor.clone()
        if _ROWS.fullmatch(name) and name in state and state[name].shape[1:] == tensor.shape[1:]:
            for there, here in pairs.items():
                filled[name][here] = state[name][there]
            continue
        source = name
        if head := _HEADS.fullmatch(name):
            source = f"{_DECODER}output_hypernetworks_mlps.{from_token.get(int(head[1]), 'none')}.{head[2]}"
        if source in state and state[source].shape == tensor.shape:
            filled[name] = state[source]
        else:
            fresh.append(name)
    rest = [name for name in fresh if not _HEADS.fullmatch(name)]
    unused = [name for name in state if name not in own and not _HEADS.fullmatch(name)]
    notes = [f"{counted(len(rest), 'tensor', 'starts')} as in the base, or fresh: {_parts(rest)}"] if rest else []
    return (
        filled,
        fresh,
        notes + ([f"{counted(len(unused), 'tensor', 'is')} not used here: {_parts(unused)}"] if unused else []),
    )


def _memory_notes(
    state: Mapping[str, Tensor], initial: WeightsCard, ours: WeightsCard, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The additions to the memories that both have, matched by the names of sensors and classes."""
    found = {
        name: own[name].clone() for name in (f"{NOTES}sensors", f"{NOTES}classes") if name in own and name in state
    }
    if (name := f"{NOTES}sensors") in found:  # (M, C_m)
        then, now = list(initial.recipe.sensors), list(ours.recipe.sensors)
        for sensor in set(then) & set(now):
            found[name][now.index(sensor)] = state[name][then.index(sensor)]
    if (name := f"{NOTES}classes") in found:  # (C_m, K, 1, 1)
        for there, here in _same_classes(initial, ours):
            found[name][:, here] = state[name][:, there]
    return found


def _parts(names: Sequence[str]) -> str:
    """The parts of the network that these tensors belong to."""
    return ", ".join(sorted({name.removeprefix("sam.").split(".")[0] for name in names}))


def _same_classes(initial: WeightsCard, ours: WeightsCard) -> list[tuple[int, int]]:
    """Matching classes by name, ignoring case."""
    here = {name.casefold(): number for number, name in enumerate(ours.dataset.classes)}
    known = [(number, here.get(name.casefold())) for number, name in enumerate(initial.dataset.classes)]
    return [(there, number) for there, number in known if number is not None]


def _class_notes(initial: WeightsCard, ours: WeightsCard) -> Iterator[str]:
    """Which classes keep their heads, a line for each kind."""
    then, now = initial.dataset.classes, ours.dataset.classes
    if then == now:
        return
    pairs = _same_classes(initial, ours)
    kept = {here for _, here in pairs}
    lost = set(range(len(then))) - {there for there, _ in pairs}
    groups = (
        ("class", "keeps", "the head of that name", [now[here] for here in sorted(kept)]),
        ("class", "begins", "fresh", [name for number, name in enumerate(now) if number not in kept]),
        ("class", "is", "not here", [then[there] for there in sorted(lost)]),
    )
    for thing, does, what, names in groups:
        if names:
            yield f"{counted(len(names), thing, does)} {what}: {', '.join(names)}"


def _sensor_notes(initial: WeightsCard, ours: WeightsCard) -> Iterator[str]:
    """Differences of the sensors; only their list affects the weights."""
    if initial.modalities == ours.modalities:
        return
    then, now = (", ".join(each.name for each in card.modalities) for card in (initial, ours))
    if then == now:
        yield f"was trained on other settings of sensors: {', '.join(_changed_settings(initial, ours))}"
    else:
        yield f"was trained on {then}, continues with {now}"


def _changed_settings(initial: WeightsCard, ours: WeightsCard) -> Iterator[str]:
    """Changed processing of the same sensors, such as antialiasing."""
    for then, now in zip(initial.modalities, ours.modalities, strict=True):
        for key in type(then).model_fields:
            before, after = getattr(then, key), getattr(now, key)
            if before != after:
                yield f"'{then.name}' {key} was {before}, is {after}"


def _obstacles(initial: WeightsCard, ours: WeightsCard) -> Iterator[str]:
    """Reasons why a run cannot start from these weights."""
    if initial.kind == "merged":
        yield "its LoRA is merged into the base; give the run's own best.safetensors"
        return
    pairs = {
        "model.backbone": (initial.recipe.model.backbone, ours.recipe.model.backbone),
        "model.encoder": (initial.recipe.model.encoder, ours.recipe.model.encoder),
        "model.object_gate": (initial.recipe.model.object_gate, ours.recipe.model.object_gate),
        **_lora_settings(initial, ours),
    }
    yield from (f"{key} was {then}, is {now}" for key, (then, now) in pairs.items() if then != now)
    if initial.kind == "trained" and initial.base.sha256 != ours.base.sha256:
        yield (
            f"its base weights are {initial.base.source} ({initial.base.sha256[:12]}…), this run's "
            f"{ours.base.source} ({ours.base.sha256[:12]}…)"
        )


def _lora_settings(initial: WeightsCard, ours: WeightsCard) -> dict[str, tuple[Any, Any]]:
    """The settings of LoRA that affect the meaning of its tensors; None if LoRA is not used."""
    if ours.recipe.model.encoder != "lora":
        return {}
    then, now = initial.recipe.model.lora, ours.recipe.model.lora
    settings: dict[str, tuple[Any, Any]] = {
        "rank": (then.rank, now.rank),
        "targets": (then.targets, now.targets),
        "dora": (then.dora, now.dora),
        "rslora": (then.rslora, now.rslora),
        "alpha": (then.alpha or then.rank, now.alpha or now.rank),
    }
    return {f"model.lora.{key}": pair for key, pair in settings.items()}


def _without_base(
    state: dict[str, Tensor], network: Segmenter, own: dict[str, Tensor], *, where: Path
) -> dict[str, Tensor]:
    """The trained part of a complete file, whose base must be this run's.

    With a single sensor there is no memory, so its tensors are not compared.
    """
    base = {name: tensor for name, tensor in network.state_dict().items() if name not in own}
    idle = {name for name in base if len(network.card.recipe.sensors) == 1 and name.startswith(MEMORY)}
    others = [
        name
        for name, tensor in base.items()
        if name not in idle and (name not in state or not equal(state[name], tensor))
    ]
    if others:
        raise WeightsError(
            f"--init {where}: its base weights are not this run's: {len(others)} of "
            f"{counted(len(base), 'tensor', 'differs')} ({base_weights.few_names(others)}); {_OTHER_WEIGHTS}"
        )
    return {name: tensor for name, tensor in state.items() if name not in base}


def _why_none(path: Path) -> str:
    return "is not a file" if path.exists() else "does not exist"
