"""Devices, processes and precision: everything that asks the machine, through Hugging Face accelerate."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor

from memorysam_cli import __version__
from memorysam_cli.engine import launcher, processes
from memorysam_cli.errors import EnvironmentFault, UsageError

DEVICES = "auto, cpu, cuda, cuda:N, mps"
_ENGINES = {"ACCELERATE_USE_FSDP": "--use_fsdp", "ACCELERATE_USE_DEEPSPEED": "--use_deepspeed"}
"""What ``accelerate launch`` sets for an engine that cuts weights into parts, and the option that asked for it."""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device that a ``--device`` option means; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: not a device name.
        EnvironmentFault: a device that this machine does not have; never a silent run on the CPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    kind, colon, index = name.partition(":")
    if kind not in {"cpu", "cuda", "mps"} or (colon and (kind != "cuda" or not index.isdecimal())):
        raise UsageError(f"--device {name}: is no device (known: {DEVICES})")
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}[kind]
    if int(index or 0) >= found:
        have = f"{found} {kind} device{'s' * (found != 1)}"
        raise EnvironmentFault(
            f"--device {name}: this machine has {have} that PyTorch {torch.__version__} can use; try --device auto"
        )
    return torch.device(name)


def make_accelerator(device: torch.device, *, precision: str) -> Accelerator:
    """The accelerator of a run; under ``torchrun`` or ``accelerate launch`` each process gets its own device.

    Args:
        precision: ``fp32``, ``tf32``, ``bf16`` or ``fp16``.

    Raises:
        UsageError: the device cannot compute in that precision, one device was named for several processes, or
            ``accelerate launch`` was asked for an engine that does not fit.
        EnvironmentFault: another process did not come.
    """
    refuse_precision(precision, device)
    _refuse_engine()
    is_alone = launcher.world() == 1
    if device.index is not None:
        if not is_alone:
            raise UsageError(f"--device {device}: each of several processes gets its own device; use --device cuda")
        torch.cuda.set_device(device)
    # The weights of depthwise convolutions have an axis of one channel, whose stride means nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if is_alone:
        # The state outlives an accelerator; a second run in one process may want another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=precision if precision in _AUTOCAST else "no",
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=processes.PATIENCE),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # gradients need no second copy
            ],
        )
        processes.connect(accelerator)
    except dist.DistError as fault:
        raise EnvironmentFault(
            f"not all {launcher.world()} processes came together ({str(fault).splitlines()[0]}); the "
            "output of the others may explain it"
        ) from fault
    # The learner accumulates, whatever ACCELERATE_GRADIENT_ACCUMULATION_STEPS says.
    accelerator.gradient_accumulation_steps = 1
    return accelerator


def refuse_precision(precision: str, device: torch.device) -> None:
    """Refuse what a device cannot compute in; it is never exchanged for another precision.

    Raises:
        UsageError: fp16 on a CPU, or tf32 anywhere but on CUDA.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("precision fp16 needs a GPU; on the CPU use fp32 or bf16")
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"precision tf32 needs an NVIDIA GPU; on {device.type} use fp32 or bf16")


@contextlib.contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision, as long as the context is open; parameters stay float32.

    Args:
        precision: ``fp32`` (TF32 is then off, for convolutions too), ``tf32``, or ``bf16`` and ``fp16`` by autocast.
        device: where the computing is done.

    Raises:
        UsageError: as :func:`refuse_precision`.
    """
    refuse_precision(precision, device)
    dtype = _AUTOCAST.get(precision)
    with tensor_cores(precision), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        yield


@contextlib.contextmanager
def tensor_cores(precision: str) -> Iterator[None]:
    """Whether float32 products and convolutions may be TF32 on CUDA: in ``tf32`` only; put back afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    # torch.compile still reads these, and fails where the newer fp32_precision was set instead.
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def describe(device: torch.device | str, precision: str = "fp32") -> dict[str, Any]:
    """What a result was computed with: the keys ``device``, ``precision`` and ``versions`` of a report."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    return {"device": name, "precision": precision, "versions": {"memorysam": __version__, "torch": torch.__version__}}


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of this process's random numbers: torch's own, which draw dropout; data have none."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`rng_state` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states and device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def _refuse_engine() -> None:
    """Weights in parts would be gathered and cut again around every piece of work that one process does alone."""
    for variable, option in _ENGINES.items():
        if os.environ.get(variable, "").lower() in {"1", "true", "yes"}:
            raise UsageError(
                f"accelerate launch {option}: weights are not cut into parts here, for they are a small share of the "
                "memory; leave it away (DDP), and see train.saver and memorysam plan for what takes the rest"
            )


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
