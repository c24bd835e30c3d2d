"""The plain network and its training step equal ours; the network that the twin is made of stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memorysam_cli import recipe as recipes
from memorysam_cli.engine import runtime
from memorysam_cli.engine.measure.plain import Plain, PlainLearner, PlainPrototypes, plain_ohem
from memorysam_cli.engine.measure.workload import made_up_batch, made_up_dataset
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.model import Segmenter
from memorysam_cli.model.lora import merge_lora
from memorysam_cli.model.weights import build_for_measuring
from memorysam_cli.recipe import Ohem, Recipe, Spmm

CLASSES = 5
TWO = "data.modalities=[img, depth]"


def recipe_of(backbone: str = "nano", *overrides: str) -> Recipe:
    return recipes.load(
        "deliver",
        [f"model.backbone={backbone}", "data.image_size=64", "train.batch=2", "spmm.weight=10", *overrides],
    )


def network_of(recipe: Recipe, *, score: float = 5.0) -> Segmenter:
    """Random weights, LoRA with effect, dropout off; ``score`` decides whether the gates are open."""
    network = build_for_measuring(recipe, made_up_dataset(recipe, classes=CLASSES))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random))
        network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(score)
    stop_dropout(network)
    return network


def stop_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_p"):
            module.dropout_p = 0.0


def twin_of(network: Segmenter) -> Plain:
    twin = Plain(network, backbone=network.card.recipe.model.backbone)
    stop_dropout(twin)
    return twin


@pytest.mark.parametrize(
    ("backbone", "gate"),
    [
        *(("nano", gate) for gate in ("open", "closed", "off")),
        *(pytest.param("sam2.1-hiera-tiny", gate, marks=pytest.mark.slow) for gate in ("open", "closed", "off")),
    ],
)
def test_the_logits_are_those_of_our_network(backbone: str, gate: str) -> None:
    recipe = recipe_of(backbone, f"model.object_gate={'false' if gate == 'off' else 'true'}")
    network = network_of(recipe, score=5.0 if gate == "open" else -5.0).eval()
    batch = made_up_batch(recipe, classes=CLASSES)
    with torch.no_grad():
        wanted = network.logits(batch.frames)
        found = twin_of(network)(batch.frames)
    # Closed gates: −1024 in float32 takes the low digits, in the reference as here.
    torch.testing.assert_close(found.logits, wanted, rtol=1e-5, atol=1e-5)
    assert bool((found.logits == -1024).all()) == (gate == "closed")


@pytest.mark.parametrize(
    ("variant", "saver"),
    [("reference", "on"), *(pytest.param(variant, "off", marks=pytest.mark.slow) for variant in ("paper", "off"))],
)
def test_losses_and_gradients_are_those_of_our_learner(variant: str, saver: str) -> None:
    recipe = recipe_of("nano", TWO, f"spmm.variant={variant}", f"train.saver={saver}")
    network = network_of(recipe)
    batches = [made_up_batch(recipe, classes=CLASSES, seed=seed) for seed in (0, 1)]
    plain = PlainLearner(twin_of(network), recipe)
    ours = Learner(
        network, recipe, accelerator=runtime.make_accelerator(torch.device("cpu"), precision=recipe.train.precision)
    )
    for batch in batches:  # the second one finds prototypes
        losses, gradients = gradients_of(network, lambda batch=batch: plain.learn(batch, rate=0.0))
        found, wanted = gradients_of(network, lambda batch=batch: ours.learn([batch], rate=0.0))
        torch.testing.assert_close(losses, (found.loss, *found.terms.values()), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-6)


def gradients_of(network: Segmenter, work: Callable[[], Any]) -> tuple[Any, dict[str, Tensor]]:
    """What some work gives, and the gradients that it leaves at the parameters on its way."""
    seen: dict[str, Tensor] = {}
    hooks = [
        parameter.register_post_accumulate_grad_hook(
            lambda parameter, name=name: seen.update({name: parameter.grad.clone()})
        )
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    ]
    network.zero_grad(set_to_none=True)
    result = work()
    for hook in hooks:
        hook.remove()
    network.zero_grad(set_to_none=True)
    return result, seen


def test_the_network_stays_as_it_was() -> None:
    recipe = recipe_of("nano", TWO)
    network = network_of(recipe)
    before, modules = {n: t.clone() for n, t in network.state_dict().items()}, dict(network.named_modules())
    random = torch.get_rng_state()
    twin = twin_of(network).eval()
    with torch.no_grad():
        twin(made_up_batch(recipe, classes=CLASSES).frames)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert dict(network.named_modules()) == modules and network.training
    assert torch.equal(torch.get_rng_state(), random)


def test_a_merged_network_has_a_twin_too() -> None:
    recipe = recipe_of("nano", TWO)
    network = network_of(recipe).eval()
    batch = made_up_batch(recipe, classes=CLASSES)
    with torch.no_grad():
        wanted = twin_of(network)(batch.frames)
        merge_lora(network.sam.image_encoder.trunk)
        found = twin_of(network)(batch.frames)
    torch.testing.assert_close(tuple(found), tuple(wanted), rtol=1e-4, atol=1e-4)


def test_an_update_moves_the_parameters_of_both() -> None:
    recipe = recipe_of("nano", TWO)
    network = network_of(recipe)
    token = network.sam.no_mem_embed.detach()  # sees what an optimizer does
    before = token.clone()
    learner = PlainLearner(twin_of(network), recipe)
    learner.learn(made_up_batch(recipe, classes=CLASSES), rate=0.01)
    # Adam's first step is the rate in size, whatever the gradient.
    assert float((token - before).abs().max()) == pytest.approx(0.01, rel=1e-3)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    "overrides", [["model.lora.dora=true"], ["model.lora.dropout=0.1"], ["model.lora.targets=[q, proj]"]]
)
def test_lora_that_the_reference_does_not_have_is_refused(overrides: list[str]) -> None:
    network = network_of(recipe_of("nano", *overrides))
    with pytest.raises(ValueError, match="LoRA: the reference"):
        twin_of(network)


def test_rectangles_are_refused() -> None:
    with pytest.raises(ValueError, match="64×96 pixels; the plain network sees squares alone"):
        twin_of(network_of(recipe_of()))([torch.zeros(1, 3, 64, 96)])


def test_ohem_by_hand() -> None:
    logits = torch.tensor([[4.0, 0.0, 3.0, 0.0], [0.0, 4.0, 0.0, 0.0]]).view(1, 2, 1, 4)
    label = torch.tensor([[[0, 0, 0, 255]]])
    easy, hard, middle = (float(F.softplus(torch.tensor(x))) for x in (-4.0, 4.0, -3.0))
    one = plain_ohem(logits, label, settings=Ohem(threshold=0.7, min_kept=0.5))
    assert float(one) == pytest.approx(hard)
    two = plain_ohem(logits, label, settings=Ohem(threshold=0.01, min_kept=0.7))  # 3 × 0.7: two pixels
    assert float(two) == pytest.approx((hard + middle) / 2)
    assert easy < middle < -math.log(0.7)
    none = plain_ohem(logits, torch.full_like(label, 255), settings=Ohem())
    assert float(none) == 0


@pytest.mark.parametrize("variant", ["reference", "paper"])
def test_prototypes_by_hand(variant: Literal["reference", "paper"]) -> None:
    features = torch.tensor([[[[1.0, 3.0], [8.0, 9.0]]]])  # one channel; class 0 has 1 and 3, class 1 none, 8 ignored
    label = torch.tensor([[[0, 0], [255, 255]]])
    prototypes = PlainPrototypes(2, width=1, settings=Spmm(variant=variant, weight=1), device=torch.device("cpu"))
    # reference: p = (1 + 3)/2/2 = 1, G = 0.2, (1 − 0.2)² over its 25 classes; paper: first seen, so 0
    assert float(prototypes(features, label)) == pytest.approx(0.64 / 25 if variant == "reference" else 0.0)
    second = float(prototypes(2 * features, label))
    # reference: p = 2, G = 0.8·0.2 + 0.4 = 0.56, (2 − 0.56)² / 25; paper: (4 − 2)²
    assert second == pytest.approx(2.0736 / 25 if variant == "reference" else 4.0)
