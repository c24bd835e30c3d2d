"""Hiera's forward pass over the modules of ``sam2``: the same result in fewer and smaller steps.

Tokens stay in windows (:mod:`memorysam_cli.model.windows`); a block runs on a share of them that a processor's cache
holds, or on all. In training a block either keeps its activations or computes them again, share by share, when its
gradient is wanted. Figures: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from memorysam_cli.model.attention import attend
from memorysam_cli.model.feed_forward import FeedForward, Frugal
from memorysam_cli.model.saver import saving
from memorysam_cli.model.windows import Layout, Share, Windows, shares

CACHED = 2048
"""Tokens of a share on a CPU: the widest values of a block then stay in its caches."""
LARGE = 1 << 18
"""Tokens of a share elsewhere: enough to keep a GPU busy, few enough to bound what a block holds at once."""


Block = Callable[[MultiScaleBlock, Tensor, Sequence[Windows]], Tensor]
"""A block on some windows, differentiable in everything: (T, C) -> (T', C')."""


def stages(
    trunk: Hiera, images: Tensor, *, saver: bool = False, compiled: Block | None = None
) -> Iterator[tuple[Tensor, Layout]]:
    """The features at the end of each stage, from stride 4 to stride 32.

    Args:
        trunk: SAM2's, with or without LoRA.
        images: (N, 3, H, W), H and W divisible by 32.
        saver: whether every block computes its activations again in the backward pass, or only those that keep most.
        compiled: :func:`whole` as ``torch.compile`` makes it; it then runs every block, on all tokens at once.

    Yields:
        (T, C) tokens and their order; to be used before the next stage is asked for.
    """
    cells = trunk.patch_embed(images)  # (N, h, w, C)
    cells = cells + trunk._get_pos_embed(cells.shape[1:3])
    layout = Layout(cells.shape[0], cells.shape[1], cells.shape[2], side=trunk.blocks[0].window_size)
    tokens = layout.cut(cells)
    learning = torch.is_grad_enabled() and (
        tokens.requires_grad or any(parameter.requires_grad for parameter in trunk.blocks.parameters())
    )
    most = CACHED if tokens.device.type == "cpu" else LARGE
    for number, block in enumerate(trunk.blocks):
        tokens, layout = layout.moved(tokens, block.window_size)
        # Up to stride 16 a block keeps two and four times as much as later, for no more arithmetic.
        again = learning and (saver or number <= trunk.q_pool_blocks[1] or block.q_stride is not None)
        if compiled:
            tokens = saving(again, compiled)(block, tokens, layout.windows())
        elif learning:
            tokens = _learn(block, tokens, shares(layout.windows(), most=most), again=again)
        else:
            tokens = _run(block, tokens, shares(layout.windows(), most=most))
        if block.q_stride:
            layout = layout.halved()
        if number in trunk.stage_ends:
            yield tokens, layout


def whole(block: MultiScaleBlock, tokens: Tensor, groups: Sequence[Windows]) -> Tensor:
    """A block on some windows, without any fork: differentiable in everything, and what can be compiled."""
    middle = _attended(block, tokens, groups)
    return middle + FeedForward.of(block)(middle)


def _run(block: MultiScaleBlock, tokens: Tensor, parts: Sequence[Share]) -> Tensor:
    """A block without gradients, in the tokens' own memory where their number stays."""
    half, results = FeedForward.of(block), []
    for part, groups in parts:
        shortcut, change = attend(block, tokens[part], groups, learning=False)
        share = shortcut.add_(change)
        results.append(share.add_(half(share)))
    return tokens if block.dim == block.dim_out else torch.cat(results)


def _learn(block: MultiScaleBlock, tokens: Tensor, parts: Sequence[Share], *, again: bool) -> Tensor:
    """A block with gradients.

    Args:
        again: whether its activations are computed again in the backward pass.
    """
    half = FeedForward.of(block)
    has_dropout = any(isinstance(module, nn.Dropout) and module.p for module in block.modules())
    result: Tensor
    if has_dropout or not half.is_frozen or (tokens.device.type != "cpu" and not again):
        result = torch.cat([saving(again, whole)(block, tokens[part], groups) for part, groups in parts])
    elif again:
        trained = [parameter for parameter in block.parameters() if parameter.requires_grad]
        result = _Again.apply(tokens, block, parts, *trained)  # type: ignore[no-untyped-call]
    else:
        middle = torch.cat([_attended(block, tokens[part], groups) for part, groups in parts])
        result = Frugal.apply(middle, half, _ends(block, parts))  # type: ignore[no-untyped-call]
    return result


def _attended(block: MultiScaleBlock, share: Tensor, groups: Any) -> Tensor:
    """The first half of a block."""
    shortcut, change = attend(block, share, groups, learning=True)
    return shortcut + change


def _ends(block: MultiScaleBlock, parts: Sequence[Share]) -> list[slice]:
    """Where each share lies after the block."""
    factor = 4 if block.q_stride else 1
    return [slice(part.start // factor, part.stop // factor) for part, _ in parts]


class _Again(torch.autograd.Function):
    """A block whose second half is frozen, share by share; keeps its input and nothing else.

    In the backward pass the first half runs again with gradients; the second half's gradient needs no first run.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, block: MultiScaleBlock, parts: Sequence[Share], *trained: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.block, ctx.parts, ctx.trained = block, parts, trained
        kind = tokens.device.type
        ctx.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        half, results = FeedForward.of(block), []
        for part, groups in parts:
            middle = _attended(block, tokens[part], groups)
            results.append(middle + half(middle))
        return torch.cat(results) if len(results) > 1 else results[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        wants_tokens = ctx.needs_input_grad[0]
        back, sums = [], [torch.zeros_like(parameter) for parameter in ctx.trained]
        kind, dtype, is_on = ctx.autocast
        with torch.autocast(kind, dtype=dtype, enabled=is_on):
            half = FeedForward.of(ctx.block)
            # From the last share to the first, the order in which autograd adds up what the shares give.
            for (part, groups), end in reversed(list(zip(ctx.parts, _ends(ctx.block, ctx.parts), strict=True))):
                share = tokens[part].detach().requires_grad_(wants_tokens)
                with torch.enable_grad():
                    middle = _attended(ctx.block, share, groups)
                given = half.gradient(middle.detach(), gradient[end])
                leaves = [*([share] if wants_tokens else []), *ctx.trained]
                found = list(torch.autograd.grad(middle, leaves, given))
                if wants_tokens:
                    back.append(found.pop(0))
                for total, one in zip(sums, found, strict=True):
                    total.add_(one)
        return torch.cat(back[::-1]) if wants_tokens else None, None, None, *sums
