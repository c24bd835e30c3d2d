"""Run the job of a prediction: in one process, as a shard, as one of several processes, or on Ray, with the same files.

Or as its scenes arrive: :func:`follow` looks into a folder again and again, and segments each scene as soon as it is
complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memorysam_cli.data import inputs
from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine import processes, runtime
from memorysam_cli.engine.infer.inference import frame_sizes
from memorysam_cli.engine.predict import ledger, segment
from memorysam_cli.engine.predict.files import LedgerLine, refuse_collisions, remove
from memorysam_cli.engine.predict.job import Job, RunOptions, device_name, remark
from memorysam_cli.engine.predict.parts import Part, PredictionFolder, Wish
from memorysam_cli.engine.predict.segment import Make
from memorysam_cli.errors import DataError, Stopped, Terminated, signal_exit_code
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents
from memorysam_cli.text import counted, few, shown

NAMED = 6
"""Number of scenes that a message names."""
AT_ONCE = 16
"""Scenes of a followed folder that are segmented before their masks are printed."""


def run(job: Job, out: Path, options: RunOptions) -> dict[str, Any] | None:
    """Run a job, or this process's part of it.

    Args:
        job: from :func:`~memorysam_cli.engine.predict.job.plan`.
        out: the output folder; it, or the part's folder in it, is locked meanwhile.
        options: how to run it.

    Returns:
        The content of ``_SUCCESS.json``. For a shard that is not the last one: the same keys for its part, with
        ``shard`` and ``parts_missing``. None in every process of a run but the first.

    Raises:
        UsageError: the folder contains something else, or parts of another prediction; Ray is not installed.
        WeightsError: the weights are refused.
        FolderInUseError: another prediction writes there.
        DataError: a scene cannot be read and must not be skipped, or none could be read.
        EnvironmentFault: the device does not exist, the disk is full, or another process was lost.
    """
    prepare = _prepare
    options.refuse(precision=job.precision)
    if options.engine == "ray":
        from memorysam_cli.engine.predict import ray

        prepare = ray.prepare
    else:
        _device(job, options)  # before a folder is created
    with (
        processes.side_by_side() as peers,
        PredictionFolder(out, job, Wish.of(options, rank=peers.rank, world=peers.world)) as folder,
    ):
        if not folder.is_answered():
            make = prepare(job, out, options)  # refused weights do not change the folder
            with folder.begin() as part:
                if part is not None:
                    _do(job, part, make, skip_bad=options.skip_bad, notice=peers.notice)
            folder.finish()
        peers.wait_for_all()
        return folder.report() if peers.rank == 0 else None


def _prepare(job: Job, out: Path, options: RunOptions) -> Make:
    """Load the network; returns a function that segments scenes (without worker processes for a followed folder)."""
    device = _device(job, options)
    network = job.load(device)

    def make(
        scenes: Sequence[Scene], tell: Callable[[LedgerLine], object], tell_device: Callable[[str], object]
    ) -> None:  # fmt: skip
        tell_device(device_name(device))
        inference = job.inference(device, workers=options.workers)
        segment.segment_scenes(
            network, job.files(out), scenes=scenes, inference=inference, tell=tell, skip_bad=options.skip_bad,
            in_threads=job.follows,
        )  # fmt: skip

    return make


def _device(job: Job, options: RunOptions) -> torch.device:
    """This process's device, if it supports the job's precision."""
    device = processes.own_device(runtime.choose_device(options.device))
    runtime.refuse_precision(job.precision, device)
    return device


def _do(job: Job, part: Part, make: Make, *, skip_bad: bool, notice: Callable[[], object]) -> None:
    """Do the rest of a part.

    Args:
        job: the job of the part.
        part: its ledger grows.
        make: segments scenes.
        skip_bad: unreadable scenes may stay left out.
        notice: called for every scene; may raise the error of another process.
    """
    scenes = part.shard.of(job.scenes, stride=job.stride)
    inventory = ledger.take_up(part.ledger, job, part.out, scenes, skip_bad=skip_bad)
    devices = dict.fromkeys(part.devices() if inventory.count else ())
    _refuse_full(job, part.out, inventory.left)
    if inventory.count:
        console.note(f"{part.out}: continues: {inventory.count:,} of {counted(len(scenes), 'scene')} done")
    label = "predict" if part.shard.count == 1 else f"predict {part.shard.index}/{part.shard.count}"
    with console.progress(len(scenes), label) as progress:
        progress.advance(inventory.count)

        def tell(line: LedgerLine) -> None:
            notice()  # first: if it raises, the scene's files are undone
            documents.append_json_line(part.ledger, line)
            progress.advance(1)

        def tell_device(name: str) -> None:
            if name not in devices:
                devices[name] = None
                part.note_devices(devices)

        if inventory.left:
            make(inventory.left, tell, tell_device)
    if not inventory.is_a_beginning:
        ledger.put_in_order(part.ledger, scenes)


def _refuse_full(job: Job, out: Path, scenes: Sequence[Scene]) -> None:
    """Check that a disk has space for the probabilities of scenes, which are much larger than masks.

    Raises:
        EnvironmentFault: there is too little, estimated from the sizes of the first scenes.
    """
    sizes = frame_sizes(scenes, root=job.root, modalities=job.modalities).values()
    if job.wanted.probabilities is not None and sizes:
        pixels = -(-sum(height * width for height, width in sizes) * len(scenes) // len(sizes))
        needed = pixels * len(job.card.dataset.classes) * np.dtype(job.wanted.probabilities).itemsize
        atomic.refuse_unwritable(out, needed_bytes=needed)


@dataclass(frozen=True)
class Following:
    """When a scene of a followed folder counts as complete, and when to end."""

    poll_s: float = 1.0
    """Seconds between two looks into the folder; more if a look takes longer."""
    settle_s: float = 2.0
    """Seconds for which no file of a scene may have changed its size or time."""
    late_s: float | None = None
    """Seconds without a change after which a scene is segmented without the missing sensors; None: never."""
    limit: int | None = None
    """Number of scenes after which to end."""


class Arrivals:
    """The scenes of a followed folder that are complete, each once; a scene must be unchanged for at least two looks.

    Args:
        job: the folder, and the sensors of a complete scene.
        following: when files count as complete.
    """

    def __init__(self, job: Job, following: Following) -> None:
        self.job, self.following = job, following
        self.waiting: dict[str, list[str]] = {}
        """Scenes that are not complete, and their missing sensors; none: their files still change."""
        self.is_begun = False
        """Earlier results are known and valid."""
        self._taken: set[str] = set()
        self._changed: dict[str, tuple[object, float]] = {}
        self._told: set[str] = set()

    def take(self, scenes: Iterable[Scene]) -> None:
        """Mark scenes as segmented or left out, so that their files cannot belong to another scene."""
        self._taken.update(path for scene in scenes for path in scene.paths)

    def look(self) -> list[Scene]:
        """The complete scenes that were not taken yet, in their order."""
        now, found = time.monotonic(), self.find()
        ready, changed = [], {}
        self.waiting = {}
        for scene in found:
            if not self._taken.isdisjoint(scene.paths):
                if not self._taken.issuperset(scene.paths):
                    self._tell(f"{scene.id}: one of its sensors came too late; it is segmented already, without it")
                continue
            facts = self._facts(scene)
            before, since = self._changed.get(scene.id, (None, now))
            changed[scene.id] = (facts, since if facts is not None and facts == before else now)
            lacking = [each.name for each in self.job.modalities if each.name not in scene.files]
            is_same = facts is not None and facts == before
            if self._is_there(now - changed[scene.id][1], is_same=is_same, lacking=lacking):
                ready.append(scene)
            else:
                self.waiting[scene.id] = lacking
        self._changed = changed
        return ready

    def find(self) -> Sequence[Scene]:
        """All scenes in the folder, complete or not; none while it cannot be read as scenes, which is reported once."""
        names = [modality.name for modality in self.job.modalities]
        try:
            return inputs.discover(
                self.job.root, modalities=names, aliases=dict(self.job.aliases), dataset=self.job.card.dataset.name,
                layout=self.job.layout, is_asked=self.job.is_asked,
            ).scenes  # fmt: skip
        except DataError as error:
            self._tell(f"nothing to segment yet: {error}")
            return ()

    def _is_there(self, unchanged_s: float, *, is_same: bool, lacking: Sequence[str]) -> bool:
        """Whether to segment a scene now whose files have not changed for this time."""
        if not is_same or unchanged_s < self.following.settle_s:
            return False
        if not lacking:
            return True
        late_s = self.following.late_s
        if late_s is None:
            self._tell(
                f"scenes wait for '{lacking[0]}'; segment them without it with --late SECONDS, or none with it by "
                "--modalities"
            )
        return late_s is not None and unchanged_s >= late_s

    def _facts(self, scene: Scene) -> object:
        """Size and time of each file; None if one is empty or missing."""
        try:
            facts = [(path, (self.job.root / path).stat()) for path in scene.paths]
        except OSError:
            return None
        is_filled = all(fact.st_size for _, fact in facts)
        return [(path, fact.st_size, fact.st_mtime_ns) for path, fact in facts] if is_filled else None

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            console.note(text)


def follow(
    job: Job, out: Path, options: RunOptions, following: Following, *, strict: bool = False
) -> tuple[dict[str, Any] | None, Stopped | None]:
    """Segment the scenes of a folder as they arrive, each exactly once, also over several runs.

    A signal or the limit ends it. The result is then a finished prediction of the scenes that have arrived; the same
    call continues it.

    Args:
        job: from :func:`~memorysam_cli.engine.predict.job.plan` with ``follows`` and a batch of 1, so that results do
            not depend on which scenes arrive together.
        out: the output folder, locked meanwhile.
        options: how to run it.
        following: when a scene counts as complete.
        strict: as in ``plan``.

    Returns:
        The content of ``_SUCCESS.json``, or None if no scene was segmented; and the exception of the signal, to be
        raised after the result is printed.

    Raises:
        UsageError: shards, several processes or Ray; all other errors as in :func:`run`.
    """
    options.refuse(precision=job.precision, follows=True)
    _device(job, options)
    arrivals, stopped = Arrivals(job, following), None
    with PredictionFolder(out, job, Wish.of(options)) as folder:
        make = _prepare(job, out, options)
        try:
            with folder.begin():
                _do_arriving(job, folder, make, arrivals, skip_bad=options.skip_bad, strict=strict)
        except (KeyboardInterrupt, Terminated) as signalled:
            code = signal_exit_code(signalled)
            stopped = Stopped("stopped by a signal; the same command continues", exit_code=code)
        return _conclude(job, folder, arrivals), stopped


def _do_arriving(
    job: Job, folder: PredictionFolder, make: Make, arrivals: Arrivals, *, skip_bad: bool, strict: bool
) -> None:
    """Segment scenes as they arrive, until the limit, or forever."""
    part, following = folder.part, arrivals.following
    known = _taken_up(job, part, skip_bad=skip_bad)
    arrivals.take(known)
    arrivals.is_begun = True
    devices = dict.fromkeys(part.devices() if known else ())
    masks: list[str] = []

    def tell(line: LedgerLine) -> None:
        documents.append_json_line(part.ledger, line)
        masks.extend([str(part.out / line["mask"])] if "mask" in line else ())

    def tell_device(name: str) -> None:
        if name not in devices:
            devices[name] = None
            part.note_devices(devices)

    console.note(f"{job.root}: waiting for scenes; Ctrl-C ends it")
    is_first = True
    while following.limit is None or len(known) < following.limit:
        start = time.monotonic()
        scenes = arrivals.look()[: None if following.limit is None else following.limit - len(known)]
        if scenes:
            refuse_collisions((*known, *scenes))
        if scenes and is_first:
            remark(job.of(scenes), strict=strict)
            is_first = False
        for first in range(0, len(scenes), AT_ONCE):
            some = scenes[first : first + AT_ONCE]
            _refuse_full(job, part.out, some)
            folder.announce(some)
            make(some, tell, tell_device)
            arrivals.take(some)
            known += some
            while masks:  # here, not when the line is written: a closed stdout must not undo it
                console.say(masks.pop(0))
        if not scenes:
            time.sleep(max(following.poll_s, time.monotonic() - start))


def _taken_up(job: Job, part: Part, *, skip_bad: bool) -> list[Scene]:
    """The scenes that are already done. Files of other scenes with lines are removed: these scenes arrive again."""
    before = ledger.scenes_of(part.ledger)
    inventory = ledger.take_up(part.ledger, job, part.out, before, skip_bad=skip_bad)
    for scene in inventory.left:
        remove(part.out, job.files(part.out).paths(scene))
    known = ledger.scenes_of(part.ledger)
    if known:
        console.note(f"{part.out}: continues: {counted(len(known), 'scene')} done")
    return known


def _conclude(job: Job, folder: PredictionFolder, arrivals: Arrivals) -> dict[str, Any] | None:
    """Make a finished prediction of the done scenes, in the order of the folder."""
    path = folder.part.ledger
    if arrivals.waiting:
        named = few([shown(name) for name in arrivals.waiting], NAMED)
        console.warn(
            f"{counted(len(arrivals.waiting), 'scene', 'was')} not whole at the end and not segmented: {named}"
        )
    if not arrivals.is_begun or not ledger.totals_of([path], job.card.dataset).done:
        return None
    places = {scene.id: place for place, scene in enumerate(arrivals.find())}
    scenes = sorted(ledger.scenes_of(path), key=lambda scene: places.get(scene.id, len(places)))  # others at the end
    ledger.put_in_order(path, scenes)
    return folder.finish_as(job.of(scenes))
