from __future__ import annotations

import numpy as np
import pytest

from memorysam_cli.streetworld.geometry import Camera, Shape, Solid, Spot, pack
from memorysam_cli.streetworld.surfaces import Label, Material, Texture
from memorysam_cli.streetworld.world import Surface, build_world, survey


def test_ground_body_and_sky_are_told_apart(straight_street, level_camera, box):
    surface = survey(level_camera, straight_street, pack([box(Spot(0, 10), (2, 2, 3))]), salt=1)
    assert surface.label[32, 32] == Label.STATIC and surface.label[5, 5] == Label.SKY
    assert surface.label[60, 25] == Label.ROAD and surface.label[36, 63] in (Label.SIDEWALK, Label.TERRAIN)
    assert surface.material[5, 5] == Material.SKY
    np.testing.assert_array_equal(np.isinf(surface.depth), surface.is_sky)
    assert not (surface.is_sky & surface.is_ground).any()


@pytest.mark.parametrize(
    ("shape", "taper", "expected"),
    [
        (Shape.BOX, 0.0, (0, -1, 0)),
        (Shape.ELLIPSOID, 0.0, (0, -1, 0)),
        (Shape.CYLINDER, 0.0, (0, -1, 0)),
        # 4 m high, 2 m long, all of it lost at the top: the front leans back 1 m over 4 m.
        (Shape.BOX, 1.0, (0, -4 / 17**0.5, 1 / 17**0.5)),
    ],
)
def test_normals_are_those_of_the_shape(straight_street, box, shape, taper, expected):
    # Just below the middle: on the edge between two faces a normal could be either.
    camera = Camera(Spot(0, 0, 2.0), 0.0, 64, 64, focal=1.0)
    surface = survey(camera, straight_street, pack([box(Spot(0, 10), (2, 2, 4), shape=shape, taper=taper)]), salt=1)
    np.testing.assert_allclose(surface.normal[32, 32], expected, atol=0.08)


def test_a_turned_body_turns_its_normals(straight_street, level_camera, box):
    surface = survey(level_camera, straight_street, pack([box(Spot(0, 10, yaw=np.pi / 4), (2, 2, 3))]), salt=1)
    left, right = surface.normal[34, 28], surface.normal[34, 36]
    np.testing.assert_allclose(left, (-(0.5**0.5), -(0.5**0.5), 0), atol=1e-5)
    np.testing.assert_allclose(right, (0.5**0.5, -(0.5**0.5), 0), atol=1e-5)


def world_surface(seed: int) -> Surface:
    world = build_world(np.random.Generator(np.random.PCG64(seed)))
    return survey(world.camera(frame=0, height=72, width=72), world.ground, world.solids, salt=world.salt)


@pytest.mark.parametrize("seed", range(4))
def test_every_visible_surface_has_a_unit_normal_that_faces_the_camera(seed):
    surface = world_surface(seed)
    seen = ~surface.is_sky
    np.testing.assert_allclose(np.linalg.norm(surface.normal, axis=-1), seen, atol=1e-4)
    facing = (np.moveaxis(surface.camera.rays, 0, -1) * surface.normal).sum(axis=-1)
    is_water = surface.material == Material.WATER  # Ripples may lean away at the horizon.
    # A pixel exactly on an edge may take the normal of the face that is just hidden.
    assert (facing[seen & ~is_water] < 1e-3).mean() > 0.995


def test_patterns_change_the_material_where_they_show_another_one(straight_street, level_camera):
    house = Solid(Spot(0, 12), (8, 4, 9), Label.BUILDING, Material.PLASTER, (0.4, 0.4, 0.4), texture=Texture.WINDOWS)
    surface = survey(level_camera, straight_street, pack([house]), salt=3)
    materials = set(surface.material[surface.label == Label.BUILDING].tolist())
    assert materials == {Material.PLASTER, Material.GLASS}
    glass = surface.material == Material.GLASS
    assert surface.color[glass].mean() < 0.1 < surface.color[(surface.label == Label.BUILDING) & ~glass].mean()


def test_wheels_are_rubber_and_lamps_glow_at_both_ends(straight_street):
    car = Solid(Spot(0, 8), (1.8, 4.4, 0.9), Label.CAR, Material.METAL, (0.3, 0.1, 0.1), texture=Texture.BODYWORK)
    camera = Camera(Spot(-4, 2, 1.2, yaw=0.55), 0.0, 128, 128, focal=1.0)
    surface = survey(camera, straight_street, pack([car]), salt=1)
    is_car = surface.label == Label.CAR
    assert {Material.METAL, Material.RUBBER} == set(surface.material[is_car].tolist())
    assert surface.glow[is_car].max() == np.float32(0.9)  # The rear is seen.
    assert not surface.glow[~is_car].any()


def test_colors_are_reflectances():
    for seed in range(4):
        color = world_surface(seed).color
        assert color.min() >= 0 and color.max() < 1.5 and np.isfinite(color).all()
