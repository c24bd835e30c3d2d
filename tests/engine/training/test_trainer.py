"""The training loop: what a run leaves behind, and that an interrupted one ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.loader import Batch
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder, runtime
from memorysam_cli.engine.evaluation.scoring import evaluate
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.training import checkpoints, gradients, trainer
from memorysam_cli.engine.training.pictures import draw_samples
from memorysam_cli.engine.training.trainer import Trainer
from memorysam_cli.errors import DataError, DivergedError, Stopped, UsageError
from memorysam_cli.model import load
from memorysam_cli.model.weights import build_for_training
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import documents, images, tensors


def accelerator() -> Accelerator:
    return runtime.make_accelerator(torch.device("cpu"), precision="fp32")


def start(recipe: Recipe, manifest: Manifest, path: Path, resume: Path | None = None) -> trainer.TrainingResult:
    run = RunFolder(path) if resume else run_folder.create(recipe, path)
    return Trainer(recipe, manifest, accelerator=accelerator()).fit(run, resume=resume)


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def state_of(run: Path) -> dict[str, Tensor]:
    path, damaged = checkpoints.newest_valid(RunFolder(run).checkpoints)
    assert path is not None and not damaged
    state = checkpoints.read(path)
    return {**state.model, **state.optimizer, **state.rng}


def without_clock(run: RunFolder) -> list[dict[str, Any]]:
    """The metrics but for what depends on the machine's mood."""
    measured = {"scenes_per_second", "seconds_data", "peak_memory_gb"}
    return [{k: v for k, v in row.items() if k not in measured} for row in documents.read_json_lines(run.metrics)]


@pytest.fixture
def finished(small: Recipe, rendered: Manifest, tmp_path: Path) -> trainer.TrainingResult:
    return start(small, rendered, tmp_path / "whole")


def test_a_run_leaves_weights_metrics_pictures_and_provenance(finished: trainer.TrainingResult) -> None:
    run = RunFolder(finished.run)
    assert finished.steps == 4
    files = ["recipe.yaml", "environment.json", "command.txt", "plots/curves.png", "samples/validation.png"]
    assert all((run.path / name).is_file() for name in files)
    rows = documents.read_json_lines(run.metrics)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "miou" in row] == [2, 4]
    for row in (row for row in rows if "loss" in row):
        assert row["loss"] == pytest.approx(row["ohem"] + row["spmm"], rel=1e-6)
    card = load(run.best).card
    assert card.dataset.classes[0] == "Building" and card.metric is not None
    assert card.metric.miou == finished.miou == max(row["miou"] for row in rows if "miou" in row)


