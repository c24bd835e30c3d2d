"""HHA on scenes whose geometry is known: a floor and a wall before a camera that is tilted."""

from __future__ import annotations

import numpy as np
import pytest

from memorysam_cli.data.own import hha
from memorysam_cli.data.own.hha import Camera, Encoding, Map

CAMERA = Camera(fx=120.0, fy=118.0, cx=79.5, cy=59.5)
SIZE = (120, 160)


def plane(normal: tuple[float, float, float], distance: float) -> Map:
    """Depth of the plane ``normal · P = distance``; 0 behind the camera."""
    across, down = hha.rays(SIZE, CAMERA)
    along = across * normal[0] + down * normal[1] + normal[2]
    depth: Map = np.where(along > 1e-6, distance / np.maximum(along, 1e-6), 0.0)
    return depth


def gravity(*, pitch: float, roll: float = 0.0) -> tuple[float, float, float]:
    """Down, for a camera that looks ``pitch`` degrees downwards and is rolled by ``roll`` degrees."""
    pitch, roll = np.radians(pitch), np.radians(roll)
    return float(np.sin(roll) * np.cos(pitch)), float(np.cos(roll) * np.cos(pitch)), float(np.sin(pitch))


def room(*, pitch: float, roll: float = 0.0, height: float = 1.5, wall: float = 3.0) -> tuple[Map, Map, Map]:
    """A floor ``height`` meters below and an upright wall ``wall`` meters before the camera: depth and both masks."""
    down = np.array(gravity(pitch=pitch, roll=roll))
    forwards = np.array([0.0, 0.0, 1.0]) - down[2] * down
    forwards /= np.linalg.norm(forwards)
    floor, upright = plane(tuple(down), height), plane(tuple(forwards), wall)
    floor[floor == 0], upright[upright == 0] = np.inf, np.inf
    depth = np.minimum(floor, upright)
    depth[np.isinf(depth)] = 0
    return depth, floor < upright, upright < floor


@pytest.mark.parametrize(("pitch", "roll"), [(5, 0), (20, 0), (35, 5), (10, -8), (0, 12)])
def test_gravity_is_found_under_a_tilted_camera(pitch: float, roll: float) -> None:
    depth, floor, _ = room(pitch=pitch, roll=roll)
    assert floor.mean() > 0.02
    found = hha.find_gravity(hha.surface_normals(depth, *hha.rays(SIZE, CAMERA)))
    angle = np.degrees(np.arccos(np.clip(np.dot(found, gravity(pitch=pitch, roll=roll)), -1, 1)))
    assert angle < 0.5


def test_normals_of_a_plane_are_exact_and_point_away_from_the_camera() -> None:
    normal = np.array([0.2, -0.5, 1.0]) / np.linalg.norm([0.2, -0.5, 1.0])
    depth = plane(tuple(normal), 2.0)
    found = hha.surface_normals(depth, *hha.rays(SIZE, CAMERA))
    np.testing.assert_allclose(found[depth > 0], np.broadcast_to(normal, found.shape)[depth > 0], atol=1e-7)


def test_floor_and_wall_have_the_written_values() -> None:
    depth, floor, wall = room(pitch=20)
    found = hha.encode(depth, CAMERA).astype(int)
    far_from_edge = np.zeros(SIZE, bool)
    far_from_edge[5:-5, 5:-5] = True
    inner_floor, inner_wall = floor & far_from_edge, wall & far_from_edge
    # Angle: 0 on the floor, 90 on the wall, plus 38; at the foot of the wall a window may see both.
    assert np.median(found[inner_floor, 2]) == 38 and np.median(found[inner_wall, 2]) == 128
    assert (abs(found[inner_floor, 2] - 38) <= 1).mean() > 0.9 and (abs(found[inner_wall, 2] - 128) <= 1).mean() > 0.9
    # Height: the floor is 0, the wall rises by 100 steps per meter.
    assert found[inner_floor, 1].max() <= 1
    across, down = hha.rays(SIZE, CAMERA)
    x, y, z = gravity(pitch=20)
    true_height = 1.5 - depth * (across * x + down * y + z)
    expected = np.clip(np.rint(100 * true_height), 0, 255)
    assert abs(found[..., 1] - expected).max() <= 1
    # Disparity: 31000 / centimeters.
    assert (found[..., 0] == np.clip(np.rint(310 / depth), 1, 255)).all()


