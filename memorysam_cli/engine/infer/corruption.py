"""Failing sensors: missing elements, salt and pepper, Gaussian noise, all after normalization.

Every draw is a pure function of seed, repeat, scene, modality and level, so it depends neither on the batch nor on the
number of processes. The exception is the noise as published, whose extremes and places are those of a whole batch.
Source: DATASETS §1.6; the published code draws unseeded.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from memorysam_cli.dataset import Modality

Extremes = Literal["batch", "scene"]

SHARES = {"0.25": 0.25, "0.5": 0.5, "0.75": 0.75}
"""Level of random missing → share of missing elements."""


@dataclass(frozen=True)
class Noise:
    """One level of the noise benchmark."""

    density: float
    """Share of the elements that become salt or pepper, half each."""
    sigma: float
    """Standard deviation of the Gaussian noise."""


NOISES = {"low": Noise(0.05, 0.1), "mid": Noise(0.1, 0.2), "high": Noise(0.2, 0.5)}


@dataclass(frozen=True)
class Draw:
    """Which of all possible draws to use."""

    seed: int
    repeat: int = 0
    extremes: Extremes = "batch"
    """Whether salt and pepper are the highest and lowest value of the batch's tensor, scattered over all of it (as
    published), or of each scene's."""

    def generator(self, scenes: Sequence[str], *, modality: str, level: str) -> np.random.Generator:
        """The random numbers for one corruption of the frames of one or more scenes, the same on every machine."""
        words = json.dumps([self.seed, self.repeat, *scenes, modality, level]).encode()
        return np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(words).digest())))


def corrupt(frame: Tensor, modality: Modality, *, scenes: Sequence[str], level: str, draw: Draw) -> Tensor:
    """Corrupt one modality of a batch.

    Args:
        frame: (B, C, H, W) float32, normalized, on the CPU.
        modality: of the frame; events get no Gaussian noise.
        scenes: B ids.
        level: a key of :data:`SHARES` or of :data:`NOISES`.
        draw: which draw.

    Returns:
        A tensor of the same shape; ``frame`` itself does not change.
    """
    if level in NOISES and draw.extremes == "batch":
        rng = draw.generator(scenes, modality=modality.name, level=level)
        return noisy(frame, NOISES[level], is_event=modality.kind == "event", rng=rng)
    spoilt = []
    for scene, one in zip(scenes, frame, strict=True):
        rng = draw.generator([scene], modality=modality.name, level=level)
        if level in SHARES:
            spoilt.append(without_elements(one, share=SHARES[level], rng=rng))
        else:
            spoilt.append(noisy(one, NOISES[level], is_event=modality.kind == "event", rng=rng))
    return torch.stack(spoilt)


def noisy(frame: Tensor, noise: Noise, *, is_event: bool, rng: np.random.Generator) -> Tensor:
    """Add salt and pepper with the frame's own extremes, then Gaussian noise unless these are events; for any shape."""
    low, high = float(frame.min()), float(frame.max())
    grainy = salt_and_pepper(frame, density=noise.density, low=low, high=high, rng=rng)
    return grainy if is_event else with_gaussian(grainy, sigma=noise.sigma, rng=rng)


def without_elements(frame: Tensor, *, share: float, rng: np.random.Generator) -> Tensor:
    """Set each element to 0 with probability ``share``, each channel independently.

    Args:
        frame: float32 of any shape.
        share: in [0, 1].
        rng: one uniform number per element is drawn.

    Raises:
        ValueError: ``share`` is not a probability.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share}: allowed 0..1")
    is_missing = torch.from_numpy(rng.random(tuple(frame.shape), dtype=np.float32) < share)
    return frame.masked_fill(is_missing, 0.0)


def salt_and_pepper(frame: Tensor, *, density: float, low: float, high: float, rng: np.random.Generator) -> Tensor:
    """Set ceil(density · elements / 2) elements to ``high``, then as many to ``low``.

    Args:
        frame: float32 of any shape.
        density: in [0, 1].
        low: the value of pepper.
        high: the value of salt.
        rng: draws the places, with replacement, each channel independently.

    Raises:
        ValueError: ``density`` is not a share.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"density {density}: allowed 0..1")
    count = math.ceil(density * frame.numel() / 2)
    spoilt = frame.flatten().clone()
    for value in (high, low):
        spoilt[torch.from_numpy(rng.integers(0, frame.numel(), count))] = value
    return spoilt.view(frame.shape)


def with_gaussian(frame: Tensor, *, sigma: float, rng: np.random.Generator) -> Tensor:
    """Add N(0, σ²) to each element of a float32 tensor of any shape."""
    return frame + sigma * torch.from_numpy(rng.standard_normal(tuple(frame.shape), dtype=np.float32))
