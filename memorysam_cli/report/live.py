"""Progress of long work: a bar with a table of figures on an interactive terminal; plain lines everywhere else.

Nothing is drawn between updates, and no thread is started (data loaders fork). The cursor is never hidden, so a killed
run leaves the terminal unchanged. A terminal that is resized wraps or cuts its lines; the next drawing removes
everything below their first character (:class:`Painter`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from memorysam_cli.text import duration

if TYPE_CHECKING:
    from rich.console import Console, ConsoleDimensions, Group, RenderableType
    from rich.table import Table
    from rich.text import Text

LINES = 20
"""Number of plain lines in total: one every 5 %."""
SHORTEST_SECONDS = 5.0
LONGEST_SECONDS = 60.0
"""Seconds after which a line is printed even with little progress, because silence looks like a hang."""

STRETCH_S = 10.0
"""Seconds over which a speed is measured, because one slow step does not mean a slow machine."""
SLOW_STRETCHES = 2
"""Number of slow intervals in a row before a note is printed."""
SLOW_SHARE = 0.1
"""Share of the best speed below which another program probably uses the machine."""

PAUSE_S = 0.1
"""Smallest number of seconds between two drawings."""
BAR_COLUMNS = 24
"""Largest width of the bar; on a narrow terminal the numbers need the columns."""
NARROW = 56
"""Columns below which no times are shown."""
GAP, NARROW_GAP = 3, 2
"""Columns between two figures."""

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-:=+*#"
EMPTY = " "

_table: LiveTable | None = None
"""The table that is on the terminal now."""


def draws_bars() -> bool:
    """Whether stderr is an interactive terminal: not CI, not a dumb one, and $TQDM_DISABLE is not set."""
    dumb = os.environ.get("TERM") in {"dumb", "unknown"}
    return sys.stderr.isatty() and _has_width() and not in_ci() and not dumb and not os.environ.get("TQDM_DISABLE")


def in_ci() -> bool:
    """Whether this is a CI system."""
    return any(os.environ.get(name, "").lower() not in {"", "0", "false"} for name in ("CI", "GITHUB_ACTIONS"))


def _has_width() -> bool:
    """False for a terminal without columns (under ``script``, ``expect``, some containers), where nothing can be
    drawn."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):  # unknown
        return True


class Progress:
    """Counts up to ``total``; a context manager.

    Args:
        total: number of items; 0 shows nothing.
        label: a word or two, such as ``train epoch 3``.
        line: receives each plain line.
        note: receives, once, a message that the work has become ten times slower (:class:`Slowdown`); for items of
            similar duration. None: not checked.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        line: Callable[[str], None],
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.total, self.label, self.done = total, label, 0
        self._line, self._note = line, note
        self._slowdown = Slowdown()
        self.status = ""
        """The last status, such as ``loss 0.41``, and the figures."""

    def __enter__(self) -> Self:
        self._start = self._last_time = self._last_advance = time.monotonic()
        self._last_done = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self.done > self._last_done:
            self._say(time.monotonic())

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def seconds_left(self) -> float | None:
        """Remaining seconds at the speed so far; None if unknown, or if nothing is left."""
        if not 0 < self.done < self.total:
            return None
        return self.seconds() * (self.total - self.done) / self.done

    def advance(self, n: int = 1, status: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Count ``n`` more.

        Args:
            n: number of items.
            status: text after the bar, such as ``loss 0.41``.
            figures: name → value, after the bar or, if there is one, in the table.
        """
        self.done += n
        self.status = _words(status, figures or {})
        now = time.monotonic()
        if self._note is not None and (slow := self._slowdown.add(n, seconds=now - self._last_advance)):
            self._note(slow)
        self._last_advance = now
        silent = now - self._last_time
        stepped = self.done * LINES // self.total > self._last_done * LINES // self.total if self.total else False
        # __exit__ prints the last line, so that it is printed always, and once.
        if self.done < self.total and ((stepped and silent >= SHORTEST_SECONDS) or silent >= LONGEST_SECONDS):
            self._say(now)

    def show(self, figures: Mapping[str, str]) -> None:
        """Show changed figures without progress, such as after a validation."""
        self.status = _words("", figures)

    def _say(self, now: float) -> None:
        """Print a plain line: progress, elapsed time, remaining time."""
        if not self.total:
            return
        spent = now - self._start
        parts = [f"{100 * self.done // self.total} % ({self.done} of {self.total})", duration(spent)]
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        if self.status:
            parts.append(self.status)
        self._line(f"{self.label}: {', '.join(parts)}")
        self._last_time, self._last_done = now, self.done


