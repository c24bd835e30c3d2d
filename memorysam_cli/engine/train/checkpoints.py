"""Checkpoints: the whole state of a run, written so that a kill or a full disk at any moment loses nothing.

The content of a checkpoint comes first, then the steps: take the state, write it, find it, read it, compare it with the
run that wants to continue, and restore it. Finding and verifying checkpoints needs no torch.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from memorysam_cli import __version__
from memorysam_cli.errors import DataError, DivergedError, MemorySamError, UsageError, WeightsError
from memorysam_cli.model import Metric
from memorysam_cli.recipe import Recipe, Robust, comparing
from memorysam_cli.recipe.schema import is_retired
from memorysam_cli.storage import atomic, documents, tensors
from memorysam_cli.text import counted, requirement

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import Tensor

    from memorysam_cli.engine.train.update import Learner

MANIFEST = "MANIFEST.json"
TENSORS = ("model", "optimizer", "rng")
UPDATES = "updates"
"""A tensor that keeps the optimizer's file from being empty before the first update."""
MAY_CHANGE = {
    "name", "about", "extensions", "data.max_bad", "data.workers", "model.init", "robust.teacher.weights",
    "train.checkpoint_minutes", "train.checkpoint_steps", "train.keep_checkpoints", "train.max_steps",
    "train.patience", "train.saver",
    "train.validate_every",
}  # fmt: skip
"""Recipe keys that may change when a run resumes: they affect how fast and how long the run computes, not its results.
Of ``model.init`` and ``robust.teacher.weights`` the content counts, not the path."""
DEFAULTS_BEFORE = {
    "model.fusion": "mean", "model.order": "recipe", "model.modality_embedding": False, "model.memory_mask": "best",
    "model.projection": [],
    "data.antialias": None, "augment.blur_after_crop": False,
    "ohem.class_weights": "none", "ohem.label_smoothing": 0.0,
    "augment.rotate": 0.0, "augment.stretch": [1.0, 1.0], "augment.degrade": 0.0, "optim.ema": 0.0,
    **{
        key: value
        for key, value in comparing.leaves({"robust": Robust().model_dump(mode="json")}) if key not in MAY_CHANGE
    },
    "teacher weights": None,
}  # fmt: skip
"""Values for keys that older recipes do not have."""
NEWER = {"fresh"}
"""Values for entries of the position that an older ``trainer.json`` does not have."""
_FOLDER = re.compile(r"step-\d{8}(\.new)?")
_NEW, _REMOVED = ".new", ".removed"


Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass
class Position:
    """The position of a run: everything that is neither a tensor nor decided by the recipe.

    Attributes:
        step: number of updates done.
        epoch: the epoch of the next batch, from 0.
        batch: number of batches of that epoch done.
        best_miou: the best validation so far in %; None before the first.
        best_step: its step.
        validation: the last validation's :class:`~memorysam_cli.model.Metric`, as JSON; its ``miou`` is None if it was
            NaN.
        all_ignored: number of batches so far without a labeled pixel.
        scenes: number of training scenes so far, in all processes; a scene counts each time it is used.
        initial: number of tensors taken from the weights of ``model.init``.
        fresh: number of newly initialized tensors, which those weights do not have.
        world: number of processes; a resumed run needs the same number.
        scaler: the state of the fp16 gradient scaler, if there is one.
    """

    step: Count = 0
    epoch: Count = 0
    batch: Count = 0
    best_miou: float | None = None
    best_step: Count | None = None
    validation: dict[str, Any] | None = None
    all_ignored: Count = 0
    scenes: Count = 0
    initial: Count = 0
    fresh: Count = 0
    world: Annotated[int, Field(gt=0)] = 1
    scaler: dict[str, Any] = field(default_factory=dict)

    @property
    def is_validated(self) -> bool:
        """Whether the current weights were validated."""
        return self.validation is not None and self.validation["step"] == self.step


@dataclass(frozen=True)
class State:
    """The content of a checkpoint."""

    position: Position
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    identity: dict[str, Any]
    """Values that a resumed run must share, by dotted key."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """Versions, threads and device of the computation."""


@dataclass(frozen=True)
class CheckpointHeader:
    """The content of a checkpoint's ``trainer.json``."""

    position: Position
    identity: dict[str, Any]
    made_by: dict[str, Any]


