"""Find, read, extend, override and check a recipe.

Beside the recipe itself, a recipe file can state which recipe it extends, and what is known of its results.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from memorysam_cli.dataset import Name
from memorysam_cli.errors import DataError, UsageError, did_you_mean
from memorysam_cli.recipe.refusals import first_fault, kind_of, line_of
from memorysam_cli.recipe.schema import (
    SUBSET,
    TEACHER,
    UNKNOWN_NAME,
    Focal,
    LossSettings,
    Recipe,
    Section,
    without_retired,
)
from memorysam_cli.registry import HINT, LOSSES, add_files
from memorysam_cli.storage.documents import parse_yaml, read_yaml
from memorysam_cli.text import is_text, shown

PACKAGE = Path(__file__).parent.parent
SUFFIXES = {".yaml", ".yml"}
EXTENDS = "extends"


class Reported(Section):
    """The published result of exactly this recipe. A recipe that extends it does not inherit this section."""

    miou: float = Field(ge=0, le=100)
    """Mean IoU over all classes, in %."""
    split: Name
    """The evaluated split."""
    epoch: int | None = Field(default=None, gt=0)
    """The epoch of the selected weights."""
    protocol: Literal["resized", "native"] = "resized"
    """Evaluated at the network's size (``resized``) or at the label's own size (``native``)."""
    source: str = Field(min_length=1)
    """The publication."""


class Measured(Section):
    """The memory that a training run with exactly this recipe needed. Not inherited either."""

    memory_gb: float = Field(gt=0)
    """Peak memory of training and validation, in 10⁹ bytes."""
    device: Literal["cpu", "cuda", "mps"]
    """The device. On a CPU the memory is that of the process with its programs, otherwise that of the device."""
    source: str = Field(min_length=1)
    """The command that measures it."""


class Claims(Section):
    """The keys of a recipe file that have no effect on a run."""

    reported: Reported | None = None
    measured: Measured | None = None


def _text_or_absent(described: dict[str, Any]) -> None:
    """The JSON Schema of a text that may be left out, but not be null."""
    described.clear()
    described.update(type="string", minLength=1)


class RecipeFile(Recipe):
    """All keys of a recipe file."""

    extends: str | None = Field(default=None, json_schema_extra=_text_or_absent)
    """The recipe that this one changes: the name of a shipped recipe, or a .yaml file relative to this one. Keys that
    are not written here keep their value, also in an empty section. There is one level: the extended recipe may not
    extend another one."""
    reported: Reported | None = None
    measured: Measured | None = None


OF_THE_FILE = frozenset({EXTENDS, *Claims.model_fields})
"""Keys of a recipe file that are not part of the recipe."""
EXTENSIONS = "extensions"
OF_ITS_OWN = frozenset({"name", "about", EXTENSIONS})
"""Keys that an extending recipe does not inherit, because they identify the recipe or name code to run."""


@dataclass(frozen=True)
class Source:
    """The content of a recipe file, before it is merged with the recipe that it extends.

    Attributes:
        path: the file.
        content: the keys of the recipe, without empty sections if it extends another recipe.
        extends: the extended recipe, as written; None if there is none.
        line: line number of ``extends``, from 1.
        claims: what is known of its results.
    """

    path: Path
    content: dict[str, Any]
    extends: str | None
    line: int
    claims: Claims

    def says(self, keys: Sequence[str]) -> bool:
        """Whether the value at ``keys``, or the list that it is in, is written in this file."""
        place: Any = self.content
        for key in keys:
            if not isinstance(place, dict):
                return isinstance(place, list)
            if key not in place:
                return False
            place = place[key]
        return True

    def line_of(self, keys: Sequence[str]) -> int:
        """The line, from 1, of a value, or of the section that would contain it."""
        return line_of(self.path.read_text(encoding="utf-8-sig"), keys)


def recipes_folder() -> Path:
    """The folder of the shipped recipes: inside the wheel, or at the top of a checkout."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parent / "recipes"


def shipped() -> dict[str, Path]:
    """The shipped recipes by name, sorted."""
    return dict(sorted((path.stem, path) for path in recipes_folder().glob("*.yaml")))


