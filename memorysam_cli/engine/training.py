"""The one training loop: LoRA fine-tuning with OHEM and the SPMM, by a recipe."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from memorysam_cli.data.loader import Batch, modalities_of, training_batches
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine import checkpoints
from memorysam_cli.engine.checkpoints import Position, State
from memorysam_cli.engine.evaluation import Evaluation, evaluate
from memorysam_cli.engine.pictures import draw_curves, draw_samples
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.runtime import sum_over_processes
from memorysam_cli.engine.schedule import learning_rate
from memorysam_cli.engine.signals import StopRequest, catch_stop
from memorysam_cli.errors import DataError, DivergedError, Stopped, UsageError
from memorysam_cli.losses.ohem import ohem_cross_entropy
from memorysam_cli.losses.spmm import PrototypeMemory
from memorysam_cli.model.network import upsample
from memorysam_cli.model.parts import count
from memorysam_cli.model.weights import Metric, build_for_training, fill_own, own_tensors, save
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents

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
    """The state of one run and its steps, top to bottom in the order in which they happen.

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
        self.recipe, self.manifest = recipe, manifest
        self.accelerator = accelerator
        modalities_of(manifest.info, recipe.data.modalities)
        self.scenes = manifest.of_split(recipe.data.train_split)
        self.validation_scenes = manifest.of_split(recipe.data.selection_split)
        self.steps_per_epoch = self._steps_per_epoch()
        self.network = build_for_training(recipe, manifest.info)
        self.parameters = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        optimizer = make_optimizer(self.parameters, recipe)
        self.model, self.optimizer = self.accelerator.prepare(self.network.train(), optimizer)
        self.prototypes = self._prototypes()
        self.position = Position(world=self.accelerator.num_processes)
        self._validated_step = -1

    # ------------------------------------------------------------------ the course of a run

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
        """
        start = time.monotonic()
        self.run = run
        torch.manual_seed(self.recipe.train.seed + self.accelerator.process_index)
        if resume is not None:
            self._restore(checkpoints.read(resume))
        self._introduce()
        with catch_stop() as stop:
            if resume is None:
                self._checkpoint()  # a kill before the first interval must find something to resume from
            self._saved_at = time.monotonic()
            while not self._is_done():
                self._epoch(stop)
            if self._validated_step != self.position.step:
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

    def _epoch(self, stop: StopRequest) -> None:
        """One epoch from where the position stands, then a validation if it is due."""
        epoch, settings = self.position.epoch, self.recipe.train
        steps = min(self.steps_per_epoch, self._last_step() - epoch * self.steps_per_epoch)
        done = self.position.batch // settings.accumulate
        with self._progress(steps - done, f"epoch {epoch + 1}/{settings.epochs}") as progress:
            for batch in self._batches(epoch):
                loss = self._batch(batch)
                self.position.batch += 1
                if self.accelerator.sync_gradients:
                    progress.advance(status=f"loss {loss:.3f}")
                    self._end_step(stop)
                    if self._is_done():
                        break
        if self.position.batch < self.steps_per_epoch * settings.accumulate:
            return  # max_steps cut the epoch short
        self.position.epoch, self.position.batch = epoch + 1, 0
        if self.position.epoch % settings.validate_every == 0 or self._is_done():
            self._validate()
            self._checkpoint_when_due(stop)

    def _end_step(self, stop: StopRequest) -> None:
        self.position.step += 1
        self._checkpoint_when_due(stop)

    def _checkpoint_when_due(self, stop: StopRequest) -> None:
        """Save if the interval is over; save and end if somebody asked to stop."""
        if stop and stop.exit_code is not None:
            path = self._checkpoint()
            raise Stopped(
                f"{stop.name}: checkpoint of step {self.position.step} saved as {path}; "
                f"continue with: memorysam train --resume {self.run.path}",
                exit_code=stop.exit_code,
            )
        if self._agree(time.monotonic() - self._saved_at > 60 * self.recipe.train.checkpoint_minutes):
            self._checkpoint()
            self._saved_at = time.monotonic()

    # ------------------------------------------------------------------ one step

    def _batch(self, batch: Batch) -> float:
        """Forward, losses, backward and, at the end of an accumulation, the update; returns the total loss."""
        settings = self.recipe
        assert batch.label is not None
        # Counted before the transfer: on a GPU the question would wait for the device.
        self.position.all_ignored += int(bool((batch.label == IGNORE).all()))
        batch = batch.to(self.accelerator.device)
        assert batch.label is not None
        with self.accelerator.accumulate(self.model):
            output = self.model(batch.frames)
            logits = upsample(output, size=(batch.label.shape[-2], batch.label.shape[-1]))[:, : self.network.classes]
            ohem = ohem_cross_entropy(
                logits, batch.label, threshold=settings.ohem.threshold, min_kept=settings.ohem.min_kept
            )
            spmm = self._prototype_loss(output.features, batch.label)
            loss = ohem + settings.spmm.weight * spmm
            self.accelerator.backward(loss)
            row = {"loss": loss.item(), "ohem": ohem.item(), "spmm": settings.spmm.weight * spmm.item()}
            if self.accelerator.sync_gradients:
                self._update(row, batch)
        return float(row["loss"])

    def _update(self, row: dict[str, float], batch: Batch) -> None:
        """Let the optimiser act, if loss and gradient are finite."""
        step = self.position.step
        rate = learning_rate(
            step, optim=self.recipe.optim, steps_per_epoch=self.steps_per_epoch, epochs=self.recipe.train.epochs
        )
        norm = self._gradient_norm()
        # In fp16 an overflow is expected now and then: the scaler skips the step and lowers its scale.
        is_finite = math.isfinite(row["loss"]) and (math.isfinite(norm) or self.accelerator.scaler is not None)
        if not self._agree(is_finite, all_must=True):
            self._diverge(row["loss"], rate=rate, norm=norm, batch=batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._log({"step": step + 1, "epoch": self.position.epoch, **row, "lr": rate, "gradient_norm": norm})

    def _prototype_loss(self, features: Tensor, label: Tensor) -> Tensor:
        if self.prototypes is None:
            return features.new_zeros(())
        reduce = sum_over_processes if self.accelerator.num_processes > 1 else None
        loss: Tensor = self.prototypes(features, label, reduce=reduce)
        return loss

    def _gradient_norm(self) -> float:
        self.accelerator.unscale_gradients(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _diverge(self, loss: float, *, rate: float, norm: float, batch: Batch) -> None:
        """End the run with the weights of before this step."""
        self._checkpoint()
        names = ", ".join(scene.id for scene in batch.scenes[:4])
        raise DivergedError(
            f"step {self.position.step + 1}: loss {loss}, gradient norm {norm}, lr {rate:.3g}, scenes {names}; "
            f"the weights of step {self.position.step} are in {self.run.last}; try a lower optim.lr"
        )

    # ------------------------------------------------------------------ looking and saving

    def _validate(self) -> None:
        """Score the selection split with the code of ``memorysam evaluate``, keep the best, draw pictures."""
        result = self._evaluate()
        self._validated_step = self.position.step
        scores, native = result.protocol(HEADLINE), result.protocol("native")
        metric = Metric(
            miou=scores.miou, protocol=HEADLINE, split=self.recipe.data.selection_split,
            epoch=self.position.epoch, step=self.position.step,
        )  # fmt: skip
        self._log({"step": self.position.step, "epoch": self.position.epoch, "miou": scores.miou,
                   "macc": scores.macc, "mf1": scores.mf1, "miou_native": native.miou})  # fmt: skip
        best = self.position.best_miou
        is_best = math.isfinite(scores.miou) and (best is None or scores.miou > best)
        if is_best:
            self.position.best_miou, self.position.best_step = scores.miou, self.position.step
        if self.accelerator.is_main_process:
            self.network.card = self.network.card.model_copy(update={"metric": metric})
            if is_best:
                save(self.network, self.run.best)
            best_now = self.position.best_miou
            console.note(
                f"step {self.position.step}: {metric.split} mIoU {scores.miou:.2f}"
                + (" (best so far)" if is_best else f" (best {best_now:.2f})" if best_now is not None else "")
            )
            draw_curves(self.run)
            draw_samples(self.network, self.manifest, self.validation_scenes, self.run.samples)
        self.accelerator.wait_for_everyone()

    def _evaluate(self) -> Evaluation:
        share = math.ceil(len(self.validation_scenes) / self.accelerator.num_processes)
        with self._progress(share, "validate") as progress:
            return evaluate(
                self.network,
                self.manifest,
                scenes=self.validation_scenes,
                modalities=self.network.card.modalities,
                image_size=self.recipe.data.image_size,
                device=self.accelerator.device,
                batch=self.recipe.train.batch,
                workers=self.recipe.data.workers,
                accelerator=self.accelerator,
                advance=progress.advance,
            )

    def _checkpoint(self) -> Path | None:
        """Write the whole state and the user's copy of the weights."""
        rng = gather_object([self._rng()]) if self.accelerator.num_processes > 1 else [self._rng()]
        path = None
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            self.position.scaler = scaler.state_dict() if scaler is not None else {}
            state = State(
                position=self.position,
                model=own_tensors(self.network),
                optimizer=self._optimizer_state(),
                rng={f"{rank}/{name}": value for rank, own in enumerate(rng) for name, value in own.items()},
                identity=self.identity(),
            )
            path = checkpoints.write(self.run.checkpoints, state, keep=self.recipe.train.keep_checkpoints)
            save(self.network, self.run.last)
            console.detail(f"step {self.position.step}: checkpoint {path.name}")
        self.accelerator.wait_for_everyone()
        return path

    def _restore(self, state: State) -> None:
        """Put everything back as it was at a checkpoint."""
        differing = [key for key, value in self.identity().items() if state.identity.get(key) != value]
        if differing:
            raise UsageError(
                f"{self.run.path}: cannot be resumed: its {' and '.join(differing)} changed since it began; "
                "start a new run, or undo the change"
            )
        if state.position.world != self.accelerator.num_processes:
            raise UsageError(
                f"{self.run.path}: was trained by {state.position.world} processes and cannot be resumed "
                f"by {self.accelerator.num_processes}; start as many"
            )
        self.position = state.position
        fill_own(self.network, state.model, where=str(self.run.path))
        kept = {name.removeprefix("adamw/"): v for name, v in state.optimizer.items() if name.startswith("adamw/")}
        checkpoints.restore_optimizer(self.optimizer.optimizer, self.names, kept)
        if self.prototypes is not None:
            self.prototypes.prototypes.copy_(state.optimizer["spmm/prototypes"])
            self.prototypes.seen.copy_(state.optimizer["spmm/seen"].bool())
        if self.accelerator.scaler is not None and self.position.scaler:
            self.accelerator.scaler.load_state_dict(self.position.scaler)
        prefix = f"{self.accelerator.process_index}/"
        self._set_rng({name.removeprefix(prefix): v for name, v in state.rng.items() if name.startswith(prefix)})
        self._forget_later_rows()

    def identity(self) -> dict[str, str]:
        """What must not change between a run and its continuation."""
        recipe = self.recipe.model_dump(mode="json")
        # How the work is done may change; what is computed may not.
        recipe["data"].pop("workers")
        for key in ("checkpoint_minutes", "keep_checkpoints", "max_steps", "validate_every"):
            recipe["train"].pop(key)
        return {
            "recipe": hashlib.sha256(documents.to_json(recipe).encode()).hexdigest(),
            "data set": self.manifest.info.content_hash,
            "base weights": self.network.card.base.sha256,
        }

    # ------------------------------------------------------------------ small parts

    def _steps_per_epoch(self) -> int:
        settings = self.recipe.train
        at_once: int = settings.batch * self.accelerator.num_processes * settings.accumulate
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

    def _batches(self, epoch: int) -> Iterator[Batch]:
        batches = training_batches(
            self.manifest,
            scenes=self.scenes,
            recipe=self.recipe,
            epoch=epoch,
            start=self.position.batch,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        whole = self.steps_per_epoch * self.recipe.train.accumulate
        for batch, _ in zip(batches, range(whole - self.position.batch), strict=False):
            yield batch

    def _prototypes(self) -> PrototypeMemory | None:
        settings = self.recipe.spmm
        if settings.variant == "off":
            return None
        width = self.network.sam.sam_mask_decoder.conv_s0.out_channels
        memory = PrototypeMemory(
            self.network.classes, width=width, variant=settings.variant, momentum=settings.momentum
        )
        return memory.to(self.accelerator.device)

    def _optimizer_state(self) -> dict[str, Tensor]:
        flat = checkpoints.optimizer_tensors(self.optimizer.optimizer, self.names)
        # The count keeps the file from being empty before the first update.
        state = {"updates": torch.tensor([self.position.step])}
        state |= {f"adamw/{name}": value for name, value in flat.items()}
        if self.prototypes is not None:
            state["spmm/prototypes"] = self.prototypes.prototypes
            state["spmm/seen"] = self.prototypes.seen.to(torch.uint8)
        return state

    def _rng(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.accelerator.device)
        return states

    def _set_rng(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and self.accelerator.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.accelerator.device)

    def _agree(self, claim: bool, *, all_must: bool = False) -> bool:
        """Whether any process claims something (or all do); every process gets the same answer."""
        if self.accelerator.num_processes == 1:
            return claim
        votes = self.accelerator.reduce(torch.tensor(int(claim), device=self.accelerator.device))
        return int(votes) == self.accelerator.num_processes if all_must else int(votes) > 0

    def _introduce(self) -> None:
        """Say what is about to happen."""
        if not self.accelerator.is_main_process:
            return
        settings, network = self.recipe.train, self.network
        trained = count(list(self.parameters.values()))
        names = ", ".join(self.recipe.data.modalities)
        console.note(f"run: {self.run.path}  device: {self.accelerator.device}  modalities: {names}")
        console.note(
            f"{len(self.scenes)} scenes, {self.steps_per_epoch} updates per epoch, "
            f"{settings.batch} × {settings.accumulate} × {self.accelerator.num_processes} scenes per update; "
            f"{trained:,} of {count(list(network.parameters())):,} parameters are trained"
        )
        if len(self.recipe.data.modalities) == 1:
            console.note("one modality: memory attention and memory encoder get no gradient and are frozen")
        if self.position.step:
            console.note(f"resumed at step {self.position.step}, epoch {self.position.epoch + 1}")

    @contextlib.contextmanager
    def _progress(self, total: int, label: str) -> Iterator[Any]:
        """A progress display in the main process, nothing in the others."""
        with console.progress(total if self.accelerator.is_main_process else 0, label) as progress:
            yield progress

    def _log(self, row: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            finite = {k: (v if not isinstance(v, float) or math.isfinite(v) else None) for k, v in row.items()}
            documents.append_json_line(self.run.metrics, finite)

    def _forget_later_rows(self) -> None:
        """Drop logged rows of steps that a resumed run will do again."""
        if self.accelerator.is_main_process and self.run.metrics.exists():
            rows = [row for row in documents.read_json_lines(self.run.metrics) if row["step"] <= self.position.step]
            atomic.write_text(self.run.metrics, "".join(documents.to_json(row) + "\n" for row in rows))


def make_optimizer(parameters: dict[str, torch.nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on all but one-dimensional parameters (METHOD §4)."""
    settings = recipe.optim
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