def identity_of(
    recipe: Recipe, *, dataset: str, base: str, initial: str | None, teacher: str | None = None
) -> dict[str, Any]:
    """The values that must be equal when a run resumes, by dotted key.

    Args:
        recipe: the run's recipe.
        dataset: the content hash of the data set.
        base: the SHA-256 of the base weights.
        initial: the SHA-256 of the weights of ``model.init``, if there are any.
        teacher: the SHA-256 of the weights of ``robust.teacher``, if there are any.
    """
    values = dict(comparing.leaves(recipe.model_dump(mode="json")))
    kept = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    sums = {"base weights": base, "initial weights": initial, "teacher weights": teacher}
    return {**kept, "data set": dataset, **sums}


def conditions(accelerator: Accelerator) -> dict[str, Any]:
    """Other conditions that affect the last bits of a result. A run may resume under other conditions, and reports
    it."""
    import torch

    return {
        "memorysam": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": accelerator.device.type,
        "world": accelerator.num_processes,
    }


def take(learner: Learner, position: Position, *, identity: dict[str, Any], scenes_since: int) -> State:
    """The state of all processes; every process must call this.

    Args:
        learner: network, optimizer and losses.
        position: the position of the run; its number of scenes is updated.
        identity: from :func:`identity_of`.
        scenes_since: number of scenes of this process since the last checkpoint.

    Raises:
        DivergedError: a value is not finite after an update, in every process.
    """
    import torch
    from accelerate.utils import gather_object

    from memorysam_cli.engine.runtime import rng_state
    from memorysam_cli.model import base_weights
    from memorysam_cli.model.weights import own_tensors

    accelerator = learner.accelerator
    own = rng_state(accelerator.device)
    rng = gather_object([own]) if accelerator.num_processes > 1 else [own]
    position.scenes += int(accelerator.reduce(torch.tensor(scenes_since, device=accelerator.device)))
    position.scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    model, optimizer = own_tensors(learner.network), {UPDATES: torch.tensor([position.step]), **learner.state()}
    if odd := tensors.not_finite({**model, **optimizer}):
        raise DivergedError(
            f"step {position.step}: the update, whose gradient was finite, left NaN or infinity in "
            f"{counted(len(odd), 'tensor')} "
            f"({base_weights.few_names(odd)}); the checkpoint before it is kept; try a lower optim.lr"
        )
    return State(
        position=position,
        model=model,
        optimizer=optimizer,
        rng={f"{rank}/{name}": value for rank, states in enumerate(rng) for name, value in states.items()},
        identity=identity,
        made_by=conditions(accelerator),
    )


def write(folder: Path, state: State, *, keep: int) -> Path:
    """Save a state as ``folder/step-…`` and then remove older checkpoints, but never below ``keep`` valid ones.

    A step that was saved before, without the validation that followed, is saved again. Until the new checkpoint is
    verified and in place, the old one stays.

    Raises:
        WeightsError: the written files cannot be read back.
        EnvironmentFault: the checkpoint cannot be written.
    """
    target = path_of(folder, state.position.step)
    again = target.with_name(target.name + _NEW)
    for left in folder.glob(f"step-*{_NEW}"):  # a kill came between saving and renaming it
        _promote(left) if is_valid(left) else set_aside(left, "corrupt")
    if target.exists() and not is_valid(target):
        set_aside(target, "corrupt")
    place = again if target.exists() else target
    try:
        with atomic.new_folder(place) as temporary:
            _fill(temporary, state)
            if target.exists() and documents.read_json(temporary / MANIFEST) == documents.read_json(target / MANIFEST):
                raise _AlreadySavedError
    except _AlreadySavedError:
        _prune(folder, keep=keep, verified=target)  # a kill may have prevented it earlier
        return target
    if not is_valid(place):
        raise WeightsError(f"{place}: the written data cannot be read back unchanged; check the disk")
    if place == again:
        _promote(again)
    _prune(folder, keep=keep, verified=target)
    return target


class _AlreadySavedError(Exception):
    """This state is already saved."""


