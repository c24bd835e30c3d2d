"""Tokens in windows: every cell once, in the windows that SAM2 cuts."""

from __future__ import annotations

import pytest
import torch
from sam2.modeling.backbones.utils import window_partition

from memorysam_cli.encoders.windows import TokenOrder, Windows, chunks

LAYOUTS = [
    TokenOrder(2, 8, 8, side=4), TokenOrder(1, 10, 7, side=4), TokenOrder(3, 6, 9, side=3), TokenOrder(2, 3, 2, side=4),
    TokenOrder(2, 5, 6, side=0), TokenOrder(1, 4, 10, side=4),
]  # fmt: skip


def test_windows_by_hand() -> None:
    image = torch.arange(6).view(1, 2, 3, 1)  # 0 1 2 / 3 4 5
    layout = TokenOrder(1, 2, 3, side=2)
    assert layout.cut(image).flatten().tolist() == [0, 1, 3, 4, 2, 5]
    assert layout.windows() == [Windows(1, 2, 2, missing=0), Windows(1, 2, 1, missing=2)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_joining_undoes_cutting(layout: TokenOrder) -> None:
    image = torch.randn(layout.frames, layout.height, layout.width, 3, generator=torch.Generator().manual_seed(1))
    tokens = layout.cut(image)
    assert sum(group.tokens for group in layout.windows()) == tokens.shape[0] == image[..., 0].numel()
    assert torch.equal(layout.join(tokens), image)


def test_whole_windows_are_sam2_s() -> None:
    image = torch.arange(2.0 * 8 * 12 * 3).view(2, 8, 12, 3)
    theirs, _ = window_partition(image, 4)
    assert torch.equal(TokenOrder(2, 8, 12, side=4).cut(image), theirs.flatten(0, 2))


def test_missing_tokens_are_those_that_sam2_pads_with() -> None:
    layout = TokenOrder(2, 10, 7, side=4)
    theirs, _ = window_partition(torch.ones(2, 10, 7, 1), 4)
    assert sum(group.missing * group.count for group in layout.windows()) == int((theirs == 0).sum())


def test_moving_keeps_the_image_and_does_nothing_where_windows_stay() -> None:
    image = torch.randn(2, 6, 8, 3, generator=torch.Generator().manual_seed(2))
    layout = TokenOrder(2, 6, 8, side=4)
    tokens = layout.cut(image)
    moved, other = layout.moved(tokens, 3)
    assert torch.equal(other.join(moved), image)
    assert layout.moved(tokens, 4)[0] is tokens


@pytest.mark.parametrize("most", [1, 5, 16, 20, 33, 1000])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_shares_cover_every_window_once(layout: TokenOrder, most: int) -> None:
    parts, end = chunks(layout.windows(), most=most), 0
    for part, groups in parts:
        assert part.start == end and sum(group.tokens for group in groups) == part.stop - part.start > 0
        assert part.stop - part.start <= most or (len(groups) == 1 and groups[0].count == 1)
        end = part.stop
    for size in {(group.height, group.width) for group in layout.windows()}:
        wanted, found = (
            sum(group.count for group in groups if (group.height, group.width) == size)
            for groups in (layout.windows(), [group for _, groups in parts for group in groups])
        )
        assert wanted == found
