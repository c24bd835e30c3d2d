"""Weights files: safetensors, written whole and read with suspicion; other people's ``.pt`` files, opened safely.

Files are written by hand, not by ``safetensors.save_file``, whose metadata order changes from run to run (the
same weights would have another SHA-256) and whose files have mode 0600. Reading goes through ``safetensors``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from memorysam_cli.errors import WeightsError
from memorysam_cli.storage import atomic, tensor_format
from memorysam_cli.storage.tensor_format import Malformed
from memorysam_cli.storage.torch_files import read_torch, write_torch
from memorysam_cli.storage.weights_checks import check_file, check_finite, sha256
from memorysam_cli.text import shown

__all__ = ["digest", "read", "read_metadata", "read_torch", "sha256", "write", "write_torch"]


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file whole.

    Returns:
        The tensors by name, on the CPU, dtype as stored; and the metadata.

    Raises:
        WeightsError: missing, truncated, not safetensors, a header above 16 MB or 20 000 tensors, a name given
            twice, no tensors, gaps or overlaps, NaN or infinity; the message names the rule.
    """
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
        WeightsError: as :func:`read`, as far as the header shows it.
    """
    check_file(path)
    try:
        with path.open("rb") as stream:
            entries, metadata = tensor_format.read_header(stream)
            tensor_format.check_length(stream, entries)
    except (Malformed, OSError) as error:
        raise _refused(path, error) from error
    return metadata


def _refused(path: Path, error: Exception) -> WeightsError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return WeightsError(f"{shown(path)}: not usable as safetensors: {shown(reason)}; get or write it again")


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of tensors, whatever order they come in; in hex."""
    found = hashlib.sha256()
    for data in tensor_format.pieces(tensors, {}):
        found.update(data)
    return found.hexdigest()


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
    data = tensor_format.pieces(tensors, metadata)
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
