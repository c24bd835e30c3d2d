"""Doing a prediction's job: in one process, as a shard, as one of several processes, on Ray; always the same files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine import runtime
from memorysam_cli.engine.prediction import merging, parts, ranks, resuming, segmenting
from memorysam_cli.engine.prediction.folder import LEDGER, MASKS, PARTS, Line
from memorysam_cli.engine.prediction.job import Job, device_name
from memorysam_cli.engine.prediction.ledger import SCHEMA_VERSION, Ledger, Totals, counts
from memorysam_cli.engine.prediction.manner import Manner
from memorysam_cli.engine.prediction.shares import WHOLE, Share
from memorysam_cli.errors import UsageError
from memorysam_cli.report import console
from memorysam_cli.storage import lock

Make = Callable[[Sequence[Scene], Callable[[Line], object], Callable[[str], object]], None]
"""Segments scenes, tells their lines in order, and the name of each device before the first line that it made."""

Prepare = Callable[[Job, Path, Manner], Make]


def run(job: Job, out: Path, manner: Manner) -> dict[str, Any] | None:
    """Do a job, or this process's part of it.

    Args:
        job: of :func:`~memorysam_cli.engine.prediction.asking.plan`.
        out: the output folder; it, or the part's folder in it, is locked meanwhile.
        manner: who does it.

    Returns:
        The content of ``_SUCCESS.json``; of a shard that is not the last one: the same keys for its part, with
        ``shard`` and ``parts_missing``; None in every process of a run but the first.

    Raises:
        UsageError: the folder holds parts of another prediction; Ray is not installed.
        WeightsError: the weights are refused.
        FolderInUseError: another prediction writes there.
        DataError: a scene cannot be read and must not be skipped, or none could be read.
        EnvironmentFault: a device that is not there, a disk that is full, another process that is lost.
    """
    if manner.engine == "ray":
        if manner.shard is not None or ranks.world() > 1:
            raise UsageError("--engine ray: divides the scenes itself; leave --shard and torchrun out")
        from memorysam_cli.engine.prediction import on_ray

        on_ray.refuse(manner)
        return _alone(job, out, manner, prepare=on_ray.prepare)
    _device(job, manner)  # before a folder is made
    if ranks.world() > 1:
        return _as_one_of_several(job, out, manner)
    if manner.shard is not None:
        return _as_shard(job, out, manner, manner.shard)
    return _alone(job, out, manner, prepare=_prepare)


def _alone(job: Job, out: Path, manner: Manner, *, prepare: Prepare) -> dict[str, Any]:
    """All scenes, by this process or at its behest."""
    if not manner.overwrite:
        parts.refuse(out)
    with lock.hold(out):
        if not manner.overwrite:
            parts.refuse(out)  # a shard may have been quicker
            found = _complete(job, out, manner)
            if found is not None:
                return found
            parts.refuse_unfinished(out, job)
            if manner.resume:
                parts.refuse_finished(out, job)
        make = prepare(job, out, manner)  # weights that are refused leave the folder as it was
        if manner.overwrite or parts.are_of_another(out, job):
            parts.drop(out)
        elif parts.complete(out, job) is not None:
            parts.reopen(out, job)
        with parts.begin(out, job, WHOLE, is_alone=True):
            _go_on(job, out, manner, WHOLE, make=make, notice=_nothing)
        report = merging.merge(out, job, count=1, is_alone=True)
        assert not isinstance(report, int)
        return report


def _complete(job: Job, out: Path, manner: Manner) -> dict[str, Any] | None:
    """The report of a prediction that is complete, if nothing of it has changed and nothing can be done better."""
    report = parts.complete(out, job)
    if report is None:
        return None
    kept, _ = resuming.survey(out / LEDGER, job, out, job.scenes, skip_bad=manner.skip_bad)
    if kept.left or kept.reasons or not kept.is_a_beginning:
        return None
    parts.remove(out)  # of a merge that was killed at its very end
    console.note(f"{out}: this very prediction is complete already; to make it again: --overwrite")
    return report


def _prepare(job: Job, out: Path, manner: Manner) -> Make:
    """Load the network here; what is returned segments scenes with it."""
    device = _device(job, manner)
    network = job.load(device)

    def make(
        scenes: Sequence[Scene], tell: Callable[[Line], object], tell_device: Callable[[str], object]
    ) -> None:  # fmt: skip
        tell_device(device_name(device))
        segmenting.do(
            job, network, out, scenes=scenes, device=device, tell=tell, workers=manner.workers,
            skip_bad=manner.skip_bad,
        )  # fmt: skip

    return make


def _device(job: Job, manner: Manner) -> torch.device:
    """This process's device, where it can compute in the job's precision."""
    device = ranks.own_device(runtime.choose_device(manner.device))
    runtime.refuse_precision(job.precision, device)
    return device


def _as_shard(job: Job, out: Path, manner: Manner, share: Share) -> dict[str, Any]:
    """One part, and the whole where it is the last one."""
    done = _part(job, out, manner, share, notice=_nothing)
    return _whole(job, out, share, [done], ledger=out / PARTS / share.name / LEDGER, count=share.count)


def _as_one_of_several(job: Job, out: Path, manner: Manner) -> dict[str, Any] | None:
    """One part by each process of this run; the first one then does what a shard would."""
    asked = manner.shard or WHOLE
    with ranks.company() as company:
        share = asked.divided(company.rank, company.world)
        totals, devices = _part(job, out, manner, share, notice=company.notice)
        told = company.gather([totals.to_json(), devices])
    done = [(Totals.from_json(job.card.dataset, totals), devices) for totals, devices in told]
    return None if company.rank else _whole(job, out, asked, done, ledger=out / PARTS, count=share.count)


def _part(
    job: Job, out: Path, manner: Manner, share: Share, *, notice: Callable[[], object]
) -> tuple[Totals, list[str]]:
    """Do a part, unless all is complete already.

    Args:
        notice: called for every scene; may raise what another process died of.

    Returns:
        What was done, and by which devices.
    """
    if not manner.overwrite:
        parts.refuse_other(out, job, share)  # before its folder is made
        if manner.resume:
            parts.refuse_finished(out, job)
    make = _prepare(job, out, manner)
    with parts.begin(out, job, share, overwrite=manner.overwrite) as is_needed:
        if is_needed:
            return _go_on(job, out, manner, share, make=make, notice=notice)
    found = parts.complete(out, job) or {}
    left_out = (
        f"; without --shard, the {found['failed']} scenes left out are tried again" if found.get("failed") else ""
    )
    console.note(f"{out}: this very prediction is complete already; remove the folder to make it again{left_out}")
    return Totals(job.card.dataset), []


def _go_on(
    job: Job, out: Path, manner: Manner, share: Share, *, make: Make, notice: Callable[[], object]
) -> tuple[Totals, list[str]]:
    """Do what is left of a part that is begun; see :func:`_part`."""
    scenes, path = share.of(job.scenes, stride=job.stride), out / PARTS / share.name / LEDGER
    kept = resuming.take_up(path, job, out, scenes, skip_bad=manner.skip_bad)
    devices = dict.fromkeys(parts.devices_of(out, share) if kept.count else ())
    if kept.count:
        console.note(f"{out}: goes on: {kept.count:,} of {len(scenes):,} scenes are done")
    ledger = Ledger(path, job.card.dataset, kept=kept.totals if kept.count else None)
    label = "predict" if share.count == 1 else f"predict {share.index}/{share.count}"
    with console.progress(len(scenes), label) as progress:
        progress.advance(kept.count)

        def tell(line: Line) -> None:
            notice()  # first: what it raises undoes the scene's files
            ledger.append(line)
            progress.advance(1)

        def tell_device(name: str) -> None:
            if name not in devices:
                devices[name] = None
                parts.note_devices(out, share, devices)

        if kept.left:
            make(kept.left, tell, tell_device)
    if not kept.is_a_beginning:
        resuming.put_in_order(path, scenes)
    parts.end(out, share)
    return ledger.totals, list(devices)


def _whole(
    job: Job, out: Path, share: Share, done: Sequence[tuple[Totals, list[str]]], *, ledger: Path, count: int
) -> dict[str, Any]:
    """Merge the parts where all are done; otherwise report on the ones that were done now."""
    found = merging.merge(out, job, count=count)
    if not isinstance(found, int):
        return found
    totals = Totals.of(job.card.dataset, [totals for totals, _ in done])
    return {
        "schema_version": SCHEMA_VERSION,
        "shard": {"index": share.index, "count": share.count},
        "parts": count,
        "parts_missing": found,
        **job.facts(dict.fromkeys(device for _, devices in done for device in devices)),
        **counts(totals),
        "laws": totals.laws(),
        "out": str(out),
        "trees": {tree: str(out / tree) for tree in (MASKS, *job.extras)},
        "ledger": str(ledger),
        "success": None,
    }


def _nothing() -> None:
    """What a process without company notices."""
