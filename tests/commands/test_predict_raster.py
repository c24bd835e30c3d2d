"""``memorysam predict scene.tif``: by windows, as in one piece; what it keeps, and what a kill leaves."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="the extra geo is not installed")

import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint

from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine.predict import raster
from memorysam_cli.errors import EnvironmentFault, Terminated
from memorysam_cli.storage import images, rasters

from ..storage.geotiffs import noise, write_geotiff
from .trained import Program, save_weights

HEIGHT, WIDTH = 75, 110
NAMES = ("B1", "B2", "B3", "B4", "B8")
CLASSES = ("land", "water", "roof")
PALETTE = ((10, 20, 30), (200, 0, 0), (0, 0, 250))


def info(**changes: Any) -> DatasetInfo:
    sensors = [
        {"name": "rgb", "kind": "rgb", "bands": ("B4", "B3", "B2")},
        {"name": "nir", "kind": "gray", "bands": (5,) * 3},
    ]
    fields = {"name": "s2", "title": "s2", "classes": CLASSES, "palette": PALETTE, "modalities": sensors, **changes}
    return DatasetInfo.model_validate(fields)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("w") / "w.safetensors", info(), modalities=("rgb", "nir"))


def smooth(bands: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Large blobs, so that a network that was never trained sees several classes."""
    coarse = noise(bands, height // 8 + 1, width // 8 + 1, dtype=np.uint16, high=60000)
    return np.kron(coarse, np.ones((1, 8, 8), np.uint16))[:, :height, :width]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_geotiff(tmp_path / "scene.tif", smooth(5), names=NAMES, compress="zstd", tiled=True, blockxsize=32,
                         blockysize=32)  # fmt: skip


def classes_of(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        found: np.ndarray = dataset.read(1)
    return found


def in_one_piece(memorysam: Program, weights: Path, scene: Path) -> np.ndarray:
    """The same scene as the only one of a prepared folder, whole in memory."""
    root = scene.parent / "data"
    (root / "s2").mkdir(parents=True)
    (root / "s2/scene.tif").write_bytes(scene.read_bytes())
    prepared = memorysam(
        "prepare", "folder", root, "--modality", "rgb=s2/*.tif", "--bands", "rgb=B4,B3,B2", "--modality",
        "nir=s2/*.tif", "--bands", "nir=5", "--kind", "nir=gray", "--stored",
    )  # fmt: skip
    assert prepared.code == 0, prepared.err
    ended = memorysam(
        "predict", root, "--weights", weights, "--tile", "--out", scene.parent / "masks", "--workers", "0"
    )
    assert ended.code == 0, ended.err
    return images.read(scene.parent / "masks/masks/scene.png")


def test_windows_give_what_one_piece_gives(
    memorysam: Program, weights: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one stripe, and in a stripe per column of windows."""
    wanted = in_one_piece(memorysam, weights, scene)
    assert len(np.unique(wanted)) > 1, "or this test would see nothing"
    for stripe_bytes in (2**30, 1):
        monkeypatch.setattr(raster, "STRIPE_BYTES", stripe_bytes)
        out = f"classes-{stripe_bytes}.tif"
        ended = memorysam("predict", scene, "--weights", weights, "--out", out, "--json")
        assert ended.code == 0, ended.err
        found = classes_of(Path(out))
        np.testing.assert_array_equal(found, wanted)
        assert ended.answer["pixels"] == {name: int((found == index).sum()) for index, name in enumerate(CLASSES)}
        assert ended.answer["sources"]["rgb"].startswith("bands 4, 3, 2 (B4, B3, B2) of ")
    assert sorted(path.name for path in scene.parent.iterdir() if path.name.startswith(".")) == []


def test_place_nodata_and_colors_are_kept_and_the_file_is_a_cog(
    memorysam: Program, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = smooth(5, 700, 64) + 1
    stored[:, :40, :50] = 0  # no sensor measured anything there
    stored[4, 60:70, 60:] = 0  # here, one of them did
    write_geotiff(tmp_path / "a.tif", stored, nodata=0)
    ended = memorysam("predict", "a.tif", "--weights", weights, "--out", "c.tif", "--bands", "rgb=4,3,2", "--json")
    assert ended.code == 0, ended.err
    with rasterio.open("a.tif") as source, rasterio.open("c.tif") as made:
        assert (made.crs, made.transform, made.shape) == (source.crs, source.transform, source.shape)
        assert (made.nodata, made.dtypes, made.count) == (255, ("uint8",), 1)
        table = made.colormap(1)
        assert [table[index] for index in range(3)] == [(*color, 255) for color in PALETTE]
        assert made.tags()["CLASS_1"] == "water"
        assert made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and made.overviews(1) == [2]
        gaps = made.read(1) == 255
    expected = np.zeros((700, 64), bool)
    expected[:40, :50] = True
    np.testing.assert_array_equal(gaps, expected)
    assert ended.answer["nodata"] == {"value": 255, "pixels": 40 * 50}


def test_what_was_killed_goes_on_where_it_was(
    memorysam: Program, weights: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raster, "STRIPE_BYTES", 1)
    assert memorysam("predict", scene, "--weights", weights, "--out", "whole.tif").code == 0
    written: list[tuple[int, int]] = []
    write = rasters.write_rows

    def killed(path: Path, values: np.ndarray, *, top: int, left: int) -> None:
        if len(written) == 4:
            raise Terminated(15)
        written.append((top, left))
        write(path, values, top=top, left=left)

    monkeypatch.setattr(rasters, "write_rows", killed)
    ended = memorysam("predict", scene, "--weights", weights, "--out", "classes.tif")
    assert ended.code == 143 and not Path("classes.tif").exists() and Path(".classes.tif.work").exists()
    monkeypatch.setattr(
        rasters, "write_rows", lambda *a, top, left, **k: (written.append((top, left)), write(*a, top=top, left=left))
    )
    ended = memorysam("predict", scene, "--weights", weights, "--out", "classes.tif")
    assert ended.code == 0 and "continues: " in ended.err, ended.err
    assert len(written) == len(set(written)), "no rows twice"
    np.testing.assert_array_equal(classes_of(Path("classes.tif")), classes_of(Path("whole.tif")))
    assert not Path(".classes.tif.work").exists()


def test_a_raster_smaller_than_a_window_is_seen_too(
    memorysam: Program, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_geotiff(tmp_path / "a.tif", smooth(5, 21, 70), names=NAMES, origin=None)
    ended = memorysam("predict", "a.tif", "--weights", weights, "--out", "c.tif", "--json")
    assert ended.code == 0 and sum(ended.answer["pixels"].values()) == 21 * 70, ended.err
    assert ended.answer["crs"] is None


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "a folder for out": ([], 2, "--out masks: the classes of a raster are one file"),
    "out is there": (["--out", "there.tif"], 2, "exists already; give another name or --overwrite"),
    "out is the source": (["--out", "scene.tif", "--overwrite"], 2, "is the raster that is read"),
    "a picture": (["--out", "c.tif", "--overlay"], 2, "--overlay: is for folders of scenes"),
    "both ways": (["--out", "c.tif", "--modality", "rgb=scene.tif"], 2, "leave one of the two out"),
    "an unknown sensor": (["--out", "c.tif", "--bands", "ir=1"], 2, "the weights know no such modality"),
    "no such band": (["--out", "c.tif", "--bands", "nir=9"], 3, "has 5 bands, counted from 1, and no band 9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_line_and_nothing_is_written(
    name: str, memorysam: Program, weights: Path, scene: Path
) -> None:
    Path("there.tif").write_bytes(b"mine")
    before = sorted(scene.parent.iterdir())
    options, code, said = REFUSED[name]
    ended = memorysam("predict", scene, "--weights", weights, *options)
    assert ended.code == code and said in ended.err, ended.err
    assert sorted(scene.parent.iterdir()) == before and Path("there.tif").read_bytes() == b"mine"


def test_a_raster_that_is_read_is_not_replaced_by_a_file_beside_the_classes(
    memorysam: Program, weights: Path, scene: Path
) -> None:
    source = scene.rename(scene.with_name("c.probabilities.tif"))
    before = source.read_bytes()
    options = ["--out", "c.tif", "--probabilities", "uint8", "--overwrite"]
    ended = memorysam("predict", source, "--weights", weights, *options)
    assert ended.code == 2 and "--out c.probabilities.tif: is the raster that is read" in ended.err, ended.err
    assert source.read_bytes() == before


def test_bands_that_nobody_named_are_not_guessed(memorysam: Program, scene: Path, tmp_path: Path) -> None:
    sensors = [{"name": "rgb", "kind": "rgb"}, {"name": "depth", "kind": "depth"}]
    other = save_weights(tmp_path / "w.safetensors", info(modalities=sensors), modalities=("rgb", "depth"))
    ended = memorysam("predict", scene, "--weights", other, "--out", "c.tif")
    assert ended.code == 2 and "the bands of 'rgb' are unknown; choose them" in ended.err
    ended = memorysam(
        "predict", "--modality", f"rgb={scene}", "--bands", "rgb=4,3,2", "--weights", other, "--out", "c.tif"
    )
    assert ended.code == 0 and "without 'depth': predicting with the other modalities" in ended.err, ended.err


def test_without_the_extra_a_line_names_it(
    memorysam: Program, weights: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasters, "is_installed", lambda: False)
    ended = memorysam("predict", scene, "--weights", weights, "--out", "c.tif")
    assert ended.code == 2 and "pip install 'memorysam[geo]'" in ended.err


def test_values_of_another_unit_are_noticed(memorysam: Program, scene: Path, tmp_path: Path) -> None:
    known = {"rgb": {"scenes": 1, "dtypes": ["uint8"], "low": 0, "middle": 100, "high": 255}}
    other = save_weights(tmp_path / "w.safetensors", info(ranges=known), modalities=("rgb", "nir"))
    ended = memorysam("predict", scene, "--weights", other, "--out", "c.tif", "--strict")
    assert ended.code == 3 and "'rgb': the weights were trained on uint8 0 to 255" in ended.err
    assert not Path("c.tif").exists()


def test_the_card_remembers_the_bands(weights: Path, memorysam: Program) -> None:
    shown = memorysam("weights", "info", weights)
    assert "rgb (rgb): bands B4, B3, B2, " in shown.out


def test_a_sensor_of_another_resolution_lies_where_its_coordinates_say(
    memorysam: Program, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as coarse, and 40 m further west and north than the first: each of its pixels is 2 × 2 of the first."""
    monkeypatch.chdir(tmp_path)
    fine = write_geotiff(tmp_path / "fine.tif", smooth(5, 40, 60))
    stored = smooth(1, 24, 34) + 1
    coarse = write_geotiff(tmp_path / "coarse.tif", stored, origin=(500_000 - 40, 5_000_000 + 40), pixel=20)
    with rasters.windows(fine, images.header(fine)) as first:
        onto = first.grid
    with rasters.windows(coarse, images.header(coarse), onto=onto, nearest=True) as other:
        seen, hidden = other.read((0,), top=0, left=0, height=40, width=60)
    expected = np.kron(stored[0], np.ones((2, 2), np.uint16))[4:44, 4:64]
    np.testing.assert_array_equal(seen[..., 0], expected)
    assert hidden is not None and not hidden.any()
    ended = memorysam(
        "predict", "--modality", "rgb=fine.tif", "--modality", "nir=coarse.tif", "--bands", "nir=1", "--bands",
        "rgb=4,3,2", "--weights", weights, "--out", "c.tif", "--json",
    )  # fmt: skip
    assert ended.code == 0 and (ended.answer["height"], ended.answer["width"]) == (40, 60), ended.err


@pytest.mark.parametrize("nodata", [None, 0])
def test_beyond_its_extent_a_sensor_measured_nothing(nodata: int | None, tmp_path: Path) -> None:
    fine = write_geotiff(tmp_path / "fine.tif", smooth(1, 40, 60))
    small = write_geotiff(tmp_path / "small.tif", smooth(1, 10, 20) + 1, pixel=20, nodata=nodata)
    with rasters.windows(fine, images.header(fine)) as first:
        onto = first.grid
    with rasters.windows(small, images.header(small), onto=onto, nearest=True) as other:
        seen, hidden = other.read((0,), top=0, left=0, height=40, width=60)
    beyond = np.ones((40, 60), bool)
    beyond[:20, :40] = False
    np.testing.assert_array_equal(seen[..., 0] == 0 if hidden is None else hidden, beyond)


def test_without_coordinates_nothing_is_laid_on_another_grid(
    memorysam: Program, weights: Path, scene: Path, tmp_path: Path
) -> None:
    write_geotiff(tmp_path / "bare.tif", smooth(1, 20, 20), origin=None)
    sources = ["--modality", f"rgb={scene}", "--modality", "nir=bare.tif", "--bands", "nir=1"]
    ended = memorysam("predict", *sources, "--weights", weights, "--out", "c.tif")
    assert ended.code == 3 and "bare.tif: has 20×20 pixels and the first sensor 75×110" in ended.err, ended.err


def ring_area(ring: Any) -> float:
    """By the shoelace formula; negative for one of the two directions."""
    x, y = np.array(ring, float).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def area(rings: Any) -> float:
    outer, *holes = [abs(ring_area(ring)) for ring in rings]
    return outer - sum(holes)


def rings_of(blob: bytes) -> list[list[tuple[float, float]]]:
    """A GeoPackage's polygon: eight bytes of head, then WKB."""
    assert blob[:4] == b"GP\0\1" and struct.unpack_from("<BI", blob, 8) == (1, 3)
    (count,), place, rings = struct.unpack_from("<I", blob, 13), 17, []
    for _ in range(count):
        (points,) = struct.unpack_from("<I", blob, place)
        values = struct.unpack_from(f"<{2 * points}d", blob, place + 4)
        rings.append(list(zip(values[::2], values[1::2], strict=True)))
        place += 4 + 16 * points
    assert place == len(blob)
    return rings


@pytest.mark.parametrize("form", ["gpkg", "geojson"])
def test_polygons_cover_the_pixels_of_their_class(
    form: str, memorysam: Program, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = smooth(5, 40, 60) + 1
    stored[:, :5, :9] = 0
    # GeoJSON is in longitude and latitude, so that areas are compared where the file has no CRS: in pixels.
    write_geotiff(tmp_path / "a.tif", stored, nodata=0, origin=(500_000, 5_000_000) if form == "gpkg" else None)
    options = ["--bands", "rgb=4,3,2", "--vector", form]
    ended = memorysam("predict", "a.tif", "--weights", weights, "--out", "c.tif", *options, "--json")
    assert ended.code == 0, ended.err
    assert ended.answer["vector"] == f"c.{form}"
    if form == "gpkg":
        with contextlib.closing(sqlite3.connect("c.gpkg")) as base:
            found = [(name, rings_of(blob)) for name, blob in base.execute("SELECT name, geom FROM classes")]
            assert base.execute("SELECT srs_id, min_x, max_y FROM gpkg_contents").fetchall() == [
                (32633, 500_000, 5_000_000)
            ]
            assert base.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
        pixel = 100
    else:
        features = json.loads(Path("c.geojson").read_text())["features"]
        found = [(each["properties"]["name"], each["geometry"]["coordinates"]) for each in features]
        pixel = 1
    counts = {name: sum(area(rings) for other, rings in found if other == name) / pixel for name in CLASSES}
    assert counts == ended.answer["pixels"] and sum(counts.values()) == 40 * 60 - 5 * 9


def test_geojson_is_in_longitude_and_latitude(memorysam: Program, weights: Path, scene: Path) -> None:
    ended = memorysam("predict", scene, "--weights", weights, "--out", "c.tif", "--vector", "geojson")
    assert ended.code == 0, ended.err
    first = json.loads(Path("c.geojson").read_text())["features"][0]["geometry"]["coordinates"][0]
    longitudes, latitudes = zip(*first, strict=True)
    # UTM 33's central meridian is 15° E, and 5,000 km lie at 45.15° N.
    assert all(14.99 < value < 15.02 for value in longitudes) and all(45.1 < value < 45.2 for value in latitudes)


def test_every_key_of_the_answer_is_documented(memorysam: Program, weights: Path, scene: Path) -> None:
    ended = memorysam("predict", scene, "--weights", weights, "--out", "c.tif", "--json")
    page = (Path(__file__).parent.parent.parent / "docs/json.md").read_text(encoding="utf-8")
    paragraph = page.partition("Of a raster (")[2].partition("\n\n")[0]
    assert set(ended.answer) == set(re.findall("`(\\w+)`", paragraph)) - {"predict", "value"}


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_probabilities_are_a_band_for_each_class_and_survive_a_kill(
    dtype: str, memorysam: Program, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = smooth(5, 160, 64) + 1
    stored[:, :40, :50] = 0  # no sensor measured anything there
    write_geotiff(tmp_path / "a.tif", stored, nodata=0)
    line = (
        "predict",
        "a.tif",
        "--weights",
        weights,
        "--out",
        "c.tif",
        "--bands",
        "rgb=4,3,2",
        "--probabilities",
        dtype,
    )
    written = rasters.write_rows
    calls = []

    def killed(path: Path, values: Any, **place: Any) -> None:
        calls.append(path.name)
        if len(calls) == 4:  # the second rows' classes are there, their probabilities are not
            raise Terminated(15)
        written(path, values, **place)

    monkeypatch.setattr(rasters, "write_rows", killed)
    assert memorysam(*line).code == 143
    monkeypatch.setattr(rasters, "write_rows", written)
    ended = memorysam(*line, "--json")
    assert ended.code == 0 and "continues" in ended.err, ended.err
    assert ended.answer["probabilities"] == "c.probabilities.tif"
    with rasterio.open("a.tif") as source, rasterio.open("c.probabilities.tif") as made:
        assert (made.crs, made.transform, made.shape) == (source.crs, source.transform, source.shape)
        assert made.descriptions == CLASSES and made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        found = made.read().astype(np.float64)
        assert made.dtypes[0] == ("uint8" if dtype == "uint8" else "float32")
    gap = np.zeros(found.shape[1:], bool)
    gap[:40, :50] = True
    assert (found[:, gap] == 0).all() if dtype == "uint8" else np.isnan(found[:, gap]).all()
    whole, step = (255, 1) if dtype == "uint8" else (1, 1e-3)
    np.testing.assert_allclose(found[:, ~gap].sum(0), whole, atol=3 * step)
    winner = np.take_along_axis(found, np.where(gap, 0, classes_of(Path("c.tif")))[None].astype(np.int64), axis=0)[0]
    assert (winner[~gap] >= found.max(0)[~gap]).all(), "rounding may make two alike, but never turns them round"
    ended = memorysam(*line)
    assert ended.code == 2 and "exists already" in ended.err


def two_sensors(rgb: str, nir: str) -> list[str]:
    """The words of a prediction of a raster per sensor."""
    return ["--modality", f"rgb={rgb}", "--bands", "rgb=1,2,3", "--modality", f"nir={nir}", "--bands", "nir=1"]


@pytest.mark.parametrize("form", ["geojson", "gpkg"])
def test_what_ends_while_polygons_are_written_is_continued_by_the_same_command(
    form: str, memorysam: Program, weights: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("predict", scene, "--weights", weights, "--out", "c.tif", "--vector", form)
    polygons, written = rasters.polygons, rasters.write_rows

    def full(*words: Any, **more: Any) -> Any:
        yield next(polygons(*words, **more))
        raise EnvironmentFault("the disk is full")

    monkeypatch.setattr(rasters, "polygons", full)
    assert memorysam(*line).code == 6
    assert not Path("c.tif").exists() and not Path(f"c.{form}").exists()
    other = "gpkg" if form == "geojson" else "geojson"
    Path(f"c.{other}").write_text("somebody's")
    refused = memorysam(*line[:-1], other)
    assert refused.code == 2 and f"c.{other}: exists already" in refused.err, "no run of ours has begun it"
    assert Path(f"c.{other}").read_text() == "somebody's"
    monkeypatch.setattr(rasters, "polygons", polygons)
    monkeypatch.setattr(rasters, "write_rows", lambda *_, **__: pytest.fail("all rows were there"))
    ended = memorysam(*line)
    assert ended.code == 0 and Path("c.tif").exists() and Path(f"c.{form}").exists(), ended.err
    monkeypatch.setattr(rasters, "write_rows", written)
    assert memorysam(*line).code == 2, "exists already"


def test_polygons_that_have_no_longitude_are_refused_before_anything_is_computed(
    memorysam: Program, weights: Path, scene: Path
) -> None:
    with rasterio.open(scene, "r+") as dataset:
        dataset.crs = 'LOCAL_CS["site",UNIT["metre",1]]'
    ended = memorysam("predict", scene, "--weights", weights, "--out", "c.tif", "--vector", "geojson")
    assert ended.code == 3 and "have no longitude and latitude, which GeoJSON needs; choose --vector gpkg" in ended.err
    assert not Path("c.tif").exists()
    write_geotiff(Path("nir.tif"), smooth(1))
    ended = memorysam("predict", *two_sensors(str(scene), "nir.tif"), "--weights", weights, "--out", "c.tif")
    assert ended.code == 3 and "nir.tif: nothing leads from its coordinates" in ended.err, ended.err


def test_a_sensor_of_another_place_is_refused_and_of_half_the_place_told(
    memorysam: Program, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_geotiff(tmp_path / "rgb.tif", smooth(3, 40, 66))
    for name, east in (("far", 10 * 66), ("half", 10 * 33)):
        write_geotiff(tmp_path / f"{name}.tif", smooth(1, 40, 66), origin=(500_000 + east, 5_000_000))
    ended = memorysam("predict", *two_sensors("rgb.tif", "far.tif"), "--weights", weights, "--out", "c.tif")
    assert ended.code == 3 and "far.tif: does not overlap the first sensor's raster" in ended.err
    ended = memorysam("predict", *two_sensors("rgb.tif", "half.tif"), "--weights", weights, "--out", "c.tif")
    # 33 points a side: the middle one lies just where the half begins, which makes 17.
    assert ended.code == 0 and "'nir' covers about 52 % of the first sensor's raster" in ended.err, ended.err
    # A raster of a few pixels, between the points by which grids are compared, is not beside.
    tiny = write_geotiff(tmp_path / "tiny.tif", smooth(1, 2, 2), origin=(500_105, 4_999_895), pixel=0.1)
    with rasters.windows(tmp_path / "rgb.tif", images.header(tmp_path / "rgb.tif")) as first:
        onto = first.grid
    with rasters.windows(tiny, images.header(tiny), onto=onto) as other:
        assert 0 < other.share < 0.01


def test_ground_control_points_are_kept_and_compared(
    memorysam: Program, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corners = [(0, 0), (0, 64), (40, 0), (40, 64)]
    for name, bands, east in (("rgb", 3, 0), ("nir", 1, 0), ("other", 1, 5000)):
        points = [GroundControlPoint(row, col, 500_000 + east + 10 * col, 5e6 - 10 * row, 7) for row, col in corners]
        write_geotiff(tmp_path / f"{name}.tif", smooth(bands, 40, 64), origin=None, gcps=points, crs="EPSG:32633")
    line = ("--weights", weights, "--out", "c.tif")
    ended = memorysam("predict", *two_sensors("rgb.tif", "other.tif"), *line)
    assert ended.code == 3 and "ground control points alone: gdalwarp IN.tif OUT.tif" in ended.err, ended.err
    assert memorysam("predict", *two_sensors("rgb.tif", "nir.tif"), *line).code == 0
    with rasterio.open("c.tif") as made:
        points, crs = made.gcps
    assert [(point.row, point.col) for point in points] == corners and crs.to_epsg() == 32633
    assert [(point.x, point.y, point.z) for point in points] == [
        (500_000, 5_000_000, 7), (500_640, 5_000_000, 7), (500_000, 4_999_600, 7), (500_640, 4_999_600, 7)
    ]  # fmt: skip


@pytest.mark.parametrize("tag", ["-9999", "  nan", "70000", "1.5  ", "-1e99"])
def test_a_nodata_that_a_type_cannot_hold_changes_nothing_on_another_grid(tag: str, tmp_path: Path) -> None:
    """The same values, given from south to north, are turned round and stay what they are."""
    stored = noise(1, 40, 60, dtype=np.uint16, high=60000)
    fine = write_geotiff(tmp_path / "fine.tif", stored)
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500_000, 0, 10, 5_000_000 - 400)}
    turned = write_geotiff(tmp_path / "turned.tif", stored[:, ::-1], origin=None, nodata=65011, **place)
    data = turned.read_bytes()
    assert data.count(b"65011") == 1
    turned.write_bytes(data.replace(b"65011", tag.encode()))
    with rasters.windows(fine, images.header(fine)) as first:
        onto = first.grid
    with rasters.windows(turned, images.header(turned), onto=onto) as other:
        seen, hidden = other.read((0,), top=0, left=0, height=40, width=60)
    assert seen.dtype == np.uint16 and (hidden is None or not hidden.any())
    np.testing.assert_array_equal(seen[..., 0], stored[0])


def test_no_mean_is_made_of_what_the_weights_call_no_measurement(tmp_path: Path) -> None:
    """Half a pixel apart, each pixel is the mean of two: of 100 and 65535 it would be 32817.5."""
    stored = np.full((1, 40, 60), 100, np.uint16)
    stored[:, 10:20, 10:20] = 65535
    fine = write_geotiff(tmp_path / "fine.tif", stored)
    apart = write_geotiff(tmp_path / "apart.tif", stored, origin=(500_005, 5_000_000))
    with rasters.windows(fine, images.header(fine)) as first:
        onto = first.grid
    with rasters.windows(apart, images.header(apart), onto=onto, nodata=(-1.0, 65535.0)) as other:
        seen, _ = other.read((0,), top=0, left=0, height=40, width=60)
    assert set(np.unique(seen)) == {100, 65535} and 90 <= (seen[:, 1:-1] == 65535).sum() <= 110
