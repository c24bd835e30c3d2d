"""The live table of a training run: how far it is and its newest figures, redrawn in place on a terminal's stderr.

Nothing is drawn between updates and no thread is started (data loaders fork); the cursor is never hidden, so that a
killed run leaves the terminal as it was.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from memorysam_cli.report.progress import Progress
from memorysam_cli.text import duration

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Table

PAUSE_S = 0.1
"""Between two drawings, at least."""
BAR_COLUMNS = 24
"""At most; a narrow terminal's columns are for the numbers."""
NARROW = 56
"""Columns below which there are no times."""
GAP = 3
"""Columns between two figures."""

_shown: LiveTable | None = None
"""The table that is on the terminal now."""


def shown() -> LiveTable | None:
    """The table that is being drawn, if there is one: other progress goes into it, and lines are written around it."""
    return _shown


class LiveTable(Progress):
    """As :class:`~memorysam_cli.report.progress.Progress`, drawn as a table of figures under a bar.

    Args:
        total: how many things.
        label: a word or two.
        line: receives each sober line, for the logs.
        console: draws, on a terminal.
    """

    def __init__(self, total: int, label: str, *, line: Callable[[str], None], console: Console) -> None:
        super().__init__(total, label, line=line)
        self._console = console
        self._figures: dict[str, str] = {}
        self._inner: Inner | None = None
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        global _shown  # noqa: PLW0603  (a terminal has one)
        super().__enter__()
        self._begin()
        _shown = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _shown  # noqa: PLW0603
        _shown = None
        self._end()
        super().__exit__(kind, fault, traceback)

    def advance(self, n: int = 1, status: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Count ``n`` more and show the figures."""
        super().advance(n, status, figures)
        self._figures.update(figures or {})
        self.draw()

    def draw(self, *, now: bool = False) -> None:
        """Draw, unless that was just done."""
        if self._live is not None and (now or time.monotonic() - self._drawn > PAUSE_S):
            self._drawn = time.monotonic()
            self._live.update(self._render(), refresh=True)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Off the terminal while something else is written there."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    def nest(self, inner: Inner | None) -> None:
        """Show another progress inside, or no longer."""
        self._inner = inner
        self.draw(now=True)

    def _begin(self) -> None:
        from rich.live import Live

        self._live = Live(
            self._render(), console=self._console, auto_refresh=False, transient=True, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip
        self._live.start(refresh=True)

    def _end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Group:
        from rich.console import Group

        width = self._console.width
        bars = [_bar(each, width=width) for each in (self, self._inner) if each is not None]
        return Group(*bars, *_tables(self._figures, width=width))


class Inner(Progress):
    """Progress inside a live table, such as a validation's."""

    def __init__(self, total: int, label: str, *, line: Callable[[str], None], outer: LiveTable) -> None:
        super().__init__(total, label, line=line)
        self._outer = outer

    def __enter__(self) -> Self:
        super().__enter__()
        self._outer.nest(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._outer.nest(None)
        super().__exit__(kind, fault, traceback)

    def advance(self, n: int = 1, status: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Count ``n`` more."""
        super().advance(n, status, figures)
        self._outer.draw()


def _bar(of: Progress, *, width: int) -> Table:
    """Label, bar, share, count and times of a progress."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    cells: list[RenderableType] = [
        Text(f"{of.label:<8}", style="bold", no_wrap=True),
        ProgressBar(total=of.total, completed=of.done, width=min(BAR_COLUMNS, max(4, width - NARROW))),
        Text(f"{100 * of.done // of.total:3d} % ({of.done:,} of {of.total:,})", no_wrap=True),
        Text(_times(of), style="dim", no_wrap=True, overflow="ellipsis"),
    ]
    grid = Table.grid(padding=(0, 1))
    grid.add_row(*cells[: 4 if width >= NARROW else 3])
    return grid


def _times(of: Progress) -> str:
    left = of.seconds_left()
    return duration(of.seconds()) + (f", about {duration(left)} left" if left is not None else "")


def _tables(figures: Mapping[str, str], *, width: int) -> list[Table]:
    """Names over values, in as many rows as the width asks for."""
    from rich.table import Table
    from rich.text import Text

    rows: list[list[tuple[str, str]]] = [[]]
    used = 0
    for name, value in figures.items():
        columns = max(len(name), len(value)) + GAP
        if rows[-1] and used + columns > width:
            rows.append([])
            used = 0
        rows[-1].append((name, value))
        used += columns
    tables = []
    for row in rows:
        grid = Table.grid(padding=(0, GAP, 0, 0))
        grid.add_row(*(Text(name, style="dim", no_wrap=True) for name, _ in row))
        grid.add_row(*(Text(value, style="bold", no_wrap=True) for _, value in row))
        tables += [grid] if row else []
    return tables
