"""Which run a ``memorysam train`` starts or resumes, and the checks before its first update.

In the order of a start: the recipe, its data set, the run's folder and checkpoint, the weights of ``--init``, the space
on the disk, and the output before the first update. The user's request is checked without torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memorysam_cli import recipe as recipes
from memorysam_cli.data import decode
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.data.statistics import with_class_pixels
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.errors import DataError, EnvironmentFault, MemorySamError, UsageError, WeightsError
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, lock
from memorysam_cli.text import counted, megabytes, typed

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from memorysam_cli.engine.train.checkpoints import Position
    from memorysam_cli.engine.train.update import Learner

AUTO = "auto"
DISK_MARGIN = 1.05
"""Bytes for headers, logs and pictures, besides the checkpoints."""


def choose_recipe(name: str | None, *, overrides: list[str], resume: str | None, out: Path | None) -> Recipe:
    """The named recipe, the recipe of the run to resume, or the default recipe."""
    if name is not None:
        return recipes.load(name, overrides, with_extensions=True)
    if resume is not None and resume != AUTO:
        return recipes.load(_run_at(Path(resume)).path / run_folder.RECIPE, overrides)
    run = existing(recipes.DEFAULT, out=out, resume=resume)
    return recipes.load(recipes.DEFAULT if run is None else run.path / run_folder.RECIPE, overrides)


def resolve(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with ``data.dataset: auto`` and ``data.modalities: [all]`` replaced by what is prepared.

    Args:
        recipe: any; one without these values is returned unchanged.
        root: the data root.

    Raises:
        UsageError: several data sets are prepared there, or ``all`` is given and none is.
        DataError: none is prepared, or it has no labels for training.
    """
    name = recipe.data.dataset
    if name == recipes.AUTO:
        name = manifests.only_prepared(root)
    elif recipe.data.modalities != (recipes.ALL,):
        return recipe
    info = manifests.read_info(root, name)
    if info.counts and not set(info.counts) - set(info.unlabeled):
        raise DataError(
            f"{root}: data set '{name}' was prepared without labels and can only be predicted; prepare it again with "
            "--labels and --classes to train on it"
        )
    return recipe.for_dataset(name, [modality.name for modality in info.modalities])


def refuse_missing_splits(recipe: Recipe, manifest: Manifest) -> None:
    """Refuse a data set without a split that training needs, and say what to do.

    Raises:
        DataError: there is no scene for training, none for choosing the best weights, or no label.
    """
    info = manifest.info
    uses = {
        recipe.data.train_split: ("data.train_split", "trained on"),
        recipe.data.selection_split: ("data.selection_split", "used to choose the best weights"),
    }
    known = ", ".join(f"{name} ({count})" for name, count in info.counts.items() if count)
    for split, (key, use) in uses.items():
        why = "has no labels" if split in info.unlabeled else "" if info.counts.get(split) else "has no scene"
        if why:
            raise DataError(
                f"{info.name}: split '{split}', which is {use}, {why} (known: {known}); prepare the data set with such "
                f"a split, or name another with --set {key}=NAME"
            )


def refuse_unlabeled(recipe: Recipe, manifest: Manifest) -> None:
    """Refuse labels without a single labeled pixel; usually the first label has some.

    Raises:
        DataError: no pixel has a class in the training split or in the selection split.
    """
    info = manifest.info
    uses = {
        recipe.data.train_split: ("data.train_split", "nothing to learn"),
        recipe.data.selection_split: ("data.selection_split", "nothing to choose the best weights by"),
    }
    for split, (key, use) in uses.items():
        scenes = manifest.of_split(split)
        if not any(_may_have_class(scene, manifest) for scene in scenes):
            raise DataError(
                f"{info.name}: no labeled pixel in '{split}': {counted(len(scenes), 'label', 'holds')} nothing but "
                f"what counts as 'ignored', so that there is {use}; prepare the data set again with the right "
                f"--classes and --ignore, or name another split with --set {key}=NAME"
            )


def refuse_sensors(recipe: Recipe, manifest: Manifest) -> None:
    """Refuse sensors that the data set does not have, or does not describe sufficiently.

    Raises:
        DataError: names the sensor.
    """
    weak = [name for name in recipe.robust.subset.weak if name not in recipe.sensors]
    manifests.modalities_of(manifest.info, [*recipe.data.modalities, *weak])
    refuse_unknown_turns(recipe, manifest)


