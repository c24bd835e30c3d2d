"""Every key is described, the pages say what the schema says, and editors accept and refuse what the program does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from memorysam_cli import recipe
from memorysam_cli.errors import UsageError
from memorysam_cli.recipe import comparing
from memorysam_cli.recipe.comparing import json_schema, keys, leaves, meanings
from memorysam_cli.recipe.reading import RecipeFile
from memorysam_cli.recipe.schema import Data, Optim
from memorysam_cli.storage.documents import parse_yaml, read_yaml

ROOT = Path(__file__).parent.parent.parent
SCHEMA = json_schema()


def pages() -> Any:
    specification = importlib.util.spec_from_file_location("recipe_pages", ROOT / "scripts" / "recipe_pages.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_of_all_keys_is_the_schema_s() -> None:
    page = (ROOT / "docs" / "recipe-keys.md").read_text(encoding="utf-8")
    assert page == pages().keys_page(), "run python scripts/recipe_pages.py"
    assert not [key.path for key in keys() if not key.is_section and f"| `{key.path}` |" not in page]


def test_the_schema_for_editors_is_the_one_in_docs() -> None:
    assert (ROOT / "docs" / "recipe.schema.json").read_text() == pages().schema_text(), "run scripts/recipe_pages.py"


def test_every_key_of_a_recipe_is_described() -> None:
    described = {key.path: key for key in keys()}
    values = {path for path, _ in leaves(recipe.load("deliver").model_dump(mode="json"))}
    assert values <= set(described)
    assert not [key.path for key in keys() if len(key.meaning) < 10 or not key.meaning.endswith((".", "`."))]
    assert len(described) == len(keys())


def test_a_default_that_is_told_is_the_one_that_holds() -> None:
    least = {"data": {"dataset": "x", "modalities": ["a"], "image_size": 32}, "model": {"backbone": "nano"}}
    least |= {"spmm": {"variant": "off", "weight": 0}, "optim": {"lr": 1}, "train": {"epochs": 1}, "name": "x"}
    values = dict(leaves(recipe.parse(least, where="").model_dump(mode="json")))
    told = {key.path: key.default for key in keys() if key.path in values and key.path != "name"}
    assert {path for path, default in told.items() if default is None} == {path for path, _ in leaves(least)} - {"name"}
    for path, default in told.items():
        assert default is None or parse_yaml(default, where="") == values[path], path


def test_kinds_and_bounds_are_told_in_words() -> None:
    told = {key.path: (key.kind, key.allowed, key.default) for key in keys()}
    assert told["data.image_size"] == ("whole number", "> 0, a multiple of 32", None)
    assert told["train.precision"] == ("word", "`fp32`, `tf32`, `bf16`, `fp16`", "fp32")
    assert told["model.lora.targets"] == ("list of words", "`q`, `k`, `v`, `proj`, at least one", "[q, v]")
    assert told["augment.blur_sigma"] == ("[number, number] or null", "", "null")
    assert told["optim.betas"] == ("[number, number]", "≥ 0, < 1", "[0.9, 0.999]")
    assert told["model.lora"] == ("section", "", None)


def test_a_meaning_is_the_text_below_the_key_and_nothing_else() -> None:
    assert meanings(Data)["selection_split"] == "The split for validation, which selects the best checkpoint."
    assert meanings(RecipeFile)["optim"] == "The optimizer AdamW and its learning rate schedule per update.", (
        "papers of ours are not users'"
    )
    assert set(meanings(Optim)) == set(Optim.model_fields)


def accepts(content: object) -> bool:
    return not list(jsonschema.Draft7Validator(SCHEMA).iter_errors(content))


@pytest.mark.parametrize("extends", [None, "", 3, ["demo"]])
def test_what_a_file_extends_is_text(extends: object, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {json.dumps(extends)}\n")
    assert not accepts(read_yaml(path)) and accepts({"extends": "demo"})
    with pytest.raises(UsageError, match=r"extends: must be a shipped recipe's name or a \.yaml file"):
        recipe.load(path)


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", recipe.shipped())
def test_editors_accept_every_shipped_recipe_and_its_copy(name: str, tmp_path: Path) -> None:
    assert accepts(read_yaml(recipe.shipped()[name]))
    assert accepts(recipe.load(name).model_dump(mode="json"))
    path = tmp_path / "mine.yaml"
    path.write_text(comparing.make_copy(name, path, overrides=["optim.lr=1e-3"]).text)
    assert accepts(read_yaml(path))


WRONG = """\
gpus: 99
train: {epochs: 1, batch: 0}
train: {epochs: 1.5}
train: {epochs: "1"}
train: {epochs: true}
optim: {lr: abc}
optim: {lr: 0}
optim: {lr: null}
optim: {lr: 1, betas: [0.9]}
optim: {lr: 1, betas: [0.9, 1.0]}
optim: 4
model: {backbone: tiny}
model: {backbone: nano, lora: {rnak: 4}}
model: {backbone: nano, lora: 4}
model: {backbone: nano, lora: {targets: [q, x]}}
data: {dataset: ../x, modalities: [img], image_size: 64}
data: {dataset: x, modalities: img, image_size: 64}
data: {dataset: x, modalities: [], image_size: 64}
data: {dataset: x, modalities: [img], image_size: 65}
spmm: {variant: both, weight: 1}
name: a b
reported: {miou: 5}
reported: {miou: 500, split: val, source: x}
measured: {memory_gb: 1, device: tpu, source: x}""".splitlines()


@pytest.mark.parametrize("line", WRONG)
def test_editors_refuse_what_the_program_refuses(line: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = recipe.load("demo").to_yaml()
    section = line.partition(":")[0]
    content = read_yaml_text(text) | read_yaml_text(line)
    assert accepts(read_yaml_text(text)) and not accepts(content), section
    path.write_text(f"extends: demo\n{line}\n")
    with pytest.raises(UsageError):
        recipe.load(path)
    assert not accepts(read_yaml(path))


@pytest.mark.parametrize("key", ["data", "model", "spmm", "optim", "train", "spmm.variant", "optim.lr", "train.epochs"])
def test_only_a_file_that_extends_may_leave_out_what_is_required(key: str, tmp_path: Path) -> None:
    content: dict[str, Any] = recipe.load("demo").model_dump(mode="json")
    *parents, last = key.split(".")
    place = content
    for parent in parents:
        place = place[parent]
    del place[last]
    assert not accepts(content) and accepts(content | {"extends": "demo"})
    place[last] = None
    assert not accepts(content), "null is not a section, and no value"
    assert accepts(content | {"extends": "demo"}) == (not parents)


def read_yaml_text(text: str) -> dict[str, Any]:
    found: dict[str, Any] = parse_yaml(text, where="text")
    return found
