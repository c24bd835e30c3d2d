"""Follows a training from another terminal: reads what it appends, takes no lock, writes nothing."""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memorysam_cli.engine.run_folder import RECIPE, RunFolder
from memorysam_cli.errors import MemorySamError, UsageError
from memorysam_cli.recipe import Recipe, load
from memorysam_cli.storage import documents, lock

State = Literal["running", "finished", "diverged", "stopped"]
SERIES = ("lr", "gradient_norm", "scenes_per_second", "peak_memory_gb", "miou")
"""Values that are followed beside the losses."""
KEPT = 4000
"""Values of a series that are kept: many screens' widths."""
RECENT = 50
"""Updates whose pace tells how long the rest takes."""


@dataclass(frozen=True)
class Look:
    """What a run is at, at one moment."""

    run: Path
    state: State
    owner: lock.Owner | None
    step: int
    last_step: int | None
    """None for a run that has not said it yet."""
    epoch: int
    epochs: int
    seconds_left: float | None
    best_miou: float | None
    best_step: int | None
    terms: tuple[str, ...]
    """Losses that are followed beside their sum: all but the first, which is most of it."""
    series: dict[str, list[float | None]]
    """The newest values, the newest last; ``loss`` and :attr:`terms` come first."""

    @property
    def latest(self) -> dict[str, float | None]:
        """The newest value of each series that has one."""
        return {name: values[-1] for name, values in self.series.items() if values}

    def to_json(self) -> dict[str, Any]:
        """The keys of ``memorysam watch --json``."""
        owner = None if self.owner is None else vars(self.owner)
        return {
            "run": str(self.run), "state": self.state, "owner": owner, "step": self.step, "last_step": self.last_step,
            "epoch": self.epoch, "epochs": self.epochs, "seconds_left": self.seconds_left,
            "best_miou": self.best_miou, "best_step": self.best_step, "latest": self.latest,
        }  # fmt: skip


class Watch:
    """Looks at a run again and again; each look reads only what is new.

    Args:
        folder: of the run.

    Raises:
        UsageError: there is no run.
    """

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder)
        if not self.run.holds_run():
            what = "holds no run" if folder.is_dir() else "does not exist"
            raise UsageError(f"{folder}: {what} ({RECIPE}); name a run's folder, such as runs/latest")
        self.recipe: Recipe = load(folder / RECIPE, is_stored=True)
        self._forget()

    def look(self) -> Look:
        """What the run is at now."""
        self._read_on()
        extent = self._document(self.run.extent)
        last = extent.get("last_step")
        owner = lock.owner(self.run.path)
        state: State = "stopped"
        if self.run.result.is_file():
            state = "finished"
        elif owner is not None and owner.lives is not False:
            state = "running"
        elif self.run.diverged.is_file():
            state = "diverged"
        per_step = self._seconds_per_step(extent.get("scenes_per_step"))
        left = None if per_step is None or last is None or state != "running" else per_step * (last - self.step)
        return Look(
            self.run.path, state, owner if state == "running" else None, self.step, last, self.epoch,
            self.recipe.train.epochs, left, self.best[0], self.best[1], self.recipe.terms[1:],
            {name: list(values) for name, values in self.series.items()},
        )  # fmt: skip

    def _forget(self) -> None:
        names = ("loss", *self.recipe.terms[1:], *SERIES)
        self.series: dict[str, deque[float | None]] = {name: deque(maxlen=KEPT) for name in names}
        self.step = self.epoch = 0
        self.best: tuple[float | None, int | None] = (None, None)
        self._place = 0

    def _read_on(self) -> None:
        """Take in the lines that were added; a last one without its end is left for the next look."""
        try:
            size = self.run.metrics.stat().st_size
            if size < self._place:  # a resumed run has dropped the rows that it writes again
                self._forget()
            with self.run.metrics.open("rb") as stream:
                stream.seek(self._place)
                new = stream.read(size - self._place)
        except OSError:  # not there yet, or just being replaced
            return
        whole, end, _ = new.rpartition(b"\n")
        self._place += len(whole) + len(end)
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            self.step, self.epoch = int(row["step"]), int(row["epoch"])
        except (ValueError, KeyError, TypeError):
            return
        for name, values in self.series.items():
            if name in row:
                value = row[name]
                is_number = isinstance(value, int | float) and math.isfinite(value)
                values.append(float(value) if is_number else None)
        miou = row.get("miou")
        if isinstance(miou, int | float) and (self.best[0] is None or miou > self.best[0]):
            self.best = (float(miou), self.step)

    def _seconds_per_step(self, scenes: int | None) -> float | None:
        paces = [pace for pace in list(self.series["scenes_per_second"])[-RECENT:] if pace]
        return sum(scenes / pace for pace in paces) / len(paces) if scenes and paces else None

    @staticmethod
    def _document(path: Path) -> dict[str, Any]:
        try:
            found = documents.read_json(path)
        except (MemorySamError, OSError):
            return {}
        return found if isinstance(found, dict) else {}
