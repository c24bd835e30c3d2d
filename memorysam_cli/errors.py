"""Errors of users and of the environment: one exception class per exit code.

An exception that is not a :class:`MemorySamError` is a bug in memorysam and ends with exit code 1. Some bugs show as
broken conservation laws (:func:`check_laws`): every input must come out, or be listed.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn


@dataclass(frozen=True)
class ExitCode:
    """The meaning of an exit code, and whether to repeat the same command."""

    meaning: str
    retry: str = "no"

    def __str__(self) -> str:
        return self.meaning


EXIT_CODES: dict[int, ExitCode] = {
    0: ExitCode("everything requested is done and verified", "–"),
    1: ExitCode("a bug in memorysam (please report it with the traceback)"),
    2: ExitCode("usage or recipe: nothing was written"),
    3: ExitCode("input data refused (image, label, archive, name collision)"),
    4: ExitCode("finished, but some scenes were left out; the list is written", "after fixing them"),
    5: ExitCode("weights or checkpoint refused (corrupt, incomplete, wrong model, none found)"),
    6: ExitCode("environment: disk full, read-only, permission, out of memory, device", "after fixing it"),
    7: ExitCode("network or Hugging Face Hub", "usually: the message says"),
    8: ExitCode("training diverged; the last good checkpoint is kept"),
    9: ExitCode("the output folder is in use by another run", "later"),
    10: ExitCode("a requested check failed (weights verify, evaluate --min-miou)"),
    129: ExitCode("the terminal went away (SIGHUP) after a clean checkpoint", "yes: resume"),
    130: ExitCode("interrupted (SIGINT) after a clean checkpoint", "yes: resume"),
    131: ExitCode("asked to quit (SIGQUIT) after a clean checkpoint", "yes: resume"),
    140: ExitCode("terminated (SIGUSR2) after a clean checkpoint", "yes: resume"),
    141: ExitCode("the reader of our output went away (SIGPIPE)", "yes"),
    142: ExitCode("an alarm rang (SIGALRM) after a clean checkpoint", "yes: resume"),
    143: ExitCode("terminated (SIGTERM, SIGUSR1) after a clean checkpoint", "yes: resume"),
    152: ExitCode("the processor time is used up (SIGXCPU) after a clean checkpoint", "yes: resume"),
}
_STOPPING = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143, "SIGUSR2": 140, "SIGHUP": 129, "SIGQUIT": 131,
             "SIGALRM": 142, "SIGXCPU": 152}  # fmt: skip
SIGNAL_EXIT_CODES = {signal.Signals[name]: code for name, code in _STOPPING.items() if hasattr(signal, name)}
"""Signals that end the program, and the exit code of each: 128 + the signal's number. Exception: SIGUSR1, which batch
systems send as an early SIGTERM."""
SEVERITY = (1, 8, 6, 5, 3, 7, 4)
"""The order of severity: if a run has several errors, the first in this list decides the exit code. Other errors never
occur together."""


def exit_codes_table() -> str:
    """The exit codes as the Markdown table of docs/exit-codes.md."""
    rows = (f"| {code} | {each.meaning} | {each.retry} |" for code, each in EXIT_CODES.items())
    return "\n".join(["| code | meaning | retry as is? |", "|---|---|---|", *rows])


class MemorySamError(Exception):
    """An error that the user can fix. It is shown as one line, never as a traceback.

    The message is that line: where, what we got, what is allowed, what to do.
    """

    exit_code = 1


_DOING = """add allow annotate ask call cd change check choose close compare continue convert copy correct create cut
declare delete do download drop end export fetch fill finish fix free get give import install keep label leave let
link lower look make map mend move name narrow normalize open pip pick point prepare pull put quote raise read
reinstall remove rename replace report resume rescale restore retry rewrite run save say score see send separate
set shorten show skip split start state take train try turn type undo unpack unset update use wait widen
write memorysam torchrun"""
_BEFORE = "or |else |then |(?:not )?retryable: |to use it |on (?:the )?[a-z]+ |for sensors of your own "
"""Words that may stand before the verb."""
_ADVICE = re.compile(rf"(?:{_BEFORE})?(?:{'|'.join(_DOING.split())})\b|--\w|did you mean ", re.IGNORECASE)
_LEADING = ("did you mean ", "continue with", "resume with", "see ", "try ", "type ", "type: ")
"""Beginnings of advice that need no "try: "."""


def advice(message: str) -> tuple[str, str, str]:
    """Split a message for a terminal: the problem, and what to do.

    A message is ``where: problem; advice``. The advice is the last clauses that begin like advice: with a verb, an
    option or a question.

    Returns:
        The problem; ``"try: "``, or nothing if the advice does not need it; the advice. Without advice, the first is
        the whole message and the last is empty.
    """
    clauses = message.split("; ")
    first = len(clauses)
    while first > 1 and _ADVICE.match(clauses[first - 1]):
        first -= 1
    remedy = "; ".join(clauses[first:])
    lead = "try: " if remedy and not remedy.startswith(_LEADING) else ""
    return "; ".join(clauses[:first]), lead, remedy


class UsageError(MemorySamError):
    """Wrong options or a wrong recipe."""

    exit_code = 2


class DataError(MemorySamError):
    """An image, label, archive or folder that cannot be used."""

    exit_code = 3


class PartialError(MemorySamError):
    """The work is done, except for scenes that are listed in a file."""

    exit_code = 4


class WeightsError(MemorySamError):
    """Weights or a checkpoint that must not be used."""

    exit_code = 5


class EnvironmentFault(MemorySamError):
    """A problem of the machine: disk, permissions, memory, device."""

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
    """A requested check failed."""

    exit_code = 10


class Stopped(MemorySamError):
    """A signal ended the work cleanly; ``exit_code`` is 128 + the signal's number as published."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(SystemExit):
    """A signal that ends the program. It is not an ``Exception``, so no handler on the way mistakes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(f"terminated ({signal.Signals(number).name})")
        self.number = number
        self.exit_code = SIGNAL_EXIT_CODES[signal.Signals(number)]


def unwind(number: int, _frame: FrameType | None) -> NoReturn:
    """Signal handler that ends a program as Ctrl-C does, so that temporary files are removed.

    Raises:
        Terminated: always.
    """
    take_once(number)
    raise Terminated(number)


def take_once(number: int) -> None:
    """From now on ignore a signal that the kernel repeats each second, so that its repetition does not count as a
    second signal."""
    if number == getattr(signal, "SIGXCPU", None):
        signal.signal(number, signal.SIG_IGN)


def signal_exit_code(error: BaseException) -> int:
    """The exit code for Ctrl-C, another signal, or ``sys.exit``, none of which is an ``Exception``."""
    if isinstance(error, KeyboardInterrupt):
        return SIGNAL_EXIT_CODES[signal.SIGINT]
    code = error.exit_code if isinstance(error, Terminated) else getattr(error, "code", None)
    return code if isinstance(code, int) else SIGNAL_EXIT_CODES[signal.SIGTERM]


def most_severe(error: MemorySamError) -> MemorySamError:
    """The most severe of an error and of the errors during whose handling it occurred, in the order of
    :data:`SEVERITY`.

    Example: a divergence must not be hidden by a full disk while its checkpoint is saved; the message names both. An
    error raised *from* another one explains it and replaces it.

    Returns:
        The error itself, or an error of the most severe class whose message names the others too.
    """
    found = [each for each in _together(error) if each.exit_code in SEVERITY]
    if error not in found or len(found) == 1:
        return error
    worst = min(found, key=lambda each: SEVERITY.index(each.exit_code))  # the last one of equal severity
    others = dict.fromkeys(str(each) for each in found if str(each) not in str(worst))
    return type(worst)("; besides: ".join([str(worst), *others]))


def _together(error: BaseException) -> Iterator[MemorySamError]:
    """An error and the errors that were being handled when it occurred; the last one first."""
    before: BaseException | None = error
    while before is not None:
        if isinstance(before, MemorySamError) and not isinstance(before, Stopped):
            yield before
        before = None if before.__suppress_context__ else before.__context__


_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS}
"""Errors for too few descriptors, no memory, no more processes. They are not the fault of the file that was being
opened."""
_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.ESTALE),
    *_SHORTAGES,
}
_MAX_NAME = 400
_NO_MEMORY = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED", "Insufficient memory")
"""Phrases for missing memory in messages of torch on the CPU, torch on other devices, CUDA's libraries, and OpenCV."""
_NO_THREAD = "can't start new thread"
_LOOP = "Symlink loop from"
"""Phrases of Python 3.11 and 3.12 in ``Path.resolve``."""
_REQUEST = re.compile(r"ried to allocate [\d.]+ \w+")
"""Where the useful part of torch's message ends; after it come advice and allocator details."""


