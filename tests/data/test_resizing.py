from __future__ import annotations

import numpy as np
import pytest
import torch

from memorysam_cli.data.transforms import resize_bilinear, resize_nearest


def test_nearest_takes_the_floor_by_hand() -> None:
    row = np.array([[10, 20, 30]], np.uint8)
    np.testing.assert_array_equal(resize_nearest(row, height=1, width=5), [[10, 10, 20, 20, 30]])
    np.testing.assert_array_equal(resize_nearest(row, height=2, width=2), [[10, 20], [10, 20]])


@pytest.mark.parametrize(("source", "target"), [(1042, 1024), (376, 384), (623, 704), (7, 3), (5, 160)])
def test_nearest_equals_torchs_nearest(source: int, target: int) -> None:
    values = np.arange(source, dtype=np.float32)[None]
    ours = resize_nearest(values, height=1, width=target)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(values)[None], size=target, mode="nearest")[0]
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_nearest_never_invents_a_value() -> None:
    label = np.random.Generator(np.random.PCG64(1)).choice(np.array([3, 7, 255], np.uint8), (37, 53))
    assert set(np.unique(resize_nearest(label, height=101, width=29))) == {3, 7, 255}


def test_bilinear_works_between_pixel_centers_by_hand() -> None:
    row = np.array([[[0.0] * 3, [1.0] * 3]], np.float32)
    np.testing.assert_allclose(resize_bilinear(row, height=1, width=4)[0, :, 0], [0, 0.25, 0.75, 1], atol=1e-7)


def test_antialiasing_by_hand() -> None:
    row = np.zeros((1, 8, 3), np.float32)
    row[0, 3] = 8.0
    # Without: halving reads pixels 2k and 2k+1 alone, (0 + 8) / 2.
    np.testing.assert_allclose(resize_bilinear(row, height=1, width=4)[0, :, 0], [0, 4, 0, 0])
    # With: a triangle of twice the width; pixel 3 is 0.5 from the center of result 1, and 1.5 from that of result 2,
    # so that it weighs 1 − 0.5/2 and 1 − 1.5/2 of a sum of 2.
    smooth = resize_bilinear(row, height=1, width=4, antialias=True)
    np.testing.assert_allclose(smooth[0, :, 0], [0, 8 * 0.75 / 2, 8 * 0.25 / 2, 0], atol=1e-6)


TOLERANCE = {np.uint8: 1, np.uint16: 8, np.float32: 1e-3}
"""Of values up to 255, 65535, 255: where float32's own noise crosses a half, and then one step."""


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("target", [(31, 47), (64, 64), (200, 90), (49, 140), (16, 17)])
def test_bilinear_equals_torchs_on_float32_with_rounding(target: tuple[int, int], dtype: type, antialias: bool) -> None:
    full = 65535 if dtype == np.uint16 else 255
    frame = np.random.Generator(np.random.PCG64(2)).integers(0, full + 1, (50, 70, 3)).astype(dtype)
    values = torch.from_numpy(frame.astype(np.float32).transpose(2, 0, 1))[None]
    theirs = torch.nn.functional.interpolate(values, size=target, mode="bilinear", antialias=antialias)[0]
    wanted = (theirs if dtype == np.float32 else theirs.round()).numpy().transpose(1, 2, 0)
    found = resize_bilinear(frame, height=target[0], width=target[1], antialias=antialias)
    difference = np.abs(found.astype(np.float64) - wanted)
    assert found.dtype == dtype and difference.max() <= TOLERANCE[dtype]
    if dtype == np.uint8:
        assert (difference > 0).mean() < 0.01  # exact halves; OpenCV's own 8-bit arithmetic: 0.13, all of them too low


def weights(source: int, target: int, *, antialias: bool) -> np.ndarray:
    """(target, source): how much each pixel of a line counts, a triangle around the result's center."""
    scale = source / target
    reach = max(scale, 1.0) if antialias else 1.0
    center = (np.arange(target)[:, None] + 0.5) * scale - 0.5
    if not antialias:
        center = center.clip(0, source - 1)  # the border's own pixel counts alone
    triangle = (1 - np.abs(np.arange(source) - center) / reach).clip(min=0)
    return triangle / triangle.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("target", [(512, 512), (300, 530), (1042, 401)])
def test_8_bit_values_are_rounded_to_the_nearest(target: tuple[int, int], antialias: bool) -> None:
    frame = np.random.Generator(np.random.PCG64(5)).integers(0, 256, (521, 523, 3), np.uint8)
    rows, columns = (
        weights(source, side, antialias=antialias and side < source)
        for source, side in zip(frame.shape[:2], target, strict=True)
    )
    exact = np.stack([rows @ frame[..., channel] @ columns.T for channel in range(3)], axis=-1)
    difference = resize_bilinear(frame, height=target[0], width=target[1], antialias=antialias) - exact
    assert np.abs(difference).max() < 0.51  # float32's noise
    assert abs(difference.mean()) < 3e-3  # a rounding error is 0 on average; INTER_LINEAR on 8 bits: −0.13


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_dtype_stays_and_the_right_size_is_the_identity(dtype: type) -> None:
    frame = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (9, 11, 3)).astype(dtype)
    assert resize_bilinear(frame, height=9, width=11) is frame
    assert resize_nearest(frame, height=9, width=11) is frame
    assert resize_bilinear(frame, height=5, width=30).dtype == dtype
    assert resize_bilinear(frame, height=9, width=11, antialias=True) is frame
    assert resize_bilinear(frame, height=5, width=30, antialias=True).dtype == dtype
    assert resize_nearest(frame, height=5, width=30).dtype == dtype


def test_8_bit_values_are_rounded_not_truncated() -> None:
    row = np.zeros((1, 2, 3), np.uint8)
    row[0, 1] = 255
    np.testing.assert_array_equal(resize_bilinear(row, height=1, width=4)[0, :, 0], [0, 64, 191, 255])


def test_a_mirrored_view_can_be_resized() -> None:
    frame = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)[:, ::-1]
    np.testing.assert_array_equal(
        resize_bilinear(frame, height=4, width=8), resize_bilinear(frame.copy(), height=4, width=8)
    )
