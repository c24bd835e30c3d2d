from __future__ import annotations

import numpy as np
import pytest

from memorysam_cli.streetworld import recordings
from memorysam_cli.streetworld.geometry import Spot, pack
from memorysam_cli.streetworld.light import WEATHER
from memorysam_cli.streetworld.surfaces import Label
from memorysam_cli.streetworld.world import Surface, survey

CLOUD = WEATHER["cloud"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.fixture
def surface(straight_street, level_camera, box) -> Surface:
    """A box 9 m ahead on a straight street, seen level from 1.5 m above the road."""
    return survey(level_camera, straight_street, pack([box(Spot(0, 10), (2, 2, 3))]), salt=1)


def test_the_depth_code_is_the_logarithm_written_in_its_description(surface):
    code = recordings.depth_code(surface)
    assert code.dtype == np.uint8 and code.shape == (64, 64, 3)
    assert code[32, 32].tolist() == [round(255 * np.log(10) / np.log(1001))] * 3
    assert (code[surface.is_sky] == 255).all() and code[~surface.is_sky].max() < 255


def test_hha_is_disparity_height_and_angle_by_hand(surface):
    code = recordings.hha(surface)
    # The box's front: 9 m away, upright; half a pixel below the lens that is 1.43 m above the road.
    assert code[32, 32].tolist() == [
        round(255 * (1.8 / 9) ** 0.5),
        round(255 * (1.68 / 25.25) ** 0.5),
        128,
    ]
    # The road in row 60: 1.5 / (28.5 / 64) m away, height 0, level.
    assert code[60, 26].tolist() == [round(255 * (1.8 / 3.368) ** 0.5), round(255 * (0.25 / 25.25) ** 0.5), 0]
    assert not code[surface.is_sky].any()


def test_hha_tells_a_sidewalk_from_the_road_by_its_height(surface):
    code = recordings.hha(surface)
    road, sidewalk = (code[..., 1][surface.label == label] for label in (Label.ROAD, Label.SIDEWALK))
    assert road.max() + 4 <= sidewalk.min()  # The face of the curb lies between.
    assert np.median(sidewalk) >= road.max() + 8


def test_lidar_codes_the_range_at_its_points_and_is_black_elsewhere(surface):
    points = recordings.scan(surface, CLOUD, rng=rng())
    frame = recordings.lidar(points, surface, case=None, rng=rng())
    hit = np.zeros((64, 64), bool)
    hit[points.row, points.column] = True
    np.testing.assert_array_equal(frame.any(axis=-1), hit)
    assert 0.05 < hit.mean() < 0.6
    row, column = points.row[0], points.column[0]
    ray = surface.camera.rays[:, row, column]
    expected = 255 * np.exp(-surface.depth[row, column] * np.linalg.norm(ray) / 50)
    assert frame[row, column].tolist() == [pytest.approx(expected, abs=0.51)] * 3


def test_lidar_never_hits_the_sky_and_never_beyond_its_range(surface):
    points = recordings.scan(surface, CLOUD, rng=rng())
    assert not surface.is_sky[points.row, points.column].any()
    assert points.range_m.max() < recordings.LIDAR_RANGE_M


def test_fog_swallows_lidar_points_most_of_all_far_ones(surface):
    clear, foggy = (recordings.scan(surface, WEATHER[name], rng=rng()).range_m for name in ("cloud", "fog"))
    assert len(foggy) < 0.9 * len(clear)
    assert (foggy > 20).sum() / (clear > 20).sum() < 0.8 * (foggy < 6).sum() / (clear < 6).sum()


def test_points_grow_in_large_frames(straight_street, box):
    from memorysam_cli.streetworld.geometry import Camera

    camera = Camera(Spot(0, 0, 1.5), 0.0, 400, 400, focal=1.0)
    surface = survey(camera, straight_street, pack([box(Spot(0, 10), (2, 2, 3))]), salt=1)
    points = recordings.scan(surface, CLOUD, rng=rng())
    frame = recordings.lidar(points, surface, case=None, rng=rng())
    assert frame[..., 0].astype(bool).sum() > 7 * len(points.row)


def test_events_are_red_where_it_grew_brighter_and_blue_where_darker():
    before = np.full((8, 8, 3), 0.2, np.float32)
    after = before.copy()
    after[2, 2], after[5, 5] = 0.5, 0.05
    frame = recordings.event(before, after, CLOUD, case=None, rng=rng())
    assert frame[2, 2].tolist() == [255, 0, 0] and frame[5, 5].tolist() == [0, 0, 255]
    assert np.count_nonzero(frame.any(axis=-1)) == 2


def test_nothing_moves_means_no_events_by_day_and_few_by_night():
    still = np.full((200, 200, 3), 0.2, np.float32)
    counts = {
        name: (recordings.event(still, still, WEATHER[name], case=None, rng=rng()) > 0).any(axis=-1).mean()
        for name in ("cloud", "night")
    }
    assert counts["cloud"] < 0.002 < counts["night"] < 0.1


def test_exposure_failures_push_the_picture_to_its_ends(surface):
    light = np.full((64, 64, 3), 0.3, np.float32)
    mean = {
        case: recordings.picture(light, surface, CLOUD, case=case, rng=rng()).mean()
        for case in (None, "overexposure", "underexposure")
    }
    assert mean["overexposure"] > 0.93 and 0.4 < mean[None] < 0.8 and mean["underexposure"] < 0.25


@pytest.mark.parametrize("case", [None, "overexposure", "underexposure", "motionblur"])
def test_a_picture_stays_within_its_range(surface, case):
    light = rng(5).gamma(1.0, 0.5, (64, 64, 3)).astype(np.float32)
    coded = recordings.picture(light, surface, WEATHER["night"], case=case, rng=rng())
    assert coded.min() >= 0 and coded.max() <= 1 and coded.dtype == np.float32


def test_softened_edges_leave_the_insides_alone():
    light = rng(2).random((20, 20, 3)).astype(np.float32)
    tag = np.zeros((20, 20), np.int32)
    np.testing.assert_array_equal(recordings.smooth_edges(light, tag), light)
    tag[:, 10:] = 1
    changed = (recordings.smooth_edges(light, tag) != light).any(axis=(0, 2))
    assert np.flatnonzero(changed).tolist() == [9, 10]


def test_the_label_is_in_the_first_channel(surface):
    frame = recordings.semantic(surface)
    assert frame.shape == (64, 64, 4) and frame.dtype == np.uint8
    assert frame[32, 32].tolist() == [Label.STATIC, 0, 0, 255]
    np.testing.assert_array_equal(frame[..., 0], surface.label)
