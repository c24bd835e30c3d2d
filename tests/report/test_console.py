"""The console: what goes where, what is drawn when, and what a log keeps."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import termios
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from memorysam_cli.report import console, live


class Terminal(io.StringIO):
    """A stream that a person watches."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("memorysam_cli.report.live.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def watched_stderr(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A person's stderr, with nothing in the environment against colors and bars.

    Not a fixture: pytest's own capture would replace it between the fixture and the test.
    """
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "GITHUB_ACTIONS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    return stream


def test_answer_is_exactly_one_json_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup(json=True)
    console.note("reading")
    console.say("for people")
    console.table(["a"], [["b"]])
    console.answer({"schema_version": 1, "name": "Müller"})
    console.finish()
    console.finish()  # once is enough
    out, err = capsys.readouterr()
    assert out == '{"schema_version": 1, "name": "Müller"}\n'
    assert err == "reading\n"


def test_answer_refuses_nan(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.answer({"miou": float("nan")})
    console.finish()
    assert capsys.readouterr().out == ""


def test_a_failure_is_the_one_object_or_stands_beside_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup(json=True)
    console.finish(code=3, message="a.png: empty")
    error = {"code": 3, "message": "a.png: empty"}
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "error": error}
    console.answer({"schema_version": 1, "done": 2})
    console.finish(code=3, message="a.png: empty")
    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "done": 2, "error": error}


HOSTILE = "a\x1b[2Jb\x9b1mc\rd\u202ee\x07\x7f\udcff"
ESCAPED = "a\\x1b[2Jb\\x9b1mc\\rd\\u202ee\\x07\\x7f\\udcff"
"""The same by hand: ESC, the CSI of C1, CR, a letter that turns what follows around, BEL, DEL, a stray byte."""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_name_drives_a_terminal_whatever_prints_it(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    streams = [Terminal() if is_terminal else io.StringIO() for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    console.setup(verbosity=console.VERBOSE, color=False)
    with console.log_to(tmp_path / "log"):
        for say in (console.say, console.detail, console.note, console.warn):
            say(f"{HOSTILE}\nnew line")
        console.error(HOSTILE, code=3)
        console.show_document(f"{HOSTILE}\n\tindented")
        console.table([HOSTILE], [[HOSTILE]], title=HOSTILE)
        console.show_traceback(ValueError(HOSTILE))
    with console.progress(1, HOSTILE) as shown:
        shown.advance()
    console.answer({"name": HOSTILE})
    console.finish()
    out, err = (stream.getvalue() for stream in streams)
    log = (tmp_path / "log").read_text(encoding="utf-8")
    for text, count in ((out, 5), (err, 6), (log, 4)):
        assert text.replace("\n", "").replace("\t", "").isprintable()
        assert text.count(ESCAPED) == count
    assert f"{ESCAPED}\\nnew line\n" in out and f"{ESCAPED}\n\tindented\n" in out
    assert json.loads(out.splitlines()[-1]) == {"name": HOSTILE}


@pytest.mark.parametrize("name", ["Müller", "odd\udcff", "日本"])
def test_answer_reads_back_where_stdout_is_ascii(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console.answer({"name": name})
    console.finish()
    assert json.loads(raw.getvalue().decode("ascii")) == {"name": name}


def test_a_name_that_stdout_cannot_encode_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    console.say("odd\udcff.png")
    assert raw.getvalue() == b"odd\\udcff.png\n"


@pytest.mark.parametrize(
    ("verbosity", "expected"),
    [
        (console.QUIET, "memorysam: warning: c\n"),
        (console.NORMAL, "b\nmemorysam: warning: c\n"),
        (console.VERBOSE, "a\nb\nmemorysam: warning: c\n"),
    ],
)
def test_verbosity_chooses_what_stderr_gets(verbosity: int, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.setup(verbosity=verbosity)
    console.detail("a")
    console.note("b")
    console.warn("c")
    assert capsys.readouterr().err == expected


def test_an_error_is_one_line_whatever_the_name_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    console.error("a\nb\x1b[31m [bold]é: " + "long " * 100, code=3)
    err = capsys.readouterr().err
    assert err.startswith("memorysam: error [3]: a\\nb\\x1b[31m [bold]é: long")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.png: is empty", "a.png: is empty"),
        ("a.png: is empty; get the file again", "a.png: is empty → try: get the file again"),
        ("out: does not exist; create it", "out: does not exist → try: create it"),
        ("x: is empty; 3 more; get it again; or drop it", "x: is empty; 3 more → try: get it again; or drop it"),
        ("unknown key 'lrr'; did you mean 'lr'? (known: lr)", "unknown key 'lrr' → did you mean 'lr'? (known: lr)"),
        ("SIGINT: saved; continue with: memorysam x", "SIGINT: saved → continue with: memorysam x"),
        ("No such option: --jsn; see memorysam train --help", "No such option: --jsn → see memorysam train --help"),
        ("a is there; it was written by another", "a is there; it was written by another"),
        ("out: is not empty; --resume auto continues", "out: is not empty → try: --resume auto continues"),
        ("fp16: is for GPUs; on the CPU use fp32", "fp16: is for GPUs → try: on the CPU use fp32"),
        ("cuda: is not there; try --device auto", "cuda: is not there → try --device auto"),
        ("data: holds two; type: memorysam check", "data: holds two → type: memorysam check"),
        ("use it", "use it"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("say", [lambda text: console.error(text, code=3), console.warn])
def test_on_a_terminal_what_to_do_stands_out_and_in_a_pipe_it_is_one_sentence(
    say: Callable[[str], None],
    message: str,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    say(message)
    prefix, _, text = capsys.readouterr().err.partition(": ")[2].partition(": ")
    assert prefix in {"error [3]", "warning"} and text == f"{message}\n"
    terminal = watched_stderr(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    say(message)
    assert terminal.getvalue() == f"memorysam: {prefix}: {shown}\n"
    monkeypatch.delenv("NO_COLOR")
    say(message)
    assert ("\x1b[1;36m → " in terminal.getvalue()) == ("→" in shown)


@pytest.mark.parametrize("color", [True, False])
def test_what_to_do_stands_below_where_a_terminal_is_too_narrow(color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched_stderr(monkeypatch)
    console.setup(verbosity=console.NORMAL, color=color)
    monkeypatch.setenv("COLUMNS", "59")
    for name in ("a", "abc"):  # 57 and 59 columns
        console.error(f"{name}.png: is empty; get it again", code=3)
    console.error("abcd.png: is empty; get it again", code=3)
    shown = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    assert shown == [
        "memorysam: error [3]: a.png: is empty → try: get it again",
        "memorysam: error [3]: abc.png: is empty → try: get it again",
        "memorysam: error [3]: abcd.png: is empty",
        "  → try: get it again",
    ]


def test_warnings_of_libraries_are_details(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(logging, "lastResort", None)
    with warnings.catch_warnings():
        console.hush_libraries()
        warnings.simplefilter("always")
        for verbosity, count in ((console.NORMAL, 0), (console.VERBOSE, 1)):
            console.setup(verbosity=verbosity)
            warnings.warn("they know\nbetter", UserWarning, stacklevel=1)
            assert capsys.readouterr().err == "UserWarning: they know better\n" * count
            logging.lastResort.handle(logging.LogRecord("lib", logging.WARNING, "", 0, "%s", ("late",), None))  # type: ignore[union-attr]
            assert capsys.readouterr().err == "lib: late\n" * count


def test_color_follows_the_terminal_and_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = watched_stderr(monkeypatch)

    def written() -> str:
        terminal.seek(0)
        terminal.truncate()
        console.warn("x [red]y[/red]")
        return terminal.getvalue()

    plain = "memorysam: warning: x [red]y[/red]\n"
    assert written() != plain
    assert written().startswith("\x1b[33mmemorysam: warning:\x1b[0m x [red]y[/red]")
    monkeypatch.setenv("TERM", "dumb")
    assert written() == plain
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert written() == plain
    console.setup(color=True)
    assert "\x1b[33m" in written()


def test_force_color_colors_a_pipe_but_draws_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR")
    console.warn("x")
    with console.progress(2, "read") as shown:
        shown.advance(2)
    err = capsys.readouterr().err
    assert err == "\x1b[33mmemorysam: warning:\x1b[0m x\nread: 100 % (2 of 2), 0 s\n"


def test_a_bar_is_drawn_only_where_a_person_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    watched_stderr(monkeypatch)
    assert live.draws_bars()
    for name, value in {"CI": "true", "GITHUB_ACTIONS": "true", "TERM": "dumb", "TQDM_DISABLE": "1"}.items():
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not live.draws_bars(), name
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not live.draws_bars()


def test_a_terminal_of_no_columns_gets_sober_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    watched_stderr(monkeypatch)
    leader, follower = os.openpty()  # a new one has no columns: nothing can be drawn there
    with os.fdopen(leader), os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert not live.draws_bars()
        termios.tcsetwinsize(follower, (24, 80))
        assert live.draws_bars()


def test_the_bar_vanishes_and_notes_are_not_torn_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched_stderr(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(live, "PAUSE_S", -1)
    with console.progress(4, "read") as shown:
        shown.advance(1, status="loss 0.5")
        assert "25 % (1 of 4) 0 s, about 0 s left, loss 0.5" in re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
        console.note("a note")
        shown.advance(3)
    text = terminal.getvalue()
    assert text.split("a note\n")[0].endswith("\r\x1b[J")  # the bar was lifted first
    assert "100 %," not in text  # no sober line beside a bar
    assert text.endswith("\r\x1b[J")


def test_sober_lines_come_every_five_per_cent_of_long_work(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with console.progress(1000, "train") as shown:
        for _ in range(1000):
            clock.now += 0.2
            shown.advance(status="loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 20
    assert lines[0] == "train: 5 % (50 of 1000), 10 s, about 3 min 10 s left, loss 0.5"
    assert lines[-1] == "train: 100 % (1000 of 1000), 3 min 20 s, loss 0.5"


def test_quick_work_says_one_line_and_slow_work_one_a_minute(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with console.progress(1000, "quick") as shown:
        for _ in range(1000):
            clock.now += 0.0004
            shown.advance()
    assert capsys.readouterr().err == "quick: 100 % (1000 of 1000), 0 s\n"
    with console.progress(1_000_000, "slow") as shown:
        for _ in range(12):
            clock.now += 10
            shown.advance()
        lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["slow: 0 % (6 of 1000000)", "slow: 0 % (12 of 1000000)"]


def test_progress_is_silent_when_asked_or_when_there_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(0, "none") as shown:
        shown.advance(0)
    console.setup(verbosity=console.QUIET)
    with console.progress(2, "quiet") as shown:
        shown.advance(2)
    assert capsys.readouterr().err == ""


def test_progress_claims_no_end_after_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console.progress(4, "read") as shown:
        shown.advance()
        raise KeyError("x")
    assert capsys.readouterr().err == ""


def test_a_log_keeps_all_without_color_and_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    watched_stderr(monkeypatch)
    log = tmp_path / "run" / "train.log"
    console.setup(verbosity=console.QUIET, color=True)
    with pytest.raises(RuntimeError), console.log_to(log):
        console.detail("a detail")
        console.warn("a warning")
        with console.progress(2, "train") as shown:
            shown.advance(2)
        raise RuntimeError("no more")
    console.note("afterwards")
    lines = [line.partition(" ")[2] for line in log.read_text(encoding="utf-8").splitlines()]
    assert lines == [
        "detail: a detail",
        "warning: a warning",
        "progress: train: 100 % (2 of 2), 0 s",
        "error: RuntimeError: no more",
    ]
    with console.log_to(log):
        console.note("resumed")
    assert log.read_text(encoding="utf-8").splitlines()[-1].endswith("note: resumed")


def test_a_table_is_whole_in_a_pipe_and_sets_numbers_flush_right(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    console.table(["class", "IoU"], [["road [a]", 98.1], ["x" * 300, "7.0"]], title="val")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "val"
    assert any(line.startswith("road [a] ") and line.endswith(" 98.1") for line in lines)
    assert any(line.startswith("x" * 300) and line.endswith("  7.0") for line in lines)


def test_a_column_without_any_value_is_left_out_but_never_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    console.table(["scene", "weather", "case", "mIoU"], [["–", "", "blur", "1.5"], ["–", "–", "-", "2.5"]])
    head, _, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (head, rows) == (["scene", "case", "mIoU"], [["–", "blur", "1.5"], ["–", "-", "2.5"]])
    console.table(["scene", "weather"], [])
    assert "weather" in capsys.readouterr().out


def test_tables_stand_apart_and_end_without_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    console.setup()
    console.table(["class", "seen as"], [["road", "a road"]], title="one")
    console.table(["r", "mIoU"], [["0.5", "9.50 ± 0.10"], ["0.75", "10.00 ± 0.20"]])
    console.say("end")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert [index for index, line in enumerate(lines) if not line] == [4, 9]
    assert lines[0] == "one" and lines[-1] == "end"
    assert lines[7].endswith("   9.50 ± 0.10") and lines[8].endswith("  10.00 ± 0.20")
