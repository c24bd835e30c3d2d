"""Several processes that train together: what they add up, agree on and wait for."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed import distributed_c10d

from memorysam_cli.engine import lookout
from memorysam_cli.engine.lookout import Gone, Lookout
from memorysam_cli.errors import EnvironmentFault, UsageError, is_out_of_memory
from memorysam_cli.losses.loss import Exchange
from memorysam_cli.report import console
from memorysam_cli.text import shown

PATIENCE = timedelta(seconds=120)
"""For how long a process waits for the others' part of a sum: by then one of them is lost."""
LONG_PATIENCE = timedelta(hours=2)
"""For how long the others wait while one process downloads, draws or saves alone."""

_LOST = ("gloo/transport", "pair closure", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""How the engines of ``torch.distributed`` say that another process is gone, or does not answer."""

_patient: dict[dist.ProcessGroup | None, dist.ProcessGroup] = {}
"""The group of what is agreed on the CPU, whatever the device is, by the group of all processes that it was made in."""
_lookouts: dict[dist.ProcessGroup | None, Lookout] = {}
_LOOK_S = 0.05
_SHOWN = 60


class AllProcesses:
    """Sums over all processes, as the losses ask for them (:class:`~memorysam_cli.losses.loss.Exchange`)."""

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
    """Whether any process claims something; every process gets the same answer, and no device is waited for."""
    if accelerator.num_processes == 1:
        return claim
    claims = torch.tensor(int(claim))
    dist.all_reduce(claims, group=_patient_group())
    return int(claims) > 0


def refuse_differing(facts: Mapping[str, object], accelerator: Accelerator) -> None:
    """Refuse processes that would not do the same work, before they wait for each other in vain.

    Args:
        facts: what must be equal everywhere, such as the number of updates or the data set's content hash, by name.

    Raises:
        UsageError: a fact differs; the same in every process.
    """
    if accelerator.num_processes == 1:
        return
    found: list[dict[str, object]] = [{} for _ in range(accelerator.num_processes)]
    dist.all_gather_object(found, dict(facts), group=_patient_group())
    for rank, theirs in enumerate(found):
        for name in {**found[0], **theirs}:
            if theirs.get(name) != found[0].get(name):
                first, other = (shown(each.get(name), most=_SHOWN) for each in (found[0], theirs))
                raise UsageError(
                    f"{name}: differs between the processes, {first} in rank 0 and {other} in rank {rank}; "
                    "give all of them the same data, recipe and version"
                )


def wait_for_all(accelerator: Accelerator) -> None:
    """Wait until every process is here, also while one of them has been busy for long.

    The sums of a training give up after :data:`PATIENCE`; this waits for :data:`LONG_PATIENCE`, on the CPU, whatever
    the device is.
    """
    if accelerator.num_processes > 1:
        options = dist.BarrierOptions()
        options.timeout = LONG_PATIENCE
        _patient_group().barrier(options).wait()


def connect(accelerator: Accelerator) -> None:
    """Let all processes meet, and keep a lookout for those that are lost later.

    Raises:
        EnvironmentFault: a process does not come within :data:`PATIENCE`; names it.
    """
    if accelerator.num_processes > 1 and dist.group.WORLD not in _lookouts:
        _meet(accelerator.process_index, accelerator.num_processes)
        group = _patient_group()
        with contextlib.suppress(OSError):  # without it a loss is noticed all the same, though later and without a name
            found = _lookout(accelerator, group)
            found.start()
            _lookouts[dist.group.WORLD] = found


def _meet(rank: int, world: int) -> None:
    """Wait until every process has said that it is here; the making of a group would not say who is missing."""
    store, until = distributed_c10d._get_default_store(), time.monotonic() + PATIENCE.total_seconds()
    store.set(f"memorysam/{rank}", "here")
    while missing := [other for other in range(world) if not store.check([f"memorysam/{other}"])]:
        if time.monotonic() > until:
            ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
            raise EnvironmentFault(
                f"{ranks} of {world} did not come within {PATIENCE.total_seconds():.0f} s; the output of the others "
                "may explain it"
            )
        time.sleep(_LOOK_S)


def _lookout(accelerator: Accelerator, group: dist.ProcessGroup) -> Lookout:
    """This process's lookout; all call this together."""
    rank, made = accelerator.process_index, None
    box: list[lookout.Invitation | None] = [None]
    if rank == 0:
        is_one_host = os.environ.get("LOCAL_WORLD_SIZE") == str(accelerator.num_processes)
        with contextlib.suppress(OSError):
            listener, invitation = lookout.invite(os.environ.get("MASTER_ADDR", "localhost"), is_one_host=is_one_host)
            made, box = Lookout(0, invitation.token, listener=listener, on_stuck=_end), [invitation]
    dist.broadcast_object_list(box, src=0, group=group)
    if box[0] is None:
        raise OSError("the first process cannot listen")
    return lookout.join(box[0], rank=rank, on_stuck=_end) if made is None else made


def _end(gone: Gone, advice: str) -> None:
    """End this process, which waits for one that is gone, in a call that no exception reaches."""
    with contextlib.suppress(OSError):
        console.error(f"{gone}, and this process still waited for it; {advice}", code=EnvironmentFault.exit_code)
    os._exit(EnvironmentFault.exit_code)


def _patient_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group not in _patient:
        _patient[group] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _patient[group]


@contextlib.contextmanager
def lost_ones_named(accelerator: Accelerator, *, advice: Callable[[], str]) -> Iterator[None]:
    """Let the end of another process be told in one line instead of a traceback.

    Args:
        advice: where the work stood, and how to go on.

    Raises:
        EnvironmentFault: another process ended, or was not heard of for too long.
    """
    watch = _lookouts.get(dist.group.WORLD) if accelerator.num_processes > 1 else None
    with contextlib.nullcontext() if watch is None else watch.at_work(advice):
        try:
            yield
        except RuntimeError as fault:
            is_theirs = isinstance(fault, dist.DistError) or any(words in str(fault) for words in _LOST)
            is_theirs &= not is_out_of_memory(fault)  # NCCL passes CUDA's words on
            if accelerator.num_processes == 1 or not is_theirs:
                raise
            who = (watch.gone() if watch is not None else None) or "another process was lost"
            raise EnvironmentFault(f"{who}, which its own output may explain ({_first(fault)}); {advice()}") from fault


def _first(fault: BaseException) -> str:
    """What an engine says first: without the place in its source, and without the advice that follows."""
    return re.sub(r"^\[[^]]*\] ?", "", str(fault).splitlines()[0]).partition(". ")[0]
