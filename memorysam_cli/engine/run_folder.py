"""The folder of a training run: its files, how it is created and found, and how another terminal follows it.

Following (:class:`Watch`) only reads what training appends. It takes no lock and writes nothing.
"""

from __future__ import annotations

import math
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memorysam_cli import registry
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import surroundings
from memorysam_cli.errors import DataError, MemorySamError, UsageError, WeightsError
from memorysam_cli.recipe import Recipe, load
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, lock
from memorysam_cli.text import command, shown, typed

RUNS = Path("runs")
RECIPE = "recipe.yaml"
LATEST, BEGUN = "latest", ".begun"
"""Links below :data:`RUNS`: to the run that finished last (if none has, to the one that started last), and to the run
that started last."""
SERIES = ("lr", "gradient_norm", "scenes_per_second", "peak_memory_gb", "miou")
"""Followed values besides the losses."""
MOST_VALUES = 4000
"""Number of values per series in memory: many screens' widths."""
RECENT_UPDATES = 50
"""Number of updates from whose speed the remaining time is computed."""
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-.+-\d+-[0-9a-f]{8}")
"""Pattern of names of unfinished files and folders of :mod:`~memorysam_cli.storage.atomic`."""
_COMMAND_FILES = {lock.NAME, lock.FAULTS, "exit.json"}
"""Files of a command that ended before its run started."""
_START_FILES = {
    *_COMMAND_FILES, RECIPE, "environment.json", "command.txt", "train.log", "extent.json", "data.json", "checkpoints",
    "trackers",
}  # fmt: skip
"""Files of a run before its first checkpoint."""
_OLD_S = 3600
"""Seconds: creating a link to the newest run takes a moment, so an older temporary link was left by a kill."""
RunState = Literal["running", "finished", "diverged", "stopped"]


