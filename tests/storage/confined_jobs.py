"""What a confined process tries; run as a process of its own by ``children.start``."""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from memorysam_cli.storage import children, torch_child


def main(arguments: list[str]) -> None:
    """Give everything up, try each thing, and tell what became of it."""
    folder, port, is_watched = Path(arguments[0]), int(arguments[1]), arguments[2] == "watched"
    network = torch_child.leave_network()
    children.watch_parent(lambda: os._exit(1))
    (folder / "there").write_bytes(b"")
    with children.claim_stdout() as answers:
        descriptor = os.open(folder / "there", os.O_WRONLY)
        torch_child.confine(memory=100_000_000, seconds=1)
        tried = torch_child.watch_calls() if is_watched else []
        attempts: dict[str, Callable[[], object]] = {
            "connect": lambda: socket.create_connection(("127.0.0.1", port), 2),
            "memory": lambda: mmap.mmap(-1, 200_000_000),
            "little memory": lambda: mmap.mmap(-1, 1_000_000),
            "write": lambda: os.write(descriptor, b"x"),
            "open": lambda: (folder / "new").write_bytes(b""),
            "system": lambda: os.system(f"touch '{folder / 'system'}'"),
            "read": lambda: Path(__file__).read_bytes(),
        }
        ends = {name: attempt(work) for name, work in attempts.items()}
        answers.write(json.dumps({"network": network, "ends": ends, "tried": tried}).encode())
    os._exit(0)


def attempt(work: Callable[[], object]) -> str:
    """``done``, or the exception's name."""
    try:
        work()
    except BaseException as error:
        return type(error).__name__
    return "done"


def spin(arguments: list[str]) -> None:
    """Work without end, in the time that is left."""
    torch_child.confine(memory=100_000_000, seconds=0.1)
    while sys.maxsize:
        pass
