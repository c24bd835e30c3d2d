"""METHOD §2's table: what is trained gets a gradient, what is frozen does not move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.network import MemorySAM, start_fresh
from memorysam_cli.model.weights import prepare_training
from memorysam_cli.recipe import Model

WITHOUT_GRADIENT = ("sam.no_obj_ptr", "sam.no_obj_embed_spatial")
"""Trained parts whose gradient is zero unless a gate closes (METHOD §2)."""
BOTH_VERSIONS = pytest.mark.parametrize("backbone", ["nano", "sam2.1-hiera-tiny"])


def network_of(backbone: str, *, modalities: int, encoder: str = "lora") -> tuple[MemorySAM, list[str]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MemorySAM(build_sam2(backbone, tokens=5), classes=5)
        start_fresh(network)
        network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.data.fill_(5.0)  # keep the gates open
        settings = Model(backbone=backbone, encoder=encoder)  # type: ignore[arg-type]
        names = prepare_training(network, settings, modalities=modalities)
    return network.train(), names


def steps(network: MemorySAM, *, modalities: int, count: int) -> dict[str, float]:
    """Some updates; the largest absolute gradient that each trained parameter ever had."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    generator = torch.Generator().manual_seed(1)
    largest = dict.fromkeys(parameters, 0.0)
    for _ in range(count):
        frames = [torch.randn(1, 3, 64, 64, generator=generator) for _ in range(modalities)]
        label = torch.randint(0, 5, (1, 64, 64), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network.logits(frames), label).backward()
        for name, parameter in parameters.items():
            assert parameter.grad is not None, f"{name} is trained but gets no gradient"
            largest[name] = max(largest[name], float(parameter.grad.abs().max()))
        optimizer.step()
    return largest


@BOTH_VERSIONS
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one_moves(backbone: str) -> None:
    network, names = network_of(backbone, modalities=2)
    before: dict[str, Tensor] = {name: p.detach().clone() for name, p in network.named_parameters()}
    # Two steps: LoRA's A has a zero gradient as long as B is zero.
    largest = steps(network, modalities=2, count=2)
    silent = {name for name, size in largest.items() if size == 0}
    expected = {name for name in names if name.startswith(WITHOUT_GRADIENT)}
    assert silent == expected, "only the embeddings of closed gates may have a zero gradient"
    for name, parameter in network.named_parameters():
        if name in names:
            assert not torch.equal(parameter, before[name]) or name in expected, f"{name} did not move"
        else:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, msg=f"{name} is frozen but moved")


def test_key_biases_of_the_mask_decoder_have_a_gradient_of_rounding_only() -> None:
    network, _ = network_of("nano", modalities=2)
    largest = steps(network, modalities=2, count=1)
    symmetric = [name for name in largest if "sam_mask_decoder.transformer" in name and name.endswith("k_proj.bias")]
    rotated = [name for name in largest if "memory_attention" in name and name.endswith("k_proj.bias")]
    assert symmetric and rotated
    assert max(largest[name] for name in symmetric) < 1e-6 * max(largest.values())
    assert min(largest[name] for name in rotated) > max(largest[name] for name in symmetric)


def test_a_closed_gate_gives_no_obj_ptr_its_gradient() -> None:
    network, _ = network_of("nano", modalities=3)
    generator = torch.Generator().manual_seed(2)
    frames = [torch.randn(2, 3, 64, 64, generator=generator) for _ in range(3)]
    scores: list[Tensor] = []
    head = network.sam.sam_mask_decoder.pred_obj_score_head
    hook = head.register_forward_hook(lambda *call: scores.append(call[2].detach()))
    network.logits(frames)
    hook.remove()
    # Close the first frame; the last one must stay open to read its memory.
    order = torch.stack([score.mean() for score in scores])
    assert order[0] != order[-1]
    sign = 1.0 if order[-1] > order[0] else -1.0
    with torch.no_grad():
        head.layers[-1].weight *= sign
        head.layers[-1].bias.copy_((head.layers[-1].bias * sign) - sign * (order[0] + order[-1]) / 2)
    network.zero_grad()
    network.logits(frames).square().mean().backward()
    gradient = network.sam.no_obj_ptr.grad
    assert gradient is not None and float(gradient.abs().max()) > 0


def test_with_one_modality_the_memory_is_frozen_and_the_rest_still_learns() -> None:
    network, names = network_of("nano", modalities=1)
    assert not [n for n in names if "memory_" in n or n.endswith(("maskmem_tpos_enc", "no_obj_ptr"))]
    assert "sam.no_mem_embed" in names
    largest = steps(network, modalities=1, count=2)
    assert all(size > 0 for size in largest.values())


def test_full_trains_the_whole_encoder_and_frozen_none_of_it() -> None:
    network, names = network_of("nano", modalities=2, encoder="full")
    encoder = {name for name, _ in network.named_parameters() if name.startswith("sam.image_encoder.")}
    assert encoder <= set(names)
    assert all(size > 0 for name, size in steps(network, modalities=2, count=1).items() if name in encoder)
    _, names = network_of("nano", modalities=2, encoder="frozen")
    assert not encoder & set(names)


def test_the_iou_head_starts_kaiming_normal_with_zero_bias() -> None:
    network, names = network_of("nano", modalities=2)
    head = network.sam.sam_mask_decoder.iou_prediction_head
    for layer in head.layers:
        assert torch.count_nonzero(layer.bias) == 0
        wanted = (2 / layer.in_features) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.15)
    assert not [name for name in names if "iou_prediction_head" in name]
