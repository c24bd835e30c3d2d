"""The processes of a run: how they connect, agree and add up, and how the loss of one is reported.

Processes that train or evaluate together form a group of ``torch.distributed``; they come first in this module.
Processes that predict work side by side (:func:`side_by_side`), each on its own scenes. They communicate only through a
:class:`~memorysam_cli.engine.lost_processes.PeerWatch`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from memorysam_cli.engine import lost_processes, surroundings
from memorysam_cli.engine.lost_processes import Invitation, LostProcess, PeerWatch
from memorysam_cli.errors import EnvironmentFault, Stopped, UsageError, is_out_of_memory
from memorysam_cli.losses.loss import Exchange
from memorysam_cli.report import console
from memorysam_cli.text import shown

PATIENCE = timedelta(seconds=120)
"""Time limit for the other processes' part of a sum; after that, one of them is lost."""
LONG_PATIENCE = timedelta(hours=2)
"""Time limit while one process downloads, draws or saves alone."""
_LOST = ("gloo/transport", "pair closure", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""Phrases of the backends of ``torch.distributed`` for a process that is gone or does not answer."""
_INVITATION = "memorysam/invitation"
"""The key under which the first process publishes its address."""
_LOOK_S = 0.05
_SHOWN = 60
_patient: dict[dist.ProcessGroup | None, dist.ProcessGroup] = {}
"""The group for agreements on the CPU, for any device, by the group of all processes."""
_watches: dict[dist.ProcessGroup | None, PeerWatch] = {}
_has_failed = threading.Event()
"""Whether collective work ended by an error; a part of it may still be waiting."""


def own_device(device: torch.device) -> torch.device:
    """The device of this process; with several processes, each has its own GPU.

    Raises:
        UsageError: one GPU was named for several processes.
        EnvironmentFault: there are fewer GPUs than processes.
    """
    if device.type == "cuda" and surroundings.world() > 1:
        if device.index is not None:
            raise UsageError(f"--device {device}: each of several processes gets its own device; use --device cuda")
        device = torch.device("cuda", surroundings.local_rank())
        if device.index >= torch.cuda.device_count():
            raise EnvironmentFault(
                f"process {surroundings.rank()}: no GPU is left for it, there are {torch.cuda.device_count()}; start "
                "as many processes as there are GPUs"
            )
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def connect(accelerator: Accelerator) -> None:
    """Connect all processes, and watch for those that are lost later.

    Raises:
        EnvironmentFault: a process does not connect within :data:`PATIENCE`; the message names it.
    """
    if accelerator.num_processes > 1 and dist.group.WORLD not in _watches:
        store, rank = distributed_c10d._get_default_store(), accelerator.process_index
        _meet(store, rank, accelerator.num_processes, patience=PATIENCE)
        _patient_group()
        with contextlib.suppress(OSError):  # without it a loss is still noticed, but later and without a name
            watch = _watch(store, rank, accelerator.num_processes, on_stuck=_exit_stuck)
            watch.start()
            _watches[dist.group.WORLD] = watch
        # A process that then refuses its work may end before another is connected, and would seem to be lost.
        with lost_ones_named(accelerator, advice=lambda: "start it again"):
            _patient_group().barrier().wait()
        atexit.register(_leave)


def _leave() -> None:
    """End the backend's threads while Python still runs; a thread that frees a tensor later aborts the process.

    Not after an error, when they may be waiting for a lost process.
    """
    if not _has_failed.is_set() and dist.is_initialized():
        _patient.clear()
        _watches.clear()
        dist.destroy_process_group()


def _meet(store: Any, rank: int, world: int, *, patience: timedelta) -> None:
    """Wait until every process has registered, because creating a group would not say which process is missing."""
    until = time.monotonic() + patience.total_seconds()
    store.set(f"memorysam/{rank}", "here")
    while missing := [other for other in range(world) if not store.check([f"memorysam/{other}"])]:
        if time.monotonic() > until:
            raise _missing_error(missing, world, patience=patience)
        time.sleep(_LOOK_S)


def _missing_error(missing: Sequence[int], world: int, *, patience: timedelta) -> EnvironmentFault:
    ranks = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
    return EnvironmentFault(
        f"{ranks} of {world} did not come within {patience.total_seconds():.0f} s; the output of the others may "
        "explain it"
    )


def _watch(store: Any, rank: int, world: int, *, on_stuck: Callable[[LostProcess, str], object] | None) -> PeerWatch:
    """This process's watch; all connected processes call this.

    Raises:
        OSError: this process and the first one cannot be connected.
    """
    if rank:
        text = store.get(_INVITATION).decode()
        if not text:
            raise OSError("the first process cannot listen")
        return lost_processes.join(Invitation.from_text(text), rank=rank, on_stuck=on_stuck)
    text = ""
    try:
        listener, invitation = lost_processes.invite(
            surroundings.host(), is_one_host=surroundings.local_world(0) == world
        )
        text = invitation.to_text()
    finally:
        store.set(_INVITATION, text)
    return PeerWatch(0, invitation.token, listener=listener, on_stuck=on_stuck)


def _exit_stuck(lost: LostProcess, advice: str) -> None:
    """End this process, which waits for a lost one in a call that no exception can interrupt."""
    with contextlib.suppress(OSError):
        console.error(f"{lost}, and this process still waited for it; {advice}", code=EnvironmentFault.exit_code)
    os._exit(EnvironmentFault.exit_code)


def _patient_group() -> dist.ProcessGroup:
    group = dist.group.WORLD
    if group not in _patient:
        _patient[group] = dist.new_group(backend="gloo", timeout=PATIENCE)
    return _patient[group]


@contextlib.contextmanager
def lost_ones_named(accelerator: Accelerator, *, advice: Callable[[], str]) -> Iterator[None]:
    """Report the end of another process in one line instead of a traceback.

    Args:
        advice: the state of the work, and how to continue.

    Raises:
        EnvironmentFault: another process ended, or did not answer for too long.
    """
    watch = _watches.get(dist.group.WORLD) if accelerator.num_processes > 1 else None
    with contextlib.nullcontext() if watch is None else watch.at_work(advice):
        try:
            yield
        except BaseException as error:
            _has_failed.set()
            if not isinstance(error, RuntimeError):
                raise
            is_theirs = isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST)
            is_theirs &= not is_out_of_memory(error)  # NCCL passes CUDA's messages on
            if accelerator.num_processes == 1 or not is_theirs:
                raise
            who = (watch.lost() if watch is not None else None) or "another process was lost"
            raise EnvironmentFault(
                f"{who}, which its own output may explain ({_first_words(error)}); {advice()}"
            ) from error


def _first_words(error: BaseException) -> str:
    """The first part of a backend's message, without the place in its source and the advice."""
    return re.sub(r"^\[[^]]*\] ?", "", str(error).splitlines()[0]).partition(". ")[0]


def refuse_differing(facts: Mapping[str, object], accelerator: Accelerator) -> None:
    """Refuse processes that would do different work, before they wait for each other forever.

    Args:
        facts: values that must be equal everywhere, by name, such as the number of updates or the data set's content
            hash.

    Raises:
        UsageError: a value differs; the same in every process.
    """
    if accelerator.num_processes == 1:
        return
    gathered: list[dict[str, object]] = [{} for _ in range(accelerator.num_processes)]
    dist.all_gather_object(gathered, dict(facts), group=_patient_group())
    for rank, theirs in enumerate(gathered):
        for name in {**gathered[0], **theirs}:
            if theirs.get(name) != gathered[0].get(name):
                first, other = (shown(each.get(name), most=_SHOWN) for each in (gathered[0], theirs))
                raise UsageError(
                    f"{name}: differs between the processes, {first} in rank 0 and {other} in rank {rank}; "
                    "give all of them the same data, recipe and version"
                )


def agree(claim: bool, accelerator: Accelerator) -> bool:
    """Whether the argument is true in any process. Every process gets the same answer, without waiting for a device."""
    if accelerator.num_processes == 1:
        return claim
    claims = torch.tensor(int(claim))
    dist.all_reduce(claims, group=_patient_group())
    return int(claims) > 0


def wait_for_all(accelerator: Accelerator) -> None:
    """Wait until every process is here, even if one was busy for long.

    The sums of a training run give up after :data:`PATIENCE`; this waits for :data:`LONG_PATIENCE`, on the CPU, for any
    device.
    """
    if accelerator.num_processes > 1:
        options = dist.BarrierOptions()
        options.timeout = LONG_PATIENCE
        _patient_group().barrier(options).wait()


def exchange_of(accelerator: Accelerator) -> Exchange | None:
    """The losses' connection to the other processes; None if there are none."""
    if accelerator.num_processes == 1:
        return None
    return AllProcesses(accelerator.num_processes, accelerator.process_index)


class AllProcesses:
    """Sums over all processes, for the losses (:class:`~memorysam_cli.losses.loss.Exchange`)."""

    def __init__(self, world: int, rank: int) -> None:
        self.world, self.rank = world, rank

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor up over all processes; differentiable if it is float32.

        The backward pass also adds the processes' gradients up. DDP then averages them, so that a loss of such sums
        gets the same gradient as one process with all the data.
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


@contextlib.contextmanager
def side_by_side() -> Iterator[Peers]:
    """Connect to the other processes of this run; an error that leaves the block ends them too, with its exit code.

    They exchange only short messages. There is no time limit for a living process, because the scenes of one may take
    hours longer than those of another.

    Raises:
        EnvironmentFault: they cannot be reached, or do not connect.
    """
    surroundings.refuse_malformed()
    world = surroundings.world()
    if world <= 1:
        yield Peers(0, 1, None)
        return
    store, watch = _meet_side_by_side(world)
    watch.start()
    until = time.monotonic() + PATIENCE.total_seconds()
    with watch.at_work(str):
        while watch.rank == 0 and (missing := watch.not_come(world)):
            if time.monotonic() > until:
                raise _missing_error(missing, world, patience=PATIENCE)
            time.sleep(_LOOK_S)
        del store  # the first process kept it for the others until here
        yield Peers(watch.rank, world, watch)


def _meet_side_by_side(world: int) -> tuple[Any, PeerWatch]:
    """Connect through torch's key-value store."""
    try:
        store, rank, world = next(rendezvous("env://"))
        store.set_timeout(LONG_PATIENCE)
        _meet(store, rank, world, patience=LONG_PATIENCE)
        watch = _watch(store, rank, world, on_stuck=None)
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise EnvironmentFault(
            f"$WORLD_SIZE is {world}, and the other processes cannot be reached ({reason}); start them all with "
            "torchrun, or give each its own --shard"
        ) from error
    return store, watch


class Peers:
    """This process among those that work side by side.

    Args:
        rank: its number, from 0.
        world: number of processes.
        watch: on the others; None if there are none.
    """

    def __init__(self, rank: int, world: int, watch: PeerWatch | None) -> None:
        self.rank, self.world, self._watch = rank, world, watch

    def notice(self) -> None:
        """Check whether another process is lost.

        Raises:
            Stopped: one of them failed; with its exit code.
            EnvironmentFault: one of them was killed or cut off.
        """
        lost = self._watch.lost(within=0) if self._watch is not None else None
        if lost is None:
            return
        if lost.exit_code is not None:
            raise Stopped(f"process {lost.rank} failed: {lost.message}", exit_code=lost.exit_code)
        raise EnvironmentFault(
            f"process {lost.rank} of this run is lost; its own output may explain it; run the same command again"
        )

    def wait_for_all(self) -> None:
        """Wait until every process is done, without a time limit for living ones.

        Raises:
            Stopped, EnvironmentFault: as :meth:`notice`.
        """
        if self._watch is None:
            return
        if self.rank:
            self._watch.tell_done()
        while not self._watch.are_through((0,) if self.rank else range(1, self.world)):
            self.notice()
            time.sleep(_LOOK_S)
        self.notice()
        self._watch.tell_done()  # the first one last, after it has heard of all
