"""The demo: render mini-DELIVER, then train, evaluate and use a model, with all sensors and with RGB alone.

It calls the same functions as ``prepare``, ``train``, ``evaluate`` and ``predict``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder, runtime
from memorysam_cli.engine.evaluate import scoring
from memorysam_cli.engine.evaluate.counts import Evaluation, scores
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.predict.job import Job, RunOptions
from memorysam_cli.engine.predict.run import run as run_prediction
from memorysam_cli.engine.train.endings import TrainingResult
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.engine.train.validation import HEADLINE
from memorysam_cli.model import load, read_card
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import tensors

RECIPE = "demo"
DATASET = "synthetic"
SCENES, SIZE = 240, 160
RGB = "img"


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo; mIoU in % on the validation split, ``resized`` protocol."""

    miou: float
    miou_rgb: float
    miou_majority: float
    majority_class: str
    steps: int
    seconds: float
    folder: Path
    run: Path
    run_rgb: Path
    predictions: Path

    def to_json(self) -> dict[str, Any]:
        """The keys of ``memorysam demo --json``, without its ``schema_version``."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def run_demo(
    folder: Path,
    *,
    device: torch.device,
    seed: int = 0,
    scenes: int = SCENES,
    overrides: Sequence[str] = (),
) -> DemoResult:
    """Prepare, train, evaluate and predict in ``folder``.

    Args:
        seed: of the scenes; for training it is added to the recipe's seed.
        scenes: number of scenes to render.
        overrides: recipe values to change, ``key=value``.

    Raises:
        UsageError: the folder has other scenes, or an override is wrong.
    """
    begin = time.monotonic()
    recipe = recipes.load(RECIPE, overrides)
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": recipe.train.seed + seed})})
    rgb = recipe.model_copy(update={"data": recipe.data.model_copy(update={"modalities": (RGB,)}), "name": "demo-rgb"})
    console.note(f"1/5 prepare {scenes} scenes in {folder / 'data'}")
    manifest, majority_index = prepare_scenes(folder / "data", seed=seed, scenes=scenes)
    console.note(f"2/5 train with {', '.join(recipe.data.modalities)}")
    trained = train_recipe(recipe, manifest, folder / "runs", device=device)
    console.note("3/5 train the same recipe with RGB alone")
    trained_rgb = train_recipe(rgb, manifest, folder / "runs", device=device)
    console.note("4/5 evaluate")
    results = [_evaluate(each.best, manifest, device=device) for each in (trained, trained_rgb)]
    console.note("5/5 predict")
    predictions = _predict(trained.best, manifest, folder / f"predictions-{trained.run.name}", device=device)
    return DemoResult(
        miou=results[0].protocol(HEADLINE).miou,
        miou_rgb=results[1].protocol(HEADLINE).miou,
        miou_majority=majority_miou(results[0], majority_index),
        majority_class=manifest.info.classes[majority_index],
        steps=trained.steps,
        seconds=time.monotonic() - begin,
        folder=folder,
        run=trained.run,
        run_rgb=trained_rgb.run,
        predictions=predictions,
    )


def majority_miou(result: Evaluation, majority: int) -> float:
    """The mIoU, in %, of predicting one class for every pixel of an evaluation's scenes."""
    truth = result.confusion(HEADLINE).sum(dim=1)  # (K, K) -> (K,) pixels of each true class
    constant = torch.zeros(len(truth), len(truth), dtype=truth.dtype)
    constant[:, majority] = truth
    return scores(constant).miou


def prepare_scenes(root: Path, *, seed: int, scenes: int = SCENES) -> tuple[Manifest, int]:
    """Render and check scenes; returns the manifest and the most common class of the training split."""
    with console.progress(scenes, "render") as progress:
        preparation.render_synthetic(
            root, layout="deliver", scenes=scenes, size=SIZE, seed=seed, advance=progress.advance
        )
    survey = preparation.survey_synthetic(root, layout="deliver")
    with console.progress(len(survey.scenes), "check") as progress:
        prepared = preparation.check_and_write(survey, advance=progress.advance)
    error = prepared.fault()
    if error is not None:
        raise error
    pixels = prepared.report.pixels["train"][: len(survey.info.classes)]
    return manifests.read(root, DATASET), max(range(len(pixels)), key=lambda index: pixels[index])


def train_recipe(recipe: Recipe, manifest: Manifest, runs: Path, *, device: torch.device) -> TrainingResult:
    """Train one recipe in a new folder below ``runs``."""
    accelerator = runtime.make_accelerator(device, precision=recipe.train.precision)
    trainer = Trainer(recipe, manifest, accelerator=accelerator)
    run = run_folder.create(recipe, runs / f"{recipe.name}-{time.strftime('%H%M%S')}-{secrets.token_hex(2)}")
    with console.log_to(run.log):
        return trainer.fit(run)


def _evaluate(weights: Path, manifest: Manifest, *, device: torch.device) -> Evaluation:
    model = load(weights, device=device)
    scenes = manifest.of_split(model.card.recipe.data.selection_split)
    with console.progress(len(scenes), "evaluate") as progress:
        return scoring.evaluate(
            model, manifest, scenes=scenes, advance=progress.advance,
            inference=Inference(model.card.modalities, model.image_size, device, batch=8, workers=0),
        )  # fmt: skip


def _predict(weights: Path, manifest: Manifest, out: Path, *, device: torch.device) -> Path:
    """Segment the validation scenes; returns the folder of the results."""
    card = read_card(weights)
    job = Job(
        weights, tensors.sha256(weights), card, manifest.of_split(card.recipe.data.selection_split), manifest.root,
        str(manifest.root), card.modalities, ("color", "overlay"), batch=8,
    )  # fmt: skip
    run_prediction(job, out, RunOptions(str(device), workers=0, overwrite=True))
    return out
