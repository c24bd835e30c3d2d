"""Values in words for people."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from memorysam_cli import text
from memorysam_cli.text import few, shown, size


def test_what_comes_from_a_file_stays_on_one_line() -> None:
    assert shown("a b") == "a b" and shown(3) == "3"
    assert shown("a\n\x1b[31mb") == "a\\n\\x1b[31mb"
    assert shown(os.fsdecode(b"\xff")).isprintable()
    assert shown("a" * 9, most=4) == "aaaa…" and shown("aaaa", most=4) == "aaaa"


@pytest.mark.parametrize(
    "word", ["a b", "plain/x.png", "it's", "$(x) `y`", "-q", "a\nb\x1b[2J'\\ é", "é\udcff\xa0.png"]
)
def test_a_command_is_one_printable_line_that_a_shell_reads_back(word: str) -> None:
    line = text.command("train", "--resume", word)
    assert line.isprintable() and line.startswith("memorysam train --resume ")
    shell = ["bash", "-c", f'memorysam() {{ printf "%s\\0" "$@"; }}; {line}']
    assert subprocess.run(shell, capture_output=True, check=True).stdout == os.fsencode(f"train\0--resume\0{word}\0")


def test_the_first_of_many_are_named_and_the_others_counted() -> None:
    assert few([], 2) == "" and few(["a", "b"], 2) == "a, b"
    assert few(["a", "b", "c"], 2) == "a, b and 1 more"
    assert few(["a, x", "b", "c", "d"], 2, separator="; ") == "a, x; b; and 2 more"
    assert few(["a", "b", "c"], 2, is_counted=False) == "a, b, …"


@pytest.mark.parametrize(
    ("count", "words"),
    [(24 * 10**9, "24.0 GB"), (96 * 10**6, "96 MB"), (950 * 10**6, "0.9 GB"), (949_999_999, "950 MB"), (0, "0 MB")],
)
def test_bytes_are_gigabytes_or_megabytes(count: int, words: str) -> None:
    assert size(count) == words


def test_bytes_are_as_exact_as_they_must_be() -> None:
    assert size(20_000_000, decimals=1, exact_below=100_000) == "20.0 MB"
    assert size(55_700, decimals=1, exact_below=100_000) == "55,700 bytes"
    assert text.megabytes(2_500_000_000) == "2500.0 MB"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (7380, "2 h 03 min")],
)
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


@pytest.mark.parametrize(("value", "words"), [(12000.0, "12,000"), (3, "3"), (0.01234, "0.0123"), (2e9, "2e+09")])
def test_numbers_are_short(value: float, words: str) -> None:
    assert text.number(value) == words


def test_words_wait_for_nothing() -> None:
    script = (
        "import sys, memorysam_cli.text; print(len([name for name in sys.modules if name.startswith('memorysam')]))"
    )
    shown_modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown_modules == "2\n"
