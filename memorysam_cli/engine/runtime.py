"""Device, precision, deterministic kernels, random numbers, and memory.

On a GPU, memory figures come from CUDA's allocator; elsewhere from the process, the machine and its control groups. The
functions give the total, the use, and a line for the user when memory runs out.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from memorysam_cli.engine import processes, surroundings
from memorysam_cli.engine.surroundings import Capacity
from memorysam_cli.errors import EnvironmentFault, MemorySamError, UsageError, is_out_of_memory, shortage
from memorysam_cli.storage import children
from memorysam_cli.text import few, size

_SHOWN_VARIABLES = 8
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
LOOKING = "use a smaller --batch (1 is the least), fewer --modalities, no --tta, or a device with more memory"
"""Options that reduce the memory of ``predict`` and ``evaluate``."""
_ENGINES = {"ACCELERATE_USE_FSDP": "--use_fsdp", "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed"}
"""Variables that ``accelerate launch`` sets for engines that shard the weights, and the option of each."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
_CUBLAS_MISSING = "Deterministic behavior was enabled"
"""torch's message if cuBLAS was started without its workspace."""
_STATUS = Path("/proc/self/status")


def choose_device(name: str) -> torch.device:
    """The device of a ``--device`` option; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: not a device name.
        EnvironmentFault: this machine does not have the device. There is never a silent run on the CPU.
    """
    surroundings.refuse_no_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    kind = name.partition(":")[0]
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}[kind]
    surroundings.refuse_absent_device(name, count=count)
    return torch.device(name)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def make_accelerator(device: torch.device, *, precision: str) -> Accelerator:
    """The accelerator of a run; under ``torchrun`` or ``accelerate launch`` each process gets its own device.

    Args:
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

    Raises:
        UsageError: the device cannot compute in that precision, one device was named for several processes, or
            ``accelerate launch`` was given an engine that is not supported.
        EnvironmentFault: another process did not connect.
    """
    refuse_precision(precision, device)
    surroundings.refuse_malformed()
    _refuse_engine()
    is_alone = surroundings.world() == 1
    if device.index is not None:
        if not is_alone:
            raise UsageError(f"--device {device}: each of several processes gets its own device; use --device cuda")
        torch.cuda.set_device(device)
    # Weights of depthwise convolutions have an axis of size one, whose stride is arbitrary.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if is_alone:
        # The state is global; a second run in the same process may have another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision if precision in _AUTOCAST else "no",
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=processes.PATIENCE),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # avoids a second copy of the gradients
            ],
        )
        processes.connect(accelerator)
    except dist.DistError as error:
        raise EnvironmentFault(
            f"not all {surroundings.world()} processes came together ({str(error).splitlines()[0]}); the "
            "output of the others may explain it"
        ) from error
    except ValueError as error:
        if not (variables := surroundings.foreign_variables()):
            raise
        raise UsageError(
            f"accelerate cannot read what a launcher has set ({str(error).splitlines()[0]}); unset or correct it, one "
            f"of {few(variables, _SHOWN_VARIABLES)}"
        ) from error
    # The learner accumulates itself; ACCELERATE_GRADIENT_ACCUMULATION_STEPS must have no effect.
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def _refuse_engine() -> None:
    """Refuse engines that shard the weights: they would gather and shard them again around all work that one process
    does alone."""
    for variable, option in _ENGINES.items():
        if os.environ.get(variable, "").lower() in {"1", "true", "yes"}:
            raise UsageError(
                f"accelerate launch {option}: weights are not sharded here, because they take little of the "
                "memory; leave it out (plain DDP), and see train.saver and memorysam plan for what takes the rest"
            )


def describe(device: torch.device | str, precision: str = "fp32") -> dict[str, Any]:
    """The keys ``device``, ``precision`` and ``versions`` of a report."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    return {"device": name, "precision": precision, "versions": surroundings.versions()}


def refuse_precision(precision: str, device: torch.device) -> None:
    """As :func:`~memorysam_cli.engine.surroundings.refuse_precision`, for a device."""
    surroundings.refuse_precision(precision, device.type)


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision while the context is open; parameters stay float32.

    Args:
        precision: ``fp32`` (TF32 is then off, for convolutions too), ``tf32``, or ``bf16`` and ``fp16`` by autocast.
        device: of the computation.

    Raises:
        UsageError: as :func:`refuse_precision`.
    """
    refuse_precision(precision, device)
    dtype = _AUTOCAST.get(precision)
    with tensor_cores(precision), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        yield


