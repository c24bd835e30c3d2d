"""Validation within a training: the scores that decide which weights are best, and pictures of them."""

from __future__ import annotations

import math
from collections.abc import Callable

from accelerate import Accelerator

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import runtime
from memorysam_cli.engine.evaluate.counts import Evaluation
from memorysam_cli.engine.evaluate.scoring import evaluate
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.training.checkpoints import Position
from memorysam_cli.engine.training.pictures import draw_confusion, draw_curves, draw_samples
from memorysam_cli.model import Segmenter
from memorysam_cli.model.weights import Metric
from memorysam_cli.recipe import Recipe

HEADLINE = "resized"
"""The protocol that decides which checkpoint is best: the one that the papers report."""


class Validation:
    """Scores the selection split with the code of ``memorysam evaluate``.

    Always in float32, whatever ``train.precision`` says, so that the scores are those that evaluating the saved file
    gives.

    Args:
        network: what is trained; its mode comes back after scoring.
        manifest: of the data set.
        recipe: split, size, batch, worker processes.
        accelerator: device and processes, which share the scenes.
    """

    def __init__(self, network: Segmenter, manifest: Manifest, recipe: Recipe, *, accelerator: Accelerator) -> None:
        self.network, self.manifest, self.recipe, self.accelerator = network, manifest, recipe, accelerator
        self.scenes = manifest.of_split(recipe.data.selection_split)

    @property
    def share(self) -> int:
        """Scenes of one process, at most."""
        share: int = math.ceil(len(self.scenes) / self.accelerator.num_processes)
        return share

    def score(self, advance: Callable[[int], object]) -> Evaluation:
        """The counts of all scenes, the same in every process.

        Args:
            advance: told how many scenes of this process have just been scored.
        """
        with runtime.computing("fp32", self.accelerator.device):
            return evaluate(
                self.network,
                self.manifest,
                scenes=self.scenes,
                inference=Inference(
                    self.network.card.modalities,
                    self.recipe.data.image_size,
                    self.accelerator.device,
                    batch=self.recipe.train.batch,
                    workers=self.recipe.data.workers,
                ),
                accelerator=self.accelerator,
                advance=advance,
            )

    def judge(self, miou: float, position: Position, *, epoch: int) -> bool:
        """Note the score of the weights as they are now; what is not a number is never the best, and blocks no best.

        Args:
            miou: in percent, of the protocol :data:`HEADLINE`.
            position: takes the score, and the best one.
            epoch: that is done.

        Returns:
            Whether these are the best weights so far.
        """
        metric = Metric(
            miou=miou, protocol=HEADLINE, split=self.recipe.data.selection_split, epoch=epoch, step=position.step
        )
        is_number = math.isfinite(miou)
        position.validation = metric.model_dump() | ({} if is_number else {"miou": None})  # JSON has no NaN
        is_best = is_number and (position.best_miou is None or miou > position.best_miou)
        if is_best:
            position.best_miou, position.best_step = miou, position.step
        return is_best

    def draw(self, run: RunFolder, result: Evaluation, position: Position, *, is_best: bool) -> None:
        """The curves so far, what is confused, and how the network sees a few scenes; in one process.

        Args:
            run: where to.
            result: of the newest validation.
            position: of the training.
            is_best: the weights are the best so far.
        """
        draw_curves(run, self.recipe.terms)
        miou = result.protocol(HEADLINE).miou
        title = f"{self.recipe.data.selection_split} after step {position.step}: mIoU {miou:.2f}"
        draw_confusion(run, result.confusion(HEADLINE), classes=result.classes, title=title)
        with runtime.computing("fp32", self.accelerator.device):
            draw_samples(self.network, self.manifest, self.scenes, run.samples, is_best=is_best)


def metric_of(position: Position) -> Metric | None:
    """The validation of the weights as they are now; none if they have not been validated, or it gave no number."""
    last = position.validation
    return Metric(**last) if position.is_validated and last is not None and last["miou"] is not None else None
