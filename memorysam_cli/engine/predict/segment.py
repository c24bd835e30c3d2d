"""Segment scenes: from their files to a class map each, written while the device computes the next batch.

First the loop over a job's scenes, then the writing in the background.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from memorysam_cli.data.loader import UnlabeledScene, unlabeled_scenes
from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine import runtime, surroundings
from memorysam_cli.engine.infer.decision import Decision, Wanted, decide
from memorysam_cli.engine.infer.inference import Inference, batches, inference_mode
from memorysam_cli.engine.infer.views import Network
from memorysam_cli.engine.predict.files import LedgerLine, SceneFiles, remove
from memorysam_cli.errors import DataError

Result = TypeVar("Result")

Make = Callable[[Sequence[Scene], Callable[[LedgerLine], object], Callable[[str], object]], None]
"""Segments scenes, returns their lines in order, and the name of each device before its first line."""

MOST_BYTES = 2**29
"""Limit of the bytes that wait to be written, unless a single scene needs more."""
MOST_WAITING = 64
FEWEST_THREADS, MOST_THREADS = 8, 16
BYTES_PER_PIXEL = {"color": 4, "overlay": 16, "confidence": 2}
"""Bytes per pixel while a picture is written; 3 for a mask and its PNG; probabilities count by their own size."""


@dataclass(frozen=True)
class Seen:
    """A scene, and the network's output for it."""

    scene: UnlabeledScene
    logits: Tensor
    """(K, h, w) at the network's size, on its device."""
    decision: Decision
    """At the scene's own size."""


def segment_scenes(
    network: Network,
    files: SceneFiles,
    *,
    scenes: Sequence[Scene],
    inference: Inference,
    tell: Callable[[LedgerLine], object],
    skip_bad: bool = False,
    in_threads: bool = False,
) -> None:
    """Segment scenes, and write each one's files while the next are computed; memory does not grow with their number.

    Args:
        network: gives the logits of the data set's K classes.
        files: has the scenes' folder, and writes the results.
        scenes: may lack some modalities, not all; labels are not read.
        inference: the settings of inference. Scenes in the same forward pass have the same modalities and size. A
            forward pass never crosses a multiple of the stride, so that a run over any of these groups computes the
            same.
        tell: called with each scene's line for the ledger, in the order of the scenes, once its files are written.
        skip_bad: list unreadable scenes and continue; otherwise the first one ends the run.
        in_threads: load data in threads, not in processes.

    Raises:
        DataError: a scene cannot be read and ``skip_bad`` is off; the scenes before it are written and reported.
        EnvironmentFault: a result cannot be written.
    """
    source = unlabeled_scenes(
        files.root, scenes=scenes, modalities=inference.modalities, size=inference.image_size,
        workers=inference.workers, tile=inference.view.tile, in_threads=in_threads,
    )  # fmt: skip
    order = iter(scenes)
    wanted = replace(files.wanted, sureness="uint8") if "confidence" in files.extras else files.wanted
    with (
        runtime.explained(torch.device(inference.device), levers=runtime.LOOKING),
        inference_mode(network),
        WriteBehind(tell, undo=functools.partial(remove, files.out)) as writing,
    ):
        for seen in look(network, source, inference, classes=len(files.info.classes), wanted=wanted):
            if isinstance(seen, DataError):
                if not skip_bad:
                    advice = "fix the file, or continue without such scenes: --on-error skip"
                    raise DataError(f"{seen}; {advice}") from seen
                writing.add(functools.partial(files.left_out, next(order), seen))
                continue
            work = functools.partial(files.write, next(order), seen.decision, modalities=seen.scene.modalities)
            every = seen.decision.probabilities
            pixel_bytes = 3 + sum(BYTES_PER_PIXEL.get(extra, 0) for extra in files.extras)
            writing.add(
                work,
                needed_bytes=seen.scene.height * seen.scene.width * pixel_bytes
                + (0 if every is None else every.nbytes),
            )


def look(
    network: Network,
    source: Iterator[UnlabeledScene | DataError],
    inference: Inference,
    *,
    classes: int,
    wanted: Wanted,
) -> Iterator[Seen | DataError]:
    """Run a network on scenes, together in a forward pass if possible; yields results, or errors, in order.

    Args:
        network: gives the logits of K classes.
        source: the scenes, as they are read.
        inference: the settings of inference.
        classes: K.
        wanted: what is computed for each pixel.
    """
    modalities = {modality.name: modality for modality in inference.modalities}
    for together in _groups(source, most=inference.stride):
        if isinstance(together, DataError):
            yield together
            continue
        given = [modalities[name] for name in together[0].modalities]
        with inference.computing():
            shown = inference.shown(network, modalities=given, is_large=together[0].is_large)
            logits = inference.logits(shown, [scene.frames for scene in together])
        sizes = [(scene.height, scene.width) for scene in together]
        yield from map(Seen, together, logits, decide(logits, sizes, classes=classes, wanted=wanted))


