"""Scaled dot-product attention: PyTorch's, and on a CPU without gradients one that is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memorysam_cli.model.linear import product

SCORES_BYTES = 8 << 20
"""Scores held at once: what stays in a processor's cache."""
LONG = 512
"""Queries from which a product of its own for every head pays in float32."""


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, *, learning: bool) -> Tensor:
    """Attention of every query to every key.

    PyTorch's fused CPU kernel multiplies by MKL, bfloat16 no faster than float32; by oneDNN a few rows of scores at a
    time take a half to two thirds of its time in float32 and a quarter to a half in bfloat16, whose scores are rounded.

    Args:
        query: (n, heads, L', d).
        key: (n, heads, L, d).
        value: (n, heads, L, d).
        learning: whether a backward pass may follow, which must find the kernels of the forward pass.

    Returns:
        (n, heads, L', d).
    """
    if not learning and query.device.type == "cpu" and key.numel():
        if query.dtype == torch.bfloat16:
            return _by_batches(query, key, value)
        if query.dtype == torch.float32 and query.shape[2] >= LONG:
            return _by_heads(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def _by_batches(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key = query * query.shape[-1] ** -0.5, key.transpose(-1, -2)
    step = max(1, SCORES_BYTES // (2 * query.shape[0] * query.shape[1] * key.shape[-1]))
    parts = [(part @ key).softmax(dim=-1) @ value for part in torch.split(query, step, dim=2)]
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _by_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """oneDNN's float32 product knows no batches."""
    result = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)  # (n, L', heads, d)
    scale, step = query.shape[-1] ** -0.5, max(1, SCORES_BYTES // (8 * key.shape[2]))
    for sample in range(query.shape[0]):
        for head in range(query.shape[1]):
            # Contiguous: oneDNN is far slower with rows that lie apart.
            keys, values = key[sample, head] * scale, value[sample, head].t().contiguous()
            for rows, part in zip(
                torch.split(result[sample, :, head], step), torch.split(query[sample, head], step), strict=True
            ):
                rows.copy_(product(product(part, keys).softmax(dim=-1), values))
    return result.transpose(1, 2)
