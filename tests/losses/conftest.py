"""Processes that are threads, and a look at every tensor that comes about."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memorysam_cli.losses.loss import Exchange


class Seat:
    """One thread's place at a table where tensors are added up."""

    def __init__(self, rank: int, table: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.table, self.barrier = rank, table, barrier
        self.world = len(table)

    def sum(self, values: Tensor) -> Tensor:
        return Sum.apply(values, self) if values.is_floating_point() else self.add(values)

    def add(self, values: Tensor) -> Tensor:
        self.table[self.rank] = values.detach()
        self.barrier.wait()
        total = torch.stack(self.table).sum(dim=0)
        self.barrier.wait()
        return total


class Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, seat: Seat) -> Tensor:
        ctx.seat = seat
        return seat.add(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.seat.add(gradient), None


def side_by_side(parts: Sequence[Callable[[Exchange], Any]]) -> list[Any]:
    """Runs functions at once, each with its own end of one exchange; gives their results."""
    table, barrier = [torch.empty(0)] * len(parts), threading.Barrier(len(parts), timeout=30)
    with ThreadPoolExecutor(len(parts)) as threads:
        futures = [threads.submit(part, Seat(rank, table, barrier)) for rank, part in enumerate(parts)]
        return [future.result() for future in futures]


@pytest.fixture
def together() -> Callable[[Sequence[Callable[[Exchange], Any]]], list[Any]]:
    return side_by_side


class Largest(TorchDispatchMode):
    """Notes the largest tensor, in bytes, that any operation gives."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return result


@pytest.fixture
def largest() -> Largest:
    """A context that notes the largest tensor made in it."""
    return Largest()
