from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from memorysam_cli.data import decode
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import Kind, LabelRule, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

RGB = Modality(name="img", kind="rgb")
ANGLE = Modality(name="aolp", kind="angle")
DELIVER_RULE = LabelRule(shift=-1, ignore=(0, 255), first_channel=True)


def test_an_8_bit_color_image_comes_as_stored(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    images.write_png(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(decode.read_modality([tmp_path / "a.png"], RGB), pixels)


def test_16_bit_grey_keeps_its_16_bits_in_three_channels(tmp_path: Path) -> None:
    plane = np.array([[0, 40000], [65535, 7]], np.uint16)
    images.write_png(tmp_path / "a.png", plane)
    frame = decode.read_modality([tmp_path / "a.png"], RGB)
    assert frame.dtype == np.uint16
    np.testing.assert_array_equal(frame, np.stack([plane] * 3, axis=-1))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    images.write_png(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(decode.read_modality([tmp_path / "a.png"], RGB), pixels[..., :3])


def test_an_angle_is_sine_cosine_sine_in_float32(tmp_path: Path) -> None:
    sine, cosine = np.full((2, 3), -0.5), np.full((2, 3), 0.25)
    np.save(tmp_path / "sin.npy", sine)
    np.save(tmp_path / "cos.npy", cosine)
    frame = decode.read_modality([tmp_path / "sin.npy", tmp_path / "cos.npy"], ANGLE)
    assert frame.dtype == np.float32
    np.testing.assert_array_equal(frame[0, 0], [-0.5, 0.25, -0.5])


def test_an_angle_of_one_plane_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(DataError, match="needs its sine and its cosine"):
        decode.read_modality([tmp_path / "a.npy"], ANGLE)


def test_sine_and_cosine_of_different_size_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "sin.npy", np.zeros((2, 3)))
    np.save(tmp_path / "cos.npy", np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"sine is 2×3 float32, but cosine \(cos.npy\) is 3×3"):
        decode.read_modality([tmp_path / "sin.npy", tmp_path / "cos.npy"], ANGLE)


def test_two_files_for_a_camera_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes one file, not 2"):
        decode.read_modality([tmp_path / "a.png", tmp_path / "b.png"], RGB)


@pytest.mark.parametrize(("array", "why"), [(np.zeros((2, 2), np.int32), "int32"), (np.zeros((2, 2, 2)), "2 channels")])
def test_other_dtypes_and_channels_are_refused(tmp_path: Path, array: np.ndarray, why: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=why):
        decode.read_modality([tmp_path / "a.npy"], RGB)


def test_what_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 3), -1e39))
    with pytest.raises(DataError, match=r"a.npy: holds values beyond 3.4e\+38, too large"):
        decode.read_modality([tmp_path / "a.npy"], RGB)


def declared(*channels: int) -> Modality:
    return Modality.model_validate({"name": "ms", "kind": "rgb", "channels": channels})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [(0, 1, 2), (6, 0, 3), (5, 5, 5)])
def test_three_of_any_number_of_channels_are_taken(tmp_path: Path, dtype: type, channels: tuple[int, ...]) -> None:
    stored = np.arange(2 * 3 * 7).reshape(2, 3, 7).astype(dtype)
    np.save(tmp_path / "a.npy", stored)
    frame = decode.read_modality([tmp_path / "a.npy"], declared(*channels))
    assert frame.dtype == (np.float32 if dtype is np.float64 else dtype) and frame.flags.c_contiguous
    np.testing.assert_array_equal(frame, stored[..., list(channels)])


def test_a_declared_fourth_channel_is_no_alpha(tmp_path: Path) -> None:
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    images.write_png(tmp_path / "a.png", pixels)
    thermal = decode.read_modality([tmp_path / "a.png"], declared(3, 3, 3))
    np.testing.assert_array_equal(thermal, np.stack([pixels[..., 3]] * 3, axis=-1))


def test_declared_channels_of_grey_are_repeated(tmp_path: Path) -> None:
    plane = np.arange(8, dtype=np.uint8).reshape(2, 4)
    images.write_png(tmp_path / "a.png", plane)
    frame = decode.read_modality([tmp_path / "a.png"], declared(0, 0, 0))
    np.testing.assert_array_equal(frame, np.stack([plane] * 3, axis=-1))


@pytest.mark.parametrize(("stored", "channels"), [((2, 2, 3), (0, 1, 3)), ((2, 2), (0, 1, 2))])
def test_a_channel_that_is_not_there_is_refused(
    tmp_path: Path, stored: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros(stored, np.float32))
    with pytest.raises(DataError, match=r"a\.npy: has \d channels?, but 'ms' takes"):
        decode.read_modality([tmp_path / "a.npy"], declared(*channels))


