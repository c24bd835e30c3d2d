"""The training loop.

:class:`Trainer` is the whole loop, from the network to the finished run. The parts that it uses follow in the order of
their use: the length of a run, the notes of a resumed run, and its speed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from memorysam_cli import __version__
from memorysam_cli.data.loader import Batch, training_batches
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import runtime
from memorysam_cli.engine.processes import agree, lost_ones_named, refuse_differing, wait_for_all
from memorysam_cli.engine.run_folder import RunFolder, resume_command
from memorysam_cli.engine.train import checkpoints, endings, initial, start
from memorysam_cli.engine.train.checkpoints import Position, State
from memorysam_cli.engine.train.endings import Quarantine, StopRequest, TrainingResult, catch_stop, finish
from memorysam_cli.engine.train.objective import Moment
from memorysam_cli.engine.train.tracking import Tracking
from memorysam_cli.engine.train.update import BatchGroups, Learner, StepResult, learning_rate
from memorysam_cli.engine.train.validation import HEADLINE, Validation, draw_first_batch, metric_of
from memorysam_cli.errors import DataError, MemorySamError, Stopped, WeightsError
from memorysam_cli.model.weights import build_for_training, read, save
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.report.live import Progress, Slowdown
from memorysam_cli.storage import documents
from memorysam_cli.text import counted, duration, size


class Trainer:
    """A training run; the methods are in the order of their use.

    Args:
        recipe: the recipe.
        manifest: the prepared data set of ``recipe.data.dataset``.
        accelerator: device, processes and precision.
        is_resumed: a checkpoint will be restored, so the weights of ``model.init`` are not needed.

    Raises:
        DataError: there are too few scenes, or the data set lacks a modality or a split.
        WeightsError: the base weights, or those of ``model.init``, are refused.
        NetworkError: the base weights cannot be downloaded.
        UsageError: the processes differ in data, recipe or version.
    """

    run: RunFolder
    quarantine: Quarantine
    tracking = Tracking()

    def __init__(
        self, recipe: Recipe, manifest: Manifest, *, accelerator: Accelerator, is_resumed: bool = False
    ) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.manifest = manifest = start.with_counted_classes(recipe, manifest, accelerator)
        runtime.prepare_deterministic(is_wanted=recipe.train.deterministic)
        start.refuse_sensors(recipe, manifest)
        self.scenes = manifest.of_split(recipe.data.train_split)
        self.extent = start.extent_of(
            recipe, scenes=len(self.scenes), processes=accelerator.num_processes, dataset=manifest.info.name
        )
        self.network = build_for_training(recipe, manifest.info)
        wait_for_all(accelerator)  # machines may have downloaded the base weights at different times
        self.position = Position(world=accelerator.num_processes)
        self.initial: str | None = None
        self.notes: tuple[str, ...] = ()
        if recipe.model.init is not None and not is_resumed:
            self.initial = initial.initial_sha256(recipe)
            found = initial.load_initial(self.network, recipe.model.init)
            self.position.initial, self.position.fresh, self.notes = found.taken, found.fresh, found.notes
        self.teacher = initial.teacher_sha256(recipe, self.network.card)
        self._refuse_differing()
        self.learner = Learner(self.network, recipe, accelerator=accelerator)
        self.validation = Validation(self.network, manifest, recipe, accelerator=accelerator)
        self.pace = Pace(accelerator.device)
        self._saved_at = time.monotonic()
        self._scenes_since = 0
        """Number of scenes of this process since the last checkpoint."""
        self._lacks_best = False
        self._figures: dict[str, str] = {}
        """The displayed figures of the last update."""

    def _refuse_differing(self) -> None:
        """Refuse processes that would not make the same updates, because they would wait for each other at the end."""
        lengths = {"updates": self.extent.last_step, "train.validate_every": self.recipe.train.validate_every}
        refuse_differing(self._identity() | lengths | {"version": __version__}, self.accelerator)

    def _identity(self) -> dict[str, Any]:
        base, dataset = self.network.card.base.sha256, self.manifest.info.content_hash
        return checkpoints.identity_of(
            self.recipe, dataset=dataset, base=base, initial=self.initial, teacher=self.teacher
        )

    def refuse_other(self, checkpoint: Path) -> None:
        """Refuse a valid checkpoint that this training cannot continue; nothing is changed.

        Raises:
            UsageError: it belongs to another run.
            WeightsError: it was written by another version.
        """
        header = checkpoints.read_header(checkpoint)
        self.initial = initial.initial_sha256(self.recipe, header.identity.get("initial weights"))
        worlds = header.position.world, self.accelerator.num_processes
        checkpoints.refuse_other(header.identity, self._identity(), worlds=worlds, where=str(checkpoint))

    def fit(self, run: RunFolder, *, resume: Path | None = None) -> TrainingResult:
        """Train until the last epoch, ``max_steps``, or a signal.

        Args:
            run: the folder for all files.
            resume: a valid checkpoint folder of this run to continue from.

        Raises:
            DataError: a scene cannot be read, or more scenes than ``data.max_bad`` allows.
            WeightsError: the checkpoint is refused.
            DivergedError: the loss or the gradient is not finite; the weights before that step are saved.
            Stopped: a signal came; a checkpoint was written.
            EnvironmentFault: another process of this run was lost, or ``train.deterministic`` is not possible.
        """
        self.run = run
        with (
            lost_ones_named(self.accelerator, advice=self._resume_advice),
            runtime.deterministic(is_wanted=self.recipe.train.deterministic),
        ):
            return self._fit(resume)

    def _resume_advice(self) -> str:
        return f"this was after step {self.position.step}; continue with: {resume_command(self.run.path)}"

    def _fit(self, resume: Path | None) -> TrainingResult:
        begun = time.monotonic()
        torch.manual_seed(self.recipe.train.seed + self.accelerator.process_index)
        self.quarantine = Quarantine(
            self.run, share=self.recipe.data.max_bad, scenes=len(self.scenes), accelerator=self.accelerator
        )
        if resume is not None:
            self.refuse_other(resume)
            self._restore(checkpoints.read(resume))
        if self.accelerator.is_main_process:
            self.run.result.unlink(missing_ok=True)
            sizes = {"scenes": len(self.scenes), "steps_per_epoch": self.extent.steps_per_epoch}
            for line in (*self.notes, *start.introduction(self.run, self.learner, self.position, **sizes)):
                console.note(line)
        recipe, step = self.recipe.to_yaml(), self.position.step
        with catch_stop() as stop, self.tracking.of_run(self.run.path, recipe=recipe, step=step):
            if resume is None:
                self._checkpoint()  # so that a kill before the first interval can be resumed
            left = self.extent.last_step - self.position.step
            with show_progress(self.accelerator, left, "train") as progress:
                while not self._is_done():
                    self._epoch(stop, progress)
                if not self.position.is_validated or self._lacks_best:
                    self._validate()  # its progress is a line of the table, as for the other validations
            self._checkpoint()
        ended_early = self.position.step < self.extent.last_step
        if ended_early and self.accelerator.is_main_process:
            console.note(
                f"ends after epoch {self.position.epoch} of {self.recipe.train.epochs}: none of the "
                f"last {counted(self.recipe.train.patience or 0, 'validation')} was better (train.patience)"
            )
        return finish(
            self.run, self.learner, self.position, self.quarantine, scenes=self.extent.scenes_per_step,
            seconds=time.monotonic() - begun, resumed=resume is not None, ended_early=ended_early,
        )  # fmt: skip

    def _restore(self, state: State) -> None:
        """Restore the state of a checkpoint."""
        where = str(self.run.path)
        self.position = checkpoints.put_back(state, self.learner, where=where)
        done, batches = divmod(self.position.batch, self.recipe.train.accumulate)
        if batches or self.position.step != self.position.epoch * self.extent.steps_per_epoch + done:
            raise WeightsError(
                f"{where}: its checkpoint says step {self.position.step} and batch {self.position.batch} of epoch "
                f"{self.position.epoch}, which cannot be with {counted(self.extent.steps_per_epoch, 'step')} an epoch"
            )
        self._lacks_best = forget_lost_best(self.run, self.position)
        wait_for_all(self.accelerator)  # all processes have read the files that are written from here on
        if self.accelerator.is_main_process:
            record_resume(self.run, self.position, then=state.made_by, now=checkpoints.conditions(self.accelerator))
            self.run.store_recipe(self.recipe)  # max_steps and similar keys may have changed

    def _is_done(self) -> bool:
        return self.position.step >= self.extent.last_step or self._is_early()

    def _is_early(self) -> bool:
        """Whether too many validations in a row were not better, up to the current weights."""
        patience, position = self.recipe.train.patience, self.position
        if patience is None or not position.is_validated:
            return False
        return validations_since_best(position, self.extent, every=self.recipe.train.validate_every) >= patience

    def _epoch(self, stop: StopRequest, progress: Progress) -> None:
        """An epoch from the current position, then a validation if it is due."""
        epoch, settings = self.position.epoch, self.recipe.train
        try:
            self._updates(stop, progress)
        except DataError:
            if self.accelerator.num_processes == 1:  # only one of several processes may have met it
                self._checkpoint()  # nothing is lost until the file is fixed
            raise
        if self.accelerator.is_main_process:
            console.detail(f"epoch {epoch + 1}: {self.pace.epoch()}")
        if self.position.batch < self.extent.steps_per_epoch * settings.accumulate:
            return  # max_steps cut the epoch short
        self.position.epoch, self.position.batch = epoch + 1, 0
        if self.position.epoch % settings.validate_every == 0 or self._is_done():
            self._validate()
            progress.show(self._figures | best_figure(self.position))
            self._checkpoint_when_due(stop)

    def _updates(self, stop: StopRequest, progress: Progress) -> None:
        """The remaining updates of an epoch."""
        settings = self.recipe.train
        groups = BatchGroups(
            self._batches(self.position.epoch), size=settings.accumulate, device=self.accelerator.device
        )
        self.pace.start_epoch()
        for batches in groups:
            result, figures = self._step(batches, groups)
            self._figures = table_figures(result, figures, self.position, epochs=settings.epochs)
            progress.advance(figures=self._figures)
            self._checkpoint_when_due(stop)
            if self._is_done():
                break

    def _batches(self, epoch: int) -> Iterable[Batch]:
        """The remaining batches of an epoch, without an incomplete update at the end."""
        batches = training_batches(
            self.manifest, scenes=self.scenes, recipe=self.recipe, epoch=epoch, start=self.position.batch,
            rank=self.accelerator.process_index, world=self.accelerator.num_processes,
        )  # fmt: skip
        return islice(batches, self.extent.steps_per_epoch * self.recipe.train.accumulate - self.position.batch)

    def _step(self, batches: Sequence[Batch], groups: BatchGroups) -> tuple[StepResult, dict[str, float]]:
        """Make one update and record its result and its time."""
        self.quarantine.admit(batches, step=self.position.step + 1)
        if self.position.step == 0 and self.accelerator.is_main_process:
            draw_first_batch(batches[0], self.manifest.info, self.network.card.modalities, self.run.samples)
        optim, length = self.recipe.optim, self.extent.steps_per_epoch
        rate = learning_rate(self.position.step, optim=optim, steps_per_epoch=length, epochs=self.recipe.train.epochs)
        result = self.learner.learn(batches, rate=rate, moment=self._moment(), meanwhile=groups.fetch)
        if not result.is_finite:
            record = endings.describe_divergence(
                result, batches, self.position, rate=rate, accelerator=self.accelerator
            )
            endings.end_diverged(record, self.run, save=self._checkpoint, is_main=self.accelerator.is_main_process)
        self.position.step += 1
        self.position.batch += len(batches)
        self.position.all_ignored += result.all_ignored
        self._scenes_since += sum(len(batch.scenes) for batch in batches)
        figures = self.pace.update(self.extent.scenes_per_step, waited=groups.waited())
        figures = {"lr": rate, "gradient_norm": result.gradient_norm, **figures}
        self._log({"loss": result.loss, **result.terms, **figures})
        if self.pace.slow_note is not None and self.accelerator.is_main_process:
            console.note(self.pace.slow_note)
        return result, figures

    def _moment(self) -> Moment:
        """The moment of the next update."""
        done = self.position.batch // self.recipe.train.accumulate
        return Moment(self.position.epoch, done, epochs=(self.position.step + 1) / self.extent.steps_per_epoch)

    def _log(self, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.run.log_metrics({"step": self.position.step, "epoch": self.position.epoch}, values)
            self.tracking.log(self.position.step, values, group="validation" if "miou" in values else "train")

    def _validate(self) -> None:
        """Score the selection split with the code of ``memorysam evaluate``, save the best weights, draw pictures."""
        with self.learner.average.in_place():
            self._validate_these()
        wait_for_all(self.accelerator)

    def _validate_these(self) -> None:
        """As :meth:`_validate`, with the current weights of the network."""
        with show_progress(self.accelerator, self.validation.share, "validate") as progress:
            result = self.validation.score(progress.advance)
        scores, position = result.protocol(HEADLINE), self.position
        native = result.protocol("native").miou
        self._log({"miou": scores.miou, "macc": scores.macc, "mf1": scores.mf1, "miou_native": native})
        is_best = self.validation.judge(scores.miou, position, epoch=position.step // self.extent.steps_per_epoch)
        self._lacks_best &= not is_best
        if self.accelerator.is_main_process:
            if is_best:
                save(self.network, self.run.best, metric=metric_of(position))
            compared = "best so far" if is_best else f"best {position.best_miou or 0:.2f}"
            console.note(
                f"step {position.step}: {self.recipe.data.selection_split} mIoU {scores.miou:.2f} ({compared})"
            )
            self.validation.draw(self.run, result, self.position, is_best=is_best)
            self.tracking.validated(position.step, result.classes, scores.iou, result.confusion(HEADLINE), self.run)

    def _checkpoint_when_due(self, stop: StopRequest) -> None:
        """Save if the interval is over; save and end if a stop was requested."""
        # A signal may reach one process only; all must leave the loop at the same step.
        if agree(bool(stop), self.accelerator):
            path = self._checkpoint()
            raise Stopped(
                f"{stop.name or 'another process'}: checkpoint of step {self.position.step} saved as {path}; "
                f"continue with: {resume_command(self.run.path)}",
                exit_code=stop.exit_code or 143,
            )
        # Not after the last step: the final checkpoint has the same step, and also the validation.
        is_due = time.monotonic() - self._saved_at > 60 * self.recipe.train.checkpoint_minutes
        steps = self.recipe.train.checkpoint_steps
        is_due |= steps is not None and self.position.step % steps == 0
        if agree(is_due and not self._is_done(), self.accelerator):
            self._checkpoint()

    def _checkpoint(self) -> Path:
        """Write the whole state and the user's copy of the weights; returns the checkpoint's path."""
        own, self._scenes_since = self._scenes_since, 0
        state = checkpoints.take(self.learner, self.position, identity=self._identity(), scenes_since=own)
        path = checkpoints.path_of(self.run.checkpoints, self.position.step)
        if self.accelerator.is_main_process:
            checkpoints.write(self.run.checkpoints, state, keep=self.recipe.train.keep_checkpoints)
            with self.learner.average.in_place():
                save(self.network, self.run.last, metric=metric_of(self.position))
            console.detail(f"step {self.position.step}: checkpoint {path.name}")
        wait_for_all(self.accelerator)
        self._saved_at = time.monotonic()
        self.pace.restart()
        return path


def validations_since_best(position: Position, extent: start.Extent, *, every: int) -> int:
    """The number of validations in a row without a better score.

    Args:
        position: after an epoch, validated.
        extent: of the training.
        every: epochs between validations. Nothing else is stored, so a resumed run may use another number.
    """
    if position.best_step is None:  # lost, or NaN so far: the next one counts as best
        return 0
    return position.epoch // every - position.best_step // extent.steps_per_epoch // every


def record_resume(run: RunFolder, position: Position, *, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Record in the run's folder that it resumes, warn if the conditions differ, and clean up its metrics.

    Args:
        run: the folder.
        position: where it continues.
        then: the conditions of the checkpoint (:func:`memorysam_cli.engine.train.checkpoints.conditions`).
        now: those of this process.
    """
    changed = {key: [then.get(key), now.get(key)] for key in now | then if then.get(key) != now.get(key)}
    if changed:
        differences = ", ".join(f"{key} was {was}, is {now}" for key, (was, now) in changed.items())
        console.warn(
            f"{run.path}: continues under other conditions ({differences}); the last bits may differ from here on"
        )
    moment = datetime.now().astimezone().isoformat(timespec="seconds")
    documents.append_json_line(
        run.resumes, {"step": position.step, "time": moment, "conditions": now, "changed": changed}
    )
    run.forget_metrics_after(position.step, validated=position.is_validated)