def find(name_or_file: str | os.PathLike[str], *, beside: Path | None = None, where: str = "") -> Path:
    """The file of a recipe.

    Args:
        name_or_file: a shipped recipe's name, or a path that ends in .yaml or .yml.
        beside: the folder that a path is relative to; None: the current one.
        where: start of the error message.

    Raises:
        UsageError: it does not exist.
    """
    text = os.fspath(name_or_file)
    known = shipped()
    if text in known:
        return known[text]
    path = Path(text) if beside is None else beside / text
    is_yaml = path.suffix in SUFFIXES
    if is_yaml and path.is_file():
        return path
    is_there = path.exists()
    why = (
        "is neither a shipped recipe nor a .yaml file"
        if not is_yaml
        else "is not a file"
        if is_there
        else "does not exist"
    )
    raise UsageError(f"{where or 'recipe '}{text}: {why}{did_you_mean(text, known)}")


def read_source(path: Path) -> Source:
    """Read one file, without the recipe that it extends.

    Raises:
        UsageError: it cannot be read, is not a mapping, or has a wrong value outside the recipe's own keys.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a recipe is a mapping of sections, not {kind_of(content)}")
    beside = {key: content.pop(key) for key in OF_THE_FILE & set(content)}
    text = path.read_text(encoding="utf-8-sig")
    line = line_of(text, [EXTENDS]) if EXTENDS in beside else 0
    extends = beside.pop(EXTENDS, None)
    if line and (not isinstance(extends, str) or not extends):
        raise UsageError(
            f"{path}:{line}: extends: must be a shipped recipe's name or a .yaml file "
            f"(got {json.dumps(extends, ensure_ascii=False)})"
        )
    try:
        claims = Claims.model_validate_json(json.dumps(beside), strict=True)
    except ValidationError as error:
        keys, reason = first_fault(error, Claims)
        raise UsageError(f"{path}:{line_of(text, keys)}: {reason}") from None
    return Source(path, _drop_empty(content, Recipe) if line else content, extends, line, claims)


def load_extensions(source: Source) -> None:
    """Register the Python files of a recipe file for loading, and write their absolute paths into its content.

    Only for a file that the user gave on the command line; a shipped recipe has none.

    Raises:
        UsageError: a file does not exist.
    """
    listed = source.content.get(EXTENSIONS)
    if source.path in shipped().values() or not isinstance(listed, list) or not all(isinstance(f, str) for f in listed):
        return  # the schema refuses anything but a list of names
    paths = [(source.path.parent / file).absolute() for file in listed]
    add_files(paths, where=f"{source.path}:{source.line_of([EXTENSIONS])}: extensions:")
    source.content[EXTENSIONS] = [str(path) for path in paths]


def read_parent(source: Source) -> Source | None:
    """The file that another one extends, if it does.

    Raises:
        UsageError: it does not exist, or extends a third one.
    """
    if source.extends is None:
        return None
    where = f"{source.path}:{source.line}: extends"
    path = find(source.extends, beside=source.path.parent, where=f"{where}: ")
    if path.samefile(source.path):
        raise UsageError(f"{where} itself; name the recipe that it changes")
    parent = read_source(path)
    if parent.extends is not None:
        raise UsageError(
            f"{where} {source.extends}, which extends {parent.extends} itself; one level is allowed: extend "
            f"{parent.extends}, and write what {source.extends} changes into this file"
        )
    return parent


def extend(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """The content of a recipe with another one's changes: sections are merged key by key, other values replaced."""
    both = {key: value for key, value in parent.items() if key not in OF_ITS_OWN}
    return _merge(both, child)