def refuse_gone_folder() -> None:
    """Refuse to work if the working folder was removed, because relative paths then mean nothing.

    Raises:
        EnvironmentFault: it was removed.
    """
    try:
        os.getcwd()  # noqa: PTH109  (the same, and pathlib need not be loaded)
    except FileNotFoundError:
        raise EnvironmentFault("the working folder was removed; cd to an existing folder") from None


def environment_fault(error: BaseException) -> EnvironmentFault | None:
    """The machine's problem behind an exception of another library, or None if it is a bug in memorysam."""
    if isinstance(error, FileNotFoundError):
        try:
            refuse_gone_folder()
        except EnvironmentFault as gone:
            return gone
    if isinstance(error, OSError) and error.errno in _MACHINE:
        where = f"{_shortened(str(error.filename))}: " if error.filename else ""
        remedy = "allow more open files (ulimit -n 4096)" if error.errno == errno.EMFILE else "fix that"
        return EnvironmentFault(f"{where}{error.strerror}; {remedy} and run the same command again")
    if isinstance(error, RuntimeError) and str(error).startswith(_NO_THREAD):
        return EnvironmentFault(
            "no more processes or threads may be started; raise the limit (ulimit -u) or close some"
        )
    if isinstance(error, RuntimeError) and str(error).startswith(_LOOP):
        where = _shortened(str(error).removeprefix(_LOOP).strip(" '"))
        return EnvironmentFault(f"{where}: the link leads to itself; fix that and run the same command again")
    if isinstance(error, ImportError) and any(os.strerror(each) in str(error) for each in _SHORTAGES):
        return EnvironmentFault(f"{error}; fix that (see ulimit -a) and run the same command again")
    if is_out_of_memory(error):
        return EnvironmentFault(
            f"out of memory ({shortage(error)}); use a smaller batch or data.image_size, fewer workers, or a device "
            "with more memory"
        )
    return None


