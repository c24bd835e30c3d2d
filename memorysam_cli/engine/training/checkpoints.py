"""The state of a training run on disk: written whole or not at all, and trusted only when its sums agree.

``checkpoints/step-00000500/`` holds ``model``, ``optimizer`` and ``rng`` as safetensors, ``trainer.json`` with the
position, and ``MANIFEST.json`` with the size and SHA-256 of each. No file points to the newest one: the newest
folder whose manifest holds is it. Source: RELIABILITY §2.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from memorysam_cli.errors import DataError, MemorySamError, WeightsError
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import atomic, documents, tensors

MANIFEST = "MANIFEST.json"
MAY_CHANGE = {
    "name", "about", "data.workers", "train.checkpoint_minutes", "train.keep_checkpoints", "train.max_steps",
    "train.saver", "train.validate_every",
}  # fmt: skip
"""Recipe keys that say how the work is done and how long; what is computed may not change in a run."""
_FOLDER = re.compile(r"step-\d{8}")


@dataclass
class Position:
    """Where a run stands: all that is neither a tensor nor decided by the recipe.

    Attributes:
        step: updates done.
        epoch: the epoch that the next batch belongs to, from 0.
        batch: batches of that epoch that are done.
        best_miou: the best validation so far in percent; none before the first.
        best_step: its step.
        validation: the last validation's :class:`~memorysam_cli.model.weights.Metric`, as JSON.
        all_ignored: batches so far in which no pixel counted.
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
    world: int = 1
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """Everything that a checkpoint holds."""

    position: Position
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: dict[str, Tensor]
    identity: dict[str, Any]
    """What a resumed run must share, by dotted key."""


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def write(folder: Path, state: State, *, keep: int) -> Path:
    """Save a state as ``folder/step-…`` and then remove older ones, but never below ``keep`` valid ones."""
    target = path_of(folder, state.position.step)
    if target.exists():
        if is_valid(target):
            return target
        set_aside(target, "corrupt")
    with atomic.new_folder(target) as temporary:
        for name in ("model", "optimizer", "rng"):
            tensors.write(temporary / f"{name}.safetensors", getattr(state, name), {})
        documents.write_json(temporary / "trainer.json", asdict(state.position) | {"identity": state.identity})
        documents.write_json(temporary / MANIFEST, _sums(temporary))
    if not is_valid(target):
        raise WeightsError(f"{target}: what was written cannot be read back unchanged; check the disk")
    _prune(folder, keep=keep)
    return target


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
    position, identity = read_position(path)
    parts = {name: tensors.read(path / f"{name}.safetensors")[0] for name in ("model", "optimizer", "rng")}
    return State(position, identity=identity, **parts)


def read_position(path: Path) -> tuple[Position, dict[str, Any]]:
    """Where a valid checkpoint stands and its identity, without its tensors."""
    content = documents.read_json(path / "trainer.json")
    identity = content.pop("identity")
    return Position(**content), identity


def is_valid(path: Path) -> bool:
    """Whether every file that the manifest names is there with its size and SHA-256."""
    try:
        wanted = documents.read_json(path / MANIFEST)
        return bool(wanted) and wanted == _sums(path)
    except (MemorySamError, OSError, AttributeError):
        return False


def newer_than(path: Path) -> list[Path]:
    """The checkpoints beside ``path`` that were written after it, newest first."""
    return [other for other in reversed(_all(path.parent)) if other.name > path.name]


def set_aside(path: Path, suffix: Literal["corrupt", "abandoned"]) -> Path:
    """Rename a checkpoint that is damaged, or not of the branch that goes on: out of the way, but not lost."""
    target = path.with_name(f"{path.name}.{suffix}")
    if target.exists():
        shutil.rmtree(target)
    return path.rename(target)


def identity_of(recipe: Recipe, *, dataset: str, base: str) -> dict[str, Any]:
    """What must not change between a run and its continuation, by dotted key.

    Args:
        dataset: the content hash of the data set.
        base: the SHA-256 of the base weights.
    """
    values = dict(_leaves(recipe.model_dump(mode="json")))
    kept = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    return {**kept, "data set": dataset, "base weights": base}


def _leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries by dotted key."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
    """Remove all but the newest ``keep``; the newest is the one just written and verified."""
    older = [path for path in _all(folder)[:-1] if is_valid(path)]
    for path in older[: max(0, len(older) + 1 - keep)]:
        shutil.rmtree(path)
