"""The one way to find, read, extend, override and check a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memorysam_cli.errors import UsageError
from memorysam_cli.recipe import files
from memorysam_cli.recipe.files import Measured, RecipeFile, Reported, Source
from memorysam_cli.recipe.schema import UNKNOWN_NAME, Recipe
from memorysam_cli.storage.documents import parse_yaml
from memorysam_cli.validation import first_fault


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


def load(
    name_or_file: str | os.PathLike[str], overrides: Sequence[str] = (), *, with_extensions: bool = False
) -> Recipe:
    """Read a shipped recipe or a file, apply ``key=value`` overrides, and check all of it.

    Args:
        name_or_file: a shipped recipe's name, or a path that ends in .yaml or .yml.
        overrides: such as ``"optim.lr=1e-4"``; the last one wins; ``null`` clears.
        with_extensions: the user gave this very file on the command line, so that the code it names may run.

    Raises:
        UsageError: no such recipe, an unknown key, a wrong type or an impossible value.
    """
    return read(name_or_file, overrides, with_extensions=with_extensions).recipe


def read(
    name_or_file: str | os.PathLike[str], overrides: Sequence[str] = (), *, with_extensions: bool = False
) -> Document:
    """As :func:`load`, with what the file says beside the recipe.

    Raises:
        UsageError: likewise; or what it extends is missing, wrong, or extends another one.
    """
    own = files.read(files.find(name_or_file))
    if with_extensions:
        files.load_extensions(own)
    parent = files.read_parent(own)
    content = own.content if parent is None else files.extended(parent.content, own.content)
    content.setdefault("name", own.path.stem)
    for override in overrides:
        _apply(content, override)
    try:
        recipe = _validated(content)
    except ValidationError as fault:
        keys, reason = first_fault(fault, RecipeFile)
        if not with_extensions and any(each["type"] == UNKNOWN_NAME for each in fault.errors()):
            reason += _not_loaded(own)
        raise UsageError(f"{_origin(own, parent, keys, overrides)}: {reason}") from None
    claims = files.Claims() if overrides else own.claims
    return Document(recipe, own.path, _named(own, parent), claims.reported, claims.measured)


def parse(content: dict[str, Any], *, where: str) -> Recipe:
    """Check a recipe's content; ``where`` begins the message of the ``UsageError`` that a fault raises."""
    try:
        return _validated(content)
    except ValidationError as fault:
        raise UsageError(f"{where}: {first_fault(fault, Recipe)[1]}") from None


def _validated(content: dict[str, Any]) -> Recipe:
    """The recipe of plain values; ``"1"`` and ``true`` are no numbers, ``1.0`` is no count."""
    # As JSON: then pydantic's strict mode takes a list for a tuple and an integer for a float, and no more.
    return Recipe.model_validate_json(json.dumps(content), strict=True)


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one ``a.b.c=value`` in nested dictionaries, the value read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override}: must be key=value, for example optim.lr=1e-4")
    *parents, last = key.split(".")
    if (parents or [last])[0] in {*files.OF_THE_FILE, files.EXTENSIONS}:
        raise UsageError(f"--set {override}: '{(parents or [last])[0]}' can only be written in a recipe's file")
    place = content
    for part in parents:
        if place.get(part) is None:
            place[part] = {}
        if not isinstance(place[part], dict):
            raise UsageError(f"--set {override}: '{part}' is a value, not a section")
        place = place[part]
    place[last] = parse_yaml(text, where=f"--set {override}")


def _not_loaded(own: Source) -> str:
    """What a stored recipe says of the code that it was made with, which only the user's own word loads."""
    listed = own.content.get(files.EXTENSIONS)
    named = [f"--extend {file}" for file in listed if isinstance(file, str)] if isinstance(listed, list) else []
    return f"; it was made with {' '.join(named)}" if named else ""


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
