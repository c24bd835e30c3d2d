"""The terminal: the answer on stdout; notes, warnings, errors and progress on stderr.

Output may contain names from files. Therefore everything goes through :func:`_write` or through the code for tables,
bars and screens, which escape control characters and undecodable bytes: no file can control a terminal.

Color follows ``NO_COLOR``, ``FORCE_COLOR`` (color only, never a bar) and ``TERM=dumb``. rich is imported only if color
or a table is needed.
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
"""Columns of a table without a terminal, so that nothing is cut off in a file."""


@dataclass
class _State:
    """The settings from ``setup``, and the open logs."""

    verbosity: int = NORMAL
    color: bool | None = None
    json: bool = False
    answer: dict[str, Any] | None = None
    """The object that ``--json`` will print when the command ends."""
    logs: list[TextIO] = field(default_factory=list)
    after_table: bool = False


_state = _State()


def setup(*, verbosity: int = NORMAL, color: bool | None = None, json: bool = False) -> None:
    """Set how much is printed; called once by every command.

    Args:
        verbosity: -1 warnings and errors only, 0 notes too, 1 details too.
        color: True or False; None: depends on the environment and the terminal.
        json: stdout is reserved for ``answer``; ``say`` and ``table`` print nothing.
    """
    _state.verbosity, _state.color, _state.json, _state.after_table = verbosity, color, json, False
    _state.answer = None


class _Patient(io.FileIO):
    """Accepts all output, even if its stream no longer works."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def outlive_readers() -> None:
    """Keep the program running if stderr fails, because its reader or terminal may disappear or its disk may be full.

    Days of work are more important than messages that nobody reads. A run's log file gets them in any case.
    """
    try:
        # With a separate descriptor, because descriptor 2 is sometimes redirected (storage.images).
        raw = _Patient(os.dup(sys.stderr.fileno()), "w")
    except (OSError, ValueError):  # it is not a file, or no descriptor is left
        return
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=sys.stderr.encoding, errors=sys.stderr.errors, line_buffering=True
    )


def hush_libraries() -> None:
    """Send warnings of other libraries only to the logs and to ``-v``; the user's own Python settings have priority.

    Our own warnings go through :func:`warn`. Those of other libraries name files and functions that users do not know.
    """
    import logging
    import warnings

    if sys.warnoptions or os.environ.get("MEMORYSAM_DEBUG", "0") not in {"", "0", "false"}:
        return

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        detail(f"{category.__name__}: {' '.join(str(message).split())}")

    class Details(logging.Handler):
        """For loggers without a handler."""

        def emit(self, record: logging.LogRecord) -> None:
            detail(f"{record.name}: {' '.join(record.getMessage().split())}")

    warnings.showwarning = show
    logging.lastResort = Details(logging.WARNING)


def answer(value: dict[str, Any]) -> None:
    """Set the JSON object of ``--json``; :func:`finish` prints it when the command ends.

    Raises:
        ValueError: NaN or infinity in ``value``.
    """
    from memorysam_cli.storage.documents import to_json

    to_json(value)
    _state.answer = value


def finish(*, code: int = 0, message: str = "") -> None:
    """Print the JSON object of ``--json`` on stdout: the answer if there is one, and the error.

    Args:
        code: the exit code; if it is not 0, the object has ``error``, besides results from before the error.
        message: the message, as on stderr.
    """
    from memorysam_cli.storage.documents import to_json

    found, _state.answer = _state.answer, None
    if code:
        found = {**(found or {"schema_version": 1}), "error": {"code": code, "message": message}}
    if found is None:
        return
    text = to_json(found)
    if not text.isprintable() or not _fits(sys.stdout, text):  # JSON itself allows characters that control terminals
        from json import dumps

        text = dumps(found, allow_nan=False)  # escapes all that is not ASCII
    _write(sys.stdout, text)