@pytest.mark.parametrize("count", [2, 5])
def test_undeclared_channels_are_refused_with_what_to_do(tmp_path: Path, count: int) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 2, count), np.float32))
    with pytest.raises(DataError, match=rf"has {count} channels.*--channels img=0,1,.*'channels' in dataset.json"):
        decode.read_modality([tmp_path / "a.npy"], RGB)


def label_png(path: Path, values: list[list[int]]) -> Path:
    """A DELIVER label: the values in channel 0 of four."""
    plane = np.array(values, np.uint8)
    images.write_png(path, np.stack([plane, plane * 0 + 77, plane * 0 + 99, plane * 0 + 255], axis=-1))
    return path


def test_delivers_values_become_classes_by_hand(tmp_path: Path) -> None:
    path = label_png(tmp_path / "l.png", [[0, 1, 2], [25, 255, 13]])
    label = decode.read_label(path, DELIVER_RULE, 25)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, [[255, 0, 1], [24, 255, 12]])


def test_an_illegal_value_is_named_with_its_pixels_and_place(tmp_path: Path) -> None:
    path = label_png(tmp_path / "l.png", [[1, 1, 1], [1, 26, 26], [254, 1, 1]])
    with pytest.raises(DataError) as caught:
        decode.read_label(path, DELIVER_RULE, 25)
    assert str(caught.value) == (
        f"{path}: label value 26 in 2 pixels, first at (row 1, column 1) (and 1 pixel of other illegal values); "
        "legal are 1..25, and 0, 255 for 'ignored'"
    )


@pytest.mark.parametrize("value", [-1, 25, 254, 256, 281, 300, 65536, 2**32])
def test_no_integer_wraps_into_a_class(tmp_path: Path, value: int) -> None:
    np.save(tmp_path / "l.npy", np.array([[3, value]], np.int64))
    with pytest.raises(DataError, match=rf"label value {value} in 1 pixel, first at \(row 0, column 1\)"):
        decode.read_label(tmp_path / "l.npy", LabelRule(), 25)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.int64])
def test_every_integer_dtype_reads_alike(tmp_path: Path, dtype: type) -> None:
    np.save(tmp_path / "l.npy", np.array([[0, 24, 255]], dtype))
    np.testing.assert_array_equal(decode.read_label(tmp_path / "l.npy", LabelRule(), 25), [[0, 24, 255]])


@pytest.mark.parametrize("others", ["the same", "nothing"])
def test_four_channels_that_are_a_number(tmp_path: Path, others: str) -> None:
    label = np.array([[0, 24, 255], [1, 2, 3]], np.uint8)
    rest = label if others == "the same" else np.zeros_like(label)
    images.write_png(tmp_path / "l.png", np.stack([label, rest, rest, np.full_like(label, 9)], axis=-1))
    np.testing.assert_array_equal(decode.read_label(tmp_path / "l.png", LabelRule(), 25), label)


@pytest.mark.parametrize("color", [(1, 2, 0), (1, 0, 1), (0, 1, 1), (2, 1, 1)])
def test_four_channels_in_color_are_no_number(tmp_path: Path, color: tuple[int, int, int]) -> None:
    picture = np.full((2, 3, 4), 255, np.uint8)
    picture[..., :3] = 0
    picture[1, 2, :3] = color
    images.write_png(tmp_path / "l.png", picture)
    with pytest.raises(DataError, match="is in color; labels must be class numbers"):
        decode.read_label(tmp_path / "l.png", LabelRule(), 25)


def palette_png(indices: np.ndarray, bits: int, colors: bytes) -> bytes:
    """An indexed PNG, written by hand."""
    lines = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel()).tobytes() for row in indices
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", indices.shape[1], indices.shape[0], bits, 3, 0, 0, 0)
    parts = {b"IHDR": header, b"PLTE": colors, b"tRNS": b"\0", b"IDAT": zlib.compress(lines), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts.items())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indexed_pngs_give_their_indices(tmp_path: Path, bits: int) -> None:
    label = (np.arange(77).reshape(7, 11) % min(1 << bits, 25)).astype(np.uint8)
    colors = np.random.Generator(np.random.PCG64(7)).integers(0, 256, 3 << bits, np.uint8).tobytes()
    (tmp_path / "l.png").write_bytes(palette_png(label, bits, colors))
    np.testing.assert_array_equal(decode.read_label(tmp_path / "l.png", LabelRule(), 25), label)
    assert images.read(tmp_path / "l.png").shape == (7, 11, 4)  # anywhere else their colors, with alpha


