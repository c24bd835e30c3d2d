"""Several processes that train together: what they add up, agree on and wait for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.errors import EnvironmentFault, is_out_of_memory
from memorysam_cli.losses.exchange import Exchange

LONG_PATIENCE = timedelta(hours=2)
"""For how long the others wait while one process downloads, draws or saves alone."""

_LOST = ("gloo/transport", "pair closure", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""How the engines of ``torch.distributed`` say that another process is gone, or does not answer."""

_patient: dict[dist.ProcessGroup | None, dist.ProcessGroup] = {}
"""The group of the long wait, by the group of all processes that it was made in."""


class AllProcesses:
    """Sums over all processes, as the losses ask for them (:class:`~memorysam_cli.losses.exchange.Exchange`)."""

    def __init__(self, world: int) -> None:
        self.world = world

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes; differentiably if it is float32.

        The backward pass adds the processes' gradients up too; DDP then averages them, so that a loss of such sums
        gets the same gradient as one process with all the data would.
        """
        total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
        return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return _added_up(values)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return _added_up(gradient)


def _added_up(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def exchange_of(accelerator: Accelerator) -> Exchange | None:
    """How the losses reach the other processes; none where there are none."""
    return AllProcesses(accelerator.num_processes) if accelerator.num_processes > 1 else None


def agree(claim: bool, accelerator: Accelerator) -> bool:
    """Whether any process claims something; every process gets the same answer."""
    if accelerator.num_processes == 1:
        return claim
    return int(accelerator.reduce(torch.tensor(int(claim), device=accelerator.device))) > 0


def wait_for_all(accelerator: Accelerator) -> None:
    """Wait until every process is here, also while one of them has been busy for long.

    The sums of a training give up after :data:`~memorysam_cli.engine.runtime.PATIENCE`; this waits for
    :data:`LONG_PATIENCE`, on the CPU, whatever the device is.
    """
    if accelerator.num_processes > 1:
        dist.barrier(_patient_group())


def connect(accelerator: Accelerator) -> None:
    """Get ready for :func:`wait_for_all`, where all processes are here anyway.

    Between processes that are connected, the loss of one is noticed at once; one that is lost before that is waited for
    until patience ends.
    """
    if accelerator.num_processes > 1:
        _patient_group()


def _patient_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group not in _patient:
        _patient[group] = dist.new_group(backend="gloo", timeout=LONG_PATIENCE)
    return _patient[group]


@contextlib.contextmanager
def lost_ones_named(accelerator: Accelerator, *, advice: Callable[[], str]) -> Iterator[None]:
    """Let the end of another process be told in one line instead of a traceback.

    Args:
        advice: where the work stood, and how to go on.

    Raises:
        EnvironmentFault: another process ended, or was not heard of for too long.
    """
    try:
        yield
    except RuntimeError as fault:
        is_theirs = isinstance(fault, dist.DistError) or any(words in str(fault) for words in _LOST)
        is_theirs &= not is_out_of_memory(fault)  # NCCL passes CUDA's words on
        if accelerator.num_processes == 1 or not is_theirs:
            raise
        raise EnvironmentFault(
            f"another process was lost, which its own output may explain ({str(fault).splitlines()[0]}); {advice()}"
        ) from fault
