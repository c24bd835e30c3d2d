"""What a plan is for: modalities, classes and the largest frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.data.loader import scored_scenes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import Crop
from memorysam_cli.engine.measure import workload
from memorysam_cli.engine.measure.workload import Frames
from memorysam_cli.errors import DataError, UsageError

from ..stand_ins import PLANS, write_data

ANY = ["data.dataset=auto", "data.modalities=[all]"]


def test_frames_are_those_that_scoring_shows(tmp_path: Path) -> None:
    """Against the loader itself: 97×131 pixels at 64 are wider than 64×64."""
    manifest = write_data(tmp_path)
    recipe = recipes.load("deliver", ["data.modalities=[img,depth]", "data.image_size=64", "data.dataset=tiny"])
    target = workload.target_of(recipe, manifest)
    assert target.frames == Frames(((64, 96),), (97, 131)) and target.classes == 4
    assert target.source == "the largest of 5 of 5 scenes of split val"
    shapes = [
        (scored.whole.frames[0].shape[-2:], scored.whole.label.shape[-2:])
        for scored in scored_scenes(
            manifest, scenes=manifest.of_split("val"), modalities=manifest.info.modalities, size=64, workers=0
        )
        if scored.whole.label is not None
    ]
    assert max(shapes) == (torch.Size(target.frames.inputs[0]), torch.Size(target.frames.native))


def test_a_crop_is_seen_beside_the_whole_frame(tmp_path: Path) -> None:
    manifest = write_data(tmp_path, [PLANS[0]], crop=Crop(left=20, of_height=97, square=True))
    recipe = recipes.load("deliver", ["data.modalities=[img,depth]", "data.image_size=64"])
    assert workload.target_of(recipe, manifest).frames.inputs == ((64, 64), (64, 96))


def test_what_is_prepared_answers_auto_and_all(rendered: Manifest) -> None:
    target = workload.find_target(recipes.load("deliver", [*ANY, "data.image_size=64"]), rendered.root)
    assert target.recipe.data.dataset == "synthetic"
    assert target.recipe.data.modalities == tuple(modality.name for modality in rendered.info.modalities)
    assert target.classes == len(rendered.info.classes) and target.frames.native == (72, 72)
    assert workload.find_target(recipes.load("deliver", ANY), rendered.root, classes=3).classes == 3


def test_a_published_data_set_is_known_before_it_is_prepared(tmp_path: Path) -> None:
    target = workload.find_target(recipes.load("deliver"), tmp_path)
    assert target.classes == 25 and target.frames == Frames(((1024, 1024),), (1042, 1042))
    mcubes = workload.find_target(recipes.load("mcubes"), tmp_path)
    assert mcubes.frames.native == (1024, 1224) and len(mcubes.frames.inputs) == 2


def test_sensors_of_ones_own_are_counted_where_nothing_is_prepared(tmp_path: Path) -> None:
    target = workload.find_target(recipes.load("default"), tmp_path, classes=7, modalities=3)
    assert target.recipe.data.modalities == ("sensor-1", "sensor-2", "sensor-3") and target.classes == 7
    assert target.frames == Frames(((512, 512),), (512, 512))


REFUSALS = {
    "neither": ({}, "--modalities N"),
    "no classes": ({"modalities": 3}, "--classes N"),
    "no modalities": ({"classes": 3}, "--modalities N"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_number_that_nobody_knows_is_asked_for(refusal: str, tmp_path: Path) -> None:
    given, said = REFUSALS[refusal]
    with pytest.raises(UsageError, match=said):
        workload.find_target(recipes.load("default"), tmp_path, **given)


def test_a_number_that_the_recipe_knows_is_refused(rendered: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--modalities 2: the recipe's data set defines them"):
        workload.find_target(recipes.load("deliver"), tmp_path, modalities=2)
    with pytest.raises(UsageError, match=r"--modalities 2: the recipe's data set defines them"):
        workload.find_target(recipes.load("deliver", ANY), rendered.root, modalities=2)


def test_a_modality_or_a_split_that_is_not_there_is_refused(rendered: Manifest) -> None:
    for change, said in (
        ("data.modalities=[img,sonar]", "no modality 'sonar'"),
        ("data.selection_split=x", "split 'x'"),
    ):
        with pytest.raises(DataError, match=said):
            workload.find_target(recipes.load("deliver", ["data.dataset=synthetic", change]), rendered.root)
