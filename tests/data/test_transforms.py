from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from memorysam_cli.data.transforms import (
    Draw,
    Sample,
    _resized_crop,
    augment,
    for_prediction,
    for_scoring,
    to_tensor,
    without_left,
)
from memorysam_cli.dataset import Crop, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Augment

RGB = Modality(
    name="img", kind="rgb", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), photometric=("jitter", "blur")
)
DEPTH = Modality(name="depth", kind="hha")
LIDAR = Modality(name="lidar", kind="lidar", interpolation="nearest")
MCUBES = Crop(left=192, of_height=1024, square=True)
GEOMETRY_ALONE = Augment(jitter=0, blur=0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def coordinates(height: int, width: int) -> np.ndarray:
    """A float frame whose channels are row, column and 0: bilinear resizing keeps it exact inside."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns, rows * 0], axis=-1).astype(np.float32)


def test_nothing_switched_on_is_the_identity_bit_for_bit() -> None:
    off = Augment(flip=0, jitter=0, blur=0, scale=(1, 1))
    for dtype in (np.uint8, np.uint16, np.float32):
        frame = rng().integers(0, 256, (64, 64, 3)).astype(dtype)
        label = rng(1).integers(0, 25, (64, 64), dtype=np.uint8)
        result = augment(Sample({"img": frame}, label), modalities=[RGB], augment=off, size=64, rng=rng(2))
        np.testing.assert_array_equal(result.frames["img"], frame)
        assert result.frames["img"].dtype == dtype
        np.testing.assert_array_equal(result.label, label)


def test_flip_and_crop_are_the_same_for_all_frames_and_the_label() -> None:
    height, width = 40, 56
    frame = coordinates(height, width)
    label = (np.arange(height)[:, None] // 8 * 7 + np.arange(width) // 8).astype(np.uint8)
    for seed in range(20):
        sample = Sample({"img": frame, "depth": frame.copy(), "lidar": frame.copy()}, label)
        result = augment(sample, modalities=[RGB, DEPTH, LIDAR], augment=GEOMETRY_ALONE, size=32, rng=rng(seed))
        np.testing.assert_array_equal(result.frames["img"], result.frames["depth"])
        assert result.label is not None
        valid = result.label != 255
        # Nearest frames carry the very coordinates that the label was read at.
        rows, columns = result.frames["lidar"][..., 0].astype(int), result.frames["lidar"][..., 1].astype(int)
        np.testing.assert_array_equal(result.label[valid], label[rows, columns][valid])
        # Shrinking 2.5 times, floor-nearest reads up to 0.5 · 2.5 - 0.5 + 1 pixels beside the bilinear center.
        assert np.abs(result.frames["img"] - result.frames["lidar"])[valid].max() < 1.75


def test_padding_is_0_and_255_at_the_right_and_bottom() -> None:
    frame, label = np.full((20, 20, 3), 9, np.uint8), np.full((20, 20), 4, np.uint8)
    half = Augment(flip=0, jitter=0, blur=0, scale=(0.5, 0.5))
    result = augment(Sample({"img": frame}, label), modalities=[RGB], augment=half, size=32, rng=rng())
    assert result.label is not None
    np.testing.assert_array_equal(result.frames["img"][:16, :16], 9)
    np.testing.assert_array_equal(result.label[:16, :16], 4)
    for part in (slice(16, None), slice(None)), (slice(None), slice(16, None)):
        np.testing.assert_array_equal(result.frames["img"][part], 0)
        np.testing.assert_array_equal(result.label[part], 255)
    torch.testing.assert_close(
        to_tensor(result.frames["img"], RGB)[:, 20, 0], torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    )


def test_images_shrink_with_antialiasing_where_their_modality_says_so() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 1::4] = 240  # one column in four; at half the size, without antialiasing, (0 + 240) / 2 or nothing
    # With: the triangle weighs 1/8, 3/8, 3/8, 1/8; column 1 is an inner pixel of one result, an outer one of the next.
    seen = {False: {120, 0}, True: {90, 30}}
    half = Augment(flip=0, jitter=0, blur=0, scale=(0.5, 0.5))
    for antialias, wanted in seen.items():
        modality = DEPTH.model_copy(update={"antialias": antialias})
        sample = Sample({"depth": stripes}, np.zeros((64, 64), np.uint8))
        results = {
            "training": augment(sample, modalities=[modality], augment=half, size=64, rng=rng()),
            "evaluation": for_scoring(sample, modalities=[modality], size=32, crop=None),
            "prediction": for_prediction(sample, modalities=[modality], size=32),
        }
        for what, result in results.items():
            assert set(result.frames["depth"][:32, 1:31, 0].ravel().tolist()) == wanted, what


def test_the_blur_may_come_after_the_crop() -> None:
    # All of the image is kept, as 16 × 16 pixels, and padded: a blur that comes last sees the padding's edge.
    frame = np.full((20, 20, 3), 200, np.uint8)
    wide = {"flip": 0, "jitter": 0, "blur": 1, "blur_sigma": (1, 1), "scale": (0.5, 0.5)}
    before, after = (
        augment(
            Sample({"img": frame}, None), modalities=[RGB], augment=Augment(**wide, blur_after_crop=last), size=32,
            rng=rng(),
        ).frames["img"][8, 12:20, 0].tolist()
        for last in (False, True)
    )  # fmt: skip
    assert before == [200] * 4 + [0] * 4
    # A kernel of 7 with sigma 1 reaches 3 pixels, the outermost with a weight of 0.0044: 200 · 0.9956 is 199.
    assert after[:2] == [200, 199] and after[3] + after[4] == 200 and after == sorted(after, reverse=True)


def test_adding_a_modality_or_a_photometric_step_changes_no_geometry() -> None:
    frame, label = coordinates(40, 40), rng().integers(0, 25, (40, 40), dtype=np.uint8)
    alone = augment(Sample({"depth": frame}, label), modalities=[DEPTH], augment=GEOMETRY_ALONE, size=32, rng=rng(8))
    both = augment(
        Sample({"img": frame, "depth": frame}, label),
        modalities=[RGB, DEPTH],
        augment=Augment(jitter=1, blur=1, blur_sigma=(0.1, 1)),
        size=32,
        rng=rng(8),
    )
    np.testing.assert_array_equal(alone.frames["depth"], both.frames["depth"])
    np.testing.assert_array_equal(alone.label, both.label)
    assert (both.frames["img"] != both.frames["depth"]).any()


def test_the_same_generator_gives_the_same_sample_and_another_another() -> None:
    frame = rng().integers(0, 256, (40, 50, 3), dtype=np.uint8)

    def image(seed: int) -> np.ndarray:
        result = augment(Sample({"img": frame}, None), modalities=[RGB], augment=Augment(), size=32, rng=rng(seed))
        assert result.label is None
        return result.frames["img"]

    np.testing.assert_array_equal(image(1), image(1))
    assert (image(1) != image(2)).any()


def test_the_scale_covers_its_range_and_the_crop_every_place() -> None:
    frame = coordinates(64, 64)
    corners, spans = set(), []
    for seed in range(300):
        result = augment(
            Sample({"lidar": frame}, np.zeros((64, 64), np.uint8)),
            modalities=[LIDAR],
            augment=Augment(flip=0),
            size=32,
            rng=rng(seed),
        )
        assert result.label is not None
        rows = result.frames["lidar"][..., 0][result.label != 255]
        spans.append(64 / (rows.max() - rows.min() + 1) if (result.label != 255).all() else 0.5)
        corners.add((bool(rows.min() < 2), bool(rows.max() > 60)))
    assert min(spans) < 0.6 and max(spans) > 1.8
    assert corners == {(True, True), (True, False), (False, True), (False, False)}


def test_labels_never_get_values_that_were_not_there() -> None:
    label = rng().choice(np.array([3, 17, 255], np.uint8), (50, 50))
    frame = np.zeros((50, 50, 3), np.uint8)
    for seed in range(20):
        result = augment(Sample({"img": frame}, label), modalities=[RGB], augment=Augment(), size=32, rng=rng(seed))
        assert set(np.unique(result.label)) <= {3, 17, 255}


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2000)])
def test_frames_of_any_shape_can_be_cropped_and_predicted(shape: tuple[int, int]) -> None:
    sample = Sample({"img": np.zeros((*shape, 3), np.uint8)}, np.zeros(shape, np.uint8))
    result = augment(sample, modalities=[RGB], augment=Augment(), size=64, rng=rng())
    assert result.size == (64, 64)
    predicted = for_prediction(sample, modalities=[RGB], size=64)
    assert min(predicted.size) == 64 and max(predicted.size) <= 8 * 64


@pytest.mark.parametrize(
    ("native", "size", "expected"),
    [
        ((1042, 1042), 1024, (1024, 1024)),
        ((376, 1408), 376, (384, 1408)),
        ((432, 623), 480, (480, 704)),
        ((480, 640), 480, (480, 640)),
        ((600, 800), 800, (800, 1088)),
        ((97, 131), 64, (64, 96)),
    ],
)
def test_the_published_sizes(native: tuple[int, int], size: int, expected: tuple[int, int]) -> None:
    sample = Sample({"img": np.zeros((*native, 3), np.uint8)}, np.zeros(native, np.uint8))
    scored = for_scoring(sample, modalities=[RGB], size=size, crop=None)
    assert scored.size == expected
    assert scored.label is not None and scored.label.shape == expected
    whole = for_prediction(sample, modalities=[RGB], size=size)
    assert whole.size == expected
    assert whole.label is sample.label


def test_scoring_and_prediction_give_the_same_frames() -> None:
    sample = Sample({"img": rng().integers(0, 256, (50, 70, 3), dtype=np.uint8)}, np.zeros((50, 70), np.uint8))
    scored = for_scoring(sample, modalities=[RGB], size=64, crop=None)
    whole = for_prediction(sample, modalities=[RGB], size=64)
    np.testing.assert_array_equal(scored.frames["img"], whole.frames["img"])


def test_a_label_is_resized_twice_like_its_image() -> None:
    label = np.arange(623, dtype=np.int32)[None].repeat(432, axis=0)
    scored = for_scoring(
        Sample({"img": np.zeros((432, 623, 3), np.uint8)}, label), modalities=[RGB], size=480, crop=None
    )
    first = np.arange(692) * 623 // 692
    assert scored.label is not None
    np.testing.assert_array_equal(scored.label[0], first[np.arange(704) * 692 // 704])


def test_mcubes_scores_columns_196_to_1219() -> None:
    columns = np.arange(1224, dtype=np.uint16)[None].repeat(1024, axis=0)
    scored = for_scoring(
        Sample({"img": np.stack([columns] * 3, axis=-1)}, columns), modalities=[RGB], size=1024, crop=MCUBES
    )
    assert scored.label is not None
    assert (scored.size, scored.label[0, 0], scored.label[0, -1]) == ((1024, 1024), 196, 1219)
    np.testing.assert_array_equal(scored.frames["img"][..., 0], scored.label)


def test_the_left_crop_scales_with_the_height_and_the_square_with_the_size() -> None:
    sample = Sample({"img": np.zeros((128, 153, 3), np.uint8)}, np.zeros((128, 153), np.uint8))
    assert without_left(sample, MCUBES).size == (128, 129)
    assert without_left(sample, None) is sample
    assert for_scoring(sample, modalities=[RGB], size=64, crop=MCUBES).size == (64, 64)


def test_a_frame_without_columns_left_is_refused() -> None:
    sample = Sample({"img": np.zeros((1024, 192, 3), np.uint8)}, None)
    with pytest.raises(DataError, match="nothing left after the 192 columns"):
        without_left(sample, MCUBES)


def test_the_interpolation_of_the_modality_is_respected() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[::2] = 200
    sample = Sample({"depth": frame, "lidar": frame}, None)
    result = for_prediction(sample, modalities=[DEPTH, LIDAR], size=32)
    assert set(np.unique(result.frames["lidar"])) == {0, 200}
    assert len(np.unique(result.frames["depth"])) > 2


def test_tensors_by_hand() -> None:
    pixel = np.array([[[255, 0, 51]]], np.uint8)
    tensor = to_tensor(pixel, RGB)
    assert tensor.shape == (3, 1, 1) and tensor.is_contiguous()
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(tensor.flatten(), torch.tensor(expected))
    torch.testing.assert_close(to_tensor(pixel, DEPTH).flatten(), torch.tensor([1, 0, 0.2]))
    deep = np.array([[[65535, 0, 13107]]], np.uint16)
    torch.testing.assert_close(to_tensor(deep, DEPTH).flatten(), torch.tensor([1, 0, 0.2]))
    stored = np.array([[[-0.5, 2.0, 0.25]]], np.float32)
    torch.testing.assert_close(to_tensor(stored, DEPTH).flatten(), torch.tensor([-0.5, 2.0, 0.25]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_scale_and_offset_decide_before_mean_and_std(dtype: type) -> None:
    modality = Modality(name="d", kind="depth", scale=0.5, offset=-3, mean=(1, 2, 3), std=(2, 2, 2))
    tensor = to_tensor(np.array([[[10, 20, 0]]], dtype), modality)
    torch.testing.assert_close(tensor.flatten(), torch.tensor([(2 - 1) / 2, (7 - 2) / 2, (-3 - 3) / 2]))


def test_an_offset_alone_follows_the_dtypes_scale() -> None:
    modality = Modality(name="d", kind="depth", offset=-0.5)
    torch.testing.assert_close(
        to_tensor(np.array([[[255, 0, 51]]], np.uint8), modality).flatten(), torch.tensor([0.5, -0.5, -0.3])
    )


def test_planes_are_scaled_exactly_as_triples_would_be() -> None:
    for dtype in (np.uint8, np.uint16):
        frame = rng(3).integers(0, np.iinfo(dtype).max + 1, (17, 23, 3), dtype=dtype)
        values = (frame.astype(np.float32) / np.float32(np.iinfo(dtype).max) - np.float32(RGB.mean)) / np.float32(
            RGB.std
        )
        np.testing.assert_array_equal(to_tensor(frame, RGB).numpy(), values.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("dtype", "values", "stored"),
    [
        (np.uint16, {"scale": 1 / 150, "offset": -100.0}, 15000),
        (np.float32, {"scale": 0.5, "offset": -3.0}, 6.0),
        (np.uint8, {"offset": 0.25}, 0),
        (np.uint8, {"scale": 0.001}, 0),
    ],
)
def test_padding_means_0_whatever_the_scale(dtype: type, values: dict[str, float], stored: float) -> None:
    modality = Modality.model_validate({"name": "d", "kind": "lidar", **values})
    half = Augment(flip=0, jitter=0, blur=0, scale=(0.5, 0.5))
    sample = Sample({"d": np.full((20, 20, 3), 7, dtype)}, None)
    frame = augment(sample, modalities=[modality], augment=half, size=32, rng=rng()).frames["d"]
    assert frame.dtype == dtype
    np.testing.assert_array_equal(frame[16:], np.full((16, 32, 3), stored, dtype))
    np.testing.assert_array_equal(frame[:16, :16], np.full((16, 16, 3), 7, dtype))


def turned(frame: np.ndarray, modality: Modality, *, degrees: float, size: int, **more: Any) -> Sample:
    """A frame that is turned by exactly this, and whose label is its first channel."""
    plain = Augment(flip=0, jitter=0, blur=0, scale=(1, 1), rotate=abs(degrees), **more)
    draw = Draw(*[0.0] * 10, rotate=1.0 if degrees > 0 else 0.0, stretch=0.5)
    sample = Sample({modality.name: frame}, frame[:, :, 0].astype(np.uint8))
    return _resized_crop(sample, modalities=[modality], augment=plain, size=size, draw=draw)


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_quarter_turns_are_counterclockwise_and_lose_nothing(degrees: float, turns: int) -> None:
    frame = coordinates(32, 32)
    for modality in (DEPTH, DEPTH.model_copy(update={"interpolation": "nearest"})):
        found = turned(frame, modality, degrees=degrees, size=32)
        np.testing.assert_allclose(found.frames["depth"], np.rot90(frame, turns), atol=1e-5)
        np.testing.assert_array_equal(found.label, np.rot90(frame[:, :, 0], turns))


def test_labels_turn_as_frames_do_and_what_lies_outside_is_ignored() -> None:
    frame = np.full((64, 64, 3), 9, np.uint8)
    frame[8:24, 40:56] = 200
    found = turned(frame, DEPTH, degrees=30, size=64)
    assert found.label is not None
    assert found.label[0, 0] == found.label[63, 63] == 255 and not found.frames["depth"][0, 0].any()
    outside = found.label == 255
    # A square and itself turned by θ share 2 / (1 + sin θ + cos θ) of their area: 0.845.
    assert outside.mean() == pytest.approx(0.155, abs=0.02)
    inside = ~outside
    near = found.frames["depth"][:, :, 0].astype(int)[inside] - found.label[inside]
    assert np.mean(np.abs(near) > 100) < 0.02  # only at edges do a blend and a label differ
    y, x = (float(each.mean()) for each in np.nonzero(found.label == 200))
    # The patch's middle (47.5, 15.5) is (16, −16) from (31.5, 31.5); turned: (16 cos − 16 sin, −16 sin − 16 cos).
    assert (x, y) == (pytest.approx(31.5 + 16 * (0.866 - 0.5), abs=0.5), pytest.approx(31.5 - 16 * 1.366, abs=0.5))


@pytest.mark.parametrize("turn", [1, 2, -2])
def test_angles_turn_with_the_picture_as_their_card_says(turn: int) -> None:
    """40°, stored once as floats and once in 16 bits, in a picture that turns by 30°."""
    angle, wanted = np.radians(40), np.radians(40 + turn * 30)
    stored = np.broadcast_to([np.sin(angle), np.cos(angle), np.sin(angle)], (33, 33, 3)).astype(np.float32)
    modality = Modality(name="aolp", kind="angle", flip="negate_sine", turn=turn)
    found = turned(stored, modality, degrees=30, size=33).frames["aolp"][16, 16]
    np.testing.assert_allclose(found, [np.sin(wanted), np.cos(wanted), np.sin(wanted)], atol=1e-5)
    whole = np.rint((stored + 1) * 65535 / 2).astype(np.uint16)
    bits = modality.model_copy(update={"scale": 2 / 65535, "offset": -1.0})
    found = turned(whole, bits, degrees=30, size=33).frames["aolp"][16, 16] * (2 / 65535) - 1
    np.testing.assert_allclose(found, [np.sin(wanted), np.cos(wanted), np.sin(wanted)], atol=1e-4)
    still = turned(stored, modality.model_copy(update={"turn": None}), degrees=30, size=33).frames["aolp"][16, 16]
    np.testing.assert_allclose(still, stored[0, 0], atol=1e-6)
    with pytest.raises(DataError, match="modality 'aolp': turn needs uint16 values whose range is symmetric about 0"):
        turned(whole, modality, degrees=30, size=33)


def test_nodata_turns_with_the_picture_and_bare_corners_of_a_measured_sensor_are_none() -> None:
    """A modality with its own mean is padded with no measurement; one without, with 0."""
    own = Modality(name="depth", kind="depth", mean=(1.0,) * 3, std=(1.0,) * 3)
    frame, gaps = np.full((64, 64, 3), 700, np.uint16), np.zeros((64, 64, 3), bool)
    frame[20:30, 20:30], gaps[20:30, 20:30] = 0, True
    augments = Augment(flip=0, jitter=0, blur=0, scale=(1, 1), rotate=45)
    for modality, is_own in ((own, True), (DEPTH, False)):
        result = _resized_crop(
            Sample({"depth": frame}, None, {"depth": gaps}), modalities=[modality], augment=augments, size=64,
            draw=Draw(*[0.0] * 10, rotate=1.0, stretch=0.5),
        )  # fmt: skip
        lost = result.invalid["depth"]
        assert lost[0, 0].all() == is_own and lost[32, 32].sum() == 0
        middle = lost[16:48, 8:40, 0]  # (24.5, 24.5) turned by 45° about (31.5, 31.5): (21.6, 31.5)
        assert middle.sum() == pytest.approx(100, abs=8)  # a square of 10 × 10
        assert set(np.unique(result.frames["depth"])) == {0, 700}  # no value is blended with what is none


def test_stretching_keeps_the_area_and_covers_its_range() -> None:
    frame, ratios = coordinates(64, 64), []
    for share in (0.0, 0.5, 1.0):
        draw = Draw(*[0.0] * 10, rotate=0.5, stretch=share)
        augments = Augment(flip=0, jitter=0, blur=0, scale=(0.5, 0.5), stretch=(0.5, 2.0))
        result = _resized_crop(
            Sample({"depth": frame}, np.zeros((64, 64), np.uint8)), modalities=[DEPTH], augment=augments, size=64,
            draw=draw,
        )  # fmt: skip
        assert result.label is not None
        seen = result.label == 0
        height, width = seen[:, 0].sum(), seen[0].sum()
        ratios.append(width / height)
        assert height * width == pytest.approx(32 * 32, rel=0.03)
    np.testing.assert_allclose(ratios, [0.5, 1, 2], rtol=0.03)
