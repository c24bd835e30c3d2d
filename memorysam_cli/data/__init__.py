"""Scenes: where they lie, how they become tensors.

``DATASETS`` is the catalogue: plain strings, so that listing it loads nothing. A new data set is one module with
a :class:`~memorysam_cli.data.layout.Layout`, one line here and one test.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from memorysam_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from memorysam_cli.data.layout import Layout

DATASETS: dict[str, str] = {
    "deliver": "memorysam_cli.data.deliver:DELIVER",
    "mcubes": "memorysam_cli.data.mcubes:MCUBES",
}
"""Name in ``memorysam prepare NAME`` and in ``data.dataset`` → ``module:object``."""


def layout_of(name: str) -> Layout:
    """The layout of a catalogued data set.

    Raises:
        UsageError: the catalogue has no such name.
    """
    if name not in DATASETS:
        raise UsageError(f"'{name}' is no known data set{did_you_mean(name, DATASETS)}")
    module, _, attribute = DATASETS[name].partition(":")
    found: Layout = getattr(importlib.import_module(module), attribute)
    return found
