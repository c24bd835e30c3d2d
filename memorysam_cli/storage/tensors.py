"""Weights files: safetensors, written whole and read with suspicion; other people's ``.pt`` files, opened safely.

Files are written by hand, not by ``safetensors.save_file``, whose metadata order changes from run to run (the
same weights would have another SHA-256) and whose files have mode 0600. Reading goes through ``safetensors``.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

from memorysam_cli.errors import WeightsError
from memorysam_cli.storage import atomic
from memorysam_cli.storage.atomic import shown
from memorysam_cli.storage.torch_files import read_torch, write_torch
from memorysam_cli.storage.weights_checks import check_file, check_finite, sha256

__all__ = ["digest", "read", "read_metadata", "read_torch", "sha256", "write", "write_torch"]

MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 20_000
_METADATA = "__metadata__"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file whole.

    Returns:
        The tensors by name, on the CPU, dtype as stored; and the metadata.

    Raises:
        WeightsError: missing, truncated, not safetensors, a header above 16 MB or 20 000 tensors, a name given
            twice, no tensors, gaps or overlaps, NaN or infinity; the message names the rule.
    """
    check_file(path)
    try:
        with path.open("rb") as stream:
            metadata = _check_header(stream)
        # pread: a mapped file that someone cuts short later would kill the process (SIGBUS).
        tensors = safetensors.torch.load_file(path, backend="pread")
    except (safetensors.SafetensorError, _Refused, OSError, MemoryError) as error:
        raise WeightsError(f"{shown(path)}: not usable as safetensors: {error}; get or write it again") from error
    check_finite(tensors, where=shown(path))
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors.

    Raises:
        WeightsError: as :func:`read`, as far as the header shows it.
    """
    check_file(path)
    try:
        with path.open("rb") as stream:
            return _check_header(stream)
    except (_Refused, OSError) as error:
        raise WeightsError(f"{shown(path)}: not usable as safetensors: {error}; get or write it again") from error


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of tensors, whatever order they come in; in hex."""
    header, names = _header(tensors, {})
    found = hashlib.sha256(header)
    for name in names:
        found.update(_raw(tensors[name]))
    return found.hexdigest()


class _Refused(Exception):
    """The rule that a header breaks."""


def _check_header(stream: BinaryIO) -> dict[str, str]:
    """The metadata of a header that keeps our rules; safetensors itself checks offsets, shapes and dtypes."""
    start = stream.read(8)
    if len(start) < 8:
        raise _Refused(f"truncated after {len(start)} bytes")
    (length,) = struct.unpack("<Q", start)
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise _Refused("a file of torch.save; 'memorysam weights import' makes the authors' .pth usable")
    if length > MAX_HEADER_BYTES:
        raise _Refused(f"a header of {length} bytes, more than the {MAX_HEADER_BYTES} allowed")
    text = stream.read(length)
    if len(text) < length:
        raise _Refused(f"truncated inside its header ({8 + len(text)} of at least {8 + length} bytes)")
    if (count := text.count(b'"data_offsets"')) > MAX_TENSORS:  # parsing them would take seconds
        raise _Refused(f"about {count} tensors; 1 to {MAX_TENSORS} are allowed")
    try:
        entries = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"the header is not JSON ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(entries, dict):
        raise _Refused("the header is not a JSON object")
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Refused("metadata that is not text")
    if not 0 < len(entries) <= MAX_TENSORS:
        raise _Refused(f"{len(entries)} tensors; 1 to {MAX_TENSORS} are allowed")
    _check_length(stream, entries)
    return metadata


def _check_length(stream: BinaryIO, entries: Mapping[str, Any]) -> None:
    """Refuse a file that was cut behind its header; offsets of a wrong form are safetensors' to refuse."""
    try:
        wanted = stream.tell() + max(entry["data_offsets"][1] for entry in entries.values())
        found = stream.seek(0, io.SEEK_END)
        is_cut = found < wanted
    except (TypeError, KeyError, IndexError):
        return
    if is_cut:
        raise _Refused(f"truncated ({found} of {wanted} bytes)")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        (name, count) = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _Refused(f"'{name}' occurs {count} times in the header")
    return values


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Write a safetensors file, all or nothing, and read it back.

    The same tensors and metadata (in the same order) always give the same bytes.

    Args:
        path: the target; an existing file is replaced.
        tensors: any device, layout or sharing; written contiguous, dtype as it is. At least one.
        metadata: text by key.

    Returns:
        SHA-256 of the file, in hex.

    Raises:
        WeightsError: NaN or infinity; nothing is written.
        EnvironmentFault: it cannot be written, or does not read back as written; ``path`` is as it was.
        ValueError: no tensors, too many, a complex or other dtype that we do not keep.
    """
    check_finite(tensors, where=shown(path))
    header, names = _header(tensors, metadata)
    needed = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    with atomic.new_file(path, needed_bytes=needed) as temporary:
        digest = hashlib.sha256()
        with temporary.open("wb") as stream:
            for data in itertools.chain([memoryview(header)], (_raw(tensors[name]) for name in names)):
                digest.update(data)
                stream.write(data)
        if sha256(temporary) != digest.hexdigest():
            raise OSError(None, "what was read back differs from what was written")
    return digest.hexdigest()


def _header(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Length and JSON, padded to 8 bytes; and the order of the data: wide dtypes first, so that all are aligned."""
    if not 0 < len(tensors) <= MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors; 1 to {MAX_TENSORS} can be written")
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    position = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES or name == _METADATA:
            raise ValueError(f"'{name}' is {tensor.dtype}; only {', '.join(_DTYPES.values())} can be written")
        end = position + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, names


def _raw(tensor: torch.Tensor) -> memoryview:
    """A dense tensor's bytes in little-endian order, row by row."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
