"""Comparing recipes, the meaning of every key, and a copy to edit.

The meanings come from the schema's docstrings. They are shown as text, as a JSON Schema for editors, and beside each
key of a copy.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml

from memorysam_cli.dataset import is_word
from memorysam_cli.errors import UsageError
from memorysam_cli.recipe.reading import (
    EXTENDS,
    EXTENSIONS,
    OF_ITS_OWN,
    OF_THE_FILE,
    SUFFIXES,
    RecipeFile,
    load,
    read,
    section_of,
    shipped,
)
from memorysam_cli.recipe.schema import Dumper, Recipe, Section
from memorysam_cli.text import command, docstring

DRAFT = "http://json-schema.org/draft-07/schema#"
"""The version with the best support in editors."""
_REFERENCE = "#/definitions/"
_KINDS = {"number": "number", "integer": "whole number", "boolean": "true or false", "string": "text", "null": "null"}
_BOUNDS = {"exclusiveMinimum": "> ", "minimum": "≥ ", "exclusiveMaximum": "< ", "maximum": "≤ "}
SCHEMA_FILE = "recipe.schema.json"
"""File that ``recipes copy --schema`` writes beside the copy."""
_WIDTH = 100


@dataclass(frozen=True)
class Difference:
    """A key with two different values, as plain JSON values."""

    key: str
    a: Any
    b: Any


def differences(a: Recipe, b: Recipe) -> list[Difference]:
    """The dotted keys of two recipes whose values differ, in the schema's order, without ``name`` and ``about``."""
    first, second = (dict(leaves(each.model_dump(mode="json"))) for each in (a, b))
    keys = sorted({**first, **second}, key=_place)  # also keys of losses that only one of them has
    return [
        Difference(key, first.get(key), second.get(key))
        for key in keys
        if first.get(key) != second.get(key) and key not in OF_ITS_OWN
    ]


def _place(key: str) -> int:
    """Place of a key's section in the schema; keys of one section keep their order."""
    return list(Recipe.model_fields).index(key.partition(".")[0])


def changes_yaml(parent: str, before: Recipe, after: Recipe) -> str:
    """A recipe as YAML that extends another one and has only the differences.

    Args:
        parent: the value of ``extends``.
        before: the other recipe.
        after: the recipe to write.
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
    for name in before.losses.keys() - after.losses.keys():
        content["losses"][name] = None
    return to_yaml(content)


def to_yaml(content: dict[str, Any], *, width: int = 120) -> str:
    """Plain values as YAML in their order, in a readable form; a recipe reads the same values from it."""
    return yaml.dump(_written(content), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=width)


def yaml_value(value: Any) -> str:
    """A value in a recipe's notation, on one line."""
    line = yaml.dump(
        [_written(value)], Dumper=Dumper, allow_unicode=True, width=10**6, default_flow_style=True, sort_keys=False
    )
    return line.strip()[1:-1]


def _written(value: Any) -> Any:
    """``10`` for 10.0, because a recipe's numbers may have either form."""
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


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        path: dotted, such as ``optim.lr``.
        kind: its type in words; a ``section`` has keys of its own.
        allowed: the allowed values of that type; empty if all are.
        default: the default as YAML; None for required keys, and for sections.
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
    """All keys of a recipe file: each section, then its keys; keys that are only in the file come last."""
    schema = json_schema()
    return tuple(_keys(RecipeFile, schema["definitions"] | {RecipeFile.__name__: schema}, prefix=""))


def meanings(schema: type[Section]) -> dict[str, str]:
    """The meaning of each key of a section: its docstring, or that of its own section."""
    found = {key: _plain(field.description) for key, field in schema.model_fields.items() if field.description}
    for key in schema.model_fields:
        section = _any_section(schema, key)
        if section is not None:
            found.setdefault(key, _plain(docstring(section)))
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 07) of a recipe file; it is less strict than the check if keys depend on each other.

    A file that extends another one may leave anything out, or a section empty. Any other file must have all required
    keys.
    """
    schema = RecipeFile.model_json_schema(ref_template=f"{_REFERENCE}{{model}}")
    definitions = {RecipeFile.__name__: schema, **schema.pop("$defs")}
    for each in _sections(RecipeFile):
        described, definition = meanings(each), definitions[each.__name__]
        definition["description"] = _plain(docstring(each))
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
"""Sections that are not inherited: each is complete, or absent."""


def _plain(text: str) -> str:
    """A docstring on one line, for users: without references to internal documents."""
    return " ".join(re.sub(r" \(METHOD §\d\)", "", text).split()).replace("``", "`")


def _any_section(schema: type[Section], key: str) -> type[Section] | None:
    """The section of a key, also of one that may be left out."""
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
    """A key's schema in a form that every editor supports: no titles, and lists of one kind."""
    kinds = [_simple(each) for each in described.get("anyOf", ())]
    found = {
        key: value for key, value in described.items() if key not in {"title", "description", "anyOf", "prefixItems"}
    }
    if "$ref" in found:
        return {"anyOf": [{"$ref": found["$ref"]}, {"type": "null"}]}  # empty: nothing changed
    if kinds:
        found["anyOf"] = kinds
    if "prefixItems" in described:
        found["items"] = described["prefixItems"][0]
    return found