def _words(status: str, figures: Mapping[str, str]) -> str:
    """The text after a bar."""
    return ", ".join([*([status] if status else []), *(f"{name} {value}" for name, value in figures.items())])


class Slowdown:
    """Detects that work has become more than ten times slower than its best speed, as on a shared machine.

    Slow first steps, a single long one, and work that is not timed (checkpoints, validations) do not count: speeds are
    measured over intervals of :data:`STRETCH_S`, and :data:`SLOW_STRETCHES` in a row must be slow.
    """

    def __init__(self) -> None:
        self._scenes, self._seconds = 0, 0.0
        self._best, self._slow_stretches = 0.0, 0
        self._is_noted = False

    def add(self, scenes: int, *, seconds: float) -> str | None:
        """Count scenes and their seconds; returns the note for the user, once."""
        self._scenes += scenes
        self._seconds += seconds
        if self._is_noted or self._seconds < STRETCH_S:
            return None
        pace = self._scenes / self._seconds
        self._scenes, self._seconds = 0, 0.0
        self._best = max(self._best, pace)
        self._slow_stretches = self._slow_stretches + 1 if pace < SLOW_SHARE * self._best else 0
        if self._slow_stretches < SLOW_STRETCHES:
            return None
        self._is_noted = True
        return (
            f"{pace:.2g} scenes/s, less than a tenth of this run's best {self._best:.3g}: the machine is busy "
            "with something else; memorysam doctor shows more"
        )


