"""How a run ends: by a signal, because of unreadable scenes, by divergence, or because it is done.

The parts have this order. The last one, :class:`Ending`, records the end for launchers that hide the exit code.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from memorysam_cli.engine import surroundings
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.errors import (
    EXIT_CODES,
    SIGNAL_EXIT_CODES,
    DataError,
    DivergedError,
    FolderInUseError,
    Laws,
    MemorySamError,
    check_laws,
    environment_fault,
    most_severe,
    signal_exit_code,
    take_once,
    unwind,
)
from memorysam_cli.report import console
from memorysam_cli.storage import documents, lock, tensors
from memorysam_cli.text import counted, few, shown

if TYPE_CHECKING:
    from accelerate import Accelerator

    from memorysam_cli.data.loader import Batch
    from memorysam_cli.engine.train.checkpoints import Position
    from memorysam_cli.engine.train.update import Learner, StepResult

GRACE_S = 5.0
"""Seconds that the main thread has to react to a second signal and to clean up."""
_LAST_WORDS = (
    "memorysam: error [{}]: ended immediately by a second signal; --resume continues from the last checkpoint\n"
)
_BUG = 1
_SHOWN_FILES = 4
_SHOWN_SCENES = 10
_signal_descriptors: set[int] = set()
"""File descriptors through which the kernel reports signals to this process; child processes inherit them."""


class StopRequest:
    """Whether a stop was requested, and the exit code of the run."""

    exit_code: int | None = None
    name = ""

    def __bool__(self) -> bool:
        return self.exit_code is not None


@contextmanager
def catch_stop() -> Iterator[StopRequest]:
    """Turn the signals that end a program into a request that the training loop reads after each step.

    Signals that the caller ignores stay ignored (``nohup``), and another library's alarm is left alone.

    A second signal has its original effect. Python handles signals only between two of its own steps. A thread that
    waits for another process or a device makes none. Such a process is therefore ended :data:`GRACE_S` seconds later
    with the signal's exit code. Files that it was writing are complete or absent.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    before = {number: signal.getsignal(number) for number in SIGNAL_EXIT_CODES if _is_free(number)}

    def ask(number: int, _frame: FrameType | None) -> None:
        request.exit_code, request.name = SIGNAL_EXIT_CODES[signal.Signals(number)], signal.Signals(number).name
        for known, handler in before.items():
            signal.signal(known, handler)
        take_once(number)

    with _last_resort():
        for number in before:
            signal.signal(number, ask)
        try:
            yield request
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _is_free(number: signal.Signals) -> bool:
    """Whether this signal may be caught."""
    handler = signal.getsignal(number)
    is_others_alarm = number.name == "SIGALRM" and handler not in {signal.SIG_DFL, unwind}
    return handler not in {signal.SIG_IGN, None} and not is_others_alarm


@contextmanager
def _last_resort() -> Iterator[None]:
    """While the block runs, a thread receives signals from the kernel and ends the process if the second signal did
    not."""
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    is_over = threading.Event()
    earlier = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    _signal_descriptors.add(writing.fileno())
    threading.Thread(target=_count_signals, args=(reading, is_over), name="signals", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        signal.set_wakeup_fd(earlier)
        _signal_descriptors.discard(writing.fileno())
        writing.close()  # the thread reads the end of the file, and ends


def _count_signals(reading: socket.socket, is_over: threading.Event) -> None:
    """Wait for the second signal of a clean stop, then end the process."""
    count, codes = 0, {int(number): code for number, code in SIGNAL_EXIT_CODES.items()}
    with reading:
        while number := reading.recv(1):
            code = codes.get(number[0])
            count += code is not None
            if code is not None and count > 1 and not is_over.wait(GRACE_S):
                with contextlib.suppress(OSError):
                    os.write(2, _LAST_WORDS.format(code).encode())
                os._exit(code)


def _block_before_fork() -> None:
    """Block signals until a child process has dropped its parent's descriptor, because a terminal signals both at
    once."""
    if _signal_descriptors:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNAL_EXIT_CODES)


def _unblock_after_fork() -> None:
    if (mask := getattr(_forking, "mask", None)) is not None:
        _forking.mask = None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _forget_in_child() -> None:
    """A signal to a forked data worker must not count as one to its parent."""
    if _signal_descriptors:
        signal.set_wakeup_fd(-1)
        _signal_descriptors.clear()
    _unblock_after_fork()


_forking = threading.local()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_block_before_fork, after_in_parent=_unblock_after_fork, after_in_child=_forget_in_child)