def test_validation_in_training_is_what_evaluate_finds_in_the_file(
    finished: trainer.TrainingResult, rendered: Manifest
) -> None:
    model = load(finished.best)
    found = evaluate(
        model, rendered, scenes=rendered.of_split("val"), modalities=model.card.modalities,
        image_size=model.image_size, device="cpu", batch=5, workers=0,
    )  # fmt: skip
    assert found.protocol("resized").miou == pytest.approx(finished.miou, abs=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_computes_exactly_what_the_saved_file_computes(
    precision: str, small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    """With the encoder trained in full nothing is merged on loading, so not a pixel may differ."""
    recipe = changed(changed(small, "model", encoder="full"), "train", precision=precision, max_steps=2)
    result = start(recipe, rendered, tmp_path / "run")
    model = load(result.best)
    found = evaluate(
        model, rendered, scenes=rendered.of_split("val"), modalities=model.card.modalities,
        image_size=model.image_size, device="cpu", batch=5, workers=0,
    )  # fmt: skip
    assert found.protocol("resized").miou == result.miou


def test_weights_carry_the_metric_of_their_own_validation_or_none(
    finished: trainer.TrainingResult, small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    last = load(finished.last).card.metric
    assert last is not None and last.step == finished.steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_validate", lambda self: (_ for _ in ()).throw(DataError("stop here")))
        with pytest.raises(DataError):
            start(small, rendered, tmp_path / "unvalidated")
    assert load(RunFolder(tmp_path / "unvalidated").last).card.metric is None


def test_low_resolution_events_are_drawn_whatever_comes_first(
    small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    network = build_for_training(changed(small, "data", modalities=("event", "img")), rendered.info)
    scene = rendered.scenes[0]
    for path in (*scene.files["img"], *scene.files["event"], scene.label or ""):
        picture = images.read(rendered.root / path)
        images.write_png(tmp_path / path, picture[::2, ::2] if path in scene.files["event"] else picture)
    draw_samples(network, replace(rendered, root=tmp_path), [scene], tmp_path)
    assert images.read(tmp_path / "validation.png").ndim == 3


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_run_stopped_by_sigterm_and_resumed_ends_bit_for_bit_the_same(
    step: int,
    finished: trainer.TrainingResult,
    small: Recipe,
    rendered: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = Trainer._step

    def terminate(self: Trainer, *arguments: Any) -> Any:
        if self.position.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", terminate)
    path = tmp_path / "stopped"
    with pytest.raises(Stopped, match=f"checkpoint of step {step} saved") as stopped:
        start(small, rendered, path)
    assert stopped.value.exit_code == 143
    monkeypatch.undo()
    checkpoint, _ = checkpoints.newest_valid(RunFolder(path).checkpoints)
    assert checkpoint is not None and checkpoint.name == f"step-{step:08d}"
    torch.rand(17)  # whatever the process did before must not matter
    result = start(small, rendered, path, resume=checkpoint)
    assert (result.miou, result.best_step, result.steps) == (finished.miou, finished.best_step, finished.steps)
    torch.testing.assert_close(state_of(path), state_of(finished.run), rtol=0, atol=0)
    for name in ("best", "last"):
        assert tensors.sha256(getattr(RunFolder(path), name)) == tensors.sha256(getattr(finished, name))
    assert without_clock(RunFolder(path)) == without_clock(RunFolder(finished.run))


def test_every_process_that_is_stopped_names_the_checkpoint(
    small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that has written nothing."""
    honest = Trainer._step

    def terminate(self: Trainer, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", terminate)
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda _: False))
    with pytest.raises(Stopped, match=r"checkpoint of step 1 saved as \S+/checkpoints/step-00000001;"):
        start(small, rendered, tmp_path / "other")


def test_worker_processes_do_not_change_the_result(
    finished: trainer.TrainingResult, small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    start(changed(small, "data", workers=2), rendered, tmp_path / "workers")
    torch.testing.assert_close(state_of(tmp_path / "workers"), state_of(finished.run), rtol=0, atol=0)


def test_a_recipe_that_changed_cannot_resume(
    finished: trainer.TrainingResult, small: Recipe, rendered: Manifest
) -> None:
    path, _ = checkpoints.newest_valid(RunFolder(finished.run).checkpoints)
    with pytest.raises(UsageError, match=r"optim\.lr was 0\.001, is 0\.5"):
        start(changed(small, "optim", lr=0.5), rendered, finished.run, resume=path)


def test_a_run_can_be_prolonged(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    start(changed(small, "train", max_steps=2), rendered, tmp_path / "run")
    path, _ = checkpoints.newest_valid(RunFolder(tmp_path / "run").checkpoints)
    assert start(small, rendered, tmp_path / "run", resume=path).steps == 4


def test_a_run_that_ends_within_an_epoch_knows_its_last_validation_when_prolonged(
    small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    """Although a checkpoint is due after every step: what is best must not be forgotten."""
    ended = start(changed(small, "train", max_steps=1), rendered, tmp_path / "run")
    path, _ = checkpoints.newest_valid(RunFolder(tmp_path / "run").checkpoints)
    assert path is not None
    position, _ = checkpoints.read_position(path)
    assert (position.step, position.best_step, position.best_miou) == (1, 1, ended.miou)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    poison: float, small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss = honest(*args, **kwargs)
        return loss * poison if calls == 3 else loss

    honest = gradients.ohem_mean
    monkeypatch.setattr(gradients, "ohem_mean", poisoned)
    with pytest.raises(DivergedError, match=r"step 3: loss (nan|inf).*the weights of step 2 are in") as fault:
        start(small, rendered, tmp_path / "diverged")
    assert fault.value.exit_code == 8
    monkeypatch.undo()
    start(changed(small, "train", max_steps=2), rendered, tmp_path / "short")
    mine, wanted = (tensors.read(RunFolder(tmp_path / name).last)[0] for name in ("diverged", "short"))
    torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


def test_an_image_of_nan_poisons_neither_weights_nor_prototypes(
    small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = trainer.training_batches

    def poisoned(*args: Any, **kwargs: Any) -> Iterator[Batch]:
        for number, batch in enumerate(honest(*args, **kwargs)):
            frames = [frame * float("nan") if number == 1 else frame for frame in batch.frames]
            yield Batch(frames, batch.label, batch.scenes)

    monkeypatch.setattr(trainer, "training_batches", poisoned)
    with pytest.raises(DivergedError, match="step 2: loss nan"):
        start(small, rendered, tmp_path / "diverged")
    monkeypatch.undo()
    start(changed(small, "train", max_steps=1), rendered, tmp_path / "short")
    mine, wanted = (state_of(tmp_path / name) for name in ("diverged", "short"))
    for name in ("spmm/prototypes", "spmm/seen", "sam.no_mem_embed"):
        torch.testing.assert_close(mine[name], wanted[name], rtol=0, atol=0)


def test_one_modality_trains_with_the_memory_frozen(
    small: Recipe, rendered: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = start(changed(changed(small, "data", modalities=("img",)), "train", max_steps=1), rendered, tmp_path / "r")
    assert not [name for name in tensors.read(result.last)[0] if "memory_attention" in name]
    assert "one modality: memory attention and memory encoder" in capsys.readouterr().err


def test_accumulating_two_batches_makes_half_the_updates(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    recipe = changed(small, "train", batch=2, accumulate=2, epochs=1)
    run = run_folder.create(recipe, tmp_path / "run")
    result = Trainer(recipe, rendered, accelerator=accelerator()).fit(run)
    assert result.steps == len(rendered.of_split("train")) // 4


def test_the_log_says_how_fast_it_went_and_what_it_took(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    run = run_folder.create(changed(small, "train", epochs=1), tmp_path / "run")
    with console.log_to(run.log):
        Trainer(changed(small, "train", epochs=1), rendered, accelerator=accelerator()).fit(run)
    for row in (row for row in documents.read_json_lines(run.metrics) if "loss" in row):
        assert row["scenes_per_second"] > 0 and row["seconds_data"] > 0
        assert 0.05 < row["peak_memory_gb"] < 50
    epochs = [line for line in run.log.read_text().splitlines() if "detail: epoch 1:" in line]
    assert len(epochs) == 1 and re.search(r"10 scenes in .* scenes/s, .* peak memory \d", epochs[0])


def test_too_few_scenes_for_one_update_are_refused(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer than the 500 of one update"):
        start(changed(small, "train", batch=500), rendered, tmp_path / "run")


def test_a_folder_that_holds_something_is_not_used(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="is not empty"):
        run_folder.create(small, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]
