"""Which run a ``memorysam train`` begins or continues, and what must hold before its first update.

In the order of a start: the recipe, its data set, the run's folder and checkpoint, the weights of ``--init``, the
room on the disk, and what is printed before the first update.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, equal

from memorysam_cli import recipe as recipes
from memorysam_cli.data import decode
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.infer.inference import compared
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.checkpoints import Position
from memorysam_cli.engine.train.objective import teacher_file
from memorysam_cli.engine.train.update import Learner
from memorysam_cli.errors import DataError, EnvironmentFault, MemorySamError, UsageError, WeightsError
from memorysam_cli.model import Segmenter, base_weights
from memorysam_cli.model.network import count
from memorysam_cli.model.weights import WeightsCard, fill_own, own_tensors, read, read_card
from memorysam_cli.recipe import Recipe
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, lock, tensors
from memorysam_cli.text import command, megabytes, typed, typed_path

AUTO = "auto"
DISK_MARGIN = 1.05
"""Folders, headers, logs and pictures, beside the checkpoints."""
READING = {"mean", "std", "channels", "bands", "scale", "offset"}
"""The settings of a sensor that decide what values the network sees."""
_OTHER_WEIGHTS = "give other weights, or begin without --init"


def choose_recipe(name: str | None, *, overrides: list[str], resume: str | None, out: Path | None) -> Recipe:
    """The recipe that was named, or that of the run to be resumed, or the default one."""
    if name is not None:
        return recipes.load(name, overrides, with_extensions=True)
    if resume is not None and resume != AUTO:
        return recipes.load(_run_at(Path(resume)).path / run_folder.RECIPE, overrides)
    run = existing(recipes.DEFAULT, out=out, resume=resume)
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
    datasets = manifests.prepared(root)
    if not datasets:
        raise DataError(f"{root}: no data set is prepared there; type {manifests.own_line(root)}, or give --data ROOT")
    if len(datasets) > 1:
        raise UsageError(
            f"{root}: {len(datasets)} data sets are prepared there ({', '.join(datasets)}); choose one with --set "
            f"data.dataset={datasets[0]}, or with --recipe (see {command('recipes', 'list')})"
        )
    return datasets[0]


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


def refuse_unlabelled(recipe: Recipe, manifest: Manifest) -> None:
    """Refuse labels of which no pixel counts; mostly the first one that is looked at has some.

    Raises:
        DataError: there is nothing to learn, or nothing to choose the best weights by.
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
                f"{info.name}: no labeled pixel in '{split}': all {len(scenes)} labels hold nothing but what counts as "
                f"'ignored', so that there is {use}; prepare the data set again with the right --classes and --ignore, "
                f"or name another split with --set {key}=NAME"
            )


def _may_have_class(scene: Scene, manifest: Manifest) -> bool:
    """Whether any pixel of a scene's label counts; a label that cannot be read is for training to name."""
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
    """Printed when the run begins."""


