"""Segmenting scenes: from their files to one class map each, written while the device is busy with the next batch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from memorysam_cli.data.loader import UnlabelledScene, unlabelled_scenes
from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.engine import runtime
from memorysam_cli.engine.infer.decision import decide
from memorysam_cli.engine.infer.inference import batches, scoring
from memorysam_cli.engine.infer.views import Network, View, show
from memorysam_cli.engine.predict.files import Line, SceneFiles, remove
from memorysam_cli.engine.predict.job import Job
from memorysam_cli.errors import DataError

Result = TypeVar("Result")

MOST_BYTES = 2**29
"""What waits to be written needs at most this, or is a single scene."""
MOST_WAITING = 64
FEWEST_THREADS, MOST_THREADS = 8, 16
BYTES_PER_PIXEL = {"color": 4, "overlay": 16, "confidence": 2}
"""What a picture's making holds; a mask alone, and its PNG, 3."""


def segment_scenes(
    job: Job,
    network: Network,
    out: Path,
    *,
    scenes: Sequence[Scene],
    device: torch.device,
    tell: Callable[[Line], object],
    workers: int,
    skip_bad: bool,
    in_threads: bool = False,
) -> None:
    """Do a job, or some of its scenes, here; see :func:`predict`."""
    predict(
        network, job.files(out), scenes=scenes, image_size=job.card.image_size, device=device, tell=tell,
        batch=job.batch, workers=workers, in_threads=in_threads, skip_bad=skip_bad, view=job.view,
        known=job.card.modalities, precision=job.precision,
    )  # fmt: skip


def predict(
    model: Network,
    files: SceneFiles,
    *,
    scenes: Sequence[Scene],
    image_size: int,
    device: torch.device | str,
    tell: Callable[[Line], object],
    batch: int = 4,
    workers: int = 2,
    in_threads: bool = False,
    skip_bad: bool = False,
    view: View | None = None,
    known: Sequence[Modality] | None = None,
    precision: str = "fp32",
) -> None:
    """Segment scenes, and write each one's files behind the computing of the next; memory does not grow with them.

    Args:
        model: gives the logits of the data set's K classes.
        files: says where the scenes are and which modalities count, and writes the results.
        scenes: may lack modalities, not all; labels are not looked at.
        image_size: short side in pixels, a multiple of 32.
        device: where the model is.
        tell: takes each scene's line for the ledger, in the order of the scenes, once its files are written.
        batch: scenes of one size and with the same modalities that share a forward pass, at most. They are never taken
            across a multiple of ``batch``, so that a run over any of these groups computes the same.
        workers: processes that read ahead.
        in_threads: threads read ahead, not processes.
        skip_bad: list scenes that cannot be read and go on; otherwise the first one ends the work.
        view: how scenes are shown to the model; none: as they are.
        known: all modalities that the model was trained with, in the order of its memory; none: those of ``files``.
        precision: of :func:`~memorysam_cli.engine.runtime.computing`.

    Raises:
        DataError: a scene cannot be read and ``skip_bad`` is off; those before it are written and told.
        EnvironmentFault: a result cannot be written.
    """
    view, place = view or View(), torch.device(device)
    modalities = {modality.name: modality for modality in files.modalities}
    source = unlabelled_scenes(
        files.root, scenes=scenes, modalities=files.modalities, size=image_size, workers=workers, tile=view.tile,
        in_threads=in_threads,
    )  # fmt: skip
    order = iter(scenes)
    with (
        runtime.explained(place, levers=runtime.LOOKING),
        scoring(model),
        WriteBehind(tell, undo=functools.partial(remove, files.out)) as writing,
    ):
        for together in _groups(source, most=1 if view.tile else batch):
            if isinstance(together, DataError):
                if not skip_bad:
                    advice = "mend the file, or go on without such scenes: --on-error skip"
                    raise DataError(f"{together}; {advice}") from together
                writing.add(functools.partial(files.left_out, next(order), together))
                continue
            given = [modalities[name] for name in together[0].modalities]
            how = dataclasses.replace(view, tile=together[0].is_large)
            seen = show(model, how, modalities=given, known=known or files.modalities, size=image_size)
            with runtime.computing(precision, place):
                logits = _logits(seen, together, device=place)
            decisions = decide(
                logits, [(scene.height, scene.width) for scene in together], classes=len(files.info.classes),
                with_sureness="confidence" in files.extras,
            )  # fmt: skip
            for found, decision in zip(together, decisions, strict=True):
                work = functools.partial(files.write, next(order), decision, modalities=found.modalities)
                pixel_bytes = 3 + sum(BYTES_PER_PIXEL[extra] for extra in files.extras)
                writing.add(work, needed_bytes=found.height * found.width * pixel_bytes)


