"""The process of a tracker: TensorBoard, W&B, MLflow or Trackio, through accelerate's classes.

It reads the training log from its stdin, line by line, to the end. It answers with lines of JSON: a ``note`` for the
user, the first ``trouble`` with its input, or the reason why everything ``failed``. First comes the reading, then for
each tracker its storage and how a run is resumed.

All files are in the run's ``trackers/``, unless the user's environment names another place.
"""

from __future__ import annotations

import json
import netrc
import os
import re
import secrets
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from accelerate import PartialState, tracking
from numpy.typing import NDArray

from memorysam_cli.errors import SIGNAL_EXIT_CODES
from memorysam_cli.storage import atomic, children, documents, images
from memorysam_cli.text import typed

PROJECT = "memorysam"
LAST_S = 300
"""Seconds until the system ends a tracker that nobody waits for any more."""
_UNUSUAL = re.compile(r"[^\w./ -]")
"""Pattern of characters that MLflow refuses in a metric's name."""
Counts = tuple[tuple[str, ...], Sequence[Sequence[int]]]
"""K classes and their confusion matrix: (K, K) pixels, rows the truth."""


def main(arguments: list[str]) -> None:
    """Track: the tracker's name."""
    (name,) = arguments
    # Ctrl-C and a scheduler's SIGTERM reach all processes; the training decides when this one ends.
    for number in SIGNAL_EXIT_CODES:
        if number.name != "SIGALRM":  # its own
            signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    with children.claim_stdout() as answers:
        serve(name, sys.stdin.buffer, answers)


def serve(name: str, lines: IO[bytes], answers: IO[bytes]) -> None:
    """Track what comes until it ends.

    Args:
        name: of the tracker.
        lines: JSON: first ``folder``, ``recipe`` and ``step``, then what :class:`Tracking` sends.
        answers: the stream for answers.
    """
    try:
        _track(name, (json.loads(line) for line in lines), answers)
    except Exception as error:
        # Whatever a tracker raises becomes one line for the training.
        _say(answers, failed=_one_line(error))
        for _ in lines:  # the training must not find a closed pipe
            pass


def _track(name: str, messages: Iterator[dict[str, Any]], answers: IO[bytes]) -> None:
    """Start or continue the run's record, and pass everything on."""
    PartialState(cpu=True)  # accelerate's trackers use it to check for the first process
    begin = next(messages)
    tracker = KINDS[name](Path(begin["folder"]), recipe=begin["recipe"], step=begin["step"])
    _say(answers, note=tracker.where)
    has_warned = False
    for message in messages:
        if "end" in message:  # not the end of the pipe: data workers may keep it open
            break
        try:
            _hand_on(message, tracker)
        except Exception as error:  # a server may be unreachable for an hour
            if not has_warned:
                _say(answers, trouble=f"step {message['step']}: {_one_line(error)}")
            has_warned = True
    if hasattr(signal, "alarm"):
        signal.alarm(LAST_S)
    tracker.finish()


def _hand_on(message: dict[str, Any], tracker: Tracker) -> None:
    """Pass the training log to the tracker."""
    if "values" in message:
        tracker.log(message["values"], message["step"])
    else:
        counts = (tuple(message["classes"]), message["confusion"])
        tracker.show(_pictures(Path(message["picture"]), counts, tracker.own), counts, message["step"])


def _pictures(samples: Path, counts: Counts, folder: Path) -> dict[str, Path]:
    """The pictures of a validation by title. Confusion matrices are drawn here, so that training does not wait."""
    from memorysam_cli.report import figures  # only for a validation, because it loads matplotlib

    drawn = folder / "confusion.png"
    atomic.write_bytes(drawn, figures.confusion_matrix(counts[1], classes=counts[0]), fsync=False)
    pictures = {"validation/samples": samples, "validation/confusion": drawn}
    return {title: path for title, path in pictures.items() if path.is_file()}


def _say(answers: IO[bytes], **words: str) -> None:
    answers.write(json.dumps(words).encode() + b"\n")
    answers.flush()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")


