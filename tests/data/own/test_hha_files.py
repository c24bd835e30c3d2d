from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data.own import hha
from memorysam_cli.data.own.hha import Camera, Conversion, Depths, Encoding, HhaSettings, convert, plan_conversion
from memorysam_cli.data.own.patterns import Pattern
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import images

from ..tiffs import tiff

SETTINGS = HhaSettings(camera=Camera(60, 60, 20, 15))
DEPTH = np.full((30, 40), 2000, np.uint16)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a/1", "a/2", "b/1"):
        images.write_png(tmp_path / f"depth/{name}.png", DEPTH, fsync=False)
    return tmp_path


def planned(root: Path, settings: HhaSettings = SETTINGS) -> Conversion:
    return plan_conversion(root, Pattern("depth/**/*.png"), root / "hha", settings=settings)


def test_whole_numbers_are_millimetres_and_floating_point_metres(tmp_path: Path) -> None:
    images.write_png(tmp_path / "d.png", DEPTH)
    np.save(tmp_path / "d.npy", np.full((30, 40, 1), 2.0, np.float32))
    for name in ("d.png", "d.npy"):
        assert (Depths().read(tmp_path / name) == 2.0).all()
    np.save(tmp_path / "gaps.npy", np.array([[np.nan, np.inf, 2.0]]))
    (tmp_path / "gaps.tif").write_bytes(tiff(np.array([[-7, 2, 3]], np.float32), nodata="3"))
    assert Depths().read(tmp_path / "gaps.npy").tolist() == [[0, 0, 2]]
    assert Depths().read(tmp_path / "gaps.tif").tolist() == [[0, 2, 0]]
    assert Depths(scale=1e-4).read(tmp_path / "d.png") == pytest.approx(0.2)


def test_0_and_saturated_and_negative_and_far_are_not_measured(tmp_path: Path) -> None:
    images.write_png(tmp_path / "d.png", np.array([[0, 65535, 9000, 1000]], np.uint16))
    assert Depths(farthest=5).read(tmp_path / "d.png").tolist() == [[0, 0, 0, 1]]
    np.save(tmp_path / "d.npy", np.array([[-1.0, 0.0, 65535.0]]))
    assert Depths().read(tmp_path / "d.npy").tolist() == [[0, 0, 65535]]


def test_depth_has_one_channel(tmp_path: Path) -> None:
    images.write_png(tmp_path / "grey.png", np.full((4, 4, 3), 7, np.uint8))
    assert (Depths(scale=1).read(tmp_path / "grey.png") == np.full((4, 4), 7)).all()
    images.write_png(tmp_path / "color.png", np.tile(np.uint8([1, 2, 1]), (4, 4, 1)))
    with pytest.raises(DataError, match="has 3 channels that differ; depth has one"):
        Depths().read(tmp_path / "color.png")


def test_each_image_lies_where_its_depth_does(root: Path) -> None:
    seen: list[int] = []
    convert(planned(root), advance=lambda: seen.append(1))
    names = sorted(path.relative_to(root / "hha").as_posix() for path in (root / "hha").rglob("*.png"))
    assert names == ["a/1.png", "a/2.png", "b/1.png"] and len(seen) == 3
    assert (images.read(root / "hha/a/1.png") == hha.encode(DEPTH * 0.001, SETTINGS.camera)).all()
    assert json.loads((root / "hha/hha.json").read_text())["camera"] == {"fx": 60, "fy": 60, "cx": 20, "cy": 15}


def test_what_is_done_is_kept_unless_its_depth_is_newer(root: Path) -> None:
    convert(planned(root))
    assert (len(planned(root).jobs), planned(root).done) == (0, 3)
    os.utime(root / "depth/a/2.png", ns=(2**62, 2**62))
    (root / "hha/b/1.png").unlink()
    assert [target.relative_to(root).as_posix() for _, target in planned(root).jobs] == ["hha/a/2.png", "hha/b/1.png"]


def test_other_settings_or_another_s_folder_are_refused_and_left_as_they_are(root: Path) -> None:
    convert(planned(root))
    before = (root / "hha/a/1.png").read_bytes()
    with pytest.raises(UsageError, match="made with other settings"):
        planned(root, HhaSettings(camera=SETTINGS.camera, encoding=Encoding(gravity=(0, 1, 0))))
    assert (root / "hha/a/1.png").read_bytes() == before
    (root / "hha/hha.json").unlink()
    with pytest.raises(UsageError, match="holds other files"):
        planned(root)


def test_settings_with_a_gravity_are_known_again(root: Path) -> None:
    settings = HhaSettings(camera=SETTINGS.camera, encoding=Encoding(gravity=(0.0, 1.0, 0.0)))
    convert(planned(root, settings))
    assert planned(root, settings).done == 3


def test_two_depths_of_one_name_are_refused(root: Path) -> None:
    np.save(root / "depth/a/1.npy", np.ones((4, 4)))
    with pytest.raises(DataError, match=r"depth/a/1\.\w+ and .*depth/a/1\.\w+"):
        plan_conversion(root, Pattern("depth/**/*"), root / "hha", settings=SETTINGS)
    with pytest.raises(DataError, match=r"would both become .*hha/a/1.png"):
        plan_conversion(root, Pattern("depth/*/1*"), root / "hha", settings=SETTINGS)


def test_a_damaged_depth_is_named_and_the_others_stay(root: Path) -> None:
    (root / "depth/b/1.png").write_bytes((root / "depth/b/1.png").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"depth/b/1\.png: truncated"):
        convert(planned(root))
    assert (root / "hha/a/1.png").is_file() and not (root / "hha/b/1.png").exists()


def test_a_camera_of_another_size_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match=r"its center \(320, 240\) lies outside"):
        convert(planned(root, HhaSettings(camera=Camera(500, 500, 320, 240))))


def test_settings_that_made_no_image_stand_in_no_one_s_way(root: Path) -> None:
    with pytest.raises(UsageError, match="lies outside"):
        convert(planned(root, HhaSettings(camera=Camera(60, 60, 999, 15))))
    convert(planned(root))
    assert planned(root).done == 3
