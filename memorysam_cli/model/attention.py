"""The first half of a Hiera block: norm, queries, keys and values, attention inside windows, projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sam2.modeling.backbones.hieradet import MultiScaleBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from memorysam_cli.model.dot_product import scaled_dot_product
from memorysam_cli.model.linear import in_product_type, product
from memorysam_cli.model.lora import SplitProjection, low_rank
from memorysam_cli.model.windows import Windows


def attend(
    block: MultiScaleBlock, tokens: Tensor, groups: Sequence[Windows], *, learning: bool
) -> tuple[Tensor, Tensor]:
    """Attention inside windows.

    Args:
        block: a block of Hiera; its ``qkv`` may be one Linear or carry LoRA.
        tokens: (T, C), window after window.
        groups: the windows; where the block pools, their sides are even.
        learning: whether a backward pass may follow, which must find the kernels of the forward pass.

    Returns:
        The shortcut and what attention adds to it, both (T', C'), T' a quarter of T where the block pools.
    """
    normed = block.norm1(tokens)
    shortcut = tokens if block.dim == block.dim_out else block.proj(normed)
    lengths = [group.tokens for group in groups]
    parts = [torch.split(part, lengths) for part in project(block.attn.qkv, normed)]
    if block.q_stride:
        shortcut = torch.cat([_pool(*part) for part in zip(torch.split(shortcut, lengths), groups, strict=True)])
        parts[0] = tuple(_pool(*part) for part in zip(parts[0], groups, strict=True))
    # An empty token is zero after the norm: its key and value are what the projection makes of zero.
    is_cut = any(group.missing for group in groups)
    empty = project(block.attn.qkv, normed.new_zeros(1, normed.shape[-1]))[1:] if is_cut else []
    mixed = [
        _mix(query, key, value, group, empty, heads=block.attn.num_heads, learning=learning)
        for query, key, value, group in zip(*parts, groups, strict=True)
    ]
    return shortcut, block.attn.proj(torch.cat(mixed) if len(mixed) > 1 else mixed[0])


def project(layer: nn.Module, tokens: Tensor) -> Sequence[Tensor]:
    """(T, C) -> query, key and value, each (T, C')."""
    if isinstance(layer, SplitProjection):
        return [_adapted(part, tokens) for part in (layer.q, layer.k, layer.v)]
    fused: Tensor = layer(tokens)
    return fused.chunk(3, dim=-1)


def _pool(tokens: Tensor, windows: Windows) -> Tensor:
    """(n·h·w, C) -> (n·h/2·w/2, C), the maximum of 2×2 cells; no indices are kept, as a pooling layer would."""
    cells = tokens.view(windows.count, windows.height // 2, 2, windows.width // 2, 2, tokens.shape[-1])
    (a, b), (c, d) = ([cells[:, :, row, :, column] for column in (0, 1)] for row in (0, 1))
    return torch.maximum(torch.maximum(a, b), torch.maximum(c, d)).flatten(0, 2)


def _mix(
    query: Tensor, key: Tensor, value: Tensor, windows: Windows, empty: Sequence[Tensor], *, heads: int, learning: bool
) -> Tensor:
    """Attention in windows of one size: (n·L', C'), (n·L, C'), (n·L, C') -> (n·L', C')."""
    width = query.shape[-1]
    query, key, value = (part.view(windows.count, -1, width) for part in (query, key, value))
    if windows.missing:
        filling = [part.expand(windows.count, windows.missing, width) for part in empty]
        key, value = (torch.cat(pair, dim=1) for pair in zip((key, value), filling, strict=True))
    split = [part.view(*part.shape[:2], heads, width // heads).transpose(1, 2) for part in (query, key, value)]
    mixed = scaled_dot_product(*split, learning=learning)  # (n, heads, L', d)
    return mixed.transpose(1, 2).reshape(-1, width)


def _adapted(part: nn.Module, tokens: Tensor) -> Tensor:
    """A projection that may carry LoRA; PEFT computes what is not plain LoRA."""
    terms = low_rank(part)
    result: Tensor
    if terms is None or torch.compiler.is_compiling():
        result = part(tokens)
        return result
    tokens, weight, bias, down, up = (
        in_product_type(t) for t in (tokens, terms.weight, terms.bias, terms.down, terms.up)
    )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (tokens, down, up)):
        result = _LowRankProduct.apply(tokens, weight, bias, down, up, terms.scale)  # type: ignore[no-untyped-call]
        return result
    return product(tokens, weight, bias).addmm_(tokens @ down.t(), up.t(), alpha=terms.scale)


class _LowRankProduct(torch.autograd.Function):
    """x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ with frozen W, without a second tensor of the result's size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
        narrow = x @ down.t()  # (T, r)
        ctx.save_for_backward(x, weight, down, up, narrow)
        ctx.scale = scale
        return product(x, weight, bias).addmm_(narrow, up.t(), alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, narrow = ctx.saved_tensors
        back = gradient @ up * ctx.scale  # (T, r)
        wants = ctx.needs_input_grad
        by_x = product(gradient, weight.t()).addmm_(back, down) if wants[0] else None
        by_down, by_up = back.t() @ x, gradient.t() @ narrow * ctx.scale
        return by_x, None, None, by_down, by_up, None
