"""The order of an epoch and the random numbers of its scenes: pure functions of seed, epoch and scene."""

from __future__ import annotations

import numpy as np

ORDER = 1
"""Spawn key of the random numbers that order an epoch, apart from those of its samples."""


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """The order of an epoch's scenes: a permutation of 0..count-1, the same on every machine."""
    rng = generator(seed, epoch, spawn_key=(ORDER,))
    return [int(index) for index in np.argsort(rng.random(count), kind="stable")]


def batches_per_epoch(count: int, *, batch: int, world: int = 1) -> int:
    """How many batches each of ``world`` processes gets of ``count`` scenes; what is left over is dropped."""
    return count // batch // world


def batches_of(order: list[int], *, batch: int, rank: int = 0, world: int = 1) -> list[tuple[int, ...]]:
    """The batches of an order that one of ``world`` processes gets: rank, rank + world, …; all get equally many."""
    count = batches_per_epoch(len(order), batch=batch, world=world) * world
    return [tuple(order[place * batch : (place + 1) * batch]) for place in range(rank, count, world)]


def generator(*entropy: int, spawn_key: tuple[int, ...] = ()) -> np.random.Generator:
    """A generator that is a pure function of its arguments."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=spawn_key)))
