"""A copy of a network that was built once is what building it again gives, and shares no memory with another copy."""

from __future__ import annotations

import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.data import layout_of
from memorysam_cli.model import weights
from memorysam_cli.model.network import MemorySAM

from . import networks


@pytest.mark.parametrize("changes", [(), ("model.fusion=two_pass", "model.modality_embedding=true", "train.seed=5")])
def test_a_copy_is_what_is_built(changes: tuple[str, ...]) -> None:
    recipe = recipes.load("deliver", ["model.backbone=nano", *changes])
    card = weights._blank_card(recipe, layout_of("deliver").info())
    honest, first, second = weights.build(card), networks.BUILD(card), networks.BUILD(card)
    assert first is not second and second.card is card
    wanted, found = honest.state_dict(), second.state_dict()
    assert list(wanted) == list(found) and all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert [type(module) for module in honest.modules()] == [type(module) for module in second.modules()]
    assert [each.requires_grad for each in honest.parameters()] == [each.requires_grad for each in second.parameters()]
    places = [{tensor.data_ptr() for tensor in each.state_dict().values()} for each in (first, second)]
    assert not places[0] & places[1]
    frames = [torch.rand(1, 3, 64, 64) for _ in recipe.data.modalities]
    with torch.inference_mode():
        results = [MemorySAM.logits(each.eval(), frames) for each in (honest, second)]
    assert torch.equal(*results)
