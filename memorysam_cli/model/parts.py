"""Which tensors are trained, which are frozen, and which do not come from SAM2's checkpoint (METHOD §2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from memorysam_cli.model.lora import add_lora
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.recipe import Model

FRESH = (
    "sam.sam_mask_decoder.mask_tokens.",
    "sam.sam_mask_decoder.output_hypernetworks_mlps.",
    "sam.sam_mask_decoder.iou_prediction_head.",
)
"""Parts that start fresh: SAM2 has them for its own four masks, not for classes."""

ENCODER = "sam.image_encoder."

MEMORY = (
    "sam.memory_attention.",
    "sam.memory_encoder.",
    "sam.maskmem_tpos_enc",
    "sam.no_obj_ptr",
    "sam.no_obj_embed_spatial",
    "sam.obj_ptr_tpos_proj.",
)
"""Parts that only work between frames; with one modality they get no gradient and are frozen."""

FROZEN = (
    ENCODER,
    "sam.sam_prompt_encoder.",
    "sam.obj_ptr_proj.",
    "sam.sam_mask_decoder.iou_prediction_head.",
    "sam.sam_mask_decoder.pred_obj_score_head.",
    # Take no part in the result, so no gradient could reach them:
    "sam.sam_mask_decoder.output_hypernetworks_mlps.0.",
    "sam.mask_downsample.",
    "sam.no_mem_pos_enc",
)


def is_fresh(name: str) -> bool:
    """Whether a tensor of the network starts fresh instead of coming from SAM2's checkpoint."""
    return name.startswith(FRESH)


def start_fresh(network: MemorySAM) -> None:
    """Give the IoU head its start: Kaiming normal (fan_in, relu), bias 0; the other fresh parts keep PyTorch's."""
    for module in network.sam.sam_mask_decoder.iou_prediction_head.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)


def set_trainable(network: MemorySAM, *, encoder: Literal["lora", "full", "frozen"], modalities: int) -> list[str]:
    """Freeze and unfreeze by METHOD §2's table, in place.

    Returns:
        The names of the trainable parameters.
    """
    frozen = FROZEN if modalities > 1 else FROZEN + MEMORY
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
        if name.startswith(ENCODER):
            parameter.requires_grad_(encoder == "full" or (encoder == "lora" and ".lora_" in name))
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def prepare_training(network: MemorySAM, settings: Model, *, modalities: int) -> list[str]:
    """Add LoRA where the recipe wants it and set what is trained; returns the trainable names."""
    if settings.encoder == "lora":
        add_lora(network.sam.image_encoder.trunk, settings.lora)
    return set_trainable(network, encoder=settings.encoder, modalities=modalities)


def count(parameters: Iterable[torch.Tensor]) -> int:
    """The number of scalars."""
    return sum(parameter.numel() for parameter in parameters)
