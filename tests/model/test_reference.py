"""The upstream layout and ours: each tensor has its place, there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memorysam_cli.errors import WeightsError
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.lora import add_lora
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.model.reference import from_reference, reference_shapes, to_reference
from memorysam_cli.recipe import Lora

from .upstream import drawn

SHAPES = reference_shapes("nano", tokens=5, rank=3)
WIDE = "sam.image_encoder.trunk.blocks.1.attn.qkv.{}.lora_B.default.weight"
"""Of nano's first transition block: 32 channels in, 64 out."""


def exactly(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name])]


def test_the_shapes_of_hiera_tiny_are_the_golden_ones(golden: Any) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in golden.state(0.0).items()}
    assert reference_shapes("sam2-hiera-tiny", tokens=25, rank=4) == wanted


def test_there_and_back_gives_every_tensor_bit_for_bit(golden: Any) -> None:
    for state in (drawn(SHAPES), golden.state(5.0)):
        exactly(to_reference(from_reference(state)), state)


def test_back_and_there_gives_our_network(golden: Any) -> None:
    own = golden.network(5.0).state_dict()
    exactly(from_reference(to_reference(own)), dict(own))


def test_a_network_of_ours_that_was_never_trained_has_its_place_there() -> None:
    network = MemorySAM(build_sam2("nano", tokens=5), classes=5)
    add_lora(network.sam.image_encoder.trunk, Lora(rank=3))
    found = to_reference(network.state_dict())
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == SHAPES


def test_wide_rows_are_padded_after_q_and_before_v() -> None:
    translated = from_reference(drawn(SHAPES))
    q, v = translated[WIDE.format("q")], translated[WIDE.format("v")]
    assert q.shape == v.shape == (64, 3)
    assert bool(q[:32].all()) and not bool(q[32:].any())
    assert bool(v[32:].all()) and not bool(v[:32].any())


@pytest.mark.parametrize(("part", "row"), [("q", 32), ("v", 31)])
def test_lora_wider_than_the_references_is_refused_by_block(part: str, row: int) -> None:
    own = from_reference(drawn(SHAPES))
    own[WIDE.format(part)][row, 0] = 1e-30
    with pytest.raises(WeightsError, match=r"in the transition blocks \(1\); .* use --format merged"):
        to_reference(own)


def test_lora_s_scale_goes_into_b() -> None:
    state = drawn(SHAPES)
    own = from_reference(state)
    name = "sam.image_encoder.trunk.blocks.0.attn.qkv.linear_b_v.weight"
    found = to_reference(own, scale=0.5)
    torch.testing.assert_close(found[name], state[name] * 0.5, rtol=0, atol=0)
    exactly({**found, **{n: t for n, t in state.items() if "linear_b" in n}}, state)


def test_a_strange_lora_is_named() -> None:
    with pytest.raises(WeightsError, match="linear_c_q"):
        from_reference({"sam.x.attn.qkv.linear_c_q.weight": torch.ones(1)})
