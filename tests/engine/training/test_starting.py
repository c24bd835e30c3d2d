"""What ``memorysam train`` starts with when little is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.training import starting
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.recipe import Recipe

from ..stand_ins import write_data


@pytest.fixture
def default() -> Recipe:
    return recipes.load("default")


def rename(root: Path, manifest: Manifest, **changes: object) -> None:
    """Prepare the same scenes once more, as another data set."""
    manifests.write(root, manifest.info.model_copy(update=changes), manifest.scenes)


def test_the_only_data_set_and_all_its_modalities_are_taken(tmp_path: Path, default: Recipe) -> None:
    write_data(tmp_path)
    found = starting.resolve(default, tmp_path)
    assert (found.data.dataset, found.data.modalities) == ("tiny", ("img", "depth"))
    assert starting.resolve(found, tmp_path) == found
    assert recipes.parse(found.model_dump(mode="json"), where="test") == found


def test_modalities_that_are_named_stay(tmp_path: Path) -> None:
    write_data(tmp_path)
    found = starting.resolve(recipes.load("default", ["data.modalities=[depth]"]), tmp_path)
    assert (found.data.dataset, found.data.modalities) == ("tiny", ("depth",))


def test_several_data_sets_are_named(tmp_path: Path, default: Recipe) -> None:
    rename(tmp_path, write_data(tmp_path), name="other")
    with pytest.raises(UsageError, match=r"2 data sets are prepared there \(other, tiny\).*--set data\.dataset=other"):
        starting.resolve(default, tmp_path)
    chosen = recipes.load("default", ["data.dataset=tiny"])
    assert starting.resolve(chosen, tmp_path).data.modalities == ("img", "depth")


def test_no_data_set_is_said_with_what_to_type(tmp_path: Path, default: Recipe) -> None:
    with pytest.raises(DataError, match="no data set is prepared there; type memorysam prepare folder"):
        starting.resolve(default, tmp_path)


def test_a_recipe_that_names_everything_needs_no_data_set(tmp_path: Path, small: Recipe) -> None:
    assert starting.resolve(small, tmp_path) is small


def test_a_data_set_without_labels_is_refused(tmp_path: Path, default: Recipe) -> None:
    rename(tmp_path, write_data(tmp_path), unlabelled=("train", "val"))
    with pytest.raises(DataError, match="was prepared without labels and can only be predicted"):
        starting.resolve(default, tmp_path)


def test_a_missing_split_is_said_with_the_remedy(tmp_path: Path, default: Recipe) -> None:
    manifest = write_data(tmp_path)
    starting.refuse_missing_splits(default, manifest)
    trained = [scene for scene in manifest.scenes if scene.split == "train"]
    lacking = replace(manifest, info=manifest.info.model_copy(update={"counts": {"train": len(trained)}}))
    with pytest.raises(DataError, match=r"split 'val', which is used to choose .* has no scene \(known: train \(1\)\)"):
        starting.refuse_missing_splits(default, lacking)
    blind = replace(manifest, info=manifest.info.model_copy(update={"unlabelled": ("val",)}))
    with pytest.raises(DataError, match=r"'val', .* has no labels .*--set data\.selection_split=NAME"):
        starting.refuse_missing_splits(default, blind)


def test_resume_without_a_recipe_takes_that_of_the_default_s_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: Recipe
) -> None:
    monkeypatch.chdir(tmp_path)
    assert starting.choose_recipe(None, overrides=[], resume="auto", out=None) == default
    filled = default.for_dataset("tiny", ["img"])
    run_folder.create(filled, None)
    assert starting.choose_recipe(None, overrides=[], resume="auto", out=None) == filled
    assert starting.choose_recipe(None, overrides=[], resume="auto", out=Path("new")) == default
    assert starting.choose_recipe(None, overrides=[], resume=None, out=None) == default
