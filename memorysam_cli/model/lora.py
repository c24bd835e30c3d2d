"""LoRA on Hiera's attention, as an ordinary PEFT adapter, and back into one fused projection.

Hiera projects query, key and value with one ``qkv`` Linear. For LoRA it is split into three, so that PEFT adapts
all of q and all of v; for inference the adapted three become one Linear again, as fast as plain SAM2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from sam2.modeling.backbones.hieradet import Hiera, MultiScaleAttention
from torch import Tensor, nn

from memorysam_cli.model.linear import Linear, use_fast_linears
from memorysam_cli.model.peft_import import peft
from memorysam_cli.recipe import Lora


class SplitProjection(nn.Module):
    """Hiera's fused ``qkv`` as three Linear layers ``q``, ``k`` and ``v`` that start as its slices."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        rows = fused.out_features // 3
        parts = [Linear(fused.in_features, rows).to(fused.weight) for _ in "qkv"]
        with torch.no_grad():
            for index, part in enumerate(parts):
                part.weight.copy_(fused.weight[index * rows : (index + 1) * rows])
                part.bias.copy_(fused.bias[index * rows : (index + 1) * rows])
        self.q, self.k, self.v = parts

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, d_in) -> (…, 3·d_out), in the order q, k, v."""
        return torch.cat([self.q(tokens), self.k(tokens), self.v(tokens)], dim=-1)


def add_lora(trunk: Hiera, settings: Lora) -> None:
    """Split every block's ``qkv`` and inject a PEFT adapter, in place.

    A starts Kaiming-uniform(a=√5) and B at zero, so that a fresh adapter changes nothing (METHOD §2).
    """
    split(trunk)
    peft().inject_adapter_in_model(adapter_config(settings), trunk)
    use_fast_linears(trunk)  # PEFT's own


def split(trunk: Hiera) -> None:
    """Split every block's ``qkv``, in place: the form that our PEFT adapters are for.

    ``peft.PeftModel.from_pretrained(trunk, folder)`` then loads what ``memorysam weights export --format peft`` wrote.
    """
    for attention in _attentions(trunk):
        attention.qkv = SplitProjection(attention.qkv)


def adapter_state(trunk: Hiera) -> dict[str, Tensor]:
    """The adapter's tensors under the names of PEFT's own files; the trunk's LoRA must not be merged."""
    return {f"base_model.model.{name}": tensor for name, tensor in peft().get_peft_model_state_dict(trunk).items()}


def adapter_config(settings: Lora) -> Any:
    """The recipe's LoRA section in PEFT's words; its target names are those of a split trunk."""
    projections = [f"qkv\\.{name}" for name in settings.targets if name != "proj"]
    targets = [*projections, *(["proj"] if "proj" in settings.targets else [])]
    return peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=rf"(.*\.)?blocks\.\d+\.attn\.({'|'.join(targets)})",
        use_dora=settings.dora,
        use_rslora=settings.rslora,
    )


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
    """The terms of plain LoRA on a frozen Linear; None for what PEFT itself must compute: DoRA, dropout."""
    if not _is_adapted(layer) or layer.disable_adapters or layer.merged:
        return None
    base, names = layer.get_base_layer(), layer.active_adapters
    if len(names) != 1 or any(parameter.requires_grad for parameter in base.parameters()):
        return None
    (name,) = names
    if name in layer.lora_variant or layer.lora_bias[name] or not isinstance(layer.lora_dropout[name], nn.Identity):
        return None
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    return LowRank(base.weight, base.bias, down, up, layer.scaling[name])


def merge_lora(trunk: Hiera) -> None:
    """Fold the adapter into the weights and fuse q, k and v again, in place; a trunk without LoRA stays as it is."""
    for attention in _attentions(trunk):
        attention.proj = _merged(attention.proj)
        if isinstance(attention.qkv, SplitProjection):
            attention.qkv = _fused(attention.qkv)
    if hasattr(trunk, "peft_config"):
        del trunk.peft_config


def has_lora(trunk: Hiera) -> bool:
    """Whether the trunk carries an adapter that is not merged."""
    return any(isinstance(attention.qkv, SplitProjection) for attention in _attentions(trunk))


def _is_adapted(layer: nn.Module) -> bool:
    """Whether it is a Linear of PEFT's; told without PEFT, which a network without LoRA never imports."""
    return hasattr(layer, "lora_A")


def _attentions(trunk: Hiera) -> list[MultiScaleAttention]:
    return [block.attn for block in trunk.blocks]


def _merged(layer: Any) -> nn.Linear:
    """The Linear that computes what an adapted Linear does."""
    if _is_adapted(layer):
        layer.merge()
        layer = layer.get_base_layer()
    assert isinstance(layer, nn.Linear)
    return layer


def _fused(split: SplitProjection) -> nn.Linear:
    parts = [_merged(part) for part in (split.q, split.k, split.v)]
    first = parts[0]
    fused = Linear(first.in_features, 3 * first.out_features, device=first.weight.device, dtype=first.weight.dtype)
    with torch.no_grad():
        fused.weight.copy_(torch.cat([part.weight for part in parts]))
        fused.bias.copy_(torch.cat([part.bias for part in parts]))
    return fused
