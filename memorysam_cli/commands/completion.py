"""What the shell offers at Tab, beside files: names that memorysam knows. No package is imported for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def recipe_names(incomplete: str) -> list[str]:
    """Shipped recipes, and recipe files below the folder that is being typed."""
    package = Path(__file__).parent.parent
    folders = (package / "recipes", package.parent / "recipes")  # as recipe.reading finds them
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    return [*_beginning(names, incomplete), *_files(incomplete, (".yaml", ".yml"))]


def devices(incomplete: str) -> list[str]:
    """What ``--device`` takes."""
    return _beginning(("auto", "cpu", "cuda", "cuda:0", "cuda:1", "mps"), incomplete)


def splits(incomplete: str) -> list[str]:
    """What data sets call their splits."""
    return _beginning(("train", "val", "test"), incomplete)


def data_sets(incomplete: str) -> list[str]:
    """Published data sets, and what is prepared in the data root."""
    from memorysam_cli.data import DATASETS

    root = Path(os.environ.get("MEMORYSAM_DATA") or "data")
    prepared = (path.parent.name for path in (root / "memorysam").glob("*/dataset.json"))
    return _beginning(sorted({*DATASETS, *prepared}), incomplete)


def runs(incomplete: str) -> list[str]:
    """The runs below ``runs/``, and folders."""
    found = (path.parent for path in Path("runs").glob("*/recipe.yaml"))
    return list(dict.fromkeys([*_beginning(sorted(map(str, found)), incomplete), *_files(incomplete, ())]))


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _files(incomplete: str, endings: tuple[str, ...]) -> list[str]:
    """Files of these endings, and folders, whose path begins so."""
    folder, _, name = incomplete.rpartition("/")
    place = Path(f"{folder}/" if incomplete.startswith("/") else folder or ".")
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return []
    found = [entry for entry in entries if entry.name.startswith(name) and (name or not entry.name.startswith("."))]
    prefix = f"{folder}/" if "/" in incomplete else ""
    return [
        f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in found
        if entry.is_dir() or entry.suffix in endings
    ]
