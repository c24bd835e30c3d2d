"""SAM2's networks under short names, built from the classes of the PyPI package ``sam2``.

The sizes are those of SAM2's published configurations; the parts keep SAM2's names, so that published
checkpoints load as they are. Only the mask decoder differs: it has one token per class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sam2.modeling.backbones.hieradet import Hiera
from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.transformer import RoPEAttention, TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base

STRIDE = 16
"""Pixels per feature cell where memories live."""


@dataclass(frozen=True)
class Size:
    """The dimensions in which SAM2's variants differ."""

    embed_dim: int
    heads: int
    stages: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    position_cells: tuple[int, int] = (7, 7)
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    width: int = 256
    """Channels of the neck, the memory attention and the mask decoder."""
    memory_width: int = 64
    memory_layers: int = 4
    memory_mlp: int = 2048
    decoder_mlp: int = 2048
    iou_hidden: int = 256


SIZES = {
    "nano": Size(
        24, 1, (1, 2, 2, 1), (4,), windows=(8, 4, 8, 4),
        width=64, memory_width=16, memory_layers=1, memory_mlp=256, decoder_mlp=256, iou_hidden=64,
    ),
    "tiny": Size(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "small": Size(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "base-plus": Size(112, 2, (2, 3, 16, 3), (12, 16, 20), position_cells=(14, 14)),
    "large": Size(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}  # fmt: skip


def size_of(backbone: str) -> Size:
    """The dimensions of a backbone such as ``sam2.1-hiera-tiny``."""
    return SIZES[backbone.rpartition("hiera-")[2]]


def build_sam2(backbone: str, *, tokens: int) -> SAM2Base:
    """A SAM2 network with PyTorch's initial values.

    Args:
        backbone: one of ``memorysam_cli.recipe.BACKBONES``.
        tokens: mask tokens that give class logits; the decoder has one more, SAM2's own first token.
    """
    size = size_of(backbone)
    sam = SAM2Base(
        image_encoder=_image_encoder(size),
        memory_attention=_memory_attention(size),
        memory_encoder=_memory_encoder(size),
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
        **_version_options(backbone),
    )
    sam.sam_mask_decoder = _mask_decoder(size, tokens)
    return sam


def set_grid(sam: SAM2Base, height: int, width: int) -> None:
    """Build the rotary tables of the memory attention for an h×w grid of cells.

    SAM2 takes the square root of the token count for the table's sides, which is wrong for a rectangle; a table
    of the right length is used as it is.
    """
    # Tables made inside inference mode could not be used in a later training step.
    with torch.inference_mode(False):
        for module in sam.memory_attention.modules():
            if isinstance(module, RoPEAttention):
                device = module.q_proj.weight.device
                module.freqs_cis = module.compute_cis(end_x=width, end_y=height).to(device)


def _version_options(backbone: str) -> dict[str, bool]:
    """What SAM 2.1 has beyond SAM 2."""
    is_21 = backbone.startswith("sam2.1")
    return {
        "no_obj_embed_spatial": is_21,
        "add_tpos_enc_to_obj_ptrs": is_21,
        "proj_tpos_enc_in_obj_ptrs": is_21,
        "use_signed_tpos_enc_to_obj_ptrs": is_21,
    }


def _sine(channels: int) -> PositionEmbeddingSine:
    return PositionEmbeddingSine(num_pos_feats=channels, normalize=True, temperature=10000, warmup_cache=False)


def _image_encoder(size: Size) -> ImageEncoder:
    trunk = Hiera(
        embed_dim=size.embed_dim,
        num_heads=size.heads,
        stages=size.stages,
        global_att_blocks=size.global_blocks,
        window_pos_embed_bkg_spatial_size=size.position_cells,
        window_spec=size.windows,
    )
    neck = FpnNeck(
        position_encoding=_sine(size.width),
        d_model=size.width,
        backbone_channel_list=trunk.channel_list,
        fpn_top_down_levels=[2, 3],
        fpn_interp_model="nearest",
    )
    return ImageEncoder(trunk=trunk, neck=neck, scalp=1)


def _memory_attention(size: Size) -> MemoryAttention:
    def attention(**options: object) -> RoPEAttention:
        return RoPEAttention(
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


def _memory_encoder(size: Size) -> MemoryEncoder:
    return MemoryEncoder(
        out_dim=size.memory_width,
        in_dim=size.width,
        position_encoding=_sine(size.memory_width),
        mask_downsampler=MaskDownSampler(embed_dim=size.width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=size.width, kernel_size=7, padding=3), num_layers=2),
    )


def _mask_decoder(size: Size, tokens: int) -> MaskDecoder:
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