def refuse_unknown_turns(recipe: Recipe, manifest: Manifest) -> None:
    """Refuse to rotate angle sensors whose ``turn`` is unknown.

    Raises:
        DataError: names the sensor, and the missing key of its description.
    """
    if not recipe.augment.rotate:
        return
    for modality in manifest.info.chosen(recipe.data.modalities):
        if modality.flip != "mirror" and modality.turn is None:
            raise DataError(
                f"{manifest.info.name}: sensor '{modality.name}' holds angles (flip: {modality.flip}), and "
                "dataset.json does not say how they turn with the picture: set its 'turn' to 1, or to 2 where they are "
                "stored doubled (negative: they count clockwise), or leave augment.rotate at 0"
            )


def with_counted_classes(recipe: Recipe, manifest: Manifest, accelerator: Accelerator) -> Manifest:
    """The data set with its classes' pixels, if the recipe's class weights are computed from them.

    One process counts for all; every process must call this.
    """
    if recipe.ohem.class_weights not in ("inverse", "effective"):
        return manifest
    split = recipe.data.train_split
    found = [with_class_pixels(manifest, split=split).info.class_pixels if accelerator.is_main_process else None]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(found)
    return replace(manifest, info=manifest.info.model_copy(update={"class_pixels": found[0]}))


@dataclass(frozen=True)
class Extent:
    """The length of a training run."""

    scenes_per_step: int
    """Scenes of one update in all processes."""
    steps_per_epoch: int
    last_step: int