def test_a_value_by_hand() -> None:
    depth = np.full(SIZE, 2.0)
    found = hha.encode(depth, CAMERA, Encoding(camera_height=1.0, gravity=(0, 2, 0)))
    assert found.dtype == np.uint8 and found.shape == (*SIZE, 3)
    # 310 / 2 = 155; on the axis a meter high: 100; a wall: 90 + 38. Row 59 is half a pixel above the axis.
    assert found[59, 80].tolist() == [155, 101, 128]


def test_a_ceiling_has_180_degrees() -> None:
    depth = plane((0.0, -1.0, 0.0), 1.0)
    found = hha.encode(depth, CAMERA, Encoding(gravity=hha.DOWN))
    assert (found[2:40, 20:-20, 2] == 218).all()


def test_what_is_not_measured_is_0_and_nothing_else_is() -> None:
    depth, _, _ = room(pitch=20)
    depth[10:30, 40:80] = 0
    found = hha.encode(depth, CAMERA)
    assert ((found == 0).all(axis=-1) == (depth == 0)).all()
    assert found[depth > 0, 0].min() >= 1


def test_nothing_measured_at_all_is_all_0() -> None:
    assert not hha.encode(np.zeros(SIZE), CAMERA).any()


def test_a_lonely_measurement_has_the_angle_of_a_wall() -> None:
    depth = np.zeros(SIZE)
    depth[60, 80] = 2.0
    assert hha.encode(depth, CAMERA)[60, 80].tolist() == [155, 129, 128]  # half a pixel below the axis


def test_measurements_in_one_row_fix_no_plane() -> None:
    depth = np.zeros(SIZE)
    depth[60] = 2.0
    assert np.isnan(hha.surface_normals(depth, *hha.rays(SIZE, CAMERA))).all()


def test_a_sparse_scan_gives_no_warning_and_every_measurement_a_code() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    depth = np.where(rng.random(SIZE) < 0.03, rng.uniform(1, 60, SIZE), 0)
    depth[50] = 3.0
    found = hha.encode(depth, CAMERA)
    assert ((found[..., 0] > 0) == (depth > 0)).all()


def test_an_edge_does_not_bend_the_surfaces_beside_it() -> None:
    depth = np.full(SIZE, 4.0)
    depth[:, 80:] = 1.5
    normals = hha.surface_normals(depth, *hha.rays(SIZE, CAMERA))
    np.testing.assert_allclose(normals[..., 2], 1.0, atol=1e-6)


def test_without_a_floor_in_view_the_ground_is_guessed() -> None:
    depth = np.full(SIZE, 1.0)  # the lowest point is half a meter below the camera
    height = hha.encode(depth, CAMERA, Encoding(gravity=hha.DOWN))[..., 1]
    assert height[59, 80] == 130  # and half a pixel
    depth = np.full(SIZE, 2.0)  # the lowest is a meter below
    lowest = hha.encode(depth, CAMERA, Encoding(gravity=hha.DOWN))[-1, 80, 1]
    assert lowest <= 1


def test_noise_moves_gravity_by_little() -> None:
    depth, _, _ = room(pitch=25)
    rng = np.random.Generator(np.random.PCG64(0))
    noisy = np.where(depth > 0, depth * (1 + 0.004 * rng.standard_normal(SIZE)), 0)
    found = hha.find_gravity(hha.surface_normals(noisy, *hha.rays(SIZE, CAMERA)))
    assert np.degrees(np.arccos(np.dot(found, gravity(pitch=25)))) < 2


def test_the_same_depth_gives_the_same_bytes() -> None:
    depth, _, _ = room(pitch=12, roll=3)
    assert hha.encode(depth, CAMERA).tobytes() == hha.encode(depth.copy(), CAMERA).tobytes()


def test_ranges_can_be_changed_for_a_street() -> None:
    depth = np.full(SIZE, 20.0)
    found = hha.encode(depth, CAMERA, Encoding(nearest=4, tallest=25.5, camera_height=1.6, gravity=hha.DOWN))
    assert found[59, 80].tolist() == [51, 17, 128]
