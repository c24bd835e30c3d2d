"""One finding of the doctor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do; empty where all is well."""


Check = Callable[[], Iterable[Finding]]


def ok(name: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Finding:
    """Something will be slow, or will not work that not everybody needs."""
    return Finding(name, "warning", found, remedy)


def problem(name: str, found: str, remedy: str) -> Finding:
    """Commands will fail."""
    return Finding(name, "problem", found, remedy)
