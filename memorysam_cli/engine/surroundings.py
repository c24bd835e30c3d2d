"""The environment of this process: its place among several, the machine's cores, memory and devices, the packages.

torchrun, accelerate, srun scripts and MPI state the place in variables, which only this module reads. It also parses
user input on these things: a device, a shard, an amount of memory. It loads nothing heavy, because every command uses
it before torch is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from memorysam_cli import __version__
from memorysam_cli.errors import EnvironmentFault, UsageError
from memorysam_cli.text import counted, shown

if TYPE_CHECKING:
    from memorysam_cli.data.manifest import Scene

DEVICES = "auto, cpu, cuda, cuda:N, mps"
EXTRAS = {
    "ray": ("ray",), "tensorboard": ("tensorboard",), "wandb": ("wandb",), "mlflow": ("mlflow",),
    "trackio": ("trackio",), "geo": ("rasterio",), "onnx": ("onnx", "onnxruntime", "onnxscript"),
}  # fmt: skip
"""Extra of the package → its modules."""

VARIABLES = (
    *("RANK", "WORLD_", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_"),
    *("PMI_", "OMPI_", "MV2_", "CCL_WORKER_COUNT"),
)
"""Prefixes of all variables that make a process one of several."""
_LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


_NUMBERS = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "MASTER_PORT": 0}
"""Variables that torch reads as integers, and their smallest allowed values."""
_MOST_PORT = 65535
_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_CUDA_DRIVER = "libcuda.so.1"
_ROCM = (Path("/dev/kfd"), Path("/dev/dxg"))
"""Devices of AMD's driver, and of WSL."""
_VERSION = re.compile(r"^__version__ = ['\"]([^'\"]+)['\"]", re.MULTILINE)
_ADVICE = "start all processes with torchrun or accelerate launch, or unset it"


def refuse_malformed() -> None:
    """Refuse values on which torch and accelerate would fail; every command for several processes calls this first.

    Raises:
        UsageError: a variable is not an integer, or this process's number is out of range.
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
    """Variables of a launcher that this process has, as ``$NAME=value``."""
    return [f"${name}={shown(text)}" for name, text in sorted(os.environ.items()) if name.startswith(VARIABLES)]


def world() -> int:
    """The number of processes of this run."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process, from 0."""
    return _number("RANK", 0)


def local_rank() -> int:
    """The number of this process on this machine, from 0."""
    return _number("LOCAL_RANK", 0)


def local_world(default: int) -> int:
    """The number of processes on this machine; ``default`` if the launcher does not state it."""
    return _number("LOCAL_WORLD_SIZE", default)


def host() -> str:
    """The machine of the first process, by its name for the others."""
    return os.environ.get("MASTER_ADDR", "localhost")


def is_launched() -> bool:
    """Whether a launcher started this process, even as the only one."""
    return any(name in os.environ for name in _LAUNCHED)


def environment_alone() -> dict[str, str]:
    """The environment for a child process that is not one of several."""
    return {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}


def _number(name: str, default: int) -> int:
    """An integer from the environment."""
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default


_OWN_GROUPS = Path("/proc/self/cgroup")
_CGROUP = Path("/sys/fs/cgroup")
_OF_V2 = ("memory.max", "memory.current", ("active_file", "inactive_file", "slab_reclaimable"))
_OF_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
"""A control group's limit, its use, and the part of the use that is file cache (in ``memory.stat``), which the kernel
frees when memory is needed."""


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Capacity:
    """The memory of a device or of a machine, in bytes."""

    total: int
    free: int


def memory() -> Capacity:
    """The machine's memory, limited by the control groups of this process (a container, a batch job)."""
    import psutil

    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group, (limit, use, reclaimable) in _memory_groups():
        try:
            most = int((group / limit).read_text())
            used = int((group / use).read_text()) - _sum(group / "memory.stat", reclaimable)
        except (OSError, ValueError):  # there is no limit, or it is "max"
            continue
        total, free = min(total, most), min(free, most - used)
    return Capacity(total, max(free, 0))


def _memory_groups() -> Iterator[tuple[Path, tuple[str, str, tuple[str, ...]]]]:
    """The folders of all control groups that limit this process's memory, from the innermost to the outermost."""
    inside = {"": PurePosixPath("/"), "memory": PurePosixPath("/")}  # by controllers: "" is version 2
    with contextlib.suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            inside |= {name: PurePosixPath(own) for name in controllers.split(",") if name in inside}
    for name, top, files in (("", _CGROUP, _OF_V2), ("memory", _CGROUP / "memory", _OF_V1)):
        # In a container the path is often the host's, and only the top folder exists.
        for path in (inside[name], *inside[name].parents):
            yield top / path.relative_to("/"), files


def _sum(table: Path, names: tuple[str, ...]) -> int:
    """The sum of some rows of a kernel's ``name number`` table; 0 if there is no table."""
    try:
        rows = dict(line.split() for line in table.read_text().splitlines())
    except OSError:
        return 0
    return sum(int(rows.get(name, 0)) for name in names)


def refuse_no_device(name: str) -> None:
    """Refuse a ``--device`` that no machine can have.

    Raises:
        UsageError: it is not the name of a device.
    """
    kind, colon, index = name.partition(":")
    if kind not in {"auto", "cpu", "cuda", "mps"} or (colon and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"--device {name}: is not a device (known: {DEVICES})")


