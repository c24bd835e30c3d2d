"""Where the files of a modality, or the labels, of a published data set may lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memorysam_cli.data.layouts.templates import Template, Tree, compiled
from memorysam_cli.dataset import LabelRule, Modality


@dataclass(frozen=True)
class Place:
    """One place where the files of a modality, or the labels, may lie."""

    templates: tuple[Template, ...]
    """One, or an angle's two: sine, cosine."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the :class:`Modality` that are different for files that lie here."""
    rule: LabelRule | None = None
    """Of labels: how those that lie here are read, where it is not the layout's own rule."""
    counts: Mapping[str, int] | None = None
    """Of labels: the published scenes per split of the data whose labels lie here."""

    @property
    def shown(self) -> str:
        """The templates, for people."""
        return " + ".join(template.shown for template in self.templates)

    def is_in(self, tree: Tree) -> bool:
        """Whether any file of this place exists."""
        return any(next(template.found_in(tree), None) is not None for template in self.templates)


def place(
    *templates: str, rule: LabelRule | None = None, counts: Mapping[str, int] | None = None, **reading: Any
) -> Place:
    """Declare a :class:`Place`."""
    return Place(tuple(compiled(text) for text in templates), reading, rule, counts)


@dataclass(frozen=True)
class Sensor:
    """A modality and where its files may lie, the usual place first."""

    modality: Modality
    places: tuple[Place, ...]
    is_optional: bool = False
    """Then nothing is said where it is missing."""


def sensor(modality: Modality, *places: str | Place, is_optional: bool = False) -> Sensor:
    """Declare a :class:`Sensor`; a place that is plain text is one template."""
    listed = tuple(place(each) if isinstance(each, str) else each for each in places)
    return Sensor(modality, listed, is_optional)
