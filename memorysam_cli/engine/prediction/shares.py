"""Which scenes a shard takes, or one of several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memorysam_cli.data.manifest import Scene
from memorysam_cli.errors import UsageError


@dataclass(frozen=True)
class Share:
    """One of several equal shares of the scenes."""

    index: int
    """From 0."""
    count: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.index}-of-{self.count}"

    def of(self, scenes: Sequence[Scene], *, stride: int) -> Sequence[Scene]:
        """Every ``count``-th group of ``stride`` consecutive scenes; all shares together are all scenes, once."""
        if self.count == 1:
            return scenes
        starts = range(self.index * stride, len(scenes), self.count * stride)
        return [scene for start in starts for scene in scenes[start : start + stride]]

    def divided(self, rank: int, world: int) -> Share:
        """What one of ``world`` processes takes of this share."""
        return Share(self.index * world + rank, self.count * world)


WHOLE = Share(0, 1)


def read_share(text: str | None) -> Share | None:
    """The share that ``--shard i/n`` means; None stays None.

    Raises:
        UsageError: not two numbers, or not 0 ≤ i < n.
    """
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not slash or not all(word.isascii() and word.isdigit() for word in (index, count)):
        raise UsageError(f"--shard {text}: must be I/N, such as 0/4 for the first of four")
    if int(count) == 0:
        raise UsageError(f"--shard {text}: N, the number of shards, must be 1 or more")
    if int(index) >= int(count):
        raise UsageError(
            f"--shard {text}: shards count from 0, so that the last of {count} is {int(count) - 1}/{count}"
        )
    return Share(int(index), int(count))