def refuse_device(name: str, *, precision: str = "fp32") -> None:
    """Refuse a device or a precision that this machine certainly lacks, without loading torch.

    Args:
        name: as in ``--device``.
        precision: of the computing.

    Raises:
        EnvironmentFault: as :func:`refuse_absent_device`.
        UsageError: as :func:`refuse_precision`.
    """
    refuse_absent_device(name)
    kind = name.partition(":")[0]
    if kind == "auto" and not (may_have("cuda") or may_have("mps")):
        kind = "cpu"
    if kind != "auto":
        refuse_precision(precision, kind)


def refuse_absent_device(name: str, *, count: int | None = None) -> None:
    """Refuse a device that this machine does not have; never run on the CPU instead.

    Args:
        name: as in ``--device``.
        count: number of devices of this kind that torch can use; None: not known yet, so that only a device without a
            driver is refused.

    Raises:
        EnvironmentFault: the device is missing.
    """
    kind, _, index = name.partition(":")
    number = int(index or 0)
    if count is None:
        count = number + 1 if may_have(kind) else 0
    if number >= count:
        raise EnvironmentFault(
            f"--device {name}: this machine has {counted(count, f'{kind} device')} that PyTorch {torch_version()} can "
            "use; try --device auto"
        )


@cache
def may_have(kind: str) -> bool:
    """Whether torch could find a device of a kind; looks for the same driver as torch, without loading torch.

    False is certain: the CUDA runtime opens the driver's library by the same name, ROCm opens the kernel's device, and
    MPS exists on macOS alone. True only means that torch must be asked.
    """
    is_mac = sys.platform == "darwin"
    if kind in {"mps", "cuda"} and is_mac != (kind == "mps"):
        return False
    if kind != "cuda" or sys.platform != "linux" or any(device.exists() for device in _ROCM):
        return True
    try:
        ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return False
    return True


def refuse_precision(precision: str, kind: str) -> None:
    """Refuse a precision that a kind of device does not support; it is never replaced by another one.

    Raises:
        UsageError: fp16 on a CPU, or tf32 anywhere but on CUDA.
    """
    if precision == "fp16" and kind == "cpu":
        raise UsageError("precision fp16 needs a GPU; on the CPU use fp32 or bf16")
    if precision == "tf32" and kind != "cuda":
        raise UsageError(f"precision tf32 needs an NVIDIA GPU; on {kind} use fp32 or bf16")


def torch_version() -> str:
    """torch's own version; if torch is not loaded yet, from its file.

    pip may spell the version differently (``+nv25.1`` for ``+nv25.01``).
    """
    spec = None if "torch" in sys.modules else importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        with contextlib.suppress(OSError):
            found = _VERSION.search(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"))
            if found is not None:
                return found[1]
    import torch

    return str(torch.__version__)


def versions() -> dict[str, str]:
    """The key ``versions`` of a report."""
    return {"memorysam": __version__, "torch": torch_version()}


def refuse_missing_extra(extra: str, *, option: str) -> None:
    """Refuse an option whose packages are not installed.

    Args:
        extra: of :data:`EXTRAS`.
        option: with its value, such as ``--format onnx``.

    Raises:
        UsageError: the message says what to install.
    """
    specs = {name: importlib.util.find_spec(name) for name in EXTRAS[extra]}
    # Without an origin it is a mere folder: W&B leaves a ./wandb where it works.
    missing = [name for name, spec in specs.items() if spec is None or spec.origin is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{option}: {', '.join(missing)} {are} not installed; pip install 'memorysam[{extra}]'")


def read_bytes(text: str, *, option: str) -> int:
    """The bytes of an amount such as ``24GB``, ``24 GiB`` or ``24000MB``.

    Args:
        text: a number and its unit; GB is 10⁹ bytes, GiB 2³⁰.
        option: the option's name, for the message.

    Raises:
        UsageError: it is anything else, or empty.
    """
    amount = _AMOUNT.fullmatch(text.strip())
    unit = _UNITS.get(amount[2].upper()) if amount else None
    if amount is None or unit is None or not float(amount[1]):
        raise UsageError(f"{option} '{text}': must be an amount of memory above 0 with its unit, such as 24GB or 24GiB")
    return round(float(amount[1]) * unit)


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the scenes: the work of one process."""

    index: int
    """Its number, from 0."""
    count: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.index}-of-{self.count}"

    def of(self, scenes: Sequence[Scene], *, stride: int) -> Sequence[Scene]:
        """Every ``count``-th group of ``stride`` consecutive scenes; all shards together have every scene once."""
        if self.count == 1:
            return scenes
        starts = range(self.index * stride, len(scenes), self.count * stride)
        return [scene for start in starts for scene in scenes[start : start + stride]]

    def divided(self, rank: int, world: int) -> Shard:
        """The share of one of ``world`` processes in this shard."""
        return Shard(self.index * world + rank, self.count * world)


WHOLE = Shard(0, 1)
"""All scenes."""


def read_shard(text: str | None) -> Shard | None:
    """The shard of ``--shard i/n``; None stays None.

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
