"""What two recipes differ in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from memorysam_cli.recipe.dumping import Dumper
from memorysam_cli.recipe.files import EXTENDS, OF_ITS_OWN
from memorysam_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Difference:
    """A key whose values differ: plain ones, as JSON knows them."""

    key: str
    a: Any
    b: Any


def differences(a: Recipe, b: Recipe) -> list[Difference]:
    """The dotted keys of two recipes whose values differ, in the schema's order; not of ``name`` and ``about``."""
    other = dict(leaves(b.model_dump(mode="json")))
    return [
        Difference(key, value, other[key])
        for key, value in leaves(a.model_dump(mode="json"))
        if key not in OF_ITS_OWN and value != other[key]
    ]


def changes_yaml(parent: str, before: Recipe, after: Recipe) -> str:
    """A recipe as YAML that extends another one and says what differs from it, no more.

    Args:
        parent: what ``extends`` shall say.
        before: that other recipe.
        after: the one to be written.
    """
    content: dict[str, Any] = {EXTENDS: parent}
    if after.name != before.name:
        content["name"] = after.name
    if after.about not in {before.about, ""}:
        content["about"] = after.about
    for difference in differences(before, after):
        *sections, last = difference.key.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = difference.b
    return to_yaml(content)


def to_yaml(content: dict[str, Any], *, width: int = 120) -> str:
    """Plain values as YAML in their order, as a person would write them; a recipe reads the same values from it."""
    return yaml.dump(_written(content), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=width)


def shown(value: Any) -> str:
    """A value as a recipe would say it, on one line."""
    return to_yaml({"x": value}, width=10**6).removeprefix("x:").strip()


def _written(value: Any) -> Any:
    """``10`` for 10.0: a recipe's numbers may be written either way."""
    if isinstance(value, dict):
        return {key: _written(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_written(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested sections by dotted key."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
