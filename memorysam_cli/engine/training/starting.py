"""Which run a ``memorysam train`` begins or continues."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.training import checkpoints, room
from memorysam_cli.errors import DataError, MemorySamError, UsageError, WeightsError
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, lock

AUTO = "auto"


@dataclass(frozen=True)
class RunStart:
    """What a ``memorysam train`` will do, decided before anything is written."""

    recipe: Recipe
    out: Path | None
    run: RunFolder | None
    """The run to continue; none for a new one."""
    checkpoint: Path | None
    """Where to continue from."""
    damaged: tuple[Path, ...] = ()
    """Newer checkpoints that cannot be used."""
    abandoned: tuple[Path, ...] = ()
    """Newer checkpoints that the user does not want to go on from."""
    begins_again: bool = False
    """There is a run in ``out`` that ended before its first checkpoint."""
    notes: tuple[str, ...] = ()
    """What is said when the run begins."""


def choose_recipe(name: str | None, *, overrides: list[str], resume: str | None, out: Path | None) -> Recipe:
    """The recipe that was named, or that of the run to be resumed, or the default one."""
    if name is not None:
        return recipes.load(name, overrides, with_extensions=True)
    if resume is not None and resume != AUTO:
        return recipes.load(_run_at(Path(resume)).path / run_folder.RECIPE, overrides)
    run = None
    if resume == AUTO:
        run = RunFolder(out) if out is not None and RunFolder(out).holds_run() else None
        run = run_folder.newest(recipes.DEFAULT) if out is None else run
    return recipes.load(recipes.DEFAULT if run is None else run.path / run_folder.RECIPE, overrides)


def resolve(recipe: Recipe, root: Path) -> Recipe:
    """The recipe with ``data.dataset: auto`` and ``data.modalities: [all]`` filled in by what is prepared.

    Args:
        recipe: any; one that names everything comes back as it is.
        root: the data root.

    Raises:
        UsageError: several data sets are prepared there, or ``all`` of none.
        DataError: none is prepared, or it has no labels to learn from.
    """
    name = recipe.data.dataset
    if name == recipes.AUTO:
        name = _only_dataset(root)
    elif recipe.data.modalities != (recipes.ALL,):
        return recipe
    info = manifests.read_info(root, name)
    if info.counts and not set(info.counts) - set(info.unlabelled):
        raise DataError(
            f"{root}: data set '{name}' was prepared without labels and can only be predicted; prepare it again with "
            "--labels and --classes to train on it"
        )
    return recipe.for_dataset(name, [modality.name for modality in info.modalities])


def _only_dataset(root: Path) -> str:
    """The one data set that is prepared below a root."""
    found = manifests.prepared(root)
    if not found:
        raise DataError(
            f"{root}: no data set is prepared there; type memorysam prepare folder {root} --modality … (see memorysam "
            "prepare --help), or give --data ROOT"
        )
    if len(found) > 1:
        raise UsageError(
            f"{root}: {len(found)} data sets are prepared there ({', '.join(found)}); choose one with --set "
            f"data.dataset={found[0]}, or with --recipe (see memorysam recipes list)"
        )
    return found[0]


def refuse_missing_splits(recipe: Recipe, manifest: Manifest) -> None:
    """Say what to do where a data set lacks a split that training needs.

    Raises:
        DataError: there is no scene to train on, or none to choose the best weights by, or it has no labels.
    """
    info = manifest.info
    uses = {
        recipe.data.train_split: ("data.train_split", "trained on"),
        recipe.data.selection_split: ("data.selection_split", "used to choose the best weights"),
    }
    known = ", ".join(f"{name} ({count})" for name, count in info.counts.items() if count)
    for split, (key, use) in uses.items():
        why = "has no labels" if split in info.unlabelled else "" if info.counts.get(split) else "has no scene"
        if why:
            raise DataError(
                f"{info.name}: split '{split}', which is {use}, {why} (known: {known}); prepare the data set with such "
                f"a split, or name another with --set {key}=NAME"
            )


def plan(recipe: Recipe, *, out: Path | None, resume: str | None) -> RunStart:
    """Decide which run to begin or to continue, and from which checkpoint.

    Args:
        resume: none, ``auto``, or the path of a run or of one of its checkpoints.

    Raises:
        UsageError: ``out`` is taken by something else.
        FolderInUseError: a process of this machine is at work there.
        WeightsError: there is a run, or one was asked for, but no valid checkpoint; never a silent fresh start.
    """
    run = _existing(recipe, out=out, resume=resume)
    if (folder := out if run is None else run.path) is not None:
        _refuse_used(folder)
    if run is None:
        if out is not None:
            run_folder.refuse_taken(out)
        where = out or f"{run_folder.RUNS}/{recipe.name}-…"
        notes = (f"{where}: holds no run yet; starting one",) if resume == AUTO else ()
        return RunStart(recipe, out, run=None, checkpoint=None, notes=notes)
    if resume == AUTO and run.is_unbegun():
        note = f"{run.path}: a run was started here and ended before its first checkpoint; starting it again at step 0"
        return RunStart(recipe, run.path, run=None, checkpoint=None, notes=(note,), begins_again=True)
    requested = Path(resume) if resume is not None and resume != AUTO else run.path
    if requested.resolve() != run.path.resolve():
        if not checkpoints.is_valid(requested):
            raise WeightsError(
                f"--resume {requested}: is no valid checkpoint; --resume {run.path} takes the newest valid"
            )
        return RunStart(recipe, out, run, checkpoint=requested, abandoned=tuple(checkpoints.newer_than(requested)))
    newest, damaged = checkpoints.newest_valid(run.checkpoints)
    if newest is None:
        raise WeightsError(
            f"{run.path}: holds a run but no valid checkpoint ({len(damaged)} damaged); it cannot be continued; "
            + (
                f"--out {run.path} --resume auto starts it again"
                if run.is_unbegun()
                else "start a new run in another folder"
            )
        )
    return RunStart(recipe, out, run, checkpoint=newest, damaged=tuple(damaged))


@contextlib.contextmanager
def begin(planned: RunStart, accelerator: Accelerator, *, checkpoint_bytes: int = 0) -> Iterator[RunFolder]:
    """Make the run's folder if it is new, and hold its lock; all processes of a run get the same folder.

    Args:
        planned: of :func:`plan`.
        accelerator: the processes.
        checkpoint_bytes: what a checkpoint takes, for which there must be room.

    Raises:
        EnvironmentFault: the disk has too little room.
        UsageError: the folder was taken in the meantime.
        FolderInUseError: another process is training there.
    """
    with contextlib.ExitStack() as stack:
        answer: list[RunFolder | MemorySamError | None] = [None]
        if accelerator.is_main_process:
            try:
                answer = [_begin(stack, planned, checkpoint_bytes)]
            except MemorySamError as fault:
                answer = [fault]
        if accelerator.num_processes > 1:
            broadcast_object_list(answer)
        run = answer[0]
        if isinstance(run, MemorySamError):
            raise run
        assert run is not None
        yield run


def _begin(stack: contextlib.ExitStack, planned: RunStart, checkpoint_bytes: int) -> RunFolder:
    """As :func:`begin`, in the main process."""
    is_new = planned.run is None
    run = planned.run or RunFolder(planned.out or run_folder.name_for(planned.recipe))
    if not run.path.is_symlink() or run.path.exists():
        atomic.refuse_unwritable(run.path)
    kept = 0 if is_new else len(checkpoints.all_valid(run.checkpoints))
    keep = planned.recipe.train.keep_checkpoints
    room.refuse_small(run.path, checkpoint=checkpoint_bytes, keep=keep, kept=kept)
    if is_new and not planned.begins_again and not (run.path / lock.NAME).exists():
        run_folder.refuse_taken(run.path)  # before the lock, which would leave its file in a user's own folder
    stack.enter_context(lock.hold(run.path))
    if is_new:
        run_folder.create(planned.recipe, run.path, begins_again=planned.begins_again)
    run.sweep()
    checkpoints.sweep(run.checkpoints)
    for line in planned.notes:
        console.note(line)
    for path in planned.damaged:
        aside = checkpoints.set_aside(path, "corrupt")
        console.warn(f"{path}: is damaged and set aside as {aside.name}; going on without it")
    for path in planned.abandoned:
        # Left in place, the next --resume auto would return to them.
        console.note(f"{path}: is set aside as {checkpoints.set_aside(path, 'abandoned').name}")
    run_folder.point_latest(run.path)
    return run


def _refuse_used(folder: Path) -> None:
    """Tell of an owner that lives before the seconds that a start takes; the lock itself decides later.

    Asking the lock would take it for a moment, in which another start could fail; so the owner's record is asked first.
    """
    try:
        record = documents.read_json(folder / lock.NAME)
        os.kill(int(record["pid"]), 0)
    except (MemorySamError, OSError, KeyError, TypeError, ValueError, OverflowError):
        return
    if record.get("host") == socket.gethostname() and record["pid"] != os.getpid():
        with lock.hold(folder):  # raises, or the number is now another process's
            pass


def _existing(recipe: Recipe, *, out: Path | None, resume: str | None) -> RunFolder | None:
    """The run to continue; none if a new one is to begin."""
    if resume is None:
        return None
    if resume != AUTO:
        run = _run_at(Path(resume))
        if out is not None and out.resolve() != run.path.resolve():
            raise UsageError(f"--out {out}: a resumed run stays in its own folder {run.path}; leave --out away")
        return run
    if out is None:
        return run_folder.newest(recipe.name)
    return RunFolder(out) if RunFolder(out).holds_run() else None


def _run_at(path: Path) -> RunFolder:
    """The run that a folder or one of its checkpoints belongs to."""
    for folder in (path, path.parent.parent):
        if RunFolder(folder).holds_run():
            return RunFolder(folder)
    what = "is not there" if not path.exists() else "is no run folder and no checkpoint of one"
    raise WeightsError(f"--resume {path}: {what}; give a folder such as runs/latest, or --resume auto")
