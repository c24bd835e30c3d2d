"""Small jobs that write, each in a process without torch: ``python -S -m tests.faults.jobs_writing NAME FOLDER``.

The fault injector needs to know all paths beforehand, so that the temporaries' random part is fixed here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from memorysam_cli.errors import MemorySamError
from memorysam_cli.storage import atomic
from tests.faults.naive import writing as naive

OLD, NEW = b"old " * 300, b"new!" * 900
FILES = {"a.json": b"{}" * 200, "b.bin": NEW}
DEAD_PID = 4_194_301
"""Above what Linux gives out, so that the temporaries are those of a process that is gone."""


def atomic_file(folder: Path) -> None:
    atomic.write_bytes(folder / "x", NEW)


def atomic_pieces(folder: Path) -> None:
    atomic.write_pieces(folder / "x", (NEW[start : start + 900] for start in range(0, len(NEW), 900)))


def atomic_folder(folder: Path) -> None:
    with atomic.new_folder(folder / "x") as temporary:
        for name, data in FILES.items():
            (temporary / name).write_bytes(data)
            if (temporary / name).stat().st_size != len(data):
                raise OSError(None, "not all arrived")


def ledger_line(folder: Path) -> None:
    from memorysam_cli.storage import documents

    documents.append_json_line(folder / "x", {"id": "new", "why": "n" * 200}, fsync=True)


def naive_file(folder: Path) -> None:
    naive.write_bytes(folder / "x", NEW)


def naive_replaced(folder: Path) -> None:
    naive.replace_bytes(folder / "x", NEW)


def naive_folder(folder: Path) -> None:
    naive.fill_folder(folder / "x", FILES)


def naive_line(folder: Path) -> None:
    naive.append_line(folder / "x", '{"id": "new"}')


JOBS: dict[str, Callable[[Path], None]] = {
    job.__name__: job
    for job in (
        atomic_file, atomic_pieces, atomic_folder, ledger_line, naive_file, naive_replaced, naive_folder, naive_line
    )
}  # fmt: skip


def main(name: str, folder: str) -> int:
    """0: the job says that all is saved; 6: it says that it is not."""
    atomic.secrets.token_hex = lambda _count=None: "0" * 8
    os.getpid = lambda: DEAD_PID
    try:
        JOBS[name](Path(folder))
    except (MemorySamError, OSError) as fault:
        print(fault, file=sys.stderr)
        return 6
    return 0


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
