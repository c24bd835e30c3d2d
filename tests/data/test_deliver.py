from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data.datasets.deliver import CASES, CLASSES, CONDITIONS, DELIVER
from memorysam_cli.data.layout import MARKER, DataNotFound
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

from .conftest import SCENES, write_deliver


def test_a_scene_is_read_off_its_path(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path / "DELIVER", ["fog/test/MAP_7_point4_lidarjitter/120150"])
    (scene,) = DELIVER.scenes(folder, tmp_path)
    assert (scene.id, scene.split) == ("fog/test/MAP_7_point4_lidarjitter/120150", "test")
    assert (scene.condition, scene.case) == ("fog", "lidarjitter")
    tail = "fog/test/MAP_7_point4_lidarjitter/120150"
    assert scene.files == {
        "img": (f"DELIVER/img/{tail}_rgb_front.png",),
        "depth": (f"DELIVER/hha/{tail}_depth_front.png",),
        "event": (f"DELIVER/event/{tail}_event_front.png",),
        "lidar": (f"DELIVER/lidar/{tail}_lidar_front.png",),
    }
    assert scene.label == f"DELIVER/semantic/{tail}_semantic_front.png"


def test_same_frame_names_in_different_folders_stay_apart(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES)
    found = DELIVER.scenes(folder, tmp_path)
    assert [scene.id for scene in found] == sorted(SCENES)
    assert sum(scene.id.endswith("/000050") for scene in found) == 5


@pytest.mark.parametrize("root", ["img/rain/x_rgb_front", "sun/overexposure/semantic", "night_rgb/train"])
def test_names_in_the_users_own_path_mean_nothing(tmp_path: Path, root: str) -> None:
    folder = write_deliver(tmp_path / root, SCENES)
    (tmp_path / "plain").mkdir()
    plain = write_deliver(tmp_path / "plain", SCENES)
    assert DELIVER.scenes(folder, folder) == DELIVER.scenes(plain, plain)
    assert {scene.case for scene in DELIVER.scenes(folder, folder)} == {None, "lidarjitter", "motionblur"}


def test_rain_is_not_found_in_train(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, ["sun/train/MAP_1_point1/000050"])
    assert [scene.condition for scene in DELIVER.scenes(folder, tmp_path)] == ["sun"]


def test_raw_depth_is_a_modality_only_where_it_is(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES[:1])
    assert [modality.name for modality in DELIVER.info(folder).modalities] == ["img", "depth", "event", "lidar"]
    shutil.copytree(folder / "hha", folder / "depth")
    assert DELIVER.info(folder).modalities[-1].name == "depth_raw"
    assert DELIVER.scenes(folder, tmp_path)[0].files["depth_raw"][0].startswith("depth/")


def test_a_label_without_an_image_is_a_scene_whose_image_is_missing(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES[:2])
    images_folder = folder / "img" / Path(SCENES[0]).parent
    shutil.rmtree(images_folder)
    assert [scene.id for scene in DELIVER.scenes(folder, tmp_path)] == sorted(SCENES[:2])


def test_other_views_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES[:1])
    place = folder / "img" / Path(SCENES[0]).parent
    for name in ("000050_rgb_rear.png", "._000050_rgb_front.png", "000050_rgb_front.png.part"):
        (place / name).write_bytes(b"x")
    assert len(DELIVER.scenes(folder, tmp_path)) == 1


def test_unknown_weathers_and_cases_are_remarked(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, ["snow/train/MAP_1_point1/000050", "sun/train/MAP_1_point1_dust/000050"])
    remarks = DELIVER.remarks(DELIVER.scenes(folder, tmp_path))
    assert any("'snow' is not a condition of DELIVER" in remark for remark in remarks)
    assert any("'dust' is not a failure case of DELIVER" in remark for remark in remarks)
    assert any(remark.startswith("train: 2 of the 3983 published scenes (") for remark in remarks)


def test_a_sequence_of_another_form_is_its_own_case(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, ["sun/train/Town_5/000050"])
    assert DELIVER.scenes(folder, tmp_path)[0].case == "Town_5"


def test_the_classes_are_the_published_ones() -> None:
    info = DELIVER.info(Path("nowhere"))
    assert (len(info.classes), info.classes[0], info.classes[2], info.classes[-1]) == (25, "Building", "Other", "Truck")
    assert info.palette[info.classes.index("Sky")] == (70, 130, 180) == CLASSES["Sky"]
    assert len(set(info.palette)) == 25
    assert (info.label.shift, info.label.ignore, info.crop) == (-1, (0, 255), None)
    assert all(modality.antialias for modality in info.modalities)


def test_the_folder_is_found_up_to_three_levels_below(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path / "a" / "b" / "DELIVER", SCENES[:1])
    assert DELIVER.find(folder) == folder
    assert DELIVER.find(tmp_path) == folder
    with pytest.raises(DataNotFound):
        write_deliver(tmp_path / "deep" / "1" / "2" / "3" / "DELIVER", SCENES[:1])
        DELIVER.find(tmp_path / "deep")


def test_two_candidates_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_deliver(tmp_path / name, SCENES[:1])
    with pytest.raises(DataError, match=rf"more than once: {tmp_path}/one and {tmp_path}/two"):
        DELIVER.find(tmp_path)


def test_rendered_scenes_never_pass_for_real_ones(tmp_path: Path) -> None:
    rendered = write_deliver(tmp_path / "mini-deliver", SCENES[:1])
    (rendered / MARKER).write_text("{}")
    assert DELIVER.find(tmp_path) == rendered  # the only one
    real = write_deliver(tmp_path / "real", SCENES[:1])
    assert DELIVER.find(tmp_path) == real
    assert DELIVER.find(rendered) == rendered


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_without_the_data_it_says_where_they_are_published(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataNotFound, match=r"jamycheung.github.io/DELIVER.html \(12.2 GB\)") as caught:
        DELIVER.find(tmp_path / name)
    assert "hha/" in caught.value.expected_tree


def test_a_folder_without_a_scene_shows_what_it_saw(tmp_path: Path) -> None:
    images.write_png(tmp_path / "img/sun/train/MAP_1_point1/1.png", np.zeros((2, 2), np.uint8))
    (tmp_path / "semantic").mkdir()
    with pytest.raises(DataError, match=r"\(saw img/sun/train/MAP_1_point1/1.png; looked for img/<condition>/<split>"):
        DELIVER.survey(DELIVER.find(tmp_path), tmp_path)


def test_the_published_weathers_and_failures_add_up_and_what_lacks_is_named(tmp_path: Path) -> None:
    for split, groups in DELIVER.published_groups.items():
        assert sum(groups[name] for name in CONDITIONS) == DELIVER.published_counts[split]
    assert sum(DELIVER.published_groups["test"][name] for name in CASES) == 699  # 1897 less the 1198 normal ones
    folder = write_deliver(tmp_path, ["fog/test/MAP_7_point4_lidarjitter/000010"])
    (test,) = [remark for remark in DELIVER.remarks(DELIVER.scenes(folder, tmp_path)) if remark.startswith("test: ")]
    assert test.startswith("test: 1 of the 1897 published scenes (cloud 0 of 379, fog 1 of 379, ")
    assert "lidarjitter 1 of 99" in test
