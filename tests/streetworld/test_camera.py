from __future__ import annotations

import numpy as np
import pytest

from memorysam_cli.streetworld import geometry
from memorysam_cli.streetworld.geometry import Camera, Shape, Spot, cast, frames_of, pack
from memorysam_cli.streetworld.world import build_world


def empty(camera: Camera) -> np.ndarray:
    return np.full((camera.height, camera.width), np.inf, np.float32)


def drawn(camera: Camera, *solids) -> tuple[np.ndarray, np.ndarray]:
    depth = empty(camera)
    return depth, cast(camera, pack(solids), depth)


def test_rays_have_a_forward_part_of_one_and_look_where_the_camera_does():
    camera = Camera(Spot(0, 0, 1, yaw=0.3), -0.2, 8, 8, focal=1.0)
    forward = np.einsum("chw,c->hw", camera.rays, camera.axes[2])
    np.testing.assert_allclose(forward, 1, rtol=1e-6)
    np.testing.assert_allclose(camera.rays.mean(axis=(1, 2)), camera.axes[2], atol=1e-6)
    np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-6)


def test_a_box_is_met_at_its_front_and_covers_the_pixels_worked_out_by_hand(level_camera, box):
    # Front at 9 m; 2 m wide: 64 / 9 = 7.1 px to each side; from 1.5 m below the lens to 1.5 m above: 10.7 px.
    depth, index = drawn(level_camera, box(Spot(0, 10), (2, 2, 3)))
    np.testing.assert_allclose(depth[32, 32], 9, rtol=1e-5)
    rows, columns = np.nonzero(index == 0)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (21, 42, 25, 38)


@pytest.mark.parametrize(("shape", "depth_at_middle"), [(Shape.ELLIPSOID, 9.0), (Shape.CYLINDER, 9.0)])
def test_round_bodies_are_met_at_their_nearest_point_and_lack_the_corners(level_camera, box, shape, depth_at_middle):
    depth, index = drawn(level_camera, box(Spot(0, 10), (2, 2, 3), shape=shape))
    np.testing.assert_allclose(depth[32, 32], depth_at_middle, atol=0.01)
    assert depth[32, 38] > depth_at_middle + 0.3  # Bulging: the side is farther away.
    assert (index[22, 26] == -1) == (shape == Shape.ELLIPSOID)


def test_a_cylinder_seen_from_above_shows_its_top(box):
    above = Camera(Spot(0, 0, 10), -np.pi / 2 + 1e-4, 32, 32, focal=1.0)
    depth, index = drawn(above, box(Spot(0, 0), (2, 2, 3), shape=Shape.CYLINDER))
    assert index[16, 16] == 0
    np.testing.assert_allclose(depth[16, 16], 7, atol=0.02)


def test_a_tapered_box_narrows_towards_its_top_along_its_heading_alone(level_camera, box):
    beside = box(Spot(0, 10, yaw=np.pi / 2), (2, 4, 3), taper=1.0)  # Seen from its side: a triangle.
    _, index = drawn(level_camera, beside)
    widths = (index == 0).sum(axis=1)
    top, bottom = np.flatnonzero(widths)[[0, -1]]
    assert widths[top] <= 2 and widths[bottom] >= 26
    assert (np.diff(widths[top : bottom + 1]) >= 0).all()
    _, front = drawn(level_camera, box(Spot(0, 10), (2, 4, 3), taper=1.0))
    assert len(set((front == 0).sum(axis=1)[25:40])) <= 4  # From the front it stays about as wide.


def test_the_nearer_body_hides_the_farther_in_any_order(level_camera, box):
    near, far = box(Spot(0, 10), (1, 1, 3)), box(Spot(0, 20), (8, 1, 6))
    depth, index = drawn(level_camera, near, far)
    swapped_depth, swapped_index = drawn(level_camera, far, near)
    assert index[32, 32] == 0 and swapped_index[32, 32] == 1 and (index == 1).any()
    np.testing.assert_array_equal(depth, swapped_depth)


def test_a_body_behind_what_is_drawn_already_changes_nothing(level_camera, box):
    depth = np.full((64, 64), 5, np.float32)
    index = cast(level_camera, pack([box(Spot(0, 10), (2, 2, 3))]), depth)
    assert (index == -1).all() and (depth == 5).all()


def test_what_is_behind_the_camera_is_not_drawn_and_what_reaches_beside_it_is(level_camera, box):
    _, behind = drawn(level_camera, box(Spot(0, -10), (4, 4, 4)))
    assert (behind == -1).all()
    depth, wall = drawn(level_camera, box(Spot(2, 0), (0.2, 60, 4)))
    assert (wall[32, 33:] == 0).sum() > 20 and (wall[:, :32] == -1).all()
    np.testing.assert_allclose(depth[32, 63], 1.9 / (31.5 / 64), rtol=1e-4)


def test_windows_leave_out_no_pixel_that_a_body_covers(monkeypatch):
    for seed in range(3):
        world = build_world(np.random.Generator(np.random.PCG64(seed)))
        camera = world.camera(frame=0, height=48, width=56)
        depth, index = (array := empty(camera)), cast(camera, world.solids, array)
        with monkeypatch.context() as patch:
            count = len(world.solids.shape)
            whole = np.tile([0, camera.height, 0, camera.width], (count, 1))
            patch.setattr(geometry, "frames_of", lambda *_, whole=whole, count=count: (whole, np.zeros(count)))
            every = empty(camera)
            np.testing.assert_array_equal(cast(camera, world.solids, every), index)
        np.testing.assert_array_equal(every, depth)


def test_frames_of_gives_the_nearest_depth_of_a_body(level_camera, box):
    frames, nearest = frames_of(level_camera, pack([box(Spot(0, 10), (2, 2, 3))]))
    assert frames.tolist() == [[21, 43, 25, 39]]
    np.testing.assert_allclose(nearest, [9], rtol=1e-6)


def test_points_lie_on_the_body_that_was_met(level_camera, box):
    depth, index = drawn(level_camera, box(Spot(0, 10), (2, 2, 3)))
    points = level_camera.points(np.where(index == 0, depth, 0))[:, index == 0]
    np.testing.assert_allclose(points[1], 9, atol=1e-4)
