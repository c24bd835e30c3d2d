"""A polite end: the first signal asks, the second one acts at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


class StopRequest:
    """Whether somebody asked to stop, and with which exit code the run then ends."""

    exit_code: int | None = None
    name = ""

    def __bool__(self) -> bool:
        return self.exit_code is not None


@contextmanager
def catch_stop() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request that the training loop reads after each step."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in EXIT_CODES}

    def ask(number: int, _frame: FrameType | None) -> None:
        request.exit_code, request.name = EXIT_CODES[signal.Signals(number)], signal.Signals(number).name
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
