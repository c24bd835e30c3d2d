from __future__ import annotations

import numpy as np

from memorysam_cli.streetworld import recordings


def test_motion_blur_smears_sideways_and_keeps_the_light():
    light = np.zeros((96, 96, 3), np.float32)
    light[48, 48] = 1
    blurred = recordings.motion_blur(light)
    np.testing.assert_allclose(blurred.sum(axis=(0, 1)), [1, 1, 1], rtol=1e-5)
    rows, columns = np.nonzero(blurred[..., 0])
    assert np.ptp(columns) == 8 and np.ptp(rows) == 2  # A twelfth of 96 px, made odd.


def test_motion_blur_leaves_an_even_picture_as_it_is():
    light = np.full((60, 60, 3), 0.4, np.float32)
    np.testing.assert_allclose(recordings.motion_blur(light), light, rtol=1e-5)


def test_jitter_displaces_nearly_every_point_by_a_few_pixels():
    rng = np.random.Generator(np.random.PCG64(2))
    row, column = rng.integers(0, 500, (2, 1000))
    new_row, new_column = recordings.jitter_points(row, column, height=500, rng=rng)
    away = np.hypot(new_row - row, new_column - column)
    assert (away > 0).mean() > 0.97 and 5 < np.median(away) < 20 and away.max() < 80
    assert new_row.dtype == new_column.dtype == np.int64


def test_jitter_of_no_points_is_no_points():
    nothing = np.zeros(0, np.int64)
    rows, columns = recordings.jitter_points(nothing, nothing, height=64, rng=np.random.Generator(np.random.PCG64(0)))
    assert rows.shape == columns.shape == (0,)


def test_low_resolution_is_a_quarter_of_each_side_with_the_same_values():
    event = np.random.Generator(np.random.PCG64(1)).choice(np.array([0, 255], np.uint8), (40, 48, 3))
    small = recordings.low_resolution(event)
    assert small.shape == (10, 12, 3)
    np.testing.assert_array_equal(small, event[::4, ::4])
