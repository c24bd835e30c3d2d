"""One update: groups, rate, exact accumulation, the memory saver, and what must not reach the weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memorysam_cli.data.loader import Batch
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import runtime
from memorysam_cli.engine.train.objective import Draw, draw
from memorysam_cli.engine.train.update import Learner, make_optimizer, starts_saving
from memorysam_cli.model.fusion import Output
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.recipe import Optim, Recipe


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def learner_of(recipe: Recipe, manifest: Manifest, *, has_dropout: bool = False) -> Learner:
    network = build_for_training(recipe, manifest.info)
    for module in network.modules():
        if isinstance(module, nn.Dropout) and not has_dropout:
            module.p = 0.0
        if hasattr(module, "dropout_p") and not has_dropout:
            module.dropout_p = 0.0
    accelerator = runtime.make_accelerator(torch.device("cpu"), precision=recipe.train.precision)
    return Learner(network, recipe, accelerator=accelerator)


def batch_of(scenes: int, *, seed: int = 0) -> Batch:
    """Random pixels; classes that random weights find easy and hard, and some that count nowhere."""
    generator = torch.Generator().manual_seed(seed)
    frames = [torch.randn(scenes, 3, 64, 64, generator=generator) for _ in range(2)]
    label = torch.randint(0, 26, (scenes, 64, 64), generator=generator)
    return Batch(frames, torch.where(label == 25, 255, label), ())


def part(batch: Batch, rows: slice) -> Batch:
    assert batch.label is not None
    return Batch([frame[rows] for frame in batch.frames], batch.label[rows], ())


def learnt(
    learner: Learner, batches: Sequence[Batch], subset: Draw | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The terms and the gradients of an update that is not made."""
    found = learner.gradients.add(batches, subset or draw(learner.recipe, None)).tolist()
    gradients = {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}
    learner.optimizer.zero_grad(set_to_none=True)
    return dict(zip(learner.objective.terms, found, strict=True)), gradients


def gradients_of(learner: Learner, batches: Sequence[Batch]) -> dict[str, Tensor]:
    return learnt(learner, batches)[1]


def nan(batch: Batch) -> Batch:
    return Batch([frame * float("nan") for frame in batch.frames], batch.label, batch.scenes)


def test_weights_decay_and_one_dimensional_parameters_do_not() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([vector, matrix], Optim(lr=0.1, weight_decay=0.5))
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
    torch.testing.assert_close(vector.detach(), torch.ones(2))


def test_the_rate_reaches_the_optimizer(small: Recipe, rendered: Manifest) -> None:
    learner = learner_of(small, rendered)
    token = learner.parameters["sam.no_mem_embed"]
    before = token.detach().clone()
    learner.learn([batch_of(2)], rate=0.0)
    torch.testing.assert_close(token.detach(), before, rtol=0, atol=0)
    learner.learn([batch_of(2)], rate=0.01)
    # Adam's second step is about the rate in size, whatever the gradient.
    assert 0.001 < float((token.detach() - before).abs().max()) < 0.02


UNEVEN, SINGLE, EVEN = (0, 3, 4), (0, 1, 2, 3, 4), (0, 2, 4)
"""Where four scenes are cut into batches."""
ALWAYS = [(UNEVEN, "paper"), (SINGLE, "reference")]
MORE = [(UNEVEN, "reference"), (SINGLE, "paper"), (EVEN, "paper"), (EVEN, "reference")]


