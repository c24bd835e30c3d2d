"""RELIABILITY §1, row 22: no recipe runs with a value that its author did not write.

What was written is read by a second reader, which knows one form alone: a section, and ``key: value`` lines below it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memorysam_cli import recipe as recipes
from memorysam_cli.errors import UsageError
from tests.faults.conftest import Figures
from tests.faults.naive import recipes as naive
from tests.faults.scale import amount

RECIPE = """\
name: mine
data:
  dataset: synthetic
  modalities: [img, depth]
  image_size: 64
  workers: 3
augment:
  flip: 0.25
model:
  backbone: nano
  object_gate: false
spmm:
  variant: paper
  weight: 0.5
optim:
  lr: 1e-4
  weight_decay: 0.02
  warmup_epochs: 3
  power: 1.5
train:
  epochs: 12
  batch: 6
  max_steps: 40
  seed: 17
  precision: fp32
  saver: off
"""
LINE = re.compile(r"( *)([^\s:#]+) *:(?: +(.*?))? *")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
CHARACTERS = "0159.-_+eaoxn: #\"'[]{}&*!|>%@`,~?\t\\"
FORMS = (
    "1e-4", "1E-3", ".5", "5.", "+3", "010", "0x10", "0o17", "1_000", "1:30", "1,5", "yes", "no", "on", "Off", "~", "",
    "null", "NULL", "true", "True", '"3"', "'3'", "3.0", "1e400", "-1", "nan", ".inf", "0", "00", "3 # of them", "3#",
    "[3]", "{a: 3}", "2026-11-23", "12e03", "- 3", "&a 3", "*a", "!!int 3", "| 3", "<<", "=", "3 4", "1e", "١", "1 0",
)  # fmt: skip
"""Ways to write what may or may not be a number."""
WHOLE, PARTS = ("1", "2", "7 # of them", "+12", "32"), ("0.5", ".25", "1e-3", "2E-2", "5e-01 # a half", "0.125")
"""Ways to write what is one."""


def written(text: str) -> dict[str, Any] | None:
    """Values by dotted key as a person reads them; none where the text is not of the one form."""
    found: dict[str, Any] = {}
    section = ""
    for raw in text.splitlines():
        line = re.sub(r"(^|(?<=\s))#.*", "", raw)
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None:
            return None
        indentation, key, value = match[1], match[2], match[3] or ""
        if not indentation:
            section = "" if value else f"{key}."
        name = f"{section}{key}" if indentation else key
        if indentation or value:
            if name in found:
                return None
            found[name] = meant(value)
    return found


def meant(text: str) -> Any:
    """One value."""
    if text.startswith("[") and text.endswith("]"):
        return [meant(part.strip()) for part in text[1:-1].split(",")]
    if NUMBER.fullmatch(text):
        return float(text)
    words = {"": None, "~": None, "null": None, "NULL": None, "true": True, "True": True, "false": False}
    return words.get(text, text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text)


def leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def other_form(lines: list[str], rng: random.Random) -> None:
    at = rng.choice([index for index, line in enumerate(lines) if line.startswith(" ")])
    lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(FORMS)}"


def other_value(lines: list[str], rng: random.Random) -> None:
    at = rng.choice([index for index, line in enumerate(lines) if NUMBER.fullmatch(line.rpartition(" ")[2])] or [0])
    key, _, value = lines[at].partition(": ")
    lines[at] = f"{key}: {rng.choice(WHOLE if value.isdigit() else PARTS)}"


def other_character(lines: list[str], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    place = rng.randrange(len(lines[at]) + 1)
    lines[at] = lines[at][:place] + rng.choice(CHARACTERS) + lines[at][place + rng.randrange(2) :]


def mistyped_key(lines: list[str], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    key, colon, value = lines[at].partition(":")
    place = rng.randrange(len(key) - len(key.lstrip()), len(key))
    lines[at] = (
        key[:place] + rng.choice(["", key[place] * 2, "x", key[place].upper()]) + key[place + 1 :] + colon + value
    )


def twice(lines: list[str], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))


def elsewhere(lines: list[str], rng: random.Random) -> None:
    line = lines.pop(rng.randrange(len(lines)))
    lines.insert(rng.randrange(len(lines) + 1), line)


def other_indentation(lines: list[str], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    lines[at] = rng.choice(["", " ", "   ", "    ", "\t", "  \t"]) + lines[at].strip()


def gone(lines: list[str], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


MUTATIONS: tuple[Callable[[list[str], random.Random], None], ...] = (
    *(other_value,) * 3, *(other_form,) * 2, *(other_character,) * 2, mistyped_key, twice, elsewhere,
    other_indentation, gone,
)  # fmt: skip


def mutated(rng: random.Random, text: str = RECIPE) -> str:
    lines = text.splitlines()
    for _ in range(rng.choice([1, 1, 1, 2])):
        rng.choice(MUTATIONS)(lines, rng)
    return "\n".join(lines) + "\n"


def not_as_written(text: str, values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key → the value that would run, and the one that was written (or the default, where nothing was)."""
    said = written(text)
    if said is None:
        return {"": (values, "nothing that a person would read so")}
    found = {}
    for key, value in values.items():
        wanted = said.pop(key, defaults.get(key))
        wanted = defaults.get(key) if wanted is None else wanted
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            found[key] = (value, wanted)
    return found | {key: (None, value) for key, value in said.items()}


