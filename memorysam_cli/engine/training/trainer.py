"""The one training loop: epochs, validation, checkpoints and logs around a learner, by a recipe."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from memorysam_cli.data.loader import Batch, modalities_of, training_batches
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.processes import agree, lost_ones_named, wait_for_all
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.signals import StopRequest, catch_stop
from memorysam_cli.engine.training import checkpoints, snapshots
from memorysam_cli.engine.training.checkpoints import Position, State
from memorysam_cli.engine.training.introduction import introduction
from memorysam_cli.engine.training.learner import Learner, Lesson
from memorysam_cli.engine.training.pace import Pace
from memorysam_cli.engine.training.schedule import learning_rate
from memorysam_cli.engine.training.upcoming import Upcoming
from memorysam_cli.engine.training.validation import Validation
from memorysam_cli.errors import DataError, DivergedError, Stopped
from memorysam_cli.model.weights import Metric, build_for_training, save
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.report.progress import Progress

HEADLINE = "resized"
"""The protocol that decides which checkpoint is best: the one that the papers report."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run came to; ``miou`` is the best validation in percent, and NaN never."""

    run: Path
    best: Path
    last: Path
    miou: float
    best_step: int
    steps: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The keys of ``memorysam train --json``, without its ``schema_version``."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


class Trainer:
    """One run, its methods in the order in which they happen.

    Args:
        recipe: what to train.
        manifest: the prepared data set of ``recipe.data.dataset``.
        accelerator: device, processes and precision.

    Raises:
        DataError: too few scenes, or a modality or a split that the data set does not have.
        WeightsError: the base weights are refused.
        NetworkError: the base weights cannot be had.
    """

    run: RunFolder

    def __init__(self, recipe: Recipe, manifest: Manifest, *, accelerator: Accelerator) -> None:
        self.recipe, self.manifest, self.accelerator = recipe, manifest, accelerator
        modalities_of(manifest.info, recipe.data.modalities)
        self.scenes = manifest.of_split(recipe.data.train_split)
        self.steps_per_epoch = self._steps_per_epoch()
        self.network = build_for_training(recipe, manifest.info)
        wait_for_all(accelerator)  # the base weights came to one machine sooner than to another
        self.learner = Learner(self.network, recipe, accelerator=accelerator)
        self.validation = Validation(self.network, manifest, recipe, accelerator=accelerator)
        self.position = Position(world=accelerator.num_processes)
        self.pace = Pace(accelerator.device)
        self._saved_at = time.monotonic()

    def refuse_other(self, checkpoint: Path) -> None:
        """Refuse a valid checkpoint that this training cannot continue (``UsageError``); nothing is changed."""
        position, identity = checkpoints.read_position(checkpoint)
        snapshots.refuse_other(
            position, identity, identity=self._identity(), world=self.accelerator.num_processes, where=str(checkpoint)
        )

    def fit(self, run: RunFolder, *, resume: Path | None = None) -> TrainingResult:
        """Train until the last epoch, ``max_steps``, or a signal.

        Args:
            run: where everything is written.
            resume: a valid checkpoint folder of this run to continue from.

        Raises:
            DataError: a scene that cannot be read.
            WeightsError: the checkpoint is refused.
            DivergedError: the loss or the gradient is not finite; the weights before that step are saved.
            Stopped: a signal came; a checkpoint was written.
            EnvironmentFault: another process of this training was lost.
        """
        self.run = run
        with lost_ones_named(self.accelerator, advice=self._way_on):
            return self._fit(resume)

    def _fit(self, resume: Path | None) -> TrainingResult:
        start = time.monotonic()
        torch.manual_seed(self.recipe.train.seed + self.accelerator.process_index)
        if resume is not None:
            self.refuse_other(resume)
            self._restore(checkpoints.read(resume))
        if self.accelerator.is_main_process:
            self._introduce()
        with catch_stop() as stop:
            if resume is None:
                self._checkpoint()  # a kill before the first interval must find something to resume from
            with self._progress(self._last_step() - self.position.step, "train") as progress:
                while not self._is_done():
                    self._epoch(stop, progress)
            if self._metric() is None:
                self._validate()
            self._checkpoint()
        if self.position.all_ignored:
            console.warn(f"{self.position.all_ignored} batches had no labelled pixel and taught nothing")
        if self.position.best_miou is None or self.position.best_step is None:
            raise DivergedError(f"{self.run.path}: no validation gave a finite mIoU; there are no best weights")
        return TrainingResult(
            run=self.run.path, best=self.run.best, last=self.run.last, miou=self.position.best_miou,
            best_step=self.position.best_step, steps=self.position.step, seconds=time.monotonic() - start,
        )  # fmt: skip

    def _introduce(self) -> None:
        for line in introduction(
            self.run, self.learner, self.position, scenes=len(self.scenes), steps_per_epoch=self.steps_per_epoch
        ):
            console.note(line)

    def _epoch(self, stop: StopRequest, progress: Progress) -> None:
        """One epoch from where the position stands, then a validation if it is due."""
        epoch, settings = self.position.epoch, self.recipe.train
        upcoming = Upcoming(self._batches(epoch), size=settings.accumulate, device=self.accelerator.device)
        self.pace.start_epoch()
        for batches in upcoming:
            lesson, figures = self._step(batches, upcoming)
            progress.advance(
                status=f"epoch {epoch + 1}/{settings.epochs}, loss {lesson.loss:.3f}, "
                f"{figures['scenes_per_second']:.3g} scenes/s, {figures['peak_memory_gb']:.1f} GB"
            )
            self._checkpoint_when_due(stop)
            if self._is_done():
                break
        if self.accelerator.is_main_process:
            console.detail(f"epoch {epoch + 1}: {self.pace.epoch()}")
        if self.position.batch < self.steps_per_epoch * settings.accumulate:
            return  # max_steps cut the epoch short
        self.position.epoch, self.position.batch = epoch + 1, 0
        if self.position.epoch % settings.validate_every == 0 or self._is_done():
            self._validate()
            self._checkpoint_when_due(stop)

    def _step(self, batches: Sequence[Batch], upcoming: Upcoming) -> tuple[Lesson, dict[str, float]]:
        """Make one update and note what it did and what it took."""
        rate = learning_rate(
            self.position.step,
            optim=self.recipe.optim,
            steps_per_epoch=self.steps_per_epoch,
            epochs=self.recipe.train.epochs,
        )
        lesson = self.learner.learn(batches, rate=rate, meanwhile=upcoming.fetch)
        if not lesson.is_finite:
            self._diverge(lesson, rate=rate, batches=batches)
        self.position.step += 1
        self.position.batch += len(batches)
        self.position.all_ignored += lesson.all_ignored
        figures = self.pace.update(self._scenes_per_step(), waited=upcoming.waited())
        losses = {"loss": lesson.loss, "ohem": lesson.ohem, "spmm": lesson.spmm}
        self._log({**losses, "lr": rate, "gradient_norm": lesson.gradient_norm, **figures})
        return lesson, figures

    def _diverge(self, lesson: Lesson, *, rate: float, batches: Sequence[Batch]) -> None:
        """End the run with the weights of before this step."""
        self._checkpoint()
        scenes = [scene.id for batch in batches for scene in batch.scenes]
        names = ", ".join(scenes[:4]) + f" and {len(scenes) - 4} more" * (len(scenes) > 4)
        raise DivergedError(
            f"step {self.position.step + 1}: loss {lesson.loss}, gradient norm {lesson.gradient_norm}, lr {rate:.3g}, "
            f"scenes {names}; the weights of step {self.position.step} are in {self.run.last}; try a lower optim.lr"
        )

    def _validate(self) -> None:
        """Score the selection split with the code of ``memorysam evaluate``, keep the best, draw pictures."""
        with self._progress(self.validation.share, "validate") as progress:
            result = self.validation.score(progress.advance)
        scores, position = result.protocol(HEADLINE), self.position
        native = result.protocol("native").miou
        self._log({"miou": scores.miou, "macc": scores.macc, "mf1": scores.mf1, "miou_native": native})
        is_best = math.isfinite(scores.miou) and (position.best_miou is None or scores.miou > position.best_miou)
        if is_best:
            position.best_miou, position.best_step = scores.miou, position.step
        metric = Metric(
            miou=scores.miou, protocol=HEADLINE, split=self.recipe.data.selection_split,
            epoch=position.step // self.steps_per_epoch, step=position.step,
        )  # fmt: skip
        position.validation = metric.model_dump()
        if self.accelerator.is_main_process:
            if is_best:
                save(self.network, self.run.best, metric=metric)
            compared = "best so far" if is_best else f"best {position.best_miou or 0:.2f}"
            console.note(f"step {position.step}: {metric.split} mIoU {scores.miou:.2f} ({compared})")
            self.validation.draw(self.run)
        wait_for_all(self.accelerator)

    def _checkpoint_when_due(self, stop: StopRequest) -> None:
        """Save if the interval is over; save and end if somebody asked to stop."""
        # A signal may reach one process only; all must leave the loop at the same step.
        if agree(bool(stop), self.accelerator):
            path = self._checkpoint()
            raise Stopped(
                f"{stop.name or 'another process'}: checkpoint of step {self.position.step} saved as {path}; "
                f"continue with: memorysam train --resume {self.run.path}",
                exit_code=stop.exit_code or 143,
            )
        # Not after the last step: the checkpoint that ends the run has its number, and the validation besides.
        is_due = time.monotonic() - self._saved_at > 60 * self.recipe.train.checkpoint_minutes and not self._is_done()
        if agree(is_due, self.accelerator):
            self._checkpoint()

    def _checkpoint(self) -> Path:
        """Write the whole state and the user's copy of the weights; gives the checkpoint's path."""
        state = snapshots.take(self.learner, self.position, identity=self._identity())
        path = checkpoints.path_of(self.run.checkpoints, self.position.step)
        if self.accelerator.is_main_process:
            checkpoints.write(self.run.checkpoints, state, keep=self.recipe.train.keep_checkpoints)
            save(self.network, self.run.last, metric=self._metric())
            console.detail(f"step {self.position.step}: checkpoint {path.name}")
        wait_for_all(self.accelerator)
        self._saved_at = time.monotonic()
        self.pace.restart()
        return path

    def _way_on(self) -> str:
        return f"this was after step {self.position.step}; continue with: memorysam train --resume {self.run.path}"

    def _restore(self, state: State) -> None:
        """Put everything back as it was at a checkpoint."""
        where = str(self.run.path)
        self.position = snapshots.put_back(state, self.learner, where=where)
        if self.accelerator.is_main_process:
            self.run.store_recipe(self.recipe)  # max_steps and its like may have changed
            self.run.forget_metrics_after(self.position.step, validated=self._metric() is not None)

    def _metric(self) -> Metric | None:
        """The validation of the weights as they are now; none if they have not been validated."""
        last = self.position.validation
        return Metric(**last) if last is not None and last["step"] == self.position.step else None

    def _identity(self) -> dict[str, Any]:
        base, dataset = self.network.card.base.sha256, self.manifest.info.content_hash
        return checkpoints.identity_of(self.recipe, dataset=dataset, base=base)

    def _scenes_per_step(self) -> int:
        """Of all processes."""
        settings = self.recipe.train
        return int(settings.batch * settings.accumulate * self.accelerator.num_processes)

    def _steps_per_epoch(self) -> int:
        at_once = self._scenes_per_step()
        if len(self.scenes) < at_once:
            raise DataError(
                f"{self.manifest.info.name}: split '{self.recipe.data.train_split}' has {len(self.scenes)} scenes, "
                f"fewer than the {at_once} of one update; lower train.batch or train.accumulate"
            )
        return len(self.scenes) // at_once

    def _last_step(self) -> int:
        whole = self.steps_per_epoch * self.recipe.train.epochs
        return min(whole, self.recipe.train.max_steps or whole)

    def _is_done(self) -> bool:
        return self.position.step >= self._last_step()

    def _batches(self, epoch: int) -> Iterable[Batch]:
        """What is left of an epoch, without the batches that would begin an update and not complete it."""
        batches = training_batches(
            self.manifest,
            scenes=self.scenes,
            recipe=self.recipe,
            epoch=epoch,
            start=self.position.batch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        return islice(batches, self.steps_per_epoch * self.recipe.train.accumulate - self.position.batch)

    @contextlib.contextmanager
    def _progress(self, total: int, label: str) -> Iterator[Progress]:
        """A progress display in the main process, nothing in the others."""
        with console.progress(total if self.accelerator.is_main_process else 0, label) as progress:
            yield progress

    def _log(self, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.run.log_metrics({"step": self.position.step, "epoch": self.position.epoch}, values)
