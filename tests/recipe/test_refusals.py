"""What pydantic refuses: which fault is told first, and on which line."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from memorysam_cli.recipe import Recipe, Train
from memorysam_cli.recipe.refusals import first_fault, line_of

TEXT = """\
# a comment
a:
  b: {c: 1,
      d: 2}
  list:
    - x
    - y
"""


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ((), 1),
        (("a",), 2),
        (("a", "b", "c"), 3),
        (("a", "b", "d"), 4),
        (("a", "list", "1"), 7),
        (("a", "list", "9"), 5),
        (("a", "missing", "deeper"), 2),
        (("nothing",), 1),
    ],
)
def test_a_line_is_the_value_s_or_that_of_what_should_hold_it(keys: tuple[str, ...], line: int) -> None:
    assert line_of(TEXT, keys) == line


def test_an_empty_document_has_one_line() -> None:
    assert line_of("", ("a",)) == 1


class Optional(BaseModel):
    model_config = ConfigDict(extra="forbid")
    train: Train | None = None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"train": 3}, "train: must be a section with the keys epochs, batch, accumulate"),
        ({"train": {"epochs": 1, "bacth": 2}}, "train: unknown key 'bacth'; did you mean 'batch'?"),
        ({"batch": 2}, "top level: unknown key 'batch'; did you mean 'train.batch'?"),
    ],
)
def test_a_section_that_may_be_left_out_is_known_by_its_keys(content: dict[str, object], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Optional.model_validate(content)
    assert first_fault(caught.value, Optional)[1].startswith(text)


def test_an_unknown_key_is_told_before_what_it_leaves_missing() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"modle": {}})
    keys, text = first_fault(caught.value, Recipe)
    assert keys == ("modle",)
    assert text.startswith("top level: unknown key 'modle'; did you mean 'model'? (known: name, about, data,")
    assert text.endswith(" more)")


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ("data", "selection", "data: unknown key 'selection'; did you mean 'selection_split', or 'ohem.selection'?"),
        ("optim", "weight", "optim: unknown key 'weight'; did you mean 'weight_decay', or 'spmm.weight'?"),
        ("train", "momentum", "train: unknown key 'momentum'; did you mean 'spmm.momentum'?"),
        ("train", "Bacth", "train: unknown key 'Bacth'; did you mean 'batch'?"),
    ],
)
def test_what_is_near_in_the_same_section_comes_before_the_very_word_of_another(
    section: str, key: str, text: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({section: {key: 1}})
    faults = [error for error in caught.value.errors() if error["type"] == "extra_forbidden"]
    assert len(faults) == 1
    assert first_fault(caught.value, Recipe)[1].startswith(text)
