"""Everything that ``memorysam train`` does between its options and its answer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.data.statistics import with_ranges
from memorysam_cli.engine import run_folder, surroundings
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import start
from memorysam_cli.engine.train.endings import Ending
from memorysam_cli.engine.train.tracking import Tracking
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import documents

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from memorysam_cli.engine.train.endings import TrainingResult
    from memorysam_cli.engine.train.loop import Trainer

BatchChoice = Callable[[start.RunStart, Manifest, "Accelerator"], start.RunStart]


@dataclass(frozen=True)
class Request:
    """The options of a training run; see ``memorysam train --help``."""

    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    data: Path | None = None
    out: Path | None = None
    resume: str | None = None
    device: str = "auto"
    choose_batch: BatchChoice | None = None
    """``--batch auto``: a function that finds the largest settings that fit. It is passed in, because measuring is in a
    higher layer than training."""
    trackers: tuple[str, ...] = ()
    """From :func:`memorysam_cli.engine.train.tracking.names`."""
    advise: Callable[[torch.device, Recipe], str | None] = lambda _device, _recipe: None
    """A message for the user, printed once before training starts, if there is one."""
    strict: bool = False
    """Refuse sensors whose values differ from those that the weights of ``--init`` were trained on."""

    @property
    def plans_batch(self) -> bool:
        """Whether ``--batch auto`` was given."""
        return self.choose_batch is not None


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    run: RunFolder
    recipe: Recipe
    result: TrainingResult

    def to_json(self) -> dict[str, Any]:
        """The keys of ``memorysam train --json``, without its ``schema_version``."""
        return self.result.to_json()

    def show(self) -> None:
        """Print the result for users."""
        result, split = self.result, self.recipe.data.selection_split
        console.say(f"best mIoU {result.miou:.2f} on {split} at step {result.best_step}")
        console.say(f"weights   {result.best}")
        console.say(f"curves    {self.run.plots / 'curves.png'}")
        console.say(f"pictures  {self.run.samples / 'validation.png'}")


def train(request: Request) -> FinishedRun | None:
    """Train as requested. All checks happen before the run's folder is changed.

    Returns:
        The run, in the main process; None in the others.

    Raises:
        MemorySamError: the errors of :class:`Trainer` and :mod:`~memorysam_cli.engine.train.start`.
        EnvironmentFault: out of memory, nothing fits, or the disk is too full.
    """
    ending = Ending()
    with ending.of_command(request.out):
        return _train(request, ending)


def _train(request: Request, ending: Ending) -> FinishedRun | None:
    named = start.choose_recipe(
        request.recipe, overrides=list(request.overrides), resume=request.resume, out=request.out
    )
    continued = start.existing(named.name, out=request.out, resume=request.resume)
    root = run_folder.data_root(None if continued is None else continued.path, request.data)
    recipe = start.resolve(named, root)
    run_start = start.plan(recipe, out=request.out, resume=request.resume)
    surroundings.refuse_malformed()
    surroundings.refuse_device(request.device, precision=recipe.train.precision)
    scenes = manifests.read(root, recipe.data.dataset)
    start.refuse_missing_splits(recipe, scenes)
    start.refuse_sensors(recipe, scenes)
    scenes = with_ranges(scenes)  # for the weights' card
    if not request.plans_batch:
        to_learn = len(scenes.of_split(recipe.data.train_split))
        start.extent_of(recipe, scenes=to_learn, processes=surroundings.world(), dataset=scenes.info.name)
    start.refuse_unlabeled(recipe, scenes)
    # Imported here, after the checks of options and files, because torch takes seconds.
    from memorysam_cli.engine import runtime
    from memorysam_cli.engine.processes import lost_ones_named
    from memorysam_cli.engine.train import initial
    from memorysam_cli.engine.train.loop import Trainer

    runtime.prepare_deterministic(is_wanted=recipe.train.deterministic)
    device = runtime.choose_device(request.device)
    accelerator = runtime.make_accelerator(device, precision=recipe.train.precision)
    if recipe != named and accelerator.is_main_process:
        console.note(f"recipe {recipe.name}: data set {recipe.data.dataset}, {', '.join(recipe.data.modalities)}")
    if run_start.checkpoint is None:
        for line in initial.doubts(recipe, scenes, strict=request.strict):
            if accelerator.is_main_process:
                console.warn(line)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lost_ones_named(accelerator, advice=lambda: "nothing was trained yet; start again"))
        if request.choose_batch is not None:
            run_start = request.choose_batch(run_start, scenes, accelerator)
        advice = request.advise(accelerator.device, run_start.recipe) if accelerator.is_main_process else None
        if advice is not None:
            console.note(advice)
        memory_advice = _MemoryAdvice(run_start.recipe)
        stack.enter_context(runtime.explained(accelerator.device, levers=memory_advice.levers))
        memory_advice.trainer = trainer = Trainer(
            run_start.recipe, scenes, accelerator=accelerator, is_resumed=run_start.checkpoint is not None
        )
        if run_start.checkpoint is not None:
            trainer.refuse_other(run_start.checkpoint)
        memory_advice.run = run = stack.enter_context(
            start.begin(run_start, accelerator, checkpoint_bytes=start.checkpoint_bytes(trainer.learner))
        )
        if accelerator.is_main_process:
            stack.enter_context(ending.of_run(run))
            stack.enter_context(console.log_to(run.log))
            documents.write_json(run.extent, dataclasses.asdict(trainer.extent))
            run.store_data(scenes)
            trainer.tracking = Tracking(request.trackers)
        result = trainer.fit(run, resume=run_start.checkpoint)
        if accelerator.is_main_process:
            run_folder.point_latest(run.path)
    return FinishedRun(run, run_start.recipe, result) if accelerator.is_main_process else None


@dataclass
class _MemoryAdvice:
    """What to do if memory runs out, depending on the progress of the run."""

    recipe: Recipe
    trainer: Trainer | None = None
    run: RunFolder | None = None

    def levers(self) -> str:
        """The options that need less memory."""
        train = self.recipe.train
        is_saving = train.saver == "on" if self.trainer is None else self.trainer.network.saver
        ways = ["--batch auto, which tries what fits and keeps the scenes per update"] if train.batch > 1 else []
        ways += [] if is_saving else ["--saver on"]
        ways += ["--precision bf16"] if train.precision in {"fp32", "tf32"} else []
        ways += [f"a smaller data.image_size than {self.recipe.data.image_size}"]
        advice = f"start a run with {', '.join(ways)}, or on a device with more memory"
        if self.run is None or is_saving:
            return advice
        line = run_folder.resume_command(self.run.path, "--saver", "on")
        return f"{self.run.path} can continue: {line}; otherwise {advice}"
