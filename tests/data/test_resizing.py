from __future__ import annotations

import cv2
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


def test_bilinear_works_between_pixel_centres_by_hand() -> None:
    row = np.array([[[0.0] * 3, [1.0] * 3]], np.float32)
    np.testing.assert_allclose(resize_bilinear(row, height=1, width=4)[0, :, 0], [0, 0.25, 0.75, 1], atol=1e-7)


def test_bilinear_does_not_antialias() -> None:
    row = np.zeros((1, 8, 3), np.float32)
    row[0, 3] = 8.0  # halving reads pixels 2k and 2k+1 alone: (0 + 8) / 2
    np.testing.assert_allclose(resize_bilinear(row, height=1, width=4)[0, :, 0], [0, 4, 0, 0])


@pytest.mark.parametrize("target", [(31, 47), (64, 64), (200, 90)])
def test_bilinear_equals_torchs_without_antialias(target: tuple[int, int]) -> None:
    frame = np.random.Generator(np.random.PCG64(2)).random((50, 70, 3), np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(frame.transpose(2, 0, 1))[None], size=target, mode="bilinear", antialias=False
    )[0]
    ours = torch.from_numpy(resize_bilinear(frame, height=target[0], width=target[1]).transpose(2, 0, 1))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_dtype_stays_and_the_right_size_is_the_identity(dtype: type) -> None:
    frame = np.random.Generator(np.random.PCG64(3)).integers(0, 256, (9, 11, 3)).astype(dtype)
    assert resize_bilinear(frame, height=9, width=11) is frame
    assert resize_nearest(frame, height=9, width=11) is frame
    assert resize_bilinear(frame, height=5, width=30).dtype == dtype
    assert resize_nearest(frame, height=5, width=30).dtype == dtype


def test_8_bit_values_are_rounded_not_truncated() -> None:
    row = np.zeros((1, 2, 3), np.uint8)
    row[0, 1] = 255
    assert cv2.INTER_LINEAR == 1
    np.testing.assert_array_equal(resize_bilinear(row, height=1, width=4)[0, :, 0], [0, 64, 191, 255])


def test_a_mirrored_view_can_be_resized() -> None:
    frame = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)[:, ::-1]
    np.testing.assert_array_equal(
        resize_bilinear(frame, height=4, width=8), resize_bilinear(frame.copy(), height=4, width=8)
    )
