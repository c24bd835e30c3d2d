from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.inputs import PredictionInputs, discover
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import images

from .conftest import SCENES, write_deliver

ALL = ("img", "depth", "event", "lidar")


def put(root: Path, *paths: str) -> Path:
    """Small pictures at the given paths."""
    for path in paths:
        images.write_png(root / path, np.zeros((2, 2), np.uint8))
    return root


def ids(found: PredictionInputs) -> list[str]:
    return [scene.id for scene in found.scenes]


def test_a_folder_per_modality_pairs_equal_names_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path, "img/fog/1.png", "img/sun/1.png", "depth/fog/1.png", "depth/sun/1.png")
    found = discover(tmp_path, modalities=("img", "depth"))
    assert ids(found) == ["fog/1", "sun/1"]
    assert found.scenes[0].files == {"img": ("img/fog/1.png",), "depth": ("depth/fog/1.png",)}
    assert (found.root, found.notes, found.scenes[0].label) == (tmp_path, (), None)


def test_frames_come_in_the_order_of_the_memory(tmp_path: Path) -> None:
    put(tmp_path, "img/1.png", "depth/1.png")
    assert list(discover(tmp_path, modalities=("depth", "img")).scenes[0].files) == ["depth", "img"]


def test_the_first_modalitys_file_names_the_scene(tmp_path: Path) -> None:
    put(tmp_path, "img/a/1_rgb_front.png", "img/a/2_rgb_front.png", "depth/a/1_depth_front.png")
    found = discover(tmp_path, modalities=("depth", "img"))
    assert ids(found) == ["a/1_depth_front", "a/2_rgb_front"]


def test_a_folder_per_scene_at_any_depth(tmp_path: Path) -> None:
    put(tmp_path, "day/one/img.png", "day/one/depth.png", "night/one/img.png", "night/one/depth.png")
    found = discover(tmp_path, modalities=("img", "depth"))
    assert ids(found) == ["day/one", "night/one"]
    assert found.scenes[1].files == {"img": ("night/one/img.png",), "depth": ("night/one/depth.png",)}


def test_one_scene_folder_is_called_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "kitchen", "img.png", "Depth.PNG")
    found = discover(tmp_path / "kitchen", modalities=("img", "depth"))
    assert ids(found) == ["kitchen"]
    assert found.scenes[0].files == {"img": ("img.png",), "depth": ("Depth.PNG",)}
    monkeypatch.chdir(tmp_path / "kitchen")
    assert ids(discover(Path(), modalities=("img", "depth"))) == ["kitchen"]


def test_renaming_reads_a_modality_from_other_names(tmp_path: Path) -> None:
    put(tmp_path / "living_room", "rgb.png", "depth.png")
    found = discover(tmp_path / "living_room", modalities=("img", "depth"), aliases={"img": "rgb"})
    assert found.scenes[0].files == {"img": ("rgb.png",), "depth": ("depth.png",)}


def test_sine_and_cosine_are_one_modality(tmp_path: Path) -> None:
    put(tmp_path / "b", "image/1.png", "aolp_sin/1.png", "aolp_cos/1.png")
    put(tmp_path / "d", "image.png", "aolp_cos.png", "aolp_sin.png")
    assert discover(tmp_path / "b", modalities=("image", "aolp")).scenes[0].files["aolp"] == (
        "aolp_sin/1.png", "aolp_cos/1.png",
    )  # fmt: skip
    assert discover(tmp_path / "d", modalities=("image", "aolp")).scenes[0].files["aolp"] == (
        "aolp_sin.png", "aolp_cos.png",
    )  # fmt: skip
    (tmp_path / "d" / "aolp_cos.png").unlink()
    with pytest.raises(DataError, match="needs aolp_sin and aolp_cos, or aolp alone"):
        discover(tmp_path / "d", modalities=("image", "aolp"))


def test_what_is_missing_is_said_once(tmp_path: Path) -> None:
    put(tmp_path, "a/img.png", "a/depth.png", "b/img.png", "c/img.png")
    found = discover(tmp_path, modalities=("img", "depth", "event"))
    assert found.notes == (
        "2 of 3 scenes lack 'depth'; predicting with the other modalities",
        "no scene has 'event'; predicting with the other modalities",
    )


