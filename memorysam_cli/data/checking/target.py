"""Which data set ``memorysam check`` means: one that is prepared, or a published one that is only there."""

from __future__ import annotations

from pathlib import Path

from memorysam_cli.data import DATASETS, layout_of, preparation
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.errors import DataError, did_you_mean


def find(root: Path, *, dataset: str | None = None) -> Manifest:
    """The listed scenes of a data set in or below a folder; nothing of them is read.

    Args:
        root: a data root, or the folder of a published data set.
        dataset: its name; none: the only one that is there.

    Raises:
        DataError: none, or more than one; says which, and what to type.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'is no folder' if root.exists() else 'does not exist'}; name the folder of the data")
    prepared = manifests.prepared(root)
    if dataset in prepared or (dataset is None and len(prepared) == 1):
        return manifests.read_unsigned(root, dataset or prepared[0])
    if dataset is not None and dataset not in DATASETS:
        raise DataError(
            f"{root}: no data set '{dataset}' is prepared there, and none of that name is published"
            f"{did_you_mean(dataset, [*prepared, *DATASETS])}"
        )
    if dataset is not None:
        return preparation.survey(dataset, root)
    if prepared:
        raise DataError(
            f"{root}: {len(prepared)} data sets are prepared there; name one with --dataset: {', '.join(prepared)}"
        )
    found = [name for name in DATASETS if _is_there(name, root)]
    if len(found) == 1:
        return preparation.survey(found[0], root)
    if found:
        raise DataError(f"{root}: looks like {' and like '.join(found)}; name one with --dataset")
    raise DataError(
        f"{root}: holds no prepared data set and none that is known (known: {', '.join(DATASETS)}); for sensors "
        f"of your own type: memorysam prepare folder {root} --modality NAME=PATTERN …"
    )


def _is_there(name: str, root: Path) -> bool:
    try:
        layout_of(name).find(root)
    except DataError as fault:
        return "more than once" in str(fault)  # survey then says where
    return True
