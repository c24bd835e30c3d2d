"""How long work takes: kinds of work in turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=str)
Work = Callable[[], object]


def interleaved(works: Mapping[Name, Work], *, repeats: int, device: torch.device) -> dict[Name, tuple[float, ...]]:
    """The seconds of each of ``repeats`` runs of each kind of work, which has been warmed up.

    The kinds take turns, forwards and backwards (A B, B A, …): none of them always follows the same one.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in works}
    for turn in range(repeats):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(works[name], device))
    return {name: tuple(found) for name, found in seconds.items()}


def timed(work: Work, device: torch.device) -> float:
    """The seconds of some work, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # not the current one, which need not be the one that was asked for
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()