def test_unknown_names_beside_a_missing_modality_are_refused_with_the_remedy(tmp_path: Path) -> None:
    put(tmp_path / "scene", "rgb.png", "depth.png")
    with pytest.raises(DataError, match=r"no img, but there is rgb; .*--map img=rgb, .*--modalities depth$"):
        discover(tmp_path / "scene", modalities=("img", "depth"))
    put(tmp_path / "folders", "color/1.png", "depth/1.png")
    with pytest.raises(DataError, match=r"no img, but there is color/; .*--map img=color"):
        discover(tmp_path / "folders", modalities=("img", "depth"))


def test_unknown_names_beside_complete_scenes_are_said_once(tmp_path: Path) -> None:
    put(tmp_path, "a/img.png", "a/label.png", "b/img.png", "b/label.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    assert discover(tmp_path, modalities=("img",)).notes == (
        "not used: label",
        "1 file is not taken (1 .txt), such as a/notes.txt",
    )


def spoil(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"GIF89a, or whatever nobody here can read")


def test_a_file_that_is_there_and_cannot_be_read_is_its_scenes_and_never_a_missing_sensor(tmp_path: Path) -> None:
    folders, scenes = tmp_path / "folders", tmp_path / "scenes"
    put(folders, "img/0.png", "img/2.png", "depth/0.png", "depth/1.png", "depth/2.png")
    spoil(folders, "img/1.gif", "img/2.gif", "img/0.txt", "img/3.txt", "img/Thumbs.db")
    found = discover(folders, modalities=("img", "depth"))
    assert [scene.files["img"] for scene in found.scenes] == [("img/0.png",), ("img/1.gif",), ("img/2.png",)]
    assert found.notes == ("4 files are not taken (2 .txt, 1 .db, 1 .gif), such as img/0.txt",)
    put(scenes, "a/img.png", "a/depth.png", "b/depth.png")
    spoil(scenes, "b/img.heic", "a/img.json", "a/depth.tiff.gz")
    found = discover(scenes, modalities=("img", "depth"))
    assert [scene.files["img"] for scene in found.scenes] == [("a/img.png",), ("b/img.heic",)]
    assert found.notes == ("2 files are not taken (1 .gz, 1 .json), such as a/depth.tiff.gz",)


def test_a_sensor_of_nothing_but_unreadable_files_lacks_in_no_scene(tmp_path: Path) -> None:
    put(tmp_path, "depth/a_0.png", "depth/a_1.png")
    spoil(tmp_path, "img/b_0.jp2", "img/b_1.jp2")
    found = discover(tmp_path, modalities=("img", "depth"))
    assert [scene.files["img"] for scene in found.scenes] == [("img/b_0.jp2",), ("img/b_1.jp2",)]
    spoil(tmp_path / "alone", "img/0.jp2", "img/1.jp2")
    with pytest.raises(
        DataError, match=r"none of the 2 .jp2 can be read, such as img/0.jp2; save them as PNG \(read are"
    ):
        discover(tmp_path / "alone", modalities=("img",))


def test_archives_and_texts_beside_the_folders_are_no_scene(tmp_path: Path) -> None:
    put(tmp_path, "img/1.png", "depth/1.png")
    spoil(tmp_path, "img.zip", "depth.tar.gz", "img.txt")
    found = discover(tmp_path, modalities=("img", "depth"))
    assert (ids(found), found.notes) == (["1"], ())


LABEL_NAMES = (
    "gt", "GT", "gtFine", "label", "labels", "labelIds", "train_labels", "mask", "masks", "annotations", "seg",
    "segmentation", "SegmentationClass", "semantic", "ground_truth", "GroundTruth", "anno", "targets", "truth",
)  # fmt: skip


@pytest.mark.parametrize("name", LABEL_NAMES)
@pytest.mark.parametrize("form", ["{name}/1.png", "s1/{name}.png"])
def test_labels_are_never_proposed_as_a_sensor(tmp_path: Path, name: str, form: str) -> None:
    put(tmp_path, form.format(name="rgb"), form.format(name=name))
    found = discover(tmp_path, modalities=("rgb", "ir"))
    assert found.notes[0] == "no scene has 'ir'; predicting with the other modalities"
    assert name in found.notes[1]
    put(tmp_path, form.format(name="warm"))
    with pytest.raises(DataError, match=r"no ir, but there is warm/?; .*--map ir=warm, ") as caught:
        discover(tmp_path, modalities=("rgb", "ir"))
    assert f"={name}" not in str(caught.value)


