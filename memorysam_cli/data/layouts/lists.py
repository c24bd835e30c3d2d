"""Split lists: text files that name the scenes of a split, one per line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from memorysam_cli.data.layouts.templates import Fields, compiled
from memorysam_cli.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Where a data set's split lists lie, and what their lines are."""

    folder: str = ""
    """In which they lie, relative to the data set's; "" for the data set's own."""
    splits: tuple[str, ...] = SPLITS
    lines: tuple[str, ...] = ("{name}",)
    """Templates; the first that a line matches gives its fields."""
    has_columns: bool = False
    """Whether only a line's text up to the first blank or tab counts."""

    @property
    def files(self) -> Mapping[str, str]:
        """Split → its list, relative to the data set's folder."""
        return {split: f"{self.folder}/{split}.txt".lstrip("/") for split in self.splits}

    def read(self, folder: Path) -> list[Fields]:
        """The fields of every line, ``split`` among them, in the order of the lists.

        Raises:
            DataError: there is no list, or one cannot be read, or a line has no known form.
        """
        present = {split: folder / path for split, path in self.files.items() if (folder / path).is_file()}
        if not present:
            *first, last = (f"{split}.txt" for split in self.splits)
            where = folder / self.folder if self.folder else folder
            raise DataError(f"{where}: has no {', '.join(first)} or {last}; unpack the lists too")
        return [{"split": split, **fields} for split, path in present.items() for fields in self._entries(path)]

    def _entries(self, path: Path) -> Iterator[Fields]:
        """The fields of every line that is not empty."""
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as fault:
            raise DataError(f"{path}: cannot be read as a list of names ({fault}); unpack it again") from None
        forms = [compiled(text) for text in self.lines]
        for number, line in enumerate(lines, start=1):
            entry = line.strip()
            if self.has_columns and entry:
                entry = entry.split()[0]
            if not entry:
                continue
            fields = next((found for form in forms if (found := form.match(entry)) is not None), None)
            if fields is None:
                allowed = " or ".join(form.shown for form in forms)
                raise DataError(
                    f"{path}, line {number}: {entry!r} is not a scene's name (allowed: {allowed}; no other folders)"
                )
            yield fields
