from __future__ import annotations

from dataclasses import replace

import numpy as np

from memorysam_cli.streetworld.geometry import Spot, pack
from memorysam_cli.streetworld.light import LUMINANCE, WEATHER, Lighting, lighting, radiance, shadows
from memorysam_cli.streetworld.surfaces import Label
from memorysam_cli.streetworld.world import World, build_world, survey


def view(seed: int = 3) -> tuple[World, object]:
    world = build_world(np.random.Generator(np.random.PCG64(seed)))
    camera = world.camera(frame=0, height=64, width=64)
    return world, survey(camera, world.ground, world.solids, salt=world.salt)


def seen(condition: str, *, seed: int = 3) -> tuple[np.ndarray, object]:
    world, surface = view(seed)
    return radiance(surface, lighting(world, world.solids, WEATHER[condition])) / world.tint, surface


def test_a_shadow_falls_away_from_the_sun_as_far_as_the_body_is_high(box):
    sun = np.array([0.5**0.5, 0.0, 0.5**0.5], np.float32)  # 45 degrees high, in the east.
    dark = shadows(pack([box(Spot(0, 20), (1, 1, 4))]), sun, soft_cells=1)
    x, y = np.array([[-3.0, -4.2, -5.2, 1.0, -3.0], [20.0, 20.0, 20.0, 20.0, 22.0]], np.float32)
    np.testing.assert_array_equal(dark.at(x[None], y[None]), [[1, 1, 0, 0, 0]])


def test_places_off_the_map_are_not_dark(box):
    dark = shadows(pack([box(Spot(0, 20), (1, 1, 4))]), np.array([0, 0, 1], np.float32), soft_cells=1)
    np.testing.assert_array_equal(dark.at(np.float32([[900, -900]]), np.float32([[20, 1e6]])), [[0, 0]])


def test_only_the_sun_throws_shadows():
    world, _ = view()
    assert {name: lighting(world, world.solids, weather).shadow is not None for name, weather in WEATHER.items()} == {
        "cloud": False,
        "fog": False,
        "night": False,
        "rain": False,
        "sun": True,
    }


def test_light_is_finite_and_not_negative_in_every_condition():
    for condition in WEATHER:
        light, _ = seen(condition)
        assert light.shape == (64, 64, 3) and np.isfinite(light).all() and light.min() >= 0, condition


def test_night_is_far_darker_than_day():
    assert seen("night")[0].mean() < 0.15 * seen("cloud")[0].mean()


def test_fog_washes_everything_out_with_distance():
    light, surface = seen("fog")
    haze = WEATHER["fog"].horizon @ LUMINANCE
    away = np.abs(light @ LUMINANCE - haze)
    depth = surface.depth
    expected = np.exp(-depth * np.float32(WEATHER["fog"].fog_per_meter))
    assert away[(depth > 80) & ~surface.is_sky].max() < 0.02
    assert away[depth < 8].mean() > 5 * away[(depth > 40) & ~surface.is_sky].mean()
    assert expected[depth > 80].max() < 0.013


def test_ground_in_the_shade_is_darker_in_the_sun_and_not_under_clouds():
    def shade_over_sun(condition: str) -> float:
        light, surface = seen(condition)
        world, _ = view()
        shadow = lighting(world, world.solids, WEATHER["sun"]).shadow
        hidden = shadow.at(*surface.point[:2])
        road = (surface.label == Label.ROAD) & (surface.depth < 40)
        return float(light[road & (hidden == 1)].mean() / light[road & (hidden == 0)].mean())

    assert shade_over_sun("sun") < 0.6
    assert shade_over_sun("cloud") > 0.75


def test_street_lamps_brighten_the_ground_around_them():
    world, surface = view()
    night = WEATHER["night"]
    lit = lighting(world, world.solids, night)
    dark = Lighting(replace(world, lamps=world.lamps[:0]), night, lit.contact, lit.shadow)
    gain = radiance(surface, lit).mean(axis=-1) - radiance(surface, dark).mean(axis=-1)
    assert gain.min() > -1e-6 and gain[surface.is_ground].mean() > 0.001 and gain[surface.is_sky].max() < 1e-6


def test_rain_makes_the_ground_darker_than_clouds_do():
    rain, surface = seen("rain")
    cloud, _ = seen("cloud")
    near = surface.is_ground & (surface.depth < 6)
    assert rain[near].mean() < 0.75 * cloud[near].mean()
