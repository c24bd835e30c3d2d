"""Scenes: where they lie, how they become tensors.

``DATASETS`` is the catalog: plain strings, so that listing it loads nothing. A new data set is one declaration in
``data/datasets/``, a :class:`~memorysam_cli.data.layout.DatasetLayout`, one line here and one test.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from memorysam_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from memorysam_cli.data.layout import DatasetLayout
    from memorysam_cli.dataset import DatasetInfo

DATASETS: dict[str, str] = {
    "deliver": "memorysam_cli.data.datasets.deliver:DELIVER",
    "mcubes": "memorysam_cli.data.datasets.mcubes:MCUBES",
    "mfnet": "memorysam_cli.data.datasets.mfnet:MFNET",
    "fmb": "memorysam_cli.data.datasets.fmb:FMB",
    "pst900": "memorysam_cli.data.datasets.pst900:PST900",
    "nyu": "memorysam_cli.data.datasets.nyu:NYU",
    "kitti360": "memorysam_cli.data.datasets.kitti360:KITTI360",
    "urbanlf": "memorysam_cli.data.datasets.urbanlf:URBANLF",
    "muses": "memorysam_cli.data.datasets.muses:MUSES",
}
"""Name in ``memorysam prepare NAME`` and in ``data.dataset`` → ``module:object``."""


def layout_of(name: str) -> DatasetLayout:
    """The layout of a cataloged data set.

    Raises:
        UsageError: the catalog has no such name.
    """
    if name not in DATASETS:
        raise UsageError(f"'{name}' is not a known data set{did_you_mean(name, DATASETS)}")
    module, _, attribute = DATASETS[name].partition(":")
    found: DatasetLayout = getattr(importlib.import_module(module), attribute)
    return found


def published_in(folder: Path) -> DatasetLayout | None:
    """The published data set whose own folder this is, by its files and folders; an incomplete one, too."""
    return next((layout for layout in map(layout_of, DATASETS) if layout.holds(folder)), None)


def published_info(name: str) -> DatasetInfo:
    """What a published data set is, with all modalities that it may have, without its folder.

    Raises:
        UsageError: the catalog has no such name.
    """
    return layout_of(name).published_info