class Quarantine:
    """The scenes that were replaced by others (``data.max_bad``), over all processes and resumes of a run.

    Args:
        run: its ``quarantine.jsonl`` lists them.
        share: the share of the training scenes that may be listed.
        scenes: of the training split.
        accelerator: the processes; each reads different scenes.
    """

    def __init__(self, run: RunFolder, *, share: float, scenes: int, accelerator: Accelerator) -> None:
        self.run, self.share, self.scenes, self.accelerator = run, share, scenes, accelerator
        rows = documents.read_json_lines(run.quarantine) if run.quarantine.exists() else []
        with documents.understood(run.quarantine):
            self.listed: dict[str, str] = {str(row["scene"]): str(row["why"]) for row in rows}

    def admit(self, batches: Sequence[Batch], *, step: int) -> None:
        """List the unreadable scenes of these batches; every process must call this.

        Args:
            batches: of one update of this process.
            step: the update, from 1.

        Raises:
            DataError: more scenes are listed than allowed.
        """
        if not self.share:  # then the loader itself ends the run
            return
        from accelerate.utils import gather_object

        from memorysam_cli.engine.processes import agree

        own = {left.scene: left.why for batch in batches for left in batch.left_out if left.scene not in self.listed}
        if not agree(bool(own), self.accelerator):
            return
        lists = gather_object([own]) if self.accelerator.num_processes > 1 else [own]
        for scene, why in sorted({scene: why for each in lists for scene, why in each.items()}.items()):
            self.listed[scene] = why
            if self.accelerator.is_main_process:
                documents.append_json_line(self.run.quarantine, {"scene": scene, "why": why, "step": step}, fsync=True)
                console.warn(f"scene {shown(scene)}: cannot be read and is replaced by others: {why}")
        if len(self.listed) > self.share * self.scenes:
            raise self._too_many()

    def __len__(self) -> int:
        return len(self.listed)

    def _too_many(self) -> DataError:
        some = few(list(self.listed.values()), _SHOWN_SCENES, separator="; ")
        return DataError(
            f"{len(self)} of {counted(self.scenes, 'training scene')} cannot be read, more than "
            f"data.max_bad={self.share:g} "
            f"allows: {some}; {self.run.quarantine} lists them: fix the files, or raise --max-bad"
        )


def describe_divergence(
    result: StepResult, batches: Sequence[Batch], position: Position, *, rate: float, accelerator: Accelerator
) -> dict[str, Any]:
    """A description of the diverged update, as JSON; every process must call this.

    Args:
        result: of the update.
        batches: of this process.
        position: before the update.
        rate: the learning rate.
        accelerator: the processes; the scenes of all are listed.
    """
    own = [
        {
            "process": accelerator.process_index,
            "batch": number,
            "id": scene.id,
            "files": [
                *(path for paths in scene.files.values() for path in paths),
                *([scene.label] * bool(scene.label)),
            ],
        }
        for number, batch in enumerate(batches)
        for scene in batch.scenes
    ]
    scenes = own
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        scenes = gather_object(own)
    figures = {"loss": result.loss, **result.terms, "gradient_norm": result.gradient_norm}
    finite = {name: value if math.isfinite(value) else str(value) for name, value in figures.items()}
    return {"step": position.step + 1, "epoch": position.epoch, **finite, "lr": rate, "scenes": scenes}


def end_diverged(record: dict[str, Any], run: RunFolder, *, save: Callable[[], object], is_main: bool) -> NoReturn:
    """End a run with the weights from before the update; a disk error during this must not hide the reason.

    Args:
        record: from :func:`describe_divergence`.
        run: its ``diverged.json`` stores the record.
        save: saves the current weights.
        is_main: whether this is the main process.

    Raises:
        DivergedError: always.
    """
    try:
        raise DivergedError(_sentence(record))
    except DivergedError as error:
        if is_main:
            documents.write_json(run.diverged, record)
        save()
        raise DivergedError(
            f"{error}; the weights of step {record['step'] - 1} are in {run.last}, the batch in {run.diverged}; "
            "try a lower optim.lr"
        ) from None


def _sentence(record: dict[str, Any]) -> str:
    """The record in one line, with the first files."""
    scenes = record["scenes"]
    names = [shown(scene["files"][0] if scene["files"] else scene["id"]) for scene in scenes]
    return (
        f"step {record['step']}: loss {_figure(record['loss'])}, gradient norm {_figure(record['gradient_norm'])}, "
        f"lr {record['lr']:.3g}, scenes {few(names, _SHOWN_FILES)}"
    )


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished run; ``miou`` is the best validation in %, never NaN.

    All values but ``seconds`` and ``resumed`` cover the whole run, including resumes.
    """

    run: Path
    best: Path
    last: Path
    miou: float
    best_step: int
    steps: int
    seconds: float
    """Duration of this process."""
    scenes: int = 0
    """Number of training scenes; a scene counts each time it is used."""
    left_out: int = 0
    """Number of unreadable scenes that were replaced by others."""
    resumed: bool = False
    ended_early: bool = False
    """Whether ``train.patience`` ended the run before the last epoch."""
    laws: Laws = field(default_factory=dict)
    """In the main process."""

    def to_json(self) -> dict[str, Any]:
        """The keys of ``memorysam train --json``, without its ``schema_version``."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}