def test_indices_that_no_png_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "l.png").write_bytes(palette_png(np.zeros((1, 8), np.uint8), 16, b"\0" * 3))
    with pytest.raises(DataError, match="damaged PNG: indices of 16 bits"):
        decode.read_label(tmp_path / "l.png", LabelRule(), 3)


def test_an_index_without_a_color_is_an_index_too(tmp_path: Path) -> None:
    label = np.array([[0, 1, 2, 255]], np.uint8)
    (tmp_path / "l.png").write_bytes(palette_png(label, 8, bytes([0, 0, 0, 128, 0, 0, 0, 128, 0])))
    np.testing.assert_array_equal(decode.read_label(tmp_path / "l.png", LabelRule(), 3), label)


@pytest.mark.parametrize("kind", ["TIFF", "BMP"])
def test_other_files_with_a_color_table_give_their_indices(tmp_path: Path, kind: str) -> None:
    label = (np.arange(77).reshape(7, 11) % 25).astype(np.uint8)
    picture = Image.fromarray(label, "L")
    picture.putpalette(bytes(range(255, -1, -1)) * 3)
    picture.save(tmp_path / "l", kind)
    assert images.header(tmp_path / "l").has_palette
    np.testing.assert_array_equal(decode.read_label(tmp_path / "l", LabelRule(), 25), label)


def gray_tiff(values: np.ndarray) -> bytes:
    """A TIFF of one strip of integers, written by hand."""
    signed = 2 if values.dtype.kind == "i" else 1
    height, width = values.shape
    fields = {256: width, 257: height, 258: 8 * values.itemsize, 259: 1, 262: 1, 273: 200, 277: 1, 278: height}
    fields |= {279: values.nbytes, 339: signed}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + struct.pack("<I", 0)
    return head.ljust(200, b"\0") + values.tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32])
def test_tiffs_of_every_integer_type_are_labels(tmp_path: Path, dtype: type) -> None:
    ignored = -1 if np.dtype(dtype).kind == "i" else 100
    rule = LabelRule(ignore=(ignored,))
    (tmp_path / "l.tif").write_bytes(gray_tiff(np.array([[0, 24, ignored]], dtype)))
    np.testing.assert_array_equal(decode.read_label(tmp_path / "l.tif", rule, 25), [[0, 24, 255]])
    (tmp_path / "l.tif").write_bytes(gray_tiff(np.array([[0, 24, 25]], dtype)))
    with pytest.raises(DataError, match="label value 25 in 1 pixel"):
        decode.read_label(tmp_path / "l.tif", rule, 25)


def test_a_label_in_colors_or_as_jpeg_or_with_fractions_is_refused(tmp_path: Path) -> None:
    images.write_png(tmp_path / "color.png", np.zeros((2, 2, 3), np.uint8))
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes()
    (tmp_path / "really_jpeg.png").write_bytes(jpeg)
    np.save(tmp_path / "float.npy", np.zeros((2, 2)))
    for name, why in [("color.png", "in color"), ("really_jpeg.png", "a JPEG"), ("float.npy", "whole numbers")]:
        with pytest.raises(DataError, match=why):
            decode.read_label(tmp_path / name, LabelRule(), 25)


MAPPING = LabelRule(mapping=((7, 0), (11, 1), (34, 1)), ignore=(0, 255))


def test_a_mapping_decides_by_hand(tmp_path: Path) -> None:
    images.write_png(tmp_path / "l.png", np.array([[7, 11, 34, 0, 255]], np.uint8))
    np.testing.assert_array_equal(decode.read_label(tmp_path / "l.png", MAPPING, 2), [[0, 1, 1, 255, 255]])


@pytest.mark.parametrize("value", [1, 8, 254])
def test_what_a_mapping_does_not_list_is_refused(tmp_path: Path, value: int) -> None:
    images.write_png(tmp_path / "l.png", np.array([[7, value]], np.uint8))
    with pytest.raises(DataError, match=rf"label value {value} in 1 pixel.*legal are 7, 11, 34, and 0, 255 for 'ign"):
        decode.read_label(tmp_path / "l.png", MAPPING, 2)


