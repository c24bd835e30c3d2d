from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sam2.modeling.backbones.hieradet import Hiera
from torch import Tensor

from memorysam_cli.encoders.hiera import SplitProjection
from memorysam_cli.errors import UsageError
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.lora import (
    FoldingLora,
    adapter_config,
    add_folding_lora,
    add_lora,
    has_lora,
    merge_lora,
    peft,
)
from memorysam_cli.recipe import Lora
from memorysam_cli.storage import tensors


@pytest.fixture
def trunk() -> Hiera:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_sam2("nano", tokens=3).image_encoder.trunk.eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def disturb(trunk: Hiera) -> None:
    """Give B (and DoRA's magnitude) values, so that the adapter does something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if ".lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif "magnitude" in name:
                parameter.mul_(1.1)


@torch.no_grad()
def outputs(trunk: Hiera, image: Tensor) -> list[Tensor]:
    return list(trunk(image))


def test_a_fresh_adapter_changes_nothing(trunk: Hiera, image: Tensor) -> None:
    before = outputs(trunk, image)
    add_lora(trunk, Lora())
    torch.testing.assert_close(outputs(trunk, image), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        Lora(),
        Lora(rank=2, alpha=8, targets=("q", "k", "v", "proj")),
        Lora(rslora=True, rank=8),
        Lora(dora=True),
        Lora(targets=("proj",)),
    ],
    ids=["plain", "all-targets", "rslora", "dora", "proj-only"],
)
def test_merged_equals_unmerged_and_is_plain_sam2_again(trunk: Hiera, image: Tensor, settings: Lora) -> None:
    plain = outputs(trunk, image)
    names = list(trunk.state_dict())
    add_lora(trunk, settings)
    assert has_lora(trunk)
    disturb(trunk)
    adapted = outputs(trunk, image)
    assert not torch.allclose(adapted[-1], plain[-1], atol=1e-3), "the adapter does nothing"
    merge_lora(trunk)
    assert not has_lora(trunk)
    assert list(trunk.state_dict()) == names
    torch.testing.assert_close(outputs(trunk, image), adapted, rtol=1e-4, atol=1e-4)


def test_q_and_v_are_adapted_in_full_and_k_not_at_all(trunk: Hiera) -> None:
    add_lora(trunk, Lora())
    for block in trunk.blocks:
        split = block.attn.qkv
        assert isinstance(split, SplitProjection)
        for part in (split.q, split.v):
            assert part.lora_B["default"].weight.shape == (block.dim_out, 4)
            assert part.lora_A["default"].weight.shape == (4, block.dim)
            assert part.scaling["default"] == 1.0
        assert isinstance(split.k, torch.nn.Linear)


def test_a_starts_kaiming_uniform_and_b_zero(trunk: Hiera) -> None:
    add_lora(trunk, Lora())
    for name, parameter in trunk.named_parameters():
        if ".lora_B" in name:
            assert torch.count_nonzero(parameter) == 0
        if ".lora_A" in name:
            bound = 1 / parameter.shape[1] ** 0.5  # Kaiming-uniform with a = √5
            assert 0.5 * bound < float(parameter.detach().abs().max()) <= bound


def test_it_is_an_ordinary_peft_adapter(trunk: Hiera, image: Tensor, tmp_path: Path) -> None:
    """Our LoRA tensors in PEFT's own folder layout load with PEFT's own loader and give the same features."""
    add_lora(trunk, Lora())
    disturb(trunk)
    wanted = outputs(trunk, image)
    adapter = peft().get_peft_model_state_dict(trunk)
    tensors.write(tmp_path / "adapter_model.safetensors", {f"base_model.model.{n}": t for n, t in adapter.items()}, {})
    adapter_config(Lora(), trunk).save_pretrained(str(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = build_sam2("nano", tokens=3).image_encoder.trunk.eval()
    for block in other.blocks:
        block.attn.qkv = SplitProjection(block.attn.qkv)
    loaded = peft().PeftModel.from_pretrained(other, str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(list(loaded(image)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [Lora(), Lora(rank=2, alpha=7, targets=("q", "k", "v", "proj"), dropout=0.5), Lora(rslora=True, rank=8)],
    ids=["plain", "all-targets", "rslora"],
)
def test_folding_without_peft_is_peft_s_merge_bit_for_bit(trunk: Hiera, settings: Lora) -> None:
    ours = copy.deepcopy(trunk)
    add_lora(trunk, settings)
    disturb(trunk)
    add_folding_lora(ours, settings)
    assert any(isinstance(module, FoldingLora) for module in ours.modules())
    ours.load_state_dict(trunk.state_dict())
    merge_lora(trunk)
    merge_lora(ours)
    assert list(ours.state_dict()) == list(trunk.state_dict())
    torch.testing.assert_close(ours.state_dict(), trunk.state_dict(), rtol=0, atol=0)


def test_dora_is_folded_by_peft(trunk: Hiera) -> None:
    add_folding_lora(trunk, Lora(dora=True))
    assert not any(isinstance(module, FoldingLora) for module in trunk.modules()) and has_lora(trunk)
    merge_lora(trunk)
    assert not has_lora(trunk)


def test_a_target_that_an_encoder_has_not_is_refused(trunk: Hiera) -> None:
    with pytest.raises(UsageError, match=r"model\.lora\.targets: encoder HieraEncoder has no target 'mlp' \(known: q,"):
        add_lora(trunk, Lora().model_copy(update={"targets": ("mlp",)}))
