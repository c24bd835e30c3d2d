"""Values in words for people."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memorysam_cli import text
from memorysam_cli.text import counted, few, shown, size

THINGS = (  # noqa: SIM905
    "scene class file pixel picture sensor modality line update step process core frame label value channel part "
    "batch validation thread column annotation pair number cell name set mask draw epoch"
).split()
"""What messages count."""
_COUNTED = re.compile(rf" (?:(?!of|in|like|whose|become)\w+ )?({'|'.join(text._plural(thing) for thing in THINGS)})\b")
SEVERAL = {
    "data/findings.py": {"_some(list(self._large))", "len(paths)"},  # words, or two or more, as the next ones are
    "data/decode.py": {"count"}, "data/inputs.py": {"len(here)"}, "data/layout.py": {"number"},
    "data/manifest.py": {"len(datasets)"},
    "data/own/annotated.py": {"most", "list(size)"}, "data/own/classes.py": {"len(kept)"},
    "data/own/hha.py": {"stored.shape[2]"},
    "data/own/proposal.py": {"count"}, "data/preparation.py": {"len(prepared)"}, "engine/demo.py": {"scenes"},
    "commands/demo.py": {"result.steps"}, "engine/infer/inference.py": {"count"}, "engine/measure/bench.py": {"steps"},
    "engine/measure/trials.py": {"steps + MOST_SKIPPED"}, "engine/run_folder.py": {"world"},
    "engine/runtime.py": {"surroundings.world()"}, "data/transforms.py": {"columns", "dtype"},
    "engine/evaluate/results.py": {"count", "report['tile']['window']"},
    "engine/reporting/result_pages.py": {"report['image_size']"},
    "engine/diagnosis.py": {"waiting"}, "engine/train/loop.py": {"self._scenes / seconds"},  # no whole numbers
    "report/live.py": {"pace"}, "model/network.py": {"known or 'all'", "known"},
    "data/own/annotation_tools.py": {"picture.shape[:2]"},  # sizes
    "storage/images.py": {"size(length)", "found.format.upper()", "found.channels"},
    "engine/weights/model_card.py": {"antialiased"}, "storage/headers.py": {"length"},
}  # fmt: skip
"""Module → values before such words that are no count, or of which a look has shown that they are several."""


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


def test_one_thing_is_counted_as_one() -> None:
    assert counted(1, "class") == "1 class" and counted(2, "class") == "2 classes" and counted(0, "scene") == "0 scenes"
    assert (
        counted(1, "entry") == "1 entry" and counted(1234, "entry") == "1,234 entries" and counted(2, "way") == "2 ways"
    )
    assert [counted(n, "file", "is") for n in (1, 2)] == ["1 file is", "2 files are"]
    assert [counted(n, "scene", "lacks") for n in (1, 2)] == ["1 scene lacks", "2 scenes lack"]
    assert [counted(n, "scene", "has") for n in (1, 2)] == ["1 scene has", "2 scenes have"]


def plurals(path: Path) -> Iterator[tuple[str, str]]:
    """Values in a module's messages that a word for several things follows, and the word."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for before, value, after in zip([ast.Constant(""), *parts], parts, parts[1:], strict=False):
            word = _COUNTED.match(str(after.value)) if isinstance(after, ast.Constant) else None
            is_size = isinstance(before, ast.Constant) and str(before.value).endswith(("×", "x ", "× "))
            if word and isinstance(value, ast.FormattedValue) and not is_size:
                yield ast.unparse(value.value), word[1]


def test_no_message_says_1_scenes() -> None:
    """Whoever counts in a message does it by ``counted``."""
    package = Path(text.__file__).parent
    found = [
        (str(path.relative_to(package)), value, word)
        for path in sorted(package.rglob("*.py"))
        for value, word in plurals(path)
        if value not in SEVERAL.get(str(path.relative_to(package)), ()) and not re.fullmatch(r"_?[A-Z_]+", value)
    ]
    assert not found


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
