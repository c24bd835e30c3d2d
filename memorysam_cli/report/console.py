"""The terminal: the answer on stdout; notes, warnings, errors and progress on stderr.

What is printed may hold names from files. Therefore everything passes one place, :func:`_write` or what draws tables,
bars and screens, where control characters and undecodable bytes are escaped: no file drives a terminal.

Color follows ``NO_COLOR``, ``FORCE_COLOR`` (color only, never a bar) and ``TERM=dumb``. rich is imported
only where color or a table is drawn.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from memorysam_cli.errors import advice
from memorysam_cli.report import live
from memorysam_cli.report.live import Progress, draws_bars, in_ci
from memorysam_cli.text import shown as escaped

if TYPE_CHECKING:
    from rich.console import Console

QUIET, NORMAL, VERBOSE = -1, 0, 1
_PIPED_WIDTH = 1000
"""Columns of a table that no terminal limits, so that nothing is cut in a file."""


@dataclass
class _State:
    """What ``setup`` chose, and the logs that are open."""

    verbosity: int = NORMAL
    color: bool | None = None
    json: bool = False
    answer: dict[str, Any] | None = None
    """What ``--json`` will print when the command ends."""
    logs: list[TextIO] = field(default_factory=list)
    after_table: bool = False


_state = _State()


def setup(*, verbosity: int = NORMAL, color: bool | None = None, json: bool = False) -> None:
    """Choose how much is said; called once by every command.

    Args:
        verbosity: -1 warnings and errors only, 0 notes too, 1 details too.
        color: True or False decides; None asks the environment and the terminal.
        json: stdout is reserved for ``answer``; ``say`` and ``table`` fall silent.
    """
    _state.verbosity, _state.color, _state.json, _state.after_table = verbosity, color, json, False
    _state.answer = None


class _Patient(io.FileIO):
    """Takes everything, also what nobody reads any more."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Let nothing that becomes of stderr end the program: its reader or terminal may go away, its disk may fill up.

    Days of work are worth more than words that nobody reads; a run's log file gets them all the same.
    """
    try:
        # By a descriptor of its own: what C libraries write to 2 is put aside now and then (storage.images).
        raw = _Patient(os.dup(sys.stderr.fileno()), "w")
    except (OSError, ValueError):  # it is not a file, or there is no descriptor left
        return
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=sys.stderr.encoding, errors=sys.stderr.errors, line_buffering=True
    )


def hush_libraries() -> None:
    """Let warnings of other libraries reach the logs and ``-v`` alone; what a user asks of Python itself stays.

    Our own are said by :func:`warn`; somebody else's name files and functions that no user of ours knows.
    """
    import logging
    import warnings

    if sys.warnoptions or os.environ.get("MEMORYSAM_DEBUG", "0") not in {"", "0", "false"}:
        return

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        detail(f"{category.__name__}: {' '.join(str(message).split())}")

    class Details(logging.Handler):
        """Of loggers that nobody has given a handler."""

        def emit(self, record: logging.LogRecord) -> None:
            detail(f"{record.name}: {' '.join(record.getMessage().split())}")

    warnings.showwarning = show
    logging.lastResort = Details(logging.WARNING)


def answer(value: dict[str, Any]) -> None:
    """Keep the one JSON object of ``--json``; :func:`finish` prints it when the command ends.

    Raises:
        ValueError: NaN or infinity in ``value``.
    """
    from memorysam_cli.storage.documents import to_json

    to_json(value)
    _state.answer = value


def finish(*, code: int = 0, message: str = "") -> None:
    """Print the one JSON object of ``--json`` on stdout: the answer if there is one, and what ended the command.

    Args:
        code: the exit code; other than 0, the object has ``error``, beside what the command found out before it failed.
        message: why, as stderr has it.
    """
    from memorysam_cli.storage.documents import to_json

    found, _state.answer = _state.answer, None
    if code:
        found = {**(found or {"schema_version": 1}), "error": {"code": code, "message": message}}
    if found is None:
        return
    text = to_json(found)
    if not text.isprintable() or not _fits(sys.stdout, text):  # JSON itself allows letters that drive terminals
        from json import dumps

        text = dumps(found, allow_nan=False)  # escapes all that is not ASCII
    _write(sys.stdout, text)


def say(text: str) -> None:
    """Print a line of the answer for people on stdout (nothing under ``--json``)."""
    if not _state.json:
        _leave_table()
        _write(sys.stdout, escaped(text))


def show_document(text: str) -> None:
    """Print a text of several lines on stdout, such as YAML (nothing under ``--json``)."""
    if not _state.json:
        _leave_table()
        _write(sys.stdout, escaped(text, keep="\n\t"))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table on stdout (nothing under ``--json``); a column of numbers only is set flush right.

    A column behind the first in which no row has a value is left out. An empty line follows before whatever comes next.
    """
    if _state.json:
        return
    _leave_table()
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    found = [[escaped(cell) for cell in row] for row in rows]
    kept = [index for index in range(len(columns)) if not index or not found or _is_told(row[index] for row in found)]
    cells = [[row[index] for index in kept] for row in found]
    drawn = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns[index] for index in kept):
        numeric = bool(cells) and all(_is_number(row[index]) for row in cells)
        drawn.add_column(Text(escaped(column)), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    rich = _rich(sys.stdout)
    with rich.capture() as text:
        if title:
            rich.print(Text(escaped(title), "bold"))
        rich.print(drawn)
    for line in text.get().splitlines():
        _write(sys.stdout, line.rstrip())
    _state.after_table = True


def detail(text: str) -> None:
    """Say something on stderr that only ``-v`` shows (a log file always gets it)."""
    _tell(text, level="detail", shown=_state.verbosity >= VERBOSE)


def note(text: str) -> None:
    """Say something on stderr, unless ``-q``."""
    _tell(text, level="note", shown=_state.verbosity >= NORMAL)


def warn(text: str) -> None:
    """Warn on stderr, also under ``-q``; on a terminal what to do stands out, as of :func:`error`."""
    _tell(text, level="warning", prefix="memorysam: warning:", style="yellow")


def error(text: str, *, code: int) -> None:
    """Say on one line of stderr why the command ends with exit code ``code``.

    On a terminal, what to do stands out behind an arrow (:func:`memorysam_cli.errors.advice`); in a pipe and a log, and
    under ``--json``, the message is one sentence that programs can search.
    """
    _tell(text, level="error", prefix=f"memorysam: error [{code}]:", style="bold red")


def show_traceback(error: BaseException) -> None:
    """Print on stderr where an exception came from."""
    _write(sys.stderr, escaped("".join(traceback.format_exception(error)), keep="\n\t").rstrip("\n"))


def progress(total: int, label: str, *, is_steady: bool = False) -> contextlib.AbstractContextManager[Progress]:
    """Show the progress of ``total`` things: a bar where a person watches, else a sober line now and then.

    Args:
        total: how many; 0 shows nothing.
        label: a word or two.
        is_steady: these are scenes that all take about as long: a note where they become ten times slower.

    Returns:
        A context whose value has ``advance(n=1, status="", figures=None)``.
    """
    shown, label = _state.verbosity >= NORMAL, escaped(label)
    bar = shown and draws_bars()

    def line(text: str) -> None:
        _tell(text, level="progress", shown=shown and not bar)

    slow = note if is_steady and total else None
    table = live.current_table()
    if not (bar and total):
        return Progress(total, label, line=line, note=slow)
    if table is not None:
        return live.Inner(total, label, line=line, outer=table)
    return live.LiveTable(total, label, line=line, console=_rich(sys.stderr), note=slow)


def width() -> int:
    """Columns of the terminal that stdout is, or 80."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def redraws() -> bool:
    """Whether stdout is a terminal before a person, where lines can be written over."""
    return sys.stdout.isatty() and _moves_cursor() and not in_ci()


@contextlib.contextmanager
def screen() -> Iterator[Callable[[Sequence[str]], None]]:
    """Lines on stdout that are written over by the next ones; the last ones stay.

    Yields:
        What shows the lines, cut to the terminal's width.
    """
    from rich.text import Text

    painter = live.Painter(_rich(sys.stdout))

    def show(lines: Sequence[str]) -> None:
        painter.show(Text("\n".join(map(escaped, lines)), no_wrap=True, overflow="crop"))

    try:
        yield show
    finally:
        painter.leave()


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append all that is said on stderr (details too, bars as sober lines) to a text file, with time and no color.

    An exception that leaves the context is recorded as the last line.
    """
    from memorysam_cli.storage import atomic

    with atomic.open_log(path) as log:
        _state.logs.append(log)
        try:
            yield
        except BaseException as fault:
            _log(escaped(f"{type(fault).__name__}: {fault}"), level="error")
            raise
        finally:
            _state.logs.remove(log)


def _tell(text: str, *, level: str, prefix: str = "", style: str = "", shown: bool = True) -> None:
    text = escaped(text)
    _log(text, level=level)
    if shown:
        _write(sys.stderr, text, prefix=prefix, style=style)


def _log(text: str, *, level: str) -> None:
    for log in _state.logs:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {level}: {text}\n")


def _leave_table() -> None:
    """An empty line between a table and what follows it."""
    if _state.after_table:
        _state.after_table = False
        _write(sys.stdout, "")


def _write(stream: TextIO, text: str, *, prefix: str = "", style: str = "") -> None:
    """One line, never wrapped; what the stream cannot encode is escaped."""
    if not _fits(stream, text):
        encoding = stream.encoding or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    with _beside_bars():
        what, lead, remedy = _parts(stream, text, beside=prefix) if prefix else (text, "", "")
        if prefix and _has_color(stream):
            from rich.text import Text

            shown = Text.assemble((prefix, style), " ", what, (lead, "bold cyan"), remedy)
            _rich(stream).print(shown, soft_wrap=True)
        else:
            stream.write(f"{prefix} {what}{lead}{remedy}\n" if prefix else f"{text}\n")
            stream.flush()


def _parts(stream: TextIO, text: str, *, beside: str) -> tuple[str, str, str]:
    """An error or a warning as a terminal shows it: what is wrong, an arrow, and what to do; below, where it is long.

    No word of a line that is to be typed is torn then, unless it is longer than the terminal is wide.
    """
    if not (stream.isatty() and _moves_cursor()):
        return text, "", ""
    what, lead, remedy = advice(text)
    if not remedy:
        return text, "", ""
    lead = f"{'→' if _fits(stream, '→') else '->'} {lead}"
    is_long = len(f"{beside} {what} {lead}{remedy}") > _rich(stream).width
    return what, f"\n  {lead}" if is_long else f" {lead}", remedy


def _fits(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding holds the text: not so for odd file names, and in an ASCII locale."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _rich(stream: TextIO) -> Console:
    from rich.console import Console

    class Steady(Console):
        """Never hides the cursor: who kills the program would be left without one."""

        def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
            return False

    color = _has_color(stream)
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPED_WIDTH
    is_screen = stream.isatty() and _moves_cursor()  # also without color: what is drawn live needs no more
    return Steady(file=stream, force_terminal=color or is_screen, no_color=not color, width=width, highlight=False)


def _has_color(stream: TextIO) -> bool:
    if _state.color is not None:
        return _state.color
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in {"", "0", "false"}:
        return True
    return stream.isatty() and _moves_cursor()


def _moves_cursor() -> bool:
    return os.environ.get("TERM") not in {"dumb", "unknown"}


def asks(question: str) -> bool:
    """Ask on a terminal; True if somebody types y or yes. Where nobody can be asked, the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    _leave_table()
    sys.stderr.write(escaped(question))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextlib.contextmanager
def _beside_bars() -> Iterator[None]:
    """Lift the bars while a line is written, so that neither tears the other."""
    table = live.current_table()
    with contextlib.nullcontext() if table is None else table.lifted():
        yield


_NOTHING = {"", "-", "–", "—"}
"""How a cell says that there is no value."""


def _is_told(cells: Iterable[str]) -> bool:
    """Whether any cell has a value."""
    return any(cell.strip() not in _NOTHING for cell in cells)


def _is_number(text: str) -> bool:
    try:
        for part in text.split(" ± "):
            float(part.strip().removesuffix("%") or "nan")
    except ValueError:
        return text.strip() in _NOTHING
    return True
