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
class Plan:
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
    notes: tuple[str, ...] = ()
    """What is said when the run begins."""


def choose_recipe(name: str | None, *, overrides: list[str], resume: str | None, out: Path | None) -> Recipe:
    """The recipe that was named, or that of the run to be resumed.

    Raises:
        UsageError: neither is given.
    """
    if name is not None:
        return recipes.load(name, overrides)
    if resume == AUTO and out is not None and RunFolder(out).holds_run():
        return recipes.load(out / run_folder.RECIPE, overrides)
    if resume is None or resume == AUTO:
        raise UsageError("--recipe: say what to train, for example --recipe demo (see `memorysam recipes list`)")
    return recipes.load(_run_at(Path(resume)).path / run_folder.RECIPE, overrides)


def plan(recipe: Recipe, *, out: Path | None, resume: str | None) -> Plan:
    """Decide which run to begin or to continue, and from which checkpoint.

    Args:
        resume: none, ``auto``, or the path of a run or of one of its checkpoints.

    Raises:
        UsageError: ``out`` is taken by something else.
        WeightsError: there is a run, or one was asked for, but no valid checkpoint; never a silent fresh start.
    """
    run = _existing(recipe, out=out, resume=resume)
    if run is None:
        if out is not None:
            run_folder.refuse_taken(out)
        where = out or f"{run_folder.RUNS}/{recipe.name}-…"
        notes = (f"{where}: holds no run yet; starting one",) if resume == AUTO else ()
        return Plan(recipe, out, run=None, checkpoint=None, notes=notes)
    asked = Path(resume) if resume is not None and resume != AUTO else run.path
    if asked.resolve() != run.path.resolve():
        if not checkpoints.is_valid(asked):
            raise WeightsError(f"--resume {asked}: is no valid checkpoint; --resume {run.path} takes the newest valid")
        return Plan(recipe, out, run, checkpoint=asked, abandoned=tuple(checkpoints.newer_than(asked)))
    newest, damaged = checkpoints.newest_valid(run.checkpoints)
    if newest is None:
        raise WeightsError(
            f"{run.path}: holds a run but no valid checkpoint ({len(damaged)} damaged); "
            "it cannot be continued; start a new run in another folder"
        )
    return Plan(recipe, out, run, checkpoint=newest, damaged=tuple(damaged))


@contextlib.contextmanager
def begin(planned: Plan, accelerator: Accelerator) -> Iterator[RunFolder]:
    """Make the run's folder if it is new, and hold its lock; all processes of a run get the same folder.

    Raises:
        UsageError: the folder was taken in the meantime.
        FolderInUseError: another process is training there.
    """
    with contextlib.ExitStack() as stack:
        answer: list[RunFolder | MemorySamError | None] = [None]
        if accelerator.is_main_process:
            try:
                answer = [_begin(stack, planned)]
            except MemorySamError as fault:
                answer = [fault]
        if accelerator.num_processes > 1:
            broadcast_object_list(answer)
        run = answer[0]
        if isinstance(run, MemorySamError):
            raise run
        assert run is not None
        yield run


def _begin(stack: contextlib.ExitStack, planned: Plan) -> RunFolder:
    """As :func:`begin`, in the main process."""
    run = planned.run or run_folder.create(planned.recipe, planned.out)
    stack.enter_context(lock.hold(run.path))
    for line in planned.notes:
        console.note(line)
    for path in planned.damaged:
        kept = checkpoints.set_aside(path, "corrupt")
        console.warn(f"{path}: is damaged and set aside as {kept.name}; going on without it")
    for path in planned.abandoned:
        # Left in place, the next --resume auto would return to them.
        console.note(f"{path}: is set aside as {checkpoints.set_aside(path, 'abandoned').name}")
    run_folder.point_latest(run.path)
    return run


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
