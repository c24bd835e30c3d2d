"""What torchrun, accelerate, srun scripts and MPI tell a process of its place among several, in variables.

The only module that names these variables. It loads nothing heavy: every command asks before torch is there.
"""

from __future__ import annotations

import os

VARIABLES = (
    *("RANK", "WORLD_", "LOCAL_", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_"),
    *("PMI_", "OMPI_", "MV2_", "CCL_WORKER_COUNT"),
)
"""Beginnings of the names of all variables that make a process one of several."""
_LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")


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