@pytest.mark.parametrize(
    ("cuts", "variant"), [*ALWAYS, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_accumulated_batches_are_one_large_batch(
    cuts: tuple[int, ...], variant: str, small: Recipe, rendered: Manifest
) -> None:
    """Losses, gradients, prototypes; scenes of which one has all the hard pixels, and one no label."""
    recipe = changed(changed(small, "spmm", variant=variant, weight=10.0), "ohem", threshold=0.03)
    whole = batch_of(4)
    assert whole.label is not None
    whole.label[3] = 255
    whole.label[0, :50] = 255
    parts = [part(whole, slice(*pair)) for pair in itertools.pairwise(cuts)]
    one, many = learner_of(recipe, rendered), learner_of(recipe, rendered)
    wanted_step, step = one.learn([whole], rate=0.0), many.learn(parts, rate=0.0)
    assert list(step.terms) == ["ohem", "spmm"]
    assert step.terms == pytest.approx(wanted_step.terms, rel=1e-5)
    assert step.gradient_norm == pytest.approx(wanted_step.gradient_norm, rel=1e-5)
    (terms, wanted), (found_terms, found) = learnt(one, [whole]), learnt(many, parts)  # now there are prototypes
    assert found_terms == pytest.approx(terms, rel=1e-5) and terms["spmm"] != wanted_step.terms["spmm"]
    assert wanted.keys() == found.keys() == one.parameters.keys()
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=name)
    assert one.objective.state().keys() == {"spmm/prototypes", "spmm/seen"}
    torch.testing.assert_close(many.objective.state(), one.objective.state(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_a_batch_gives_the_same_outputs_both_times_dropout_included(
    precision: str, small: Recipe, rendered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(changed(small, "train", precision=precision), rendered, has_dropout=True)
    seen: list[Output] = []
    honest = learner.network.forward

    def watched(*arguments: Any, **options: Any) -> Any:
        found = honest(*arguments, **options)
        seen.append(Output(*(part.detach().clone() for part in found[0].output)))
        return found

    monkeypatch.setattr(learner.network, "forward", watched)
    torch.manual_seed(3)
    learner.learn([batch_of(1, seed=1), batch_of(1, seed=2), batch_of(1, seed=3)], rate=0.0)
    after = torch.get_rng_state()
    assert len(seen) == 5  # the last batch runs once
    torch.testing.assert_close(seen[4], seen[0], rtol=0, atol=0)
    torch.testing.assert_close(seen[3], seen[1], rtol=0, atol=0)
    torch.manual_seed(3)
    with torch.no_grad(), learner.accelerator.autocast():
        for seed in (1, 2, 3):
            honest(batch_of(1, seed=seed).frames)
    torch.testing.assert_close(torch.get_rng_state(), after, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [0, 1])
def test_a_fault_anywhere_in_an_accumulation_undoes_all_of_it(bad: int, small: Recipe, rendered: Manifest) -> None:
    learner = learner_of(small, rendered, has_dropout=True)
    learner.learn([batch_of(1, seed=1), batch_of(1, seed=2)], rate=0.01)
    before: dict[str, Any] = {name: value.clone() for name, value in learner.state().items()}
    weights = {name: value.detach().clone() for name, value in learner.parameters.items()}
    random = torch.get_rng_state()
    batches = [batch_of(1, seed=3), batch_of(1, seed=4)]
    batches[bad] = nan(batches[bad])
    result = learner.learn(batches, rate=0.01)
    assert not result.is_finite
    torch.testing.assert_close(learner.state(), before, rtol=0, atol=0)
    torch.testing.assert_close(dict(learner.parameters), weights, rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), random, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in learner.parameters.values())


def test_batches_without_a_label_are_counted_and_teach_nothing(small: Recipe, rendered: Manifest) -> None:
    learner = learner_of(changed(small, "spmm", variant="off"), rendered)
    batches = [batch_of(1), batch_of(1)]
    for batch in batches:
        assert batch.label is not None
        batch.label[:] = 255
    result = learner.learn([*batches, batch_of(1)], rate=0.0)
    assert result.all_ignored == 2 and result.is_finite and result.terms["spmm"] == 0.0
    alone = learner.learn(batches, rate=0.0)
    assert (alone.loss, alone.gradient_norm, alone.all_ignored) == (0.0, 0.0, 2)


def test_work_for_the_meantime_is_done_before_the_update(small: Recipe, rendered: Manifest) -> None:
    learner = learner_of(small, rendered)
    before = learner.parameters["sam.no_mem_embed"].detach().clone()
    seen: list[Tensor] = []
    learner.learn([batch_of(1)], rate=0.1, meanwhile=lambda: seen.append(before.clone()))
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], before, rtol=0, atol=0)
    assert not torch.equal(learner.parameters["sam.no_mem_embed"], before)


def short_of_memory(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network run out of memory, late in a forward pass with gradients, until its saver is on."""
    honest = learner.network.forward

    def hungry(*arguments: Any, **options: Any) -> Any:
        found = honest(*arguments, **options)
        if found[0].output.logits.requires_grad and not learner.network.saver:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found

    monkeypatch.setattr(learner.network, "forward", hungry)


def test_out_of_memory_switches_the_saver_on_and_repeats_the_same_update(
    small: Recipe, rendered: Manifest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = [batch_of(1, seed=1), batch_of(1, seed=2)]
    plain, hungry = (learner_of(small, rendered, has_dropout=True) for _ in range(2))
    torch.manual_seed(4)
    wanted = [plain.learn(some, rate=0.01) for some in (batches, batches[:1])]
    short_of_memory(hungry, monkeypatch)
    torch.manual_seed(4)
    found = [hungry.learn(some, rate=0.01) for some in (batches, batches[:1])]
    assert found == wanted and hungry.network.saver
    torch.testing.assert_close(hungry.state(), plain.state(), rtol=0, atol=0)
    assert capsys.readouterr().err.count("continuing with train.saver=on") == 1


def test_out_of_memory_is_told_where_the_recipe_wants_no_saver(
    small: Recipe, rendered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(changed(small, "train", saver="off"), rendered)
    short_of_memory(learner, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        learner.learn([batch_of(1)], rate=0.01)


@pytest.mark.parametrize(
    ("saver", "backbone", "device", "wanted"),
    [
        ("auto", "nano", "cpu", False),
        ("auto", "sam2-hiera-tiny", "cpu", True),
        ("auto", "sam2-hiera-tiny", "mps", True),
        ("auto", "sam2-hiera-large", "cuda", False),
        ("on", "nano", "cpu", True),
        ("off", "sam2-hiera-tiny", "cpu", False),
    ],
)
def test_where_memory_is_saved_from_the_start(
    saver: str, backbone: str, device: str, wanted: bool, small: Recipe
) -> None:
    recipe = changed(changed(small, "train", saver=saver), "model", backbone=backbone, base_weights="published")
    assert starts_saving(recipe, torch.device(device)) is wanted


def test_the_learner_decides_the_accumulation_and_not_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    made = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    assert made.gradient_accumulation_steps == 1