def say(text: str) -> None:
    """Print a line of the answer on stdout (nothing with ``--json``)."""
    if not _state.json:
        _leave_table()
        _write(sys.stdout, escaped(text))


def show_document(text: str) -> None:
    """Print a text of several lines on stdout, such as YAML (nothing with ``--json``)."""
    if not _state.json:
        _leave_table()
        _write(sys.stdout, escaped(text, keep="\n\t"))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print a table on stdout (nothing with ``--json``); columns of numbers are right-aligned.

    A column without any value is left out, except the first. An empty line separates the table from the next output.
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
    """Print a line on stderr only with ``-v`` (a log file always gets it)."""
    _tell(text, level="detail", shown=_state.verbosity >= VERBOSE)


def note(text: str) -> None:
    """Print a line on stderr, unless ``-q``."""
    _tell(text, level="note", shown=_state.verbosity >= NORMAL)


def warn(text: str) -> None:
    """Print a warning on stderr, also with ``-q``; on a terminal the advice is highlighted, as in :func:`error`."""
    _tell(text, level="warning", prefix="memorysam: warning:", style="yellow")


def error(text: str, *, code: int) -> None:
    """Print on one line of stderr why the command ends with exit code ``code``.

    On a terminal, the advice follows after an arrow (:func:`memorysam_cli.errors.advice`). In a pipe, a log, and with
    ``--json``, the message is one sentence that programs can search.
    """
    _tell(text, level="error", prefix=f"memorysam: error [{code}]:", style="bold red")


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an exception on stderr."""
    _write(sys.stderr, escaped("".join(traceback.format_exception(error)), keep="\n\t").rstrip("\n"))


def progress(total: int, label: str, *, is_steady: bool = False) -> contextlib.AbstractContextManager[Progress]:
    """Show the progress of ``total`` items: a bar on an interactive terminal, otherwise a plain line now and then.

    Args:
        total: number of items; 0 shows nothing.
        label: a word or two.
        is_steady: the items are scenes of similar duration; a note is printed if they become ten times slower.

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
    """Columns of the terminal on stdout, or 80."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def redraws() -> bool:
    """Whether stdout is an interactive terminal, on which lines can be overwritten."""
    return sys.stdout.isatty() and _moves_cursor() and not in_ci()


@contextlib.contextmanager
def screen() -> Iterator[Callable[[Sequence[str]], None]]:
    """Lines on stdout that the next ones overwrite; the last ones stay.

    Yields:
        A function that shows lines, cut to the terminal's width.
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
    """Append all output of stderr (details too, bars as plain lines) to a text file, with time and without color.

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
    """Print an empty line between a table and the next output."""
    if _state.after_table:
        _state.after_table = False
        _write(sys.stdout, "")


def _write(stream: TextIO, text: str, *, prefix: str = "", style: str = "") -> None:
    """Write one line, never wrapped; characters that the stream cannot encode are escaped."""
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
    """An error or a warning for a terminal: the problem, an arrow, and the advice.

    The advice has its own line if the terminal is too narrow for both, so that a command is not broken within a word.
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
    """Whether the stream's encoding supports the text; not for unusual file names, and in an ASCII locale."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _rich(stream: TextIO) -> Console:
    from rich.console import Console

    class Steady(Console):
        """Never hides the cursor, which would stay hidden if the program is killed."""

        def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002
            return False

    color = _has_color(stream)
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPED_WIDTH
    is_screen = stream.isatty() and _moves_cursor()  # also without color: live output needs nothing else
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
    """Ask on a terminal; True for y or yes. Without a terminal, the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    _leave_table()
    sys.stderr.write(escaped(question))
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextlib.contextmanager
def _beside_bars() -> Iterator[None]:
    """Remove bars while a line is written, so that they do not mix."""
    table = live.current_table()
    with contextlib.nullcontext() if table is None else table.lifted():
        yield


_NOTHING = {"", "-", "–", "—"}
"""The text of a cell without a value."""


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
