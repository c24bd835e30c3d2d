from __future__ import annotations

import io
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from memorysam_cli.errors import DataError, EnvironmentFault
from memorysam_cli.storage import images, rasters

from .tiffs import tiff

Array = npt.NDArray[Any]
HEIGHT, WIDTH = 40, 61


def noise(*shape: int, dtype: Any = np.uint8) -> Array:
    """Full-range noise around a ramp, so that a swapped axis or channel shows."""
    values = np.random.default_rng(7).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    values[:, 0] = 0
    values[:, -1] = np.iinfo(dtype).max
    return values


def smooth(*shape: int) -> Array:
    return cv2.GaussianBlur(noise(*shape), (0, 0), 3)


def pillow(array: Array | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(stream, kind, **options)
    return stream.getvalue()


def opencv(array: Array, suffix: str) -> bytes:
    return bytes(cv2.imencode(suffix, array)[1])


def numpy_file(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def numpy_archive(*arrays: Array) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, *arrays)
    return stream.getvalue()


GRAY, COLOR, ALPHA = noise(HEIGHT, WIDTH), noise(HEIGHT, WIDTH, 3), noise(HEIGHT, WIDTH, 4)
GRAY16, COLOR16 = noise(HEIGHT, WIDTH, dtype=np.uint16), noise(HEIGHT, WIDTH, 3, dtype=np.uint16)
FLOAT = (GRAY16 / 7).astype(np.float32)

LOSSLESS: dict[str, tuple[bytes, Array]] = {
    "png gray": (pillow(GRAY, "PNG"), GRAY),
    "png rgb": (pillow(COLOR, "PNG"), COLOR),
    "png rgba": (pillow(ALPHA, "PNG"), ALPHA),
    "png gray 16": (pillow(GRAY16, "PNG"), GRAY16),
    "png rgb 16": (opencv(COLOR16[..., ::-1], ".png"), COLOR16),
    "bmp gray": (pillow(GRAY, "BMP"), GRAY),
    "bmp rgb": (pillow(COLOR, "BMP"), COLOR),
    "bmp rgba": (opencv(cv2.cvtColor(ALPHA, cv2.COLOR_RGBA2BGRA), ".bmp"), ALPHA),
    "webp rgb": (pillow(COLOR, "WEBP", lossless=True), COLOR),
    "webp rgba": (pillow(ALPHA, "WEBP", lossless=True, exact=True), ALPHA),
    "bigtiff gray 16": (tiff(GRAY16, is_big=True), GRAY16),
    "bigtiff float": (tiff(FLOAT, is_big=True, order=">"), FLOAT),
    "tiff gray": (pillow(GRAY, "TIFF"), GRAY),
    "tiff rgb lzw": (pillow(COLOR, "TIFF", compression="tiff_lzw"), COLOR),
    "tiff rgb deflate": (pillow(COLOR, "TIFF", compression="tiff_adobe_deflate"), COLOR),
    "tiff gray 16": (pillow(GRAY16, "TIFF"), GRAY16),
    "tiff rgb 16": (opencv(COLOR16[..., ::-1], ".tiff"), COLOR16),
    "tiff float": (pillow(FLOAT, "TIFF"), FLOAT),
    "npy float": (numpy_file(FLOAT), FLOAT),
    "npy fortran": (numpy_file(np.asfortranarray(COLOR)), COLOR),
    "npy big-endian": (numpy_file(GRAY16.astype(">u2")), GRAY16),
    "npy five channels": (numpy_file(noise(HEIGHT, WIDTH, 5)), noise(HEIGHT, WIDTH, 5)),
    "npz": (numpy_archive(FLOAT), FLOAT),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_files_are_read_exactly_and_their_header_agrees(name: str, tmp_path: Path) -> None:
    data, expected = LOSSLESS[name]
    path = tmp_path / "x.any"
    path.write_bytes(data)
    found = images.read(path)
    assert found.dtype == expected.dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, expected)
    assert images.shape(path) == (HEIGHT, WIDTH, expected.shape[2] if expected.ndim == 3 else 1, expected.dtype.name)


@pytest.mark.parametrize(
    ("shape", "is_turned"),
    [
        ((5, 66, 70), True),
        ((1, 66, 70), True),
        ((64, 66, 65), True),
        ((5, 66, 64), False),  # 64 channels are allowed
        ((66, 70, 5), False),
        ((70, 66, 5), False),
    ],
)
def test_an_array_that_can_only_be_channels_first_is_turned(
    shape: tuple[int, ...], is_turned: bool, tmp_path: Path
) -> None:
    stored = noise(*shape, dtype=np.uint16)
    expected = np.stack(list(stored), axis=-1) if is_turned else stored  # the first axis becomes the last
    (tmp_path / "x.npy").write_bytes(numpy_file(np.asfortranarray(stored)))
    (tmp_path / "x.npz").write_bytes(numpy_archive(stored))
    for source in (tmp_path / "x.npy", tmp_path / "x.npz", images.InMemory("x", stored)):
        header, found = images.load(source)
        np.testing.assert_array_equal(found, expected)
        assert (header.height, header.width, header.channels) == expected.shape and found.flags.c_contiguous


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_agrees_with_pillow(progressive: bool, tmp_path: Path) -> None:
    for array in (smooth(HEIGHT, WIDTH), smooth(HEIGHT, WIDTH, 3)):
        data = pillow(array, "JPEG", progressive=progressive, subsampling=0)
        (tmp_path / "x.jpg").write_bytes(data)
        found = images.read(tmp_path / "x.jpg")
        reference = np.asarray(Image.open(io.BytesIO(data)))
        assert found.shape == reference.shape
        np.testing.assert_allclose(found.astype(int), reference.astype(int), atol=3)  # two IDCTs
        assert images.shape(tmp_path / "x.jpg") == (HEIGHT, WIDTH, 1 if array.ndim == 2 else 3, "uint8")


def test_palettes_are_expanded_and_told(tmp_path: Path) -> None:
    image = Image.fromarray(COLOR).quantize(16)
    (tmp_path / "x.png").write_bytes(pillow(image, "PNG"))
    np.testing.assert_array_equal(images.read(tmp_path / "x.png"), np.asarray(image.convert("RGB")))
    assert images.header(tmp_path / "x.png").has_palette
    (tmp_path / "y.png").write_bytes(pillow(GRAY, "PNG"))
    assert not images.header(tmp_path / "y.png").has_palette


def test_transparency_shows_in_the_header_too(tmp_path: Path) -> None:
    gray_alpha = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(ALPHA[..., 3])])
    (tmp_path / "x.png").write_bytes(pillow(gray_alpha, "PNG"))
    np.testing.assert_array_equal(images.read(tmp_path / "x.png"), np.asarray(gray_alpha.convert("RGBA")))
    (tmp_path / "y.png").write_bytes(pillow(Image.fromarray(COLOR).quantize(8), "PNG", transparency=3))
    (tmp_path / "z.png").write_bytes(pillow(COLOR, "PNG", transparency=(1, 2, 3)))
    for name in "xyz":
        assert images.read(tmp_path / f"{name}.png").shape == (HEIGHT, WIDTH, 4)
        assert images.shape(tmp_path / f"{name}.png") == (HEIGHT, WIDTH, 4, "uint8")