def defaults_of() -> dict[str, Any]:
    """What a recipe holds where its author wrote nothing: of keys that need not be written."""
    least = {
        "name": "mine", "data": {"dataset": "synthetic", "modalities": ["img"], "image_size": 64},
        "model": {"backbone": "nano"}, "spmm": {"variant": "paper", "weight": 0.5}, "optim": {"lr": 1e-4},
        "train": {"epochs": 12},
    }  # fmt: skip
    content = leaves(recipes.parse(least, where="least").model_dump(mode="json"))
    return {key: value for key, value in content.items() if key not in leaves(least) or key == "name"}


def test_the_second_reader_reads_a_good_recipe_as_we_do(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    values = leaves(recipes.load(tmp_path / "mine.yaml").model_dump(mode="json"))
    assert not not_as_written(RECIPE, values, defaults_of())
    assert values["optim.lr"] == 1e-4 and values["train.saver"] == "off"


def test_no_mutated_recipe_runs_with_a_value_that_nobody_wrote(
    tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    path, defaults = tmp_path / "mine.yaml", defaults_of()
    refused = run = 0
    wrong: dict[str, object] = {}
    for _ in range(amount(400, soak=20_000)):
        text = mutated(rng)
        path.write_text(text)
        try:
            found = recipes.load(path)
        except UsageError as fault:
            assert str(fault).startswith(f"{path}:") and "\n" not in str(fault)
            refused += 1
            continue
        run += 1
        values = leaves(found.model_dump(mode="json"))
        if difference := not_as_written(text, values, defaults):
            wrong[text] = difference
    figures("O", recipes=refused + run, refused=refused, values_nobody_wrote=len(wrong))
    assert not wrong
    assert refused > 100 and run > 40


EXTENDING = """\
extends: base.yaml
data:
  image_size: 96
  workers: 1
augment:
model:
  object_gate: true
optim:
  lr: 3e-4
  power: 1.25
train:
  # of trials
  epochs: 7
  seed: 18
"""


def test_no_mutated_file_runs_with_a_value_that_neither_it_nor_what_it_extends_has(
    tmp_path: Path, rng: random.Random
) -> None:
    (tmp_path / "base.yaml").write_text(RECIPE)
    path = tmp_path / "mine.yaml"
    inherited = leaves(recipes.load(tmp_path / "base.yaml").model_dump(mode="json"))
    inherited |= {"name": "mine", "about": ""}
    refused = run = 0
    for _ in range(amount(300, soak=10_000)):
        text = mutated(rng, EXTENDING)
        path.write_text(text)
        try:
            found = recipes.load(path)
        except UsageError as fault:
            assert str(fault).startswith(f"{path}:") and "\n" not in str(fault)
            refused += 1
            continue
        run += 1
        values = leaves(found.model_dump(mode="json")) | {"extends": "base.yaml"}
        differences = not_as_written(text, values, inherited)
        # A section that is written as nothing, such as "augment: ~", changes nothing.
        assert not [key for key, pair in differences.items() if pair != (None, None)], text
    assert refused > 60 and run > 40


def test_a_naive_reader_runs_with_values_that_nobody_wrote(rng: random.Random) -> None:
    """The same mutations, and a program that takes what YAML gives it, and a default for the rest."""
    defaults = defaults_of() | (written(RECIPE) or {})
    wrong = 0
    for _ in range(400):
        text = mutated(rng)
        try:
            values = naive.load(text, defaults)
        except Exception:  # whatever PyYAML raises; a traceback is not a value
            continue
        said = written(text)
        wrong += said is None or any(key not in values or values[key] != value for key, value in said.items())
    assert wrong > 100
