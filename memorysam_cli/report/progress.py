"""Progress of long work: a tqdm bar where a person watches, sober lines everywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from memorysam_cli.text import duration

if TYPE_CHECKING:
    from tqdm import tqdm

LINES = 20
"""Sober lines in all: one every 5 %."""
SHORTEST_SECONDS = 5.0
LONGEST_SECONDS = 60.0
"""A line after this long, however little was done: silence looks like a hang."""


def draws_bars() -> bool:
    """Whether stderr is a terminal with a person before it: not CI, not a dumb terminal, tqdm not disabled."""
    dumb = os.environ.get("TERM") in {"dumb", "unknown"}
    return sys.stderr.isatty() and _has_width() and not in_ci() and not dumb and not os.environ.get("TQDM_DISABLE")


def in_ci() -> bool:
    """Whether a machine reads, whatever it calls itself."""
    return any(os.environ.get(name, "").lower() not in {"", "0", "false"} for name in ("CI", "GITHUB_ACTIONS"))


def _has_width() -> bool:
    """False for a terminal of no columns (under ``script``, ``expect``, some containers): tqdm draws nothing there."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # it does not say
        return True


class Progress:
    """Counts up to ``total``; a context manager.

    Args:
        total: how many things; 0 shows nothing.
        label: a word or two, such as ``train epoch 3``.
        line: receives each sober line.
        bar: draw a bar on stderr too (it vanishes at the end; the command says what came of it).
    """

    def __init__(self, total: int, label: str, *, line: Callable[[str], None], bar: bool = False) -> None:
        self.total, self.label, self.done = total, label, 0
        self._line, self._draw = line, bar and total > 0
        self._bar: tqdm[NoReturn] | None = None
        self._status = ""

    def __enter__(self) -> Self:
        self._start = self._last_time = time.monotonic()
        self._last_done = 0
        if self._draw:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # no thread: the data loader forks
            self._bar = tqdm(total=self.total, desc=self.label, file=sys.stderr, leave=False, dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None and self.done > self._last_done:
            self._say(time.monotonic())

    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._start

    def seconds_left(self) -> float | None:
        """At the pace so far; None where there is none yet, or nothing is left."""
        if not 0 < self.done < self.total:
            return None
        return self.seconds() * (self.total - self.done) / self.done

    def advance(self, n: int = 1, status: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Count ``n`` more.

        Args:
            n: how many.
            status: shown behind, such as ``loss 0.41``.
            figures: name → value, shown behind too, or as a table where there is one.
        """
        self.done += n
        status = ", ".join(
            [*([status] if status else []), *(f"{name} {value}" for name, value in (figures or {}).items())]
        )
        self._status = status
        if self._bar is not None:
            self._bar.set_postfix_str(status, refresh=False)
            self._bar.update(n)
        now = time.monotonic()
        silent = now - self._last_time
        stepped = self.done * LINES // self.total > self._last_done * LINES // self.total if self.total else False
        # The last line is __exit__'s, so that it is always said, and once.
        if self.done < self.total and ((stepped and silent >= SHORTEST_SECONDS) or silent >= LONGEST_SECONDS):
            self._say(now)

    def _say(self, now: float) -> None:
        """One sober line: how far, how long so far, how long to go."""
        if not self.total:
            return
        spent = now - self._start
        parts = [f"{100 * self.done // self.total} % ({self.done} of {self.total})", duration(spent)]
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        if self._status:
            parts.append(self._status)
        self._line(f"{self.label}: {', '.join(parts)}")
        self._last_time, self._last_done = now, self.done
