"""What a recipe chooses by name: encoders, fusions, losses.

A registry is a plain table from a name to where the thing stands (``"package.module:attribute"``), so that listing
names imports nothing heavy; a module is imported when one of its names is first used. A file of the user's own adds
to the tables with :meth:`Registry.register` (docs/extending.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any


class Registry:
    """Names and what they stand for.

    Args:
        kind: what is registered, for messages: "encoder".
        known: name -> ``"package.module:attribute"``.
    """

    def __init__(self, kind: str, known: dict[str, str]) -> None:
        self.kind = kind
        self._known: dict[str, Any] = dict(known)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def register(self, name: str, value: Any) -> None:
        """Add a name.

        Args:
            name: how recipes call it.
            value: the thing itself, or ``"package.module:attribute"``.

        Raises:
            ValueError: the name is taken by something else.
        """
        if name in self._known and self._known[name] is not value:
            raise ValueError(f"{self.kind} '{name}' is registered already (known: {', '.join(self)})")
        self._known[name] = value

    def get(self, name: str) -> Any:
        """What a name stands for; its module is imported if need be.

        Raises:
            KeyError: nothing is registered under this name.
        """
        value = self._known[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self._known[name] = getattr(importlib.import_module(module), attribute)
        return value


LOSSES = Registry("loss", {"ohem": "memorysam_cli.losses.ohem:OhemLoss", "spmm": "memorysam_cli.losses.spmm:SpmmLoss"})
"""Losses by name: classes such as :class:`memorysam_cli.losses.loss.Loss`."""
