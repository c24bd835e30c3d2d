"""Every key of a recipe's file in words, and as a JSON Schema for editors: both read from the schema itself."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_args

from memorysam_cli.recipe.comparing import shown
from memorysam_cli.recipe.files import EXTENDS, RecipeFile, section_of
from memorysam_cli.recipe.schema import Section

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The one that editors know best."""
_REFERENCE = "#/definitions/"
_KINDS = {"number": "number", "integer": "whole number", "boolean": "true or false", "string": "text", "null": "null"}
_BOUNDS = {"exclusiveMinimum": "> ", "minimum": "≥ ", "exclusiveMaximum": "< ", "maximum": "≤ "}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        path: dotted, such as ``optim.lr``.
        kind: its type in words; ``section`` has keys of its own.
        allowed: which values of that type; empty where all are.
        default: what holds where it is not written, as YAML; None where it must be written, and for sections.
        meaning: a sentence or two, code in backticks.
    """

    path: str
    kind: str
    allowed: str
    default: str | None
    meaning: str

    @property
    def is_section(self) -> bool:
        """Whether it has keys of its own."""
        return self.kind == "section"


@cache
def keys() -> tuple[Key, ...]:
    """All keys of a recipe's file: a section, then its keys; what belongs to the file alone comes last."""
    schema = json_schema()
    return tuple(_keys(RecipeFile, schema["definitions"] | {RecipeFile.__name__: schema}, prefix=""))


def meanings(schema: type[Section]) -> dict[str, str]:
    """What each key of a section means, by key: its docstring, or that of the section that it is."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if issubclass(base, Section):
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
            found |= dict(_described(body.body if isinstance(body, ast.ClassDef) else []))
    for key in schema.model_fields:
        section = _any_section(schema, key)
        if section is not None:
            found.setdefault(key, _plain(inspect.getdoc(section) or ""))
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 07) of a recipe's file; looser than the check where keys depend on each other.

    A file that extends another one may leave anything out, or a section empty; any other must write what has no
    default.
    """
    schema = RecipeFile.model_json_schema(ref_template=f"{_REFERENCE}{{model}}")
    definitions = {RecipeFile.__name__: schema, **schema.pop("$defs")}
    for each in _sections(RecipeFile):
        described, definition = meanings(each), definitions[each.__name__]
        definition["description"] = _plain(inspect.getdoc(each) or "")
        properties = definition["properties"]
        definition["properties"] = {
            key: _simple(properties[key]) | {"description": described[key]} for key in described
        }
        if each.__name__ not in _WHOLE:
            definition.pop("required", None)
    del definitions[RecipeFile.__name__]
    return {
        "$schema": DRAFT,
        "title": "A recipe of memorysam",
        **{name: schema[name] for name in ("description", "type", "properties", "additionalProperties")},
        "if": {"required": [EXTENDS]},
        "else": _needed(RecipeFile),
        "definitions": dict(sorted(definitions.items())),
    }


_WHOLE = {"Reported", "Measured"}
"""Sections that are not inherited: each is whole, or not there."""


def _described(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """The fields of a class that a text follows."""
    for before, after in pairwise(body):
        match before, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, _plain(text)


def _plain(text: str) -> str:
    """A docstring on one line, for users: without what only our own papers know."""
    return " ".join(re.sub(r" \(METHOD §\d\)", "", text).split()).replace("``", "`")


def _any_section(schema: type[Section], key: str) -> type[Section] | None:
    """The section at a key, also one that may be left out."""
    kinds = (section_of(schema, key), *get_args(schema.model_fields[key].annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _sections(schema: type[Section]) -> Iterator[type[Section]]:
    """A section and all below it."""
    yield schema
    for key in schema.model_fields:
        below = _any_section(schema, key)
        if below is not None:
            yield from _sections(below)


def _simple(described: dict[str, Any]) -> dict[str, Any]:
    """A key's schema as every editor understands it: no titles, and lists of one kind."""
    kinds = [_simple(each) for each in described.get("anyOf", ())]
    found = {key: value for key, value in described.items() if key not in {"title", "anyOf", "prefixItems"}}
    if "$ref" in found:
        return {"anyOf": [{"$ref": found["$ref"]}, {"type": "null"}]}  # empty: nothing changed
    if kinds:
        found["anyOf"] = kinds
    if "prefixItems" in described:
        found["items"] = described["prefixItems"][0]
    return found


def _needed(schema: type[Section]) -> dict[str, Any]:
    """What a file that extends no other one must write."""
    required = [key for key, field in schema.model_fields.items() if field.is_required() and key != "name"]
    below = {key: section_of(schema, key) for key in schema.model_fields}
    sections = {key: {"type": "object", **_needed(section)} for key, section in below.items() if section is not None}
    return ({"required": required} if required else {}) | ({"properties": sections} if sections else {})


def _keys(schema: type[Section], definitions: dict[str, Any], *, prefix: str) -> Iterator[Key]:
    described = meanings(schema)
    for key, field in schema.model_fields.items():
        path, section = f"{prefix}{key}", _any_section(schema, key)
        if section is not None:
            yield Key(path, "section", "", None, described[key])
            yield from _keys(section, definitions, prefix=f"{path}.")
            continue
        place = definitions[schema.__name__]["properties"][key]
        default = None if field.is_required() and key != "name" else _default(place)
        yield Key(path, *_words(place), default, described[key])


def _words(described: dict[str, Any]) -> tuple[str, str]:
    """The type of a key, and which of its values are allowed."""
    if "anyOf" in described:
        kinds = [_words(each) for each in described["anyOf"]]
        return " or ".join(kind for kind, _ in kinds), "; ".join(allowed for _, allowed in kinds if allowed)
    choices = described.get("enum") or ([described["const"]] if "const" in described else [])
    if choices:
        return "word", ", ".join(f"`{choice}`" for choice in choices)
    if "patternProperties" in described:
        return "mapping of names to sections", ""
    if described["type"] == "array":
        kind, allowed = _words(described["items"])
        return _list_words(described, kind), ", ".join(filter(None, [allowed, *_length(described)]))
    bounds = [f"{sign}{described[name]:g}" for name, sign in _BOUNDS.items() if name in described]
    if "multipleOf" in described:
        bounds.append(f"a multiple of {described['multipleOf']}")
    if "minLength" in described:
        bounds.append("not empty")
    return "name" if "pattern" in described else _KINDS[described["type"]], ", ".join(bounds)


def _list_words(described: dict[str, Any], kind: str) -> str:
    return f"[{kind}, {kind}]" if described.get("maxItems") == 2 else f"list of {kind}s"


def _length(described: dict[str, Any]) -> list[str]:
    return ["at least one"] if described.get("minItems") == 1 else []


def _default(described: dict[str, Any]) -> str:
    return shown(described["default"]) if "default" in described else ""
