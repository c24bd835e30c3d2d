from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console, ConsoleDimensions

from memorysam_cli.report import console, live
from memorysam_cli.report.live import LiveTable

FIGURES = {"epoch": "1/8", "step": "1,234", "loss": "0.512", "lr": "6.00e-05", "scenes/s": "12.3", "best mIoU": "61.20"}


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


class Screen(io.StringIO):
    """A terminal that understands what the table writes, and is resized in one of three ways.

    ``wraps``: lines are wrapped anew (GNOME's, tmux); ``cuts``: they lose their ends (xterm, PuTTY, screen); ``keeps``:
    they are wrapped, but that of the cursor is cut (VS Code's).
    """

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, kind: str, columns: int) -> None:
        super().__init__()
        self.kind, self.columns = kind, columns
        self.lines, self.at = [""], 0

    def isatty(self) -> bool:
        return True

    def resize(self, columns: int) -> None:
        self.columns = columns
        for index, line in enumerate(self.lines):
            if self.kind == "cuts" or (self.kind == "keeps" and index == self.at):
                self.lines[index] = line[:columns]

    def rows(self) -> list[str]:
        """What is seen: each line in as many rows as it needs."""
        return [
            line[start : start + self.columns]
            for line in self.lines
            for start in range(0, max(1, len(line)), self.columns)
        ]

    def write(self, text: str) -> int:
        for part in re.split(r"(\r\x1b\[J|\r(?:\x1b\[\d+A)?)", text):
            if part == "\r\x1b[J":
                self.lines[self.at :] = [""]
            elif part.startswith("\r"):
                up = int((re.findall(r"\d+", part) or ["0"])[0])
                # Up it goes in rows: what was just drawn must not be wrapped.
                assert all(len(line) <= self.columns for line in self.lines[self.at - up :])
                self.at -= up
            elif part:
                first, *more = re.sub(r"\x1b\[[\d;]*m", "", part).split("\n")
                assert self.at == len(self.lines) - 1, "written over what stands there"
                self.lines[-1] += first
                self.lines += more
                self.at = len(self.lines) - 1
        return len(text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    found = Terminal()
    for name in ("CI", "GITHUB_ACTIONS", "TQDM_DISABLE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(live, "PAUSE_S", -1)
    console.setup()
    yield found
    assert live.current_table() is None


def drawn(width: int, figures: dict[str, str]) -> list[str]:
    """What a table looks like at a width."""
    screen = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=width, _environ={"TERM": "xterm"})
    with LiveTable(200, "train", line=lambda _: None, console=screen) as table:
        table.advance(50, figures=figures)
        paper = Console(file=io.StringIO(), width=width)
        with paper.capture() as capture:
            paper.print(table._render())
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 140])
def test_every_figure_stands_under_its_name_within_the_width(width: int) -> None:
    lines = drawn(width, FIGURES)
    assert "25 % (50 of 200)" in lines[0]
    assert all(len(line) <= width for line in lines)
    assert len(lines) == (3 if width > 60 else 5)
    for names, values in zip(lines[1::2], lines[2::2], strict=True):
        for name, value in FIGURES.items():
            if name in names:
                assert names.index(name) == values.index(value)