@pytest.mark.parametrize("pair", [(7, 2), (7, -1), (-1, 0), (65536, 0)])
def test_an_impossible_mapping_is_refused(tmp_path: Path, pair: tuple[int, int]) -> None:
    images.write_png(tmp_path / "l.png", np.array([[7]], np.uint8))
    with pytest.raises(DataError, match=rf"label.mapping: {pair[0]} → {pair[1]} is impossible"):
        decode.read_label(tmp_path / "l.png", LabelRule(mapping=(pair,)), 2)


@pytest.mark.parametrize("value", [-1, -32768, 70000])
def test_any_integer_may_be_ignored(tmp_path: Path, value: int) -> None:
    np.save(tmp_path / "l.npy", np.array([[0, value, 255, 24]], np.int64))
    rule = LabelRule(ignore=(value, 255))
    np.testing.assert_array_equal(decode.read_label(tmp_path / "l.npy", rule, 25), [[0, 255, 255, 24]])


COLORS = LabelRule(colors=True)
PALETTE = ((10, 0, 0), (0, 0, 10), (0, 0, 0))


@pytest.mark.parametrize("alpha", [False, True])
def test_colors_become_classes_by_hand(tmp_path: Path, alpha: bool) -> None:
    picture = np.array([[(10, 0, 0), (0, 0, 10), (0, 0, 0), (0, 10, 0), (10, 0, 1), (255, 255, 255)]], np.uint8)
    if alpha:
        picture = np.concatenate([picture, np.full((1, 6, 1), 9, np.uint8)], axis=-1)
    images.write_png(tmp_path / "l.png", picture)
    label = decode.read_label(tmp_path / "l.png", COLORS, 3, palette=PALETTE)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, [[0, 1, 2, 255, 255, 255]])


