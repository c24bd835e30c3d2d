"""Files as most programs write them: in place, unsynced, never read back."""

from __future__ import annotations

import shutil
from pathlib import Path


def write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def replace_bytes(path: Path, data: bytes) -> None:
    """The better half of the world: a temporary and a rename, but nothing is synced."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def fill_folder(path: Path, files: dict[str, bytes]) -> None:
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Reads what is there, and writes it all again."""
    before = path.read_text() if path.exists() else ""
    path.write_text(before + line + "\n")
