"""What every weights file must satisfy, whoever wrote it and in whatever format."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from memorysam_cli.errors import WeightsError
from memorysam_cli.text import few, shown

_NAMES_SHOWN = 5
_WEB_PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml)", re.IGNORECASE)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{shown(path)}: cannot read: {error.strerror}; check the path") from error


def check_file(path: Path) -> None:
    """Refuse what is no weights file at first sight.

    Raises:
        WeightsError: missing, a folder, empty, a Git-LFS pointer, a web page.
    """
    try:
        if not path.is_file():
            reason = "a folder, not a file" if path.is_dir() else "no such file"
            raise WeightsError(f"{shown(path)}: {reason}; check the path")
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(64).lstrip()
    except OSError as error:
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
        WeightsError: how many tensors have some, and the names of the first.
    """
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        names = few([shown(name) for name in bad], _NAMES_SHOWN, is_counted=False)
        raise WeightsError(f"{where}: NaN or infinity in {len(bad)} tensors ({names}); use an earlier checkpoint")


def _is_finite(tensor: torch.Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # float8 has no isfinite
        tensor = tensor.float()
    if math.isfinite(abs(tensor.sum().item())):  # several times faster, and sums that overflow are looked at again
        return True
    return bool(torch.isfinite(tensor).all())
