"""The side of a worker: read what is asked for, until nobody asks any more."""

from __future__ import annotations

import os
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cv2
import torch

from memorysam_cli.data.sources import Fault, Source

GRACE_S = 60
"""A worker outlives SIGTERM by this long."""
POLL_S = 0.5
"""How often one that waits looks around."""


def work(source: Source[Any], connection: Connection, parent: int) -> None:
    """Answer until nobody asks any more.

    Args:
        source: what is read.
        connection: takes indices, gives items or faults.
        parent: the process that asks.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for name in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(name, signal.SIG_IGN)
    # A scheduler may send SIGTERM to all: the parent still has a step to finish and a checkpoint to write.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))
    try:
        while True:
            while not connection.poll(POLL_S):
                if os.getppid() != parent:  # killed, and another child of it keeps the connection open
                    return
            _answer(source, connection)
    except (EOFError, ConnectionError):
        return


def _answer(source: Source[Any], connection: Connection) -> None:
    index = connection.recv()
    try:
        connection.send(source.answer(index))
    except (EOFError, ConnectionError):
        raise
    except Exception as fault:  # a bug of ours, or memory: for the parent to raise
        told = fault if type(fault).__module__ == "builtins" else RuntimeError(f"{type(fault).__name__}: {fault}")
        told.add_note(traceback.format_exc())
        connection.send(Fault(told))
