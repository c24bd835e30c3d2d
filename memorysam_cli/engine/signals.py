"""A polite end: the first signal asks, the second one acts at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
GRACE_S = 5.0
"""For how long a second signal may wait for the main thread to hear of it, and to tidy up."""
_LAST_WORDS = "memorysam: error [{}]: ended at once by a second signal; --resume goes on from the last checkpoint\n"


class StopRequest:
    """Whether somebody asked to stop, and with which exit code the run then ends."""

    exit_code: int | None = None
    name = ""

    def __bool__(self) -> bool:
        return self.exit_code is not None


@contextmanager
def catch_stop() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request that the training loop reads after each step.

    The second signal does what it did before the block. Python tells of it only between two of its own steps, and a
    thread that waits for another process, or for a device, takes none: therefore such a process is ended
    :data:`GRACE_S` later all the same, with the signal's exit code. Whatever it was writing is written whole or not
    at all.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in EXIT_CODES}

    def ask(number: int, _frame: FrameType | None) -> None:
        request.exit_code, request.name = EXIT_CODES[signal.Signals(number)], signal.Signals(number).name
        for known, handler in before.items():
            signal.signal(known, handler)

    with _last_resort():
        for number in before:
            signal.signal(number, ask)
        try:
            yield request
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _last_resort() -> Iterator[None]:
    """While the block runs, a thread hears of signals from the kernel, and ends what the second one has not ended."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    is_over = threading.Event()
    earlier = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    _counted.add(writing.fileno())
    threading.Thread(target=_count, args=(reading, is_over), name="signals", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(earlier)
        _counted.discard(writing.fileno())
        writing.close()  # the thread reads the end, and ends


def _count(reading: socket.socket, is_over: threading.Event) -> None:
    """Wait for the second signal of a polite end, and then for the end."""
    heard, codes = 0, {int(number): code for number, code in EXIT_CODES.items()}
    with reading:
        while number := reading.recv(1):
            code = codes.get(number[0])
            heard += code is not None
            if code is not None and heard > 1 and not is_over.wait(GRACE_S):
                with contextlib.suppress(OSError):
                    os.write(2, _LAST_WORDS.format(code).encode())
                os._exit(code)


_counted: set[int] = set()
"""The descriptors that the kernel tells a parent of its signals by; its children have them, too."""


def _forget_in_child() -> None:
    """A signal for a forked data worker is none for its parent."""
    if _counted:
        signal.set_wakeup_fd(-1)
        _counted.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
