"""Training for failing sensors: which subsets are drawn, what is learned of them, and that updates stay exact."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.checkpoints import Position
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.engine.train.objective import Draw, Moment, draw
from memorysam_cli.engine.train.start import introduction
from memorysam_cli.errors import DataError, UsageError, WeightsError
from memorysam_cli.losses.loss import LossInputs, Task
from memorysam_cli.losses.ohem import ohem_mean, pixel_losses
from memorysam_cli.losses.robust import PrefixLoss, SingleLoss, TeacherLoss
from memorysam_cli.model import load
from memorysam_cli.model.weights import build_for_training, save
from memorysam_cli.recipe import LossSettings, Recipe, Teacher
from memorysam_cli.storage import tensors

from .test_learner import batch_of, learner_of, learnt, nan, part
from .test_trainer import accelerator, changed, gone_on, start, state_of, without_clock

FOUR = ("img", "depth", "event", "lidar")


def robust(
    recipe: Recipe,
    *,
    single: float = 0.0,
    modalities: Sequence[str] = (),
    teacher: dict[str, Any] | None = None,
    **subset: Any,
) -> Recipe:
    """A recipe with a second pass, and maybe its teacher, and a loss of each sensor by itself."""
    content = recipe.model_dump(mode="json")
    content["robust"]["subset"] |= {"weight": 1.0, **subset}
    content["robust"]["teacher"] |= teacher or {}
    if single:
        content["losses"] = {"single": {"weight": single}}
    if modalities:
        content["data"]["modalities"] = list(modalities)
    return recipes.parse(content, where="test")


def drawn(recipe: Recipe, count: int) -> list[Draw]:
    return [draw(recipe, Moment(number // 100, number % 100, epochs=1.0)) for number in range(count)]


def test_every_number_of_sensors_is_as_likely_and_each_has_its_odds(small: Recipe) -> None:
    """Four sensors, lidar's odds 3. Alone: lidar 3/6 of a third. Not among three: 3/6 · 2/5 · 1/4 = 1/20 of a third."""
    found = drawn(robust(small, modalities=FOUR, weak=["lidar"], weak_odds=3), 6000)
    sets = Counter(each.places for each in found)
    assert set(sets) == {some for size in (1, 2, 3) for some in itertools.combinations(range(4), size)}
    for size in (1, 2, 3):
        share = sum(count for some, count in sets.items() if len(some) == size) / 6000
        assert share == pytest.approx(1 / 3, abs=0.02)
    for some, share in {(3,): 3 / 6 / 3, (0,): 1 / 6 / 3, (0, 1, 2): 1 / 20 / 3}.items():
        assert sets[some] / 6000 == pytest.approx(share, abs=0.015), some
    assert {each.ramp for each in found} == {1.0}


def test_absent_sensors_are_zeros_as_often_as_the_recipe_says(small: Recipe) -> None:
    """In their own places: (0, 5, 2, 7) is the first and the third of four, and zeros for the others."""
    found = [each.places for each in drawn(robust(small, modalities=FOUR, zeroed=0.25), 2000)]
    zeroed = [places for places in found if max(places) >= 4]
    assert len(zeroed) / 2000 == pytest.approx(0.25, abs=0.03)
    for places in zeroed:
        assert len(places) == 4 and all(place in (own, 4 + own) for own, place in enumerate(places))
        assert 1 <= sum(place >= 4 for place in places) <= 3
    assert all(max(each.places) >= 4 for each in drawn(robust(small, modalities=FOUR, zeroed=1.0), 50))


