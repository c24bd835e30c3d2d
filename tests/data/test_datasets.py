"""Each published layout, in all its forms."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data import DATASETS, decode, layout_of, published_info, transforms
from memorysam_cli.dataset import Modality
from memorysam_cli.storage import images

from .trees import CASES, HEIGHT, VARIANTS, WIDTH, write_tree

VIEWS = ["5_1", "5_2", "5_3", "5_4", "5_6", "5_7", "5_8", "5_9"]
MODALITIES = {
    "deliver": ["img", "depth", "event", "lidar"],
    "deliver depth_raw": ["img", "depth", "event", "lidar", "depth_raw"],
    "mcubes": ["image", "aolp", "dolp", "nir"],
    "mfnet": ["img", "thermal"],
    "fmb": ["img", "thermal"],
    "pst900": ["img", "thermal"],
    "nyu": ["img", "depth"],
    "nyu dformer": ["img", "depth", "depth_raw"],
    "nyu tokenfusion": ["img", "depth_raw"],
    "kitti360": ["img", "depth", "event", "lidar"],
    "kitti360 released": ["img"],
    "urbanlf": ["img", *VIEWS],
    "muses": ["frame_camera", "lidar", "radar", "event_camera"],
}
FACTS = {
    # classes, first class and its color, last class, shift, ignored, native size, published scenes
    "deliver": (25, "Building", (70, 70, 70), "Truck", -1, (0, 255), (1042, 1042), 7885),
    "mcubes": (20, "asphalt", (44, 160, 44), "sky", 0, (255,), (1024, 1224), 500),
    "mfnet": (9, "unlabeled", (0, 0, 0), "bump", 0, (255,), (480, 640), 1569),
    "fmb": (14, "Road", (179, 228, 228), "Pole", -1, (0, 255), (600, 800), 1500),
    "pst900": (5, "Background", (0, 0, 0), "Survivor", 0, (255,), (720, 1280), 885),
    "nyu": (40, "wall", (128, 0, 0), "otherprop", -1, (0, 255), (480, 640), 1449),
    "kitti360": (19, "road", (128, 64, 128), "bicycle", 0, None, (376, 1408), 61280),
    "urbanlf": (14, "bike", (168, 198, 168), "sky", 0, (255,), None, 824),
    "muses": (19, "road", (128, 64, 128), "bicycle", 0, (255,), (1080, 1920), 2500),
}


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_tree_to_the_letter_is_found_whole(tmp_path: Path, name: str, variant: str) -> None:
    # What the user's own folders are called means nothing: upstream reads these words off the path.
    folder = write_tree(name, tmp_path / "real_rgb" / "rain Syn", variant=variant)
    layout = layout_of(name)
    assert layout.find(tmp_path) == folder
    scenes, info = layout.survey(folder, tmp_path), layout.info(folder)
    expected = MODALITIES.get(f"{name} {variant}", MODALITIES[name])
    if variant != "real-81":
        assert [modality.name for modality in info.modalities] == expected
    assert layout.strays(folder, scenes) == []
    assert len({scene.id for scene in scenes}) == len(scenes) >= 5
    for scene in scenes:
        assert set(scene.files) == {modality.name for modality in info.modalities}
        paths = [path for group in scene.files.values() for path in group] + ([scene.label] if scene.label else [])
        assert all((tmp_path / path).is_file() for path in paths)
        assert scene.label is not None or scene.split in info.unlabeled


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_scene_decodes_to_normalized_tensors(tmp_path: Path, name: str, variant: str) -> None:
    folder = write_tree(name, tmp_path, variant=variant, scenes={"train": 1, "val": 1, "test": 1})
    info = layout_of(name).info(folder)
    for scene in layout_of(name).survey(folder, tmp_path):
        labels = None if scene.label is None else info
        sample = decode.read_sample(tmp_path, scene, modalities=info.modalities, labels=labels)
        assert sample.size == (HEIGHT, WIDTH)
        if sample.label is not None:
            assert set(np.unique(sample.label)) <= {*range(len(info.classes)), 255}
            assert (sample.label != 255).any()
        for modality in info.modalities:
            tensor = transforms.to_tensor(sample.frames[modality.name], modality)
            assert tensor.shape == (3, HEIGHT, WIDTH) and tensor.abs().max() < 100


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_no_layout_takes_anothers_folder_for_its_own(tmp_path: Path, name: str, variant: str) -> None:
    folder = write_tree(name, tmp_path, variant=variant, scenes={"train": 1, "val": 1, "test": 1})
    assert [other for other in DATASETS if layout_of(other).holds(folder)] == [name]


@pytest.mark.parametrize("folders", [("images", "labels"), ("rgb", "depth", "masks"), ("img", "thermal", "labels")])
def test_ones_own_sensors_are_not_taken_for_a_published_data_set(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:
        images.write_png(tmp_path / folder / "scene_a.png", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "train.txt").write_text("scene_a\n")
    assert [name for name in DATASETS if layout_of(name).holds(tmp_path)] == []


@pytest.mark.parametrize("name", DATASETS)
def test_the_published_facts(name: str) -> None:
    classes, first, color, last, shift, ignored, size, scenes = FACTS[name]
    layout, info = layout_of(name), published_info(name)
    assert (len(info.classes), info.classes[0], info.palette[0], info.classes[-1]) == (classes, first, color, last)
    assert len(set(info.palette)) == classes
    assert info.label.shift == shift
    assert ignored is None or info.label.ignore == ignored
    assert layout.native_size == size
    assert sum(layout.published_counts.values()) == scenes
    assert info.name == name and info == type(info).model_validate(info.model_dump(mode="json"))
    camera = info.modalities[0]
    assert (camera.kind, camera.mean, camera.std) == ("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_what_is_published_has_all_modalities_without_a_folder() -> None:
    names = {name: [modality.name for modality in published_info(name).modalities] for name in DATASETS}
    assert names["deliver"] == MODALITIES["deliver depth_raw"]
    assert names["nyu"] == MODALITIES["nyu dformer"]
    assert len(names["urbanlf"]) == len(set(names["urbanlf"])) == 81
    assert all(names[name] == MODALITIES[name] for name in ("mcubes", "mfnet", "kitti360", "muses"))


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in {"urbanlf"}])
def test_a_missing_sensor_is_left_out_and_its_usual_place_is_named(tmp_path: Path, name: str) -> None:
    folder = write_tree(name, tmp_path)
    layout = layout_of(name)
    modality = layout.info(folder).modalities[1].name
    for scene in layout.survey(folder, folder):
        for path in scene.files[modality]:
            (folder / path).unlink()
    scenes = layout.survey(folder, folder)
    assert modality not in scenes[0].files
    assert any(f"no '{modality}' (looked for" in remark for remark in layout.remarks(scenes))


def test_delivers_conditions_and_cases_come_from_components(tmp_path: Path) -> None:
    folder = write_tree("deliver", tmp_path)
    scenes = layout_of("deliver").survey(folder, folder)
    assert {scene.condition for scene in scenes} == {"cloud", "fog", "night", "rain", "sun"}
    cases = {None, "motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres"}
    assert {scene.case for scene in scenes} == cases
    assert all(scene.id.endswith("/000050") for scene in scenes)


def test_mfnets_original_files_hold_rgb_and_thermal(tmp_path: Path) -> None:
    folder = write_tree("mfnet", tmp_path, variant="original")
    info, scene = layout_of("mfnet").info(folder), layout_of("mfnet").survey(folder, folder)[0]
    stored = images.read(folder / scene.files["img"][0])
    assert scene.files["img"] == scene.files["thermal"] and stored.shape == (HEIGHT, WIDTH, 4)
    frames = decode.read_sample(folder, scene, modalities=info.modalities).frames
    np.testing.assert_array_equal(frames["img"], stored[..., :3])
    np.testing.assert_array_equal(frames["thermal"], np.stack([stored[..., 3]] * 3, axis=-1))


def test_kitti_ids_become_classes_by_hand(tmp_path: Path) -> None:
    info = published_info("kitti360")
    raw = np.array([[7, 8, 11, 34, 35, 37, 33, 0, 44, 255]], np.uint8)
    images.write_png(tmp_path / "l.png", raw)
    label = decode.read_label(tmp_path / "l.png", info.label, 19)
    np.testing.assert_array_equal(label, [[0, 1, 2, 2, 4, 5, 18, 255, 255, 255]])


def test_kitti_events_lie_beside_their_drive(tmp_path: Path) -> None:
    folder = write_tree("kitti360", tmp_path)
    scene = layout_of("kitti360").survey(folder, folder)[0]
    drive = "2013_05_28_drive_0001_sync"
    assert scene.id == f"{drive}/0000000000"
    assert scene.files == {
        "img": (f"data_2d_raw/{drive}/image_00/data_rect/0000000000.png",),
        "depth": (f"data_2d_hha/{drive}/image_00/data_rect/0000000000.png",),
        "event": (f"data_2d_event/{drive}/0000000000_event_image.png",),
        "lidar": (f"data_2d_lidar/{drive}/image_00/data_rect/0000000000_color.png",),
    }
    assert scene.label == f"data_2d_semantics/train/{drive}/image_00/semantic/0000000000.png"


@pytest.mark.parametrize(("variant", "counts"), [("real", 580), ("syn", 172)])
def test_urbanlfs_labels_tell_real_from_synthetic(tmp_path: Path, variant: str, counts: int) -> None:
    folder = write_tree("urbanlf", tmp_path / "real", variant=variant)
    layout = layout_of("urbanlf")
    scenes = layout.survey(folder, folder)
    assert layout.info(folder).label.colors is (variant == "real")
    assert layout.published(scenes)["train"] == counts
    assert any(said.startswith(f"train: 3 of the {counts} published scenes") for said in layout.remarks(scenes))


def test_urbanlfs_colors_become_classes_and_strangers_count_nowhere(tmp_path: Path) -> None:
    info = published_info("urbanlf")
    colors = np.array([[(168, 198, 168), (0, 0, 0), (158, 179, 202), (0, 0, 1)]], np.uint8)
    images.write_png(tmp_path / "label.png", colors)
    label = decode.read_label(tmp_path / "label.png", info.label, 14, palette=info.palette)
    np.testing.assert_array_equal(label, [[0, 3, 13, 255]])


def test_muses_pictures_and_arrays_mean_the_same(tmp_path: Path) -> None:
    layout = layout_of("muses")
    for variant in VARIANTS["muses"]:
        write_tree("muses", tmp_path / variant, variant=variant)
    readers: dict[str, Modality] = {
        variant: layout.info(tmp_path / variant).modality("lidar") for variant in VARIANTS["muses"]
    }
    meters = np.array([[[0.0, -3.5, 42.0]]], np.float32)
    stored = np.rint((meters + 100) * 150).astype(np.uint16)
    np.testing.assert_allclose(
        transforms.to_tensor(stored, readers["png"]), transforms.to_tensor(meters, readers["npz"]), atol=1e-5
    )


def test_muses_test_scenes_have_no_labels_and_the_others_must(tmp_path: Path) -> None:
    folder = write_tree("muses", tmp_path)
    shutil.rmtree(folder / "gt_semantic" / "val")
    scenes = layout_of("muses").survey(folder, folder)
    assert {scene.split for scene in scenes if scene.label is None} == {"test"}
    assert scenes[0].condition in layout_of("muses").conditions


def test_fmb_with_a_val_split_is_compared_with_its_own_counts(tmp_path: Path) -> None:
    folder = write_tree("fmb", tmp_path, variant="mm_sam_adapter")
    remarks = layout_of("fmb").remarks(layout_of("fmb").survey(folder, folder))
    assert "val: 2 of the 160 published scenes" in remarks


def test_mcubes_masks_and_lists_of_all_are_not_scenes(tmp_path: Path) -> None:
    folder = write_tree("mcubes", tmp_path)
    scenes = layout_of("mcubes").survey(folder, folder)
    assert len(scenes) == 7
    assert scenes[0].files["aolp"] == tuple(
        f"polL_aolp_{part}/outscene1201_1_0000000150.npy" for part in ("sin", "cos")
    )