def finish(
    run: RunFolder, learner: Learner, position: Position, quarantine: Quarantine, *, scenes: int, seconds: float,
    resumed: bool, ended_early: bool = False,
) -> TrainingResult:  # fmt: skip
    """Check the result of a training run and write it into the run's folder.

    Args:
        run: the folder.
        learner: network, optimizer and losses.
        position: the final position.
        quarantine: the unreadable scenes.
        scenes: scenes of one update, in all processes.
        seconds: the duration of this process.
        resumed: whether it continued from a checkpoint.
        ended_early: whether ``train.patience`` ended it.

    Raises:
        DivergedError: there are no best weights.
        LawBroken: something was lost or counted twice.
    """
    if position.all_ignored:
        console.warn(f"{counted(position.all_ignored, 'batch', 'was')} skipped, without a labeled pixel")
    if len(quarantine):
        console.warn(
            f"{counted(len(quarantine), 'training scene', 'was')} unreadable and replaced by others; {run.quarantine} "
            "lists them"
        )
    if position.best_miou is None or position.best_step is None:
        raise DivergedError(f"{run.path}: no validation gave a finite mIoU; there are no best weights")
    is_main = learner.accelerator.is_main_process
    result = TrainingResult(
        run=run.path, best=run.best, last=run.last, miou=position.best_miou, best_step=position.best_step,
        steps=position.step, seconds=seconds, scenes=position.scenes, left_out=len(quarantine), resumed=resumed,
        ended_early=ended_early,
        laws=_check_laws(learner, position, expected=position.step * scenes, last=run.last) if is_main else {},
    )  # fmt: skip
    if is_main:
        documents.write_json(run.result, {"schema_version": 1, **result.to_json()})
        run.diverged.unlink(missing_ok=True)
    return result


def _check_laws(learner: Learner, position: Position, *, expected: int, last: Path) -> Laws:
    """The conservation laws; both sides of each law are counted independently.

    Args:
        learner: network, optimizer and losses.
        position: has the number of training scenes, counted over all processes and resumes.
        expected: steps × batch × accumulate × processes.
        last: the newest weights, which are read back.
    """
    from memorysam_cli.model.base_weights import base_shapes
    from memorysam_cli.model.network import is_fresh

    network = learner.network
    state = network.state_dict()
    new = [name for name in state if is_fresh(name) or ".lora_" in name]
    trained = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    frozen = [name for name in new if name not in learner.parameters]
    saved = len(tensors.read(last)[0])
    # LoRA splits the base's fused projections into three: the number of tensors changes, that of values does not.
    base = sum(math.prod(shape) for shape in base_shapes(network.card.base.backbone).values())
    laws = {
        "scenes learned from = steps × batch × accumulate × processes": (position.scenes, expected),
        "values of the base + values of new tensors = values of the model": (
            base + sum(state[name].numel() for name in new),
            sum(tensor.numel() for tensor in state.values()),
        ),
        "tensors trained + new ones that are not = tensors saved": (len(trained) + len(frozen), saved),
    }
    if position.fresh:
        laws["tensors of the initial weights + fresh ones = tensors saved"] = (position.initial + position.fresh, saved)
    elif position.initial:
        laws["tensors of the initial weights = tensors saved"] = (position.initial, saved)
    return check_laws(laws)


class Ending:
    """Records how a command ended in ``exit.json`` of the run's folder, if a launcher started this process."""

    def __init__(self) -> None:
        self._is_recorded = False

    @contextlib.contextmanager
    def of_command(self, out: Path | None) -> Iterator[None]:
        """Record also an end before the run's folder is locked, if a run exists there; no folder is created for it.

        Args:
            out: the requested folder.
        """
        try:
            yield
        except BaseException as error:
            is_ours = out is not None and RunFolder(out).holds_run() and not isinstance(error, FolderInUseError)
            if out is not None and is_ours and not self._is_recorded:
                with contextlib.suppress(MemorySamError, OSError), lock.hold(out):  # another run may be using it
                    _record(RunFolder(out), error)
            raise

    @contextlib.contextmanager
    def of_run(self, run: RunFolder) -> Iterator[None]:
        """Record any end of the block; open it while the folder is locked."""
        self._is_recorded = True
        if _is_launched():
            run.exit.unlink(missing_ok=True)  # without this file, the process was killed
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(MemorySamError, OSError):  # the first error is the one to report
                _record(run, error)
            raise
        _record(run, None)


def _is_launched() -> bool:
    return surroundings.is_launched() and surroundings.rank() == 0


def _record(run: RunFolder, error: BaseException | None) -> None:
    if not _is_launched():
        return
    code, message = (0, "") if error is None else _code_and_reason(error)
    meaning = str(EXIT_CODES[code]) if code in EXIT_CODES else ""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    documents.write_json(run.exit, {"code": code, "meaning": meaning, "message": message, "time": now})


def _code_and_reason(error: BaseException) -> tuple[int, str]:
    """The exit code of the program, and the reason."""
    if not isinstance(error, Exception):
        return signal_exit_code(error), "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    known = most_severe(error) if isinstance(error, MemorySamError) else environment_fault(error)
    return (_BUG, f"{type(error).__name__}: {error}") if known is None else (known.exit_code, str(known))
