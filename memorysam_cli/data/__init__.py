"""Scenes: their files, and how they become tensors.

``DATASETS`` is the catalog. It has only strings, so that listing it loads nothing. A new data set needs a declaration
in ``data/datasets/``, a :class:`~memorysam_cli.data.layout.DatasetLayout`, one line here and one test.
"""

from __future__ import annotations

import importlib
import os
from itertools import islice
from typing import TYPE_CHECKING

from memorysam_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator
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
MOST_FOLDERS = 50
"""Number of folders per level that are searched for a published data set."""


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
    """The published data set of this folder, recognized by its files and folders; an incomplete one, too."""
    return next((layout for layout in map(layout_of, DATASETS) if layout.holds(folder)), None)


def published_below(root: Path) -> Iterator[tuple[Path, DatasetLayout]]:
    """The published data sets in a folder and as many levels below it as ``prepare`` searches, the nearest first.

    In a tree with very many folders only some are searched, so that the answer is immediate.
    """
    from memorysam_cli.data.layout import DEPTH
    from memorysam_cli.data.listing import subfolders

    level = [root]
    for _ in range(DEPTH + 1):
        found = {place: published_in(place) for place in level}
        yield from ((place, layout) for place, layout in found.items() if layout is not None)
        below = (place / name for place, layout in found.items() if layout is None for name in subfolders(place))
        level = list(islice((place for place in below if os.access(place, os.R_OK | os.X_OK)), MOST_FOLDERS))


def published_info(name: str) -> DatasetInfo:
    """The description of a published data set with all modalities that it may have, without its folder.

    Raises:
        UsageError: the catalog has no such name.
    """
    return layout_of(name).published_info
