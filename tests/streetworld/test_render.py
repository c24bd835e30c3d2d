from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data.datasets.deliver import CASES, CONDITIONS, DELIVER
from memorysam_cli.data.datasets.mcubes import MCUBES
from memorysam_cli.storage import images
from memorysam_cli.streetworld.scenes import PlannedScene, deliver_place, plan, render


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def deliver_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 scenes of 40 px in DELIVER's layout."""
    root = tmp_path_factory.mktemp("data") / "mini-deliver"
    render(root, scenes=40, size=40, seed=7)
    return root


@pytest.fixture(scope="module")
def mcubes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 scenes of 40 px in MCubeS' layout."""
    root = tmp_path_factory.mktemp("data") / "mini-mcubes"
    render(root, layout="mcubes", scenes=12, size=40, seed=7)
    return root


def test_deliver_files_are_found_by_the_reader_of_the_real_data_set(deliver_root):
    assert DELIVER.holds(deliver_root)
    scenes = DELIVER.scenes(deliver_root, deliver_root.parent)
    assert Counter(scene.split for scene in scenes) == {"train": 24, "val": 10, "test": 6}
    assert {scene.condition for scene in scenes} == set(CONDITIONS)
    assert {scene.case for scene in scenes} == {None, *CASES}
    for scene in scenes:
        assert set(scene.files) == {"img", "depth", "event", "lidar", "depth_raw"}
        paths = [path for paths in scene.files.values() for path in paths]
        assert all((deliver_root.parent / path).is_file() for path in (*paths, scene.label))


def test_there_are_no_other_files(deliver_root, mcubes_root):
    assert len(hashes(deliver_root)) == 40 * 6
    assert len(hashes(mcubes_root)) == 12 * 9 + 4
    assert not [path for path in deliver_root.rglob("*") if path.name.startswith(".")]


def test_a_scene_has_delivers_own_path(deliver_root):
    sequence = deliver_root / "img" / "cloud" / "train" / "MAP_1_point1"
    assert [path.name for path in sorted(sequence.iterdir())] == ["000050_rgb_front.png"]
    assert (deliver_root / "hha/cloud/train/MAP_1_point1/000050_depth_front.png").is_file()
    assert (deliver_root / "semantic/cloud/train/MAP_1_point1/000050_semantic_front.png").is_file()


def test_frame_names_repeat_across_sequences():
    places = [deliver_place(scene) for scene in plan(240)]
    assert len(set(places)) == 240
    assert {frame for _, frame in places} == {"000050", "000100", "000150"}


def test_a_failure_is_a_suffix_of_the_sequence():
    scene = PlannedScene("test", 3, 1, "fog", "lidarjitter", 7, 4)
    assert deliver_place(scene) == (("fog", "test", "MAP_7_point4_lidarjitter"), "000100")


def test_deliver_pictures_have_the_depths_channels_and_values_of_the_real_ones(deliver_root):
    for name in ("img", "hha", "event", "lidar", "depth", "semantic"):
        for path in sorted((deliver_root / name).rglob("*.png")):
            picture = images.read(path)
            side = 10 if name == "event" and "eventlowres" in path.parent.name else 40
            assert picture.shape == (side, side, 4 if name == "semantic" else 3) and picture.dtype == np.uint8, path
            if name == "semantic":
                assert picture[..., 0].max() <= 25 and (picture[..., 3] == 255).all()
            if name == "event":
                assert set(np.unique(picture)) <= {0, 255} and not picture[..., 1].any()


@pytest.mark.parametrize("layout", ["deliver", "mcubes"])
def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others(tmp_path, layout):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        render(tmp_path / name, layout=layout, scenes=3, size=32, seed=seed)
    a, b, c = (hashes(tmp_path / name) for name in "abc")
    assert a == b and a.keys() == c.keys()
    pictures = {name for name in a if not name.endswith(".txt")}
    assert sum(a[name] != c[name] for name in pictures) > 0.95 * len(pictures)


def test_every_scene_is_counted_once(tmp_path):
    calls: list[None] = []
    render(tmp_path, scenes=4, size=32, advance=lambda: calls.append(None))
    assert len(calls) == 4


@pytest.mark.parametrize("wrong", [{"scenes": 0}, {"size": 31}, {"seed": -1}])
def test_impossible_wishes_are_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(ValueError, match="at least 1, 32 and 0"):
        render(tmp_path / "data", **{"scenes": 2, "size": 32, **wrong})
    assert not (tmp_path / "data").exists()


def test_mcubes_files_are_found_by_the_reader_of_the_real_data_set(mcubes_root):
    folder = mcubes_root / "multimodal_dataset"
    assert MCUBES.holds(folder)
    scenes = MCUBES.scenes(folder, mcubes_root)
    assert Counter(scene.split for scene in scenes) == {"train": 7, "val": 3, "test": 2}
    for scene in scenes:
        paths = [path for paths in scene.files.values() for path in paths]
        assert all((mcubes_root / path).is_file() for path in (*paths, scene.label))


def test_mcubes_lists_name_every_scene_once(mcubes_root):
    lists = mcubes_root / "multimodal_dataset" / "list_folder"
    names = {split: (lists / f"{split}.txt").read_text().splitlines() for split in ("all", "train", "val", "test")}
    assert names["all"] == names["train"] + names["val"] + names["test"]
    assert len(set(names["all"])) == 12
    for folder in ("polL_color", "NIR_warped", "NIR_warped_mask", "GT", "SS", "SSGT4MS", "polL_dolp"):
        found = sorted(path.stem for path in (lists.parent / folder).iterdir())
        assert found == sorted(names["all"]), folder


@pytest.mark.parametrize(
    ("folder", "dtype", "channels"),
    [
        ("polL_color", "uint16", 3),
        ("NIR_warped", "uint16", 1),
        ("NIR_warped_mask", "uint8", 1),
        ("GT", "uint8", 1),
        ("SS", "uint8", 1),
        ("SSGT4MS", "uint8", 1),
        ("polL_aolp_sin", "float32", 1),
        ("polL_aolp_cos", "float32", 1),
        ("polL_dolp", "float32", 1),
    ],
)
def test_mcubes_files_have_the_types_and_shapes_of_the_real_ones(mcubes_root, folder, dtype, channels):
    files = list((mcubes_root / "multimodal_dataset" / folder).iterdir())
    assert len(files) == 12
    for path in files:
        assert images.shape(path) == (40, 48, channels, dtype)
        values = images.read(path)
        if folder in ("GT", "SS"):
            limit = 20 if folder == "GT" else 25
            assert ((values < limit) | (values == 255)).all()


def test_sixteen_bits_are_used(mcubes_root):
    path = min((mcubes_root / "multimodal_dataset" / "polL_color").iterdir())
    assert len(np.unique(images.read(path))) > 1000


def test_the_plan_and_the_files_agree(deliver_root):
    scenes = {scene.id for scene in DELIVER.scenes(deliver_root, deliver_root.parent)}
    assert scenes == {"/".join((*place, frame)) for place, frame in map(deliver_place, plan(40))}
