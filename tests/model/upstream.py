"""The upstream code's network, built here from METHOD's words on ``sam2``'s own classes: nothing of ours is inside."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn


class LoraOnQueryAndValue(nn.Module):
    """A fused projection; LoRA of width d_in on q's first and v's last channels (METHOD §2)."""

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        width = qkv.in_features
        self.qkv, self.width = qkv, width
        self.linear_a_q = nn.Linear(width, rank, bias=False)
        self.linear_b_q = nn.Linear(rank, width, bias=False)
        self.linear_a_v = nn.Linear(width, rank, bias=False)
        self.linear_b_v = nn.Linear(rank, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        fused = self.qkv(tokens).clone()
        fused[..., : self.width] += self.linear_b_q(self.linear_a_q(tokens))
        fused[..., -self.width :] += self.linear_b_v(self.linear_a_v(tokens))
        return fused


class Upstream(nn.Module):
    """Any SAM2 network with one mask token per class and LoRA in every block; its ``state_dict`` is upstream's."""

    def __init__(self, sam: SAM2Base, *, tokens: int, rank: int) -> None:
        super().__init__()
        self.sam = sam
        sam.sam_mask_decoder = MaskDecoder(
            num_multimask_outputs=tokens,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
            use_high_res_features=True,
            iou_prediction_use_sigmoid=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
            use_multimask_token_for_obj_ptr=True,
        )
        for block in sam.image_encoder.trunk.blocks:
            block.attn.qkv = LoraOnQueryAndValue(block.attn.qkv, rank)


def drawn(shapes: Mapping[str, tuple[int, ...]], *, object_score_bias: float = 5.0) -> dict[str, Tensor]:
    """Values made from names, as METHOD §7 says."""
    state = {}
    for name, shape in shapes.items():
        values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
        if len(shape) >= 2:
            values = values * 0.7 / np.sqrt(np.prod(shape[1:]))
        else:
            values = values * 0.02 + float(name.endswith(("weight", "gamma")))
        state[name] = torch.from_numpy(np.asarray(values)).float()
    state["sam.sam_mask_decoder.pred_obj_score_head.layers.2.bias"].fill_(object_score_bias)
    return state
