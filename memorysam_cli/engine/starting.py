"""Which run a ``memorysam train`` begins or continues."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from memorysam_cli import recipe as recipes
from memorysam_cli.engine import checkpoints, run_folder
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.errors import MemorySamError, UsageError, WeightsError
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import lock

AUTO = "auto"


@dataclass(frozen=True)
class Start:
    """A run's folder, and the checkpoint to continue from; none for a new run."""

    run: RunFolder
    checkpoint: Path | None


def choose_recipe(name: str | None, *, overrides: list[str], resume: str | None) -> Recipe:
    """The recipe that was named, or that of the run to be resumed.

    Raises:
        UsageError: neither is given.
    """
    if name is not None:
        return recipes.load(name, overrides)
    if resume is None or resume == AUTO:
        raise UsageError("--recipe: say what to train, for example --recipe demo (see `memorysam recipes list`)")
    return recipes.load(_run_at(Path(resume)).path / run_folder.RECIPE, overrides)


@contextlib.contextmanager
def open_run(recipe: Recipe, *, out: Path | None, resume: str | None, accelerator: Accelerator) -> Iterator[Start]:
    """Find or make the run's folder and hold its lock; all processes of a run get the same answer.

    Raises:
        UsageError: the folder is taken by something else.
        WeightsError: there is a run, or one was asked for, but no valid checkpoint.
        FolderInUseError: another process is training there.
    """
    with contextlib.ExitStack() as stack:
        answer: list[Start | MemorySamError | None] = [None]
        if accelerator.is_main_process:
            try:
                answer = [_open(stack, recipe, out=out, resume=resume)]
            except MemorySamError as fault:
                answer = [fault]
        if accelerator.num_processes > 1:
            broadcast_object_list(answer)
        start = answer[0]
        if isinstance(start, MemorySamError):
            raise start
        assert start is not None
        yield start


def _open(stack: contextlib.ExitStack, recipe: Recipe, *, out: Path | None, resume: str | None) -> Start:
    """As :func:`open_run`, in the main process."""
    existing = _existing(recipe, out=out, resume=resume)
    if existing is None:
        if resume == AUTO:
            where = out or f"{run_folder.RUNS}/{recipe.name}-…"
            console.note(f"{where}: holds no run yet; starting one")
        run = run_folder.create(recipe, out)
        stack.enter_context(lock.hold(run.path))
        run_folder.point_latest(run.path)
        return Start(run, None)
    stack.enter_context(lock.hold(existing.path))
    checkpoint = _checkpoint(existing, asked=Path(resume) if resume not in {None, AUTO} else None)
    run_folder.point_latest(existing.path)
    return Start(existing, checkpoint)


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


def _checkpoint(run: RunFolder, *, asked: Path | None) -> Path:
    """The checkpoint to continue from: the one asked for, or the newest valid one."""
    if asked is not None and asked.resolve() != run.path.resolve():
        if not checkpoints.is_valid(asked):
            raise WeightsError(f"--resume {asked}: is no valid checkpoint; --resume {run.path} takes the newest valid")
        return asked
    path, damaged = checkpoints.newest_valid(run.checkpoints)
    if path is None:
        raise WeightsError(
            f"{run.path}: holds a run but no valid checkpoint ({len(damaged)} damaged); "
            "it cannot be continued; start a new run in another folder"
        )
    for bad in damaged:
        console.warn(f"{bad}: is damaged and set aside as {checkpoints.set_aside(bad).name}; using {path.name}")
    return path
