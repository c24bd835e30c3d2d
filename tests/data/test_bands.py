"""Bands of rasters as sensors: counted from 1 or by name, and never mixed up with channels, which count from 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="the extra geo is not installed")

from memorysam_cli.data import decode
from memorysam_cli.dataset import Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

from ..storage.geotiffs import noise, write_geotiff

NAMES = ("B1", "B2", "B3", "B4", "B8")


def sensor(kind: str = "rgb", **fields: Any) -> Modality:
    return Modality.model_validate({"name": "s2", "kind": kind, **fields})


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, np.ndarray]:
    array = noise(5, 12, 16, dtype=np.uint16)
    return write_geotiff(tmp_path / "s2.tif", array, names=NAMES), array


@pytest.mark.parametrize(
    ("bands", "places"), [((4, 3, 2), [3, 2, 1]), (("B4", "B3", "B2"), [3, 2, 1]), ((5, 5, 5), [4] * 3)]
)
def test_bands_count_from_1_and_go_by_their_names(
    bands: tuple[Any, ...], places: list[int], scene: tuple[Path, np.ndarray]
) -> None:
    path, array = scene
    frame = decode.read_modality([path], sensor(bands=bands))
    np.testing.assert_array_equal(frame, np.moveaxis(array[places], 0, -1))


def test_names_are_looked_up_in_each_file(tmp_path: Path) -> None:
    array = noise(5, 12, 16, dtype=np.uint16)
    path = write_geotiff(tmp_path / "turned.tif", array[::-1], names=NAMES[::-1])
    frame = decode.read_modality([path], sensor(bands=("B4", "B3", "B2")))
    np.testing.assert_array_equal(frame, np.moveaxis(array[[3, 2, 1]], 0, -1))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"bands": (6, 1, 1)}, "has 5 bands, counted from 1, and no band 6"),
        ({"bands": ("B9", "B1", "B1")}, "no band called 'B9' .its 5 bands are called B1, B2, B3, B4, B8"),
        ({}, "has 5 bands, and no three are chosen for 's2'; choose them with --bands s2=1,2,3"),
    ],
)
def test_a_band_that_is_not_there_is_refused(
    fields: dict[str, Any], words: str, scene: tuple[Path, np.ndarray]
) -> None:
    with pytest.raises(DataError, match=words):
        decode.read_modality([scene[0]], sensor(**fields))


def test_bands_of_anything_but_a_raster_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", noise(12, 16, 5))
    with pytest.raises(DataError, match=r"is a NPY, and bands are a raster's .*--channels s2=.*counts from 0"):
        decode.read_modality([tmp_path / "a.npy"], sensor(bands=(3, 2, 1)))


def test_both_at_once_mean_nothing() -> None:
    with pytest.raises(ValueError, match="channels are counted from 0, the bands of a TIFF from 1"):
        sensor(bands=(3, 2, 1), channels=(2, 1, 0))


def test_the_bands_that_are_taken_are_said_by_number_and_name(scene: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, array = scene
    assert decode.bands_taken(sensor(bands=(4, 3, 2)), images.header(path), path=path) == "bands 4, 3, 2 (B4, B3, B2)"
    assert decode.bands_taken(sensor(bands=("B8",) * 3), images.header(path), path=path) == "band 5 (B8)"
    bare = write_geotiff(tmp_path / "bare.tif", array)
    assert decode.bands_taken(sensor(bands=(4, 3, 2)), images.header(bare), path=bare) == "bands 4, 3, 2"


def test_nodata_is_masked_by_the_files_own_tag_its_alpha_and_its_mask(tmp_path: Path) -> None:
    array = noise(4, 12, 16, dtype=np.uint16) + 1
    array[0, 0, 0] = 0
    path = write_geotiff(tmp_path / "a.tif", array, nodata=0)
    frame, invalid = decode.read_frame([path], sensor("thermal", bands=(1, 2, 3)))
    assert invalid is not None and np.argwhere(invalid).tolist() == [[0, 0, 0]], "of a sensor, each band for itself"
    assert decode.read_frame([path], sensor("rgb", bands=(1, 2, 3)))[1] is None, "of a photo, all three together"
    hides = np.full((12, 16), 255, np.uint8)
    hides[5, 6] = 0
    masked = write_geotiff(tmp_path / "m.tif", array.astype(np.uint8)[:3], mask=hides)
    see_through = np.concatenate([array[:3].astype(np.uint8), hides[None]])
    alpha = write_geotiff(tmp_path / "b.tif", see_through, photometric="rgb", alpha="yes")
    for file in (masked, alpha):
        frame, invalid = decode.read_frame([file], sensor())
        assert invalid is not None and np.argwhere(invalid).tolist() == [[5, 6, band] for band in range(3)]
        assert frame[5, 6].tolist() == [0, 0, 0]
