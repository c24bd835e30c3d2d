"""Weather and light: from a surface to the light that reaches the lens."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from memorysam_cli.data.synthetic.classes import SHINE
from memorysam_cli.data.synthetic.camera import CORNERS
from memorysam_cli.data.synthetic.solids import Solids
from memorysam_cli.data.synthetic.surface import Surface
from memorysam_cli.data.synthetic.texture import noise
from memorysam_cli.data.synthetic.world import World

Triple = tuple[float, float, float]
LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)


@dataclass(frozen=True, slots=True)
class Weather:
    """How a condition lights a scene; light is linear, 1 is a white wall in daylight."""

    ambient: Triple
    """Light from the sky."""
    sunlight: Triple
    zenith: Triple
    horizon: Triple
    clouds: float
    """How much the clouds brighten or darken the sky."""
    fog_per_metre: float
    noise: float
    """Standard deviation of the camera's noise in shares of full scale."""
    wetness: float = 0.0
    night: float = 0.0


WEATHER: dict[str, Weather] = {
    "cloud": Weather((0.62, 0.65, 0.7), (0.12, 0.12, 0.11), (0.5, 0.54, 0.6), (0.68, 0.7, 0.72), 0.3, 0.0018, 0.012),
    "fog": Weather((0.5, 0.51, 0.53), (0.0, 0.0, 0.0), (0.5, 0.51, 0.53), (0.56, 0.57, 0.58), 0.02, 0.055, 0.015),
    "night": Weather(
        (0.008, 0.01, 0.018),
        (0.003, 0.003, 0.005),
        (0.002, 0.003, 0.008),
        (0.012, 0.012, 0.02),
        0.3,
        0.002,
        0.03,
        night=1.0,
    ),
    "rain": Weather(
        (0.34, 0.36, 0.4), (0.0, 0.0, 0.0), (0.3, 0.32, 0.36), (0.42, 0.44, 0.47), 0.35, 0.010, 0.028, wetness=1.0
    ),
    "sun": Weather((0.3, 0.37, 0.5), (1.0, 0.9, 0.72), (0.12, 0.28, 0.62), (0.55, 0.66, 0.8), 0.25, 0.0009, 0.008),
}


@dataclass(frozen=True)
class ShadowMap:
    """Where on the ground the sun and the sky are hidden: looked up by place."""

    dark: np.ndarray
    """(rows, columns) float32 shares 0..1."""
    west: float
    south: float
    cells_per_metre: float

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Share of the light that is hidden at places in metres."""
        column = ((x - self.west) * np.float32(self.cells_per_metre)).astype(np.int64)
        row = ((y - self.south) * np.float32(self.cells_per_metre)).astype(np.int64)
        rows, columns = self.dark.shape
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        return np.where(inside, self.dark[row.clip(0, rows - 1), column.clip(0, columns - 1)], np.float32(0))


def shadows(solids: Solids, sun: np.ndarray, *, soft_cells: int) -> ShadowMap:
    """Throw every body's shadow on the ground.

    Args:
        solids: N bodies.
        sun: (3,) direction towards the sun; straight up gives the footprints alone.
        soft_cells: width of the blur in map cells.

    Returns:
        A map of 5 cells per metre, 40 m to each side and 110 m ahead.
    """
    west, south, scale = -40.0, -12.0, 5.0
    dark = np.zeros((int(122 * scale), int(80 * scale)), np.uint8)
    cos, sin = solids.turn[:, 0, None], solids.turn[:, 1, None]
    corner = CORNERS[None] * solids.half[:, None]
    z = corner[..., 2] + solids.centre[:, 2, None]
    lift = np.minimum(np.maximum(z, 0), 30) / sun[2]
    x = corner[..., 0] * cos + corner[..., 1] * sin + solids.centre[:, 0, None] - lift * sun[0]
    y = corner[..., 1] * cos - corner[..., 0] * sin + solids.centre[:, 1, None] - lift * sun[1]
    cells = np.stack([(x - west) * scale, (y - south) * scale], axis=-1).round().astype(np.int32)
    for outline in cells:
        cv2.fillConvexPoly(dark, cv2.convexHull(outline), 255)
    blurred = cv2.blur(dark, (soft_cells, soft_cells))
    return ShadowMap(blurred.astype(np.float32) / 255, west, south, scale)


@dataclass(frozen=True)
class Lighting:
    """How a world is lit at one moment.

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
    """Work out the shadows of a moment."""
    contact = shadows(solids, np.float32([0, 0, 1]), soft_cells=7)
    has_sun = weather.sunlight[0] > 0.5
    return Lighting(world, weather, contact, shadows(solids, world.sun, soft_cells=3) if has_sun else None)


