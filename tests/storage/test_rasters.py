"""TIFFs that OpenCV cannot decode, read by GDAL: right or refused, and nothing but the file is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rasterio", reason="the extra geo is not installed")

from memorysam_cli.errors import DataError
from memorysam_cli.storage import images, rasters

from .geotiffs import noise, write_geotiff

TILED = {"tiled": True, "blockxsize": 16, "blockysize": 32}
COLORS = {0: (0, 0, 0, 255), 1: (10, 20, 30, 255), 2: (200, 100, 50, 255)}
READ: dict[str, tuple[Any, dict[str, Any]]] = {
    "zstd": (noise(3, 40, 50), {"compress": "zstd"}),
    "lzma": (noise(1, 40, 50), {"compress": "lzma"}),
    "lerc": (noise(1, 40, 50, dtype=np.int16), {"compress": "lerc"}),
    "12 bands": (noise(12, 40, 50, dtype=np.uint16), {"compress": "deflate"}),
    "12 bands, one plane each": (noise(12, 40, 50, dtype=np.uint16), {"interleave": "band"}),
    "big, tiled, float64": (noise(1, 70, 50, dtype=np.float64), {"BIGTIFF": "YES", **TILED}),
    "tiled, predicted": (noise(4, 70, 50, dtype=np.uint16), {"compress": "lzw", "predictor": 2, **TILED}),
    "overviews": (noise(3, 128, 128), {"overviews": (2, 4)}),
    "one bit": (noise(1, 40, 50, high=2), {"nbits": 1}),
    "grey in three bands": (noise(3, 40, 50, dtype=np.uint16), {"photometric": "minisblack"}),
    "signed bytes": (noise(2, 40, 50, dtype=np.int8), {}),
}


@pytest.mark.parametrize("name", READ)
def test_every_value_is_the_one_that_was_written_and_the_header_says_its_form(name: str, tmp_path: Path) -> None:
    array, profile = READ[name]
    path = write_geotiff(tmp_path / "a.tif", array, **profile)
    header, pixels = images.load(path)
    assert header.needs and images.shape(path) == (*array.shape[1:], array.shape[0], array.dtype.name)
    np.testing.assert_array_equal(pixels, array[0] if len(array) == 1 else np.moveaxis(array, 0, -1))


def test_what_both_decoders_read_they_read_alike(tmp_path: Path) -> None:
    array = noise(3, 40, 50)
    header, pixels = images.load(write_geotiff(tmp_path / "a.tif", array, compress="deflate"))
    assert not header.needs
    with (tmp_path / "a.tif").open("rb") as stream:
        by_gdal = rasters.read_whole(stream, tmp_path / "a.tif", header, as_numbers=False)
    np.testing.assert_array_equal(by_gdal, pixels)


def test_a_color_table_gives_colors_or_its_numbers(tmp_path: Path) -> None:
    numbers = noise(1, 40, 50, high=3)
    path = write_geotiff(tmp_path / "a.tif", numbers, compress="zstd", colors=COLORS)
    np.testing.assert_array_equal(images.read(path, as_numbers=True), numbers[0])
    table = np.array([COLORS[index][:3] for index in range(3)], np.uint8)
    np.testing.assert_array_equal(images.read(path), table[numbers[0]])


def test_bands_descriptions_and_nodata_are_read_without_gdal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("B2", "red & <near>", "Grün")
    path = write_geotiff(tmp_path / "a.tif", noise(3, 8, 8), names=names, nodata=7)
    monkeypatch.setattr(rasters, "is_installed", lambda: False)
    header = images.header(path)
    assert (header.bands, header.nodata) == (names, 7)


@pytest.mark.parametrize("how", ["a mask", "alpha"])
def test_what_a_file_hides_is_told(how: str, tmp_path: Path) -> None:
    mask = np.full((40, 50), 255, np.uint8)
    mask[:3] = 0
    pixels = noise(3, 40, 50)
    if how == "a mask":
        path = write_geotiff(tmp_path / "a.tif", pixels, mask=mask)
    else:
        path = write_geotiff(tmp_path / "a.tif", np.concatenate([pixels, mask[None]]), photometric="rgb", alpha="yes")
    header, array = images.load(path)
    np.testing.assert_array_equal(images.hidden(path, header, array), mask == 0)


def test_files_beside_it_and_the_environment_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = noise(4, 64, 64)
    path = write_geotiff(tmp_path / "a.tif", array, overviews=(2,))
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><PAMRasterBand band='1'><NoDataValue>5</NoDataValue></PAMRasterBand></PAMDataset>"
    )
    (tmp_path / "a.tif.msk").write_bytes(b"II*\0 no mask")
    (tmp_path / "a.tfw").write_text("1\n0\n0\n-1\n7\n7\n")
    monkeypatch.setenv("GDAL_PAM_ENABLED", "YES")
    before = sorted(tmp_path.iterdir())
    with path.open("rb") as stream, rasters.opened(stream, path, images.header(path)) as dataset:
        assert (dataset.nodata, dataset.transform.c) == (None, 500_000)
        np.testing.assert_array_equal(dataset.read(), array)
    assert sorted(tmp_path.iterdir()) == before


def test_without_the_extra_a_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_geotiff(tmp_path / "a.tif", noise(12, 8, 8))
    monkeypatch.setattr(rasters, "is_installed", lambda: False)
    for call in (images.header, images.read):
        with pytest.raises(DataError, match=r"a TIFF of 12 bands, .*pip install 'memorysam\[geo\]'"):
            call(path)


VRT = "<VRTDataset rasterXSize='8' rasterYSize='8'><VRTRasterBand band='1'/></VRTDataset>"


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_is_refused(share: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_geotiff(tmp_path / "a.tif", noise(12, 40, 50), compress="zstd").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"a\.tif: (truncated|damaged)"):
        images.read(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""


def test_damaged_pixels_are_refused_and_gdal_says_nothing_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_geotiff(tmp_path / "a.tif", noise(12, 40, 50), compress="deflate")
    data = bytearray(path.read_bytes())
    data[-400:-300] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tif: a TIFF that GDAL cannot read: (?!\d+, )"):
        images.read(path)
    assert capfd.readouterr().err == ""


def test_other_formats_of_gdal_are_no_rasters(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text(VRT)
    with pytest.raises(DataError, match="not PNG, JPEG, TIFF"):
        images.read(tmp_path / "a.tif")


def test_a_block_that_would_fill_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_geotiff(tmp_path / "a.tif", noise(12, 64, 64), tiled=True, blockxsize=2048, blockysize=2048)
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
    with pytest.raises(DataError, match=r"tiles or strips of 50(\.\d+)? MB are more than .*TILED=YES"):
        images.read(path, max_pixels=64 * 64)
