"""The training loop: what a run leaves behind, and that an interrupted one ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import count, permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.loader import Batch
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder, runtime
from memorysam_cli.engine.evaluate.counts import SceneScore
from memorysam_cli.engine.evaluate.scoring import evaluate
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints, loop
from memorysam_cli.engine.train.checkpoints import Position
from memorysam_cli.engine.train.endings import TrainingResult
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.engine.train.validation import Validation, draw_samples, metric_of
from memorysam_cli.errors import (
    DataError,
    DivergedError,
    EnvironmentFault,
    LawBroken,
    Stopped,
    UsageError,
    WeightsError,
)
from memorysam_cli.losses import ohem
from memorysam_cli.model import load, read_card
from memorysam_cli.model.weights import build_for_training, save
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import pictures
from memorysam_cli.storage import documents, images, tensors

from .conftest import SLOW


def accelerator() -> Accelerator:
    return runtime.make_accelerator(torch.device("cpu"), precision="fp32")


def start(recipe: Recipe, manifest: Manifest, path: Path, resume: Path | None = None) -> TrainingResult:
    run = RunFolder(path) if resume else run_folder.create(recipe, path)
    return Trainer(recipe, manifest, accelerator=accelerator()).fit(run, resume=resume)


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})


def state_of(run: Path, *, step: int | None = None) -> dict[str, Tensor]:
    """Of the newest checkpoint, or of a step's."""
    folder = RunFolder(run).checkpoints
    path, damaged = checkpoints.newest_valid(folder) if step is None else (checkpoints.path_of(folder, step), [])
    assert path is not None and not damaged
    state = checkpoints.read(path)
    return {**state.model, **state.optimizer, **state.rng}


def without_clock(run: RunFolder) -> list[dict[str, Any]]:
    """The metrics but for what depends on the machine's mood."""
    measured = {"scenes_per_second", "seconds_data", "peak_memory_gb"}
    return [{k: v for k, v in row.items() if k not in measured} for row in documents.read_json_lines(run.metrics)]


@pytest.fixture(scope="module")
def after_one(small: Recipe, rendered: Manifest, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A run of one update, for reading only; a checkpoint is due after each."""
    recipe = changed(small, "train", max_steps=1, checkpoint_minutes=1e-9)
    return start(recipe, rendered, tmp_path_factory.mktemp("one") / "run")


def gone_on(recipe: Recipe, manifest: Manifest, whole: Path, tmp_path: Path) -> Path:
    """A whole run without its last checkpoint, as if it had been killed then, and resumed to its end."""
    run, last = copied(whole, tmp_path)
    shutil.rmtree(last)
    path, _ = checkpoints.newest_valid(RunFolder(run).checkpoints)
    assert path is not None and path.name != "step-00000000", "there must be something to go on from"
    torch.rand(17)  # whatever the process did before must not matter
    start(recipe, manifest, run, resume=path)
    return run


def copied(run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A run of one's own to go on with, and its newest checkpoint."""
    path = shutil.copytree(run, tmp_path / "copied")
    newest, _ = checkpoints.newest_valid(RunFolder(path).checkpoints)
    assert newest is not None
    return path, newest


def test_a_validation_shows_its_best_at_once(watched: tuple[TrainingResult, list[str]]) -> None:
    result, seen = watched
    shown = [text for text in seen if "best mIoU" in text]
    assert [text.partition("{")[0] for text in shown] == ["advance", "advance", "show"] * 2
    assert "'best mIoU': '–'" in shown[1] and "–" not in shown[2]
    assert f"'best mIoU': '{result.miou:.2f}'" in shown[-1]


def test_a_run_leaves_weights_metrics_pictures_and_provenance(finished: TrainingResult) -> None:
    run = RunFolder(finished.run)
    assert finished.steps == 4
    files = ["recipe.yaml", "environment.json", "command.txt", "plots/curves.png", "samples/validation.png"]
    assert all((run.path / name).is_file() for name in files)
    assert all(images.read(run.plots / name).std() > 5 for name in ("curves.png", "confusion.png"))
    rows = documents.read_json_lines(run.metrics)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "miou" in row] == [2, 4]
    for row in (row for row in rows if "loss" in row):
        assert row["loss"] == pytest.approx(row["ohem"] + row["spmm"], rel=1e-6)
    card = load(run.best).card
    assert card.dataset.classes[0] == "Building" and card.metric is not None
    assert card.metric.miou == finished.miou == max(row["miou"] for row in rows if "miou" in row)


