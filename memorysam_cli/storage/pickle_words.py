"""What a pickle speaks of, read without obeying it: the words for a refusal, never the reason for trust."""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_BENIGN = ("collections OrderedDict", "torch._utils _rebuild_", "torch._tensor _rebuild_", "torch BFloat16Storage")
_TENSOR = ("torch.storage ", "torch FloatStorage", "torch DoubleStorage", "torch HalfStorage", "torch LongStorage",
           "torch IntStorage", "torch ShortStorage", "torch CharStorage", "torch ByteStorage", "torch BoolStorage",
           "torch Size", "torch device", "torch.serialization _get_layout")  # fmt: skip
_NUMPY = ("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "numpy.dtypes ")
_MOST_OPERATIONS = 200_000
_MOST_PICKLES = 8
"""The older format is five pickles one after the other."""


@dataclass(frozen=True)
class Mention:
    """A thing of a module that a pickle names, such as ``posix.system``, and the last key read before it."""

    name: str
    key: str | None


def culprit(path: Path, *, name: str | None = None) -> Mention | None:
    """The first thing in a torch file that does not belong to tensors.

    Args:
        path: a zip of ``torch.save`` or one of the older formats.
        name: the thing to look for, dotted; None: whatever comes first.

    Returns:
        None where nothing is found; the file may be of any kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in its texts
            return _find(path, name)
    except (OSError, zipfile.BadZipFile, StopIteration, RuntimeError, NotImplementedError):
        return None


def _find(path: Path, name: str | None) -> Mention | None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inner = next(entry for entry in archive.namelist() if entry.rpartition("/")[2] == "data.pkl")
            with archive.open(inner) as stream:
                return _search(stream, name)
    with path.open("rb") as stream:
        return _search(stream, name)


def _search(stream: IO[bytes], name: str | None) -> Mention | None:
    for module, thing, key in _mentions(stream):
        dotted = thing if module in {"builtins", "__builtin__"} else f"{module}.{thing}"  # as torch says it
        if name == dotted or (name is None and not f"{module} {thing}".startswith((*_BENIGN, *_TENSOR, *_NUMPY))):
            return Mention(dotted, key)
    return None


def _mentions(stream: IO[bytes]) -> Iterator[tuple[str, str, str | None]]:
    """Module, name and last key of everything that is named; ends quietly where the pickle is broken."""
    left = _MOST_OPERATIONS
    for _ in range(_MOST_PICKLES):
        words: list[str] = []
        memo: dict[int, str] = {}
        count = 0
        last: str | None = None
        try:
            argument: Any
            for operation, argument, _ in pickletools.genops(stream):
                left -= 1
                if left < 0:
                    return
                kind = operation.name
                if kind in {"GLOBAL", "INST"}:
                    module, _, thing = str(argument).partition(" ")
                    yield module, thing, words[-1] if words else None
                elif kind == "STACK_GLOBAL" and len(words) >= 2:
                    yield words[-2], words[-1], words[-3] if len(words) > 2 else None
                elif kind in {"PUT", "BINPUT", "LONG_BINPUT"} and last is not None:
                    memo[int(argument)] = last
                elif kind == "MEMOIZE":
                    if last is not None:
                        memo[count] = last
                    count += 1
                elif kind in {"GET", "BINGET", "LONG_BINGET"} and int(argument) in memo:
                    words = [*words[-2:], memo[int(argument)]]
                last = None
                if isinstance(argument, str) and ("UNICODE" in kind or "STRING" in kind):
                    last = argument
                    words = [*words[-2:], argument]
        except (ValueError, UnicodeError, IndexError, KeyError, OverflowError, MemoryError, EOFError):
            return