def radiance(surface: Surface, lights: Lighting) -> np.ndarray:
    """Light that reaches the lens: (H, W, 3) float32, linear, not negative."""
    world, weather = lights.world, lights.weather
    sun = world.sun
    normal = surface.normal
    colour = surface.colour
    x, y, _ = surface.point
    is_ground, is_level = surface.is_ground, surface.normal[..., 2] > 0.98
    contact = np.where(is_ground, lights.contact.at(x, y), np.float32(0))
    openness = (0.62 + 0.38 * normal[..., 2]) * (1 - 0.55 * contact)
    light = openness[..., None] * np.float32(weather.ambient)
    if lights.shadow is not None:
        hidden = np.where(is_ground, lights.shadow.at(x, y), np.float32(0))
        direct = np.maximum(normal @ sun, 0) * (1 - 0.92 * hidden)
        light += direct[..., None] * np.float32(weather.sunlight)
    else:
        light += (0.5 + 0.5 * normal @ sun)[..., None] * np.float32(weather.sunlight)
    if weather.night:
        light += _lamplight(surface, world)
    if weather.wetness:
        colour = colour * np.where(is_level, np.float32(0.55), np.float32(0.85))[..., None]
    sent = light * colour
    sent += _mirrored(surface, weather, wet=is_level & (weather.wetness > 0))
    glow = surface.signal + surface.glow * weather.night
    sent += (
        (glow * (0.3 + 2.5 * surface.colour.max(axis=-1)))[..., None]
        * (surface.colour + 0.25)
        * np.float32((1.0, 0.85, 0.6) if weather.night else (1.0, 1.0, 1.0))
    )
    sky = skylight(surface, weather, salt=world.salt)
    sent = np.where(surface.is_sky[..., None], sky, sent) * world.tint
    return _through_fog(sent, surface, weather)


def skylight(surface: Surface, weather: Weather, *, salt: int) -> np.ndarray:
    """Colour of the sky in every pixel's direction, (H, W, 3)."""
    x, y, z = surface.camera.rays
    rise = (z / np.sqrt(x * x + y * y + z * z)).clip(0.0, 1)
    share = np.sqrt(rise)[..., None]
    base = np.float32(weather.horizon) * (1 - share) + np.float32(weather.zenith) * share
    far = 60 / (rise + 0.12)
    clouds = noise(x * far + np.float32(salt % 997), y * far, scale=0.35)
    if weather.clouds < 0.27:  # Fair-weather clouds stand white against the blue.
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
    return strength[..., None] * 0.75 * np.float32(weather.horizon)


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
        total += (9.0 * np.maximum(cosine, 0.05) * down / (square + 4))[..., None] * np.float32((1.0, 0.75, 0.45))
    rays = surface.camera.rays
    right, up, _ = surface.camera.axes
    across, rise = np.tensordot(right, rays, 1), np.tensordot(up, rays, 1)
    beam = np.exp(-((across / 0.45) ** 2) - ((rise + 0.16) / 0.16) ** 2)
    total += (7.0 * beam / (surface.depth + 6) ** 1.6)[..., None] * np.float32((1.0, 0.96, 0.85))
    return total


def _through_fog(light: np.ndarray, surface: Surface, weather: Weather) -> np.ndarray:
    """Fade towards the colour of the haze with distance; the sky has its haze already, but in real fog."""
    distance = np.where(surface.is_sky, np.float32(150), surface.depth)
    clear = np.exp(-distance * np.float32(weather.fog_per_metre))
    if weather.fog_per_metre < 0.01:
        clear = np.where(surface.is_sky, np.float32(1), clear)
    haze = np.float32(weather.horizon)
    return np.asarray(light * clear[..., None] + haze * (1 - clear[..., None]), np.float32)