@dataclass(frozen=True)
class RunFolder:
    """The file names in a run's folder."""

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
    def quarantine(self) -> Path:
        """One JSON line per unreadable training scene."""
        return self.path / "quarantine.jsonl"

    @property
    def extent(self) -> Path:
        """The length of the run, for :class:`Watch`."""
        return self.path / "extent.json"

    @property
    def data(self) -> Path:
        """Which data set the run used last, with its absolute path."""
        return self.path / "data.json"

    @property
    def resumes(self) -> Path:
        """One JSON line for each resume, with changed conditions."""
        return self.path / "resumes.jsonl"

    @property
    def diverged(self) -> Path:
        """The batches of an update that was not finite."""
        return self.path / "diverged.json"

    @property
    def result(self) -> Path:
        """The result of the finished run."""
        return self.path / "result.json"

    @property
    def exit(self) -> Path:
        """The exit code, if the launcher does not report it."""
        return self.path / "exit.json"

    @property
    def log(self) -> Path:
        """The terminal output."""
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
        """Write the resolved recipe of the run; this file makes the folder a run."""
        atomic.write_text(self.path / RECIPE, recipe.to_yaml())

    def store_data(self, manifest: Manifest) -> None:
        """Store the place of the data, so that commands on this run find them from anywhere."""
        facts = {"root": str(manifest.root.absolute()), "dataset": manifest.info.name}
        documents.write_json(self.data, {**facts, "content_hash": manifest.info.content_hash})

    def stored_data(self) -> dict[str, str]:
        """``root``, ``dataset`` and ``content_hash``; None for a run of a version that did not store them.

        Raises:
            DataError: the file is damaged.
        """
        if not self.data.is_file():
            return {}
        with documents.understood(self.data):
            found = documents.read_json(self.data)
            return {key: _word(found[key]) for key in ("root", "dataset", "content_hash")}

    def is_finished(self) -> bool:
        """Whether training ended normally, and the weights exist."""
        return self.result.is_file() and self.best.is_file()

    def log_metrics(self, place: Mapping[str, int], values: Mapping[str, float]) -> None:
        """Append a row to the metrics; a value that is not finite becomes null, because JSON has no NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        documents.append_json_line(self.metrics, {**place, **finite})

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of the metrics so far.

        Raises:
            DataError: ``file:line`` is not a row of ours.
        """
        lines = enumerate(documents.each_json_line(self.metrics) if self.metrics.exists() else (), 1)
        return [metrics_row(row, where=f"{self.metrics}:{number}") for number, row in lines]

    def forget_metrics_after(self, step: int, *, validated: bool) -> None:
        """Drop rows that a resumed run will write again: those of later steps, and a validation that is still due."""
        if self.metrics.exists():
            rows = self.read_metrics()
            rows = [r for r in rows if r["step"] < step or (r["step"] == step and (validated or "miou" not in r))]
            atomic.write_text(self.metrics, "".join(documents.to_json(row) + "\n" for row in rows))

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return (self.path / RECIPE).is_file()

    def is_unbegun(self) -> bool:
        """Whether a run was started here and ended before its first checkpoint, so that nothing can be lost."""
        if not self.holds_run() or not {entry.name for entry in _own(self.path)} <= _START_FILES:
            return False
        return not (self.checkpoints.is_dir() and list(_own(self.checkpoints)))

    def sweep(self) -> None:
        """Remove temporary files of killed writers; only for the process that holds the folder's lock."""
        for folder in (self.path, self.checkpoints, self.plots, self.samples):
            for entry in folder.iterdir() if folder.is_dir() else ():
                if _TEMPORARY.fullmatch(entry.name):
                    shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def metrics_row(row: Any, *, where: str) -> dict[str, Any]:
    """A line of ``metrics.jsonl``: step, epoch, and numbers or null by name.

    Raises:
        DataError: the line is not valid; the message begins with ``where``.
    """
    places = [row.get(key) for key in ("step", "epoch")] if isinstance(row, dict) else [None]
    if not all(is_count(place) for place in places):
        raise DataError(f"{where}: is not a row with a step and an epoch; remove the line, or restore the file")
    if odd := [name for name, value in row.items() if value is not None and type(value) not in (int, float)]:
        raise DataError(f"{where}: '{shown(odd[0])}' is not a number; remove the line, or restore the file")
    return dict(row)


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number of steps, epochs or scenes."""
    return type(value) is int and 0 <= value < 2**53


def name_for(recipe: Recipe) -> Path:
    """A free folder for a new run of a recipe."""
    return RUNS / f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def create(recipe: Recipe, out: Path | None, *, begins_again: bool = False) -> RunFolder:
    """Create the folder of a new run.

    The recipe is written first, and makes the folder a run: after a kill at any moment, the folder can be identified.

    Args:
        recipe: of the run.
        out: the folder; None for a new one below ``runs/``.
        begins_again: there is a run that has not begun (:meth:`RunFolder.is_unbegun`).

    Raises:
        UsageError: ``out`` exists and is not empty; a run folder is never reused except by resuming.
    """
    run = RunFolder(out or name_for(recipe))
    if not (begins_again and run.is_unbegun()):
        refuse_taken(run.path)
    run.store_recipe(recipe)
    documents.write_json(run.path / "environment.json", environment())
    atomic.write_text(run.path / "command.txt", " ".join(map(typed, sys.argv)) + "\n")
    return run


def refuse_taken(path: Path) -> None:
    """Refuse a folder that is not empty; a run never writes into the folder of another run or of the user.

    Raises:
        UsageError: it is not empty, or not a folder.
    """
    if path.is_symlink() and not path.exists():
        raise UsageError(
            f"--out {path}: is a link to {path.readlink()}, which does not exist; create it, or give another"
        )
    if path.exists() and (not path.is_dir() or any(entry.name not in _COMMAND_FILES for entry in _own(path))):
        is_run = RunFolder(path).holds_run()
        what = "holds a run already; --resume auto continues it, or" if is_run else "is not empty;"
        what = what if path.is_dir() else "is a file;"
        raise UsageError(f"--out {path}: {what} give another folder")


def _own(folder: Path) -> Iterator[Path]:
    """The content of a folder, without what a kill left of a recipe, of a checkpoint and similar."""
    return (entry for entry in folder.iterdir() if not _is_left(entry.name))


def _is_left(name: str) -> bool:
    match = _TEMPORARY.fullmatch(name)
    return match is not None and (match["name"] in _START_FILES or match["name"].startswith("step-"))


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is not text")
    return value


def environment() -> dict[str, Any]:
    """Conditions that a result may depend on, besides the recipe."""
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


def newest(recipe: str) -> RunFolder | None:
    """The newest run of a recipe under ``runs/``, if there is one."""
    # Only names from `create`: `deliver` must not find a run of `deliver-rgbd`.
    own = re.compile(re.escape(recipe) + r"-\d{8}-\d{6}-[0-9a-f]{4}")
    folders = RUNS.iterdir() if RUNS.is_dir() else ()
    runs = [path for path in folders if own.fullmatch(path.name) and RunFolder(path).holds_run()]
    return RunFolder(max(runs, key=lambda path: (path / RECIPE).stat().st_mtime_ns)) if runs else None


def note_begun(path: Path) -> None:
    """Let other commands find a started or resumed run: ``watch`` always, the others only if no run has finished."""
    _point(BEGUN, path)
    if not RunFolder(RUNS / LATEST).is_finished():
        point_latest(path)


def point_latest(path: Path) -> None:
    """Make ``runs/latest`` point to a run, by a symbolic link that is replaced in one step; a warning if this fails."""
    _point(LATEST, path)


def _point(name: str, path: Path) -> None:
    link = RUNS / f".{LATEST}-{os.getpid()}"
    try:
        atomic.make_folder(RUNS)
        target = Path(os.path.relpath(path.resolve(), RUNS.resolve()))
        for left in RUNS.glob(f".{LATEST}-*"):
            if left.is_symlink() and time.time() - left.lstat().st_mtime > _OLD_S:
                left.unlink(missing_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target, target_is_directory=True)
        link.replace(RUNS / name)
    except (OSError, MemorySamError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        console.warn(f"{RUNS / name}: cannot be made to name this run ({reason}); name it with --weights")


def default_weights() -> Path:
    """The best weights of the run of ``runs/latest``.

    Raises:
        WeightsError: there is no such file; the message says how to get one.
    """
    latest = RunFolder(by_its_name(RUNS / LATEST))
    if latest.best.is_file():
        return latest.best
    why = f"holds no {latest.best.name} yet" if latest.path.is_dir() else "does not exist"
    first = command("prepare", "synthetic", manifests.data_root(None))
    raise WeightsError(
        f"{latest.path}: {why}; give --weights FILE, or train first: {first} && {command('train', '--recipe', 'demo')}"
    )


def tell_default(weights: Path) -> None:
    """Print the run of :func:`default_weights`."""
    run = RunFolder(weights.parent.parent)
    state = "finished" if run.is_finished() else "has not finished: these are its best weights so far"
    console.note(f"weights of {run.path}, which {state}; --weights FILE takes others")


def by_its_name(folder: Path) -> Path:
    """A run by the name of its folder, if a link such as ``runs/latest`` points to it now and may point elsewhere
    later."""
    return Path(os.path.relpath(folder.resolve())) if folder.is_symlink() and folder.exists() else folder


def watched_by_default() -> Path:
    """The run that started last if it is still running, else ``runs/latest``."""
    begun = RUNS / BEGUN
    owner = lock.owner(begun) if begun.is_dir() else None
    is_at_work = owner is not None and owner.lives is not False
    return by_its_name(begun if is_at_work else RUNS / LATEST)


def data_root(run: Path | None, option: Path | None) -> Path:
    """The data root of a run: ``--data``, else the root during training, else the default of all commands.

    Args:
        run: its folder; None without a run.
        option: ``--data``.

    Raises:
        DataError: the data set is neither there nor at the default place; the message names both.
    """
    elsewhere = manifests.data_root(option)
    stored = RunFolder(run).stored_data() if run is not None and option is None else {}
    if not stored:
        return elsewhere
    root, dataset = Path(stored["root"]), stored["dataset"]
    if elsewhere.absolute() == root:
        return elsewhere
    if manifests.is_prepared(root, dataset):
        return root
    if manifests.is_prepared(elsewhere, dataset):
        console.note(f"{run}: data set '{dataset}' is not below {root} any more; taking that below {elsewhere}")
        return elsewhere
    raise DataError(
        f"{run}: was trained on data set '{dataset}' below {root}, which no longer exists (nor below "
        f"{elsewhere}); give its place with --data ROOT"
    )


def resume_command(run: Path, *options: object) -> str:
    """The command that resumes a run, for the current folder.

    Args:
        run: its folder.
        options: further words.
    """
    line = command(*registry.options(), "train", "--resume", run, *options)
    world = surroundings.world()
    if world == 1:
        return line
    if surroundings.local_world(world) == world:
        return f"torchrun --nproc-per-node {world} -m memorysam_cli {line.removeprefix('memorysam ')}"
    return f"{line} (by {world} processes, with the same launcher)"


def run_of(weights: Path) -> Path | None:
    """The folder of the run of these weights; None for weights elsewhere."""
    checkpoints = weights.resolve().parent
    is_in_run = checkpoints.name == "checkpoints" and RunFolder(checkpoints.parent).holds_run()
    return checkpoints.parent if is_in_run else None


@dataclass(frozen=True)
class Look:
    """The state of a run at one moment."""

    run: Path
    state: RunState
    owner: lock.Owner | None
    step: int
    last_step: int | None
    """None if the run has not written it yet."""
    epoch: int
    epochs: int
    seconds_left: float | None
    best_miou: float | None
    best_step: int | None
    terms: tuple[str, ...]
    """Followed losses besides their sum: all but the first, which is most of it."""
    series: dict[str, list[float | None]]
    """The newest values, the last one is the newest; ``loss`` and :attr:`terms` come first."""

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
    """Looks at a run again and again; each look reads only new lines.

    Args:
        folder: of the run.

    Raises:
        UsageError: there is no run.
        DataError: one of its files is damaged; every look may also raise this.
    """

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder)
        if not self.run.holds_run():
            what = "holds no run" if folder.is_dir() else "does not exist"
            raise UsageError(f"{folder}: {what} ({RECIPE}); name a run's folder, such as runs/latest")
        self.recipe: Recipe = load(folder / RECIPE, is_stored=True)
        self._reset()

    def look(self) -> Look:
        """The current state of the run."""
        self._read_new()
        scenes, last = self._extent()
        owner = lock.owner(self.run.path)
        state: RunState = "stopped"
        if self.run.result.is_file():
            state = "finished"
        elif owner is not None and owner.lives is not False:
            state = "running"
        elif self.run.diverged.is_file():
            state = "diverged"
        per_step = self._seconds_per_step(scenes)
        left = None if per_step is None or last is None or state != "running" else per_step * (last - self.step)
        return Look(
            self.run.path, state, owner if state == "running" else None, self.step, last, self.epoch,
            self.recipe.train.epochs, left, self.best[0], self.best[1], self.recipe.terms[1:],
            {name: list(values) for name, values in self.series.items()},
        )  # fmt: skip

    def _reset(self) -> None:
        names = ("loss", *self.recipe.terms[1:], *SERIES)
        self.series: dict[str, deque[float | None]] = {name: deque(maxlen=MOST_VALUES) for name in names}
        self.step = self.epoch = 0
        self.best: tuple[float | None, int | None] = (None, None)
        self._place = self._lines = 0

    def _read_new(self) -> None:
        """Read added lines; an incomplete last line is left for the next look."""
        if not self.run.metrics.is_file():  # not there yet
            return
        try:
            if self.run.metrics.stat().st_size < self._place:  # a resumed run has dropped the rows that it writes again
                self._reset()
            with self.run.metrics.open("rb") as stream:
                stream.seek(self._place)
                for line in iter(lambda: stream.readline(documents.MAX_JSON_BYTES), b""):
                    if not line.endswith(b"\n"):
                        return
                    self._lines += 1
                    self._read_row(line, where=f"{self.run.metrics}:{self._lines}")
                    self._place += len(line)
        except OSError:  # it is being replaced
            return

    def _read_row(self, line: bytes, *, where: str) -> None:
        row = metrics_row(documents.parse_json(line, where=where), where=where)
        self.step, self.epoch = row["step"], row["epoch"]
        for name, values in self.series.items():
            if name in row:
                values.append(None if row[name] is None else float(row[name]))
        miou = row.get("miou")
        if miou is not None and (self.best[0] is None or miou > self.best[0]):
            self.best = (float(miou), self.step)

    def _seconds_per_step(self, scenes: int | None) -> float | None:
        paces = [pace for pace in list(self.series["scenes_per_second"])[-RECENT_UPDATES:] if pace]
        return sum(scenes / pace for pace in paces) / len(paces) if scenes and paces else None

    def _extent(self) -> tuple[int | None, int | None]:
        """Scenes per step and the last step, if the run has written them."""
        if not self.run.extent.exists():
            return None, None
        extent = documents.read_object(self.run.extent)
        values = extent.get("scenes_per_step"), extent.get("last_step")
        if not all(is_count(value) for value in values):
            raise DataError(f"{self.run.extent}: holds no numbers of scenes and steps; memorysam train writes it again")
        return values