def test_exif_rotation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        (tmp_path / "x").write_bytes(pillow(smooth(HEIGHT, WIDTH, 3), kind, exif=exif))
        assert images.read(tmp_path / "x").shape == (HEIGHT, WIDTH, 3)


CUT = {
    **{
        name: LOSSLESS[name][0]
        for name in LOSSLESS
        if name not in {"png gray 16", "png rgba", "npy fortran", "tiff gray"}
    },
    "jpeg": pillow(smooth(HEIGHT, WIDTH, 3), "JPEG"),
    "jpeg with thumbnail": pillow(smooth(HEIGHT, WIDTH, 3), "JPEG", exif=b"Exif\0\0" + pillow(smooth(9, 9, 3), "JPEG")),
    "jpeg progressive": pillow(smooth(HEIGHT, WIDTH, 3), "JPEG", progressive=True),
}


@pytest.mark.parametrize("name", CUT)
def test_a_file_cut_anywhere_is_refused_and_nothing_else_is_printed(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = CUT[name]
    path = tmp_path / "x.any"
    path.write_bytes(data)
    images.read(path)
    for cut in sorted({round(part) for part in np.linspace(0, len(data) - 1, 200)}, reverse=True):
        os.truncate(path, cut)
        with pytest.raises(DataError) as caught:
            images.read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_cuts_above_would_have_passed_a_naive_reader(tmp_path: Path) -> None:
    data = CUT["jpeg"]
    (tmp_path / "x.jpg").write_bytes(data[: len(data) * 9 // 10])
    assert cv2.imread(str(tmp_path / "x.jpg"), cv2.IMREAD_UNCHANGED) is not None


@pytest.mark.parametrize("name", ["png gray", "png rgb 16", "npz"])
def test_a_flipped_bit_is_noticed_where_the_format_has_checksums(name: str, tmp_path: Path) -> None:
    data, expected = LOSSLESS[name]
    positions = np.random.default_rng(3).integers(0, len(data), 200)
    silent = 0
    for position in positions:
        (tmp_path / "x").write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        try:
            silent += not np.array_equal(images.read(tmp_path / "x"), expected)
        except DataError:
            continue
    assert silent == 0


def test_a_damaged_png_is_told_from_a_cut_one(tmp_path: Path) -> None:
    data = LOSSLESS["png rgb"][0]
    (tmp_path / "x.png").write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    with pytest.raises(DataError, match="damaged PNG: the checksum near byte"):
        images.read(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(data[:-12])
    with pytest.raises(DataError, match=f"truncated PNG: it ends after {len(data) - 12:,} bytes, before its end chunk"):
        images.read(tmp_path / "x.png")


@pytest.mark.parametrize("name", CUT)
def test_damage_never_ends_in_anything_but_a_data_error(name: str, tmp_path: Path) -> None:
    data = CUT[name]
    random = np.random.default_rng(5)
    for _ in range(50):
        damaged = bytearray(data)
        for position in random.integers(0, min(len(data), 400), 3):
            damaged[position] = random.integers(256)
        (tmp_path / "x").write_bytes(damaged)
        for call in (images.shape, images.read):
            try:
                call(tmp_path / "x")
            except DataError as error:
                assert "\n" not in str(error)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 100) + b"IDAT" + bytes(104)


def test_a_huge_image_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png_header(30_000, 30_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"900 Mpx is more than the 100 Mpx allowed; .*MEMORYSAM_MAX_PIXELS"):
        images.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    path.write_bytes(pillow(GRAY, "PNG"))
    with pytest.raises(DataError, match="Mpx"):
        images.read(path, max_pixels=HEIGHT * WIDTH - 1)
    assert images.read(path, max_pixels=HEIGHT * WIDTH).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("size", [(60_000, 60_000), (1 << 16, (1 << 14) + 1), (1, (1 << 20) + 1)])
def test_what_opencv_never_decodes_is_not_to_be_allowed_but_cut(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png_header(*size))
    with pytest.raises(DataError, match=r"more than OpenCV decodes .*; cut it") as caught:
        images.read(tmp_path / "x.png", max_pixels=1 << 40)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("compression", [2, 6, 34712, 34887, 34925, 50000, 50001, 50002, 50013])
def test_a_sound_tiff_that_the_decoder_lacks_is_called_so_and_its_advice_works(
    compression: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasters, "is_installed", lambda: False)
    (tmp_path / "x.tif").write_bytes(tiff(GRAY, compression=compression))
    with pytest.raises(
        DataError, match=r"which (OpenCV's decoder lacks; .*geo.*, or|no decoder here has;) save it with deflate"
    ) as caught:
        images.header(tmp_path / "x.tif")
    assert "damaged" not in str(caught.value)
    for name in ("tiff_adobe_deflate", "tiff_lzw", None):
        (tmp_path / "x.tif").write_bytes(pillow(GRAY, "TIFF", compression=name))
        np.testing.assert_array_equal(images.read(tmp_path / "x.tif"), GRAY)


def test_what_opencv_fails_at_is_not_simply_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tif").write_bytes(pillow(GRAY, "TIFF"))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    with pytest.raises(DataError, match=r"OpenCV cannot decode: damaged, or of a kind that it lacks; .* PNG"):
        images.read(tmp_path / "x.tif")


@pytest.mark.parametrize("kind", ["BMP", "WEBP"])
def test_palettes_losses_and_turns_of_the_rarer_formats_are_told(kind: str, tmp_path: Path) -> None:
    if kind == "BMP":
        image = Image.fromarray(COLOR).quantize(16)
        (tmp_path / "x").write_bytes(pillow(image, "BMP"))
        np.testing.assert_array_equal(images.read(tmp_path / "x"), np.asarray(image.convert("RGB")))
        assert images.header(tmp_path / "x").has_palette
        assert not images.header(tmp_path / "x").is_lossy
        return
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x").write_bytes(pillow(COLOR, "WEBP", exif=exif))
    found = images.header(tmp_path / "x")
    assert (found.is_lossy, found.is_turned, found.height, found.width) == (True, True, HEIGHT, WIDTH)
    assert images.read(tmp_path / "x").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_work(shape: tuple[int, int], tmp_path: Path) -> None:
    images.write_png(tmp_path / "x.png", noise(*shape))
    np.testing.assert_array_equal(images.read(tmp_path / "x.png"), noise(*shape))


def with_nan(value: float) -> Array:
    array = FLOAT.copy()
    array[3, 5] = value
    return array


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([[{}]], dtype=object), allow_pickle=True)

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"hello, this is not an image", "not PNG, JPEG, TIFF, BMP, WebP or NumPy"),
    "html": (b"<!doctype html><html></html>", "starts with b'<!doctype"),
    "gif": (pillow(GRAY, "GIF"), "is a GIF, not PNG"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "animated webp": (
        pillow(Image.fromarray(COLOR), "WEBP", save_all=True, append_images=[Image.fromarray(COLOR[::-1])]),
        "animated WebP",
    ),
    "channels first and small": (numpy_file(noise(65, 66, 67)), r"\(65, 66, 67\); save \(H, W\) or \(H, W, C\)"),
    "many bands": (tiff(noise(HEIGHT, WIDTH, 12)), "12 bands"),
    "grey bands": (tiff(COLOR), "3 bands"),
    "zero rows": (png_header(10, 0), "no pixels"),
    "1-bit": (pillow(Image.fromarray(GRAY > 100), "PNG"), "1-bit gray PNG"),
    "animated": (
        pillow(Image.fromarray(COLOR), "PNG", save_all=True, append_images=[Image.fromarray(COLOR[::-1])]),
        "animated",
    ),
    "cmyk jpeg": (pillow(Image.fromarray(COLOR).convert("CMYK"), "JPEG"), "CMYK"),
    "cmyk tiff": (pillow(Image.fromarray(COLOR).convert("CMYK"), "TIFF"), "color kind 5"),
    "rgba tiff": (pillow(ALPHA, "TIFF"), "4 bands"),
    "double tiff": (opencv(GRAY.astype(np.float64), ".tiff"), "64 bits"),
    "pages": (
        pillow(Image.fromarray(COLOR), "TIFF", save_all=True, append_images=[Image.fromarray(COLOR)]),
        "several pages",
    ),
    "rotated tiff": (pillow(COLOR, "TIFF", tiffinfo={274: 6}), "rotation"),
    "nan": (numpy_file(with_nan(np.nan)), r"1 value is not finite, first nan at \(3, 5\)"),
    "inf": (numpy_archive(with_nan(np.inf)), r"first inf at \(3, 5\)"),
    "nan tiff": (pillow(with_nan(np.nan), "TIFF"), r"first nan at \(3, 5\)"),
    "objects": (OBJECTS.getvalue(), "Python objects"),
    "text array": (numpy_file(np.array([["a"]])), "an array of <U1"),
    "one axis": (numpy_file(np.arange(5)), r"shape \(5,\)"),
    "no rows": (numpy_file(np.zeros((0, 4))), r"shape \(0, 4\)"),
    "two arrays": (numpy_archive(GRAY, GRAY), "2 entries"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_we_cannot_read_rightly_is_refused_with_its_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasters, "is_installed", lambda: False)
    data, words = REFUSED[name]
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        images.read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    for call in (images.read, images.shape):
        with pytest.raises(DataError, match="a folder"):
            call(tmp_path / "x.png")
        with pytest.raises(DataError, match="no such file"):
            call(tmp_path / "y.png")
        with pytest.raises(DataError, match="not a regular file"):
            call(Path("/dev/zero"))


@pytest.mark.parametrize("array", [GRAY, COLOR, ALPHA, GRAY16, COLOR16, np.asfortranarray(COLOR), COLOR[::2, ::-1]])
def test_written_pixels_come_back_and_pillow_sees_the_same(array: Array, tmp_path: Path) -> None:
    images.write_png(tmp_path / "x.png", array)
    np.testing.assert_array_equal(images.read(tmp_path / "x.png"), array)
    if array.dtype == np.uint8:
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png")), array)
    assert images.encode_png(array) == images.encode_png(array)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint32, np.float32, np.float64, np.bool_])