def _merge(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    both = dict(parent)
    for key, value in child.items():
        before = both.get(key)
        both[key] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return both


def _drop_empty(content: dict[str, Any], schema: type[Section]) -> dict[str, Any]:
    """The content without empty sections, in which all keys are commented out."""
    found = {}
    for key, value in content.items():
        section = section_of(schema, key)
        if section is None:
            found[key] = value
        elif value is not None:
            found[key] = _drop_empty(value, section) if isinstance(value, dict) else value
    return found


def section_of(schema: type[Section], key: str) -> type[Section] | None:
    """The schema of the section at a key, if it is one."""
    kind = schema.model_fields[key].annotation if key in schema.model_fields else None
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


NOT_FOR_LOSSES = frozenset({
    "adamw", "ema", "epoch", "gradient_norm", "loss", "lr", "macc", "mf1", "miou", "miou_native", "peak_memory_gb",
    "scenes_per_second", "seconds_data", "step", "updates",
})  # fmt: skip
"""Names that values in metrics.jsonl and tensors in checkpoints already have."""
_TOP = "top level: "
"""Start of a message about a key outside all sections."""


@dataclass(frozen=True)
class Document:
    """A recipe, and the further content of its file.

    Attributes:
        recipe: with every value, including those of the recipe that it extends and the overrides.
        path: its file.
        parent: the recipe that it extends: a shipped recipe's name, or a path; None if it extends none.
        reported: its published result; None with overrides, which make it another recipe.
        measured: the memory that it needed; None with overrides.
    """

    recipe: Recipe
    path: Path
    parent: str | None
    reported: Reported | None
    measured: Measured | None


@dataclass(frozen=True)
class _RefusedError(Exception):
    """A refused value of a recipe.

    Attributes:
        keys: the path to it.
        reason: one line.
        is_unknown_name: whether it is a name that is not registered.
    """

    keys: tuple[str, ...]
    reason: str
    is_unknown_name: bool = False


def load(
    name_or_file: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    with_extensions: bool = False,
    is_stored: bool = False,
) -> Recipe:
    """Read a shipped recipe or a file, apply ``key=value`` overrides, and check all of it.

    Args:
        name_or_file: a shipped recipe's name, or a path that ends in .yaml or .yml.
        overrides: such as ``"optim.lr=1e-4"``; the last one wins; ``null`` clears.
        with_extensions: the user gave this file itself on the command line, so the code that it names may run.
        is_stored: it is the stored recipe of a run and only read, so losses that are not registered are kept unchecked.

    Raises:
        UsageError: unknown recipe, an unknown key, a wrong type or an impossible value.
        DataError: the same for a stored recipe.
    """
    try:
        return read(name_or_file, overrides, with_extensions=with_extensions, is_stored=is_stored).recipe
    except UsageError as error:
        if is_stored:
            raise DataError(f"{error}; restore the file, or use the version that wrote it") from None
        raise


def read(
    name_or_file: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    with_extensions: bool = False,
    is_stored: bool = False,
) -> Document:
    """As :func:`load`, with the further content of the file.

    Raises:
        UsageError: as :func:`load`; or the extended recipe is missing, wrong, or extends another one.
    """
    own = read_source(find(name_or_file))
    if with_extensions:
        load_extensions(own)
    parent = read_parent(own)
    content = own.content if parent is None else extend(parent.content, own.content)
    content.setdefault("name", own.path.stem)
    for override in overrides:
        _apply(content, override)
    try:
        recipe = _validate(content, RecipeFile)
        recipe = recipe if is_stored else _complete_losses(recipe)
    except _RefusedError as refused:
        reason = refused.reason
        if refused.is_unknown_name and not with_extensions:
            reason += _not_loaded(own)
        raise UsageError(f"{_origin(own, parent, refused.keys, overrides)}: {reason}") from None
    claims = Claims() if overrides else own.claims
    return Document(recipe, own.path, _parent_name(own, parent), claims.reported, claims.measured)


def parse(content: dict[str, Any], *, where: str) -> Recipe:
    """Check a recipe's content; the message of a ``UsageError`` begins with ``where``."""
    try:
        return _complete_losses(_validate(content, Recipe))
    except _RefusedError as refused:
        raise UsageError(f"{where}: {refused.reason}") from None


LIGHT: dict[str, type[LossSettings]] = {
    "focal": Focal, **dict.fromkeys(("dice", "lovasz", "single", "prefix"), LossSettings),
}  # fmt: skip
"""Settings of the further losses that come with memorysam, so that a recipe is read without the losses, which import
torch."""


def settings_of(name: str) -> type[LossSettings]:
    """The class of a further loss's keys.

    Raises:
        KeyError: it is not registered.
    """
    if name in LIGHT:
        return LIGHT[name]
    kind: type[LossSettings] = LOSSES.get(name).Settings
    return kind


def loss_settings(recipe: Recipe, name: str) -> LossSettings:
    """The settings of one of ``losses``, as an instance of the loss's own class.

    Raises:
        KeyError: it is not registered.
        ValidationError: the settings do not fit this loss.
    """
    kind = settings_of(name)
    return kind.model_validate_json(json.dumps(recipe.losses[name]), strict=True)


def _validate(content: dict[str, Any], schema: type[Recipe]) -> Recipe:
    """The recipe of plain values; ``"1"`` and ``true`` are not numbers, ``1.0`` is not a count.

    ``schema`` has the keys that a message may name.
    """
    _refuse_bytes(content, ())
    try:
        # As JSON: strict mode of pydantic then accepts a list for a tuple and an integer for a float, and nothing else.
        return Recipe.model_validate_json(json.dumps(without_retired(content)), strict=True)
    except ValidationError as error:
        is_unknown_name = any(each["type"] == UNKNOWN_NAME for each in error.errors())
        raise _RefusedError(*first_fault(error, schema), is_unknown_name) from None


def _refuse_bytes(value: Any, keys: tuple[str, ...]) -> None:
    """Refuse text that stands for bytes which are not UTF-8, because a recipe could not be stored with it."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_bytes(key, keys)
            _refuse_bytes(each, (*keys, str(key)))
    elif isinstance(value, str) and not is_text(value):
        where = f"{'.'.join(keys)}: " if keys else ""
        raise _RefusedError(keys, f"{where}{shown(value)!r} holds bytes that are not UTF-8 text; give another name")


def _complete_losses(recipe: Recipe) -> Recipe:
    """The recipe with every setting of its further losses written out."""
    return recipe.model_copy(update={"losses": {name: _settings(recipe, name) for name in recipe.losses}})


def _settings(recipe: Recipe, name: str) -> dict[str, Any]:
    """All settings of a further loss as plain values."""
    own = [each for each in (*Recipe.model_fields, TEACHER) if each in LOSSES]
    if name in own:
        raise _RefusedError(("losses", name), f"losses.{name}: has its own section; write {name}: at the top level")
    if name in (SUBSET, TEACHER):
        raise _RefusedError(("losses", name), f"losses.{name}: has its own section; write robust.{name}")
    if name in NOT_FOR_LOSSES:
        raise _RefusedError(("losses", name), f"losses: '{name}' is what metrics.jsonl calls something else")
    if name not in LOSSES:
        known = [each for each in LOSSES if each not in own]
        reason = f"losses: unknown loss '{name}'{did_you_mean(name, known)}; {HINT}"
        raise _RefusedError(("losses", name), reason, is_unknown_name=True)
    try:
        return loss_settings(recipe, name).model_dump(mode="json")
    except ValidationError as error:
        keys, reason = first_fault(error, settings_of(name))
        reason = f": {reason.removeprefix(_TOP)}" if reason.startswith(_TOP) else f".{reason}"
        raise _RefusedError(("losses", name, *keys), f"losses.{name}{reason}") from None


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one ``a.b.c=value`` in nested dictionaries; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override}: must be key=value, for example optim.lr=1e-4")
    *parents, last = key.split(".")
    if (parents or [last])[0] in {*OF_THE_FILE, EXTENSIONS}:
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
    """A hint on the code that a stored recipe was made with, which is loaded only if the user names it."""
    listed = own.content.get(EXTENSIONS)
    named = [f"--extend {file}" for file in listed if isinstance(file, str)] if isinstance(listed, list) else []
    return f"; it was made with {' '.join(named)}" if named else ""


def _origin(own: Source, parent: Source | None, keys: tuple[str, ...], overrides: Sequence[str]) -> str:
    """The source of the value at ``keys``: the last override, or a line of the file or of the extended one."""
    dotted = ".".join(keys)
    for override in reversed(overrides):
        if f"{dotted}.".startswith(f"{override.partition('=')[0]}."):
            return f"--set {override}"
    source = parent if parent is not None and parent.says(keys) and not own.says(keys) else own
    return f"{source.path}:{source.line_of(keys)}"


def _parent_name(own: Source, parent: Source | None) -> str | None:
    """The extended recipe's name or its path from the current folder."""
    if parent is None:
        return None
    is_shipped = own.extends in shipped()
    return own.extends if is_shipped else os.fspath(parent.path)
