"""What a run may do beyond the paper's training, and still resume bit for bit: weights of classes, the moving average
of the weights, and ending early."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from memorysam_cli import recipe as recipes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.evaluate.scoring import evaluate
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.measure import count
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train import start as starting
from memorysam_cli.engine.train.endings import TrainingResult
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.engine.train.update import Average
from memorysam_cli.model import read_card
from memorysam_cli.model.weights import load, read
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console

from .test_learner import batch_of, learner_of, nan
from .test_trainer import accelerator, changed, gone_on, start, state_of, without_clock


@pytest.fixture(scope="module")
def rich(small: Recipe) -> Recipe:
    """Two updates with weights of classes that are counted, smoothing, all further losses, and an average."""
    content = small.model_dump(mode="json")
    content["train"] |= {"max_steps": 2, "checkpoint_steps": 1}
    content["optim"] |= {"ema": 0.6}
    content["ohem"] |= {"class_weights": "inverse", "label_smoothing": 0.1}
    return recipes.parse(content | {"losses": {"dice": {}, "lovasz": {}, "focal": {}}}, where="test")


@pytest.fixture(scope="module")
def whole(rich: Recipe, rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A whole run, for reading only."""
    run = run_folder.create(rich, tmp_path_factory.mktemp("rich") / "whole")
    with console.log_to(run.log):
        return Trainer(rich, rendered, accelerator=accelerator()).fit(run)


def test_a_resumed_run_ends_bit_for_bit_the_same(
    whole: TrainingResult, rich: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    run = gone_on(rich, rendered, whole.run, tmp_path)
    torch.testing.assert_close(state_of(run), state_of(whole.run), rtol=0, atol=0)
    assert without_clock(RunFolder(run)) == without_clock(RunFolder(whole.run))


def test_weights_are_counted_once_and_stored_with_what_was_trained(whole: TrainingResult, rendered: Manifest) -> None:
    pixels = read_card(whole.last).dataset.class_pixels["train"]
    assert sum(pixels) <= len(rendered.of_split("train")) * 72**2 and max(pixels) > 0
    path, _ = checkpoints.newest_valid(whole.run / "checkpoints")
    assert path is not None
    stored = checkpoints.read(path).optimizer["ohem/class_weights"]
    raw = torch.tensor([1 / each if each else 0 for each in pixels], dtype=torch.float64)
    torch.testing.assert_close(stored, (raw * (raw > 0).sum() / raw.sum()).float())
    assert f"class weights: {rendered.info.classes[0]} {float(stored[0]):.3g}, " in RunFolder(whole.run).log.read_text()


def test_an_average_by_hand() -> None:
    """From 1: the weights become 2, 4 and 8. The first two keep 1/10 and 2/11, for 0.2 is more; the third keeps 0.2."""
    weight = nn.Parameter(torch.ones(1))
    average, wanted = Average({"w": weight}, decay=0.2), 1.0
    for value, kept in ((2.0, 1 / 10), (4.0, 2 / 11), (8.0, 0.2)):
        weight.data.fill_(value)
        average.add()
        wanted = kept * wanted + (1 - kept) * value
    torch.testing.assert_close(average.tensors["w"], torch.tensor([wanted]))
    with pytest.raises(ZeroDivisionError), average.in_place():
        torch.testing.assert_close(weight.detach(), torch.tensor([wanted]))
        raise ZeroDivisionError
    assert weight.item() == 8 and average.updates == 3
    assert Average({"w": weight}, decay=0).state() == {}


def test_no_update_that_was_not_made_is_averaged(
    rich: Recipe, rendered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = learner_of(recipes.parse(rich.model_dump(mode="json") | {"ohem": {}}, where="test"), rendered)
    before = {name: value.clone() for name, value in learner.average.state().items()}
    assert not learner.learn([nan(batch_of(2))], rate=0.01).is_finite
    torch.testing.assert_close(learner.average.state(), before, rtol=0, atol=0)
    monkeypatch.setattr(type(learner.optimizer), "step_was_skipped", property(lambda _: True))  # as fp16's scaler does
    learner.learn([batch_of(2)], rate=0.01)
    torch.testing.assert_close(learner.average.state(), before, rtol=0, atol=0)
    monkeypatch.undo()
    learner.learn([batch_of(2)], rate=0.01)
    assert learner.average.updates == 1


def test_averaged_weights_are_validated_and_saved_and_a_checkpoint_has_both(
    whole: TrainingResult, rendered: Manifest
) -> None:
    result = whole
    path, _ = checkpoints.newest_valid(result.run / "checkpoints")
    assert path is not None
    state, (saved, _) = checkpoints.read(path), read(result.last)
    averages = {name.removeprefix("ema/"): value for name, value in state.optimizer.items() if name.startswith("ema/")}
    assert averages.pop("updates").item() == result.steps
    for name, value in averages.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0)
    moved = [name for name, value in averages.items() if not torch.equal(state.model[name], value)]
    assert len(moved) > 0.9 * len(averages)
    card, model = read_card(result.best), load(result.best)
    found = evaluate(
        model, rendered, scenes=rendered.of_split("val"),
        inference=Inference(model.card.modalities, model.image_size, "cpu", batch=5, workers=0),
    )  # fmt: skip
    assert card.metric is not None and found.protocol("resized").miou == card.metric.miou == result.miou


def test_memory_is_counted_with_one_more_copy_of_what_is_trained(small: Recipe, rendered: Manifest) -> None:
    averaged = changed(small, "optim", ema=0.99)
    trained = [each for each in count.skeleton(small, classes=25).parameters() if each.requires_grad]
    more = sum(-(-each.nbytes // 512) * 512 for each in trained)
    plain, found = (count.training(recipe, classes=25) for recipe in (small, averaged))
    assert found.weights == plain.weights + more and found.peak == plain.peak + more
    assert (found.activations, found.moments) == (plain.activations, plain.moments)
    frames = count.Frames(((64, 64),), (72, 72))
    plain, found = (count.validation(recipe, classes=25, frames=frames) for recipe in (small, averaged))
    assert found.peak == plain.peak + more
    sizes = [starting.checkpoint_bytes(learner_of(recipe, rendered)) for recipe in (small, averaged)]
    assert sizes[1] - sizes[0] == sum(each.nbytes for each in trained)


def test_a_run_that_gets_no_better_ends_well_and_can_be_continued(
    small: Recipe, rendered: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that do not move score the same: nothing is better than the first validation."""
    still = changed(changed(small, "optim", lr=1e-30), "train", epochs=4, patience=2, batch=10)
    result = start(still, rendered, tmp_path / "run")
    assert (result.steps, result.best_step, result.ended_early) == (3, 1, True)
    told = "ends after epoch 3 of 4: none of the last 2 validations was better (train.patience)"
    assert told in capsys.readouterr().err
    path, _ = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    again = start(still, rendered, tmp_path / "run", resume=path)
    assert (again.steps, again.ended_early) == (3, True) and told in capsys.readouterr().err
    on = start(changed(still, "train", patience=None), rendered, tmp_path / "run", resume=path)
    assert (on.steps, on.best_step, on.ended_early) == (4, 1, False)
    assert "was better" not in capsys.readouterr().err
