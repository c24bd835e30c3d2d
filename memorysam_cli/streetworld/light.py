"""Light: the five weathers, the shadows of bodies, and the light from a surface that reaches the lens."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from memorysam_cli.streetworld.geometry import Solids
from memorysam_cli.streetworld.surfaces import SHINE, noise
from memorysam_cli.streetworld.world import Surface, World


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """A color of light, (3,) float32."""
    return np.array([red, green, blue], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How a condition lights a scene; light is linear, (3,) float32, and 1 is a white wall in daylight."""

    ambient: np.ndarray
    """Light from the sky."""
    sunlight: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    """How much the clouds brighten or darken an overcast sky; a sunny one has white clouds instead."""
    fog_per_meter: float
    noise: float
    """Standard deviation of the camera's noise as a share of full scale."""
    is_wet: bool = False
    is_night: bool = False
    is_sunny: bool = False
    """Whether bodies have shadows."""


WEATHER: dict[str, Weather] = {
    "cloud": Weather(
        ambient=rgb(0.62, 0.65, 0.7),
        sunlight=rgb(0.12, 0.12, 0.11),
        zenith=rgb(0.5, 0.54, 0.6),
        horizon=rgb(0.68, 0.7, 0.72),
        clouds=0.3,
        fog_per_meter=0.0018,
        noise=0.012,
    ),
    "fog": Weather(
        ambient=rgb(0.5, 0.51, 0.53),
        sunlight=rgb(0, 0, 0),
        zenith=rgb(0.5, 0.51, 0.53),
        horizon=rgb(0.56, 0.57, 0.58),
        clouds=0.05,
        fog_per_meter=0.055,
        noise=0.015,
    ),
    "night": Weather(
        ambient=rgb(0.008, 0.01, 0.018),
        sunlight=rgb(0.003, 0.003, 0.005),
        zenith=rgb(0.002, 0.003, 0.008),
        horizon=rgb(0.012, 0.012, 0.02),
        clouds=0.3,
        fog_per_meter=0.002,
        noise=0.03,
        is_night=True,
    ),
    "rain": Weather(
        ambient=rgb(0.34, 0.36, 0.4),
        sunlight=rgb(0, 0, 0),
        zenith=rgb(0.3, 0.32, 0.36),
        horizon=rgb(0.42, 0.44, 0.47),
        clouds=0.35,
        fog_per_meter=0.01,
        noise=0.028,
        is_wet=True,
    ),
    "sun": Weather(
        ambient=rgb(0.3, 0.37, 0.5),
        sunlight=rgb(1.0, 0.9, 0.72),
        zenith=rgb(0.12, 0.28, 0.62),
        horizon=rgb(0.55, 0.66, 0.8),
        clouds=0.0,
        fog_per_meter=0.0009,
        noise=0.008,
        is_sunny=True,
    ),
}


@dataclass(frozen=True)
class ShadowMap:
    """Where on the ground the sun and the sky are hidden, by place."""

    dark: np.ndarray
    """(rows, columns) float32 shares 0..1."""
    west: float
    south: float
    cells_per_meter: float

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Share of the light that is hidden at places in meters, (H, W); none off the map."""
        scale = np.float32(self.cells_per_meter)
        column = ((x - np.float32(self.west)) * scale).clip(-9, self.dark.shape[1] + 9)
        row = ((y - np.float32(self.south)) * scale).clip(-9, self.dark.shape[0] + 9)
        return np.asarray(cv2.remap(self.dark, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))


def shadows(solids: Solids, sun: np.ndarray, *, soft_cells: int) -> ShadowMap:
    """Compute every body's shadow on the ground.

    Args:
        solids: N bodies.
        sun: (3,) direction towards the sun; straight up gives the footprints alone.
        soft_cells: width of the blur in map cells.

    Returns:
        A map of 5 cells per meter, 40 m to each side and 110 m ahead.
    """
    west, south, scale = -40.0, -12.0, 5.0
    dark = np.zeros((int(122 * scale), int(80 * scale)), np.uint8)
    x, y, z = solids.corners()
    lift = np.minimum(np.maximum(z, 0), 30) / sun[2]
    x, y = x - lift * sun[0], y - lift * sun[1]
    cells = np.stack([(x - west) * scale, (y - south) * scale], axis=-1).round().astype(np.int32)
    for outline in cells:
        cv2.fillConvexPoly(dark, cv2.convexHull(outline), 255)
    blurred = cv2.blur(dark, (soft_cells, soft_cells))
    return ShadowMap(blurred.astype(np.float32) / 255, west, south, scale)


LUMINANCE = rgb(0.2126, 0.7152, 0.0722)
"""Weights of linear red, green and blue in what the eye calls brightness (ITU-R BT.709)."""


@dataclass(frozen=True)
class Lighting:
    """The lighting of a world at one moment.

    Args:
        world: the street.
        weather: the condition.
        contact: where bodies hide the sky from the ground.
        shadow: where they hide the sun; ``None`` without one.
    """

    world: World
    weather: Weather
    contact: ShadowMap
    shadow: ShadowMap | None


def lighting(world: World, solids: Solids, weather: Weather) -> Lighting:
    """Compute the shadows of a moment."""
    contact = shadows(solids, np.array([0, 0, 1], np.float32), soft_cells=7)
    return Lighting(world, weather, contact, shadows(solids, world.sun, soft_cells=3) if weather.is_sunny else None)


def radiance(surface: Surface, lights: Lighting) -> np.ndarray:
    """Light that reaches the lens: (H, W, 3) float32, linear, not negative."""
    weather, normal = lights.weather, surface.normal
    x, y, _ = surface.point
    contact = np.where(surface.is_ground, lights.contact.at(x, y), np.float32(0))
    openness = (0.62 + 0.38 * normal[..., 2]) * (1 - 0.55 * contact)
    light = openness[..., None] * weather.ambient
    if lights.shadow is not None:
        hidden = np.where(surface.is_ground, lights.shadow.at(x, y), np.float32(0))
        direct = np.maximum(normal @ lights.world.sun, 0) * (1 - 0.92 * hidden)
    else:
        direct = 0.5 + 0.5 * normal @ lights.world.sun  # Light through clouds comes from all around.
    light += direct[..., None] * weather.sunlight
    if weather.is_night:
        light += _lamplight(surface, lights.world)
    is_level = normal[..., 2] > 0.98
    if weather.is_wet:
        light *= np.where(is_level, np.float32(0.55), np.float32(0.85))[..., None]  # Wet things are darker.
    sent = light * surface.color + _mirrored(surface, weather, wet=is_level & weather.is_wet)
    sent += _emitted(surface, weather)
    sent = np.where(surface.is_sky[..., None], skylight(surface, weather, salt=lights.world.salt), sent)
    return np.asarray(_through_fog(sent, surface, weather) * lights.world.tint)


def skylight(surface: Surface, weather: Weather, *, salt: int) -> np.ndarray:
    """Color of the sky in every pixel's direction, (H, W, 3)."""
    x, y, z = surface.camera.rays
    rise = (z / np.sqrt(x * x + y * y + z * z)).clip(0.0, 1)
    share = np.sqrt(rise)[..., None]
    base = weather.horizon * (1 - share) + weather.zenith * share
    far = 60 / (rise + 0.12)
    clouds = noise(x * far + np.float32(salt % 997), y * far, scale=0.35)
    if weather.is_sunny:  # Fair-weather clouds stand white against the blue.
        cover = np.maximum(clouds - 0.1, 0)[..., None] * np.float32(0.6)
        return np.asarray(base * (1 - cover) + np.float32(0.85) * cover)
    return np.asarray(base * (1 + weather.clouds * 0.5 * clouds * np.minimum(3 * rise, 1))[..., None])