def test_every_color_of_a_palette_comes_back(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    palette = np.unique(rng.integers(0, 256, (255, 3), dtype=np.uint8), axis=0)
    classes = rng.integers(0, len(palette), (20, 30))
    images.write_png(tmp_path / "l.png", palette[classes])
    colors = tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
    label = decode.read_label(tmp_path / "l.png", COLORS, len(colors), palette=colors)
    np.testing.assert_array_equal(label, classes)


def test_colors_need_colors(tmp_path: Path) -> None:
    images.write_png(tmp_path / "grey.png", np.zeros((2, 2), np.uint8))
    images.write_png(tmp_path / "deep.png", np.zeros((2, 2, 3), np.uint16))
    (tmp_path / "j.png").write_bytes(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    for name, why in [("grey.png", "not an 8-bit RGB"), ("deep.png", "not an 8-bit RGB"), ("j.png", "is a JPEG")]:
        with pytest.raises(DataError, match=why):
            decode.read_label(tmp_path / name, COLORS, 3, palette=PALETTE)


@pytest.mark.parametrize("palette", [(), ((1, 1, 1), (1, 1, 1))])
def test_two_classes_of_one_color_are_refused(tmp_path: Path, palette: tuple[tuple[int, int, int], ...]) -> None:
    images.write_png(tmp_path / "l.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match="a different color for every class"):
        decode.read_label(tmp_path / "l.png", COLORS, 2, palette=palette)


def read(manifest: Manifest, number: int = 0, *, names: tuple[str, ...] = ("img", "event")) -> decode.Sample:
    """One scene of the hand-made DELIVER."""
    modalities = [manifest.info.modality(name) for name in names]
    return decode.read_sample(manifest.root, manifest.scenes[number], modalities=modalities, labels=manifest.info)


def test_a_sample_has_the_asked_frames_in_the_asked_order(prepared: Manifest) -> None:
    sample = read(prepared, names=("lidar", "img"))
    assert list(sample.frames) == ["lidar", "img"]
    assert sample.size == (6, 8)
    assert sample.label is not None and sample.label.shape == (6, 8)


def test_low_resolution_events_are_enlarged_by_nearest(prepared: Manifest) -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    images.write_png(prepared.root / prepared.scenes[0].files["event"][0], small)
    event = read(prepared).frames["event"]
    np.testing.assert_array_equal(event, small.repeat(3, axis=0).repeat(4, axis=1))


def resampled(prepared: Manifest, kind: Kind, stored: np.ndarray) -> np.ndarray:
    """What becomes of a sensor's file of this kind beside an image and a label of 6×8."""
    images.write_png(prepared.root / prepared.scenes[0].files["lidar"][0], stored)
    made = [prepared.info.modality("img"), Modality(name="lidar", kind=kind)]
    sample = decode.read_sample(prepared.root, prepared.scenes[0], modalities=made, labels=prepared.info)
    return sample.frames["lidar"]


@pytest.mark.parametrize("kind", ["depth", "lidar", "event"])
def test_registered_distances_of_another_resolution_are_those_of_the_nearest_pixel(
    prepared: Manifest, kind: Kind
) -> None:
    small = np.arange(3 * 4 * 3, dtype=np.uint8).reshape(3, 4, 3)
    np.testing.assert_array_equal(resampled(prepared, kind, small), small.repeat(2, axis=0).repeat(2, axis=1))
    # Finer than the frame: of 12×16 every second row and column is taken.
    fine = np.arange(12 * 16 * 3).astype(np.uint8).reshape(12, 16, 3)
    np.testing.assert_array_equal(resampled(prepared, kind, fine), fine[::2, ::2])


@pytest.mark.parametrize("kind", ["thermal", "rgb", "gray", "hha"])
def test_registered_sensors_that_are_no_distances_are_blended(prepared: Manifest, kind: Kind) -> None:
    small = np.zeros((3, 4, 3), np.uint8)
    small[:, 2:] = 100
    # Between the centers of pixels: a quarter and three quarters of the way from 0 to 100.
    np.testing.assert_array_equal(resampled(prepared, kind, small)[0, :, 0], [0, 0, 0, 25, 75, 100, 100, 100])


SIZES = {  # sensors (kind, size), label, the frame's size
    "equal": ([("rgb", (6, 8)), ("depth", (6, 8))], (6, 8), (6, 8)),
    "half": ([("rgb", (64, 64)), ("depth", (32, 32))], (64, 64), (64, 64)),
    "half, the label on the coarse one": ([("rgb", (64, 64)), ("depth", (32, 32))], (32, 32), (32, 32)),
    "the finest without a label": ([("depth", (32, 32)), ("rgb", (64, 64)), ("hha", (64, 64))], None, (64, 64)),
    "rounded": ([("rgb", (375, 1242)), ("thermal", (188, 621))], None, (375, 1242)),
    "rounded down": ([("rgb", (375, 1242)), ("thermal", (187, 621))], None, (375, 1242)),
    "a third": ([("rgb", (480, 640)), ("thermal", (160, 213))], (480, 640), (480, 640)),
    "small events of another shape": ([("rgb", (6, 8)), ("event", (2, 2))], (6, 8), (6, 8)),
    "events alone": ([("event", (2, 2))], (6, 8), (6, 8)),
    "another proportion": ([("rgb", (64, 64)), ("depth", (32, 48))], (64, 64), None),
    "one row less": ([("rgb", (64, 64)), ("depth", (63, 64))], None, None),
    "one row and column less": ([("rgb", (64, 48)), ("depth", (63, 47))], None, None),
    "large events of another shape": ([("rgb", (6, 8)), ("event", (3, 16))], None, None),
    "a label of another shape": ([("rgb", (6, 8))], (6, 9), None),
}


@pytest.mark.parametrize("what", SIZES)
def test_sizes_are_of_one_scene_if_they_are_one_view(what: str) -> None:
    sensors, label, expected = SIZES[what]
    sizes = {f"s{number}": size for number, (_, size) in enumerate(sensors)}
    kinds = {f"s{number}": kind for number, (kind, _) in enumerate(sensors)}
    assert decode.frame_size(sizes, kinds=kinds, label=label) == expected


@pytest.mark.parametrize(("name", "shape"), [("depth", (3, 5, 3)), ("event", (3, 16, 3)), ("lidar", (6, 7, 3))])
def test_any_other_difference_in_size_is_refused(prepared: Manifest, name: str, shape: tuple[int, ...]) -> None:
    images.write_png(prepared.root / prepared.scenes[0].files[name][0], np.zeros(shape, np.uint8))
    with pytest.raises(
        DataError, match=rf"scene {prepared.scenes[0].id}: sizes differ \(.*{name} {shape[0]}×{shape[1]}"
    ):
        read(prepared, names=("img", "depth", "event", "lidar"))


def test_a_label_of_another_size_is_refused(prepared: Manifest) -> None:
    label = prepared.scenes[0].label
    assert label is not None
    images.write_png(prepared.root / label, np.ones((6, 9), np.uint8))
    with pytest.raises(DataError, match="label 6×9"):
        read(prepared)


def test_a_missing_modality_or_label_names_the_scene(prepared: Manifest) -> None:
    scene = replace(prepared.scenes[0], files={"img": prepared.scenes[0].files["img"]}, label=None)
    changed = replace(prepared, scenes=(scene,))
    with pytest.raises(DataError, match=r"has no 'event' \(it has: img\)"):
        read(changed)
    with pytest.raises(DataError, match="has no label"):
        read(changed, names=("img",))