def test_a_draw_is_of_seed_epoch_and_update_and_takes_no_other_random_number(small: Recipe) -> None:
    recipe = robust(small, modalities=FOUR, zeroed=0.5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    first = drawn(recipe, 40)
    assert first == drawn(recipe, 40) == drawn(changed(recipe, "train", batch=1, accumulate=5), 40)
    assert first != drawn(changed(recipe, "train", seed=6), 40)
    assert draw(recipe, Moment(0, 1, 1.0)) != draw(recipe, Moment(1, 0, 1.0))
    torch.testing.assert_close(torch.get_rng_state(), before[0], rtol=0, atol=0)
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


def test_the_weight_grows_in_a_line_and_the_largest_pass_is_measured(small: Recipe) -> None:
    recipe = robust(small, ramp_epochs=2.0)
    ramps = [draw(recipe, Moment(0, 0, epochs)).ramp for epochs in (1 / 8, 1.0, 2.0, 9.0)]
    assert ramps == [1 / 16, 0.5, 1.0, 1.0]
    assert draw(robust(small, modalities=FOUR), None) == ((0, 1, 2, 3), (1, 2, 3), 1.0)
    assert draw(robust(small, modalities=FOUR, zeroed=0.1), None) == ((0, 1, 2, 3), (4, 1, 2, 3), 1.0)
    assert draw(small, None) == draw(small, Moment(0, 0, 1.0)) == ((0, 1), (), 1.0)


def test_the_order_is_of_seed_epoch_and_update_each_as_likely_and_the_second_pass_keeps_it(small: Recipe) -> None:
    """2,400 draws of 24 orders: 100 each, with a deviation of 10; the bounds are 4 deviations away."""
    recipe = changed(robust(small, modalities=FOUR, zeroed=0.5), "model", order="shuffled")
    found = drawn(recipe, 2400)
    counts = Counter(each.order for each in found)
    assert (
        set(counts) == {*itertools.permutations(range(4))} and 60 <= min(counts.values()) <= max(counts.values()) < 140
    )
    for each in found:
        assert [place for place in each.order if place in each.places] == [place for place in each.places if place < 4]
        assert len(each.places) < 4 or tuple(place % 4 for place in each.places) == each.order
    again = drawn(changed(recipe, "train", batch=1, accumulate=5), 40)
    assert found[:40] == again and found[:40] != drawn(changed(recipe, "train", seed=6), 40)
    in_order = drawn(changed(recipe, "model", order="recipe"), 40)
    for each, plain in zip(again, in_order, strict=True):  # the same subsets, whatever the order
        assert plain.order == (0, 1, 2, 3) and sorted(each.places) == sorted(plain.places)


def test_a_recipe_says_which_subsets_it_trains(small: Recipe) -> None:
    pairs = ("img", "depth"), ("img",), ("depth",)
    assert small.trained_subsets(zeroed=False) == small.trained_subsets(zeroed=True) == pairs[:1]
    assert robust(small).trained_subsets(zeroed=False) == robust(small, zeroed=1).trained_subsets(zeroed=True) == pairs
    assert (
        robust(small).trained_subsets(zeroed=True) == robust(small, zeroed=1).trained_subsets(zeroed=False) == pairs[:1]
    )
    both = robust(small, zeroed=0.5, modalities=FOUR)
    assert len(both.trained_subsets(zeroed=True)) == len(both.trained_subsets(zeroed=False)) == 15


@pytest.mark.parametrize("places", [(1,), (2, 1)], ids=["dropped", "zeroed"])
def test_terms_are_those_of_passes_by_themselves_over_shared_encodings(
    places: tuple[int, ...], small: Recipe, rendered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weight 0.5, ramp 0.5: a quarter of the OHEM of what the network says of these frames alone."""
    learner, batch = learner_of(robust(small, single=2.0, weight=0.5), rendered), batch_of(2)
    encoded: list[int] = []
    honest = learner.network._pyramid
    monkeypatch.setattr(learner.network, "_pyramid", lambda images: (encoded.append(len(images)), honest(images))[1])
    terms, _ = learnt(learner, [batch], Draw((0, 1), places, ramp=0.5))
    assert encoded == ([4, 1] if 2 in places else [4])
    pool = [*batch.frames, torch.zeros_like(batch.frames[0])]
    assert batch.label is not None
    with torch.no_grad():
        apart = learner.network([pool[place] for place in places]).logits[:, :25]
        whole = learner.network(batch.frames).logits[:, :25]
        first = learner.network(batch.frames[:1]).logits[:, :25]
        alone = [first, 2 * whole - first]  # what the second says is twice the mean less the first
        single = torch.stack([pixel_losses(logits, batch.label).sum() for logits in alone]).sum()
    assert terms["subset"] == pytest.approx(0.25 * float(ohem_mean(pixel_losses(apart, batch.label), batch.label)))
    assert terms["ohem"] == pytest.approx(float(ohem_mean(pixel_losses(whole, batch.label), batch.label)))
    assert terms["single"] == pytest.approx(2 * float(single) / (2 * int((batch.label != 255).sum())), rel=1e-5)


@pytest.mark.parametrize("places", [(1,), (2, 1)], ids=["dropped", "zeroed"])
def test_accumulated_batches_are_one_large_batch(places: tuple[int, ...], small: Recipe, rendered: Manifest) -> None:
    """The scenes have labels of unlike numbers of pixels, and one has none."""
    recipe, whole = robust(small, single=0.5, weight=0.7, teacher={"weight": 50.0}), batch_of(4)
    assert whole.label is not None
    whole.label[3] = 255
    whole.label[0, :50] = 255
    parts = [part(whole, slice(*rows)) for rows in ((0, 1), (1, 3), (3, 4))]
    one, many = (
        learnt(learner_of(recipe, rendered), batches, Draw((0, 1), places, 0.8)) for batches in ([whole], parts)
    )
    assert many[0] == pytest.approx(one[0], rel=1e-4)
    assert min(one[0][name] for name in ("subset", "teacher", "single")) > 0
    for name, gradient in one[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(many[1][name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-8, msg=name)


def test_each_sensor_of_the_subset_gets_a_gradient_and_no_other(small: Recipe, rendered: Manifest) -> None:
    learner, batch = learner_of(robust(small, modalities=FOUR), rendered), batch_of(1)
    frames = [batch.frames[0].clone().requires_grad_() for _ in FOUR]
    _, some = learner.network(frames, [range(4), (4, 1, 4, 3)])
    some.output.logits.square().sum().backward()
    assert [frame.grad is not None and bool(frame.grad.any()) for frame in frames] == [False, True, False, True]


def test_the_loss_of_single_sensors_reaches_all_frames_equally() -> None:
    """Logits 0 of 4 classes, 8×8 cells of one pixel each, half ignored: ln 4, and (1/4 − 1[class]) / (32 · 3) each."""
    task = Task(("a", "b", "c", "d"), FOUR[:3], width=5, device=torch.device("cpu"))
    leaves = [torch.zeros(1, 4, 8, 8, requires_grad=True) for _ in range(3)]
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    label[:, 4:] = 255
    loss = SingleLoss(LossSettings(), task)(LossInputs([leaves[0]], [], [label], [], task, alone=[leaves]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(math.log(4))
    wanted = torch.full((1, 4, 8, 8), 0.25 / 96)
    wanted[:, 0] = -0.75 / 96
    wanted[:, :, 4:] = 0
    for leaf in leaves:
        torch.testing.assert_close(leaf.grad, wanted)


def test_the_beginnings_of_a_random_order_are_the_subsets(small: Recipe, rendered: Manifest) -> None:
    """Of sensors that are seen in the order 1, 0 the first stands alone, as if the other were not there."""
    content = small.model_dump(mode="json")
    content["losses"], content["model"]["order"] = {"prefix": {"weight": 2.0}}, "shuffled"
    recipe = recipes.parse(content, where="test")
    learner, batch = learner_of(recipe, rendered), batch_of(2)
    assert batch.label is not None
    for order in ((0, 1), (1, 0)):
        terms, _ = learnt(learner, [batch], Draw(order))
        with torch.no_grad():
            first = learner.network.eval()(batch.frames[order[0] : order[0] + 1]).logits[:, :25]
            learner.network.train()
        wanted = 2 * float(pixel_losses(first, batch.label).sum()) / int((batch.label != 255).sum())
        assert terms["prefix"] == pytest.approx(wanted, rel=1e-5)
    assert recipe.trained_subsets(zeroed=False) == (("img", "depth"), ("img",), ("depth",))
    assert recipe.trained_subsets(zeroed=True) == (("img", "depth"),)


def test_a_beginning_is_the_mean_of_its_frames() -> None:
    """Of three frames; class 0 is right. The first has logits 0 and 0, the second 4 and 0; the third counts nowhere."""
    task = Task(("a", "b"), FOUR[:3], width=5, device=torch.device("cpu"))
    frames = [torch.zeros(1, 2, 8, 8) for _ in range(3)]
    frames[1][:, 0] = 4
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    loss = PrefixLoss(LossSettings(), task)(LossInputs([frames[0]], [], [label], [], task, alone=[frames]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)


def test_one_sensor_learns_as_if_nothing_were_asked_for_and_is_told(small: Recipe, rendered: Manifest) -> None:
    plain = changed(small, "data", modalities=("depth",))
    asked = robust(small, modalities=("depth",), single=1.0, zeroed=0.5)
    assert asked.terms == ("ohem", "spmm", "single") and not draw(asked, None).places
    batch = batch_of(2)
    batch = replace(batch, frames=batch.frames[1:])
    moment = Moment(0, 0, epochs=1.0)
    learners = [learner_of(recipe, rendered, has_dropout=True) for recipe in (plain, asked)]
    results = []
    for learner in learners:
        torch.manual_seed(1)
        results.append(learner.learn([batch, batch], rate=1e-2, moment=moment))
    ours, theirs = results
    assert theirs.terms == {**ours.terms, "single": 0.0} and theirs.gradient_norm == ours.gradient_norm
    torch.testing.assert_close(dict(learners[1].parameters), dict(learners[0].parameters), rtol=0, atol=0)
    lines = introduction(RunFolder(Path("run")), learners[1], Position(world=1), scenes=20, steps_per_epoch=4)
    assert "one modality: 'robust' has no smaller set of sensors to train and does nothing" in list(lines)


def test_a_resumed_run_ends_bit_for_bit_the_same(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    whole_recipe = robust(small, single=0.5, zeroed=0.5, ramp_epochs=1.0, teacher={"weight": 0.5})
    recipe = changed(whole_recipe, "train", batch=2, accumulate=2, epochs=1, max_steps=2, checkpoint_steps=1)
    whole = start(recipe, rendered, tmp_path / "whole")
    run = gone_on(recipe, rendered, whole.run, tmp_path)
    torch.testing.assert_close(state_of(run), state_of(tmp_path / "whole"), rtol=0, atol=0)
    rows = [row for row in without_clock(RunFolder(tmp_path / "whole")) if "loss" in row]
    assert [row for row in without_clock(RunFolder(run)) if "loss" in row] == rows
    assert list(rows[0])[2:7] == ["loss", "ohem", "spmm", "subset", "teacher"]
    assert rows[0]["subset"] < 0.5 * rows[0]["ohem"], "the weight grows"


def teach(logits: Tensor, teacher: Tensor, label: Tensor, *, temperature: float = 2.0) -> Tensor:
    task = Task(("a", "b"), FOUR[:2], width=5, device=torch.device("cpu"))
    inputs = LossInputs([logits], [], [label], [], task, teacher=[teacher])
    return TeacherLoss(Teacher(weight=1.0, temperature=temperature), task)(inputs)


def test_the_teacher_s_divergence_by_hand() -> None:
    """Logits 2 ln 3 and 0 at T 2 are 3/4 and 1/4: KL to halves is 3/4 ln 3/2 + 1/4 ln 1/2, times 4; its gradient is
    T · (1/2 − 3/4). Of the cells below, where the teacher agrees, half of the pixels count."""
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    teacher, label = torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 4, dtype=torch.int64)
    teacher[0, 0, 0] = 2 * math.log(3)
    label[:, 3] = 255
    loss = teach(logits, teacher, label)
    loss.backward()  # type: ignore[no-untyped-call]
    divergence = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert loss.item() == pytest.approx(2 * divergence / (2 + 2 * 0.5), rel=1e-5)
    wanted = torch.zeros(1, 2, 2, 2)
    wanted[0, :, 0] = torch.tensor([[-0.5], [0.5]]) / 3
    torch.testing.assert_close(logits.grad, wanted)
    assert teach(teacher, teacher, label, temperature=1).item() == pytest.approx(0, abs=1e-6)
    assert teach(logits, teacher, torch.full_like(label, 255)).item() == 0
    assert math.isnan(teach(logits, teacher * math.nan, label).item())


def test_all_sensors_teach_some_and_learn_nothing_from_it(small: Recipe, rendered: Manifest) -> None:
    learner, batch = learner_of(robust(small, weight=0, teacher={"weight": 0.5}), rendered), batch_of(2)
    assert list(learner.objective.terms) == ["ohem", "spmm", "teacher"] and batch.label is not None
    terms, with_it = learnt(learner, [batch], Draw((0, 1), (1,), ramp=0.5))
    full, some = learner.network(batch.frames, [range(2), (1,)])
    loss = teach(some.output.logits[:, :25], full.output.logits[:, :25].detach(), batch.label)
    assert terms["teacher"] == pytest.approx(0.25 * loss.item(), rel=1e-5)
    (0.25 * loss).backward()  # type: ignore[no-untyped-call]
    of_it = {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}
    learner.optimizer.zero_grad(set_to_none=True)
    _, without = learnt(learner_of(small, rendered), [batch], Draw((0, 1), (1,), ramp=0.5))
    for name, gradient in with_it.items():
        wanted = without[name] + of_it.get(name, 0)
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()) + 1e-8, msg=name)


def test_trained_weights_teach_and_stay_as_they_are(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save(build_for_training(changed(small, "train", seed=77), rendered.info), path)
    recipe = robust(small, weight=0, teacher={"weight": 1.0, "weights": str(path)})
    learner, batch = learner_of(recipe, rendered), batch_of(2)
    terms, _ = learnt(learner, [batch], Draw((0, 1), (1,), ramp=1.0))
    assert batch.label is not None
    with torch.no_grad():
        theirs = load(path)(batch.frames).logits[:, :25]
        ours = learner.network(batch.frames[1:]).logits[:, :25]
    assert terms["teacher"] == pytest.approx(teach(ours, theirs, batch.label).item(), rel=1e-4)
    assert not any("teacher" in name for name in learner.state())
    trainer = Trainer(recipe, rendered, accelerator=accelerator())
    assert trainer.teacher == tensors.sha256(path) == trainer._identity()["teacher weights"]
    then = trainer._identity() | {"teacher weights": "0"}
    with pytest.raises(UsageError, match="teacher weights was 0, is "):
        checkpoints.refuse_other(then, trainer._identity(), worlds=(1, 1), where="here")


def test_a_teacher_that_does_not_fit_is_refused(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    path, network = tmp_path / "teacher.safetensors", build_for_training(small, rendered.info)
    asked, ours = robust(small, teacher={"weight": 1.0, "weights": str(path)}), network.card
    others = ("Kiosk", *rendered.info.classes[1:])
    cards = {
        r"teacher\.safetensors does not exist; give weights": None,
        r"was trained on depth, img, this run is on img, depth": {
            "recipe": changed(small, "data", modalities=("depth", "img"))
        },
        r"its class 0 is 'Kiosk', that of this data set 'Building'": {
            "dataset": rendered.info.model_copy(update={"classes": others})
        },
    }  # fmt: skip
    for said, changes in cards.items():
        if changes is not None:
            network.card = ours.model_copy(update=changes)
            save(network, path)
        with pytest.raises(WeightsError, match=said) as error:
            Trainer(asked, rendered, accelerator=accelerator())
        assert error.value.exit_code == 5 and "\n" not in str(error.value)


def test_a_subset_that_is_not_finite_is_undone(small: Recipe, rendered: Manifest) -> None:
    learner = learner_of(robust(small, single=1.0, teacher={"weight": 1.0}), rendered)
    before = {name: value.detach().clone() for name, value in learner.parameters.items()}
    result = learner.learn([batch_of(1), nan(batch_of(1))], rate=0.01, moment=Moment(0, 0, 1.0))
    assert not result.is_finite and all(math.isnan(result.terms[name]) for name in ("subset", "teacher", "single"))
    torch.testing.assert_close(dict(learner.parameters), before, rtol=0, atol=0)


def test_a_weak_sensor_that_the_data_set_does_not_have_is_refused(small: Recipe, rendered: Manifest) -> None:
    Trainer(robust(small, weak=["lidar"]), rendered, accelerator=accelerator())  # it has it: it is not trained here
    with pytest.raises(DataError, match="has no modality 'lidr'; did you mean 'lidar'"):
        Trainer(robust(small, weak=["lidr"]), rendered, accelerator=accelerator())
