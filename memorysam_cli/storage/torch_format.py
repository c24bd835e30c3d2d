"""Untrusted torch files, checked without torch: the structure of the archive, and the names in its pickle.

torch neither compares an archive's checksums nor limits its expansion, and reads it with its own library. So archives
that two libraries could read differently are refused before torch sees them. A pickle is read here without running it,
only to explain a refusal; a file is never trusted because of it.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from memorysam_cli.text import shown

EXPORT = "export its state_dict: torch.save(model.state_dict(), file)"
AGAIN = "get the file again"
MAX_RECORDS = 100_000
MAX_PICKLE_BYTES = 64_000_000
_EXPANSION = 1.05
_ZIP = b"PK\x03\x04"
_LOCAL_HEADER, _END_RECORD = 30, 22
_SCRIPT = re.compile(r"(^|/)(constants\.pkl$|code/)")

_BENIGN = ("collections OrderedDict", "torch._utils _rebuild_", "torch._tensor _rebuild_", "torch BFloat16Storage")
_TENSOR = ("torch.storage ", "torch FloatStorage", "torch DoubleStorage", "torch HalfStorage", "torch LongStorage",
           "torch IntStorage", "torch ShortStorage", "torch CharStorage", "torch ByteStorage", "torch BoolStorage",
           "torch Size", "torch device", "torch.serialization _get_layout")  # fmt: skip
_NUMPY = ("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar", "numpy.dtypes ")
_MOST_OPERATIONS = 200_000
_MOST_PICKLES = 8
"""The older format is five pickles one after the other."""


class Refused(Exception):
    """Why a file is refused, and what to do; one line without the file's name."""


class Attempt(Exception):
    """The file made Python try something that reading tensors never needs."""


def most_bytes(size: int) -> int:
    """Largest number of bytes of a file's tensors; some share memory in the file, but none in the answer."""
    return 2 * size + 1_000_000


def check_archive(path: Path) -> bool:
    """Refuse archives with tricks that torch would accept.

    Returns:
        False for the older formats, which are not archives.

    Raises:
        Refused: damaged, compressed, TorchScript, or with a structure that torch never writes.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            _check_records(archive, size=path.stat().st_size)
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise Refused(f"truncated or damaged ({shown(reason)}); {AGAIN}") from error
    if broken is not None:
        raise Refused(f"damaged: the checksum of its record {shown(broken)[:120]} is wrong; {AGAIN}")
    return True


def _check_records(archive: zipfile.ZipFile, *, size: int) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_RECORDS:
        raise Refused(f"{len(entries)} records, more than the {MAX_RECORDS} allowed; refused as a possible bomb")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise Refused("its records are compressed, which torch never does; refused as a possible bomb")
    if sum(entry.file_size for entry in entries) > _EXPANSION * size:
        raise Refused("its records claim more bytes than the file has; refused as a possible bomb")
    if any(_SCRIPT.search(entry.filename) for entry in entries):
        raise Refused(f"a TorchScript archive, which is a program; {EXPORT}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise Refused("two of its records have one name, which torch never does; refused")
    programs = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
    if len(programs) != 1:
        raise Refused(f"a zip archive with {len(programs)} records data.pkl, not 1: no file of torch.save; {EXPORT}")
    if programs[0].file_size > MAX_PICKLE_BYTES:
        raise Refused(f"its data.pkl has {programs[0].file_size} bytes, {MAX_PICKLE_BYTES} are allowed; refused")
    _check_places(archive, entries)


def _check_places(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """Check that this archive is the whole file, from the first byte to the last, and that no two records share a
    byte."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end or (end == 0 and entry.header_offset):
            raise Refused("its records overlap, or something stands before them; refused as two files in one")
        end = entry.header_offset + _LOCAL_HEADER + len(entry.filename.encode()) + entry.file_size
    if end > archive.start_dir or archive.comment:
        raise Refused("its list of records is not where torch puts it; refused as two files in one")


@dataclass(frozen=True)
class Mention:
    """A global name in a pickle, such as ``posix.system``, and the last key before it."""

    name: str
    key: str | None


def culprit(path: Path, *, name: str | None = None) -> Mention | None:
    """The first global name in a torch file that does not belong to tensors.

    Args:
        path: a zip of ``torch.save`` or one of the older formats.
        name: the name to find, dotted; None: the first one.

    Returns:
        None if nothing is found; the file may be of any kind.
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
    """Module, name and last key of every global name; ends silently if the pickle is broken."""
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
