"""The second half of a Hiera block: norm, two products with a GELU between them, shortcut; a few rows at a time.

The values between the two products are four times as many as the tokens. Nothing keeps them: the backward pass
multiplies once more for them, which on a CPU costs no more than a GELU that is not fused into its product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.hieradet import MultiScaleBlock
from torch import Tensor
from torch.autograd.function import once_differentiable

from memorysam_cli.model.linear import in_product_type, linear, product


class FeedForward(NamedTuple):
    """The weights of a block's second half; those of products in the type that they are multiplied in."""

    norm_weight: Tensor
    norm_bias: Tensor
    epsilon: float
    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor

    @staticmethod
    def of(block: MultiScaleBlock) -> FeedForward:
        """A block's own."""
        norm, (first, second) = block.norm2, block.mlp.layers
        products = [in_product_type(t) for t in (first.weight, first.bias, second.weight, second.bias)]
        return FeedForward(norm.weight, norm.bias, norm.eps, *products)

    @property
    def is_frozen(self) -> bool:
        """Whether no gradient of a weight is wanted."""
        return not any(isinstance(weight, Tensor) and weight.requires_grad for weight in self)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (T, C), what is added to the tokens; differentiable in everything."""
        full = tokens.to(self.norm_weight.dtype)
        normed = F.layer_norm(full, full.shape[-1:], self.norm_weight, self.norm_bias, self.epsilon)
        return linear(linear(normed, self.weight1, self.bias1, activation="gelu"), self.weight2, self.bias2)

    def gradient(self, tokens: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of ``tokens + self(tokens)`` by the tokens, given that of the sum; the weights are frozen."""
        full, dtype, shape = tokens.to(self.norm_weight.dtype), self.weight1.dtype, tokens.shape[-1:]
        norm = (self.norm_weight, self.norm_bias)
        normed, mean, deviation = torch.native_layer_norm(full, shape, *norm, self.epsilon)
        inner = product(normed.to(dtype), self.weight1, self.bias1)
        outer = product(gradient.to(dtype), self.weight2.t())
        back = product(torch.ops.aten.gelu_backward(outer, inner), self.weight1.t()).to(full.dtype)
        through: Tensor = torch.ops.aten.native_layer_norm_backward(
            back, full, shape, mean, deviation, *norm, [True, False, False]
        )[0]
        return gradient + through.to(gradient.dtype)


class Frugal(torch.autograd.Function):
    """``tokens + half(tokens)`` by slices of rows, with frozen weights; keeps the tokens and nothing else."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, half: FeedForward, slices: Sequence[slice]) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.half, ctx.slices = half, slices
        return torch.cat([tokens[part] + half(tokens[part]) for part in slices])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        return torch.cat([ctx.half.gradient(tokens[part], gradient[part]) for part in ctx.slices]), None, None
