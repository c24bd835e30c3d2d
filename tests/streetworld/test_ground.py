from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from memorysam_cli.streetworld.geometry import Camera, Spot
from memorysam_cli.streetworld.street import FARTHEST, Crossing, GroundKind


def lies(ground, *places) -> list[GroundKind]:
    x, y = np.array(places, np.float32).T
    return [GroundKind(zone) for zone in ground.zone_at(x, y)]


def test_zones_lie_where_the_strips_say(straight_street):
    assert lies(straight_street, (-9, 4), (-4, 4), (1, 4), (4, 4), (9, 4)) == [
        GroundKind.GREEN,
        GroundKind.SIDEWALK,
        GroundKind.ROAD,
        GroundKind.SIDEWALK,
        GroundKind.GREEN,
    ]


def test_paint_runs_dashed_in_the_middle_and_solid_at_the_edges(straight_street):
    assert lies(straight_street, (0, 1), (0, 4), (2.65, 1), (2.65, 4), (-2.65, 4)) == [
        GroundKind.PAINT,
        GroundKind.ROAD,
        GroundKind.PAINT,
        GroundKind.PAINT,
        GroundKind.PAINT,
    ]


def test_a_crossing_turns_sidewalk_and_grass_into_road_and_has_stripes_before_it(make_street):
    ground = make_street(crossing=Crossing(30.0, 4.0))
    assert lies(ground, (4, 30), (9, 30), (9, 35)) == [GroundKind.ROAD, GroundKind.ROAD, GroundKind.SIDEWALK]
    stripes = lies(ground, *((x, 36) for x in np.arange(-2.9, 2.9, 0.1)))
    assert {GroundKind.PAINT, GroundKind.ROAD} == set(stripes) and 20 < stripes.count(GroundKind.PAINT) < 38


def test_the_road_is_met_at_the_depth_worked_out_by_hand(straight_street, level_camera):
    depth, zone = straight_street.intersect(level_camera)
    # Row 48 looks (48.5 - 32) / 64 m down per meter ahead: from 1.5 m that is 5.818 m.
    np.testing.assert_allclose(depth[48, 24], 1.5 / (16.5 / 64), rtol=1e-5)
    assert zone[48, 24] == GroundKind.ROAD
    assert np.isinf(depth[:32]).all() and np.isfinite(depth[33:]).all()


def test_a_raised_sidewalk_is_met_at_its_own_height(straight_street, level_camera):
    depth, zone = straight_street.intersect(level_camera)
    column = 60  # 28.5 / 64 m aside per meter ahead: 4.36 m where the ray meets the sidewalk, 5.03 m on the road.
    assert zone[40, column] == GroundKind.SIDEWALK
    np.testing.assert_allclose(depth[40, column], (1.5 - 0.2) / (8.5 / 64), rtol=1e-5)


def test_nothing_is_drawn_beyond_the_end(straight_street, level_camera):
    depth, _ = straight_street.intersect(level_camera)
    assert depth[np.isfinite(depth)].max() < FARTHEST


def test_a_camera_that_looks_up_sees_no_ground(straight_street):
    depth, _ = straight_street.intersect(Camera(Spot(0, 0, 1.5), 1.2, 16, 16, focal=1.0))
    assert np.isinf(depth).all()


def test_lie_and_zone_agree_away_from_paint(straight_street):
    places = [(-9.0, 4.0), (-4.0, 4.0), (1.0, 4.0), (4.0, 4.0)]
    assert [straight_street.kind_at(*place) for place in places] == lies(straight_street, *places)


@pytest.mark.parametrize("lateral", [-2.0, 0.0, 4.0])
def test_a_spot_on_a_bend_heads_along_the_street(straight_street, lateral):
    bent = replace(straight_street, bend=(6.0, 80.0))
    here, next_one = bent.spot(lateral, 40.0), bent.spot(lateral, 40.1)
    heading = np.arctan2(next_one.x - here.x, next_one.y - here.y)
    np.testing.assert_allclose(here.yaw, heading, atol=1e-3)
    assert abs(here.yaw) > 0.03


def test_lanes_lie_symmetrically(straight_street):
    assert straight_street.lane_middles() == [-1.5, 1.5]
