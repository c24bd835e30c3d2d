"""The order of Hiera's tokens: window after window, so that a block's windows are a slice and attention copies nothing.

SAM2 cuts an image into windows before every attention and joins them afterwards. It pads windows at the edge with empty
tokens that go through every product. Here tokens stay in windows from block to block, and a window at the edge is
smaller instead. The result is the same, because a block depends only on which tokens are in the same window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Windows of the same size, one after another in the tokens."""

    count: int
    height: int
    width: int
    missing: int
    """Number of tokens beyond the image's edge; SAM2 fills each window with as many empty tokens."""

    @property
    def cells(self) -> int:
        """Number of tokens of one window."""
        return self.height * self.width

    @property
    def tokens(self) -> int:
        """Number of tokens of all windows."""
        return self.count * self.cells


@dataclass(frozen=True)
class TokenOrder:
    """The order of the tokens of some frames.

    Attributes:
        frames: N.
        height: H of one frame in cells.
        width: W.
        side: side of a window in cells; 0 if a window is a whole frame.
    """

    frames: int
    height: int
    width: int
    side: int

    def windows(self) -> list[Windows]:
        """The groups of equal windows, in the order of their tokens: inner ones, then those cut by an edge."""
        missing = self.side**2
        return [
            Windows(self.frames * rows.count * columns.count, rows.size, columns.size,
                    missing - rows.size * columns.size if self.side else 0)
            for rows, columns in self._groups()
        ]  # fmt: skip

    def cut(self, images: Tensor) -> Tensor:
        """(N, H, W, C) -> (T, C)."""
        pieces = []
        for rows, columns in self._groups():
            part = images[:, rows.start : rows.end, columns.start : columns.end]
            part = part.reshape(self.frames, rows.count, rows.size, columns.count, columns.size, -1)
            pieces.append(part.transpose(2, 3).reshape(-1, images.shape[-1]))  # (N, n, h, m, w, C) -> (T', C)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def join(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (N, H, W, C), the inverse of :meth:`cut`."""
        groups = self._groups()
        pieces = torch.split(tokens, [windows.tokens for windows in self.windows()])
        strips: dict[_Span, list[Tensor]] = {}
        for (rows, columns), piece in zip(groups, pieces, strict=True):
            part = piece.view(self.frames, rows.count, columns.count, rows.size, columns.size, -1).transpose(2, 3)
            strips.setdefault(rows, []).append(part.flatten(3, 4).flatten(1, 2))  # -> (N, n·h, m·w, C)
        joined = [torch.cat(strip, dim=2) if len(strip) > 1 else strip[0] for strip in strips.values()]
        return torch.cat(joined, dim=1) if len(joined) > 1 else joined[0]

    def halved(self) -> TokenOrder:
        """The order after 2×2 pooling within the windows."""
        return TokenOrder(self.frames, self.height // 2, self.width // 2, self.side // 2)

    def moved(self, tokens: Tensor, side: int) -> tuple[Tensor, TokenOrder]:
        """The order of the same tokens in windows of another size."""
        wanted = TokenOrder(self.frames, self.height, self.width, side)
        return (tokens, self) if wanted == self else (wanted.cut(self.join(tokens)), wanted)

    def _groups(self) -> list[tuple[_Span, _Span]]:
        """The rows and columns of a frame that each group of windows covers."""
        return [(rows, columns) for rows in self._spans(self.height) for columns in self._spans(self.width)]

    def _spans(self, length: int) -> list[_Span]:
        """A side of the image divided into whole windows and, if necessary, one that the edge cuts."""
        if not self.side:
            return [_Span(0, 1, length)]
        whole, rest = divmod(length, self.side)
        spans = [_Span(0, whole, self.side), _Span(whole * self.side, 1, rest)]
        return [span for span in spans if span.count * span.size]


@dataclass(frozen=True)
class _Span:
    start: int
    count: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.count * self.size


class Chunk(NamedTuple):
    """Some whole windows, as a slice of the tokens."""

    part: slice
    groups: list[Windows]


def chunks(windows: Sequence[Windows], *, most: int) -> list[Chunk]:
    """Divide windows into chunks of at most ``most`` tokens, or of one window if that is larger."""
    found: list[Chunk] = []
    start, groups, free = 0, list[Windows](), most
    for group in windows:
        left = group.count
        while left:
            count = min(left, max(free // group.cells, 0 if groups else 1))
            if count:
                taken = replace(group, count=count)
                groups.append(taken)
                free, left = free - taken.tokens, left - count
            if left:
                start, groups, free = _close(found, start, groups), [], most
    _close(found, start, groups)
    return found


def _close(found: list[Chunk], start: int, groups: list[Windows]) -> int:
    """Add a chunk; return the start of the next one."""
    end = start + sum(group.tokens for group in groups)
    found.append(Chunk(slice(start, end), groups))
    return end
