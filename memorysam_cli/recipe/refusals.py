"""Pydantic's errors as messages for users: place, value, what is allowed, and the probable key."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import TYPE_CHECKING, get_args

import yaml
from pydantic import BaseModel

from memorysam_cli.errors import closest, did_you_mean
from memorysam_cli.text import requirement

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


NEAR = 0.6
"""Similarity of a key in the same section from which it is suggested before an equal key of another section."""


def first_fault(error: ValidationError, schema: type[BaseModel]) -> tuple[tuple[str, ...], str]:
    """The first of several errors.

    Args:
        error: from validating ``schema``; all values are plain (from JSON or YAML).
        schema: for the known keys.

    Returns:
        The path to the value, and one line on it; further errors are counted.
    """
    # Unknown keys first: a mistyped key makes another one missing, and is the cause.
    first, *others = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    keys = tuple(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    return keys, _explain(first, keys, dict(_sections(schema))) + more


def line_of(text: str, keys: Sequence[str]) -> int:
    """The line, from 1, of a value in a YAML document, or of its section if it is not there."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), 1
    for key in keys:
        if isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(name, value) for name, value in pairs if name.value == key]
        if not found:
            break
        name, node = found[0]
        line = name.start_mark.line + 1
    return line


def _explain(error: ErrorDetails, keys: tuple[str, ...], sections: dict[str, list[str]]) -> str:
    """An error as a message: what is wrong and what is allowed."""
    path = ".".join(keys)
    if error["type"] == "missing":
        return f"{path}: is required and missing; write it out"
    if error["type"] == "extra_forbidden":
        section, key = ".".join(keys[:-1]), keys[-1]
        elsewhere = [f"{name}.{key}" for name, known in sections.items() if name and key in known]
        here = closest(key, sections[section], likeness=NEAR) if elsewhere else []
        either = "', or '".join([*here, *elsewhere[:1]])
        hint = f"; did you mean '{either}'?" if elsewhere else did_you_mean(key, sections[section])
        return f"{section or 'top level'}: unknown key '{key}'{hint}"
    if error["type"] == "model_type":
        return f"{path}: must be a section with the keys {', '.join(sections[path])}, not {kind_of(error['input'])}"
    message = requirement(error["msg"])
    got = "" if isinstance(error["input"], dict) else f" (got {json.dumps(error['input'], ensure_ascii=False)})"
    return f"{path}: {message}{got}" if path else message


def kind_of(value: object) -> str:
    """The word for the type of a YAML value."""
    words = {type(None): "nothing", bool: "true or false", str: "text", list: "a list", dict: "a section"}
    return words.get(type(value), "a number")


def keys_called(name: str, schema: type[BaseModel]) -> list[str]:
    """The dotted keys of a schema that end with this word."""
    return [f"{section}.{name}".lstrip(".") for section, keys in _sections(schema) if name in keys]


def _sections(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """The keys of every section of a schema by its dotted name; that of the top level is ``""``."""
    yield prefix, list(schema.model_fields)
    for name, information in schema.model_fields.items():
        annotation = information.annotation
        for kind in get_args(annotation) if isinstance(annotation, UnionType) else (annotation,):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _sections(kind, f"{prefix}.{name}".lstrip("."))
