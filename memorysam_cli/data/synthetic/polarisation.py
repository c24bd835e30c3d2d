"""What MCubeS' polarisation camera and near-infrared camera would see of a surface."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from memorysam_cli.data.synthetic.classes import NIR_REFLECTANCE, SHINE
from memorysam_cli.data.synthetic.light import LUMINANCE, Lighting, radiance
from memorysam_cli.data.synthetic.surface import Surface
from memorysam_cli.data.synthetic.weather import Weather

Rng = np.random.Generator
REFRACTION = 1.5
"""Index of refraction of whatever mirrors light."""


@dataclass(frozen=True)
class Polarisation:
    """Linear polarisation of the light from each pixel; all (H, W) float32.

    Args:
        sine: sine of twice the angle, as an angle of polarisation repeats after half a turn.
        cosine: cosine of twice the angle.
        degree: 0 unpolarised … 1 fully polarised.
    """

    sine: np.ndarray
    cosine: np.ndarray
    degree: np.ndarray


def polarisation(surface: Surface, weather: Weather, *, rng: Rng) -> Polarisation:
    """Polarisation by reflection: strong on shiny surfaces near Brewster's angle, along the surface's lie.

    Source: the Fresnel equations for an index of 1.5 (mirrored light), a tenth of it at right angles (diffuse light).
    """
    rays = surface.camera.rays
    sight = rays / np.sqrt((rays * rays).sum(axis=0))
    facing = np.abs((np.moveaxis(sight, 0, -1) * surface.normal).sum(axis=-1)).clip(0, 1)
    sine_square = 1 - facing * facing
    index_square = np.float32(REFRACTION**2)
    root = np.sqrt(index_square - sine_square)
    below = index_square - sine_square * (1 + index_square) + 2 * sine_square * sine_square
    mirrored = (2 * sine_square * facing * root / below).clip(0, 1)
    shine = SHINE[surface.material]
    right, up, _ = surface.camera.axes
    azimuth = np.arctan2(surface.normal @ up, surface.normal @ right)
    strength = shine * mirrored - 0.12 * (1 - shine) * sine_square  # Negative: at right angles.
    # The sky polarises light too: most a quarter turn away from the sun; here by height alone.
    strength = np.where(surface.is_sky, 0.08 + 0.25 * np.abs(sight[2]), strength)
    cosine, sine = -np.cos(2 * azimuth) * strength, -np.sin(2 * azimuth) * strength
    # What is noisy in the camera is the Stokes vector: where little is polarised, the angle is random.
    grain = np.float32(0.012 + weather.noise)
    cosine += rng.standard_normal(cosine.shape, np.float32) * grain
    sine += rng.standard_normal(sine.shape, np.float32) * grain
    length = np.maximum(np.hypot(cosine, sine), 1e-6)
    return Polarisation(
        sine=(sine / length).astype(np.float32),
        cosine=(cosine / length).astype(np.float32),
        degree=length.clip(0, 1).astype(np.float32),
    )


def near_infrared(surface: Surface, lights: Lighting, *, rng: Rng) -> np.ndarray:
    """Near-infrared light: (H, W) float32 in 0..1, gamma-coded; leaves shine, water and sky are dark."""
    reflectance = NIR_REFLECTANCE[surface.material] * (0.65 + 0.8 * surface.colour @ LUMINANCE)
    bare = replace(surface, colour=np.repeat(reflectance[..., None], 3, axis=2))
    light = radiance(bare, lights).mean(axis=-1) * np.where(surface.is_sky, np.float32(0.45), np.float32(1))
    exposure = 2.2 if lights.weather.is_night else 1.0
    coded = (1 - np.exp(-np.float32(exposure) * light)) ** np.float32(1 / 2.2)
    grain = rng.standard_normal(coded.shape, np.float32) * np.float32(lights.weather.noise)
    return np.asarray((coded + grain).clip(0, 1))


def overlap(height: int, width: int, *, rng: Rng) -> np.ndarray:
    """Where the near-infrared camera's picture, warped to the colour camera's, has content: (H, W) uint8, 0 or 255."""
    mask = np.zeros((height, width), np.uint8)
    left, right = (int(rng.uniform(0, 0.05) * width) for _ in range(2))
    top, bottom = (int(rng.uniform(0, 0.03) * height) for _ in range(2))
    mask[top : height - bottom, left : width - right] = 255
    return mask
