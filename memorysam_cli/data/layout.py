"""What a data set's module declares: how to recognise its folder and read off its scenes."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import ClassVar

from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.errors import DataError

MARKER = "memorysam-synthetic.json"
"""Lies in a folder that ``prepare synthetic`` rendered; holds the arguments it was rendered with."""
DEPTH = 3
"""How many folders below ROOT a data set is looked for."""


class Layout(ABC):
    """One data set's layout on disk."""

    name: ClassVar[str]
    title: ClassVar[str]
    published_at: ClassVar[str]
    download_gb: ClassVar[float]
    expected_tree: ClassVar[str]
    """Shown when the data are not found."""
    published_counts: ClassVar[dict[str, int]]
    """Scenes per split as published."""

    @abstractmethod
    def info(self, folder: Path) -> DatasetInfo:
        """What the data set is; a modality that is optional is listed only if ``folder`` has it."""

    @abstractmethod
    def holds(self, folder: Path) -> bool:
        """Whether a folder is the data set's own; cheap, and true of an incomplete one too."""

    @abstractmethod
    def scenes(self, folder: Path, root: Path) -> list[Scene]:
        """All scenes, paths relative to ``root``, each with every file it must have, there or not.

        A scene is listed as soon as one of its files exists, so that the check finds a label without an image
        just as an image without a label.
        """

    def remarks(self, scenes: Sequence[Scene]) -> list[str]:
        """What is worth saying about the scenes that is no fault, such as a part of the published ones."""
        counts = {split: sum(scene.split == split for scene in scenes) for split in self.published_counts}
        return [
            f"{split}: {counts[split]} of the {published} published scenes"
            for split, published in self.published_counts.items()
            if counts[split] != published
        ]

    def find(self, root: Path) -> Path:
        """The data set's folder: ``root``, or the one folder at most three levels below it.

        A rendered folder counts only where there is no other, so that synthetic scenes never pass for real ones.

        Raises:
            DataError: there is none (says where the data are published), or more than one.
        """
        if not root.is_dir():
            raise DataError(f"{root}: is not a folder; {self.how_to_get()}")
        candidates = sorted(self._candidates(root, levels=DEPTH))
        real = [path for path in candidates if not (path / MARKER).is_file()]
        chosen = real or candidates
        if not chosen:
            raise DataError(f"{root}: no {self.title} here or up to {DEPTH} folders below; {self.how_to_get()}")
        if len(chosen) > 1:
            names = " and ".join(str(path) for path in chosen[:2])
            raise DataError(f"{root}: holds {self.title} more than once: {names}; give one of them as ROOT")
        return chosen[0]

    def how_to_get(self) -> str:
        """Where the data are published and how large they are."""
        return (
            f"{self.title} is published at {self.published_at} ({self.download_gb:g} GB); unpack it and give its folder"
        )

    def _candidates(self, folder: Path, *, levels: int) -> Iterator[Path]:
        """The folders that hold the layout, not looking inside those that do, nor into hidden ones."""
        if self.holds(folder):
            yield folder
        elif levels:
            for below in subfolders(folder):
                yield from self._candidates(folder / below, levels=levels - 1)


def subfolders(folder: Path) -> list[str]:
    """The names of the folders directly inside a folder, sorted, hidden ones left out; none if unreadable."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def files_in(folder: Path) -> list[str]:
    """The names of the files directly inside a folder, sorted, hidden ones left out; none if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def relative(folder: Path, root: Path) -> PurePosixPath:
    """``folder`` as seen from ``root``, with forward slashes."""
    return PurePosixPath(folder.relative_to(root).as_posix())
