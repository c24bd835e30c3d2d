"""A recipe that extends another one: what it inherits, what it does not, and who is blamed for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorysam_cli import recipe
from memorysam_cli.errors import UsageError
from memorysam_cli.recipe import reading


def mine(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        recipe.load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{path}:", "FILE:").replace(f"{path.parent}/", "")


def test_what_is_not_written_is_as_in_the_recipe_that_is_extended(tmp_path: Path) -> None:
    path = mine(tmp_path, "extends: deliver\noptim:\n  lr: 1e-5\nmodel: {lora: {rank: 8}}\n")
    changes = ["optim.lr=1e-5", "model.lora.rank=8", "name=mine", "about=''"]
    assert recipe.load(path) == recipe.load("deliver", changes)


def test_an_empty_section_changes_nothing_where_another_recipe_is_extended(tmp_path: Path) -> None:
    path = mine(tmp_path, "extends: deliver\ntrain:\n  # epochs: 3\nmodel:\n  lora:\nohem:\naugment:\n")
    assert recipe.load(path) == recipe.load("deliver", ["name=mine", "about=''"])


def test_an_empty_section_is_refused_where_none_is_extended(tmp_path: Path) -> None:
    whole = recipe.load("demo").model_dump(mode="json") | {"optim": None}
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in whole.items())
    assert "FILE:10: optim: must be a section with the keys lr" in refusal(mine(tmp_path, text))


def test_a_list_is_replaced_as_a_whole_and_null_clears(tmp_path: Path) -> None:
    path = mine(tmp_path, "extends: mcubes\ndata:\n  modalities: [image]\naugment:\n  blur_sigma: null\n")
    loaded = recipe.load(path)
    assert loaded.data.modalities == ("image",) and loaded.augment.blur_sigma is None


def test_an_override_wins_over_the_file_and_the_file_over_what_it_extends(tmp_path: Path) -> None:
    path = mine(tmp_path, "extends: demo\ntrain: {epochs: 3, batch: 2}\n")
    train = recipe.load(path, ["train.batch=1"]).train
    assert (train.epochs, train.batch, train.validate_every) == (3, 1, 2)


def test_name_about_and_what_was_reported_are_not_inherited(tmp_path: Path) -> None:
    read = recipe.read(mine(tmp_path, "extends: deliver\n"))
    assert (read.recipe.name, read.recipe.about, read.parent) == ("mine", "", "deliver")
    assert read.reported is None and recipe.read("deliver").reported is not None
    assert recipe.read(mine(tmp_path, "extends: demo\n")).measured is None


def test_an_override_makes_another_recipe_of_which_nothing_was_reported() -> None:
    assert recipe.read("deliver", ["train.epochs=1"]).reported is None


def test_a_file_can_be_extended_by_a_path_relative_to_the_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    mine(tmp_path, recipe.load("demo", ["train.epochs=5"]).to_yaml(), "base.yaml")
    path = mine(tmp_path / "below", "extends: ../base.yaml\n")
    monkeypatch.chdir("/")
    read = recipe.read(path)
    assert read.recipe.train.epochs == 5
    assert read.parent is not None and Path(read.parent).samefile(tmp_path / "base.yaml")


def test_what_is_extended_need_not_be_whole_by_itself(tmp_path: Path) -> None:
    mine(tmp_path, recipe.load("demo").to_yaml().replace("  epochs: 8\n", ""), "base.yaml")
    assert recipe.load(mine(tmp_path, "extends: base.yaml\ntrain: {epochs: 2}\n")).train.epochs == 2
    assert "train.epochs: is required and missing" in refusal(mine(tmp_path, "extends: base.yaml\n"))


def test_a_recipe_written_out_is_whole_and_no_longer_extends(tmp_path: Path) -> None:
    resolved = recipe.load(mine(tmp_path, "extends: deliver\ntrain: {epochs: 3}\n"))
    text = resolved.to_yaml()
    assert "extends" not in text and "reported" not in text
    assert recipe.load(mine(tmp_path, text, "again.yaml")) == resolved
    assert recipe.parse(resolved.model_dump(mode="json"), where="card") == resolved


def test_one_level_is_allowed(tmp_path: Path) -> None:
    mine(tmp_path, "extends: deliver\n", "base.yaml")
    message = refusal(mine(tmp_path, "about: x\nextends: base.yaml\n"))
    assert message == (
        "FILE:2: extends base.yaml, which extends deliver itself; one level is allowed: extend deliver, and write what "
        "base.yaml changes into this file"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: mine.yaml\n", "FILE:1: extends itself; name the recipe that it changes"),
        (
            "name: x\nextends: delivr\n",
            "FILE:2: extends: delivr: is neither a shipped recipe nor a .yaml file; did you mean",
        ),
        ("extends: nothing.yaml\n", "FILE:1: extends: nothing.yaml: does not exist"),
        ("extends: 3\n", "FILE:1: extends: must be a shipped recipe's name or a .yaml file (got 3)"),
        ("extends:\n", "FILE:1: extends: must be a shipped recipe's name or a .yaml file (got null)"),
        ("extends: [deliver, demo]\n", "FILE:1: extends: must be a shipped recipe's name or a .yaml file (got ["),
        ("extend: deliver\n", "FILE:1: top level: unknown key 'extend'; did you mean 'extends'?"),
        ("extends: deliver\noptim:\n  lrr: 1\n", "FILE:3: optim: unknown key 'lrr'; did you mean 'lr'?"),
        ("extends: deliver\noptim: 3\n", "FILE:2: optim: must be a section with the keys lr"),
        ("extends: deliver\ndata: {image_size: 65}\n", "FILE:2: data.image_size: must be a multiple of 32 (got 65)"),
        ("extends: deliver\nmodel:\n  base_weights: random\n", "FILE:2: model: base_weights: 'random' is allowed"),
        ("extends: deliver\nreported: 65\n", "FILE:2: reported: must be a section with the keys miou, split"),
        ("extends: deliver\nreported:\n  mioo: 65\n", "FILE:3: reported: unknown key 'mioo'; did you mean 'miou'?"),
        ("extends: deliver\nreported: {miou: 650, split: val, source: x}\n", "FILE:2: reported.miou: must be less"),
        ("extends: deliver\nmeasured: {device: cpu, source: x}\n", "FILE:2: measured.memory_gb: is required"),
        ("- extends\n", "FILE: a recipe is a mapping of sections, not a list"),
        ("extends: deliver\nextends: demo\n", "FILE:2: the key 'extends' is given twice (first on line 1)"),
    ],
)
def test_a_wrong_file_is_refused_by_line_key_and_reason(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(mine(tmp_path, text)).startswith(message)


def test_what_is_wrong_in_the_extended_file_is_blamed_on_it(tmp_path: Path) -> None:
    text = recipe.load("demo").to_yaml().replace("  lr: 0.003", "  lr: 0")
    base = mine(tmp_path, text, "base.yaml")
    line = 1 + text.splitlines().index("  lr: 0")
    path = mine(tmp_path, "extends: base.yaml\noptim:\n  power: 1\n")
    with pytest.raises(UsageError) as caught:
        recipe.load(path)
    assert str(caught.value) == f"{base}:{line}: optim.lr: must be greater than 0 (got 0)"
    mine(tmp_path, "extends: base.yaml\noptim:\n  lr: -1\n")
    assert refusal(path) == "FILE:3: optim.lr: must be greater than 0 (got -1)"
    assert refusal(path, "optim.lr=-2").startswith("--set optim.lr=-2: optim.lr:")


@pytest.mark.parametrize("key", sorted(reading.OF_THE_FILE))
def test_no_override_reaches_what_belongs_to_the_file(key: str, tmp_path: Path) -> None:
    path = mine(tmp_path, "extends: demo\n")
    assert refusal(path, f"{key}=x") == f"--set {key}=x: '{key}' can only be written in a recipe's file"
    assert refusal(path, f"{key}.x=1").endswith(f"'{key}' can only be written in a recipe's file")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A second, plainer account: every value that is not a mapping (or an empty one) by its path."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


@given(parent=MAPPINGS, child=MAPPINGS)
def test_every_value_comes_from_the_child_or_unchanged_from_the_parent(
    parent: dict[str, Any], child: dict[str, Any]
) -> None:
    both = leaves(reading.extend(parent, child))
    ours, theirs = leaves(child), leaves(parent)
    assert all(ours.get(path, theirs.get(path, {})) == value for path, value in both.items())
    assert all(both[path] == value for path, value in ours.items() if value != {})
    assert reading.extend(parent, {}) == parent and reading.extend({}, child) == child
