"""The user's mistakes and the world's faults: one exception, one exit code each.

Anything that is not a :class:`MemorySamError` is our own bug and ends with exit code 1.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

EXIT_CODES: dict[int, str] = {
    0: "all that was asked is done and verified",
    1: "a bug in memorysam (please report it with the traceback)",
    2: "usage or recipe: nothing was written",
    3: "input data refused (image, label, archive, name collision)",
    4: "finished, but some scenes were left out; the list is written",
    5: "weights or checkpoint refused (corrupt, incomplete, wrong model, none found)",
    6: "environment: disk full, read-only, permission, out of memory, device",
    7: "network or Hugging Face Hub",
    8: "training diverged; the last good checkpoint is kept",
    9: "the output folder is in use by another run",
    10: "a check that was asked for failed (weights verify, evaluate --min-miou)",
    130: "interrupted (SIGINT) after a clean checkpoint",
    141: "the reader of our output went away (SIGPIPE)",
    143: "terminated (SIGTERM, SIGUSR1) after a clean checkpoint",
}


class MemorySamError(Exception):
    """A fault that the user can mend; shown as one line, never as a traceback.

    Args:
        message: where, what we got, what is allowed, what to do next; one line.
    """

    exit_code = 1


class UsageError(MemorySamError):
    """Wrong options or a wrong recipe."""

    exit_code = 2


class DataError(MemorySamError):
    """An image, label, archive or folder that cannot be used."""

    exit_code = 3


class PartialError(MemorySamError):
    """The work is done, but for scenes that are listed in a file."""

    exit_code = 4


class WeightsError(MemorySamError):
    """Weights or a checkpoint that must not be used."""

    exit_code = 5


class EnvironmentFault(MemorySamError):
    """The machine: disk, permissions, memory, device."""

    exit_code = 6


class NetworkError(MemorySamError):
    """The network or the Hub."""

    exit_code = 7


class DivergedError(MemorySamError):
    """A loss or gradient that is not finite."""

    exit_code = 8


class FolderInUseError(MemorySamError):
    """Another run holds the output folder."""

    exit_code = 9


class CheckFailedError(MemorySamError):
    """A check that the user asked for does not hold."""

    exit_code = 10


class Stopped(MemorySamError):
    """A signal ended the work cleanly; ``exit_code`` is 128 + the signal's number as published."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ESTALE),
}
_NO_MEMORY = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED", "Insufficient memory")
"""How torch on the CPU, torch on other devices, CUDA's libraries, and OpenCV say it."""
_ASKED = re.compile(r"ried to allocate [\d.]+ \w+")
"""How far torch's message is short; behind it come the advice and the inner life of its allocator."""


def environment_fault(fault: BaseException) -> EnvironmentFault | None:
    """The machine's fault behind a foreign exception, or None: then it is a bug of ours."""
    if isinstance(fault, OSError) and fault.errno in _MACHINE:
        where = f"{fault.filename}: " if fault.filename else ""
        return EnvironmentFault(f"{where}{fault.strerror}; mend that and run the same command again")
    if is_out_of_memory(fault):
        return EnvironmentFault(
            f"out of memory ({shortage(fault)}); use a smaller batch or data.image_size, fewer workers, or a device "
            "with more memory"
        )
    return None


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether a foreign exception says that memory did not suffice, on whatever device."""
    return isinstance(fault, MemoryError) or any(words in str(fault) for words in _NO_MEMORY)


def shortage(fault: BaseException) -> str:
    """What an exception for want of memory says of it: its first sentences, up to what it asked for."""
    lines = str(fault).strip().splitlines()
    first = lines[0] if lines else type(fault).__name__
    asked = _ASKED.search(first)
    return first[: asked.end()] if asked else first


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that helps with a mistyped word.

    Returns:
        ``"; did you mean 'rank'? (known: rank, alpha)"``, without the question if nothing is near.
    """
    names = list(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    question = f"; did you mean '{near[0]}'?" if near else ";"
    return f"{question} (known: {', '.join(names)})" if near else f" (known: {', '.join(names)})"