def test_label_ids_are_never_clipped_or_wrapped(dtype: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PNG holds uint8 or uint16"):
        images.write_png(tmp_path / "x.png", np.ones((2, 2), dtype))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(4,), (4, 4, 1), (4, 4, 2), (4, 4, 5), (0, 4), (1, 4, 4, 3)])
def test_other_shapes_are_not_written(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="PNG holds"):
        images.encode_png(np.zeros(shape, np.uint8))


def test_a_failed_write_keeps_the_old_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images.write_png(tmp_path / "x.png", GRAY)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(EnvironmentFault, match="No space left"):
        images.write_png(tmp_path / "x.png", COLOR)
    np.testing.assert_array_equal(images.read(tmp_path / "x.png"), GRAY)


def zipped_npy(header: str, data: bytes, *, version: int = 1) -> bytes:
    """An ``.npz`` whose array has this header, whatever bytes follow it."""
    text = header.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\x93NUMPY" + bytes([version, 0]) + length + text + data)
    return stream.getvalue()


def described(shape: str, dtype: str = "<f8") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n"


def tiff_of_fields(count: int, *, tag: int) -> bytes:
    """A TIFF of 20 MB with so many fields, each of which claims 12 MB of the same bytes."""
    entries = b"".join(struct.pack("<HHII", tag + index, 1, 12_000_000, 8) for index in range(count))
    body = bytes(20_000_000)
    return struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", count) + entries + bytes(4)


