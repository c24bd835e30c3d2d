"""A data set one of whose scenes does something to its reader, and what came of reading it."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from memorysam_cli import recipe as recipes
from memorysam_cli.data import decode
from memorysam_cli.data.loader import (
    Batch,
    ScoredScene,
    UnlabeledScene,
    scored_scenes,
    training_batches,
    unlabeled_scenes,
)
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Recipe
from tests.engine.stand_ins import MODALITIES, write_data

COUNT = 20
KINDS = ("train", "score", "predict")
HANG_S = 60


def write(root: Path) -> Manifest:
    """Twenty small scenes of one split."""
    return write_data(root, [(f"a/{number:02}", "train", None, None, (40, 48)) for number in range(COUNT)])


def recipe(*, workers: int, max_bad: float = 0.0) -> Recipe:
    """Batches of two, so that an epoch has ten."""
    made = recipes.parse(
        {
            "name": "small",
            "data": {"dataset": "tiny", "modalities": ["img", "depth"], "image_size": 32, "workers": workers},
            "model": {"backbone": "nano"},
            "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4},
            "train": {"epochs": 1, "batch": 2, "seed": 11},
        },
        where="test",
    )
    return made.model_copy(update={"data": made.data.model_copy(update={"max_bad": max_bad})})


def read(kind: str, manifest: Manifest, *, workers: int, max_bad: float = 0.0) -> Iterable[Any]:
    """One pass over all scenes, as training, evaluation or prediction makes it."""
    if kind == "train":
        asked = recipe(workers=workers, max_bad=max_bad)
        return training_batches(manifest, scenes=manifest.scenes, recipe=asked, epoch=0)
    given = {"scenes": manifest.scenes, "modalities": MODALITIES, "size": 32, "workers": workers}
    return scored_scenes(manifest, **given) if kind == "score" else unlabeled_scenes(manifest.root, **given)


@dataclass(frozen=True)
class Seen:
    """One item: its scenes' names, and a digest of all that it holds."""

    names: tuple[str, ...]
    digest: str


def seen(item: Batch | ScoredScene | UnlabeledScene | DataError) -> Seen:
    """What of an item can be compared."""
    if isinstance(item, DataError):
        return Seen(("fault",), str(item))
    if isinstance(item, Batch):
        return Seen(tuple(scene.id for scene in item.scenes), _digest([*item.frames, item.label]))
    if isinstance(item, ScoredScene):
        parts = [*item.resized.frames, item.resized.label, *item.whole.frames, item.whole.label]
        return Seen((item.scene.id,), _digest(parts))
    return Seen((item.scene.id,), _digest(item.frames))


def _digest(tensors: Iterable[Tensor | None]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        assert tensor is not None
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def harm(items: Callable[[], Iterator[Any]], expected: list[Seen]) -> tuple[int, int]:
    """How many scenes were lost, and how many doubled, out of place or not what they should be."""
    found: list[Seen] = []
    with contextlib.suppress(RuntimeError, OSError):  # both of them are how a naive one ends
        found.extend(seen(item) for item in items())
    lost = len({*expected} - {*found})
    wrong = sum(each not in expected for each in found) + len(found) - len({*found})
    return lost, max(wrong, int(not lost and found != expected))


def harms_in_a_process(items: Callable[[], Iterator[Any]], expected: list[Seen]) -> bool:
    """Whether there is any harm, found in a process of its own: torch's loader raises wherever its user just is."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(harm(items, expected) != (0, 0))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) != 0


class Evil:
    """Scenes that do something to whoever reads them, so many times each.

    Args:
        monkeypatch: undoes it.
        notes: an empty folder, in which the processes count together.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, notes: Path) -> None:
        self.scenes: dict[str, tuple[str, int]] = {}
        """Id → what is done, how often."""
        self.notes = notes
        self._read = decode.read_sample
        monkeypatch.setattr(decode, "read_sample", self)

    def __call__(self, root: Path, scene: Any, **options: Any) -> Any:
        how, times = self.scenes.get(scene.id, ("", 0))
        if how and self._take(scene.id, times):
            _do(how)
        return self._read(root, scene, **options)

    def done(self) -> int:
        """How often something was done."""
        return len(list(self.notes.iterdir()))

    def _take(self, name: str, times: int) -> bool:
        """Whether there is one more to do."""
        for number in range(times):
            try:
                os.close(os.open(self.notes / f"{name.replace('/', '-')}.{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False


def _do(how: str) -> None:
    if how == "raise":
        raise DataError("the file: is bad; fix it")
    if how == "hang":
        time.sleep(HANG_S)
    if how == "exit":
        os._exit(3)
    faulthandler.disable()  # pytest's would tell of it at length
    os.kill(os.getpid(), getattr(signal, how))
