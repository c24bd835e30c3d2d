"""What a recipe chooses by name: encoders, fusions, losses.

A registry is a plain table from a name to where the thing stands (``"package.module:attribute"``), so that listing
names imports nothing heavy; a module is imported when one of its names is first used. A file of the user's own adds
to the tables with :meth:`Registry.register` (docs/extending.md); files that ``--extend`` named are run when a name is
first looked up.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from memorysam_cli import extensions


class Registry:
    """Names and what they stand for.

    Args:
        kind: what is registered, for messages: "encoder".
        known: name -> ``"package.module:attribute"``.
    """

    def __init__(self, kind: str, known: dict[str, str]) -> None:
        self.kind = kind
        self.built_in = tuple(known)
        self._known: dict[str, Any] = dict(known)

    def __contains__(self, name: object) -> bool:
        extensions.load()
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        extensions.load()
        return iter(tuple(self._known))

    def register(self, name: str, value: Any) -> None:
        """Add a name.

        Args:
            name: how recipes call it.
            value: the thing itself, or ``"package.module:attribute"``.

        Raises:
            ValueError: the name is taken by something else.
        """
        if name in self._known and self._known[name] is not value:
            raise ValueError(f"{self.kind} '{name}' is registered already (known: {', '.join(self._known)})")
        self._known[name] = value
        extensions.note(name)

    def get(self, name: str) -> Any:
        """What a name stands for; its module is imported if need be.

        Raises:
            KeyError: nothing is registered under this name.
        """
        extensions.load()
        value = self._known[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self._known[name] = getattr(importlib.import_module(module), attribute)
        return value


LOSSES = Registry("loss", {"ohem": "memorysam_cli.losses.ohem:OhemLoss", "spmm": "memorysam_cli.losses.spmm:SpmmLoss"})
"""Losses by name: classes such as :class:`memorysam_cli.losses.loss.Loss`."""
_HIERA = "memorysam_cli.encoders.hiera"
ENCODERS = Registry(
    "encoder",
    {
        "nano": f"{_HIERA}:NANO",
        "sam2-hiera-tiny": f"{_HIERA}:SAM2_TINY",
        "sam2-hiera-small": f"{_HIERA}:SAM2_SMALL",
        "sam2-hiera-base-plus": f"{_HIERA}:SAM2_BASE_PLUS",
        "sam2-hiera-large": f"{_HIERA}:SAM2_LARGE",
        "sam2.1-hiera-tiny": f"{_HIERA}:SAM21_TINY",
        "sam2.1-hiera-small": f"{_HIERA}:SAM21_SMALL",
        "sam2.1-hiera-base-plus": f"{_HIERA}:SAM21_BASE_PLUS",
        "sam2.1-hiera-large": f"{_HIERA}:SAM21_LARGE",
    },
)
"""``model.backbone`` → a :class:`memorysam_cli.encoders.base.Backbone`."""
FUSIONS = Registry("fusion", {"mean": "memorysam_cli.model.fusion:Mean"})
"""``model.fusion`` → a :class:`memorysam_cli.model.fusion.Fusion`, the class or what else makes one."""
