"""A rectangular image, against SAM2's own arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor

from memorysam_cli.model.backbone import build_sam2, set_grid
from memorysam_cli.model.network import MemorySAM


@pytest.fixture(scope="module")
def network() -> MemorySAM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MemorySAM(build_sam2("nano", tokens=4), classes=4).eval()


def rotation(tokens: Tensor, *, width: int, theta: float = 10000.0) -> Tensor:
    """Axial rotary encoding by its definition: pairs of channels turn by x, then by y, times falling frequencies."""
    length, channels = tokens.shape[-2:]
    position = torch.arange(length)
    frequency = theta ** (-torch.arange(0, channels, 4).float() / channels)
    angles = torch.cat([(position % width)[:, None] * frequency, (position // width)[:, None] * frequency], dim=1)
    even, odd = tokens[..., 0::2], tokens[..., 1::2]
    turned = torch.stack([even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], dim=-1)
    return turned.flatten(-2)


def test_memory_attention_turns_queries_and_keys_by_their_true_row_and_column(network: MemorySAM) -> None:
    height, width, pointers = 4, 6, 3
    set_grid(network.sam, height, width)
    attention = network.sam.memory_attention.layers[0].cross_attn_image
    assert isinstance(attention, RoPEAttention)
    generator = torch.Generator().manual_seed(1)
    cells, channels, memory_width = height * width, network.sam.hidden_dim, network.sam.mem_dim
    queries = torch.randn(2, cells, channels, generator=generator)
    memory = torch.randn(2, 2 * cells + pointers, memory_width, generator=generator)
    with torch.no_grad():
        found = attention(q=queries, k=memory, v=memory, num_k_exclude_rope=pointers)
        q = rotation(attention.q_proj(queries), width=width)
        k = attention.k_proj(memory)
        spatial = k[:, : 2 * cells].reshape(2, 2, cells, channels)  # each memory is turned by the same grid
        k = torch.cat([rotation(spatial, width=width).flatten(1, 2), k[:, 2 * cells :]], dim=1)
        weights = (q @ k.transpose(1, 2) / math.sqrt(channels)).softmax(-1)
        wanted = attention.out_proj(weights @ attention.v_proj(memory))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_dense_position_embedding_follows_height_and_width(network: MemorySAM) -> None:
    embedding = network.sam.sam_prompt_encoder.pe_layer((4, 6))  # (C, h, w)
    matrix = network.sam.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    row, column = 1, 4
    point = 2 * torch.tensor([(column + 0.5) / 6, (row + 0.5) / 4]) - 1
    angle = 2 * math.pi * (point @ matrix)
    torch.testing.assert_close(embedding[:, row, column], torch.cat([angle.sin(), angle.cos()]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (32, 128)])
def test_any_size_divisible_by_32_gives_logits_of_that_size(network: MemorySAM, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(2)
    frames = [torch.randn(1, 3, height, width, generator=generator) for _ in range(3)]
    with torch.no_grad():
        assert network.logits(frames).shape == (1, 4, height, width)


def test_the_same_number_of_cells_in_another_shape_gets_other_tables(network: MemorySAM) -> None:
    """4×4 and 2×8 cells have equal token counts: a stale table would go unnoticed."""
    generator = torch.Generator().manual_seed(3)
    square = [torch.randn(1, 3, 64, 64, generator=generator) for _ in range(2)]
    wide = [torch.randn(1, 3, 32, 128, generator=generator) for _ in range(2)]
    with torch.no_grad():
        first = network.logits(square)
        network.logits(wide)
        torch.testing.assert_close(network.logits(square), first, rtol=0, atol=0)
    table = network.sam.memory_attention.layers[0].self_attn.freqs_cis
    set_grid(network.sam, 2, 8)
    assert not torch.equal(network.sam.memory_attention.layers[0].self_attn.freqs_cis, table)
    set_grid(network.sam, 4, 4)


@pytest.mark.parametrize(
    ("shapes", "fault"),
    [
        ([], "at least one"),
        ([(1, 3, 64, 50)], "divisible by 32"),
        ([(1, 4, 64, 64)], r"needs \(B, 3, H, W\)"),
        ([(1, 3, 64, 64), (1, 3, 64, 96)], "differs"),
    ],
)
def test_frames_that_would_be_misread_are_refused(
    network: MemorySAM, shapes: list[tuple[int, ...]], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        network.logits([torch.zeros(shape) for shape in shapes])


def test_training_works_after_an_evaluation_in_inference_mode() -> None:
    network = MemorySAM(build_sam2("nano", tokens=4), classes=4)
    frames = [torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64)]
    with torch.inference_mode():
        network.logits(frames)
    network.logits(frames).sum().backward()
    gradient = network.sam.memory_attention.layers[0].cross_attn_image.q_proj.weight.grad
    assert gradient is not None and bool(torch.isfinite(gradient).all())
