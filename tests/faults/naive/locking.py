"""One run per folder by a file with a process's number, as most programs have it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from memorysam_cli.errors import FolderInUseError


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    path = folder / "run.pid"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists() and lives(int(path.read_text() or 0)):
        raise FolderInUseError(f"{folder}: in use")
    os.sched_yield()  # whatever a program does in between
    path.write_text(str(os.getpid()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
