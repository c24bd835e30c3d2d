"""What is read: one item for one index, the same whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from memorysam_cli.errors import DataError, MemorySamError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Fault:
    """What reading an item raised; travels in the item's place."""

    error: Exception


@dataclass(frozen=True)
class Lost:
    """A part of an item that cannot be read without the death of its reader."""

    part: Any
    """One of :meth:`Source.parts`."""
    fault: DataError


class Source(Generic[Item]):
    """Gives one item for one index, in this process or in a worker."""

    def item(self, index: Any) -> Item:
        """The item of an index; the same whoever asks."""
        raise NotImplementedError

    def name(self, index: Any) -> str:
        """What the item is made of, for people."""
        return f"item {index}"

    def parts(self, index: Any) -> Sequence[Any]:
        """Indices of what the item is made of, each of which can be read alone; itself where it is one."""
        return (index,)

    def instead(self, index: Any, lost: Sequence[Lost]) -> Any:  # noqa: ARG002  (for those that override it)
        """The index to read in the place of one whose reader dies.

        Raises:
            DataError: there is none.
        """
        raise lost[0].fault

    def answer(self, index: Any) -> Item | Fault:
        """The item, or the user's fault in its place."""
        try:
            return self.item(index)
        except MemorySamError as error:
            return Fault(error)