def forget_lost_best(run: RunFolder, position: Position) -> bool:
    """Let the next validation count as the best if the best weights so far are not on the disk.

    This happens if a later validation replaced them before a kill, or if the file was lost or damaged.

    Returns:
        Whether they were lost, not only replaced.
    """
    if position.best_step is None:
        return False
    try:
        metric = read(run.best)[1].metric
    except (MemorySamError, OSError) as error:
        console.warn(
            f"{run.best}: the best weights so far cannot be used ({error}); the next validation counts as best"
        )
        position.best_miou = position.best_step = None
        return True
    if metric is None or (metric.step, metric.miou) != (position.best_step, position.best_miou):
        position.best_miou = position.best_step = None
    return False


def show_progress(accelerator: Accelerator, total: int, label: str) -> contextlib.AbstractContextManager[Progress]:
    """A progress display in the main process, nothing in the others; see :func:`console.progress`."""
    return console.progress(total if accelerator.is_main_process else 0, label)


class Pace:
    """Measures the speed of updates.

    Args:
        device: of the training.
    """

    slow_note: str | None = None
    """A message about speed, once per run: the newest update was more than ten times as slow as the best."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._slowdown = Slowdown()
        self.start_epoch()

    def start_epoch(self) -> None:
        """Start the clock and the measurement of peak memory."""
        self._scenes, self._seconds, self._data = 0, 0.0, 0.0
        runtime.start_peak(self.device)
        self.restart()

    def restart(self) -> None:
        """Leave out the time since the last update, for example for a checkpoint."""
        self._last = time.monotonic()

    def update(self, scenes: int, *, waited: float) -> dict[str, float]:
        """The figures of an update that has just ended.

        Args:
            scenes: of all processes.
            waited: seconds spent waiting for its data.

        Returns:
            ``scenes_per_second`` of all processes, data included; ``seconds_data``, equal to ``waited``;
            ``peak_memory_gb`` of this process since the epoch began (10⁹ bytes; on CUDA the memory reserved by its
            allocator).
        """
        seconds = max(time.monotonic() - self._last, 1e-9)
        self._scenes += scenes
        self._seconds += seconds
        self._data += waited
        self.slow_note = self._slowdown.add(scenes, seconds=seconds)
        self.restart()
        return {
            "scenes_per_second": scenes / seconds,
            "seconds_data": waited,
            "peak_memory_gb": runtime.peak_bytes(self.device) / 1e9,
        }

    def epoch(self) -> str:
        """A summary of the epoch so far."""
        seconds = max(self._seconds, 1e-9)
        return (
            f"{counted(self._scenes, 'scene')} in {duration(seconds)}, {self._scenes / seconds:.2f} scenes/s, "
            f"{100 * self._data / seconds:.0f} % of the time in the loader, "
            f"peak memory {size(runtime.peak_bytes(self.device))}"
        )


def table_figures(
    result: StepResult, figures: Mapping[str, float], position: Position, *, epochs: int
) -> dict[str, str]:
    """The displayed figures of an update: names and values.

    Args:
        result: of the update; the first term is most of the loss, so the others are shown beside it.
        figures: from :meth:`Pace.update`, and ``lr``.
        position: after the update.
        epochs: of the run.
    """
    _, *further = result.terms
    return {
        "epoch": f"{position.epoch + 1}/{epochs}",
        "step": f"{position.step:,}",
        "loss": f"{result.loss:.3f}",
        **{name: f"{result.terms[name]:.4f}" for name in further},
        "lr": f"{figures['lr']:.2e}",
        "scenes/s": f"{figures['scenes_per_second']:.3g}",
        "memory": f"{figures['peak_memory_gb']:.1f} GB",
        **best_figure(position),
    }


def best_figure(position: Position) -> dict[str, str]:
    """The best validation so far, as displayed."""
    return {"best mIoU": "–" if position.best_miou is None else f"{position.best_miou:.2f}"}
