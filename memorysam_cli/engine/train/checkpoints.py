"""Checkpoints: the whole state of a run, written so that a kill or a full disk at any moment costs nothing.

What a checkpoint holds, then its way: the state is taken, written, found again, read, compared with the run that wants
to continue, and put back. Which there are, and whether they are whole, is found out without torch.
"""

from __future__ import annotations

import re
import shutil
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
"""The optimizer's tensor that keeps its file from being empty before the first update."""
MAY_CHANGE = {
    "name", "about", "extensions", "data.max_bad", "data.workers", "model.init", "robust.teacher.weights",
    "train.checkpoint_minutes", "train.checkpoint_steps", "train.keep_checkpoints", "train.max_steps",
    "train.patience", "train.saver",
    "train.validate_every",
}  # fmt: skip
"""Recipe keys that say how the work is done and how long; what is computed may not change in a run. Of ``model.init``
and ``robust.teacher.weights`` the content counts, not the path."""
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
"""The values of keys that older recipes did not have."""
NEWER = {"fresh"}
"""What ``trainer.json`` of an older version does not say of the position."""
_FOLDER = re.compile(r"step-\d{8}(\.new)?")
_NEW, _REMOVED = ".new", ".removed"


Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass
class Position:
    """Where a run stands: all that is neither a tensor nor decided by the recipe.

    Attributes:
        step: updates done.
        epoch: the epoch that the next batch belongs to, from 0.
        batch: batches of that epoch that are done.
        best_miou: the best validation so far in percent; none before the first.
        best_step: its step.
        validation: the last validation's :class:`~memorysam_cli.model.Metric`, as JSON; its ``miou`` is none
            where that was no number.
        all_ignored: batches so far in which no pixel counted.
        scenes: that were learned from so far, in all processes, each as often as it came.
        initial: tensors that were taken from the weights of ``model.init``.
        fresh: tensors that began otherwise, because those weights do not have them.
        world: processes; a resumed run needs as many.
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
        """Whether the weights as they are now were validated."""
        return self.validation is not None and self.validation["step"] == self.step


@dataclass(frozen=True)
class State:
    """Everything that a checkpoint holds."""

    position: Position
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    identity: dict[str, Any]
    """What a resumed run must share, by dotted key."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """Versions, threads and device that it was computed with."""


@dataclass(frozen=True)
class CheckpointHeader:
    """What ``trainer.json`` of a checkpoint says."""

    position: Position
    identity: dict[str, Any]
    made_by: dict[str, Any]


def identity_of(
    recipe: Recipe, *, dataset: str, base: str, initial: str | None, teacher: str | None = None
) -> dict[str, Any]:
    """What must not change between a run and its continuation, by dotted key.

    Args:
        recipe: of the run.
        dataset: the content hash of the data set.
        base: the SHA-256 of the base weights.
        initial: the SHA-256 of the weights that the run began from, if not from the base weights.
        teacher: that of the weights of ``robust.teacher``, if it has any of its own.
    """
    values = dict(comparing.leaves(recipe.model_dump(mode="json")))
    kept = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    sums = {"base weights": base, "initial weights": initial, "teacher weights": teacher}
    return {**kept, "data set": dataset, **sums}


def conditions(accelerator: Accelerator) -> dict[str, Any]:
    """What else decides the last bits of a result; a run may continue under others, and says so."""
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
        learner: what learns.
        position: where the run stands; its scenes are brought up to date.
        identity: of :func:`identity_of`.
        scenes_since: scenes of this process since the last time.

    Raises:
        DivergedError: an update has left something that is not finite, in every process.
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
    if odd := [name for name, value in {**model, **optimizer}.items() if not bool(torch.isfinite(value).all())]:
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
    """Save a state as ``folder/step-…`` and then remove older ones, but never below ``keep`` valid ones.

    A step that was saved before, without the validation that came since, is saved again; until that is verified and in
    its place, what was there before stays.

    Raises:
        WeightsError: what was written cannot be read back.
        EnvironmentFault: it cannot be written.
    """
    target = path_of(folder, state.position.step)
    again = target.with_name(target.name + _NEW)
    for left in folder.glob(f"step-*{_NEW}"):  # a kill came between its saving and its moving
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
        _prune(folder, keep=keep)  # a kill may have come before
        return target
    if not is_valid(place):
        raise WeightsError(f"{place}: the written data cannot be read back unchanged; check the disk")
    if place == again:
        _promote(again)
    _prune(folder, keep=keep)
    return target


class _AlreadySavedError(Exception):
    """What is to be saved is saved already."""


def _fill(folder: Path, state: State) -> None:
    """Write the files of a checkpoint."""
    for name in TENSORS:
        tensors.write(folder / f"{name}.safetensors", getattr(state, name), {})
    words = {"identity": state.identity, "made_by": state.made_by}
    documents.write_json(folder / "trainer.json", asdict(state.position) | words)
    documents.write_json(folder / MANIFEST, _sums(folder))


def _sums(path: Path) -> dict[str, dict[str, Any]]:
    files = sorted(entry for entry in path.iterdir() if entry.name != MANIFEST)
    if not files:
        raise DataError(f"{path}: is empty")
    return {entry.name: {"size": entry.stat().st_size, "sha256": tensors.sha256(entry)} for entry in files}


def _promote(again: Path) -> None:
    """Let a step that was saved again, and verified, take its place; at every moment one of both counts."""
    target = again.with_name(again.name.removesuffix(_NEW))
    before = _out_of_the_way(target) if target.exists() else None
    with atomic.faults(target):
        again.rename(target)
    if before is not None:
        shutil.rmtree(before)


def _out_of_the_way(path: Path) -> Path:
    """Rename a checkpoint that is to be removed: half removed it would look like a damaged one."""
    target = path.with_name(path.name + _REMOVED)
    with atomic.faults(path):
        if target.exists():
            shutil.rmtree(target)
        return path.rename(target)


def _prune(folder: Path, *, keep: int) -> None:
    """Remove what is older than the newest ``keep`` valid ones, and nothing where there are not so many."""
    valid = 0
    for path in reversed(_folders(folder)):
        if valid >= keep:
            shutil.rmtree(_out_of_the_way(path))
        else:
            valid += is_valid(path)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def sweep(folder: Path) -> None:
    """Finish removing what a kill left half removed; only for the one who holds the run's lock."""
    for path in folder.glob(f"step-*{_REMOVED}"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(path: Path, suffix: Literal["corrupt", "abandoned"]) -> Path:
    """Rename a checkpoint that is damaged, or not of the branch that continues: out of the way, but not lost."""
    target = path.with_name(f"{path.name}.{suffix}")
    if target.exists():
        shutil.rmtree(target)
    return path.rename(target)


def is_valid(path: Path) -> bool:
    """Whether every file that the manifest names is there with its size and SHA-256."""
    try:
        wanted = documents.read_json(path / MANIFEST)
        return bool(wanted) and wanted == _sums(path)
    except (MemorySamError, OSError, AttributeError):
        return False


def newest_valid(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint whose sums agree, and the newer ones that had to be passed over."""
    damaged: list[Path] = []
    for path in reversed(_folders(folder)):
        if is_valid(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def all_valid(folder: Path) -> list[Path]:
    """The checkpoints whose sums agree, oldest first."""
    return [path for path in _folders(folder) if is_valid(path)]


def newer_than(path: Path) -> list[Path]:
    """The checkpoints beside ``path`` that were written after it, newest first."""
    return [other for other in reversed(_folders(path.parent)) if other.name > path.name]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name))


def read_header(path: Path) -> CheckpointHeader:
    """Where a valid checkpoint stands, without its tensors.

    Raises:
        WeightsError: a key is missing, unknown or of another type: it was written by another version.
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
        # As JSON: lists are lists.
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
        WeightsError: it is not a checkpoint, or its sums do not agree.
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
        now: that of the run that wants to continue.
        worlds: the numbers of processes, then and now.
        where: the checkpoint, for messages.

    Raises:
        UsageError: the run would compute something else, or has another number of processes.
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
    """Make everything as it was when a state was taken; returns where the run stood.

    Raises:
        WeightsError: the tensors are not of this network, or there is no state of the random numbers.
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
    """The state of this process's random numbers. Without it, a run that continues would be another one."""
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
    """Put optimizer and losses back; all that the checkpoint has, and no more."""
    from memorysam_cli.model import base_weights

    saved = {name: value for name, value in state.optimizer.items() if name != UPDATES}
    try:
        learner.restore(saved)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise WeightsError(f"{where}: its optimizer is not of this network ({reason}); take another") from error
    if difference := base_weights.difference(base_weights.shapes_of(saved), base_weights.shapes_of(learner.state())):
        raise WeightsError(f"{where}: its optimizer is not of this network: {difference}; use another checkpoint")