SWOLLEN: dict[str, tuple[Callable[[], bytes], str]] = {
    # 8 · 64 · 10⁸ bytes: the pixels alone would pass the limit of 100 Mpx.
    "wide channels.npz": (
        lambda: zipped_npy(described("(10000, 10000, 64)"), bytes(2000)),
        "are 51.2 GB, more than the 1.2 GB",
    ),
    "longer than it says.npz": (
        lambda: zipped_npy(described("(2, 2)"), bytes(50_000_000)),
        "more bytes than its array has",
    ),
    "long header.npz": (
        lambda: zipped_npy(described("(2, 2)") + " " * 50_000_000, b"", version=2),
        "a header of 50,000,0",
    ),
    "wide channels.npy": (
        lambda: numpy_file(np.zeros((1, 1))).replace(b"(1, 1), }", b"(99999999, 1, 64), }"),
        "allowed",
    ),
    "unknown fields.tif": (lambda: tiff_of_fields(500, tag=40000), "size fields are missing"),
    "long field.tif": (lambda: tiff_of_fields(1, tag=256), "12000000 values in field 256"),
}


@pytest.mark.parametrize("name", SWOLLEN)
def test_a_small_file_never_needs_much_memory(name: str, tmp_path: Path) -> None:
    make, reason = SWOLLEN[name]
    path = tmp_path / name
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=re.escape(reason)):
            images.read(path)
        assert tracemalloc.get_traced_memory()[1] < 35e6  # 20 MB of which are the TIFF
    finally:
        tracemalloc.stop()


