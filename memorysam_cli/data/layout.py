"""What a data set's module declares: how to recognise its folder and read off its scenes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from memorysam_cli.data.listing import sample_names, subfolders
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.errors import DataError

MARKER = "memorysam-synthetic.json"
"""Lies in a folder that ``prepare synthetic`` rendered; holds the arguments it was rendered with."""
DEPTH = 3
"""How many folders below ROOT a data set is looked for."""


class DataNotFound(DataError):
    """The data are not there; carries the tree that is looked for."""

    def __init__(self, message: str, *, expected_tree: str) -> None:
        super().__init__(message)
        self.expected_tree = expected_tree


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
            raise self._not_found(root, "is not a folder")
        candidates = sorted(self._candidates(root, levels=DEPTH))
        real = [path for path in candidates if not is_rendered(path)]
        chosen = real or candidates
        if not chosen:
            raise self._not_found(root, f"no {self.title} here or up to {DEPTH} folders below")
        if len(chosen) > 1:
            names = " and ".join(str(path) for path in chosen[:2])
            raise DataError(f"{root}: holds {self.title} more than once: {names}; give one of them as ROOT")
        return chosen[0]

    def survey(self, folder: Path, root: Path) -> list[Scene]:
        """The scenes of a folder that holds the layout.

        Raises:
            DataError: there is none; names two files that are there.
        """
        scenes = self.scenes(folder, root)
        if not scenes:
            seen = ", ".join(sample_names(folder)) or "no file at all"
            raise DataNotFound(
                f"{folder}: no scene of {self.title} (saw {seen}); compare with the expected tree",
                expected_tree=self.expected_tree,
            )
        return scenes

    def _not_found(self, root: Path, what: str) -> DataNotFound:
        """Nothing to prepare: where the data are published, and how large they are."""
        return DataNotFound(
            f"{root}: {what}; {self.title} is published at {self.published_at} ({self.download_gb:g} GB): unpack it "
            "there, or give the folder that it is in",
            expected_tree=self.expected_tree,
        )

    def _candidates(self, folder: Path, *, levels: int) -> Iterator[Path]:
        """The folders that hold the layout, not looking inside those that do, nor into hidden ones."""
        if self.holds(folder):
            yield folder
        elif levels:
            for below in subfolders(folder):
                yield from self._candidates(folder / below, levels=levels - 1)


def is_rendered(folder: Path) -> bool:
    """Whether ``prepare synthetic`` made a data set's folder; its marker may lie one folder above (MCubeS)."""
    return any((place / MARKER).is_file() for place in (folder, folder.absolute().parent))
