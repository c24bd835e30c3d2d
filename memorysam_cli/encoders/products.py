"""Linear layers, LoRA and attention with the fastest matrix products of the device.

On a CPU, PyTorch computes float32 products with MKL, which on AMD's processors has less than half of oneDNN's rate, and
first copies every bias row by row. oneDNN's fused product, which PyTorch's compiler uses, avoids both and adds a GELU
at almost no cost. It has no gradient, so this module defines one. Other devices, few rows and other types use PyTorch's
own functions. Attention without gradients uses the same product. Figures: docs/performance.md.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Activation = Literal["none", "gelu"]

FEW = 64
"""With fewer rows, oneDNN's preparation costs more than it saves."""
SCORES_BYTES = 8 << 20
"""Scores in memory at once: they fit into a CPU's cache."""
LONG = 512
"""From this number of queries on, a separate product for each head is faster in float32."""


class Linear(nn.Linear):
    """A faster ``nn.Linear``: same parameters, same names, same result up to the order of its sums."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, d_in) -> (…, d_out)."""
        return linear(tokens, self.weight, self.bias)


def use_fast_linears(network: nn.Module) -> None:
    """Make every ``nn.Linear`` in a network a :class:`Linear`; no parameter is created, moved or drawn."""
    for layer in network.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear  # building a twin would take as long as building the network


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None, *, activation: Activation = "none") -> Tensor:
    """``F.linear`` and an activation.

    Args:
        tokens: (…, d_in) of any strides.
        weight: (d_out, d_in).
        bias: (d_out), or None.
        activation: the activation after the product; fused into it if no gradient is needed.

    Returns:
        (…, d_out), in autocast's type if autocast is on.
    """
    tokens, weight = in_product_type(tokens), in_product_type(weight)
    bias = None if bias is None else in_product_type(bias)
    if not _is_direct(tokens, weight):
        return _activate(F.linear(tokens, weight, bias), activation)
    if torch.compiler.is_compiling():
        return _activate(_opaque_product(tokens, weight, bias), activation)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (tokens, weight, bias)):
        # As rows: with more dimensions oneDNN returns a view, which cannot be changed in place.
        rows: Tensor = _Product.apply(tokens.reshape(-1, tokens.shape[-1]), weight, bias)  # type: ignore[no-untyped-call]
        return _activate(rows.view(*tokens.shape[:-1], weight.shape[0]), activation)
    return _direct(tokens, weight, bias, activation=activation)


def product(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` without gradients and autocast, for tensors of one type; the weight may be a transposed view."""
    return _direct(tokens, weight, bias) if _is_direct(tokens, weight) else F.linear(tokens, weight, bias)


def in_product_type(tensor: Tensor) -> Tensor:
    """A tensor in the type that autocast uses for products: differentiable, and unchanged if autocast is off."""
    kind = tensor.device.type
    is_cast = torch.is_autocast_enabled(kind) and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return tensor.to(torch.get_autocast_dtype(kind)) if is_cast else tensor


def _is_direct(tokens: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's product supports these tensors and is faster."""
    return (
        tokens.device.type == "cpu"
        and tokens.dtype == weight.dtype
        and tokens.dtype in TYPES
        and (torch.compiler.is_compiling() or torch._C._get_mkldnn_enabled())  # a compiler cannot check this
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
    """oneDNN's product of rows with its gradients; stores its input only for a trained weight."""

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
            # oneDNN copies its first operand if it is not contiguous, so that is the narrower one.
            is_wide = gradient.shape[1] > rows.shape[1]
            by_weight = product(rows.t(), gradient.t()).t() if is_wide else product(gradient.t(), rows.t())
        by_rows = product(gradient, weight.t()) if wants_rows else None
        return by_rows, by_weight, gradient.sum(dim=0) if wants_bias else None


@torch.library.custom_op("memorysam::product", mutates_args=())
def _opaque_product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product as an opaque operator for ``torch.compile``, whose own version needs constant weights."""
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


class LowRank(NamedTuple):
    """A Linear with plain LoRA: x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ, W (d_out, d_in) and b (d_out) frozen."""

    weight: Tensor
    bias: Tensor
    down: Tensor
    """A, (r, d_in)."""
    up: Tensor
    """B, (d_out, r)."""
    scale: float


def low_rank(layer: Any) -> LowRank | None:
    """The terms of plain LoRA on a frozen Linear; None if PEFT itself must compute them (DoRA, dropout)."""
    if not is_adapted(layer) or layer.disable_adapters or layer.merged:
        return None
    base, names = layer.get_base_layer(), layer.active_adapters
    if len(names) != 1 or any(parameter.requires_grad for parameter in base.parameters()):
        return None
    (name,) = names
    if name in layer.lora_variant or layer.lora_bias[name] or not isinstance(layer.lora_dropout[name], nn.Identity):
        return None
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return LowRank(base.weight, base.bias, down, up, layer.scaling[name])


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer has LoRA that is not merged; checked without importing PEFT."""
    return hasattr(layer, "lora_A")


def adapted(part: nn.Module, tokens: Tensor) -> Tensor:
    """A projection that may have LoRA; PEFT computes everything but plain LoRA."""
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
    """x·Wᵀ + b + scale·(x·Aᵀ)·Bᵀ with frozen W, without a second tensor of the size of the result."""

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


def scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, *, learning: bool) -> Tensor:
    """Attention of every query to every key.

    PyTorch's fused CPU kernel uses MKL, where bfloat16 is no faster than float32. With oneDNN, a few rows of scores at
    a time need a half to two thirds of its time in float32, and a quarter to a half in bfloat16 (with rounded scores).

    Args:
        query: (n, heads, L', d).
        key: (n, heads, L, d).
        value: (n, heads, L, d).
        learning: whether a backward pass may follow, which needs the kernels of the forward pass.

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
    """Head by head, because oneDNN's float32 product has no batches."""
    result = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)  # (n, L', heads, d)
    scale, step = query.shape[-1] ** -0.5, max(1, SCORES_BYTES // (8 * key.shape[2]))
    for sample in range(query.shape[0]):
        for head in range(query.shape[1]):
            # Contiguous, because oneDNN is much slower with separate rows.
            keys, values = key[sample, head] * scale, value[sample, head].t().contiguous()
            for rows, part in zip(
                torch.split(result[sample, :, head], step), torch.split(query[sample, head], step), strict=True
            ):
                rows.copy_(product(product(part, keys).softmax(dim=-1), values))
    return result.transpose(1, 2)