@pytest.mark.parametrize("name", ["thermal", "gtx", "segway", "lidar", "grey", "annapurna", "image"])
def test_names_that_only_begin_alike_are_sensors(tmp_path: Path, name: str) -> None:
    put(tmp_path, "rgb/1.png", f"{name}/1.png")
    with pytest.raises(DataError, match=f"--map ir={name}, "):
        discover(tmp_path, modalities=("rgb", "ir"))


def test_what_is_proposed_is_accepted(tmp_path: Path) -> None:
    put(tmp_path, "rgb/1.png", "pol_sin/1.png", "pol_cos/1.png", "gt/1.png")
    with pytest.raises(DataError, match="--map aolp=pol, ") as caught:
        discover(tmp_path, modalities=("rgb", "aolp"))
    assert str(caught.value).endswith("--modalities rgb")
    found = discover(tmp_path, modalities=("rgb", "aolp"), aliases={"aolp": "pol"})
    assert found.scenes[0].files["aolp"] == ("pol_sin/1.png", "pol_cos/1.png")
    assert discover(tmp_path, modalities=("rgb",)).notes == ("not used: gt/, pol_cos/, pol_sin/",)


def test_scenes_that_pair_by_number_are_said(tmp_path: Path) -> None:
    put(tmp_path, "img/rgb_09.png", "img/rgb_10.png", "depth/f9.png", "depth/f10.png")
    found = discover(tmp_path, modalities=("img", "depth"))
    assert [scene.files["depth"] for scene in found.scenes] == [("depth/f9.png",), ("depth/f10.png",)]
    said = "img/rgb_09.png, depth/f9.png"
    assert found.notes == (f"files pair by their numbers, which are the same in all folders: {said}",)


@pytest.mark.parametrize(
    ("paths", "first", "second"),
    [
        (["img/img.png", "img/depth.png", "depth/img.png", "depth/depth.png"], "per modality", "per scene"),
        (["img.png", "depth/1.png"], "per modality", "one scene"),
        (["img.png", "a/img.png"], "one scene", "per scene"),
    ],
)
def test_an_ambiguous_tree_shows_both_readings(tmp_path: Path, paths: list[str], first: str, second: str) -> None:
    put(tmp_path, *paths)
    with pytest.raises(DataError) as caught:
        discover(tmp_path, modalities=("img", "depth"))
    assert "can be read as" in str(caught.value) and " or as " in str(caught.value)
    assert first in str(caught.value) and second in str(caught.value)


def test_nothing_that_matches_says_what_was_looked_for_and_seen(tmp_path: Path) -> None:
    put(tmp_path, "x/1.png", "y/2.png", "z/3.png")
    with pytest.raises(DataError, match=r"named img, depth \(saw x/1.png, y/2.png\)"):
        discover(tmp_path, modalities=("img", "depth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="saw no file at all"):
        discover(tmp_path / "empty", modalities=("img",))


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "img.png")
    with pytest.raises(DataError, match="is a file; SCENES must be a folder"):
        discover(tmp_path / "img.png", modalities=("img",))
    with pytest.raises(DataError, match="does not exist"):
        discover(tmp_path / "nothing", modalities=("img",))


def test_a_folder_with_the_name_of_an_image_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "one/img.png", "one/depth.png", "two/depth.png")
    (tmp_path / "two" / "img.png").mkdir()
    with pytest.raises(DataError, match=r"two/img\.png: is a folder named as an image; rename it"):
        discover(tmp_path, modalities=("img", "depth"))


def test_two_scenes_never_share_an_output(tmp_path: Path) -> None:
    put(tmp_path / "case", "img/A/1.png", "img/a/1.png")
    with pytest.raises(DataError, match="'A/1' and 'a/1' would share one output"):
        discover(tmp_path / "case", modalities=("img",))
    put(tmp_path / "suffix", "img/1.png")
    (tmp_path / "suffix/img/1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"img/1\.(jpg|png) and img/1\.(jpg|png): stand for the same thing"):
        discover(tmp_path / "suffix", modalities=("img",))


def test_files_that_do_not_pair_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "img/1.png", "depth/2.png")
    with pytest.raises(DataError, match="none of its files pairs"):
        discover(tmp_path, modalities=("img", "depth"))


def test_an_alias_for_an_unused_modality_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--map imge=rgb: .*did you mean 'img'"):
        discover(tmp_path, modalities=("img",), aliases={"imge": "rgb"})


