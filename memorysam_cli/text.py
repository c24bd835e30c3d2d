"""Values in words for people: names, lists of names, bytes, seconds, numbers; and a path in people's words.

Every message, table and chart takes its words from here, so that one thing reads alike wherever it is met. Only the
standard library, and little of it: all modules may import this one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def shown(value: object, *, most: int | None = None) -> str:
    """A value for a one-line message: control characters and undecodable bytes are escaped.

    Args:
        value: a path, a name, or anything whose text may come from a file.
        most: letters of the value at most, before an ellipsis; None: all.
    """
    text = str(value)
    head = text if most is None else text[:most]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in head)
    return escaped if len(head) == len(text) else f"{escaped}…"


def few(names: Sequence[str], most: int, *, separator: str = ", ", is_counted: bool = True) -> str:
    """The first of some names: ``a, b and 7 more``, or ``a, b, …``.

    Args:
        names: as they are to be read; escape what comes from files by :func:`shown`.
        most: how many are named.
        separator: ``"; "`` between names that have commas of their own.
        is_counted: say how many are left out, where nothing before has said how many there are.
    """
    named = separator.join(names[:most])
    if len(names) <= most:
        return named
    if is_counted:
        return f"{named}{separator.strip(', ')} and {len(names) - most} more"
    return f"{named}{separator}…"


def size(count: int, *, decimals: int = 0, exact_below: int = 0) -> str:
    """Bytes: ``24.0 GB``, or ``96 MB`` where that is less than one.

    Args:
        count: bytes; 1 GB is 10⁹ of them.
        decimals: of the megabytes.
        exact_below: fewer bytes than this are written out.
    """
    if count < exact_below:
        return f"{count:,} bytes"
    return f"{count / 1e9:.1f} GB" if count >= 0.95e9 else megabytes(count, decimals=decimals)


def megabytes(count: int, *, decimals: int = 1) -> str:
    """Bytes as megabytes, however many: ``315.0 MB``; for two numbers that are to be compared."""
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
    """A number in short, thousands apart: ``12,000``, ``0.0123``."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.3g}"


def typed_path(text: str | os.PathLike[str]) -> Path:
    """A path as people type it: ``~`` is the home folder; ``~somebody`` whom nobody knows stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