def raise_shortage(error: BaseException) -> None:
    """Call this before blaming a file that could not be read.

    Raises:
        EnvironmentFault: the machine was short of descriptors, memory or processes.
    """
    known = environment_fault(error) if isinstance(error, OSError) and error.errno in _SHORTAGES else None
    if known is not None:
        raise known from error


def _shortened(name: str) -> str:
    """A path, shortened to fit into a line: a path that is too long for the system is also too long to print."""
    half = _MAX_NAME // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}…{name[-half:]} ({len(name):,} characters)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of another library means that memory ran out, on any device."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def shortage(error: BaseException) -> str:
    """The useful part of a message about missing memory: its first sentences, up to the requested size."""
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else type(error).__name__
    request = _REQUEST.search(first)
    return first[: request.end()] if request else first


def closest(word: str, known: Iterable[str], *, likeness: float = 0.5) -> list[str]:
    """The most similar known name, ignoring case, as a list of one; empty if none is similar.

    Args:
        word: as typed.
        known: the names.
        likeness: the least similarity; 1 means equal, 0 nothing in common.
    """
    names = {name.casefold(): name for name in known}
    return [names[name] for name in difflib.get_close_matches(word.casefold(), names, n=1, cutoff=likeness)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that helps with a mistyped word.

    Returns:
        ``"; did you mean 'rank'? (known: rank, alpha)"``, without the question if no name is similar.
    """
    names = list(known)
    near = closest(word, names)
    question = f"; did you mean '{near[0]}'?" if near else ";"
    return f"{question} (known: {', '.join(names)})" if near else f" (known: {', '.join(names)})"


Laws = dict[str, dict[str, int | bool]]
"""The content of ``laws`` in a report: law → ``{"left": …, "right": …, "holds": true}``."""


class LawBroken(AssertionError):
    """A conservation law does not hold: a bug in memorysam, never the user's mistake (exit code 1)."""


def check_laws(laws: Mapping[str, tuple[int, int]]) -> Laws:
    """Check that every conservation law holds.

    Args:
        laws: name, such as ``"scenes found = accepted + left out"``, → the values of its left and right sides.

    Returns:
        The laws in their order, as plain JSON values.

    Raises:
        LawBroken: some do not hold; the message names each with both values.
    """
    broken = [f"'{name}': {left:,} ≠ {right:,}" for name, (left, right) in laws.items() if left != right]
    if broken:
        raise LawBroken(f"conservation broken: {'; '.join(broken)}; do not trust these results, and report this bug")
    return {name: {"left": int(left), "right": int(right), "holds": True} for name, (left, right) in laws.items()}
