"""``--track``: pass the training log to TensorBoard, W&B, MLflow or Trackio.

Each tracker runs in a separate process. Training only writes to it and never waits for it. A tracker that fails,
crashes or hangs is reported once and then left alone; it does not affect any update.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memorysam_cli.engine import surroundings
from memorysam_cli.errors import EnvironmentFault, UsageError, did_you_mean
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, children

if TYPE_CHECKING:  # names() is called before the seconds that torch takes
    from torch import Tensor

    from memorysam_cli.engine.run_folder import RunFolder

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Name of each tracker, which is also the name of its extra."""
MODULE = "memorysam_cli.engine.train.trackers"
OPT_OUT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "DO_NOT_TRACK": "true",
}
"""Variables that switch off the trackers' own usage statistics."""
GIVE_UP_SOON = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Variables with which an unreachable server is given up before the end of training; the user's own values have
priority."""
MOST_BYTES = 4_000_000
"""Bytes that may wait for a tracker: some ten thousand updates. A tracker that is further behind is dropped."""
PATIENCE_S = 60.0
"""Seconds at the end of a training run in which a tracker can still write or send."""
PATIENCE_STOPPED_S = 10.0
"""The same after a requested stop or an error."""


def names(values: Iterable[str]) -> tuple[str, ...]:
    """The trackers of ``--track a,b --track c``, each once.

    Raises:
        UsageError: a tracker is unknown or not installed; the message says how to install it.
    """
    trackers = tuple(dict.fromkeys(word.strip() for text in values for word in text.split(",")))
    for name in trackers:
        if name not in TRACKERS:
            raise UsageError(f"--track {name}: is not a tracker{did_you_mean(name, TRACKERS)}")
        surroundings.refuse_missing_extra(name, option=f"--track {name}")
    return trackers


class Tracking:
    """The trackers of one run; of several processes only the first one has any.

    Args:
        trackers: from :func:`names`; without any, nothing is done.
        patience_s: seconds for each at the end.
    """

    def __init__(self, trackers: Sequence[str] = (), *, patience_s: float = PATIENCE_S) -> None:
        self.names, self.patience_s = tuple(trackers), patience_s
        self._running: list[_Tracker] = []

    @contextlib.contextmanager
    def of_run(self, folder: Path, *, recipe: str, step: int) -> Iterator[None]:
        """Start the trackers; at the end of the block let them finish.

        Args:
            folder: the run's; the trackers write into its ``trackers/``.
            recipe: as YAML.
            step: the step at the start.
        """
        for name in self.names:
            with _warned_of(name):
                atomic.make_folder(folder / "trackers")
                self._running.append(_Tracker(name, {"folder": str(folder.absolute()), "recipe": recipe, "step": step}))
        patience = min(self.patience_s, PATIENCE_STOPPED_S)
        try:
            yield
            patience = self.patience_s
        finally:
            running, self._running = self._running, []
            for tracker in running:
                tracker.close()
            deadline = time.monotonic() + patience
            for tracker in running:
                tracker.finish(deadline)

    def log(self, step: int, values: Mapping[str, float], *, group: str = "train") -> None:
        """Pass a row of numbers on, without those that are not finite.

        Args:
            step: updates so far.
            values: name → number.
            group: prefix of each name: ``train`` or ``validation``.
        """
        if self._running:
            finite = {f"{group}/{name}": value for name, value in values.items() if math.isfinite(value)}
            self._send({"step": step, "values": finite})

    def validated(
        self, step: int, classes: Sequence[str], iou: Sequence[float], confusion: Tensor, run: RunFolder
    ) -> None:
        """Pass on the results of a validation besides its means.

        Args:
            step: updates so far.
            classes: K names.
            iou: K values, in %.
            confusion: (K, K) int64 pixels, rows the truth.
            run: has the pictures.
        """
        if self._running:
            self.log(step, dict(zip(classes, iou, strict=True)), group="validation/iou")
            picture = str((run.samples / "validation.png").absolute())
            self._send({"step": step, "picture": picture, "classes": list(classes), "confusion": confusion.tolist()})

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message, ensure_ascii=True).encode() + b"\n"
        for tracker in self._running:
            tracker.send(line)


class _Tracker:
    """The process of a tracker; training never waits for it before its end."""

    def __init__(self, name: str, begin: Mapping[str, Any]) -> None:
        self.name = name
        # It needs no GPU, whose memory belongs to training.
        environment = (
            GIVE_UP_SOON
            | surroundings.environment_alone()
            | OPT_OUT
            | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        )
        self.process = children.start(MODULE, name, environment=environment)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        os.set_blocking(self._stdout.fileno(), False)
        self._waiting, self._answers = bytearray(), bytearray()
        self._is_given_up = False
        self.send(json.dumps(dict(begin)).encode() + b"\n")

    def send(self, line: bytes) -> None:
        """Pass a line on, or store it for later; read the tracker's answers."""
        if self._is_given_up:
            return
        self._waiting += line
        self._push()
        self._listen()
        if len(self._waiting) > MOST_BYTES:
            self._give_up("does not keep up, or hangs")

    def close(self) -> None:
        """Announce the end, after all waiting lines are written."""
        if not self._is_given_up:
            self._waiting += b'{"end": true}\n'
            self._push()

    def finish(self, deadline: float) -> None:
        """Wait until the tracker has ended; end it at the deadline."""
        while not self._is_given_up and self._waiting and time.monotonic() < deadline:
            select.select([], [self._stdin], [], 0.2)
            self._push()
            self._listen()
        with contextlib.suppress(OSError):
            self._stdin.close()
        while not self._is_given_up:
            self._listen()
            try:
                self.process.wait(0.05)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    self._give_up("did not finish in time")
        self._listen()
        if not self._is_given_up and self.process.returncode:
            code = self.process.returncode
            self._give_up(f"ended by {children.signal_name(code) if code < 0 else f'exit code {code}'}")
        children.end(self.process)

    def _push(self) -> None:
        """Write as much as possible without waiting."""
        try:
            while self._waiting:
                del self._waiting[: os.write(self._stdin.fileno(), self._waiting[: 1 << 16])]
        except BlockingIOError:
            pass
        except (OSError, ValueError):  # its process has ended
            self._listen()
            self._give_up("its process ended")

    def _listen(self) -> None:
        """Read the tracker's answers: where its record is, or why it failed."""
        with contextlib.suppress(BlockingIOError, OSError, ValueError):
            while piece := os.read(self._stdout.fileno(), 1 << 16):
                self._answers += piece
        *lines, rest = bytes(self._answers).split(b"\n")
        self._answers = bytearray(rest)
        for line in lines:
            try:
                ((kind, words),) = json.loads(line).items()
            except (ValueError, AttributeError):  # not an answer, but some package's output
                continue
            if kind == "failed":
                self._give_up(words)
            elif kind == "trouble":
                _warn(self.name, words, how="it tries on")
            else:
                console.note(f"--track {self.name}: {words}")

    def _give_up(self, why: str) -> None:
        """Report the failure once."""
        if not self._is_given_up:
            self._is_given_up = True
            self._waiting.clear()
            self.process.kill()
            _warn(self.name, why)


@contextlib.contextmanager
def _warned_of(name: str) -> Iterator[None]:
    """A tracker that cannot be started loses its own record, but does not affect training."""
    try:
        yield
    except EnvironmentFault as error:
        _warn(name, str(error))


def _warn(name: str, why: str, *, how: str = "without it") -> None:
    console.warn(f"--track {name}: {why}; the training continues ({how}), and metrics.jsonl has every value")