class Tracker:
    """One of accelerate's trackers on one run.

    Args:
        folder: the run's, absolute.
        recipe: as YAML.
        step: the step at the start; earlier rows are already recorded.
    """

    name: str

    def __init__(self, folder: Path, *, recipe: str, step: int) -> None:
        self.folder, self.step = folder, step
        self.own = folder / "trackers"
        self.run_name = folder.name
        self.recipe = recipe
        self.record = self.own / f"{self.name}.json"
        self.known: dict[str, str] = documents.read_json(self.record) if self.record.is_file() else {}
        self.tracker = self.open()
        self.tracker.start()
        self.remember()
        self.begin()

    @property
    def where(self) -> str:
        """Where to find the record, and how to view it."""
        raise NotImplementedError

    def open(self) -> Any:
        """accelerate's tracker, before its start."""
        raise NotImplementedError

    def ids(self) -> dict[str, str]:
        """The ids for continuing the same record; after the start."""
        return {}

    def begin(self) -> None:
        """Store the recipe in a new record."""
        if not self.known:
            self.tracker.store_init_configuration(flat(documents.parse_yaml(self.recipe, where="recipe")))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""
        self.tracker.log(dict(values), step=step)

    def show(self, pictures: Mapping[str, Path], counts: Counts, step: int) -> None:
        """Pictures by title, and a confusion matrix."""
        del counts
        self.tracker.log_images({title: _pixels(path)[None] for title, path in pictures.items()}, step=step)

    def finish(self) -> None:
        """Write and send everything that is left."""
        self.tracker.finish()

    def remember(self) -> None:
        """Store the ids for a resumed run."""
        ids = self.ids()
        if ids and ids != self.known:
            documents.write_json(self.record, ids)


class TensorBoard(Tracker):
    """Event files; needs no server."""

    name = "tensorboard"

    @property
    def where(self) -> str:
        """As :class:`Tracker`."""
        return f"{self.own / self.name}; look at it with: tensorboard --logdir {typed(self.own / self.name)}"

    def open(self) -> Any:
        """As :class:`Tracker`."""
        self.is_new = not (self.own / self.name).is_dir()
        # Values after the resumed step are hidden, because they are written again.
        return tracking.TensorBoardTracker(self.name, self.own, purge_step=self.step + 1)

    def begin(self) -> None:
        """As :class:`Tracker`; TensorBoard's hparams would create a second run."""
        if self.is_new:
            self.tracker.log({"recipe": f"```yaml\n{self.recipe}```"}, step=0)

    def show(self, pictures: Mapping[str, Path], counts: Counts, step: int) -> None:
        """As :class:`Tracker`."""
        del counts
        arrays = {title: _pixels(path)[None] for title, path in pictures.items()}
        self.tracker.log_images(arrays, step=step, dataformats="NHWC")


class Wandb(Tracker):
    """Weights & Biases: offline, unless the user is logged in or WANDB_MODE overrides it."""

    name = "wandb"

    @property
    def where(self) -> str:
        """As :class:`Tracker`."""
        run = self.tracker.tracker
        if run.offline:
            return f"offline in {Path(run.dir).parent}; send it with: wandb sync {Path(run.dir).parent}"
        return str(run.url or "WANDB_MODE disables it")

    def open(self) -> Any:
        """As :class:`Tracker`."""
        import wandb

        self.run_id = self.known.get("run") or secrets.token_hex(4)
        mode = os.environ.get("WANDB_MODE") or ("online" if _is_logged_in() else "offline")
        settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, mode=mode)  # type: ignore[arg-type]
        return tracking.WandBTracker(
            os.environ.get("WANDB_PROJECT", PROJECT), dir=str(self.own), id=self.run_id, resume="allow",
            name=os.environ.get("WANDB_NAME", self.run_name), settings=settings,
        )  # fmt: skip

    def ids(self) -> dict[str, str]:
        """As :class:`Tracker`."""
        return {"run": self.run_id}

    def show(self, pictures: Mapping[str, Path], counts: Counts, step: int) -> None:
        """As :class:`Tracker`, and the counts as a table."""
        super().show(pictures, counts, step)
        rows = [[name, *row] for name, row in zip(*counts, strict=True)]
        self.tracker.log_table("validation/counts", columns=["truth", *counts[0]], data=rows, step=step)


