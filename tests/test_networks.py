"""A copy of a network that was built once is what building it again gives, and shares no memory with another copy."""

from __future__ import annotations

import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.model import WeightsCard, weights

from . import networks

KINDS = (
    (), ("train.seed=5",), ("data.modalities=[img]",), ("model.object_gate=false",), ("model.fusion=two_pass",),
    ("model.modality_embedding=true",),
)  # fmt: skip


def card_of(*changes: str, classes: int = 3) -> WeightsCard:
    recipe = recipes.load("deliver", ["model.backbone=nano", *changes])
    info = DatasetInfo(
        name="deliver", title="D", classes=tuple(f"class {number}" for number in range(classes)),
        palette=tuple((number, 0, 0) for number in range(classes)),
        modalities=tuple(Modality(name=name, kind="rgb") for name in recipe.data.modalities),
    )  # fmt: skip
    return weights._blank_card(recipe, info)


def test_a_copy_is_what_is_built_whatever_was_built_before() -> None:
    cards = [*(card_of(*changes) for changes in KINDS), card_of(classes=2)]
    with weights.Undrawn():
        networks.BUILD(cards[0])
    first = [networks.BUILD(card) for card in cards]
    frames = [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))]
    for card, other in zip(cards, first, strict=True):
        honest, found = weights.build(card), networks.BUILD(card)
        assert found is not other and found.card is card
        wanted, state = honest.state_dict(), found.state_dict()
        assert list(wanted) == list(state) and all(torch.equal(wanted[name], state[name]) for name in wanted)
        assert [type(module) for module in honest.modules()] == [type(module) for module in found.modules()]
        assert [(name, each.requires_grad) for name, each in honest.named_parameters()] == [
            (name, each.requires_grad) for name, each in found.named_parameters()
        ]
        assert (honest.classes, honest.object_gate) == (found.classes, found.object_gate)
        places = [{tensor.data_ptr() for tensor in each.state_dict().values()} for each in (other, found)]
        assert not places[0] & places[1]
        with torch.inference_mode():
            results = [each.eval().logits(frames, sensors=[0]) for each in (honest, found)]
        assert torch.equal(*results)
