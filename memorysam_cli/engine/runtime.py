"""Devices, processes and precision: everything that asks the machine, through Hugging Face accelerate."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed.nn.functional
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from memorysam_cli import __version__
from memorysam_cli.errors import EnvironmentFault, UsageError

DEVICES = "auto, cpu, cuda, cuda:N, mps"


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


def make_accelerator(device: torch.device, *, precision: str, accumulate: int = 1) -> Accelerator:
    """The accelerator of a run; under ``torchrun`` or ``accelerate launch`` each process gets its own device.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        accumulate: batches whose gradients are added up before an update.

    Raises:
        UsageError: the device cannot compute in that precision, or one device was named for several processes.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("train.precision: fp16 needs a GPU; on the CPU use fp32 or bf16")
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if device.index is not None:
        if not is_alone:
            raise UsageError(f"--device {device}: each of several processes gets its own device; use --device cuda")
        torch.cuda.set_device(device)
    if is_alone:
        # The state outlives an accelerator; a second run in one process may want another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accumulate,
        step_scheduler_with_optimizer=False,
    )
    # The recipe decides, not ACCELERATE_GRADIENT_ACCUMULATION_STEPS.
    accelerator.gradient_accumulation_steps = accumulate
    return accelerator


def describe(device: torch.device | str) -> dict[str, Any]:
    """What a result was computed with: the keys ``device``, ``precision`` and ``versions`` of a report."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    return {"device": name, "precision": "fp32", "versions": {"memorysam": __version__, "torch": torch.__version__}}


def sum_over_processes(values: Tensor) -> Tensor:
    """Add a tensor up over all processes, differentiably.

    Its backward pass adds the processes' gradients up too; DDP then averages them, so that a loss of such sums gets
    the same gradient as one process with all the data would.
    """
    total: Tensor = torch.distributed.nn.functional.all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def agree(claim: bool, accelerator: Accelerator, *, all_must: bool = False) -> bool:
    """Whether any process claims something (or all do); every process gets the same answer."""
    if accelerator.num_processes == 1:
        return claim
    votes = int(accelerator.reduce(torch.tensor(int(claim), device=accelerator.device)))
    return votes == accelerator.num_processes if all_must else votes > 0


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The state of this process's random numbers: torch's own, which draw dropout; data have none."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_rng_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`rng_state` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
