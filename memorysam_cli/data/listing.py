"""What is in a folder: sorted, hidden names left out, the same on every file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath


def subfolders(folder: Path) -> list[str]:
    """The names of the folders directly inside a folder, sorted, hidden ones left out; none if unreadable."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def files_in(folder: Path) -> list[str]:
    """The names of the files directly inside a folder, sorted, hidden ones left out; none if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def relative(folder: Path, root: Path) -> PurePosixPath:
    """``folder`` as seen from ``root``, with forward slashes."""
    return PurePosixPath(folder.relative_to(root).as_posix())


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below ``folder`` and itself, as a relative path ("" for itself), with its files' names.

    Links to folders are followed, each folder is visited once.
    """
    visited: set[Path] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop(0)
        real = (folder / inside).resolve()
        if real in visited:
            continue
        visited.add(real)
        yield inside, files_in(folder / inside)
        waiting += [f"{inside}/{name}" if inside else name for name in subfolders(folder / inside)]


def sample_names(folder: Path, *, count: int = 2) -> list[str]:
    """The first few files below a folder, as relative paths, to show what was seen."""
    found = (f"{inside}/{name}" if inside else name for inside, names in walk(folder) for name in names)
    return list(islice(found, count))
