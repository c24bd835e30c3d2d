"""Scenes with sensors in a combination that the weights were never trained for are counted, and told in one line."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine.infer.inference import tell_untrained, untrained_sets
from memorysam_cli.engine.infer.views import View
from memorysam_cli.model import WeightsCard

from ..stand_ins import CLASSES, MODALITIES, PALETTE

DROP, ZERO = View("drop"), View("zero")
ALL = ("img", "depth", "event", "lidar")


def recipe(*values: str) -> recipes.Recipe:
    """Of the demo trained as published, with these values."""
    return recipes.load("demo", ["model.order=recipe", "losses.prefix=null", *values])


def scenes(**counts: int) -> list[Scene]:
    """So many scenes of each set of sensors, such as ``img_depth=2``."""
    return [
        Scene(f"{names}-{number}", "", None, None, dict.fromkeys(names.split("_"), ("x.png",)), None)
        for names, count in counts.items()
        for number in range(count)
    ]


FULL = "img_depth_event_lidar"
SOME = {FULL: 3, "img_depth": 2, "lidar": 1}


@pytest.mark.parametrize(
    ("values", "dropped", "zeroed"),
    [
        ((), False, False),
        (("robust.subset.weight=1",), True, False),
        (("robust.subset.weight=1", "robust.subset.zeroed=0.5"), True, True),
        (("robust.subset.weight=1", "robust.subset.zeroed=1"), False, True),
        (("robust.subset.zeroed=0.5",), False, False),
    ],
)
def test_what_is_trained_is_what_is_not_told(values: tuple[str, ...], dropped: bool, zeroed: bool) -> None:
    trained = recipe(*values)
    for view, is_trained in ((DROP, dropped), (ZERO, zeroed)):
        found = untrained_sets(trained, scenes(**SOME), view, chosen=ALL)
        assert found == ({} if is_trained else {("img", "depth"): 2, ("lidar",): 1})
        for names in (some for size in range(1, 5) for some in combinations(ALL, size)):
            is_listed = names in trained.trained_subsets(zeroed=view is ZERO)
            assert trained.trains_on(names, zeroed=view is ZERO) == is_listed


def test_sensors_that_are_not_chosen_are_not_shown() -> None:
    assert untrained_sets(recipe(), scenes(**SOME), DROP, chosen=("img", "lidar")) == {
        ("img", "lidar"): 3, ("img",): 2, ("lidar",): 1,
    }  # fmt: skip


def test_the_line_says_how_many_which_and_what_helps() -> None:
    sets = untrained_sets(recipe(), scenes(**SOME), DROP, chosen=ALL)
    assert tell_untrained(recipe(), sets, DROP, of=6) == [
        "3 of 6 scenes have a combination of sensors that these weights were never trained for: img+depth (2), "
        "lidar (1); expect worse results (robust.subset.weight in a recipe trains for missing sensors)"
    ]
    zeroed = recipe("robust.subset.weight=1", "robust.subset.zeroed=1")
    assert "(--missing zero shows them as training did)" in tell_untrained(zeroed, sets, DROP, of=6)[0]
    assert tell_untrained(recipe(), {}, DROP, of=6) == []
    assert untrained_sets(recipe("data.modalities=[img]"), scenes(img=2), DROP, chosen=("img",)) == {}


def test_a_card_of_before_counts_as_trained_for_the_full_set_only() -> None:
    content: dict[str, Any] = {
        "recipe": {
            "name": "old", "data": {"dataset": "tiny", "modalities": ["img", "depth"], "image_size": 32},
            "model": {"backbone": "nano", "base_weights": "random"}, "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4}, "train": {"epochs": 1},
        },
        "dataset": {
            "name": "tiny", "title": "Tiny", "classes": list(CLASSES), "palette": list(PALETTE),
            "modalities": [each.model_dump(mode="json") for each in MODALITIES],
        },
        "base": {"backbone": "nano", "source": "random:1", "sha256": ""}, "tokens": 10, "image_size": 32,
        "versions": {},
    }  # fmt: skip
    card = WeightsCard.model_validate_json(json.dumps(content))
    assert untrained_sets(card.recipe, scenes(img_depth=1, img=1), DROP, chosen=("img", "depth")) == {("img",): 1}
