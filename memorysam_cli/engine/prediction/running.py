"""Doing a prediction's job: in one process, as a shard, as one of several processes, on Ray; always the same files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine import runtime
from memorysam_cli.engine.prediction import folder, parts, ranks, segmenting
from memorysam_cli.engine.prediction.folder import LEDGER, MASKS, PARTS, Line
from memorysam_cli.engine.prediction.job import Job, device_name
from memorysam_cli.engine.prediction.ledger import SCHEMA_VERSION, Ledger, Totals, counts, finish
from memorysam_cli.engine.prediction.manner import Manner
from memorysam_cli.engine.prediction.parts import Share
from memorysam_cli.errors import UsageError
from memorysam_cli.report import console
from memorysam_cli.storage import lock

Make = Callable[[Sequence[Scene], Callable[[Line], object]], str]
"""Segments scenes, tells their lines in order, and returns the name of the device that did it."""


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
        make = prepare(job, out, manner)  # weights that are refused leave the folder as it was
        if not manner.overwrite:
            parts.refuse(out)  # a shard may have been quicker
        folder.claim(out)
        parts.drop(out)
        folder.begin(out, job.card.dataset)
        ledger = Ledger(out / LEDGER, job.card.dataset)
        with console.progress(len(job.scenes), "predict") as progress:

            def tell(line: Line) -> None:
                ledger.append(line)
                progress.advance(1)

            device = make(job.scenes, tell)
        return finish(out, ledger.totals, job.facts([device]), scenes=len(job.scenes), extras=job.extras)


def _prepare(job: Job, out: Path, manner: Manner) -> Make:
    """Load the network here; what is returned segments scenes with it."""
    device = _device(job, manner)
    network = job.load(device)

    def make(scenes: Sequence[Scene], tell: Callable[[Line], object]) -> str:
        segmenting.do(
            job, network, out, scenes=scenes, device=device, tell=tell, workers=manner.workers,
            skip_bad=manner.skip_bad,
        )  # fmt: skip
        return device_name(device)

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
    asked = manner.shard or Share(0, 1)
    with ranks.company() as company:
        share = asked.divided(company.rank, company.world)
        done = company.gather(_part(job, out, manner, share, notice=company.notice))
    return None if company.rank else _whole(job, out, asked, done, ledger=out / PARTS, count=share.count)


def _part(job: Job, out: Path, manner: Manner, share: Share, *, notice: Callable[[], object]) -> tuple[Totals, str]:
    """Do a part, unless all is complete already.

    Args:
        notice: called for every scene; may raise what another process died of.

    Returns:
        What was done, and by which device.
    """
    if not manner.overwrite:
        parts.refuse_other(out, job, share)  # before its folder is made
    scenes = share.of(job.scenes, stride=job.stride)
    make = _prepare(job, out, manner)
    with parts.begin(out, job, share, overwrite=manner.overwrite) as is_needed:
        if not is_needed:
            console.note(f"{out}: this very prediction is complete already; remove the folder to make it again")
            return Totals(job.card.dataset), ""
        ledger = Ledger(out / PARTS / share.name / LEDGER, job.card.dataset)
        with console.progress(len(scenes), f"predict {share.index}/{share.count}") as progress:

            def tell(line: Line) -> None:
                notice()  # first: what it raises undoes the scene's files
                ledger.append(line)
                progress.advance(1)

            device = make(scenes, tell)
        parts.end(out, share, device=device)
    return ledger.totals, device


def _whole(
    job: Job, out: Path, share: Share, done: Sequence[tuple[Totals, str]], *, ledger: Path, count: int
) -> dict[str, Any]:
    """Merge the parts where all are done; otherwise report on the ones that were done now."""
    found = parts.merge(out, job, count=count)
    if not isinstance(found, int):
        return found
    return {
        "schema_version": SCHEMA_VERSION,
        "shard": {"index": share.index, "count": share.count},
        "parts": count,
        "parts_missing": found,
        **job.facts(dict.fromkeys(device for _, device in done)),
        **counts(Totals.of(job.card.dataset, [totals for totals, _ in done])),
        "out": str(out),
        "trees": {tree: str(out / tree) for tree in (MASKS, *job.extras)},
        "ledger": str(ledger),
        "success": None,
    }


def _nothing() -> None:
    """What a process without company notices."""
