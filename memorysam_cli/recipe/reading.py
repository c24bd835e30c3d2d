"""The one way to find, read, override and check a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memorysam_cli.errors import UsageError, did_you_mean
from memorysam_cli.recipe.schema import Recipe
from memorysam_cli.storage.documents import parse_yaml, read_yaml
from memorysam_cli.validation import first_fault, kind_of, line_of

PACKAGE = Path(__file__).parent.parent


def recipes_folder() -> Path:
    """Where the shipped recipes lie: inside the wheel, or at the top of a checkout."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def shipped() -> dict[str, Path]:
    """The shipped recipes by name, sorted."""
    return dict(sorted((path.stem, path) for path in recipes_folder().glob("*.yaml")))


def load(name_or_file: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe or a file, apply ``key=value`` overrides, and check all of it.

    Args:
        name_or_file: a shipped recipe's name, or a path that ends in .yaml or .yml.
        overrides: such as ``"optim.lr=1e-4"``; the last one wins; ``null`` clears.

    Raises:
        UsageError: no such recipe, an unknown key, a wrong type or an impossible value.
    """
    text = os.fspath(name_or_file)
    known = shipped()
    path = known.get(text, Path(text))
    if text not in known and (path.suffix not in {".yaml", ".yml"} or not path.is_file()):
        why = "is not a file" if path.suffix in {".yaml", ".yml"} else "is no shipped recipe and no .yaml file"
        raise UsageError(f"recipe {text}: {why}{did_you_mean(text, known)}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a recipe is a mapping of sections, not {kind_of(content)}")
    content.setdefault("name", path.stem)
    for override in overrides:
        _apply(content, override)
    try:
        return _validated(content)
    except ValidationError as fault:
        keys, reason = first_fault(fault, Recipe)
        raise UsageError(f"{_origin(path, keys, overrides)}: {reason}") from None


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
    place = content
    for part in parents:
        if place.get(part) is None:
            place[part] = {}
        if not isinstance(place[part], dict):
            raise UsageError(f"--set {override}: '{part}' is a value, not a section")
        place = place[part]
    place[last] = parse_yaml(text, where=f"--set {override}")


def _origin(path: Path, keys: tuple[str, ...], overrides: Sequence[str]) -> str:
    """Who wrote the value at ``keys``: the last override of it, or a line of the file."""
    dotted = ".".join(keys)
    for override in reversed(overrides):
        if f"{dotted}.".startswith(f"{override.partition('=')[0]}."):
            return f"--set {override}"
    return f"{path}:{line_of(path.read_text(encoding='utf-8-sig'), keys)}"