def _mirrored(surface: Surface, weather: Weather, *, wet: np.ndarray) -> np.ndarray:
    """Sky seen in glass, water, polished metal and wet ground, (H, W, 3)."""
    rays = surface.camera.rays
    length = np.sqrt((rays * rays).sum(axis=0))
    facing = np.abs((np.moveaxis(rays, 0, -1) * surface.normal).sum(axis=-1)) / length
    grazing = (1 - facing.clip(0, 1)) ** 3
    shine = SHINE[surface.material] ** 2 + 0.5 * wet
    strength = (0.06 + 0.94 * grazing) * shine * ~surface.is_sky
    return np.asarray(strength[..., None] * np.float32(0.75) * weather.horizon)


def _emitted(surface: Surface, weather: Weather) -> np.ndarray:
    """Light of lamps, lit windows and signals, (H, W, 3)."""
    glow = surface.signal + surface.glow * weather.is_night
    strength = glow * (0.3 + 2.5 * surface.color.max(axis=-1))
    warmth = rgb(1.0, 0.85, 0.6) if weather.is_night else rgb(1.0, 1.0, 1.0)
    return np.asarray(strength[..., None] * (surface.color + np.float32(0.25)) * warmth)


def _lamplight(surface: Surface, world: World) -> np.ndarray:
    """Pools of light under street lamps, and the car's own headlights, (H, W, 3)."""
    total = np.zeros((*surface.depth.shape, 3), np.float32)
    place = surface.camera.position
    near = world.lamps[np.argsort(np.abs(world.lamps[:, 1] - place[1] - 18), kind="stable")[:5]]
    for lamp in near:
        to_lamp = lamp[:, None, None] - surface.point
        square = (to_lamp * to_lamp).sum(axis=0)
        cosine = (to_lamp * np.moveaxis(surface.normal, -1, 0)).sum(axis=0) / np.sqrt(square)
        down = (to_lamp[2] / np.sqrt(square)).clip(0, 1) ** 2
        total += (9.0 * np.maximum(cosine, 0.05) * down / (square + 4))[..., None] * rgb(1.0, 0.75, 0.45)
    rays = surface.camera.rays
    right, up, _ = surface.camera.axes
    across, rise = np.tensordot(right, rays, 1), np.tensordot(up, rays, 1)
    beam = np.exp(-((across / 0.45) ** 2) - ((rise + 0.16) / 0.16) ** 2)
    total += (7.0 * beam / (surface.depth + 6) ** 1.6)[..., None] * rgb(1.0, 0.96, 0.85)
    return total


def _through_fog(light: np.ndarray, surface: Surface, weather: Weather) -> np.ndarray:
    """Fade towards the color of the haze with distance; the sky's own colors have their haze already."""
    distance = np.where(surface.is_sky, np.float32(0), surface.depth)
    clear = np.exp(-distance * np.float32(weather.fog_per_meter))[..., None]
    return np.asarray(light * clear + weather.horizon * (1 - clear))
