"""The state of a training run on disk: written whole or not at all, and trusted only when its sums agree.

``checkpoints/step-00000500/`` holds ``model``, ``optimizer`` and ``rng`` as safetensors, ``trainer.json`` with the
position, and ``MANIFEST.json`` with the size and SHA-256 of each. No file points to the newest one: the newest
folder whose manifest holds is it. ``step-00000500.new`` is the same step saved again, for the moment in which it takes
the place of the first; ``….removed`` is on its way out. Source: RELIABILITY §2.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from memorysam_cli.errors import DataError, MemorySamError, WeightsError
from memorysam_cli.storage import atomic, documents, tensors

MANIFEST = "MANIFEST.json"
TENSORS = ("model", "optimizer", "rng")
_FOLDER = re.compile(r"step-\d{8}(\.new)?")
_NEW, _REMOVED = ".new", ".removed"


class _SameError(Exception):
    """What is to be saved is saved already."""


@dataclass
class Position:
    """Where a run stands: all that is neither a tensor nor decided by the recipe.

    Attributes:
        step: updates done.
        epoch: the epoch that the next batch belongs to, from 0.
        batch: batches of that epoch that are done.
        best_miou: the best validation so far in percent; none before the first.
        best_step: its step.
        validation: the last validation's :class:`~memorysam_cli.model.weights.Metric`, as JSON; its ``miou`` is none
            where that was no number.
        all_ignored: batches so far in which no pixel counted.
        scenes: that were learnt from so far, in all processes, each as often as it came.
        initial: tensors that were taken from the weights of ``model.init``.
        world: processes; a resumed run needs as many.
        scaler: the state of the fp16 gradient scaler, if there is one.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best_miou: float | None = None
    best_step: int | None = None
    validation: dict[str, Any] | None = None
    all_ignored: int = 0
    scenes: int = 0
    initial: int = 0
    world: int = 1
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


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


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
                raise _SameError
    except _SameError:
        _prune(folder, keep=keep)  # a kill may have come before
        return target
    if not is_valid(place):
        raise WeightsError(f"{place}: what was written cannot be read back unchanged; check the disk")
    if place == again:
        _promote(again)
    _prune(folder, keep=keep)
    return target


def _fill(folder: Path, state: State) -> None:
    """Write the files of a checkpoint."""
    for name in TENSORS:
        tensors.write(folder / f"{name}.safetensors", getattr(state, name), {})
    words = {"identity": state.identity, "made_by": state.made_by}
    documents.write_json(folder / "trainer.json", asdict(state.position) | words)
    documents.write_json(folder / MANIFEST, _sums(folder))


def sweep(folder: Path) -> None:
    """Finish removing what a kill left half removed; only for the one who holds the run's lock."""
    for path in folder.glob(f"step-*{_REMOVED}"):
        shutil.rmtree(path, ignore_errors=True)


def newest_valid(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint whose sums agree, and the newer ones that had to be passed over."""
    damaged: list[Path] = []
    for path in reversed(_all(folder)):
        if is_valid(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def read(path: Path) -> State:
    """Load a checkpoint.

    Raises:
        WeightsError: it is no checkpoint, or its sums do not agree.
    """
    if not is_valid(path):
        raise WeightsError(f"{path}: is no valid checkpoint (its {MANIFEST} is missing or does not agree)")
    stand = read_header(path)
    parts = {name: tensors.read(path / f"{name}.safetensors")[0] for name in TENSORS}
    return State(stand.position, identity=stand.identity, made_by=stand.made_by, **parts)


def read_header(path: Path) -> CheckpointHeader:
    """Where a valid checkpoint stands, without its tensors.

    Raises:
        WeightsError: a key is missing, unknown or of another type: it was written by another version.
    """
    where = path / "trainer.json"
    content = documents.read_json(where)
    known = {each.name for each in fields(Position)} | {"identity", "made_by"}
    given = set(content) if isinstance(content, dict) else set()
    if odd := [f"{name} is missing" for name in sorted(known - given)] + [
        f"{name} is unknown" for name in sorted(given - known)
    ]:
        raise WeightsError(f"{where}: {'; '.join(odd)}; it was written by another version, which can go on with it")
    identity, made_by = content.pop("identity"), content.pop("made_by")
    try:
        position = TypeAdapter(Position).validate_json(
            documents.to_json(content), strict=True
        )  # as JSON: lists are lists
    except ValidationError as fault:
        first = fault.errors()[0]
        raise WeightsError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}; take another checkpoint"
        ) from None
    return CheckpointHeader(position, identity, made_by)


def is_valid(path: Path) -> bool:
    """Whether every file that the manifest names is there with its size and SHA-256."""
    try:
        wanted = documents.read_json(path / MANIFEST)
        return bool(wanted) and wanted == _sums(path)
    except (MemorySamError, OSError, AttributeError):
        return False


def all_valid(folder: Path) -> list[Path]:
    """The checkpoints whose sums agree, oldest first."""
    return [path for path in _all(folder) if is_valid(path)]


def newer_than(path: Path) -> list[Path]:
    """The checkpoints beside ``path`` that were written after it, newest first."""
    return [other for other in reversed(_all(path.parent)) if other.name > path.name]


def set_aside(path: Path, suffix: Literal["corrupt", "abandoned"]) -> Path:
    """Rename a checkpoint that is damaged, or not of the branch that goes on: out of the way, but not lost."""
    target = path.with_name(f"{path.name}.{suffix}")
    if target.exists():
        shutil.rmtree(target)
    return path.rename(target)


def _sums(path: Path) -> dict[str, dict[str, Any]]:
    files = sorted(entry for entry in path.iterdir() if entry.name != MANIFEST)
    if not files:
        raise DataError(f"{path}: is empty")
    return {entry.name: {"size": entry.stat().st_size, "sha256": tensors.sha256(entry)} for entry in files}


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name))


def _prune(folder: Path, *, keep: int) -> None:
    """Remove what is older than the newest ``keep`` valid ones, and nothing where there are not so many."""
    found = 0
    for path in reversed(_all(folder)):
        if found >= keep:
            shutil.rmtree(_out_of_the_way(path))
        else:
            found += is_valid(path)


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