def test_a_note_is_written_whole_above_the_table(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress(2, "train") as shown:
        shown.advance(figures=FIGURES)
        console.note("step 1: val mIoU 11.71")
        shown.advance(figures=FIGURES)
    text = terminal.getvalue()
    assert "\x1b[Jstep 1: val mIoU 11.71\n" in text  # erased, the note, and the table again
    assert "\x1b[?25l" not in text, "the cursor is hidden: a killed run would leave the terminal without one"


def test_progress_inside_is_a_line_of_the_table(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress(9, "train") as outer:
        outer.advance(figures=FIGURES)
        with console.progress(4, "validate") as inner:
            assert isinstance(inner, live.Inner)
            inner.advance(3)
            assert "validate" in terminal.getvalue() and "75 % (3 of 4)" in terminal.getvalue()
        assert isinstance(outer, LiveTable) and outer._inner is None


def test_figures_that_change_though_nothing_was_done_are_shown_at_once(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(live, "PAUSE_S", 1e6)  # whatever is not urgent waits
    with console.progress(4, "train") as table:
        table.advance(figures=FIGURES)
        assert "77.77" not in terminal.getvalue()
        table.show(FIGURES | {"best mIoU": "77.77"})
        assert "77.77" in terminal.getvalue() and table.done == 1


def test_it_goes_when_work_fails(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt), console.progress(2, "train") as shown:
        shown.advance(figures=FIGURES)
        raise KeyboardInterrupt
    assert live.current_table() is None


@pytest.mark.parametrize("name", ["CI", "TERM"])
def test_elsewhere_the_same_figures_are_sober_lines(
    terminal: Terminal, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv(name, "dumb")
    with console.progress(1, "train") as shown:
        shown.advance(figures=FIGURES)
    text = terminal.getvalue()
    assert text.startswith("train: 100 % (1 of 1), 0 s, epoch 1/8, step 1,234, loss 0.512")
    assert "\x1b" not in text


def test_without_color_the_table_is_still_drawn(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    with console.progress(2, "train") as shown:
        shown.advance(figures=FIGURES)
    text = terminal.getvalue()
    assert "50 % (1 of 2)" in text and "\x1b[2A" in text and "\x1b[3" not in text


@pytest.mark.parametrize("kind", ["wraps", "cuts", "keeps"])
@pytest.mark.parametrize("widths", [(80, 60, 120), (80, 40, 40), (140, 60, 30), (30, 140, 80), (80, 25, 12)])
def test_a_table_survives_a_terminal_that_is_resized(
    widths: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen(kind, widths[0])
    monkeypatch.setattr(live, "PAUSE_S", -1)
    console = Console(file=screen, force_terminal=True, width=widths[0], height=50, _environ={"TERM": "xterm"})
    screen.write("$ train\nrun  runs/a\n")
    with LiveTable(200, "train", line=lambda _: None, console=console) as table:
        for step, columns in enumerate(widths):
            screen.resize(columns)
            console.size = ConsoleDimensions(columns, 50)
            table.advance(1, figures=FIGURES | {"step": f"{step}"})
            rows = screen.rows()
            assert rows[:2] == ["$ train", "run  runs/a"] and sum("loss" in row for row in rows) == 1
            assert sum("train" in row for row in rows) == 2, rows
        with table.lifted():
            screen.write("a note\n")
    assert screen.lines == ["$ train", "run  runs/a", "a note", ""]


def test_what_is_left_stands_above_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen("cuts", 80)
    painter = live.Painter(Console(file=screen, force_terminal=True, width=80, height=50, _environ={"TERM": "xterm"}))
    painter.show("one\ntwo")
    screen.resize(40)
    painter.leave()
    screen.write("$ ")
    assert screen.lines == ["one", "two", "$ "]


def test_figures_come_nearer_where_that_saves_a_row() -> None:
    """A training's usual ones are 81 columns wide with three between two of them, and 73 with two."""
    figures = {
        "epoch": "2/12", "step": "5", "loss": "3.980", "spmm": "0.0036", "prefix": "2.1441", "lr": "2.92e-03",
        "scenes/s": "2.01", "memory": "0.7 GB", "best mIoU": "–",
    }  # fmt: skip
    assert drawn(81, figures)[1].startswith("epoch   step   loss    spmm") and len(drawn(81, figures)) == 3
    assert drawn(80, figures)[1].startswith("epoch  step  loss   spmm") and len(drawn(80, figures)) == 3
    assert len(drawn(73, figures)) == 3 and len(drawn(72, figures)) == 5


def test_a_table_is_no_taller_than_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves the cursor above the first row: what has left the screen could not be taken away."""
    screen = Screen("wraps", 30)
    monkeypatch.setattr(live, "PAUSE_S", -1)
    console = Console(file=screen, force_terminal=True, width=30, height=4, _environ={"TERM": "xterm"})
    with LiveTable(200, "train", line=lambda _: None, console=console) as table:
        table.advance(50, figures=FIGURES)
        assert len(screen.rows()) == 3


@pytest.mark.parametrize("is_steady", [True, False])
def test_scenes_that_become_ten_times_slower_are_noted_once(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, is_steady: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("CI", "true")
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    with console.progress(60, "evaluate", is_steady=is_steady) as shown:
        for seconds in [60.0] + [0.5] * 40 + [16.0] * 10:  # the first one loads
            now[0] += seconds
            shown.advance()
    note = "0.062 scenes/s, less than a tenth of this run's best 2: the machine is busy with something else"
    assert terminal.getvalue().count(note) == is_steady