def _groups(source: Iterator[UnlabeledScene | DataError], *, most: int) -> Iterator[list[UnlabeledScene] | DataError]:
    """Groups of scenes for a forward pass, and the errors between them, in order."""
    while chunk := list(itertools.islice(source, most)):
        for together in batches(chunk, most=most, key=_frame_shapes):
            yield from (each for each in together if isinstance(each, DataError))
            scenes = [each for each in together if isinstance(each, UnlabeledScene)]
            if scenes:
                yield scenes


def _frame_shapes(scene: UnlabeledScene | DataError) -> Hashable:
    """The shapes that must be equal for scenes in the same forward pass."""
    return None if isinstance(scene, DataError) else (scene.modalities, scene.frames[0].shape)


@dataclass(eq=False)
class _PendingWrite(Generic[Result]):
    """A task, recorded before it is submitted and until its result is reported.

    A signal may interrupt the caller between any two steps. A finished task without a record would leave files without
    a line.
    """

    needed_bytes: int
    future: Future[Result] = field(default_factory=Future)
    is_reported: bool = False
    """Whether its report has begun: the line may exist, so the files must stay."""

    def run(self, work: Callable[[], Result]) -> None:
        """Run it, unless it was canceled."""
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(work())
            except BaseException as error:
                self.future.set_exception(error)


class WriteBehind(Generic[Result]):
    """Writes in the background: a few threads run tasks, whose results are reported in order.

    Threads are sufficient, because OpenCV's PNG encoder and the disk's sync release Python's lock. A context manager.
    At its end all tasks are done and reported. If an exception ends the block, tasks submitted before are still done
    and reported; if a signal ends it, only tasks that have started. If a task fails, its error leaves the block (from
    ``add`` or at the end), and no later result is reported.

    Args:
        tell: called with each result, in the thread that calls ``add``; twice if a signal interrupts it.
        undo: called with each result that must not be reported.
        threads: number of threads.
    """

    def __init__(
        self, tell: Callable[[Result], object], *, undo: Callable[[Result], object], threads: int | None = None
    ) -> None:
        self._tell, self._undo = tell, undo
        self._pool = ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="write")
        self._waiting: deque[_PendingWrite[Result]] = deque()
        self._waiting_bytes = 0

    def add(self, work: Callable[[], Result], *, needed_bytes: int = 0) -> None:
        """Submit a task, and report finished ones; waits while too much memory is used.

        Args:
            work: returns a result.
            needed_bytes: memory needed until it is done.

        Raises:
            Exception: the error of an earlier task.
        """
        while self._waiting and (
            len(self._waiting) >= MOST_WAITING
            or self._waiting_bytes + needed_bytes > MOST_BYTES
            or self._waiting[0].future.done()
        ):
            self._tell_first()
        pending = _PendingWrite[Result](needed_bytes)
        self._waiting_bytes += needed_bytes
        self._waiting.append(pending)
        try:
            self._pool.submit(pending.run, work)
        except BaseException:  # even if it was submitted, it is not run or waited for
            pending.future.cancel()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                while self._waiting:
                    self._tell_first()
            else:
                self._settle(kind)
        except Exception:
            raise
        except BaseException as signalled:
            self._settle(type(signalled))
            raise
        finally:
            self._give_up()

    def _settle(self, kind: type[BaseException]) -> None:
        """Report tasks submitted before an error of the block; after a signal, tasks that have started."""
        if not issubclass(kind, Exception):
            for each in self._waiting:
                each.future.cancel()
        with contextlib.suppress(Exception):  # the block's own error is the one to report
            while self._waiting and not self._waiting[0].future.cancelled():
                self._tell_first()

    def _tell_first(self) -> None:
        """Wait for the oldest task, and report its result.

        The record stays until the report is over, so that after a signal the result is reported again at the end of the
        block.
        """
        first = self._waiting[0]
        try:
            result = first.future.result()
        except Exception:
            self._cancel()
            raise
        first.is_reported = True
        try:
            self._tell(result)
        except Exception:
            first.is_reported = False
            self._cancel()
            raise
        self._waiting.popleft()
        self._waiting_bytes -= first.needed_bytes

    def _cancel(self) -> None:
        """Cancel tasks that have not started, and undo results after a failure."""
        while self._waiting:
            pending = self._waiting.popleft()
            if not pending.future.cancel() and not pending.is_reported:
                with contextlib.suppress(Exception):  # the first error is the one to report
                    self._undo(pending.future.result())

    def _give_up(self) -> None:
        """Undo results that could not be reported, and end the threads."""
        try:
            self._cancel()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def default_threads() -> int:
    """The number of this process's cores, or more if these are few: threads mostly wait for the disk, which syncs many
    files nearly as fast as one."""
    return min(MOST_THREADS, max(FEWEST_THREADS, surroundings.cores()))
