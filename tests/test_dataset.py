"""What ``dataset.json`` may not say, as people edit it by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from memorysam_cli.dataset import Crop, DatasetInfo, LabelRule, Modality

DEPTH: dict[str, Any] = {"name": "depth", "kind": "depth"}
INFO: dict[str, Any] = {
    "name": "own", "title": "Own", "classes": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]], "modalities": [DEPTH],
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0}, "scale 0 would make all values one"),
        ({"scale": 1e-320}, "would make all values one"),
        ({"offset": 1e308}, "less than or equal to"),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "std 0: must be above 0"),
        ({"mean": (0, 0, 0), "std": (1, -1, 1)}, "std -1: must be above 0"),
        ({"mean": (0, 0, 0)}, "mean and std: give both or neither"),
        ({"channels": (-1, 0, 0)}, "greater than or equal to 0"),
    ],
)
def test_a_modality_whose_frames_would_not_be_finite_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Modality.model_validate({**DEPTH, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mapping": [(3, 0), (3, 1)]}, "value 3 has two meanings"),
        ({"mapping": [(0, 0), (255, 1)]}, "value 255 has two meanings"),
        ({"shift": 10**12}, "less than 65536"),
    ],
)
def test_a_label_rule_with_two_meanings_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LabelRule.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modalities": []}, "there must be at least one"),
        ({"modalities": [DEPTH, DEPTH]}, "modalities: 'depth' is listed twice"),
        ({"classes": ["a", "a"]}, "classes: 'a' is listed twice"),
        ({"palette": [[0, 0, 0], [256, 0, 0]]}, "less than or equal to 255"),
        ({"classes": [str(n) for n in range(256)], "palette": [[0, 0, 0]] * 256}, "256 classes; from 1 to 255"),
        ({"crop": {"of_height": 0}}, "greater than 0"),
    ],
)
def test_an_impossible_data_set_is_refused(fields: dict[str, Any], message: str) -> None:
    DatasetInfo.model_validate(INFO)
    with pytest.raises(ValidationError, match=message):
        DatasetInfo.model_validate({**INFO, **fields})


def test_extreme_but_possible_values_are_kept() -> None:
    made = Modality.model_validate({**DEPTH, "scale": -1e-30, "offset": 1e30, "mean": (0, 0, 0), "std": (1e-30, 1, 1)})
    assert (made.scale, made.offset) == (-1e-30, 1e30)
    assert Crop(left=0).left == 0
    assert LabelRule(mapping=((1, 0), (2, 0))).mapping == ((1, 0), (2, 0)), "two values may be one class"


@pytest.mark.parametrize(
    ("card", "recipe", "wanted"),
    [(None, None, False), (True, None, True), (None, True, True), (True, False, False), (False, True, True)],
)
def test_antialiasing_is_the_card_s_unless_the_recipe_says_otherwise(
    card: bool | None, recipe: bool | None, wanted: bool
) -> None:
    depth = DEPTH if card is None else {**DEPTH, "antialias": card}  # cards of earlier versions have no such key
    info = DatasetInfo.model_validate({**INFO, "modalities": [{**DEPTH, "name": "img"}, depth]})
    (modality,) = info.chosen(["depth"], antialias=recipe)
    assert (modality.name, modality.antialias) == ("depth", wanted)


@pytest.mark.parametrize(("name", "is_first"), [("deliver", True), ("field", False)])
def test_labels_of_a_deliver_of_an_earlier_version_are_read_as_they_were(name: str, is_first: bool) -> None:
    """Without the key; what says it is taken at its word."""
    label = {"shift": -1, "ignore": [0, 255]}
    assert DatasetInfo.model_validate({**INFO, "name": name, "label": label}).label.first_channel is is_first
    said = DatasetInfo.model_validate({**INFO, "name": name, "label": {**label, "first_channel": False}})
    assert not said.label.first_channel


def test_british_keys_of_an_earlier_version_are_read_and_written_anew() -> None:
    info = DatasetInfo.model_validate({**INFO, "label": {"colours": True}, "unlabelled": ["test"]})
    assert info.label.colors and info.unlabeled == ("test",)
    written = info.model_dump(mode="json")
    assert written["label"]["colors"] and written["unlabeled"] == ["test"]
    assert DatasetInfo.model_validate(written) == info
