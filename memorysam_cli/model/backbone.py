"""SAM2's networks by the names of their encoders, built from the classes of the PyPI package ``sam2``.

The sizes are those of SAM2's published configurations. The parts keep SAM2's names, so that published checkpoints load
unchanged. Only the mask decoder differs: it has a token per class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine, apply_rotary_enc
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from memorysam_cli.encoders.base import Backbone, Head
from memorysam_cli.encoders.products import scaled_dot_product
from memorysam_cli.registry import ENCODERS

STRIDE = 16
"""Pixels per feature cell of the memory."""

Rotation = Callable[..., tuple[Tensor, Tensor]]
"""(B, heads, L', d) queries and (B, heads, L, d) keys, rotated with a table; the signature of ``apply_rotary_enc``."""


class RotaryAttention(RoPEAttention):  # type: ignore[misc]  # sam2 has no types
    """SAM2's ``RoPEAttention``: same parameters, names and result. The rotary table must already have the queries'
    size."""

    rotate: Rotation = staticmethod(apply_rotary_enc)
    """The function that rotates queries and keys. An export replaces it, because other runtimes have no complex
    numbers."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        """Attend to memories.

        Args:
            q: (B, L', C) queries.
            k: (B, L, C_m) keys before their projection.
            v: (B, L, C_m) values before their projection.
            num_k_exclude_rope: number of keys at the end without a position; they are not rotated.

        Returns:
            (B, L', C).
        """
        query, key, value = (
            self._separate_heads(layer(part), self.num_heads)  # (B, L, C) -> (B, heads, L, d)
            for layer, part in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        query, key = self.turn(query, key, num_k_exclude_rope)
        if self.training and self.dropout_p:
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout_p)
        else:
            mixed = scaled_dot_product(query, key, value, learning=torch.is_grad_enabled())
        result: Tensor = self.out_proj(self._recombine_heads(mixed))
        return result

    def turn(self, query: Tensor, key: Tensor, unplaced: int) -> tuple[Tensor, Tensor]:
        """(B, heads, L', d) queries and (B, heads, L, d) keys, rotated by their positions; the last keys have none."""
        placed, others = torch.split(key, [key.shape[2] - unplaced, unplaced], dim=2)
        query, placed = self.rotate(query, placed, freqs_cis=self.freqs_cis, repeat_freqs_k=self.rope_k_repeat)
        return query, torch.cat([placed, others], dim=2)


def build_sam2(backbone: str | Backbone, *, tokens: int, attention: type[RoPEAttention] = RotaryAttention) -> SAM2Base:
    """A SAM2 network with PyTorch's initial values.

    Args:
        backbone: a name in ``memorysam_cli.registry.ENCODERS``, or the object of such a name.
        tokens: mask tokens for class logits; the decoder has one more, SAM2's own first token.
        attention: the class of the memory's attention: ours, or SAM2's own for a comparison.

    Raises:
        UsageError: a registered encoder that cannot be used.
    """
    spec: Backbone = ENCODERS.get(backbone) if isinstance(backbone, str) else backbone
    head = spec.head
    sam = SAM2Base(
        image_encoder=_image_encoder(spec),
        memory_attention=_memory_attention(head, attention),
        memory_encoder=_memory_encoder(head),
        image_size=1024,  # only shapes tables that `MemorySAM` rebuilds for the actual image
        num_maskmem=7,
        sigmoid_scale_for_mem_enc=20.0,
        sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True,
        directly_add_no_mem_embed=True,
        use_high_res_features_in_sam=True,
        multimask_output_in_sam=True,
        iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True,
        only_obj_ptrs_in_the_past_for_eval=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True,
        multimask_min_pt_num=0,
        multimask_max_pt_num=1,
        use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=head.is_sam21,
        add_tpos_enc_to_obj_ptrs=head.is_sam21,
        proj_tpos_enc_in_obj_ptrs=head.is_sam21,
        use_signed_tpos_enc_to_obj_ptrs=head.is_sam21,
    )
    sam.sam_mask_decoder = _mask_decoder(head, tokens)
    return sam


def set_grid(sam: SAM2Base, height: int, width: int) -> None:
    """Build the rotary tables of the memory attention for an h×w grid of cells.

    SAM2 computes the table's sides as the square root of the token count, which is wrong for a rectangle. But it uses a
    table of the right length unchanged.
    """
    # Tables made inside inference mode could not be used in a later training step.
    with torch.inference_mode(False):
        for module in sam.memory_attention.modules():
            if isinstance(module, RoPEAttention):
                device = module.q_proj.weight.device
                module.freqs_cis = module.compute_cis(end_x=width, end_y=height).to(device)


def _sine(channels: int) -> PositionEmbeddingSine:
    return PositionEmbeddingSine(num_pos_feats=channels, normalize=True, temperature=10000, warmup_cache=False)


def _image_encoder(spec: Backbone) -> ImageEncoder:
    trunk = spec.encoder()
    channels = [*reversed(trunk.channels)]
    trunk.__dict__["channel_list"] = channels  # SAM2's name for them
    neck = FpnNeck(
        position_encoding=_sine(spec.head.width),
        d_model=spec.head.width,
        backbone_channel_list=channels,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def _memory_attention(size: Head, kind: type[RoPEAttention]) -> MemoryAttention:
    def attention(**options: object) -> RoPEAttention:
        return kind(
            embedding_dim=size.width, num_heads=1, downsample_rate=1, dropout=0.1, feat_sizes=(64, 64), **options
        )

    layer = MemoryAttentionLayer(
        activation="relu",
        dim_feedforward=size.memory_mlp,
        dropout=0.1,
        pos_enc_at_attn=False,
        self_attention=attention(),
        d_model=size.width,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        cross_attention=attention(rope_k_repeat=True, kv_in_dim=size.memory_width),
    )
    return MemoryAttention(d_model=size.width, pos_enc_at_input=True, layer=layer, num_layers=size.memory_layers)


def _memory_encoder(size: Head) -> MemoryEncoder:
    return MemoryEncoder(
        out_dim=size.memory_width,
        in_dim=size.width,
        position_encoding=_sine(size.memory_width),
        mask_downsampler=MaskDownSampler(embed_dim=size.width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=size.width, kernel_size=7, padding=3), num_layers=2),
    )


def _mask_decoder(size: Head, tokens: int) -> MaskDecoder:
    return MaskDecoder(
        num_multimask_outputs=tokens,
        transformer=TwoWayTransformer(depth=2, embedding_dim=size.width, mlp_dim=size.decoder_mlp, num_heads=8),
        transformer_dim=size.width,
        iou_head_depth=3,
        iou_head_hidden_dim=size.iou_hidden,
        use_high_res_features=True,
        iou_prediction_use_sigmoid=True,
        pred_obj_scores=True,
        pred_obj_scores_mlp=True,
        use_multimask_token_for_obj_ptr=True,
    )
