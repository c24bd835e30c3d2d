"""SAM 2 as the transformers library names it: the key map of its ``Sam2VideoModel``.

Its files are safetensors (``facebook/sam2-hiera-tiny-hf`` and its siblings, or a network that was fine-tuned there) and
hold the same tensors as Meta's ``.pt``. Only names differ, and the four point embeddings lie in one tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

MARK = "vision_encoder.backbone."
"""Names of these files begin so, and none of Meta's does."""
TWICE = "shared_image_embedding.positional_embedding"
"""A second copy of the prompt encoder's matrix."""
POINTS = "prompt_encoder.point_embed.weight"
"""(4, C): Meta has four of (1, C)."""

_NAMES = {
    r"^vision_encoder\.backbone\.": "image_encoder.trunk.",
    r"^vision_encoder\.neck\.convs\.(\d+)\.": r"image_encoder.neck.convs.\1.conv.",
    r"patch_embed\.projection": "patch_embed.proj",
    r"^prompt_encoder\.shared_embedding\.positional_embedding$": (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    ),
    r"^prompt_encoder\.mask_embed\.conv1": "prompt_encoder.mask_downscaling.0",
    r"^prompt_encoder\.mask_embed\.layer_norm1": "prompt_encoder.mask_downscaling.1",
    r"^prompt_encoder\.mask_embed\.conv2": "prompt_encoder.mask_downscaling.3",
    r"^prompt_encoder\.mask_embed\.layer_norm2": "prompt_encoder.mask_downscaling.4",
    r"^prompt_encoder\.mask_embed\.conv3": "prompt_encoder.mask_downscaling.6",
    r"^mask_decoder\.upscale_conv1": "mask_decoder.output_upscaling.0",
    r"^mask_decoder\.upscale_layer_norm": "mask_decoder.output_upscaling.1",
    r"^mask_decoder\.upscale_conv2": "mask_decoder.output_upscaling.3",
    r"^(prompt_encoder|mask_decoder)\.": r"sam_\1.",
    r"^memory_encoder\.feature_projection": "memory_encoder.pix_feat_proj",
    r"^memory_encoder\.projection": "memory_encoder.out_proj",
    r"^memory_encoder\.memory_fuser\.": "memory_encoder.fuser.",
    r"\.depthwise_conv\.": ".dwconv.",
    r"\.pointwise_conv(\d)\.": r".pwconv\1.",
    r"^(memory_encoder\.fuser\..*)\.layer_norm\.": r"\1.norm.",
    r"^(memory_encoder\.fuser\..*)\.scale$": r"\1.gamma",
    r"^(memory_encoder\.mask_downsampler)\.final_conv": r"\1.encoder.12",
    r"^memory_attention\.layer_norm\.": "memory_attention.norm.",
    r"\.layer_norm(\d)\.": r".norm\1.",
    r"\.layer_norm_final_attn\.": ".norm_final_attn.",
    r"\.o_proj\.": ".out_proj.",
    r"^memory_temporal_positional_encoding$": "maskmem_tpos_enc",
    r"^no_memory_embedding$": "no_mem_embed",
    r"^no_memory_positional_encoding$": "no_mem_pos_enc",
    r"^no_object_pointer$": "no_obj_ptr",
    r"^occlusion_spatial_embedding_parameter$": "no_obj_embed_spatial",
    r"^temporal_positional_encoding_projection_layer\.": "obj_ptr_tpos_proj.",
    r"^object_pointer_proj\.": "obj_ptr_proj.",
}
"""Patterns and what stands for them, in this order."""
_DOWNSAMPLER = re.compile(r"^(memory_encoder\.mask_downsampler)\.layers\.(\d+)\.(conv|layer_norm)\.(\w+)$")
_MLP = re.compile(r"^(.*)\.(?:(proj_in)|(proj_out)|layers\.(\d+))\.(weight|bias)$")


def is_transformers(state: Mapping[str, object]) -> bool:
    """Whether a file's names are those of transformers."""
    return any(name.startswith(MARK) for name in state)


def as_sam2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a ``Sam2VideoModel`` under the names of Meta's files; names that it does not know stay."""
    renamed = {sam2_name(name): tensor for name, tensor in state.items() if name not in (TWICE, POINTS)}
    points = {
        f"sam_prompt_encoder.point_embeddings.{place}.weight": row[None]
        for place, row in enumerate(state.get(POINTS, ()))
    }
    return renamed | points


def sam2_name(name: str) -> str:
    """Meta's name of one tensor."""
    for pattern, instead in _NAMES.items():
        name = re.sub(pattern, instead, name)
    if found := _DOWNSAMPLER.match(name):  # a convolution, its norm and an activation without weights, four times
        stem, layer, kind, rest = found.groups()
        return f"{stem}.encoder.{3 * int(layer) + (kind == 'layer_norm')}.{rest}"
    if found := _MLP.match(name):
        stem, first, _, between, rest = found.groups()
        # Those of the transformers' blocks have two layers, heads and pointers three.
        place = 0 if first else int(between) + 1 if between else 1 if stem.endswith(".mlp") else 2
        return f"{stem}.layers.{place}.{rest}"
    return name
