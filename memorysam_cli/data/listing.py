"""What is in a folder: sorted, hidden names left out, the same on every file system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from memorysam_cli.errors import EnvironmentFault

LEFTOVERS = "__MACOSX"
"""Beside the content of archives that macOS made: a second tree of the same names, of remarks on its files."""


def subfolders(folder: Path) -> list[str]:
    """The names of the folders directly inside a folder, sorted, hidden ones left out; none if there is no folder.

    Raises:
        EnvironmentFault: it is there and cannot be looked into.
    """
    return _names(folder, lambda entry: entry.is_dir() and entry.name != LEFTOVERS)


def files_in(folder: Path) -> list[str]:
    """The names of the files directly inside a folder; otherwise as :func:`subfolders`."""
    return _names(folder, lambda entry: not entry.is_dir())


def _names(folder: Path, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """What is in a folder, sorted, hidden names left out."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and is_wanted(entry))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as fault:  # a sensor that cannot be seen is not one that is not there
        raise EnvironmentFault(f"{folder}: cannot be listed ({fault.strerror}); allow reading there") from fault


def relative(folder: Path, root: Path) -> PurePosixPath:
    """``folder`` as seen from ``root``, with forward slashes."""
    return PurePosixPath(folder.relative_to(root).as_posix())


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below ``folder`` and itself, as a relative path ("" for itself), with its files' names.

    Links to folders are followed, each folder is visited once; those that cannot be read are passed over.
    """
    visited: set[Path] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop(0)
        real = (folder / inside).resolve()
        if real in visited:
            continue
        visited.add(real)
        try:
            names, below = files_in(folder / inside), subfolders(folder / inside)
        except EnvironmentFault:
            continue
        yield inside, names
        waiting += [f"{inside}/{name}" if inside else name for name in below]


def sample_names(folder: Path, *, count: int = 2) -> list[str]:
    """The first few files below a folder, as relative paths, to show what was seen."""
    found = (f"{inside}/{name}" if inside else name for inside, names in walk(folder) for name in names)
    return list(islice(found, count))
