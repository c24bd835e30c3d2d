"""Weights files: safetensors, written completely and read with all checks.

Files are written by our own code, not by ``safetensors.save_file``: its metadata order changes from run to run, so the
same weights would have different SHA-256 sums, and its files have mode 0600. Reading uses ``safetensors``, except for
the header, which is checked first, and for tensors from a pipe, which are not trusted either.

The header is read without torch; only functions that return tensors load it.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from memorysam_cli.errors import WeightsError, raise_shortage
from memorysam_cli.storage import atomic
from memorysam_cli.text import counted, few, shown

if TYPE_CHECKING:
    import torch

MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 20_000
METADATA = "__metadata__"
DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""torch's name → safetensors' name of a type."""
_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}

_NAMES_SHOWN = 5
_WEB_PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml)", re.IGNORECASE)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file completely.

    Returns:
        The tensors by name, on the CPU, dtype as stored; and the metadata.

    Raises:
        WeightsError: missing, truncated, not safetensors, a header above 16 MB or 20 000 tensors, a duplicate name, no
            tensors, gaps or overlaps, NaN or infinity; the message names the rule.
    """
    # Imported here: the process for untrusted files needs this module, but not the library.
    import safetensors.torch

    metadata = read_metadata(path)
    try:
        # pread: a mapped file that someone cuts short later would kill the process (SIGBUS).
        tensors = safetensors.torch.load_file(path, backend="pread")
    except (safetensors.SafetensorError, OSError, MemoryError) as error:
        raise _refused(path, error) from error
    check_finite(tensors, where=shown(path))
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors.

    Raises:
        WeightsError: as :func:`read`, for problems in the header.
    """
    check_file(path)
    try:
        with path.open("rb") as stream:
            entries, metadata = _read_header(stream)
            _check_length(stream, entries)
    except (Malformed, OSError) as error:
        raise _refused(path, error) from error
    return metadata


def _refused(path: Path, error: Exception) -> WeightsError:
    if isinstance(error, OSError):
        try:  # safetensors reports "no such file" for any error in opening
            path.open("rb").close()
        except OSError as real:
            raise_shortage(real)
            error = real
    reason = " ".join(str(error).split()) or type(error).__name__
    return WeightsError(f"{shown(path)}: not usable as safetensors: {shown(reason)}; get or write it again")


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of tensors, independent of their order; in hex."""
    found = hashlib.sha256()
    for data in pieces(tensors, {}):
        found.update(data)
    return found.hexdigest()


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Write a safetensors file, all or nothing, and read it back.

    The same tensors and metadata (in the same order) always give the same bytes.

    Args:
        path: the target; an existing file is replaced.
        tensors: any device, layout or sharing; written contiguous, dtype unchanged. At least one.
        metadata: text by key.

    Returns:
        SHA-256 of the file, in hex.

    Raises:
        WeightsError: NaN or infinity; nothing is written.
        EnvironmentFault: it cannot be written, or differs when read back; ``path`` does not change.
        ValueError: no tensors, too many, a complex or other unsupported dtype.
    """
    check_finite(tensors, where=shown(path))
    data = pieces(tensors, metadata)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with atomic.new_file(path, needed_bytes=needed) as temporary:
        digest = hashlib.sha256()
        with temporary.open("wb") as stream:
            for piece in data:
                digest.update(piece)
                stream.write(piece)
        if sha256(temporary) != digest.hexdigest():
            raise OSError(None, "what was read back differs from what was written")
    return digest.hexdigest()


