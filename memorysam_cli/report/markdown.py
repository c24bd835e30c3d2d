"""Text for Markdown: other people's words stay words, whatever they look like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")


def line(text: str) -> str:
    """Text on one line, without control characters and backticks: what may stand between two of these."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()).replace("`", "'")


def plain(text: str) -> str:
    """Text on one line that Markdown and HTML leave alone, in a table too; nothing of it becomes a link."""
    safe = line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    linkless = safe.replace("://", "&#58;//").replace("www.", "www&#46;")
    return _SPECIAL.sub(r"\\\1", linkless)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are Markdown already."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def fenced(language: str, text: str) -> str:
    """A block of code whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
