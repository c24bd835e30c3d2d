from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.data.manifest import Manifest, Scene, count_splits
from memorysam_cli.engine.evaluate import evaluation
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.report import console

from ..stand_ins import write_data


def scene(name: str, split: str, *, label: str | None = "") -> Scene:
    return Scene(name, split, None, None, {}, f"labels/{name}.png" if label == "" else label)


def manifest(tmp_path: Path, *scenes: Scene, unlabeled: tuple[str, ...] = ()) -> Manifest:
    info = write_data(tmp_path).info.model_copy(update={"counts": count_splits(scenes), "unlabeled": unlabeled})
    return Manifest(tmp_path, info, scenes)


def selection(split: str = "val") -> recipes.Data:
    return recipes.Data(dataset="tiny", modalities=("img",), image_size=64, selection_split=split)


def test_the_digest_of_a_list_by_hand() -> None:
    text = '["a/1", "labels/a/1.png"]\n["b/1", null]\n'
    found = evaluation.scenes_sha256([scene("a/1", "val"), scene("b/1", "val", label=None)])
    assert found == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_of_the_scenes_and_neither_of_their_order_nor_of_the_splits_name() -> None:
    scenes = [scene(f"s/{index}", "val") for index in range(5)]
    found = evaluation.scenes_sha256(scenes)
    assert found == evaluation.scenes_sha256(scenes[::-1])
    assert found == evaluation.scenes_sha256([replace(each, split="test", condition="fog") for each in scenes])
    assert found != evaluation.scenes_sha256(scenes[:4])
    assert found != evaluation.scenes_sha256([*scenes[:4], replace(scenes[4], label="other.png")])
    assert found != evaluation.scenes_sha256([*scenes[:4], replace(scenes[4], id="other")])


def test_splits_are_one_several_or_all(tmp_path: Path) -> None:
    data = manifest(tmp_path, scene("a", "test"), scene("b", "train"), scene("c", "val"))
    assert evaluation.labeled_splits(data, "val") == ("val",)
    assert evaluation.labeled_splits(data, "val, test") == ("val", "test")
    assert evaluation.labeled_splits(data, "val,val") == ("val",)
    assert evaluation.labeled_splits(data, "all") == ("train", "val", "test")


@pytest.mark.parametrize("text", ["", "val,", ",", "val,,test"])
def test_a_missing_name_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="a name is missing"):
        evaluation.labeled_splits(manifest(tmp_path, scene("a", "val")), text)


def test_splits_without_labels_are_refused_by_name_and_left_out_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.setup()
    data = manifest(
        tmp_path, scene("a", "val"), scene("b", "test"), scene("c", "test", label=None), unlabeled=("test",)
    )
    with pytest.raises(DataError, match=r"1 of 2 scenes in split 'test' without a label.*predict --split test"):
        evaluation.labeled_splits(data, "val,test")
    assert evaluation.labeled_splits(data, "all") == ("val",)
    assert "left out, because they have no labels: test" in capsys.readouterr().err
    with pytest.raises(DataError, match="no labels to score against"):
        evaluation.labeled_splits(manifest(tmp_path / "bare", scene("c", "test", label=None)), "all")
    with pytest.raises(DataError, match="no scene in split 'tset'"):
        evaluation.labeled_splits(data, "tset")


def test_the_split_that_chose_the_weights_flatters_them(tmp_path: Path) -> None:
    data = manifest(tmp_path, scene("a", "train"), scene("b", "val"), scene("c", "test"))
    assert evaluation.flattery(data, selection(), splits=["test"]) == []
    (line,) = evaluation.flattery(data, selection(), splits=["val"])
    assert "'val' also chose these weights" in line
    (line,) = evaluation.flattery(data, selection("test"), splits=["test"])  # as upstream on MCubeS
    assert "'test' also chose these weights" in line
    (line,) = evaluation.flattery(data, selection(), splits=["train", "test"])
    assert "'train' also trained these weights" in line


def test_a_list_under_two_names_flatters_too(tmp_path: Path) -> None:
    """In several published data sets the selection list is the test list."""
    shared = [scene(f"val/{name}", "val", label=f"{name}.png") for name in "ab"]
    again = [scene(f"test/{name}", "test", label=f"{name}.png") for name in "bc"]
    (line,) = evaluation.flattery(manifest(tmp_path, *shared, *again), selection(), splits=["test"])
    assert line.startswith("'test' shares 1 of 2 scenes with 'val', which chose these weights")


def test_training_on_a_part_of_the_split_that_chose_flatters_twice(tmp_path: Path) -> None:
    leak = [scene("train/a", "train", label="a.png"), scene("val/a", "val", label="a.png"), scene("val/b", "val")]
    chose, trained = evaluation.flattery(manifest(tmp_path, *leak), selection(), splits=["val"])
    assert "'val' also chose these weights" in chose
    assert trained.startswith("'val' shares 1 of 2 scenes with 'train', which trained these weights")
