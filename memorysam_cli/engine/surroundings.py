"""What surrounds this process: its place among several, and the cores and the memory of the machine.

The place is what torchrun, accelerate, srun scripts and MPI say in variables; no other module names these. What people
write of all this (a device, a part of the work, an amount of memory) is read here, too. Nothing heavy is loaded: every
command asks before torch is there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from memorysam_cli.errors import UsageError
from memorysam_cli.text import shown

if TYPE_CHECKING:
    from memorysam_cli.data.manifest import Scene

DEVICES = "auto, cpu, cuda, cuda:N, mps"

VARIABLES = (
    *("RANK", "WORLD_", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_"),
    *("PMI_", "OMPI_", "MV2_", "CCL_WORKER_COUNT"),
)
"""Beginnings of the names of all variables that make a process one of several."""
_LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


_NUMBERS = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": 0}
"""Variables that torch reads as whole numbers, and the least that each may be."""
_MOST_PORT = 65535
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_ADVICE = "start all processes with torchrun or accelerate launch, or unset it"


def refuse_malformed() -> None:
    """Refuse what torch and accelerate would stumble over: every command that works with others asks before.

    Raises:
        UsageError: a variable is not a whole number, or this process is none of those that there are.
    """
    for name, least in _NUMBERS.items():
        text = os.environ.get(name, str(least))
        number = int(text) if text.isascii() and text.isdigit() else -1
        if number < least or (name == "MASTER_PORT" and number > _MOST_PORT):
            most = f" to {_MOST_PORT}" if name == "MASTER_PORT" else ""
            raise UsageError(f"${name} is '{shown(text)}'; it must be a whole number from {least}{most}: {_ADVICE}")
    for name, whole in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        if whole in os.environ and _number(name, 0) >= _number(whole, 1):
            raise UsageError(
                f"${name} is {_number(name, 0)}, but ${whole} {_number(whole, 1)}, and they count from 0: {_ADVICE}"
            )


def foreign_variables() -> list[str]:
    """The variables that a launcher may have set and this process has, as ``$NAME=value``."""
    return [f"${name}={shown(text)}" for name, text in sorted(os.environ.items()) if name.startswith(VARIABLES)]


def world() -> int:
    """How many processes this run has."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Which of them this is, from 0."""
    return _number("RANK", 0)


def local_rank() -> int:
    """Which one of those on this machine."""
    return _number("LOCAL_RANK", 0)


def local_world(default: int) -> int:
    """How many there are on this machine; ``default`` where the launcher does not say."""
    return _number("LOCAL_WORLD_SIZE", default)


def host() -> str:
    """The machine of the first process, by the name that the others reach it by."""
    return os.environ.get("MASTER_ADDR", "localhost")


def is_launched() -> bool:
    """Whether a launcher started this process, even as the only one."""
    return any(name in os.environ for name in _LAUNCHED)


def environment_alone() -> dict[str, str]:
    """The environment of a child process that must not take itself for one of several."""
    return {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}


def _number(name: str, default: int) -> int:
    """A whole number of the environment."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default


_OWN_GROUPS = Path("/proc/self/cgroup")
_CGROUP = Path("/sys/fs/cgroup")
_OF_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))
_OF_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
"""A control group's limit, its use, and what of the use are files that were read (in ``memory.stat``): the kernel gives
those up for whoever needs the memory."""


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Capacity:
    """The memory of a device or of a machine, in bytes."""

    total: int
    free: int


def memory() -> Capacity:
    """The machine's memory, at most what the control groups of this process (a container, a batch job) may use."""
    import psutil

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group, (limit, use, reclaimable) in _memory_groups():
        try:
            most = int((group / limit).read_text())
            used = int((group / use).read_text()) - _sum(group / "memory.stat", reclaimable)
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
        total, free = min(total, most), min(free, most - used)
    return Capacity(total, max(free, 0))


def _memory_groups() -> Iterator[tuple[Path, tuple[str, str, tuple[str, ...]]]]:
    """The folders of all control groups that limit this process's memory, from its own to the outermost."""
    inside = {"": PurePosixPath("/"), "memory": PurePosixPath("/")}  # by controllers: "" is version 2
    with contextlib.suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            inside |= {name: PurePosixPath(own) for name in controllers.split(",") if name in inside}
    for name, top, files in (("", _CGROUP, _OF_V2), ("memory", _CGROUP / "memory", _OF_V1)):
        # In a container the path is often the host's, and only the top is there.
        for path in (inside[name], *inside[name].parents):
            yield top / path.relative_to("/"), files


def _sum(table: Path, names: tuple[str, ...]) -> int:
    """The sum of some rows of a kernel's ``name number`` table; 0 where there is no table."""
    try:
        rows = dict(line.split() for line in table.read_text().splitlines())
    except OSError:
        return 0
    return sum(int(rows.get(name, 0)) for name in names)


def refuse_no_device(name: str) -> None:
    """Refuse what ``--device`` never means, whatever this machine has.

    Raises:
        UsageError: it is not the name of a device.
    """
    kind, colon, index = name.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (colon and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"--device {name}: is not a device (known: {DEVICES})")


def read_bytes(text: str, *, option: str) -> int:
    """The bytes of an amount such as ``24GB``, ``24 GiB`` or ``24000MB``.

    Args:
        text: a number and its unit; GB is 10⁹ bytes, GiB 2³⁰.
        option: whose value it is, for the message.

    Raises:
        UsageError: anything else, or nothing at all.
    """
    amount = _AMOUNT.fullmatch(text.strip())
    unit = _UNITS.get(amount[2].upper()) if amount else None
    if amount is None or unit is None or not float(amount[1]):
        raise UsageError(f"{option} '{text}': must be an amount of memory above 0 with its unit, such as 24GB or 24GiB")
    return round(float(amount[1]) * unit)


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the scenes; the work of one process."""

    index: int
    """From 0."""
    count: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.index}-of-{self.count}"

    def of(self, scenes: Sequence[Scene], *, stride: int) -> Sequence[Scene]:
        """Every ``count``-th group of ``stride`` consecutive scenes; all shards together are all scenes, once."""
        if self.count == 1:
            return scenes
        starts = range(self.index * stride, len(scenes), self.count * stride)
        return [scene for start in starts for scene in scenes[start : start + stride]]

    def divided(self, rank: int, world: int) -> Shard:
        """What one of ``world`` processes takes of this shard."""
        return Shard(self.index * world + rank, self.count * world)


WHOLE = Shard(0, 1)
"""All scenes."""


def read_shard(text: str | None) -> Shard | None:
    """The shard that ``--shard i/n`` means; None stays None.

    Raises:
        UsageError: not two numbers, or not 0 ≤ i < n.
    """
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not slash or not all(word.isascii() and word.isdigit() for word in (index, count)):
        raise UsageError(f"--shard {text}: must be I/N, such as 0/4 for the first of four")
    if int(count) == 0:
        raise UsageError(f"--shard {text}: N, the number of shards, must be 1 or more")
    if int(index) >= int(count):
        raise UsageError(
            f"--shard {text}: shards count from 0, so that the last of {count} is {int(count) - 1}/{count}"
        )
    return Shard(int(index), int(count))
