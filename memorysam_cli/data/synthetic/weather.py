"""The five conditions: what light and haze each one brings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """A colour of light, (3,) float32."""
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
    fog_per_metre: float
    noise: float
    """Standard deviation of the camera's noise in shares of full scale."""
    is_wet: bool = False
    is_night: bool = False
    is_sunny: bool = False
    """Whether bodies throw shadows."""


WEATHER: dict[str, Weather] = {
    "cloud": Weather(
        ambient=rgb(0.62, 0.65, 0.7),
        sunlight=rgb(0.12, 0.12, 0.11),
        zenith=rgb(0.5, 0.54, 0.6),
        horizon=rgb(0.68, 0.7, 0.72),
        clouds=0.3,
        fog_per_metre=0.0018,
        noise=0.012,
    ),
    "fog": Weather(
        ambient=rgb(0.5, 0.51, 0.53),
        sunlight=rgb(0, 0, 0),
        zenith=rgb(0.5, 0.51, 0.53),
        horizon=rgb(0.56, 0.57, 0.58),
        clouds=0.05,
        fog_per_metre=0.055,
        noise=0.015,
    ),
    "night": Weather(
        ambient=rgb(0.008, 0.01, 0.018),
        sunlight=rgb(0.003, 0.003, 0.005),
        zenith=rgb(0.002, 0.003, 0.008),
        horizon=rgb(0.012, 0.012, 0.02),
        clouds=0.3,
        fog_per_metre=0.002,
        noise=0.03,
        is_night=True,
    ),
    "rain": Weather(
        ambient=rgb(0.34, 0.36, 0.4),
        sunlight=rgb(0, 0, 0),
        zenith=rgb(0.3, 0.32, 0.36),
        horizon=rgb(0.42, 0.44, 0.47),
        clouds=0.35,
        fog_per_metre=0.01,
        noise=0.028,
        is_wet=True,
    ),
    "sun": Weather(
        ambient=rgb(0.3, 0.37, 0.5),
        sunlight=rgb(1.0, 0.9, 0.72),
        zenith=rgb(0.12, 0.28, 0.62),
        horizon=rgb(0.55, 0.66, 0.8),
        clouds=0.0,
        fog_per_metre=0.0009,
        noise=0.008,
        is_sunny=True,
    ),
}
