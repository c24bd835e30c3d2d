"""SAM 2 as transformers has it: its own modules, with the same tensors, compute what ours compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from memorysam_cli.errors import WeightsError
from memorysam_cli.model.backbone import build_sam2, set_grid
from memorysam_cli.model.base_weights import as_sam2, base_shapes, load_base
from memorysam_cli.model.lora import peft
from memorysam_cli.model.memory import EncodedFrame, Memory, condition
from memorysam_cli.model.network import MemorySAM

BACKBONE = "sam2.1-hiera-tiny"
SIZE = 64
SIDE = 16
"""Cells of the memory attention on each side; theirs has a table of rotations for this many alone, 64 by default."""


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' network, with random weights; its other defaults are those of SAM 2.1 with Hiera tiny."""
    peft()  # hides a torchvision that cannot be imported
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoModel

    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = Sam2VideoModel(Sam2VideoConfig(memory_attention_rope_feat_sizes=[SIDE, SIDE])).eval()
        with torch.no_grad():
            for parameter in network.parameters():  # many start at zero, and would hide a wrong name
                parameter.add_(0.02 * torch.randn_like(parameter))
    return network


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> MemorySAM:
    """Ours, filled from their file."""
    path = tmp_path_factory.mktemp("hf") / "model.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in theirs.state_dict().items()}, path)
    network = MemorySAM(build_sam2(BACKBONE, tokens=3), classes=3).eval()
    assert load_base(network, BACKBONE, source=str(path), seed=0).source == f"file:{path}"
    return network


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_the_encoders_agree(theirs: Any, ours: MemorySAM) -> None:
    image = noise(1, 3, SIZE, SIZE, seed=1)
    levels = theirs.vision_encoder(image).fpn_hidden_states  # from stride 4 to stride 16
    frame = ours.encode([image])[0]
    decoder = theirs.mask_decoder
    wanted = (decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2])
    for mine, his in zip((frame.fine, frame.middle, frame.coarse), wanted, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_memory_attention_agrees(theirs: Any, ours: MemorySAM) -> None:
    features, positions = noise(1, 256, SIDE, SIDE, seed=2), noise(1, 256, SIDE, SIDE, seed=3)
    memory = Memory(noise(1, 64, SIDE, SIDE, seed=4), noise(1, 64, SIDE, SIDE, seed=5), noise(1, 256, seed=6))
    set_grid(ours.sam, SIDE, SIDE)
    frame = EncodedFrame(features, features, features, positions, 0)
    mine = condition(ours.sam, frame, [memory], frames=2)

    def sequence(part: Tensor) -> Tensor:
        return part.flatten(2).permute(2, 0, 1)

    from sam2.modeling.sam2_utils import get_1d_sine_pe

    pointers = memory.pointer.reshape(1, 4, 64).permute(1, 0, 2)  # 256 channels as four tokens of 64
    wave = theirs.temporal_positional_encoding_projection_layer(get_1d_sine_pe(torch.ones(1), dim=256))
    his = theirs.memory_attention(
        current_vision_features=sequence(features),
        current_vision_position_embeddings=sequence(positions),
        memory=torch.cat([sequence(memory.features), pointers]),
        memory_posision_embeddings=torch.cat(
            [sequence(memory.position) + theirs.memory_temporal_positional_encoding[-1], wave.expand(4, 1, 64)]
        ),
        num_object_pointer_tokens=4,
    )
    torch.testing.assert_close(mine.flatten(2), his.reshape(-1, 256).T[None], rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_the_memory_encoders_agree(theirs: Any, ours: MemorySAM) -> None:
    features, mask = noise(1, 256, 4, 4, seed=7), noise(1, 1, SIZE, SIZE, seed=8)
    mine = ours.sam.memory_encoder(features, mask, skip_mask_sigmoid=True)
    his, _ = theirs.memory_encoder(features, mask)
    torch.testing.assert_close(mine["vision_features"], his, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_the_mask_decoders_agree(theirs: Any) -> None:
    sam = build_sam2(BACKBONE, tokens=3).eval()  # with SAM 2's own heads, which our classes replace
    sam.load_state_dict(as_sam2(theirs.state_dict()))
    image, positions = noise(1, 256, 4, 4, seed=9), noise(1, 256, 4, 4, seed=10)
    fine, middle, sparse = noise(1, 32, 16, 16, seed=11), noise(1, 64, 8, 8, seed=12), noise(1, 2, 256, seed=13)
    dense = noise(1, 256, 4, 4, seed=14)
    mine = sam.sam_mask_decoder.predict_masks(
        image_embeddings=image, image_pe=positions, sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense,
        repeat_image=False, high_res_features=[fine, middle],
    )  # fmt: skip
    his = theirs.mask_decoder(
        image_embeddings=image, image_positional_embeddings=positions, sparse_prompt_embeddings=sparse[None],
        dense_prompt_embeddings=dense, multimask_output=True, high_resolution_features=[fine, middle],
    )  # fmt: skip
    torch.testing.assert_close(mine[0][:, 1:], his[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mine[1][:, 1:], his[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine[3], his[3][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "small", "base-plus", "large"])
@pytest.mark.parametrize("version", ["2", "2.1"])
def test_every_published_network_maps_one_to_one(version: str, size: str) -> None:
    peft()
    from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoModel

    width, heads, blocks, globals_ = {
        "tiny": (96, 1, [1, 2, 7, 2], [5, 7, 9]),
        "small": (96, 1, [1, 2, 11, 2], [7, 10, 13]),
        "base-plus": (112, 2, [2, 3, 16, 3], [12, 16, 20]),
        "large": (144, 2, [2, 6, 36, 4], [23, 33, 43]),
    }[size]
    trunk = Sam2HieraDetConfig(
        hidden_size=width, num_attention_heads=heads, blocks_per_stage=blocks, global_attention_blocks=globals_,
        embed_dim_per_stage=[width * 2**level for level in range(4)],
        num_attention_heads_per_stage=[heads * 2**level for level in range(4)],
        window_positional_embedding_background_size=[14, 14] if size == "base-plus" else [7, 7],
        window_size_per_stage=[8, 4, 16, 8] if size == "large" else [8, 4, 14, 7],
    )  # fmt: skip
    vision = Sam2VisionConfig(backbone_config=trunk, backbone_channel_list=[width * 2**level for level in (3, 2, 1, 0)])
    extras = version == "2.1"
    with torch.device("meta"):
        network = Sam2VideoModel(
            Sam2VideoConfig(
                vision_config=vision, enable_occlusion_spatial_embedding=extras,
                enable_temporal_pos_encoding_for_object_pointers=extras,
            )
        )  # fmt: skip
    wanted = base_shapes(f"sam{version}-hiera-{size}")
    given = {name: tuple(tensor.shape) for name, tensor in as_sam2(network.state_dict()).items()}
    fresh = {name for name in given if name not in wanted}
    assert {name: given.get(name) for name in wanted} == dict(wanted)
    assert all(
        name.startswith("sam_mask_decoder.")
        and ("mask_tokens" in name or "hypernetworks" in name or "iou_pred" in name)
        for name in fresh
    )


def test_a_network_without_memory_is_refused(theirs: Any, tmp_path: Path) -> None:
    """``Sam2Model``, for single images, has no memory: what lacks is named."""
    path = tmp_path / "image.safetensors"
    state = {name: each.clone() for name, each in theirs.state_dict().items() if "memory" not in name}
    save_file(state, path)
    network = MemorySAM(build_sam2(BACKBONE, tokens=3), classes=3)
    with pytest.raises(WeightsError, match=r"missing \(maskmem_tpos_enc"):
        load_base(network, BACKBONE, source=str(path), seed=0)
