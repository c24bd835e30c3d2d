"""Doing a prediction's job: in one process, as a shard, as one of several processes, on Ray; always the same files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine import processes, runtime, surroundings
from memorysam_cli.engine.infer.inference import frame_sizes
from memorysam_cli.engine.predict import ledger, segment
from memorysam_cli.engine.predict.files import LedgerLine
from memorysam_cli.engine.predict.job import WHOLE, Job, RunOptions, device_name
from memorysam_cli.engine.predict.parts import Part, PredictionFolder, Wish
from memorysam_cli.engine.predict.segment import Make
from memorysam_cli.engine.processes import Peers
from memorysam_cli.errors import UsageError
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents


def run(job: Job, out: Path, options: RunOptions) -> dict[str, Any] | None:
    """Do a job, or this process's part of it.

    Args:
        job: of :func:`~memorysam_cli.engine.predict.job.plan`.
        out: the output folder; it, or the part's folder in it, is locked meanwhile.
        options: who does it.

    Returns:
        The content of ``_SUCCESS.json``; of a shard that is not the last one: the same keys for its part, with
        ``shard`` and ``parts_missing``; None in every process of a run but the first.

    Raises:
        UsageError: the folder holds something else, or parts of another prediction; Ray is not installed.
        WeightsError: the weights are refused.
        FolderInUseError: another prediction writes there.
        DataError: a scene cannot be read and must not be skipped, or none could be read.
        EnvironmentFault: a device that is not there, a disk that is full, another process that is lost.
    """
    prepare = _prepare
    if options.engine == "ray":
        if options.shard is not None or surroundings.world() > 1:
            raise UsageError("--engine ray: divides the scenes itself; leave --shard and torchrun out")
        from memorysam_cli.engine.predict import ray

        ray.refuse(options)
        prepare = ray.prepare
    else:
        _device(job, options)  # before a folder is made
    with processes.side_by_side() as peers, PredictionFolder(out, job, _wish(options, peers)) as folder:
        if not folder.is_answered():
            make = prepare(job, out, options)  # weights that are refused leave the folder as it was
            with folder.begin() as part:
                if part is not None:
                    _do(job, part, make, skip_bad=options.skip_bad, notice=peers.notice)
            folder.finish()
        peers.wait_for_all()
        return folder.report() if peers.rank == 0 else None


def _wish(options: RunOptions, peers: Peers) -> Wish:
    """What is wanted of the folder: each of several processes is a shard of the shard that was requested."""
    run_shards = tuple((options.shard or WHOLE).divided(rank, peers.world) for rank in range(peers.world))
    return Wish(
        run_shards[peers.rank], is_alone=options.shard is None and peers.world == 1, overwrite=options.overwrite,
        resume=options.resume, skip_bad=options.skip_bad, run_shards=run_shards,
    )  # fmt: skip


def _prepare(job: Job, out: Path, options: RunOptions) -> Make:
    """Load the network here; what is returned segments scenes with it."""
    device = _device(job, options)
    network = job.load(device)

    def make(
        scenes: Sequence[Scene], tell: Callable[[LedgerLine], object], tell_device: Callable[[str], object]
    ) -> None:  # fmt: skip
        tell_device(device_name(device))
        inference = job.inference(device, workers=options.workers)
        segment.segment_scenes(
            network, job.files(out), scenes=scenes, inference=inference, tell=tell, skip_bad=options.skip_bad
        )  # fmt: skip

    return make


def _device(job: Job, options: RunOptions) -> torch.device:
    """This process's device, where it can compute in the job's precision."""
    device = processes.own_device(runtime.choose_device(options.device))
    runtime.refuse_precision(job.precision, device)
    return device


def _do(job: Job, part: Part, make: Make, *, skip_bad: bool, notice: Callable[[], object]) -> None:
    """Do what is left of a part that is begun.

    Args:
        job: of which it is a part.
        part: its ledger grows.
        make: segments scenes.
        skip_bad: scenes that cannot be read may stay left out.
        notice: called for every scene; may raise what another process died of.
    """
    scenes = part.shard.of(job.scenes, stride=job.stride)
    inventory = ledger.take_up(part.ledger, job, part.out, scenes, skip_bad=skip_bad)
    devices = dict.fromkeys(part.devices() if inventory.count else ())
    _refuse_full(job, part.out, inventory.left)
    if inventory.count:
        console.note(f"{part.out}: goes on: {inventory.count:,} of {len(scenes):,} scenes are done")
    label = "predict" if part.shard.count == 1 else f"predict {part.shard.index}/{part.shard.count}"
    with console.progress(len(scenes), label) as progress:
        progress.advance(inventory.count)

        def tell(line: LedgerLine) -> None:
            notice()  # first: what it raises undoes the scene's files
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
    """See that a disk has room for the probabilities of scenes, which are far larger than masks.

    Raises:
        EnvironmentFault: it has not, by the sizes of the first scenes.
    """
    sizes = frame_sizes(scenes, root=job.root, modalities=job.modalities).values()
    if job.wanted.probabilities is not None and sizes:
        pixels = -(-sum(height * width for height, width in sizes) * len(scenes) // len(sizes))
        needed = pixels * len(job.card.dataset.classes) * job.wanted.probabilities.itemsize
        atomic.refuse_unwritable(out, needed_bytes=needed)