def _groups(source: Iterator[UnlabelledScene | DataError], *, most: int) -> Iterator[list[UnlabelledScene] | DataError]:
    """Scenes that share a forward pass, and the faults between them, in order."""
    while chunk := list(itertools.islice(source, most)):
        for together in batches(chunk, most=most, key=_company):
            yield from (each for each in together if isinstance(each, DataError))
            scenes = [each for each in together if isinstance(each, UnlabelledScene)]
            if scenes:
                yield scenes


def _company(found: UnlabelledScene | DataError) -> Hashable:
    """What must agree for scenes to share a forward pass."""
    return None if isinstance(found, DataError) else (found.modalities, found.frames[0].shape)


def _logits(model: Network, together: Sequence[UnlabelledScene], *, device: torch.device) -> Tensor:
    """B scenes of M × (1, 3, H, W) -> (B, K, H, W)."""
    frames = zip(*(scene.frames for scene in together), strict=True)
    # Moved before they are joined: only what the loader has pinned travels while the device computes.
    return model.logits([torch.cat([part.to(device, non_blocking=True) for part in parts]) for parts in frames])


@dataclass(frozen=True)
class _Waiting(Generic[Result]):
    future: Future[Result]
    needed_bytes: int


class WriteBehind(Generic[Result]):
    """Writes behind the computing: a few threads do pieces of work, whose results are told in the order of the works.

    OpenCV's PNG encoder and the disk's sync leave Python's lock alone, so that threads are enough. A context
    manager. At its end all work is done and told. If an exception of the block ends it, what was handed in before is
    still done and told; if a signal ends it, only what has begun. If a piece of work fails, its error leaves the block
    (from ``add`` or at the end), and no result behind it is told.

    Args:
        tell: takes each result, in the thread that calls ``add``.
        undo: takes each result that is there and must not be told.
        threads: how many.
    """

    def __init__(
        self, tell: Callable[[Result], object], *, undo: Callable[[Result], object], threads: int | None = None
    ) -> None:
        self._tell, self._undo = tell, undo
        self._pool = ThreadPoolExecutor(threads or default_threads(), thread_name_prefix="write")
        self._waiting: deque[_Waiting[Result]] = deque()
        self._held_bytes = 0

    def add(self, work: Callable[[], Result], *, needed_bytes: int = 0) -> None:
        """Hand in a piece of work, and tell what is done; waits while too much is held.

        Args:
            work: makes a result.
            needed_bytes: what it holds until it is done.

        Raises:
            Exception: what an earlier piece of work raised.
        """
        while self._waiting and (
            len(self._waiting) >= MOST_WAITING
            or self._held_bytes + needed_bytes > MOST_BYTES
            or self._waiting[0].future.done()
        ):
            self._tell_first()
        self._waiting.append(_Waiting(self._pool.submit(work), needed_bytes))
        self._held_bytes += needed_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                while self._waiting:
                    self._tell_first()
            elif not issubclass(kind, Exception):  # a signal: nothing new begins
                for each in self._waiting:
                    each.future.cancel()
            with contextlib.suppress(Exception):  # the block's own fault is the one to tell
                while self._waiting and not self._waiting[0].future.cancelled():
                    self._tell_first()
        finally:
            self._give_up()

    def _tell_first(self) -> None:
        """Wait for the oldest piece of work, and tell its result."""
        try:
            result = self._waiting[0].future.result()  # a signal while waiting leaves it where it is
        except Exception:
            self._cancel()
            raise
        self._held_bytes -= self._waiting.popleft().needed_bytes
        try:
            self._tell(result)
        except Exception:
            self._undo(result)
            self._cancel()
            raise

    def _cancel(self) -> None:
        """Let nothing begin any more, and undo what was done behind a failure."""
        while self._waiting:
            future = self._waiting.popleft().future
            if not future.cancel():
                with contextlib.suppress(Exception):  # the first failure is the one to tell
                    self._undo(future.result())

    def _give_up(self) -> None:
        """Undo what could not be told, and end the threads."""
        try:
            self._cancel()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def default_threads() -> int:
    """As many as this process has cores; more where those are few: they mostly wait for the disk, which syncs many
    files nearly as fast as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_THREADS, max(FEWEST_THREADS, cores))
