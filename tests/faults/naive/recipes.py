"""A recipe read as most programs read theirs: ``yaml.safe_load``, and a default for whatever is not there."""

from __future__ import annotations

from typing import Any

import yaml


def load(text: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """The values that a program would run with, by dotted key."""
    content = yaml.safe_load(text) or {}
    found = {}
    for key, value in defaults.items():
        section, dot, name = key.partition(".")
        found[key] = (content.get(section) or {}).get(name, value) if dot else content.get(key, value)
    return found
