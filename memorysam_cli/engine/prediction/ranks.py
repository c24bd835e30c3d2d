"""Several processes of one run, as ``torchrun`` and ``accelerate launch`` start them, and Slurm with their variables.

They meet over gloo, on CPUs: nothing but a word now and then passes between them, and no wait has a limit, for the
scenes of one process may take hours longer than those of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from memorysam_cli.errors import EnvironmentFault, MemorySamError, Stopped, UsageError, environment_fault

Thing = TypeVar("Thing")

FAULT = "memorysam-fault"
"""The key under which the first process that fails says why."""
HEARD = "memorysam-heard"
"""The key under which the processes that end early count themselves."""
NOTICE_S = 1.0
"""How often a process looks whether another one has failed."""
GRACE_S = 10.0
"""For how long the first process, which may keep the store, waits until the others have heard of a failure."""
NO_LIMIT = timedelta(days=365)


def world() -> int:
    """How many processes this run has."""
    return _number("WORLD_SIZE", 1)


def own_device(device: torch.device) -> torch.device:
    """The device of this process; each of several has its own GPU.

    Raises:
        UsageError: one GPU was named for several processes.
    """
    if device.type == "cuda" and world() > 1:
        if device.index is not None:
            raise UsageError(f"--device {device}: each of several processes gets its own device; use --device cuda")
        device = torch.device("cuda", _number("LOCAL_RANK", 0))
        if device.index >= torch.cuda.device_count():
            raise EnvironmentFault(
                f"process {_number('RANK', 0)}: no GPU is left for it, there are {torch.cuda.device_count()}; start as "
                "many processes as there are GPUs"
            )
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


class Company:
    """The processes of this run; see :func:`company`.

    Args:
        store: torch's, where every process finds what another one has put.
        rank: which process this is, from 0.
        world: how many there are.
    """

    def __init__(self, store: Any, *, rank: int, world: int) -> None:
        self.rank, self.world, self._store = rank, world, store
        self._looked = time.monotonic()
        self._lost = 0

    def gather(self, thing: Thing) -> list[Thing]:
        """Wait for the others, and get everybody's thing, in the order of the processes.

        Raises:
            Stopped: one of them failed; with its exit code.
            EnvironmentFault: one of them is lost.
        """
        found: list[Any] = [None] * self.world
        try:
            dist.all_gather_object(found, thing)
        except RuntimeError as error:  # gloo notices at once that a process is gone
            self._raise_fault()
            self._lost = 1
            raise EnvironmentFault(
                "another process of this prediction is lost; see its own message, then run the same command again"
            ) from error
        return found

    def meet(self) -> None:
        """Wait for the others; as :func:`gather`."""
        self.gather(None)

    def notice(self) -> None:
        """Look, now and then, whether another process has failed.

        Raises:
            Stopped: so it is; with its exit code.
            EnvironmentFault: the first process is lost.
        """
        if time.monotonic() - self._looked < NOTICE_S:
            return
        self._raise_fault()
        self._looked = time.monotonic()

    def fail(self, fault: Exception) -> None:
        """Tell the others, unless one of them was first."""
        known = fault if isinstance(fault, MemorySamError) else environment_fault(fault)
        code, words = (1, repr(fault)) if known is None else (known.exit_code, str(known))
        with contextlib.suppress(RuntimeError):  # the first process, which keeps the store, may be gone
            if not self._store.check([FAULT]):
                self._store.set(FAULT, json.dumps({"rank": self.rank, "code": code, "message": words}))

    def part(self) -> None:
        """Leave before the work is done; the first process goes last, for the store may end with it.

        The group of all is left before that: who waits there for this process notices at once.
        """
        deadline, others = time.monotonic() + GRACE_S, self.world - self._lost
        with contextlib.suppress(RuntimeError):
            self._store.add(HEARD, 1)
            while self.rank == 0 and self._store.add(HEARD, 0) < others and time.monotonic() < deadline:
                time.sleep(0.05)

    def _raise_fault(self) -> None:
        try:
            told = json.loads(self._store.get(FAULT)) if self._store.check([FAULT]) else None
        except RuntimeError as error:
            raise EnvironmentFault("the first process of this prediction is lost; see its own message") from error
        if told is not None and told["rank"] != self.rank:
            raise Stopped(f"process {told['rank']} failed: {told['message']}", exit_code=told["code"])


@contextlib.contextmanager
def company() -> Iterator[Company]:
    """Meet the other processes; an error that leaves the block ends them too, with its exit code.

    Raises:
        EnvironmentFault: they cannot be reached.
    """
    try:
        store, rank, count = next(rendezvous("env://"))
        store.set_timeout(NO_LIMIT)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=NO_LIMIT)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise EnvironmentFault(
            f"$WORLD_SIZE is {os.environ['WORLD_SIZE']}, and the other processes cannot be reached ({reason}); start "
            "them all with torchrun"
        ) from error
    found = Company(store, rank=rank, world=count)
    is_cut_short = False
    try:
        yield found
    except Exception as fault:
        is_cut_short = True
        if not isinstance(fault, Stopped):
            found.fail(fault)
        raise
    finally:
        dist.destroy_process_group()
        if is_cut_short:
            found.part()


def _number(name: str, default: int) -> int:
    """A whole number of the environment."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
