"""A training loop as many are written: it resumes, and it loses what a kill or carelessness takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from memorysam_cli.data.loader import training_batches
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.model.weights import build_for_training, own_tensors
from memorysam_cli.recipe import Recipe


def train(recipe: Recipe, manifest: Manifest, out: Path, accelerator: Accelerator, *, way: str) -> None:
    """Train and save after each update.

    Args:
        recipe: what to train.
        manifest: the data.
        out: the run's folder; its ``last.pt`` is gone on from.
        accelerator: of one process.
        way: ``naive`` saves all in place; ``forgetful`` saves beside the file and renames, but leaves the random
            numbers out; ``careful`` does both rightly, and shows that the kills alone do no harm.
    """
    out.mkdir(parents=True, exist_ok=True)
    scenes = manifest.of_split("train")
    learner = Learner(build_for_training(recipe, manifest.info), recipe, accelerator=accelerator)
    torch.manual_seed(recipe.train.seed)
    step, file = 0, out / "last.pt"
    if file.exists():
        state = torch.load(file, weights_only=True)
        step = state["step"]
        _fill(learner, state, is_forgetful=way == "forgetful")
    per_epoch = len(scenes) // (recipe.train.batch * recipe.train.accumulate)
    while step < (recipe.train.max_steps or per_epoch * recipe.train.epochs):
        epoch, place = divmod(step, per_epoch)
        start = place * recipe.train.accumulate
        batches = list(training_batches(manifest, scenes=scenes, recipe=recipe, epoch=epoch, start=start))
        result = learner.learn(batches[: recipe.train.accumulate], rate=recipe.optim.lr)
        step += 1
        with (out / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, "loss": result.loss}) + "\n")
        state = {"step": step, "model": own_tensors(learner.network), "optimizer": learner.state()}
        if way != "forgetful":
            state["rng"] = torch.get_rng_state()
        if way == "naive":
            torch.save(state, file)
        else:
            torch.save(state, out / "last.new")
            (out / "last.new").rename(file)


def _fill(learner: Learner, state: dict[str, Any], *, is_forgetful: bool) -> None:
    with torch.no_grad():
        for name, tensor in own_tensors(learner.network).items():
            tensor.copy_(state["model"][name])
    learner.restore(state["optimizer"])
    if not is_forgetful:
        torch.set_rng_state(state["rng"])