def _fill(folder: Path, state: State) -> None:
    """Write the files of a checkpoint."""
    files = {name: f"{name}.safetensors" for name in TENSORS}
    written = {file: tensors.write(folder / file, getattr(state, name), {}) for name, file in files.items()}
    words = {"identity": state.identity, "made_by": state.made_by}
    documents.write_json(folder / "trainer.json", asdict(state.position) | words)
    documents.write_json(folder / MANIFEST, _sums(folder, written))


def _sums(path: Path, written: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """The manifest of a checkpoint; files whose SHA-256 is known from writing them are not read again."""
    files = sorted(entry for entry in path.iterdir() if entry.name != MANIFEST)
    if not files:
        raise DataError(f"{path}: is empty")
    known = written or {}
    return {
        entry.name: {"size": entry.stat().st_size, "sha256": known.get(entry.name) or tensors.sha256(entry)}
        for entry in files
    }


def _promote(again: Path) -> None:
    """Replace a step's checkpoint with a newer, verified one; at every moment one of both is valid."""
    target = again.with_name(again.name.removesuffix(_NEW))
    before = _out_of_the_way(target) if target.exists() else None
    with atomic.faults(target):
        again.rename(target)
    if before is not None:
        shutil.rmtree(before)


def _out_of_the_way(path: Path) -> Path:
    """Rename a checkpoint before its removal, because half removed it would look damaged."""
    target = path.with_name(path.name + _REMOVED)
    with atomic.faults(path):
        if target.exists():
            shutil.rmtree(target)
        return path.rename(target)


def _prune(folder: Path, *, keep: int, verified: Path) -> None:
    """Remove checkpoints older than the newest ``keep`` valid ones; nothing if there are fewer.

    A checkpoint is as large as the model, three times: none is read if there are not more, and ``verified`` never.
    """
    valid, folders = 0, _folders(folder)
    if len(folders) <= keep:
        return
    for path in reversed(folders):
        if valid >= keep:
            shutil.rmtree(_out_of_the_way(path))
        else:
            valid += path == verified or is_valid(path)


def path_of(folder: Path, step: int) -> Path:
    """The path of a step's checkpoint."""
    return folder / f"step-{step:08d}"


def sweep(folder: Path) -> None:
    """Finish a removal that a kill interrupted; only for the process that holds the run's lock."""
    for path in folder.glob(f"step-*{_REMOVED}"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path, suffix: Literal["corrupt", "abandoned"]) -> Path:
    """Rename a checkpoint that is damaged or not on the continued branch, so that it is neither used nor lost."""
    target = path.with_name(f"{path.name}.{suffix}")
    if target.exists():
        shutil.rmtree(target)
    return path.rename(target)


def is_valid(path: Path) -> bool:
    """Whether every file in the manifest exists with its size and SHA-256."""
    try:
        wanted = documents.read_json(path / MANIFEST)
        return bool(wanted) and wanted == _sums(path)
    except (MemorySamError, OSError, AttributeError):
        return False


def newest_valid(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that verifies, and the newer ones that do not."""
    damaged: list[Path] = []
    for path in reversed(_folders(folder)):
        if is_valid(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def all_valid(folder: Path) -> list[Path]:
    """The checkpoints that verify, oldest first."""
    return [path for path in _folders(folder) if is_valid(path)]


def newer_than(path: Path) -> list[Path]:
    """The checkpoints beside ``path`` that were written after it, newest first."""
    return [other for other in reversed(_folders(path.parent)) if other.name > path.name]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name))


def read_header(path: Path) -> CheckpointHeader:
    """The position of a valid checkpoint, without its tensors.

    Raises:
        WeightsError: a key is missing, unknown or of another type, because another version wrote it.
    """
    where = path / "trainer.json"
    try:
        content = documents.read_object(where)
    except DataError as error:
        raise WeightsError(str(error)) from None
    known = {each.name for each in fields(Position)} | {"identity", "made_by"}
    given = set(content)
    if odd := [f"{name} is missing" for name in sorted(known - given - NEWER)] + [
        f"{name} is unknown" for name in sorted(given - known)
    ]:
        raise WeightsError(f"{where}: {'; '.join(odd)}; it was written by another version, which can continue with it")
    identity, made_by = content.pop("identity"), content.pop("made_by")
    try:
        # In JSON form, with lists instead of tuples.
        position = TypeAdapter(Position).validate_json(documents.to_json(content), strict=True)
        if position.validation is not None:
            Metric.model_validate({**position.validation, "miou": position.validation.get("miou") or 0}, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise WeightsError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {requirement(first['msg'])}; use another checkpoint"
        ) from None
    if not (isinstance(identity, dict) and isinstance(made_by, dict)):
        raise WeightsError(f"{where}: does not state its run; use another checkpoint")
    return CheckpointHeader(position, identity, made_by)


def read(path: Path) -> State:
    """Load a checkpoint.

    Raises:
        WeightsError: it is not a checkpoint, or it does not verify.
    """
    if not is_valid(path):
        raise WeightsError(f"{path}: is not a valid checkpoint (its {MANIFEST} is missing or does not agree)")
    header = read_header(path)
    parts = {name: tensors.read(path / f"{name}.safetensors")[0] for name in TENSORS}
    return State(header.position, identity=header.identity, made_by=header.made_by, **parts)


def refuse_other(then: dict[str, Any], now: dict[str, Any], *, worlds: tuple[int, int], where: str) -> None:
    """Refuse to continue from a checkpoint of another run.

    Args:
        then: the identity in the checkpoint.
        now: the identity of the run that resumes.
        worlds: the numbers of processes, then and now.
        where: the checkpoint, for messages.

    Raises:
        UsageError: the run would have other results, or has another number of processes.
    """
    then = DEFAULTS_BEFORE | {key: value for key, value in then.items() if not is_retired(key, value)}
    keys = [key for key in now | then if now.get(key) != then.get(key)]
    if keys:
        differing = "; ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys)
        raise UsageError(
            f"{where}: cannot be resumed with other settings: {differing}; start a new run, or undo the change"
        )
    if worlds[0] != worlds[1]:
        raise UsageError(
            f"{where}: was trained by {counted(worlds[0], 'process')} and cannot be resumed by {worlds[1]}; start "
            "as many"
        )


def put_back(state: State, learner: Learner, *, where: str) -> Position:
    """Restore a state; returns the position of the run.

    Raises:
        WeightsError: the tensors do not belong to this network, or the state of the random numbers is missing.
    """
    from memorysam_cli.engine.runtime import set_rng_state
    from memorysam_cli.model.weights import fill_own

    accelerator = learner.accelerator
    random = _own_rng(state, learner, where=where)
    fill_own(learner.network, state.model, where=where)
    _restore_learner(state, learner, where=where)
    if accelerator.scaler is not None and state.position.scaler:
        try:
            accelerator.scaler.load_state_dict(state.position.scaler)
        except (KeyError, TypeError, RuntimeError) as error:
            raise WeightsError(
                f"{where}: its gradient scaler is not usable ({error}); use another checkpoint"
            ) from error
    try:
        set_rng_state(random, accelerator.device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{where}: its state of the random numbers is not usable ({reason}); take another"
        ) from error
    return state.position


def _own_rng(state: State, learner: Learner, *, where: str) -> dict[str, torch.Tensor]:
    """The state of this process's random number generators. Without it, a resumed run would differ."""
    from memorysam_cli.engine.runtime import rng_state

    accelerator = learner.accelerator
    prefix = f"{accelerator.process_index}/"
    own = {name.removeprefix(prefix): value for name, value in state.rng.items() if name.startswith(prefix)}
    if missing := sorted(rng_state(accelerator.device).keys() - own.keys()):
        raise WeightsError(
            f"{where}: has no state of the random numbers of process {prefix[:-1]} ({', '.join(missing)}), so that the "
            "run could not continue as it was; use another checkpoint, or the device that the run began on"
        )
    return own


def _restore_learner(state: State, learner: Learner, *, where: str) -> None:
    """Restore optimizer and losses, with exactly the content of the checkpoint."""
    from memorysam_cli.model import base_weights

    saved = {name: value for name, value in state.optimizer.items() if name != UPDATES}
    try:
        learner.restore(saved)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise WeightsError(f"{where}: its optimizer is not of this network ({reason}); take another") from error
    if difference := base_weights.difference(base_weights.shapes_of(saved), base_weights.shapes_of(learner.state())):
        raise WeightsError(f"{where}: its optimizer is not of this network: {difference}; use another checkpoint")
