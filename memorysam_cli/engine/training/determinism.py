"""``train.deterministic``: the same bits at every run on the same machine, or an end that says why not."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from memorysam_cli.errors import EnvironmentFault

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_NONE = re.compile(r"(\S+) does not have a deterministic implementation")
_CUBLAS_MISSING = "Deterministic behavior was enabled"
"""How torch says that cuBLAS was started without its workspace."""


def prepare(*, is_wanted: bool) -> None:
    """Set what CUDA's libraries read when they start; to be called before anything runs there."""
    if is_wanted:
        os.environ.setdefault(CUBLAS, ":4096:8")


@contextlib.contextmanager
def enforced(*, is_wanted: bool) -> Iterator[None]:
    """Allow deterministic kernels only, as long as the context is open; nothing changes where it is not wanted.

    Raises:
        EnvironmentFault: an operation has no deterministic form on this device; names it.
    """
    if not is_wanted:
        yield
        return
    prepare(is_wanted=True)
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as fault:
        if advice := _advice_on(str(fault)):
            raise EnvironmentFault(advice) from fault
        raise
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def _advice_on(message: str) -> str | None:
    """What of torch's message the user can use; none where it is about something else."""
    if found := _NONE.search(message):
        return (
            f"train.deterministic: {found[1]} has no deterministic form on this device with PyTorch "
            f"{torch.__version__}; train without --deterministic, or on the CPU"
        )
    if _CUBLAS_MISSING in message:
        return f"train.deterministic: CUDA was started without {CUBLAS}=:4096:8; set it and run the same command again"
    return None
