"""Values as text for users: names, lists of names, bytes, seconds, numbers and paths.

All messages, tables and charts use these functions, so that the same thing has the same form everywhere. This module
uses only a little of the standard library, because all modules may import it.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def shown(value: object, *, most: int | None = None, keep: str = "") -> str:
    """A value for a one-line message: control characters and undecodable bytes are escaped.

    Args:
        value: a path, a name, or any value whose text may come from a file.
        most: the largest number of letters before an ellipsis; None: all.
        keep: control characters that stay, such as the newlines of a document.
    """
    text = str(value)
    head = text if most is None else text[:most]
    if not head.isprintable():
        head = "".join(c if c.isprintable() or c in keep else _escaped(c) for c in head)
    return head if most is None or len(text) <= most else f"{head}…"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode()


def command(*words: object) -> str:
    """A command of this program, ready to copy and run: ``memorysam train --resume 'runs/a b'``.

    Args:
        words: the words after the program's name. A path with spaces is quoted. A path with control characters or
            undecodable bytes is written in the shells' ``$'…'`` form, so that it fits on one line and still names the
            file.
    """
    return " ".join(["memorysam", *map(typed, words)])


def typed(value: object) -> str:
    """One word for a shell, in the form of :func:`command`."""
    word = str(value)
    if word.isprintable():
        return shlex.quote(word)
    letters = (c if c.isprintable() and c not in "'\\" else _as_bytes(c) for c in word)
    return f"$'{''.join(letters)}'"


def _as_bytes(letter: str) -> str:
    """A letter as shell escapes; a letter that stands for a byte that is not UTF-8 becomes that byte again."""
    errors = "surrogateescape" if "\udc80" <= letter <= "\udcff" else "replace"
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", errors))


def docstring(thing: Any) -> str:
    """The docstring of a class or function. If Python has dropped it (``PYTHONOPTIMIZE=2``), it is read from the
    source."""
    import inspect

    if thing.__doc__ or not sys.flags.optimize > 1:
        return inspect.getdoc(thing) or ""
    import ast
    import textwrap

    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    except (OSError, SyntaxError, ValueError):  # an installation without source files
        return ""
    return (ast.get_docstring(definition) or "") if isinstance(definition, ast.FunctionDef | ast.ClassDef) else ""


def is_text(name: str) -> bool:
    """False for file names whose bytes are not UTF-8."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def few(names: Sequence[str], most: int, *, separator: str = ", ", is_counted: bool = True) -> str:
    """The first of some names: ``a, b and 7 more``, or ``a, b, …``.

    Args:
        names: the names as text; use :func:`shown` for names that come from files.
        most: the largest number of names to write out.
        separator: ``"; "`` between names that contain commas.
        is_counted: state how many are left out, if the text before does not state the total.
    """
    named = separator.join(names[:most])
    if len(names) <= most:
        return named
    if is_counted:
        return f"{named}{separator.strip(', ')} and {len(names) - most} more"
    return f"{named}{separator}…"


def counted(count: int, thing: str, does: str = "") -> str:
    """``1 pixel``, ``1,234 pixels``; ``1 class is``, ``2 classes are``.

    Args:
        count: number of things.
        thing: the noun in the singular, with its adjective: ``training scene``.
        does: a verb that follows, in the singular.
    """
    verb = f" {does if count == 1 else _OF_MANY.get(does, does.removesuffix('s'))}" if does else ""
    return f"{count:,} {thing if count == 1 else _plural(thing)}{verb}"


_OF_MANY = {"is": "are", "was": "were", "has": "have", "does": "do"}


def _plural(thing: str) -> str:
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return f"{thing[:-1]}ies"
    return f"{thing}{'es' if thing.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def requirement(message: str) -> str:
    """Pydantic's message about a value as a rule: ``must be a number``."""
    rule = re.sub("^(Input|Tuple) should", "must", message.removeprefix("Value error, "))
    for theirs, ours in _RULES.items():
        rule = re.sub(theirs, ours, rule)
    return rule


_RULES = {
    ", unable to (parse|interpret).*": "",
    " after validation": "",
    "a valid (number|string|date)": r"a \1",
    "a string": "text",
    "a valid integer(, got a number with a fractional part)?": "a whole number",
    "a valid boolean": "true or false",
    "a valid (array|list|tuple)": "a list, such as [a, b]",
    "(an object|a valid dictionary)": "a section",
}
"""Pydantic's words for a type, as a regular expression, and our word."""


def size(count: int, *, decimals: int = 0, exact_below: int = 0) -> str:
    """Bytes: ``24.0 GB``, or ``96 MB`` below one.

    Args:
        count: bytes; 1 GB is 10⁹ of them.
        decimals: of the megabytes.
        exact_below: smaller numbers are written out in bytes.
    """
    if count < exact_below:
        return f"{count:,} bytes"
    return f"{count / 1e9:.1f} GB" if count >= 0.95e9 else megabytes(count, decimals=decimals)


def megabytes(count: int, *, decimals: int = 1) -> str:
    """A size always in megabytes: ``315.0 MB``; for two sizes that the reader compares."""
    return f"{count / 1e6:.{decimals}f} MB"


def duration(seconds: float) -> str:
    """``12 s``, ``1 min 05 s`` or ``2 h 03 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def number(value: float) -> str:
    """A short number with thousands separators: ``12,000``, ``0.0123``."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.3g}"


def typed_path(text: str | os.PathLike[str]) -> Path:
    """A path as users type it: ``~`` is the home folder; ``~name`` of an unknown user stays unchanged."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
