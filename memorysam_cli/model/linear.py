"""Linear layers by the fastest matrix product that the device has.

On a CPU, PyTorch sends float32 products to MKL, which on AMD's processors runs at less than half of oneDNN's rate, and
every bias is first copied row by row. oneDNN's fused product, which PyTorch's own compiler uses, has neither fault and
takes a GELU along nearly for nothing; it knows no gradient, so that ours stands here. Elsewhere, for few rows and for
other types all is PyTorch's own. Figures: docs/performance.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["none", "gelu"]

FEW = 64
"""Rows below which oneDNN's preparations cost more than they save."""


class Linear(nn.Linear):
    """``nn.Linear``, faster: same parameters, same names, same result up to the order of its sums."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, d_in) -> (…, d_out)."""
        return linear(tokens, self.weight, self.bias)


def use_fast_linears(network: nn.Module) -> None:
    """Make every ``nn.Linear`` in a network one of ours, in place; no tensor is made, moved or drawn."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear  # ours adds nothing to its state


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None, *, activation: Activation = "none") -> Tensor:
    """``F.linear`` and an activation.

    Args:
        tokens: (…, d_in) of any strides.
        weight: (d_out, d_in).
        bias: (d_out), or None.
        activation: what follows; fused into the product where no gradient is wanted.

    Returns:
        (…, d_out), in autocast's type where autocast is on.
    """
    tokens, weight = in_product_type(tokens), in_product_type(weight)
    bias = None if bias is None else in_product_type(bias)
    if not _is_direct(tokens, weight):
        return _activate(F.linear(tokens, weight, bias), activation)
    if torch.compiler.is_compiling():
        return _activate(_opaque_product(tokens, weight, bias), activation)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (tokens, weight, bias)):
        # Rows: what comes out of oneDNN with more dimensions is a view, which nothing could change in place.
        rows: Tensor = _Product.apply(tokens.reshape(-1, tokens.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
        return _activate(rows.view(*tokens.shape[:-1], weight.shape[0]), activation)
    return _direct(tokens, weight, bias, activation=activation)


def product(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` without gradients and autocast, for tensors of one type; the weight may be a transposed view."""
    return _direct(tokens, weight, bias) if _is_direct(tokens, weight) else F.linear(tokens, weight, bias)


def in_product_type(tensor: Tensor) -> Tensor:
    """A tensor in the type in which autocast would multiply it: differentiable, and itself where autocast is off."""
    kind = tensor.device.type
    is_cast = torch.is_autocast_enabled(kind) and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return tensor.to(torch.get_autocast_dtype(kind)) if is_cast else tensor


def _is_direct(tokens: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's product can take these tensors and pays."""
    return (
        tokens.device.type == "cpu"
        and tokens.dtype == weight.dtype
        and tokens.dtype in TYPES
        and (torch.compiler.is_compiling() or torch._C._get_mkldnn_enabled())  # a compiler cannot ask
        and weight.shape[1] > 0
        and tokens.numel() >= FEW * weight.shape[1]
    )


def _onednn_types() -> tuple[torch.dtype, ...]:
    """The types for which this PyTorch and this processor have oneDNN's product."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):  # type: ignore[no-untyped-call]
        return ()
    return (torch.float32, torch.bfloat16) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else (torch.float32,)


TYPES = _onednn_types()


def _direct(tokens: Tensor, weight: Tensor, bias: Tensor | None, *, activation: Activation = "none") -> Tensor:
    """oneDNN's product, without gradients."""
    if bias is not None:
        bias = bias.contiguous()  # oneDNN does not look at its stride
    result: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, activation, [], "none")
    return result


def _activate(values: Tensor, activation: Activation) -> Tensor:
    return F.gelu(values) if activation == "gelu" else values


class _Product(torch.autograd.Function):
    """oneDNN's product of rows with its gradients; keeps its input only for a weight that is trained."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        return _direct(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad
        by_weight = None
        if wants_weight:
            # oneDNN copies its first operand into order: that is the narrower one.
            is_wide = gradient.shape[1] > rows.shape[1]
            by_weight = product(rows.t(), gradient.t()).t() if is_wide else product(gradient.t(), rows.t())
        by_rows = product(gradient, weight.t()) if wants_rows else None
        return by_rows, by_weight, gradient.sum(dim=0) if wants_bias else None


@torch.library.custom_op("memorysam::product", mutates_args=())
def _opaque_product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product as something that ``torch.compile`` takes as it is: its own way of it wants constant weights."""
    return _direct(tokens, weight, bias)


@_opaque_product.register_fake
def _(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return tokens.new_empty(*tokens.shape[:-1], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(inputs[0] if ctx.needs_input_grad[1] else None, inputs[1])


def _opaque_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    tokens, weight = ctx.saved_tensors
    rows = gradient.reshape(-1, gradient.shape[-1])
    wants_tokens, wants_weight, wants_bias = ctx.needs_input_grad
    return (
        _opaque_product(gradient, weight.t(), None) if wants_tokens else None,
        rows.t() @ tokens.reshape(-1, tokens.shape[-1]) if wants_weight else None,
        rows.sum(dim=0) if wants_bias else None,
    )


_opaque_product.register_autograd(_opaque_gradients, setup_context=_keep)