class Painter:
    """Lines at the end of a terminal that the next ones overwrite, also after the terminal was resized.

    The cursor stays at their first character. When they are resized, some terminals wrap lines again (GNOME, tmux),
    some cut them (xterm, PuTTY, screen), and VS Code's wraps all but the line of the cursor. So the number of rows is
    unknown, but the cursor keeps its place, and everything below it is erased.

    Args:
        console: of the terminal; its size is read at every drawing.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: list[str] = []
        """The lines on the terminal."""

    @property
    def width(self) -> int:
        """Current columns of the terminal."""
        return self._size().width

    def _size(self) -> ConsoleDimensions:
        """Current columns and rows of the terminal, which are also given to the console."""
        from rich.console import ConsoleDimensions

        with contextlib.suppress(OSError, ValueError):  # an exported COLUMNS does not change
            size = os.get_terminal_size(self._console.file.fileno())
            if size.columns and size.lines:
                self._console.size = ConsoleDimensions(size.columns, size.lines)
        return self._console.size

    def show(self, drawn: RenderableType) -> None:
        """Overwrite the lines; at most as many as the terminal has rows."""
        erased, most = self._erasure(), max(1, self._size().height - 1)
        with self._console.capture() as capture:
            self._console.print(drawn)
        self._lines = capture.get().rstrip("\n").split("\n")[:most]
        above = len(self._lines) - 1
        self._write(erased + "\n".join(self._lines) + "\r" + f"\x1b[{above}A" * (above > 0))

    def clear(self) -> None:
        """Remove the lines."""
        self._write(self._erasure())
        self._lines = []

    def leave(self) -> None:
        """Leave the lines, and go to the next line."""
        if self._lines:
            self._write(self._erasure() + "\n".join([*self._lines, ""]))
        self._lines = []

    def _erasure(self) -> str:
        """The escape sequence that erases the lines, from the cursor on."""
        return "\r\x1b[J" if self._lines else ""

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


def current_table() -> LiveTable | None:
    """The live table, if there is one: other progress is shown inside it, and lines are written around it."""
    return _table


class LiveTable(Progress):
    """Like :class:`Progress`, drawn as a bar, with a table of figures below it if there are any.

    It disappears at the end; the command prints the result.

    Args:
        total: number of items.
        label: a word or two.
        line: receives each plain line, for the logs.
        console: draws, on a terminal.
        note: as in :class:`Progress`.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        line: Callable[[str], None],
        console: Console,
        note: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(total, label, line=line, note=note)
        self._painter = Painter(console)
        self._figures: dict[str, str] = {}
        self._inner: Inner | None = None
        self._drawn = 0.0
        self._is_lifted = True

    def __enter__(self) -> Self:
        global _table  # noqa: PLW0603  (a terminal has one)
        super().__enter__()
        self._begin()
        _table = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _table  # noqa: PLW0603
        _table = None
        self._end()
        super().__exit__(kind, error, traceback)

    def advance(self, n: int = 1, status: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Count ``n`` more and show the figures."""
        super().advance(n, status, figures)
        self._figures.update(figures or {})
        self.draw()

    def show(self, figures: Mapping[str, str]) -> None:
        """Show them at once."""
        super().show(figures)
        self._figures.update(figures)
        self.draw(now=True)

    def draw(self, *, now: bool = False) -> None:
        """Draw, unless this was just done."""
        if not self._is_lifted and (now or time.monotonic() - self._drawn > PAUSE_S):
            self._drawn = time.monotonic()
            self._painter.show(self._render())

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """Remove the table while something else is written."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    def nest(self, inner: Inner | None) -> None:
        """Show another progress inside, or stop doing so."""
        self._inner = inner
        self.draw(now=True)

    def _begin(self) -> None:
        self._is_lifted = False
        self.draw(now=True)

    def _end(self) -> None:
        self._is_lifted = True
        self._painter.clear()

    def _render(self) -> Group:
        from rich.console import Group

        width = self._painter.width
        status = "" if self._figures else self.status  # the table shows the figures
        bars = [_bar(self, width=width, status=status)]
        bars += [_bar(self._inner, width=width, status=self._inner.status)] if self._inner is not None else []
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
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._outer.nest(None)
        super().__exit__(kind, error, traceback)

    def advance(self, n: int = 1, status: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Count ``n`` more."""
        super().advance(n, status, figures)
        self._outer.draw()


def _bar(of: Progress, *, width: int, status: str = "") -> Text:
    """Label, bar, percentage, count, times and status of a progress: one line, drawn by tqdm."""
    from rich.text import Text
    from tqdm import tqdm

    label, columns = f"{of.label:<8}", min(BAR_COLUMNS, max(4, width - NARROW))
    times = ", ".join(filter(None, (_times(of), status))) if width >= NARROW else ""
    line = tqdm.format_meter(
        of.done, of.total, of.seconds(), ncols=width, prefix=label,
        ascii=not (sys.stderr.encoding or "").lower().startswith("utf"),
        bar_format=f"{{desc}} {{bar:{columns}}} {100 * of.done // of.total:3d} % ({{n:,}} of {{total:,}}) "
        + times.replace("{", "{{").replace("}", "}}"),
    )  # fmt: skip
    text = Text(line.rstrip(), no_wrap=True, overflow="ellipsis")
    text.stylize("bold", 0, len(label))
    return text


def _times(of: Progress) -> str:
    left = of.seconds_left()
    return duration(of.seconds()) + (f", about {duration(left)} left" if left is not None else "")


def _tables(figures: Mapping[str, str], *, width: int) -> list[Table]:
    """Names over values, in as many rows as the width requires; with a smaller gap if that saves a row."""
    from rich.table import Table
    from rich.text import Text

    gap, rows = min(
        ((gap, _rows(figures, width=width, gap=gap)) for gap in (GAP, NARROW_GAP)), key=lambda found: len(found[1])
    )
    tables = []
    for row in rows:
        grid = Table.grid(padding=(0, gap, 0, 0))
        grid.add_row(*(Text(name, style="dim", no_wrap=True) for name, _ in row))
        grid.add_row(*(Text(value, style="bold", no_wrap=True) for _, value in row))
        tables += [grid] if row else []
    return tables


def _rows(figures: Mapping[str, str], *, width: int, gap: int) -> list[list[tuple[str, str]]]:
    """Names and values in rows that fit; a value that is too long has its own row."""
    rows: list[list[tuple[str, str]]] = [[]]
    used = 0
    for name, value in figures.items():
        columns = max(len(name), len(value))
        if rows[-1] and used + columns > width:
            rows.append([])
            used = 0
        rows[-1].append((name, value))
        used += columns + gap
    return rows


def sparkline(values: Sequence[float | None], *, width: int, blocks: str = BLOCKS) -> str:
    """Values as a line of blocks, the lowest to the highest.

    Args:
        values: in their order; None leaves a gap.
        width: largest number of letters; more values are averaged in intervals of equal length.
        blocks: eight letters of rising height.

    Returns:
        At most ``width`` letters; equal values all have the middle's height.
    """
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [_mean(values[start:end]) for start, end in itertools.pairwise(edges)]
    known = [mean for mean in means if mean is not None]
    if not known:
        return EMPTY * count
    low, span = min(known), max(known) - min(known)

    def letter(mean: float | None) -> str:
        if mean is None:
            return EMPTY
        share = (mean - low) / span if span > 0 else 0.5
        return blocks[min(len(blocks) - 1, int(share * len(blocks)))]

    return "".join(map(letter, means))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