@contextlib.contextmanager
def tensor_cores(precision: str) -> Iterator[None]:
    """Allow TF32 for float32 products and convolutions on CUDA only in ``tf32``; restored afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    # torch.compile still reads these, and fails where the newer fp32_precision was set instead.
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def prepare_deterministic(*, is_wanted: bool) -> None:
    """Set variables that CUDA's libraries read at their start, for ``train.deterministic``; call it before anything
    else."""
    if is_wanted:
        os.environ.setdefault(CUBLAS, ":4096:8")


@contextlib.contextmanager
def deterministic(*, is_wanted: bool) -> Iterator[None]:
    """Allow only deterministic kernels while the context is open; does nothing if not requested.

    With ``train.deterministic`` every run on the same machine gives the same bits.

    Raises:
        EnvironmentFault: an operation has no deterministic form on this device; the message names it.
    """
    if not is_wanted:
        yield
        return
    prepare_deterministic(is_wanted=True)
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if advice := _deterministic_advice(str(error)):
            raise EnvironmentFault(advice) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def _deterministic_advice(message: str) -> str | None:
    """The useful part of torch's message; empty if it is about something else."""
    if match := _NOT_DETERMINISTIC.search(message):
        return (
            f"train.deterministic: {match[1]} has no deterministic form on this device with PyTorch "
            f"{torch.__version__}; train without --deterministic, or on the CPU"
        )
    if _CUBLAS_MISSING in message:
        return f"train.deterministic: CUDA was started without {CUBLAS}=:4096:8; set it and run the same command again"
    return None


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of this process's random numbers: only torch's, for dropout; loading data uses none of them."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore the state from :func:`rng_state`."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def capacity(device: torch.device) -> Capacity:
    """Total and free memory of a device; on a CPU those of :func:`memorysam_cli.engine.surroundings.memory`."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Capacity(total, free)
    return surroundings.memory()


def start_peak(device: torch.device) -> None:
    """Reset the peak, where this is possible (CUDA, and Linux for the process)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        children.tell_kernel("clear_refs", "5")  # tells the kernel to reset the peak resident size


def peak_bytes(device: torch.device) -> int:
    """The peak memory since :func:`start_peak`.

    Returns:
        Bytes: on CUDA the memory reserved by its caching allocator; elsewhere the process's resident size, programs
        included.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    if _STATUS.exists():
        return _kilobytes(_STATUS, "VmHWM") * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The resident size of this process: programs and data; its peak if the system does not report the current size."""
    return _kilobytes(_STATUS, "VmRSS") * 1024 if _STATUS.exists() else peak_bytes(torch.device("cpu"))


def resident_peak(process: int) -> int:
    """The peak resident size of another process, in bytes; 0 if unknown, or if it has ended."""
    try:
        return _kilobytes(Path(f"/proc/{process}/status"), "VmHWM") * 1024
    except (OSError, StopIteration):  # ended, or a zombie without memory
        return 0


def _kilobytes(table: Path, name: str) -> int:
    """A number from Linux's ``name: number kB`` tables."""
    line = next(line for line in table.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


@contextlib.contextmanager
def explained(device: torch.device, *, levers: str | Callable[[], str]) -> Iterator[None]:
    """Turn an out-of-memory exception into one line with the numbers and the settings that need less.

    Args:
        device: of the computation.
        levers: settings that need less memory; a function is called when the exception occurs.

    Raises:
        EnvironmentFault: instead of such an exception.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemorySamError) or not is_out_of_memory(error):
            raise
        advice = levers if isinstance(levers, str) else levers()
        raise EnvironmentFault(
            f"out of memory on {device} ({shortage(error)}; {_memory_numbers(device)}); {advice}"
        ) from error


def _memory_numbers(device: torch.device) -> str:
    """Used, free and total memory."""
    try:
        have, peak = capacity(device), peak_bytes(device)
    except RuntimeError:  # a broken CUDA context may not answer
        return "the device says no more"
    return f"peak {size(peak)}, {size(have.free)} free of {size(have.total)}"