def extent_of(recipe: Recipe, *, scenes: int, processes: int, dataset: str) -> Extent:
    """The length of a training run for a recipe, a data set and a number of processes.

    Args:
        recipe: batch, accumulation, epochs, ``train.max_steps``.
        scenes: number of scenes in the training split.
        processes: number of processes.
        dataset: its name, for messages.

    Raises:
        DataError: there are not enough scenes for one update.
    """
    settings = recipe.train
    at_once = settings.batch * settings.accumulate * processes
    if scenes < at_once:
        raise DataError(
            f"{dataset}: split '{recipe.data.train_split}' has {counted(scenes, 'scene')}, fewer than the {at_once} of "
            "one update; lower train.batch or train.accumulate"
        )
    whole = scenes // at_once * settings.epochs
    return Extent(at_once, scenes // at_once, min(whole, settings.max_steps or whole))


def _may_have_class(scene: Scene, manifest: Manifest) -> bool:
    """Whether any pixel of a scene's label has a class; training itself reports an unreadable label."""
    info = manifest.info
    if scene.label is None:
        return False
    try:
        label = decode.read_label(manifest.root / scene.label, info.label, len(info.classes), palette=info.palette)
    except DataError:
        return True
    return bool((label != IGNORE).any())


@dataclass(frozen=True)
class RunStart:
    """What a ``memorysam train`` will do, decided before anything is written."""

    recipe: Recipe
    out: Path | None
    run: RunFolder | None
    """The run to resume; None for a new one."""
    checkpoint: Path | None
    """The checkpoint to resume from."""
    damaged: tuple[Path, ...] = ()
    """Newer checkpoints that are damaged."""
    abandoned: tuple[Path, ...] = ()
    """Newer checkpoints that the user does not want to use."""
    begins_again: bool = False
    """Whether ``out`` has a run that ended before its first checkpoint."""
    notes: tuple[str, ...] = ()
    """Lines to print when the run starts."""


def plan(recipe: Recipe, *, out: Path | None, resume: str | None) -> RunStart:
    """Decide which run to start or resume, and from which checkpoint.

    Args:
        resume: None, ``auto``, or the path of a run or of one of its checkpoints.

    Raises:
        UsageError: ``out`` contains something else.
        EnvironmentFault: nothing can be written there.
        FolderInUseError: a process of this machine uses the folder.
        WeightsError: there is a run, or one was requested, but it has no valid checkpoint. It is never silently started
            again.
    """
    run = existing(recipe.name, out=out, resume=resume)
    if (folder := out if run is None else run.path) is not None:
        _refuse_used(folder)
    if run is None:
        if out is not None:
            run_folder.refuse_taken(out)
        atomic.refuse_unwritable(out or run_folder.RUNS)
        where = out or f"{run_folder.RUNS}/{recipe.name}-…"
        notes = (f"{where}: holds no run yet; starting one",) if resume == AUTO else ()
        return RunStart(recipe, out, run=None, checkpoint=None, notes=notes)
    if resume == AUTO and run.is_unbegun():
        note = f"{run.path}: a run was started here and ended before its first checkpoint; starting it again at step 0"
        return RunStart(recipe, run.path, run=None, checkpoint=None, notes=(note,), begins_again=True)
    target = Path(resume) if resume is not None and resume != AUTO else run.path
    if target.resolve() != run.path.resolve():
        if not checkpoints.is_valid(target):
            raise WeightsError(
                f"--resume {target}: is not a valid checkpoint; --resume {typed(run.path)} takes the newest valid"
            )
        return RunStart(recipe, out, run, checkpoint=target, abandoned=tuple(checkpoints.newer_than(target)))
    newest, damaged = checkpoints.newest_valid(run.checkpoints)
    if newest is None:
        raise WeightsError(
            f"{run.path}: holds a run but no valid checkpoint ({len(damaged)} damaged); it cannot be continued; "
            + (
                f"--out {typed(run.path)} --resume auto starts it again"
                if run.is_unbegun()
                else "start a new run in another folder"
            )
        )
    return RunStart(recipe, out, run, checkpoint=newest, damaged=tuple(damaged))


def existing(name: str, *, out: Path | None, resume: str | None) -> RunFolder | None:
    """The run to resume; None for a new one.

    Args:
        name: of the recipe.
        out: the value of ``--out``.
        resume: None, ``auto``, or the path of a run or of one of its checkpoints.

    Raises:
        WeightsError: there is no run at that path.
        UsageError: it is in another folder than ``out``.
    """
    if resume is None:
        return None
    if resume != AUTO:
        run = _run_at(Path(resume))
        if out is not None and out.resolve() != run.path.resolve():
            raise UsageError(f"--out {out}: a resumed run stays in its own folder {run.path}; leave --out away")
        return run
    if out is None:
        return run_folder.newest(name)
    return RunFolder(out) if RunFolder(out).holds_run() else None


def _run_at(path: Path) -> RunFolder:
    """The run that a folder or one of its checkpoints belongs to."""
    for folder in (path, path.parent.parent):
        if RunFolder(folder).holds_run():
            return RunFolder(run_folder.by_its_name(folder))
    what = "does not exist" if not path.exists() else "is neither a run folder nor a checkpoint of one"
    raise WeightsError(f"--resume {path}: {what}; give a folder such as runs/latest, or --resume auto")


def _refuse_used(folder: Path) -> None:
    """Refuse a folder in use early, before the seconds that a start takes; the lock itself decides later.

    This reads the owner's record, because taking the lock, even for a moment, could make another start fail.
    """
    try:
        record = documents.read_json(folder / lock.NAME)
        os.kill(int(record["pid"]), 0)
    except (MemorySamError, OSError, KeyError, TypeError, ValueError, OverflowError):
        return
    if record.get("host") == socket.gethostname() and record["pid"] != os.getpid():
        with lock.hold(folder):  # raises if the process has ended; or its number was reused
            pass


def checkpoint_bytes(learner: Learner) -> int:
    """The size of a checkpoint: the tensors, two moments of each trained tensor, their average, and the state of the
    losses."""
    from memorysam_cli.model.weights import own_tensors

    kept = _bytes(learner.average.tensors) + _bytes(learner.objective.state())
    return _bytes(own_tensors(learner.network)) + 2 * _bytes(learner.parameters) + kept


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@contextlib.contextmanager
def begin(run_start: RunStart, accelerator: Accelerator, *, checkpoint_bytes: int = 0) -> Iterator[RunFolder]:
    """Create the run's folder if it is new, and hold its lock; all processes of a run get the same folder.

    Args:
        run_start: from :func:`plan`.
        accelerator: the processes.
        checkpoint_bytes: size of a checkpoint, for which there must be space.

    Raises:
        EnvironmentFault: the disk has too little space.
        UsageError: the folder was taken in the meantime.
        FolderInUseError: another process is training there.
    """
    with contextlib.ExitStack() as stack:
        answer: list[RunFolder | MemorySamError | None] = [None]
        if accelerator.is_main_process:
            try:
                answer = [_begin(stack, run_start, checkpoint_bytes)]
            except MemorySamError as error:
                answer = [error]
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(answer)
        run = answer[0]
        if isinstance(run, MemorySamError):
            raise run
        assert run is not None
        yield run


def _begin(stack: contextlib.ExitStack, run_start: RunStart, checkpoint_bytes: int) -> RunFolder:
    """As :func:`begin`, in the main process."""
    is_new = run_start.run is None
    run = run_start.run or RunFolder(run_start.out or run_folder.name_for(run_start.recipe))
    if not run.path.is_symlink() or run.path.exists():
        atomic.refuse_unwritable(run.path)
    present = 0 if is_new else len(checkpoints.all_valid(run.checkpoints))
    keep = run_start.recipe.train.keep_checkpoints
    refuse_full_disk(run.path, checkpoint=checkpoint_bytes, keep=keep, present=present)
    if is_new and not run_start.begins_again and not (run.path / lock.NAME).exists():
        run_folder.refuse_taken(run.path)  # before the lock, whose file would stay in a user's own folder
    stack.enter_context(lock.hold(run.path))
    if is_new:
        run_folder.create(run_start.recipe, run.path, begins_again=run_start.begins_again)
    run.sweep()
    checkpoints.sweep(run.checkpoints)
    for line in run_start.notes:
        console.note(line)
    for path in run_start.damaged:
        aside = checkpoints.set_aside(path, "corrupt")
        console.warn(f"{path}: is damaged and set aside as {aside.name}; continuing without it")
    for path in run_start.abandoned:
        # Left in place, the next --resume auto would return to them.
        console.note(f"{path}: is set aside as {checkpoints.set_aside(path, 'abandoned').name}")
    run_folder.note_begun(run.path)
    return run


def refuse_full_disk(folder: Path, *, checkpoint: int, keep: int, present: int) -> None:
    """Refuse to start if the disk cannot hold all checkpoints, and the next one before an old one is removed.

    Args:
        folder: of the run; may not exist yet.
        checkpoint: its size in bytes.
        keep: number of checkpoints to keep.
        present: number of valid checkpoints in the folder.

    Raises:
        EnvironmentFault: the message has the needed and the free space.
    """
    count = max(1, keep + 1 - present)
    needed, free = int(count * checkpoint * DISK_MARGIN), _free(folder)
    if free is not None and free < needed:
        raise EnvironmentFault(
            f"{folder}: the disk is too full for this training: needs {megabytes(needed)} "
            f"({counted(count, 'checkpoint')} of "
            f"{megabytes(checkpoint)}), free {megabytes(free)}; free some space or choose another --out, then run "
            "the same command again"
        )


def _free(folder: Path) -> int | None:
    """Free bytes on the disk of a folder that may not exist yet; None if unknown."""
    for place in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


def introduction(
    run: RunFolder, learner: Learner, position: Position, *, scenes: int, steps_per_epoch: int
) -> Iterator[str]:
    """The lines to print before training starts.

    Args:
        run: the run's folder.
        learner: the network and its recipe.
        position: where it starts.
        scenes: of the training split.
        steps_per_epoch: updates.
    """
    from memorysam_cli.model.network import count

    recipe, accelerator = learner.recipe, learner.accelerator
    settings, processes, modalities = recipe.train, accelerator.num_processes, recipe.sensors
    update = f"batch {settings.batch}, {settings.accumulate} accumulated, {counted(processes, 'process')}"
    trainable, whole = count(learner.parameters.values()), count(learner.network.parameters())
    yield f"run       {run.path}"  # short lines: a terminal may be narrow
    yield f"device    {accelerator.device}"
    yield f"sensors   {', '.join(modalities)}"
    for sensor, frames in modalities.items():
        if len(frames) > 1:
            yield f"projected {sensor}, from {', '.join(frames)}"
    yield f"scenes    {scenes}, in {counted(steps_per_epoch, 'update')} per epoch"
    yield f"update    {counted(settings.batch * settings.accumulate * processes, 'scene')} ({update})"
    yield f"trained   {trainable:,} of {whole:,} parameters"
    if recipe.losses or recipe.trains_subsets:
        yield f"losses    {', '.join(recipe.terms)}"
    if recipe.ohem.class_weights != "none":
        pairs = zip(learner.objective.task.classes, learner.objective.state()["ohem/class_weights"], strict=True)
        yield f"class weights: {', '.join(f'{name} {weight:.3g}' for name, weight in pairs)}"
    if recipe.optim.ema:
        yield f"averaged weights are validated and saved (optim.ema={recipe.optim.ema:g})"
    if len(modalities) == 1:
        yield "one modality: memory attention and memory encoder get no gradient and are frozen"
        if any(recipe.robust.weights.values()):
            yield "one modality: 'robust' has no smaller set of sensors to train and does nothing"
    if position.step:
        yield f"resumed at step {position.step}, epoch {position.epoch + 1}"
