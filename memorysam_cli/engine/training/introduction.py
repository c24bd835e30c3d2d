"""What a training says before it begins."""

from __future__ import annotations

from collections.abc import Iterator

from accelerate import Accelerator

from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.training.checkpoints import Position
from memorysam_cli.engine.training.learner import Learner
from memorysam_cli.model.network import count
from memorysam_cli.recipe import Recipe


def introduction(
    run: RunFolder, learner: Learner, position: Position, *, scenes: int, steps_per_epoch: int
) -> Iterator[str]:
    """What is about to happen, line by line.

    Args:
        run: where it is written down.
        learner: what is trained, and on what.
        position: where it begins.
        scenes: of the training split.
        steps_per_epoch: updates.
    """
    recipe, accelerator = learner.recipe, learner.accelerator
    modalities = recipe.data.modalities
    yield f"run: {run.path}  device: {accelerator.device}  modalities: {', '.join(modalities)}"
    trained, whole = count(learner.parameters.values()), count(learner.network.parameters())
    yield (
        f"{scenes} scenes, {steps_per_epoch} updates per epoch, {_at_once(recipe, accelerator)}; "
        f"{trained:,} of {whole:,} parameters are trained"
    )
    if recipe.losses:
        yield f"losses: {', '.join(recipe.terms)}"
    if len(modalities) == 1:
        yield "one modality: memory attention and memory encoder get no gradient and are frozen"
    if position.step:
        yield f"resumed at step {position.step}, epoch {position.epoch + 1}"


def _at_once(recipe: Recipe, accelerator: Accelerator) -> str:
    """What an update is made of."""
    settings, processes = recipe.train, accelerator.num_processes
    return (
        f"{settings.batch * settings.accumulate * processes} scenes per update (batch {settings.batch}, "
        f"{settings.accumulate} accumulated, {processes} process{'es' * (processes > 1)})"
    )
