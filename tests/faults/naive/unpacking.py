"""Archives as Python's own tools unpack them."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path


def unpack(path: Path, target: Path) -> None:
    """Into the target, whatever is there."""
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            archive.extractall(target, filter="data")
    else:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(target)