def test_a_file_far_larger_than_its_pixels_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(pillow(noise(4, 5), "PNG"))
    with path.open("r+b") as stream:
        stream.truncate(3_000_000_000)  # a hole, which takes no disk
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a file of 3\.0 GB for pixels of 0 MB"):
            images.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", ["(True, True)", "(2, True)", "(2.0, 2)", "('2', 2)", "(-2, 2)", "2", "()"])
def test_a_shape_is_of_whole_numbers(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(zipped_npy(described(shape), bytes(32)))
    with pytest.raises(DataError, match=r"an array of shape|damaged NumPy file"):
        images.read(path)


def test_arrays_larger_than_a_piece_are_read_whole_in_either_order(tmp_path: Path) -> None:
    values = np.arange(3 * 100_000, dtype=">u4").reshape(3, 100_000)  # 1.2 MB
    for name, array in {"c": values, "fortran": np.asfortranarray(values)}.items():
        np.save(tmp_path / f"{name}.npy", array)
        np.savez_compressed(tmp_path / f"{name}.npz", array)
        for suffix in (".npy", ".npz"):
            found = images.read(tmp_path / f"{name}{suffix}")
            assert found.dtype == np.uint32 and found.flags.writeable and np.array_equal(found, values)


def test_opencv_stays_silent(tmp_path: Path) -> None:
    """In a process of its own: OpenCV's log level is one for all."""
    (tmp_path / "x.png").write_bytes(CUT["png rgb"][:-200])
    code = (
        "import sys, numpy, cv2; from memorysam_cli.storage import images; "
        "print(cv2.imdecode(numpy.fromfile(sys.argv[1], 'u1'), -1))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.png"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_headers_of_arrays_are_evaluated_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # CPython 3.11 counts the levels of ``ast`` for all threads together, and so calls good headers damaged.
    path = tmp_path / "a.npy"
    np.save(path, noise(4, 5))
    evaluate, inside, most = np.lib.format.read_array_header_1_0, 0, 0

    def slowly(stream: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        found = evaluate(stream)
        inside -= 1
        return found

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", slowly)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(images.read, [path] * 20))
    assert all((array == noise(4, 5)).all() for array in found)
    assert most == 1


def test_a_fork_while_a_thread_reads_an_array_can_read_arrays(tmp_path: Path) -> None:
    path, is_over = tmp_path / "a.npy", threading.Event()
    np.save(path, noise(4, 5))

    def read() -> None:
        while not is_over.is_set():
            images.read(path)

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read)
        try:
            for _ in range(8):  # it reads nearly all the time
                child = os.fork()
                if child == 0:
                    signal.alarm(5)
                    try:
                        os._exit(int(images.read(path).shape != (4, 5)))
                    finally:
                        os._exit(1)
                assert os.waitpid(child, 0)[1] == 0
        finally:
            is_over.set()
        reading.result()


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]


def test_what_c_libraries_say_of_a_file_stays_off_the_terminal_and_everything_else_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = images.encode_png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    (tmp_path / "odd.png").write_bytes(with_chunk(plain, b"iCCP", b"odd\0\0xxxx"))  # a warning of libpng's
    (tmp_path / "bad.png").write_bytes(with_chunk(plain, b"ABCD", b"1"))  # an error of libpng's
    np.testing.assert_array_equal(images.read(tmp_path / "odd.png"), np.arange(48).reshape(4, 4, 3))
    with pytest.raises(DataError, match=r"bad\.png"):
        images.read(tmp_path / "bad.png")
    assert capfd.readouterr().err == ""
    with images._hushed:
        os.write(2, b"malloc(): corrupted\nlibpng warning: sBIT: invalid\n")
        with images._hushed:
            os.write(2, b"terminate called\n")
    assert capfd.readouterr().err == "malloc(): corrupted\nterminate called\n"
    os.write(2, b"and after\n")
    assert capfd.readouterr().err == "and after\n"
