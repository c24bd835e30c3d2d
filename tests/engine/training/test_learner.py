"""One batch of learning: groups, rate, accumulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memorysam_cli.data.loader import Batch
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import runtime
from memorysam_cli.engine.training.learner import Learner, make_optimizer
from memorysam_cli.errors import UsageError
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.recipe import Optim, Recipe


def learner_of(recipe: Recipe, manifest: Manifest, *, accumulate: int = 1) -> Learner:
    network = build_for_training(recipe, manifest.info)
    for module in network.modules():  # dropout off, so that halves can be compared with wholes
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_p"):
            module.dropout_p = 0.0
    accelerator = runtime.make_accelerator(torch.device("cpu"), precision="fp32", accumulate=accumulate)
    return Learner(network, recipe, accelerator=accelerator)


def batch_of(scenes: int, *, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(scenes, 3, 64, 64, generator=generator) for _ in range(2)]
    return Batch(frames, torch.randint(0, 25, (scenes, 64, 64), generator=generator), ())


def test_weights_decay_and_one_dimensional_parameters_do_not() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([vector, matrix], Optim(lr=0.1, weight_decay=0.5))
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
    torch.testing.assert_close(vector.detach(), torch.ones(2))


def test_the_rate_reaches_the_optimiser(small: Recipe, rendered: Manifest) -> None:
    learner = learner_of(small, rendered)
    token = learner.parameters["sam.no_mem_embed"]
    before = token.detach().clone()
    learner.learn(batch_of(2), rate=0.0)
    torch.testing.assert_close(token.detach(), before, rtol=0, atol=0)
    learner.learn(batch_of(2), rate=0.01)
    # Adam's second step is about the rate in size, whatever the gradient.
    assert 0.001 < float((token.detach() - before).abs().max()) < 0.02


def test_an_accumulation_updates_once_and_reports_its_mean(small: Recipe, rendered: Manifest) -> None:
    plain = small.model_copy(update={"spmm": small.spmm.model_copy(update={"variant": "off"})})
    learner = learner_of(plain, rendered, accumulate=2)
    before = learner.parameters["sam.no_mem_embed"].detach().clone()
    first = learner.learn(batch_of(1, seed=1), rate=0.01)
    assert not first.is_complete
    torch.testing.assert_close(learner.parameters["sam.no_mem_embed"].detach(), before, rtol=0, atol=0)
    second = learner.learn(batch_of(1, seed=2), rate=0.01)
    assert second.is_complete and not torch.equal(learner.parameters["sam.no_mem_embed"], before)
    alone = learner_of(plain, rendered).learn(batch_of(1, seed=1), rate=0.0).loss
    assert first.loss == pytest.approx(alone, rel=1e-6)
    other = learner_of(plain, rendered).learn(batch_of(1, seed=2), rate=0.0).loss
    assert second.loss == pytest.approx((alone + other) / 2, rel=1e-6)


def test_a_fault_late_in_an_accumulation_undoes_all_of_it(small: Recipe, rendered: Manifest) -> None:
    learner = learner_of(small, rendered, accumulate=2)
    learner.learn(batch_of(1, seed=1), rate=0.01), learner.learn(batch_of(1, seed=2), rate=0.01)
    before: dict[str, Any] = {name: value.clone() for name, value in learner.state().items()}
    random = torch.get_rng_state()
    learner.learn(batch_of(1, seed=3), rate=0.01)
    torch.rand(5)
    bad = batch_of(1, seed=4)
    lesson = learner.learn(Batch([frame * float("nan") for frame in bad.frames], bad.label, ()), rate=0.01)
    assert not lesson.is_finite
    torch.testing.assert_close(learner.state(), before, rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), random, rtol=0, atol=0)


def test_the_recipe_decides_the_accumulation_and_not_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    made = runtime.make_accelerator(torch.device("cpu"), precision="fp32", accumulate=2)
    assert made.gradient_accumulation_steps == 2


def test_fp16_on_a_cpu_is_refused_and_not_turned_into_fp32() -> None:
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        runtime.make_accelerator(torch.device("cpu"), precision="fp16")


@pytest.mark.parametrize("name", ["cpu:", "cpu:0", "cuda:x", "gpu", ""])
def test_what_is_no_device_is_a_wrong_option(name: str) -> None:
    with pytest.raises(UsageError, match="is no device"):
        runtime.choose_device(name)
