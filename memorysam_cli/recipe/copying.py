"""A recipe of one's own, ready to be edited: every key with its meaning beside it, and nothing changed yet."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memorysam_cli.errors import UsageError
from memorysam_cli.recipe.comparing import differences, leaves, to_yaml
from memorysam_cli.recipe.describing import Key, keys
from memorysam_cli.recipe.files import EXTENDS, EXTENSIONS, OF_THE_FILE, SUFFIXES, shipped
from memorysam_cli.recipe.reading import load, read
from memorysam_cli.recipe.schema import Recipe, is_word

SCHEMA_FILE = "recipe.schema.json"
"""What ``recipes copy --schema`` writes beside the copy."""
_WIDTH = 100


@dataclass(frozen=True)
class Copy:
    """A copy that is not written yet.

    Attributes:
        text: of the file.
        extends: what it says there.
        changes: how many keys it changes already.
    """

    text: str
    extends: str
    changes: int


def copied(name_or_file: str, out: Path, *, overrides: Sequence[str] = (), has_schema: bool = False) -> Copy:
    """The text of a file that extends a recipe: all keys are there, commented out where they say the same.

    Args:
        name_or_file: the recipe. One that extends another itself: the copy extends that other one, too, and has its
            changes.
        out: where the text will lie; a path in ``extends`` is relative to its folder.
        overrides: changes to begin with, as in ``--set``.
        has_schema: whether :data:`SCHEMA_FILE` lies beside it, for editors.

    Raises:
        UsageError: no such recipe, or ``out`` is no name for one.
    """
    if out.suffix not in SUFFIXES or not is_word(out.stem):
        raise UsageError(
            f"{out}: is no name for a recipe; give letters, digits, '.', '_' and '-', and then .yaml, such as mine.yaml"
        )
    asked = read(name_or_file, overrides)
    parent = asked.parent or (name_or_file if name_or_file in shipped() else os.fspath(asked.path))
    before = load(parent)
    # Resolved: a path through a linked folder has another parent than it seems.
    extends = parent if parent in shipped() else os.path.relpath(Path(parent).resolve(), out.parent.resolve())
    head = {override.partition("=")[0] for override in overrides} & {"name", "about"}
    changed = {each.key for each in differences(before, asked.recipe)} | head
    lines = [*_introduction(out.name, has_schema=has_schema), *_head(extends, out.stem, asked.recipe, changed)]
    values = dict(leaves(asked.recipe.model_dump(mode="json")))
    # Not inherited, and relative to the file that names them.
    values[EXTENSIONS] = [str((asked.path.parent / file).absolute()) for file in asked.recipe.extensions]
    changed |= {EXTENSIONS} if values[EXTENSIONS] else set()
    for key in keys():
        if key.path.partition(".")[0] not in OF_THE_FILE | {"name", "about"}:
            lines += _entry(key, values.get(key.path), is_changed=key.path in changed)
    return Copy("\n".join(lines) + "\n", extends, len(changed - {EXTENSIONS}))


def _introduction(name: str, *, has_schema: bool) -> Iterator[str]:
    if has_schema:
        yield f"# yaml-language-server: $schema={SCHEMA_FILE}"
    yield from _comment(
        f"{name}: a recipe that extends another one. What is commented out is as it is there (a later memorysam's, if "
        "that one changes); take the # away from what you change. Then:"
    )
    yield f"#   memorysam recipes check {name}"
    yield f"#   memorysam recipes show {name} --changes"
    yield f"#   memorysam train --recipe {name}"


def _head(extends: str, stem: str, recipe: Recipe, changed: set[str]) -> Iterator[str]:
    yield from to_yaml({EXTENDS: extends}).splitlines()
    described = {key.path: key for key in keys()}
    for key, value in {"name": stem, "about": ""}.items():
        is_changed = key in changed
        yield from _entry(described[key], getattr(recipe, key) if is_changed else value, is_changed=is_changed)


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
    for line in to_yaml({last: value}).splitlines():
        yield f"{margin}{'' if is_changed else '#'}{line}"


def _allowed(key: Key) -> str:
    return key.allowed.replace("`", "")


def _comment(text: str, margin: str = "") -> list[str]:
    lines = textwrap.wrap(text.replace("`", ""), _WIDTH - len(margin), break_long_words=False, break_on_hyphens=False)
    return [f"{margin}# {line}" for line in lines]
