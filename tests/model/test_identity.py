"""Which network a checkpoint is of is read off its tensors; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memorysam_cli.errors import WeightsError
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.model.reference import Identity, identify, reference_shapes, unwrapped
from memorysam_cli.recipe import BACKBONES

State = dict[str, Tensor]


def empty(backbone: str, *, tokens: int = 25, rank: int = 4) -> State:
    shapes = reference_shapes(backbone, tokens=tokens, rank=rank)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("tokens", "rank"), [(25, 4), (7, 16)])
def test_backbone_rank_and_tokens_are_read_off_the_tensors(backbone: str, tokens: int, rank: int) -> None:
    state = empty(backbone, tokens=tokens, rank=rank)
    assert identify(state, where="x") == Identity(backbone=backbone, rank=rank, tokens=tokens)


def test_the_prefix_of_data_parallel_training_is_taken_off() -> None:
    state = empty("nano")
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    assert unwrapped(wrapped).keys() == unwrapped(state).keys() == state.keys()
    half = dict(list(wrapped.items())[:3]) | dict(list(state.items())[3:])
    assert unwrapped(half).keys() == half.keys(), "a mixture is not a wrapper"


def without(*words: str) -> Callable[[State], State]:
    return lambda state: {name: t for name, t in state.items() if not any(word in name for word in words)}


def whole_numbers(state: State) -> State:
    return state | {"sam.no_mem_embed": state["sam.no_mem_embed"].long()}


FAULTS: dict[str, tuple[Callable[[State], State], tuple[str, ...]]] = {
    "one missing": (without("sam.no_mem_embed"), ("647 of the 648", "sam2-hiera-tiny", "1 missing (sam.no_mem_embed)")),
    "one extra": (
        lambda s: s | {"sam.surprise": s["sam.no_mem_embed"]},
        ("648 of the 648", "1 unknown (sam.surprise)"),
    ),
    "one of another shape": (
        lambda s: s | {"sam.no_mem_embed": torch.empty(1, 1, 8)},
        ("1 of another shape (sam.no_mem_embed is (1, 1, 8), not (1, 1, 256))",),
    ),
    "three tensors": (lambda s: dict(list(s.items())[-3:]) | {"sam.image_encoder.x": torch.empty(1)}, ("645 missing",)),
    "no LoRA": (without("linear_"), ("600 of the 648 tensors", "linear_a_q")),
    "no prefix": (lambda s: {n.removeprefix("sam."): t for n, t in s.items()}, ("lack the prefix 'sam.'",)),
    "another model": (lambda s: {"fc.weight": torch.empty(1)}, ("none of its 1 tensors", "'fc.weight'")),
    "whole numbers": (whole_numbers, ("sam.no_mem_embed hold whole numbers",)),
    "a name in two lines": (lambda s: s | {"sam.a\nb": torch.empty(1)}, (r"sam.a\nb",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_tensor_is_accounted_for(fault: str) -> None:
    change, words = FAULTS[fault]
    with pytest.raises(WeightsError) as caught:
        identify(change(empty("sam2-hiera-tiny")), where="x.pth")
    said = str(caught.value)
    assert said.startswith("x.pth: ") and "\n" not in said
    assert not [word for word in words if word not in said], said


def test_sam2s_own_checkpoint_is_told_apart() -> None:
    with torch.device("cpu"):
        state = build_sam2("nano", tokens=3).state_dict()
    with pytest.raises(WeightsError, match=r"SAM 2's own weights.*model\.base_weights=x\.pt"):
        identify(dict(state), where="x.pt")