def _is_logged_in() -> bool:
    """Whether W&B has a key and will not ask for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class MLflow(Tracker):
    """MLflow: a database in the run's folder, unless MLFLOW_TRACKING_URI names a server."""

    name = "mlflow"

    @property
    def where(self) -> str:
        """As :class:`Tracker`."""
        return f"{self.uri}; look at it with: mlflow ui --backend-store-uri {typed(self.uri)}"

    def open(self) -> Any:
        """As :class:`Tracker`."""
        import mlflow

        own = self.own / self.name
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{own / 'mlflow.db'}"
        is_ours = "MLFLOW_TRACKING_URI" not in os.environ
        if is_ours:
            atomic.make_folder(own)
        mlflow.set_tracking_uri(self.uri)
        return tracking.MLflowTracker(
            experiment_name=PROJECT, logging_dir=(own / "artifacts").as_uri() if is_ours else None,
            run_id=self.known.get("run"), run_name=self.run_name,
        )  # fmt: skip

    def ids(self) -> dict[str, str]:
        """As :class:`Tracker`."""
        return {"run": self.tracker.tracker.info.run_id}

    def begin(self) -> None:
        """As :class:`Tracker`. A continued record already has values of steps that are repeated; they are not recorded
        twice."""
        super().begin()
        self._logged: dict[str, int] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """As :class:`Tracker`, under names that MLflow allows."""
        usual = {_UNUSUAL.sub("_", name): value for name, value in values.items()}
        new = {name: value for name, value in usual.items() if step > self._last(name)}
        if new:
            self.tracker.log(new, step=step)

    def show(self, pictures: Mapping[str, Path], counts: Counts, step: int) -> None:
        """As :class:`Tracker`: files of the run, in a folder of the step."""
        place = f"validation/step-{step:08d}"
        for path in pictures.values():
            self.tracker.log_artifact(str(path), artifact_path=place)
        table = self.own / self.name / "confusion.json"
        documents.write_json(table, {"step": step, "classes": list(counts[0]), "confusion": counts[1]})
        self.tracker.log_artifact(str(table), artifact_path=place)

    def _last(self, name: str) -> int:
        """The last step of a metric in a record that continues."""
        if not self.known:
            return -1
        if name not in self._logged:
            import mlflow

            history = mlflow.MlflowClient().get_metric_history(self.known["run"], name)
            self._logged[name] = max((each.step for each in history), default=-1)
        return self._logged[name]


class Trackio(Tracker):
    """Trackio: a database in the run's folder, unless TRACKIO_DIR names another."""

    name = "trackio"

    @property
    def where(self) -> str:
        """As :class:`Tracker`."""
        return f"{os.environ['TRACKIO_DIR']}; look at it with: TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show"

    def open(self) -> Any:
        """As :class:`Tracker`."""
        os.environ.setdefault("TRACKIO_DIR", str(self.own / self.name))  # read when trackio is imported
        return tracking.TrackioTracker(
            PROJECT, name=self.run_name, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
        )

    def ids(self) -> dict[str, str]:
        """As :class:`Tracker`."""
        return {"run": self.run_name}

    def show(self, pictures: Mapping[str, Path], counts: Counts, step: int) -> None:
        """As :class:`Tracker`."""
        import trackio

        del counts
        values = {title: trackio.Image(str(path)) for title, path in pictures.items()}
        if values:
            self.tracker.log(values, step=step)


KINDS = {kind.name: kind for kind in (TensorBoard, Wandb, MLflow, Trackio)}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """``{"train": {"batch": 2}}`` as ``{"train.batch": 2}``; lists and null as text."""
    if not isinstance(tree, dict):
        plain = tree if isinstance(tree, bool | int | float | str) else str(tree)
        return {prefix: plain}
    return {
        key: value
        for name, part in tree.items()
        for key, value in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _pixels(path: Path) -> NDArray[Any]:
    """(H, W, 3) uint8; the alpha channel of a figure is dropped."""
    return images.read(path)[..., :3]
