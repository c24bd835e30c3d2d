"""LoRA on an encoder as an ordinary PEFT adapter, and its merging into the encoder's own layers.

PEFT does training and DoRA. When weights are loaded for use, plain LoRA is only merged, which is a single product. This
module does it without PEFT, because PEFT takes seconds to import.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from memorysam_cli.encoders.base import Encoder
from memorysam_cli.encoders.products import Linear, is_adapted, use_fast_linears
from memorysam_cli.errors import EnvironmentFault, UsageError
from memorysam_cli.recipe import Lora

ADAPTER = "default"
"""PEFT's default name of an adapter."""


@cache
def peft() -> Any:
    """The module ``peft``, imported at the first call, because many commands need no adapter.

    PEFT imports transformers, and transformers imports torchvision if it is installed. A torchvision whose build does
    not match torch raises on import ("operator torchvision::nms does not exist"), which is common. We never use
    torchvision, so a broken one is declared absent, which transformers handles.

    Raises:
        EnvironmentFault: Python drops docstrings, which transformers reads during import.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("peft")
    except ValueError as error:
        if sys.flags.optimize < 2:
            raise
        raise EnvironmentFault(
            f"PEFT cannot be imported without docstrings ({str(error).splitlines()[0][:80]}…); "
            "unset $PYTHONOPTIMIZE, or set it to 1, and run the same command again"
        ) from error


def add_lora(encoder: Encoder, settings: Lora) -> None:
    """Add a PEFT adapter, in place; Hiera's ``qkv`` is split first.

    A starts Kaiming-uniform(a=√5) and B at zero, so a new adapter changes nothing (METHOD §2).

    Raises:
        UsageError: the encoder has none of the recipe's targets.
    """
    encoder.split_for_lora()
    _targets(encoder, settings)
    peft().inject_adapter_in_model(adapter_config(settings, encoder), encoder)
    use_fast_linears(encoder)  # PEFT's own


def add_folding_lora(encoder: Encoder, settings: Lora) -> None:
    """Add layers for an adapter's tensors under PEFT's names, so that :func:`merge_lora` can merge them without PEFT.

    The encoder cannot run before the merge. PEFT handles everything but plain LoRA on Linear layers.

    Raises:
        UsageError: as :func:`add_lora`.
    """
    encoder.split_for_lora()
    targets = _targets(encoder, settings)
    if settings.dora or not all(isinstance(layer, nn.Linear) for layer in targets.values()):
        encoder.join_after_lora()
        add_lora(encoder, settings)
        return
    for name, layer in targets.items():
        parent, _, own = name.rpartition(".")
        assert isinstance(layer, nn.Linear)
        setattr(encoder.get_submodule(parent), own, FoldingLora(layer, rank=settings.rank, scale=scale_of(settings)))


class FoldingLora(nn.Module):
    """A Linear with the tensors of plain LoRA under PEFT's names, only for merging."""

    def __init__(self, layer: nn.Linear, *, rank: int, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale = layer, scale
        place = layer.weight.device
        self.lora_A = nn.ModuleDict({ADAPTER: Linear(layer.in_features, rank, bias=False, device=place)})
        self.lora_B = nn.ModuleDict({ADAPTER: Linear(rank, layer.out_features, bias=False, device=place)})

    def merge(self) -> None:
        """Add scale·B·A to the layer's weight."""
        down, up = self.lora_A[ADAPTER], self.lora_B[ADAPTER]
        assert isinstance(down, nn.Linear) and isinstance(up, nn.Linear)
        with torch.no_grad():
            self.base_layer.weight += up.weight @ down.weight * self.scale

    def get_base_layer(self) -> nn.Linear:
        """The layer itself."""
        return self.base_layer


def merge_lora(encoder: Encoder) -> None:
    """Merge the adapter into the weights and join the split layers, in place; an encoder without LoRA does not
    change."""
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if is_adapted(child):
                setattr(parent, name, _merged(child))
    encoder.join_after_lora()
    if hasattr(encoder, "peft_config"):
        del encoder.peft_config


def has_lora(encoder: Encoder) -> bool:
    """Whether the encoder has an adapter that is not merged."""
    return any(is_adapted(module) for module in encoder.modules())


def adapter_state(encoder: Encoder) -> dict[str, Tensor]:
    """The adapter's tensors under the names in PEFT's own files; LoRA must not be merged."""
    return {f"base_model.model.{name}": tensor for name, tensor in peft().get_peft_model_state_dict(encoder).items()}


def adapter_config(settings: Lora, encoder: Encoder) -> Any:
    """The recipe's LoRA section as PEFT's configuration; its target names are those of a split encoder."""
    return peft().LoraConfig(
        r=settings.rank,
        lora_alpha=alpha_of(settings),
        lora_dropout=settings.dropout,
        target_modules=encoder.lora_pattern(settings.targets),
        use_dora=settings.dora,
        use_rslora=settings.rslora,
    )


def alpha_of(settings: Lora) -> float:
    """LoRA's alpha; the rank if the recipe gives none."""
    return settings.rank if settings.alpha is None else settings.alpha


def scale_of(settings: Lora) -> float:
    """The factor of LoRA's output."""
    return alpha_of(settings) / (math.sqrt(settings.rank) if settings.rslora else settings.rank)


def _targets(encoder: Encoder, settings: Lora) -> dict[str, nn.Module]:
    """The layers that LoRA adapts, by their full names."""
    kind, known = type(encoder).__name__, encoder.lora_targets
    for target in settings.targets:
        if target not in known:
            may = f"(known: {', '.join(known)})" if known else "and none at all; set model.encoder to full or frozen"
            raise UsageError(f"model.lora.targets: encoder {kind} has no target '{target}' {may}")
    pattern = re.compile(encoder.lora_pattern(settings.targets))
    found = {name: module for name, module in encoder.named_modules() if pattern.fullmatch(name)}
    if not found:
        raise UsageError(f"model.lora.targets: encoder {kind} has no layer whose name fits {pattern.pattern}")
    return found


def _merged(layer: Any) -> nn.Module:
    """A layer with the same result as an adapted layer."""
    layer.merge()
    base: nn.Module = layer.get_base_layer()
    return base