def plan(recipe: Recipe, *, out: Path | None, resume: str | None) -> RunStart:
    """Decide which run to begin or to continue, and from which checkpoint.

    Args:
        resume: none, ``auto``, or the path of a run or of one of its checkpoints.

    Raises:
        UsageError: ``out`` is taken by something else.
        FolderInUseError: a process of this machine is at work there.
        WeightsError: there is a run, or one was requested, but no valid checkpoint; never a silent fresh start.
    """
    run = existing(recipe.name, out=out, resume=resume)
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
    target = Path(resume) if resume is not None and resume != AUTO else run.path
    if target.resolve() != run.path.resolve():
        if not checkpoints.is_valid(target):
            raise WeightsError(
                f"--resume {target}: is no valid checkpoint; --resume {typed(run.path)} takes the newest valid"
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
    """The run to continue; none if a new one is to begin.

    Args:
        name: of the recipe.
        out: as in ``--out``.
        resume: none, ``auto``, or the path of a run or of one of its checkpoints.

    Raises:
        WeightsError: there is no run at that path.
        UsageError: it lies in another folder than ``out``.
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
    what = "does not exist" if not path.exists() else "is no run folder and no checkpoint of one"
    raise WeightsError(f"--resume {path}: {what}; give a folder such as runs/latest, or --resume auto")


def _refuse_used(folder: Path) -> None:
    """Report an owner that lives before the seconds that a start takes; the lock itself decides later.

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


def _why_none(path: Path) -> str:
    return "is not a file" if path.exists() else "does not exist"


def initial_sha256(recipe: Recipe, then: str | None = None) -> str | None:
    """The SHA-256 of the weights that a recipe begins from; none where it begins from none.

    Args:
        recipe: its ``model.init`` names the file.
        then: the sum that a run began with. It needs the file no more, so a file that is gone counts as that one.

    Raises:
        WeightsError: the file is not there.
    """
    if recipe.model.init is None:
        return None
    path = typed_path(recipe.model.init)
    if not path.is_file():
        if then is not None:
            return then
        raise WeightsError(f"--init {path}: {_why_none(path)}; give weights of `memorysam train`")
    return tensors.sha256(path)


def teacher_sha256(recipe: Recipe, ours: WeightsCard) -> str | None:
    """The SHA-256 of the weights that a recipe's teacher has; none where it has none of its own.

    Args:
        recipe: its ``robust.teacher.weights`` names the file.
        ours: the card of the network in training.

    Raises:
        WeightsError: the file is not there or not ours, or its classes or sensors are not those of this run.
    """
    file = teacher_file(recipe)
    if file is None:
        return None
    path, card = file
    where, remedy = f"robust.teacher.weights: {path}", "give weights of the same classes and sensors"
    if card.dataset.classes != ours.dataset.classes:
        pairs = zip_longest(card.dataset.classes, ours.dataset.classes)
        number, (theirs, here) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
        raise WeightsError(f"{where}: its class {number} is {theirs!r}, that of this data set {here!r}; {remedy}")
    theirs, here = ([modality.name for modality in each.modalities] for each in (card, ours))
    if theirs != here:
        raise WeightsError(f"{where}: was trained on {', '.join(theirs)}, this run is on {', '.join(here)}; {remedy}")
    if changed := [each for each in _changed_settings(card, ours) if each.split()[1] in READING]:
        raise WeightsError(f"{where}: reads its sensors otherwise: {', '.join(changed)}; {remedy}")
    return tensors.sha256(path)


def doubts(recipe: Recipe, manifest: Manifest, *, strict: bool) -> list[str]:
    """Which sensors hold other values than the weights of ``--init`` were trained on.

    Args:
        recipe: its ``model.init`` names the file; a file that is not there is refused elsewhere.
        manifest: what is trained on, with its ranges.
        strict: refuse instead.

    Raises:
        DataError: there are such sensors, and ``strict``.
        WeightsError: the file is none of ours.
    """
    path = None if recipe.model.init is None else typed_path(recipe.model.init)
    if path is None or not path.is_file():
        return []
    found = {name: manifest.info.ranges[name] for name in recipe.data.modalities if name in manifest.info.ranges}
    return compared(read_card(path).dataset, found, strict=strict)


def load_initial(network: Segmenter, name: str) -> int:
    """Fill a network that is ready to train with trained weights.

    Args:
        network: of :func:`memorysam_cli.model.weights.build_for_training`.
        name: a file of ``memorysam train``, or of ``memorysam weights import``.

    Returns:
        The number of tensors that were taken.

    Raises:
        WeightsError: the file is damaged, or of another base, backbone, LoRA, classes or kind of input; says which.
    """
    path = typed_path(name)
    if not path.is_file():
        raise WeightsError(f"--init {path}: {_why_none(path)}; give weights of `memorysam train`")
    state, card = read(path)
    if reasons := list(_obstacles(card, network.card)):
        raise WeightsError(f"--init {path}: does not fit this run: {'; '.join(reasons)}; {_OTHER_WEIGHTS}")
    own = own_tensors(network)
    if card.kind == "complete":
        state = _without_base(state, network, own, where=path)
    fill_own(network, state, where=f"--init {path}")
    if card.modalities != network.card.modalities:
        then, now = (", ".join(each.name for each in c.modalities) for c in (card, network.card))
        changed = f"{then}, goes on with {now}"
        if then == now:
            changed = f"other settings of sensors: {', '.join(_changed_settings(card, network.card))}"
        console.note(f"--init {path}: was trained on {changed}")
    return len(own)


def _changed_settings(initial: WeightsCard, ours: WeightsCard) -> Iterator[str]:
    """What is not done to the same sensors as before, such as antialiasing."""
    for then, now in zip(initial.modalities, ours.modalities, strict=True):
        for key in type(then).model_fields:
            before, after = getattr(then, key), getattr(now, key)
            if before != after:
                yield f"'{then.name}' {key} was {before}, is {after}"


def _obstacles(initial: WeightsCard, ours: WeightsCard) -> Iterator[str]:
    """Why weights cannot be what a run begins from."""
    if initial.kind == "merged":
        yield "its LoRA is merged into the base; give the run's own best.safetensors"
        return
    pairs = {
        "model.backbone": (initial.recipe.model.backbone, ours.recipe.model.backbone),
        "model.encoder": (initial.recipe.model.encoder, ours.recipe.model.encoder),
        "model.object_gate": (initial.recipe.model.object_gate, ours.recipe.model.object_gate),
        **_lora_settings(initial, ours),
    }
    yield from (f"{key} was {then}, is {now}" for key, (then, now) in pairs.items() if then != now)
    if initial.kind == "trained" and initial.base.sha256 != ours.base.sha256:
        yield (
            f"its base weights are {initial.base.source} ({initial.base.sha256[:12]}…), this run's "
            f"{ours.base.source} ({ours.base.sha256[:12]}…)"
        )
    classes = initial.dataset.classes, ours.dataset.classes
    if initial.tokens != ours.tokens or len(classes[0]) != len(classes[1]):
        yield f"it has {len(classes[0])} classes, this data set {len(classes[1])}: a head is not cut or filled up"
    elif classes[0] != classes[1]:
        then, now = next(pair for pair in zip(*classes, strict=True) if pair[0] != pair[1])
        yield f"its classes are others ('{then}' where this data set has '{now}')"
    alone = [len(card.modalities) == 1 for card in (initial, ours)]
    if alone[0] != alone[1]:
        yield (
            f"it was trained on {len(initial.modalities)} modalities, this run has {len(ours.modalities)}: the memory "
            "is trained only where there are several"
        )


def _lora_settings(initial: WeightsCard, ours: WeightsCard) -> dict[str, tuple[Any, Any]]:
    """The settings of LoRA that decide what its tensors are and mean; none where it is not used."""
    if ours.recipe.model.encoder != "lora":
        return {}
    then, now = initial.recipe.model.lora, ours.recipe.model.lora
    settings: dict[str, tuple[Any, Any]] = {
        "rank": (then.rank, now.rank),
        "targets": (then.targets, now.targets),
        "dora": (then.dora, now.dora),
        "rslora": (then.rslora, now.rslora),
        "alpha": (then.alpha or then.rank, now.alpha or now.rank),
    }
    return {f"model.lora.{key}": pair for key, pair in settings.items()}


def _without_base(
    state: dict[str, Tensor], network: Segmenter, own: dict[str, Tensor], *, where: Path
) -> dict[str, Tensor]:
    """The trained part of a complete file, whose base must be this run's."""
    base = {name: tensor for name, tensor in network.state_dict().items() if name not in own}
    others = [name for name, tensor in base.items() if name not in state or not equal(state[name], tensor)]
    if others:
        raise WeightsError(
            f"--init {where}: its base weights are not this run's: {len(others)} of {len(base)} tensors differ "
            f"({base_weights.few_names(others)}); {_OTHER_WEIGHTS}"
        )
    return {name: tensor for name, tensor in state.items() if name not in base}


def checkpoint_bytes(learner: Learner) -> int:
    """What a checkpoint takes: the tensors, two moments of each that is trained, and what the losses keep."""
    return _bytes(own_tensors(learner.network)) + 2 * _bytes(learner.parameters) + _bytes(learner.objective.state())


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@contextlib.contextmanager
def begin(run_start: RunStart, accelerator: Accelerator, *, checkpoint_bytes: int = 0) -> Iterator[RunFolder]:
    """Make the run's folder if it is new, and hold its lock; all processes of a run get the same folder.

    Args:
        run_start: of :func:`plan`.
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
                answer = [_begin(stack, run_start, checkpoint_bytes)]
            except MemorySamError as error:
                answer = [error]
        if accelerator.num_processes > 1:
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
        run_folder.refuse_taken(run.path)  # before the lock, which would leave its file in a user's own folder
    stack.enter_context(lock.hold(run.path))
    if is_new:
        run_folder.create(run_start.recipe, run.path, begins_again=run_start.begins_again)
    run.sweep()
    checkpoints.sweep(run.checkpoints)
    for line in run_start.notes:
        console.note(line)
    for path in run_start.damaged:
        aside = checkpoints.set_aside(path, "corrupt")
        console.warn(f"{path}: is damaged and set aside as {aside.name}; going on without it")
    for path in run_start.abandoned:
        # Left in place, the next --resume auto would return to them.
        console.note(f"{path}: is set aside as {checkpoints.set_aside(path, 'abandoned').name}")
    run_folder.note_begun(run.path)
    return run


def refuse_full_disk(folder: Path, *, checkpoint: int, keep: int, present: int) -> None:
    """Refuse to begin what the disk cannot hold: the checkpoints that are kept, and the next one beside them.

    Args:
        folder: of the run; need not be there.
        checkpoint: its size in bytes.
        keep: how many are kept.
        present: how many valid ones are there.

    Raises:
        EnvironmentFault: names needed and free space.
    """
    count = max(1, keep + 1 - present)
    needed, free = int(count * checkpoint * DISK_MARGIN), _free(folder)
    if free is not None and free < needed:
        raise EnvironmentFault(
            f"{folder}: the disk is too full for this training: needs {megabytes(needed)} ({count} checkpoints of "
            f"{megabytes(checkpoint)}), free {megabytes(free)}; free some space or choose another --out, then run "
            "the same command again"
        )


def _free(folder: Path) -> int | None:
    """Bytes that can still be written where a folder is or will be; none where that cannot be asked."""
    for place in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return None


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
    settings, processes, modalities = recipe.train, accelerator.num_processes, recipe.data.modalities
    yield f"run: {run.path}  device: {accelerator.device}  modalities: {', '.join(modalities)}"
    trainable, whole = count(learner.parameters.values()), count(learner.network.parameters())
    yield (
        f"{scenes} scenes, {steps_per_epoch} updates per epoch, "
        f"{settings.batch * settings.accumulate * processes} scenes per update (batch {settings.batch}, "
        f"{settings.accumulate} accumulated, {processes} process{'es' * (processes > 1)}); "
        f"{trainable:,} of {whole:,} parameters are trained"
    )
    if recipe.losses or recipe.trains_subsets:
        yield f"losses: {', '.join(recipe.terms)}"
    if len(modalities) == 1:
        yield "one modality: memory attention and memory encoder get no gradient and are frozen"
        if any(recipe.robust.weights.values()):
            yield "one modality: 'robust' has no smaller set of sensors to train and does nothing"
    if position.step:
        yield f"resumed at step {position.step}, epoch {position.epoch + 1}"
