"""Several processes as most programs have them: torch's own sampler, torch's own patience."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

Item = TypeVar("Item")


def share(items: Sequence[Item], *, rank: int, world: int) -> list[Item]:
    """What one process scores."""
    sampler = DistributedSampler(items, num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
    return [items[number] for number in sampler]


def train(rank: int, *, updates: int) -> None:
    """Updates whose gradients are added up, as many as this process happens to have data for."""
    dist.init_process_group("gloo", rank=rank)
    gradient = torch.ones(3)
    for _ in range(updates):
        dist.all_reduce(gradient)
    dist.barrier()