def test_validation_in_training_is_what_evaluate_finds_in_the_file(
    finished: TrainingResult, rendered: Manifest
) -> None:
    model = load(finished.best)
    found = evaluate(
        model, rendered, scenes=rendered.of_split("val"),
        inference=Inference(model.card.modalities, model.image_size, "cpu", batch=5, workers=0),
    )  # fmt: skip
    assert found.protocol("resized").miou == pytest.approx(finished.miou, abs=0.02)


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
def test_validation_computes_exactly_what_the_saved_file_computes(
    precision: str, small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    """With the encoder trained in full nothing is merged on loading, so not a pixel may differ."""
    recipe = changed(changed(small, "model", encoder="full"), "train", precision=precision, max_steps=1)
    result = start(recipe, rendered, tmp_path / "run")
    model = load(result.best)
    found = evaluate(
        model, rendered, scenes=rendered.of_split("val"),
        inference=Inference(model.card.modalities, model.image_size, "cpu", batch=5, workers=0),
    )  # fmt: skip
    assert found.protocol("resized").miou == result.miou


def test_weights_carry_the_metric_of_their_own_validation(finished: TrainingResult) -> None:
    """Or none, as those of a run that was stopped."""
    last = read_card(finished.last).metric
    assert last is not None and last.step == finished.steps


def test_low_resolution_events_are_drawn_whatever_comes_first(
    small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[str] = []
    honest = pictures.sheet
    monkeypatch.setattr(pictures, "sheet", lambda *given, **more: captions.extend(more["captions"]) or honest(*given))
    network = build_for_training(changed(small, "data", modalities=("event", "img")), rendered.info)
    scene = rendered.scenes[0]
    for path in (*scene.files["img"], *scene.files["event"], scene.label or ""):
        picture = images.read(rendered.root / path)
        images.write_png(tmp_path / path, picture[::2, ::2] if path in scene.files["event"] else picture)
    scored = [SceneScore(scene, pixels=1, accuracy=0.0, miou_present=12.34, iou=())]
    draw_samples(network, replace(rendered, root=tmp_path), scored, tmp_path, is_best=False)
    assert images.read(tmp_path / "validation.png").ndim == 3
    assert captions == [f"{scene.id}   mIoU 12.3"]


@pytest.mark.parametrize("steps", [pytest.param([1], marks=pytest.mark.slow), [2, 3]], ids=str)
def test_a_run_stopped_by_sigterm_and_resumed_ends_bit_for_bit_the_same(
    steps: list[int],
    finished: TrainingResult,
    often: Recipe,
    rendered: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when it is stopped twice: as an epoch ends, and within one."""
    honest, numbers = loop.Learner.learn, count(1)

    def terminate(self: loop.Learner, *arguments: Any, **options: Any) -> Any:
        if next(numbers) in steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, *arguments, **options)

    monkeypatch.setattr(loop.Learner, "learn", terminate)
    path, checkpoint = tmp_path / "stopped", None
    for step in steps:
        with pytest.raises(Stopped, match=f"checkpoint of step {step} saved") as stopped:
            start(often, rendered, path, resume=checkpoint)
        assert stopped.value.exit_code == 143
        checkpoint, _ = checkpoints.newest_valid(RunFolder(path).checkpoints)
        assert checkpoint is not None and checkpoint.name == f"step-{step:08d}"
        assert read_card(RunFolder(path).last).metric is None, "not validated since the last update"
        torch.rand(17)  # whatever the process did before must not matter
    result = start(often, rendered, path, resume=checkpoint)
    assert (result.miou, result.best_step, result.steps) == (finished.miou, finished.best_step, finished.steps)
    assert (result.scenes, result.laws, result.resumed) == (finished.scenes, finished.laws, True)
    torch.testing.assert_close(state_of(path), state_of(finished.run), rtol=0, atol=0)
    for name in ("best", "last"):
        assert tensors.sha256(getattr(RunFolder(path), name)) == tensors.sha256(getattr(finished, name))
    assert without_clock(RunFolder(path)) == without_clock(RunFolder(finished.run))


def test_every_process_that_is_stopped_names_the_checkpoint(
    small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that has written nothing."""
    honest = loop.Learner.learn

    def terminate(self: loop.Learner, *arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(self, *arguments, **options)

    monkeypatch.setattr(loop.Learner, "learn", terminate)
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda _: False))
    with pytest.raises(Stopped, match=r"checkpoint of step 1 saved as \S+/checkpoints/step-00000001;"):
        start(small, rendered, tmp_path / "other")


def test_neither_worker_processes_nor_deterministic_kernels_change_the_result_on_a_cpu(
    finished: TrainingResult, small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    """Over an epoch, whose batches come from both workers, and its validation."""
    recipe = changed(changed(small, "data", workers=2), "train", deterministic=True, max_steps=2)
    run = start(recipe, rendered, tmp_path / "run").run
    torch.testing.assert_close(state_of(run), state_of(finished.run, step=2), rtol=0, atol=0)
    assert without_clock(RunFolder(run)) == without_clock(RunFolder(finished.run))[:3]


def test_a_recipe_that_changed_cannot_resume(
    finished: TrainingResult, small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    run, path = copied(finished.run, tmp_path)
    with pytest.raises(UsageError, match=r"optim\.lr was 0\.001, is 0\.5"):
        start(changed(small, "optim", lr=0.5), rendered, run, resume=path)


def test_a_run_that_ends_within_an_epoch_knows_its_last_validation_when_prolonged(after_one: TrainingResult) -> None:
    """Although a checkpoint is due after every step: what is best must not be forgotten."""
    path, _ = checkpoints.newest_valid(RunFolder(after_one.run).checkpoints)
    assert path is not None
    position = checkpoints.read_header(path).position
    assert (position.step, position.best_step, position.best_miou) == (1, 1, after_one.miou)


@pytest.mark.parametrize("poison", [pytest.param(float("nan"), marks=pytest.mark.slow), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_the_weights(
    poison: float,
    after_one: TrainingResult,
    small: Recipe,
    rendered: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0

    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss = honest(*args, **kwargs)
        return loss * poison if calls == 2 else loss

    honest = ohem.ohem_mean
    monkeypatch.setattr(ohem, "ohem_mean", poisoned)
    with pytest.raises(DivergedError, match=r"step 2: loss (nan|inf).*the weights of step 1 are in") as fault:
        start(small, rendered, tmp_path / "diverged")
    assert fault.value.exit_code == 8
    kept = documents.read_json(tmp_path / "diverged" / "diverged.json")
    assert kept["step"] == 2 and kept["loss"] in {"nan", "inf"} and kept["lr"] > 0 and len(kept["scenes"]) == 5
    assert all((rendered.root / file).is_file() for scene in kept["scenes"] for file in scene["files"])
    assert kept["scenes"][0]["files"][0] in str(fault.value)
    mine, wanted = (tensors.read(RunFolder(run).last)[0] for run in (tmp_path / "diverged", after_one.run))
    torch.testing.assert_close(mine, wanted, rtol=0, atol=0)


def test_an_image_of_nan_poisons_neither_weights_nor_prototypes(
    after_one: TrainingResult, small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loop.training_batches

    def poisoned(*args: Any, **kwargs: Any) -> Iterator[Batch]:
        for number, batch in enumerate(honest(*args, **kwargs)):
            frames = [frame * float("nan") if number == 1 else frame for frame in batch.frames]
            yield Batch(frames, batch.label, batch.scenes)

    monkeypatch.setattr(loop, "training_batches", poisoned)
    with pytest.raises(DivergedError, match="step 2: loss nan"):
        start(small, rendered, tmp_path / "diverged")
    mine, wanted = (state_of(run) for run in (tmp_path / "diverged", after_one.run))
    for name in ("spmm/prototypes", "spmm/seen", "sam.no_mem_embed"):
        torch.testing.assert_close(mine[name], wanted[name], rtol=0, atol=0)


def test_an_update_that_overflows_ends_with_8_and_is_not_saved(
    often: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradient were finite."""
    honest = loop.Learner.learn

    def overflow(self: loop.Learner, *arguments: Any, **options: Any) -> Any:
        result = honest(self, *arguments, **options)
        with torch.no_grad():
            next(iter(self.parameters.values())).fill_(float("inf"))
        return result

    monkeypatch.setattr(loop.Learner, "learn", overflow)
    with pytest.raises(
        DivergedError, match=r"step 1: the update, .* left NaN or infinity in 1 tensor .* lower optim.lr"
    ):
        start(often, rendered, tmp_path / "run")
    found, damaged = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert found is not None and found.name == "step-00000000" and not damaged


def test_one_modality_trains_with_the_memory_frozen(
    small: Recipe, rendered: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = start(changed(changed(small, "data", modalities=("img",)), "train", max_steps=1), rendered, tmp_path / "r")
    assert not [name for name in tensors.read(result.last)[0] if "memory_attention" in name]
    assert "one modality: memory attention and memory encoder" in capsys.readouterr().err


def test_accumulating_two_batches_makes_half_the_updates(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    recipe = changed(small, "train", batch=6, accumulate=2, epochs=1)
    assert start(recipe, rendered, tmp_path / "run").steps == len(rendered.of_split("train")) // 12 == 1


def test_the_log_says_how_fast_it_went_and_what_it_took(finished: TrainingResult) -> None:
    run = RunFolder(finished.run)
    for row in (row for row in documents.read_json_lines(run.metrics) if "loss" in row):
        assert row["scenes_per_second"] > 0 and row["seconds_data"] > 0
        assert 0.05 < row["peak_memory_gb"] < 50
    epochs = [line for line in run.log.read_text().splitlines() if "detail: epoch 1:" in line]
    assert len(epochs) == 1 and re.search(r"10 scenes in .* scenes/s, .* peak memory \d", epochs[0])


def test_the_laws_of_a_run_hold_and_are_written_down(finished: TrainingResult) -> None:
    assert finished.scenes == 4 * 5 and len(finished.laws) == 3
    assert all(law["holds"] for law in finished.laws.values())
    written = documents.read_json(finished.run / "result.json")
    assert written == {"schema_version": 1, **finished.to_json()}
    assert written["laws"]["scenes learned from = steps × batch × accumulate × processes"]["left"] == 20


def test_a_scene_that_is_not_counted_breaks_a_law(
    small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = loop.training_batches
    monkeypatch.setattr(
        loop, "training_batches", lambda *a, **k: (replace(b, scenes=b.scenes[1:]) for b in honest(*a, **k))
    )
    with pytest.raises(LawBroken, match=r"scenes learned from .*: 4 ≠ 5"):
        start(changed(small, "train", max_steps=1), rendered, tmp_path / "run")


@pytest.mark.parametrize("order", list(permutations([float("nan"), 30.0, 20.0])))
def test_a_validation_that_is_no_number_is_never_best_and_blocks_no_best(
    order: tuple[float, ...], small: Recipe, rendered: Manifest
) -> None:
    network = build_for_training(small, rendered.info)
    validation, position = Validation(network, rendered, small, accelerator=accelerator()), Position()
    for step, miou in enumerate(order, 1):
        position.step = step
        validation.judge(miou, position, epoch=0)
        assert position.is_validated and (metric_of(position) is None) == (miou != miou)
        documents.to_json(asdict(position))  # JSON knows no NaN
    assert (position.best_miou, position.best_step) == (30.0, order.index(30.0) + 1)


def test_a_run_without_a_finite_validation_ends_with_8_and_keeps_its_checkpoint(
    small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Validation.judge
    monkeypatch.setattr(Validation, "judge", lambda self, _miou, *a, **k: honest(self, float("nan"), *a, **k))
    with pytest.raises(DivergedError, match="no validation gave a finite mIoU"):
        start(changed(small, "train", max_steps=1), rendered, tmp_path / "run")
    found, _ = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert found is not None and checkpoints.read_header(found).position.validation["miou"] is None  # type: ignore[index]


def test_other_conditions_are_warned_of_once_and_recorded_and_the_laws_hold_over_a_prolonging(
    after_one: TrainingResult,
    small: Recipe,
    rendered: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, path = copied(after_one.run, tmp_path)
    made_by = documents.read_json(path / "trainer.json")["made_by"]
    assert made_by["threads"] == torch.get_num_threads() and made_by["torch"] == torch.__version__
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    capsys.readouterr()
    again = start(changed(small, "train", max_steps=2), rendered, run, resume=path)
    said = [line for line in capsys.readouterr().err.splitlines() if "other conditions" in line]
    assert len(said) == 1 and f"threads was {made_by['threads']}, is 77" in said[0]
    rows = documents.read_json_lines(run / "resumes.jsonl")
    assert [(row["step"], row["changed"]) for row in rows] == [(1, {"threads": [made_by["threads"], 77]})]
    assert (again.steps, again.scenes, again.resumed) == (2, 2 * 5, True), "a law of the whole run"
    assert again.laws["scenes learned from = steps × batch × accumulate × processes"]["left"] == 10


@pytest.mark.parametrize("part", ["rng", "optimizer"])
def test_a_checkpoint_without_a_part_of_its_state_is_refused_with_5(
    part: str, after_one: TrainingResult, small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    run, path = copied(after_one.run, tmp_path)
    state = checkpoints.read(path)
    less = (
        {"other/cpu": state.rng["0/cpu"]} if part == "rng" else {**state.optimizer, "adamw/step/no.such": torch.ones(1)}
    )
    bad = checkpoints.write(tmp_path / "bad", replace(state, **{part: less}), keep=2)
    said = "no state of the random numbers" if part == "rng" else "its optimizer is not of this network"
    with pytest.raises(WeightsError, match=said):
        start(changed(small, "train", max_steps=2), rendered, run, resume=bad)


@pytest.mark.parametrize("loss", [pytest.param("gone", marks=pytest.mark.slow), "flipped"])
def test_best_weights_that_are_lost_are_found_again(
    loss: str,
    finished: TrainingResult,
    small: Recipe,
    rendered: Manifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, path = copied(finished.run, tmp_path)
    best = RunFolder(run).best
    content = bytearray(best.read_bytes())
    content[-9] ^= 1
    best.unlink() if loss == "gone" else best.write_bytes(content)
    again = start(small, rendered, run, resume=path)
    assert "the best weights so far cannot be used" in capsys.readouterr().err
    metric = load(again.best).card.metric
    assert metric is not None and (metric.miou, metric.step) == (again.miou, again.best_step)


def test_a_machine_that_became_slow_is_noted_beside_the_progress(finished: TrainingResult) -> None:
    assert RunFolder(finished.run).log.read_text().count(f"{SLOW}\n") == 1


def test_an_operation_without_a_deterministic_form_ends_with_6_and_its_name(
    small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen = loop.Learner.learn, []

    def learn(self: loop.Learner, *arguments: Any, **options: Any) -> Any:
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        if len(seen) == 2:
            # Nothing on a CPU lacks such a form; the words are torch's.
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set '…'")
        return honest(self, *arguments, **options)

    monkeypatch.setattr(loop.Learner, "learn", learn)
    with pytest.raises(EnvironmentFault, match="cumsum_cuda_kernel has no deterministic form on this device"):
        start(changed(small, "train", deterministic=True), rendered, tmp_path / "run")
    assert seen == [(True, ":4096:8")] * 2 and not torch.are_deterministic_algorithms_enabled()


def test_a_run_from_trained_weights_needs_their_file_no_more_once_it_has_begun(
    finished: TrainingResult, small: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    weights = tmp_path / "begin.safetensors"
    shutil.copy(finished.best, weights)
    recipe = changed(changed(small, "model", init=str(weights)), "train", max_steps=2)
    first = start(changed(recipe, "train", max_steps=1), rendered, tmp_path / "run")
    assert first.laws["tensors of the initial weights = tensors saved"]["holds"]
    path, _ = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert path is not None
    weights.unlink()
    again = Trainer(recipe, rendered, accelerator=accelerator(), is_resumed=True)
    assert again.fit(RunFolder(tmp_path / "run"), resume=path).steps == 2
    newest, _ = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert newest is not None
    other_weights = load(finished.best)
    with torch.no_grad():
        other_weights.sam.no_mem_embed.add_(1.0)
    save(other_weights, weights)
    other = Trainer(recipe, rendered, accelerator=accelerator(), is_resumed=True)
    with pytest.raises(UsageError, match="initial weights was"):
        other.refuse_other(newest)


def test_too_few_scenes_for_one_update_are_refused(small: Recipe, rendered: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer than the 500 of one update"):
        start(changed(small, "train", batch=500), rendered, tmp_path / "run")


def test_a_folder_that_holds_something_is_not_used(small: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="is not empty"):
        run_folder.create(small, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]