class Malformed(Exception):
    """The rule that a file breaks."""


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Length and JSON, padded to 8 bytes; and the order of the data: wide dtypes first, so that all are aligned.

    Raises:
        ValueError: no tensors, too many, a complex or other unsupported dtype.
    """
    if not 0 < len(tensors) <= MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors; 1 to {MAX_TENSORS} can be written")
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name in names:
        tensor = tensors[name]
        dtype = dtype_name(tensor)
        if dtype not in DTYPES or name == METADATA:
            raise ValueError(f"'{name}' is {tensor.dtype}; only {', '.join(DTYPES.values())} can be written")
        end = position + tensor.nbytes
        entries[name] = {"dtype": DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, names


def dtype_name(tensor: torch.Tensor) -> str:
    """The name of a tensor's type in torch, such as ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def _raw(tensor: torch.Tensor) -> memoryview:
    """A dense tensor's bytes in little-endian order, row by row."""
    import torch

    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def pieces(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[memoryview]:
    """A whole file, piece by piece; the same tensors and metadata (in the same order) give the same bytes.

    Raises:
        ValueError: as :func:`_header`, before the first piece.
    """
    start, names = _header(tensors, metadata)
    return itertools.chain([memoryview(start)], (_raw(tensors[name]) for name in names))


def _read_header(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, str]]:
    """The entries and the metadata of a valid header; offsets are not checked.

    Raises:
        Malformed: names the rule.
    """
    start = stream.read(8)
    if len(start) < 8:
        raise Malformed(f"truncated after {len(start)} bytes")
    (length,) = struct.unpack("<Q", start)
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise Malformed("a file of torch.save; 'memorysam weights import' makes the authors' .pth usable")
    if length > MAX_HEADER_BYTES:
        raise Malformed(f"a header of {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
    text = stream.read(length)
    if len(text) < length:
        raise Malformed(f"truncated inside its header ({8 + len(text)} of at least {8 + length} bytes)")
    # Parsing them would take seconds. An entry's key may be hidden by escapes, its brace not; cards have some, too.
    if (count := max(text.count(b'"data_offsets"'), text.count(b"{") - MAX_TENSORS)) > MAX_TENSORS:
        raise Malformed(f"about {count} tensors; 1 to {MAX_TENSORS} are allowed")
    try:
        entries = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the header is not JSON ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(entries, dict):
        raise Malformed("the header is not a JSON object")
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Malformed("metadata that is not text")
    if not 0 < len(entries) <= MAX_TENSORS:
        raise Malformed(f"{len(entries)} tensors; 1 to {MAX_TENSORS} are allowed")
    try:
        for word in (*entries, *metadata, *metadata.values()):
            word.encode()
    except UnicodeEncodeError:  # half a pair, by an escape
        raise Malformed("a name or metadata that is not Unicode text") from None
    return entries, metadata


def _check_length(stream: IO[bytes], entries: Mapping[str, Any]) -> None:
    """Refuse a file that is truncated after its header; safetensors refuses other wrong offsets."""
    try:
        wanted = stream.tell() + max(entry["data_offsets"][1] for entry in entries.values())
        found = stream.seek(0, io.SEEK_END)
        is_cut = found < wanted
    except (TypeError, KeyError, IndexError):
        return
    if is_cut:
        raise Malformed(f"truncated ({found} of {wanted} bytes)")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        (name, count) = Counter(name for name, _ in pairs).most_common(1)[0]
        raise Malformed(f"'{name}' occurs {count} times in the header")
    return values


def receive(stream: IO[bytes], *, most: int) -> dict[str, torch.Tensor]:
    """Read the output of :func:`pieces` from a pipe, directly into the tensors' memory.

    Args:
        stream: its writer is not trusted.
        most: largest number of bytes of all tensors together.

    Raises:
        Malformed: a rule of the header is broken, there is a gap, an overlap or an unknown dtype, shape and bytes
            disagree, there is more than ``most``, or it ends too early.
    """
    import torch

    entries, _ = _read_header(stream)
    plan = sorted((_planned(name, entry) for name, entry in entries.items()), key=lambda it: it[1:3])
    position = 0
    for name, begin, end, _, _ in plan:
        if begin != position or end > most:
            raise Malformed(f"the bytes of '{name}' are not where they must be")
        position = end
    found = {}
    for name, _, _, dtype, shape in plan:
        tensor = torch.empty(shape, dtype=dtype)
        target = _raw(tensor)
        while target.nbytes:
            count = stream.readinto(target)  # type: ignore[attr-defined]
            if not count:
                raise Malformed(f"the bytes of '{name}' end too early")
            target = target[count:]
        found[name] = tensor
    return found


def _planned(name: str, entry: Any) -> tuple[str, int, int, torch.dtype, list[int]]:
    """Name, begin, end, dtype and shape of an entry."""
    import torch

    try:
        dtype: torch.dtype = getattr(torch, _BY_NAME[entry["dtype"]])
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        is_whole = all(type(number) is int and number >= 0 for number in (begin, end, *shape))
        if is_whole and end - begin == math.prod(shape) * dtype.itemsize:
            return name, begin, end, dtype, list(shape)
    except (TypeError, KeyError, ValueError):
        pass
    raise Malformed(f"the entry of '{name}' is wrong")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise_shortage(error)
        raise WeightsError(f"{shown(path)}: cannot read: {error.strerror}; check the path") from error


def check_file(path: Path) -> None:
    """Refuse a file that is obviously not a weights file.

    Raises:
        WeightsError: missing, a folder, empty, a Git-LFS pointer, a web page.
    """
    try:
        if not path.is_file():
            best = path / "checkpoints" / "best.safetensors"
            if best.is_file():
                raise WeightsError(f"{shown(path)}: a run's folder, not a file; its best weights are {shown(best)}")
            reason = "a folder, not a file" if path.is_dir() else "no such file"
            raise WeightsError(f"{shown(path)}: {reason}; check the path")
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(64).lstrip()
    except OSError as error:
        raise_shortage(error)
        raise WeightsError(f"{shown(path)}: cannot read: {error.strerror}; check the path") from error
    if size == 0:
        raise WeightsError(f"{shown(path)}: empty (0 bytes); get the file again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{shown(path)}: a Git-LFS pointer ({size} bytes); fetch the real file with 'git lfs pull'")
    if _WEB_PAGE.match(start):  # "<" alone would not do: safetensors may start with any byte
        raise WeightsError(f"{shown(path)}: a web page ({size} bytes), not weights; download the file itself")


def check_finite(tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        WeightsError: the message has the number of affected tensors, and the first names.
    """
    if bad := not_finite(tensors):
        names = few([shown(name) for name in bad], _NAMES_SHOWN, is_counted=False)
        raise WeightsError(
            f"{where}: NaN or infinity in {counted(len(bad), 'tensor')} ({names}); use an earlier checkpoint"
        )


def not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the tensors with NaN or infinity."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def _is_finite(tensor: torch.Tensor) -> bool:
    import torch

    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # float8 has no isfinite
        tensor = tensor.float()
    if math.isfinite(abs(tensor.sum().item())):  # several times faster; sums that overflow are checked again
        return True
    return bool(torch.isfinite(tensor).all())
