"""What two recipes differ in, and a file that says no more than that."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorysam_cli import recipe
from memorysam_cli.recipe import comparing
from memorysam_cli.storage.documents import parse_yaml

CHANGES = [
    "optim.lr=2e-5", "train.max_steps=7", "model.lora.targets=[q, k]", "augment.blur_sigma=[0, 2]", "spmm.variant=off",
    "data.modalities=[img]", "model.object_gate=false", "model.init='a: #b'",
]  # fmt: skip


def test_differences_are_the_keys_that_differ_in_the_schema_s_order() -> None:
    found = comparing.differences(recipe.load("deliver"), recipe.load("deliver-rgbd"))
    assert [(each.key, each.a, each.b) for each in found] == [
        ("data.modalities", ["img", "depth", "event", "lidar"], ["img", "depth"]),
        ("optim.lr", 6e-4, 4.5e-4),
    ]


@given(changes=st.lists(st.sampled_from(CHANGES), unique=True))
def test_as_many_differences_as_were_made_and_none_to_itself(changes: list[str]) -> None:
    before, after = recipe.load("demo"), recipe.load("demo", changes)
    found = comparing.differences(before, after)
    assert {each.key for each in found} == {change.partition("=")[0] for change in changes}
    assert [(each.key, each.b, each.a) for each in found] == [
        (each.key, each.a, each.b) for each in comparing.differences(after, before)
    ]


def test_a_loss_that_only_one_recipe_has_is_a_difference_either_way(tmp_path: Path) -> None:
    plain = recipe.load("deliver")
    more = plain.model_copy(update={"losses": {"dice": {"weight": 0.5}}})
    assert [(each.key, each.a, each.b) for each in comparing.differences(plain, more)] == [
        ("losses.dice.weight", None, 0.5)
    ]
    assert [(each.key, each.a, each.b) for each in comparing.differences(more, plain)] == [
        ("losses.dice.weight", 0.5, None)
    ]
    parent, child = tmp_path / "more.yaml", tmp_path / "deliver.yaml"
    parent.write_text(more.to_yaml())
    child.write_text(comparing.changes_yaml("more.yaml", more, plain))
    assert recipe.load(child, is_stored=True).losses == {}
    child.write_text(comparing.changes_yaml("deliver", plain, more))
    assert recipe.load(child, is_stored=True).losses == more.losses


def test_names_and_descriptions_are_no_difference() -> None:
    assert comparing.differences(recipe.load("demo"), recipe.load("demo", ["name=x", "about=y"])) == []


@pytest.mark.parametrize("changes", [[], ["name=mine"], ["about=hallo"], CHANGES, CHANGES[:1]])
def test_the_short_file_reads_back_as_the_recipe_it_was_made_of(changes: list[str], tmp_path: Path) -> None:
    before, after = recipe.load("demo"), recipe.load("demo", changes)
    path = tmp_path / "demo.yaml"
    path.write_text(comparing.changes_yaml("demo", before, after), encoding="utf-8")
    again = recipe.load(path)
    assert comparing.differences(again, after) == [] and again.name == after.name
    # extends, and a line for each change and each section that has one
    assert len(path.read_text().splitlines()) <= 1 + 2 * len(changes) + 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (65536.0, "65536"), (0.5, "0.5"), (None, "null"), (True, "true"), ("", '""'), ("off", "'off'"),
        ("1e4", '"1e4"'), (["img", "depth"], "[img, depth]"), ([0.0, 1.0], "[0, 1]"), (1e-8, "1.0e-08"),
    ],
)  # fmt: skip
def test_a_value_is_shown_as_a_recipe_says_it(value: object, text: str) -> None:
    assert comparing.yaml_value(value) == text
    assert parse_yaml(text, where="") == value