def _needed(schema: type[Section]) -> dict[str, Any]:
    """The required keys of a file that extends no other one."""
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
    """The type of a key, and its allowed values."""
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
    return yaml_value(described["default"]) if "default" in described else ""


@dataclass(frozen=True)
class Copy:
    """A copy that is not written yet.

    Attributes:
        text: of the file.
        extends: its value of ``extends``.
        changes: number of keys that it changes already.
    """

    text: str
    extends: str
    changes: int


def make_copy(name_or_file: str, out: Path, *, overrides: Sequence[str] = (), has_schema: bool = False) -> Copy:
    """The text of a file that extends a recipe, with all keys; keys with the same value are commented out.

    Args:
        name_or_file: the recipe. If it extends another one, the copy extends that one, too, and has its changes.
        out: the path of the text; a path in ``extends`` is relative to its folder.
        overrides: changes to start with, as in ``--set``.
        has_schema: whether :data:`SCHEMA_FILE` is beside it, for editors.

    Raises:
        UsageError: unknown recipe, or ``out`` is not a valid name for one.
    """
    if out.suffix not in SUFFIXES or not is_word(out.stem):
        raise UsageError(
            f"{out}: is not a name for a recipe; give letters, digits, '.', '_' and '-', then .yaml, such as mine.yaml"
        )
    original = read(name_or_file, overrides)
    parent = original.parent or (name_or_file if name_or_file in shipped() else os.fspath(original.path))
    before = load(parent)
    # Resolved, because a path through a linked folder has another parent.
    extends = parent if parent in shipped() else os.path.relpath(Path(parent).resolve(), out.parent.resolve())
    head = {override.partition("=")[0] for override in overrides} & {"name", "about"}
    changed = {each.key for each in differences(before, original.recipe)} | head
    lines = [*_introduction(out.name, has_schema=has_schema), *_head(extends, out.stem, original.recipe, changed)]
    values = dict(leaves(original.recipe.model_dump(mode="json")))
    # Not inherited, and relative to the file that names them.
    values[EXTENSIONS] = [str((original.path.parent / file).absolute()) for file in original.recipe.extensions]
    changed |= {EXTENSIONS} if values[EXTENSIONS] else set()
    losses = original.recipe.losses
    values["losses"] = {**dict.fromkeys(before.losses), **losses}  # null removes an inherited value
    changed |= {"losses"} if losses != before.losses else set()
    for key in keys():
        if key.path.partition(".")[0] not in OF_THE_FILE | {"name", "about"}:
            lines += _entry(key, values.get(key.path), is_changed=key.path in changed)
    return Copy("\n".join(lines) + "\n", extends, len(changed - {EXTENSIONS}))


def _introduction(name: str, *, has_schema: bool) -> Iterator[str]:
    if has_schema:
        yield f"# yaml-language-server: $schema={SCHEMA_FILE}"
    yield from _comment(
        f"{name}: a recipe that extends another one. Keys in comments keep its values (also if a "
        "later memorysam changes them); remove the # from what you change. Then:"
    )
    for words in (("recipes", "check", name), ("recipes", "show", name, "--changes"), ("train", "--recipe", name)):
        yield f"#   {command(*words)}"


def _head(extends: str, stem: str, recipe: Recipe, changed: set[str]) -> Iterator[str]:
    yield from to_yaml({EXTENDS: extends}).splitlines()
    described = {key.path: key for key in keys()}
    for key, value, unchanged in (("name", recipe.name, stem), ("about", recipe.about, "")):
        is_changed = key in changed
        yield from _entry(described[key], value if is_changed else unchanged, is_changed=is_changed)


def _entry(key: Key, value: Any, *, is_changed: bool) -> Iterator[str]:
    """The lines of a key: its meaning, and its value."""
    *sections, last = key.path.split(".")
    margin = "  " * len(sections)
    if key.is_section:
        yield ""
        yield from _comment(key.meaning, margin)
        yield f"{margin}{last}:"
        return
    yield from _comment(f"{key.meaning}{f' ({_allowed(key)})' if _allowed(key) else ''}", margin)
    if is_changed:
        yield from (f"{margin}{line}" for line in to_yaml({last: value}).splitlines())
    else:  # on one line, which is easy to uncomment
        yield f"{margin}#{last}: {yaml_value(value)}"


def _allowed(key: Key) -> str:
    return key.allowed.replace("`", "")


def _comment(text: str, margin: str = "") -> list[str]:
    lines = textwrap.wrap(text.replace("`", ""), _WIDTH - len(margin), break_long_words=False, break_on_hyphens=False)
    return [f"{margin}# {line}" for line in lines]
