"""What a check found: plain facts, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from memorysam_cli import laws
from memorysam_cli.data.manifest import Scene, count_splits

SHOWN = 10
"""Offenders of each kind that are named; the others are counted."""


@dataclass(frozen=True)
class Problem:
    """One kind of fault."""

    kind: str
    count: int
    first: tuple[str, ...]
    """The first ten, each with the scene and the path."""

    @classmethod
    def of(cls, kind: str, messages: Sequence[str]) -> Self:
        """Name the first ten, count all."""
        return cls(kind, len(messages), tuple(messages[:SHOWN]))

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        return {"kind": self.kind, "count": self.count, "first": list(self.first)}


@dataclass(frozen=True)
class Stored:
    """One form in which a modality's files are stored."""

    dtype: str
    channels: int
    scenes: int
    low: float | None
    """The least and the greatest value in all files; None where headers alone were read."""
    high: float | None

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` shows it."""
        return {
            "dtype": self.dtype,
            "channels": self.channels,
            "scenes": self.scenes,
            "low": self.low,
            "high": self.high,
        }


@dataclass(frozen=True)
class Dropped:
    """A scene that is left out, and why."""

    scene: Scene
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Its line in ``dropped.jsonl``."""
        return {"scene": self.scene.id, "split": self.scene.split, "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Report:
    """What a check found."""

    dataset: str
    root: Path
    scenes: tuple[Scene, ...]
    """All, or with ``drop_incomplete`` those that can be used."""
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    problems: tuple[Problem, ...]
    """Empty if the whole data set can be used."""
    warnings: tuple[str, ...]
    pixels: dict[str, tuple[int, ...]]
    """Split → labelled pixels per class, and then the ignored ones."""
    stored: dict[str, tuple[Stored, ...]] = field(default_factory=dict)
    """Modality → the forms of its files, the commonest first."""
    dropped: tuple[Dropped, ...] = ()
    published: dict[str, int] = field(default_factory=dict)
    """Scenes per split as published; empty for data sets of one's own."""
    notes: tuple[str, ...] = ()
    """What was assumed before the check; said already."""
    strays: Problem | None = None
    """Files in the data set's folders that belong to no scene."""
    laws: laws.Report = field(default_factory=dict)
    """What was taken in is what is given out, or said to be left out."""

    @property
    def splits(self) -> dict[str, int]:
        """Scenes per split."""
        return count_splits(self.scenes)

    def to_json(self) -> dict[str, Any]:
        """The facts under the keys that ``memorysam prepare --json`` documents."""
        strays = self.strays or Problem("stray", 0, ())
        return {
            "dataset": self.dataset,
            "root": str(self.root),
            "scenes": len(self.scenes),
            "splits": self.splits,
            "published": self.published,
            "modalities": list(self.modalities),
            "stored": {name: [form.to_json() for form in forms] for name, forms in self.stored.items()},
            "classes": len(self.classes),
            "pixels": {split: list(counts) for split, counts in self.pixels.items()},
            "problems": [problem.to_json() for problem in self.problems],
            "dropped": len(self.dropped),
            "strays": {"count": strays.count, "first": list(strays.first)},
            "laws": self.laws,
            "warnings": [*self.notes, *self.warnings],
        }