def test_hidden_folders_and_files_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, "img/1.png", "img/._1.png", "img/.cache/2.png")
    assert ids(discover(tmp_path, modalities=("img",))) == ["1"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    put(tmp_path, "img/1.png")
    (tmp_path / "img" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert ids(discover(tmp_path, modalities=("img",))) == ["1"]


@pytest.mark.parametrize("below", ["", "DELIVER"])
def test_a_prepared_data_set_is_its_root_or_its_folder(prepared: Manifest, below: str) -> None:
    found = discover(prepared.root / below, modalities=ALL, dataset="deliver")
    assert (found.root, found.notes) == (prepared.root, ())
    assert ids(found) == [scene.id for scene in prepared.scenes]
    assert found.scenes[0].files == prepared.scenes[0].files


def test_a_split_chooses_and_is_for_prepared_data_sets_alone(prepared: Manifest, tmp_path: Path) -> None:
    assert len(discover(prepared.root, modalities=ALL, split="val").scenes) == 2
    with pytest.raises(DataError, match="no scene in split 'test'"):
        discover(prepared.root, modalities=ALL, split="test")
    with pytest.raises(UsageError, match="is not a prepared data set"):
        discover(put(tmp_path / "other", "img/1.png"), modalities=ALL, split="val")


def test_a_prepared_data_set_may_lack_modalities_and_have_others(prepared: Manifest) -> None:
    found = discover(prepared.root, modalities=("img", "nir"), aliases={"img": "lidar"})
    assert found.scenes[0].files == {"img": prepared.scenes[0].files["lidar"]}
    assert found.notes == ("no scene has 'nir'; predicting with the other modalities",)
    with pytest.raises(DataError, match=r"deliver: has none of nir \(it has: img, depth, event, lidar\)"):
        discover(prepared.root, modalities=("nir",))


def test_several_prepared_data_sets_are_told_apart(prepared: Manifest) -> None:
    other = prepared.info.model_copy(update={"name": "synthetic"})
    manifests.write(prepared.root, other, prepared.scenes[:3])
    assert len(discover(prepared.root, modalities=ALL, dataset="synthetic").scenes) == 3
    assert len(discover(prepared.root, modalities=ALL, dataset="deliver").scenes) == 9
    with pytest.raises(DataError, match="2 data sets are prepared there, and none is the weights' 'mcubes'") as caught:
        discover(prepared.root, modalities=ALL, dataset="mcubes")
    for place, count in (("deliver", 9), ("synthetic", 3)):  # each place that is named can be given
        folder = prepared.root / "memorysam" / place
        assert str(folder) in str(caught.value)
        assert len(discover(folder, modalities=ALL, dataset="mcubes").scenes) == count


def test_scenes_of_another_data_set_than_the_weights_are_noted(prepared: Manifest) -> None:
    found = discover(prepared.root, modalities=ALL, dataset="synthetic")
    assert found.notes == ("the weights were trained on 'synthetic', these scenes are of 'deliver'",)


def test_the_folder_around_a_data_set_covers_it(tmp_path: Path) -> None:
    from memorysam_cli.data.datasets.deliver import DELIVER

    folder = write_deliver(tmp_path / "mini" / "inner", SCENES[:2])
    info = DELIVER.info(folder).model_copy(update={"root": "mini/inner"})
    manifests.write(tmp_path, info, DELIVER.scenes(folder, tmp_path))
    for path in (tmp_path, tmp_path / "mini", folder):
        assert len(discover(path, modalities=ALL).scenes) == 2


def test_an_unprepared_deliver_is_not_read_by_its_folder_names(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path / "D", SCENES)
    with pytest.raises(DataError, match="type: memorysam prepare deliver"):
        discover(folder, modalities=ALL)
    found = discover(folder, modalities=("img", "depth"), aliases={"depth": "hha"})
    assert len(found.scenes) == len(SCENES)
    assert found.scenes[0].files["depth"][0].startswith("hha/")
    assert found.notes == ("not used: event/, lidar/, semantic/",)


def test_the_discovered_files_exist(prepared: Manifest, tmp_path: Path) -> None:
    put(tmp_path / "x", "img/a/1.png", "depth/a/1.png")
    for found in (discover(prepared.root, modalities=ALL), discover(tmp_path / "x", modalities=("img", "depth"))):
        for scene in found.scenes:
            assert all((found.root / path).is_file() for paths in scene.files.values() for path in paths)
    assert replace(found.scenes[0], id="") != found.scenes[0]
