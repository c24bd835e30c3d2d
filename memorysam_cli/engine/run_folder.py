"""Where a training run lives: ``runs/<recipe>-<date>-<id>/``, and how later commands find it."""

from __future__ import annotations

import math
import os
import platform
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memorysam_cli.errors import UsageError, WeightsError
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import atomic, documents

RUNS = Path("runs")
RECIPE = "recipe.yaml"
LATEST = "latest"


@dataclass(frozen=True)
class RunFolder:
    """The names inside a run's folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Weights for users, and the ``step-…`` folders for resuming."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights with the best validation result."""
        return self.checkpoints / "best.safetensors"

    @property
    def last(self) -> Path:
        """The newest weights."""
        return self.checkpoints / "last.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step and per validation."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What was said on the terminal."""
        return self.path / "train.log"

    @property
    def plots(self) -> Path:
        """Curves."""
        return self.path / "plots"

    @property
    def samples(self) -> Path:
        """Overlays of validation scenes."""
        return self.path / "samples"

    def store_recipe(self, recipe: Recipe) -> None:
        """Write the resolved recipe of the run; its presence is what makes the folder a run."""
        atomic.write_text(self.path / RECIPE, recipe.to_yaml())

    def log_metrics(self, place: Mapping[str, int], values: Mapping[str, float]) -> None:
        """Append a row to the metrics; a value that is not finite becomes null, as JSON knows no NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        documents.append_json_line(self.metrics, {**place, **finite})

    def forget_metrics_after(self, step: int, *, validated: bool) -> None:
        """Drop the rows that a resumed run will write again: those of later steps, and a validation still to come."""
        if self.metrics.exists():
            rows = documents.read_json_lines(self.metrics)
            rows = [r for r in rows if r["step"] < step or (r["step"] == step and (validated or "miou" not in r))]
            atomic.write_text(self.metrics, "".join(documents.to_json(row) + "\n" for row in rows))

    def holds_run(self) -> bool:
        """Whether a run has been started here."""
        return (self.path / RECIPE).is_file()


def create(recipe: Recipe, out: Path | None) -> RunFolder:
    """Make the folder of a new run.

    Raises:
        UsageError: ``out`` exists and is not empty; a run folder is never reused unless resuming.
    """
    path = out or RUNS / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    refuse_taken(path)
    documents.write_json(path / "environment.json", environment())
    atomic.write_text(path / "command.txt", shlex.join(sys.argv) + "\n")
    RunFolder(path).store_recipe(recipe)
    return RunFolder(path)


def refuse_taken(path: Path) -> None:
    """Refuse a folder that holds anything; a run never writes into another one's, or into a user's own.

    Raises:
        UsageError: it is not empty, or no folder.
    """
    if path.exists() and (not path.is_dir() or any(entry.name != ".lock" for entry in path.iterdir())):
        is_run = RunFolder(path).holds_run()
        what = "holds a run already; --resume auto continues it, or" if is_run else "is not empty;"
        what = what if path.is_dir() else "is a file;"
        raise UsageError(f"--out {path}: {what} give another folder")


def newest(recipe: str) -> RunFolder | None:
    """The newest run of a recipe under ``runs/``, if there is one."""
    # Exactly as `create` names them: `deliver` must not find a run of `deliver-rgbd`.
    own = re.compile(re.escape(recipe) + r"-\d{8}-\d{6}-[0-9a-f]{4}")
    folders = RUNS.iterdir() if RUNS.is_dir() else ()
    found = [path for path in folders if own.fullmatch(path.name) and RunFolder(path).holds_run()]
    return RunFolder(max(found, key=lambda path: (path / RECIPE).stat().st_mtime_ns)) if found else None


def point_latest(path: Path) -> None:
    """Let ``runs/latest`` name a run, by a symbolic link that is replaced in one step."""
    RUNS.mkdir(exist_ok=True)
    target = Path(os.path.relpath(path.resolve(), RUNS.resolve()))
    link = RUNS / f".{LATEST}-{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)
    link.replace(RUNS / LATEST)


def default_weights() -> Path:
    """The best weights of ``runs/latest``.

    Raises:
        WeightsError: there is no such file; says how to get one.
    """
    latest = RunFolder(RUNS / LATEST)
    if latest.best.is_file():
        return latest.best
    why = "holds no best.safetensors yet" if latest.path.is_dir() else "does not exist"
    raise WeightsError(
        f"{latest.path}: {why}; give --weights FILE, or train first: "
        "memorysam prepare synthetic ./data && memorysam train --recipe demo"
    )


def run_of(weights: Path) -> Path | None:
    """The folder of the run that weights belong to; none for weights that lie elsewhere."""
    checkpoints = weights.resolve().parent
    is_in_run = checkpoints.name == "checkpoints" and RunFolder(checkpoints.parent).holds_run()
    return checkpoints.parent if is_in_run else None


def environment() -> dict[str, Any]:
    """What a result may depend on, beside the recipe."""
    import torch

    from memorysam_cli.model.weights import versions

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "versions": versions(),
    }
