"""Several processes of one run, as ``torchrun`` and ``accelerate launch`` start them, and Slurm with their variables.

They meet in torch's key-value store: nothing but a word now and then passes between them, and no wait for a process
that lives has a limit, for the scenes of one may take hours longer than those of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch.distributed.rendezvous import rendezvous

from memorysam_cli.errors import EnvironmentFault, MemorySamError, Stopped, UsageError, environment_fault

FAULT = "memorysam-fault"
"""The key under which the first process that fails says why."""
HERE = "memorysam-here"
"""The key under which the processes that have come count themselves."""
HEARD = "memorysam-heard"
"""The key under which the processes that leave count themselves."""
THING = "memorysam-thing-"
"""The key, with the number of the meeting and of the process behind it, under which that process puts its thing."""
POLL_S = 0.1
NOTICE_S = 1.0
"""How often a process looks whether another one has failed."""
GRACE_S = 10.0
"""For how long the first process, which may keep the store, waits until the others have heard of a failure."""
PULSE = "memorysam-pulse-"
"""The key, with a process's number behind it, under which that process counts for as long as it lives."""
BEAT_S, LOST_S = 5.0, 60.0
"""How often it counts; and after how long without a beat it is taken for dead."""
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
        self._lost = self._meetings = 0
        self._pulse = _Pulse(store, rank=rank, world=world)

    def gather(self, thing: Any) -> list[Any]:
        """Wait for the others, and get everybody's thing, which JSON can hold, in the order of the processes.

        Raises:
            Stopped: one of them failed; with its exit code.
            EnvironmentFault: one of them is lost.
        """
        keys = [f"{THING}{self._meetings}-{rank}" for rank in range(self.world)]
        self._meetings += 1
        with self._first_is_there():
            self._store.set(keys[self.rank], json.dumps(thing))
            while not self._store.check(keys):
                self.look()
                time.sleep(POLL_S)
            return [json.loads(self._store.get(key)) for key in keys]

    def notice(self) -> None:
        """As :meth:`look`, now and then."""
        if time.monotonic() - self._looked >= NOTICE_S:
            self.look()
            self._looked = time.monotonic()

    def look(self) -> None:
        """Look whether another process has failed.

        Raises:
            Stopped: so it is; with its exit code.
            EnvironmentFault: the first process, or the next one, is lost.
        """
        with self._first_is_there():
            told = json.loads(self._store.get(FAULT)) if self._store.check([FAULT]) else None
        if told is not None and told["rank"] != self.rank:
            raise Stopped(f"process {told['rank']} failed: {told['message']}", exit_code=told["code"])
        if self._pulse.is_lost:
            self._lost = 1
            raise EnvironmentFault(
                f"process {self._pulse.watched} of this prediction is lost: no sign of life for {LOST_S:.0f} s; see "
                "its own message, then run the same command again"
            )

    def fail(self, fault: Exception) -> None:
        """Tell the others, unless one of them was first."""
        known = fault if isinstance(fault, MemorySamError) else environment_fault(fault)
        code, words = (1, repr(fault)) if known is None else (known.exit_code, str(known))
        with contextlib.suppress(RuntimeError):  # the first process, which keeps the store, may be gone
            if not self._store.check([FAULT]):
                self._store.set(FAULT, json.dumps({"rank": self.rank, "code": code, "message": words}))

    def part(self) -> None:
        """Leave; the first process goes last, for the store ends with it."""
        deadline, others = time.monotonic() + GRACE_S, self.world - self._lost
        with contextlib.suppress(RuntimeError):
            self._store.add(HEARD, 1)
            while self.rank == 0 and self._store.add(HEARD, 0) < others and time.monotonic() < deadline:
                time.sleep(POLL_S)

    def start(self) -> None:
        """Begin to give signs of life, and to look for those of the next process."""
        self._pulse.start()

    def stop(self) -> None:
        """End that, before the store may end."""
        self._pulse.stop()

    @contextlib.contextmanager
    def _first_is_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise EnvironmentFault("the first process of this prediction is lost; see its own message") from error


class _Pulse(threading.Thread):
    """Counts in the store, and watches the next process do so: a ring, so that many processes ask no more than few."""

    def __init__(self, store: Any, *, rank: int, world: int) -> None:
        super().__init__(name="pulse", daemon=True)
        self.watched = (rank + 1) % world
        self.is_lost = False
        self._store, self._rank = store, rank
        self._ended = threading.Event()

    def run(self) -> None:
        """Until the end, or until the store is gone: that is :meth:`Company.look`'s to tell."""
        count, beaten = -1, time.monotonic()
        with contextlib.suppress(RuntimeError):
            while not self._ended.wait(BEAT_S):
                self._store.add(f"{PULSE}{self._rank}", 1)
                found = self._store.add(f"{PULSE}{self.watched}", 0)
                if found != count:
                    count, beaten = found, time.monotonic()
                self.is_lost = time.monotonic() - beaten > LOST_S

    def stop(self) -> None:
        """End, and wait for the last beat."""
        self._ended.set()
        if self.is_alive():
            self.join(BEAT_S)


@contextlib.contextmanager
def company() -> Iterator[Company]:
    """Meet the other processes; an error that leaves the block ends them too, with its exit code.

    Raises:
        EnvironmentFault: they cannot be reached.
    """
    try:
        store, rank, count = next(rendezvous("env://"))
        store.set_timeout(NO_LIMIT)
        store.add(HERE, 1)
        while store.add(HERE, 0) < count:
            time.sleep(POLL_S)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise EnvironmentFault(
            f"$WORLD_SIZE is {os.environ['WORLD_SIZE']}, and the other processes cannot be reached ({reason}); start "
            "them all with torchrun"
        ) from error
    found = Company(store, rank=rank, world=count)
    found.start()
    try:
        yield found
    except Exception as fault:
        if not isinstance(fault, Stopped):
            found.fail(fault)
        found.part()
        raise
    else:
        found.part()
    finally:
        found.stop()


def _number(name: str, default: int) -> int:
    """A whole number of the environment."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
