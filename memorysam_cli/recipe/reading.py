"""The one way to find, read, extend, override and check a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memorysam_cli.errors import UsageError, did_you_mean
from memorysam_cli.recipe import files
from memorysam_cli.recipe.files import Measured, RecipeFile, Reported, Source
from memorysam_cli.recipe.schema import LossSettings, Recipe, without_retired
from memorysam_cli.registry import LOSSES
from memorysam_cli.storage.documents import parse_yaml
from memorysam_cli.validation import first_fault

NOT_FOR_LOSSES = frozenset({
    "adamw", "epoch", "gradient_norm", "loss", "lr", "macc", "mf1", "miou", "miou_native", "peak_memory_gb",
    "scenes_per_second", "seconds_data", "step", "updates",
})  # fmt: skip
"""Names that the values of metrics.jsonl and the tensors of checkpoints have already."""
_TOP = "top level: "
"""How a message begins whose key stands in no section."""


@dataclass(frozen=True)
class Document:
    """A recipe, and what its file says beside it.

    Attributes:
        recipe: with every value, those of the recipe that it extends and the overrides included.
        path: its file.
        parent: the recipe that it extends: a shipped recipe's name, or a path; None where it extends none.
        reported: what was published for it; None with overrides, which make another recipe of it.
        measured: what it was seen to need; None with overrides.
    """

    recipe: Recipe
    path: Path
    parent: str | None
    reported: Reported | None
    measured: Measured | None


@dataclass(frozen=True)
class _RefusedError(Exception):
    """A value of a recipe that cannot be.

    Attributes:
        keys: that lead to it.
        reason: one line.
    """

    keys: tuple[str, ...]
    reason: str


def load(name_or_file: str | os.PathLike[str], overrides: Sequence[str] = (), *, is_stored: bool = False) -> Recipe:
    """Read a shipped recipe or a file, apply ``key=value`` overrides, and check all of it.

    Args:
        name_or_file: a shipped recipe's name, or a path that ends in .yaml or .yml.
        overrides: such as ``"optim.lr=1e-4"``; the last one wins; ``null`` clears.
        is_stored: it is a run's own and only looked at, so that losses that are not registered here are taken as they
            are.

    Raises:
        UsageError: no such recipe, an unknown key, a wrong type or an impossible value.
    """
    return read(name_or_file, overrides, is_stored=is_stored).recipe


def read(name_or_file: str | os.PathLike[str], overrides: Sequence[str] = (), *, is_stored: bool = False) -> Document:
    """As :func:`load`, with what the file says beside the recipe.

    Raises:
        UsageError: likewise; or what it extends is missing, wrong, or extends another one.
    """
    own = files.read(files.find(name_or_file))
    parent = files.read_parent(own)
    content = own.content if parent is None else files.extended(parent.content, own.content)
    content.setdefault("name", own.path.stem)
    for override in overrides:
        _apply(content, override)
    try:
        recipe = _validated(content, RecipeFile)
        recipe = recipe if is_stored else _with_settings(recipe)
    except _RefusedError as refused:
        raise UsageError(f"{_origin(own, parent, refused.keys, overrides)}: {refused.reason}") from None
    claims = files.Claims() if overrides else own.claims
    return Document(recipe, own.path, _named(own, parent), claims.reported, claims.measured)


def parse(content: dict[str, Any], *, where: str) -> Recipe:
    """Check a recipe's content; ``where`` begins the message of the ``UsageError`` that a fault raises."""
    try:
        return _with_settings(_validated(content, Recipe))
    except _RefusedError as refused:
        raise UsageError(f"{where}: {refused.reason}") from None


def loss_settings(recipe: Recipe, name: str) -> LossSettings:
    """The settings of one of ``losses``, of the class that the loss brings.

    Raises:
        KeyError: it is not registered.
        ValidationError: they are not those of this loss.
    """
    kind: type[LossSettings] = LOSSES.get(name).Settings
    return kind.model_validate_json(json.dumps(recipe.losses[name]), strict=True)


def _validated(content: dict[str, Any], schema: type[Recipe]) -> Recipe:
    """The recipe of plain values; ``"1"`` and ``true`` are no numbers, ``1.0`` is no count.

    ``schema`` has the keys that a message may name.
    """
    try:
        # As JSON: then pydantic's strict mode takes a list for a tuple and an integer for a float, and no more.
        return Recipe.model_validate_json(json.dumps(without_retired(content)), strict=True)
    except ValidationError as fault:
        raise _RefusedError(*first_fault(fault, schema)) from None


def _with_settings(recipe: Recipe) -> Recipe:
    """The recipe with every setting of its further losses written out."""
    return recipe.model_copy(update={"losses": {name: _settings(recipe, name) for name in recipe.losses}})


def _settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """All settings of a further loss as plain values."""
    own = [each for each in Recipe.model_fields if each in LOSSES]
    if name in own:
        raise _RefusedError(
            ("losses", name), f"losses.{name}: has a section of its own; write {name}: at the top level"
        )
    if name in NOT_FOR_LOSSES:
        raise _RefusedError(("losses", name), f"losses: '{name}' is what metrics.jsonl calls something else")
    if name not in LOSSES:
        known = [each for each in LOSSES if each not in own]
        hint = did_you_mean(name, known) if known else "; none is registered: bring yours with --extend FILE.py"
        raise _RefusedError(("losses", name), f"losses: unknown loss '{name}'{hint}")
    try:
        return loss_settings(recipe, name).model_dump(mode="json")
    except ValidationError as fault:
        keys, reason = first_fault(fault, LOSSES.get(name).Settings)
        reason = f": {reason.removeprefix(_TOP)}" if reason.startswith(_TOP) else f".{reason}"
        raise _RefusedError(("losses", name, *keys), f"losses.{name}{reason}") from None


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one ``a.b.c=value`` in nested dictionaries, the value read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override}: must be key=value, for example optim.lr=1e-4")
    *parents, last = key.split(".")
    if (parents or [last])[0] in files.OF_THE_FILE:
        raise UsageError(f"--set {override}: '{(parents or [last])[0]}' can only be written in a recipe's file")
    place = content
    for part in parents:
        if place.get(part) is None:
            place[part] = {}
        if not isinstance(place[part], dict):
            raise UsageError(f"--set {override}: '{part}' is a value, not a section")
        place = place[part]
    place[last] = parse_yaml(text, where=f"--set {override}")


def _origin(own: Source, parent: Source | None, keys: tuple[str, ...], overrides: Sequence[str]) -> str:
    """Who wrote the value at ``keys``: the last override of it, or a line of the file or of what it extends."""
    dotted = ".".join(keys)
    for override in reversed(overrides):
        if f"{dotted}.".startswith(f"{override.partition('=')[0]}."):
            return f"--set {override}"
    source = parent if parent is not None and parent.says(keys) and not own.says(keys) else own
    return f"{source.path}:{source.line_of(keys)}"


def _named(own: Source, parent: Source | None) -> str | None:
    """What the recipe that is extended is called from the current folder."""
    if parent is None:
        return None
    is_shipped = own.extends in files.shipped()
    return own.extends if is_shipped else os.fspath(parent.path)
