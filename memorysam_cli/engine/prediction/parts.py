"""Parts of one prediction, made by shards or by the processes of one run, at once or in any order.

Each part takes whole groups of scenes in turn, writes their files into the common trees, and keeps its own ledger in
``.parts/<index>-of-<count>/``; a part that was killed goes on from it. A run by one process has one part. Whoever finds
all parts done merges them (:mod:`~memorysam_cli.engine.prediction.merging`). Of several parts each holds the folder's
lock for moments only: to begin, and to merge.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from memorysam_cli.engine.prediction import folder
from memorysam_cli.engine.prediction.folder import EXTRAS, LEDGER, MASKS, PARTS, SUCCESS
from memorysam_cli.engine.prediction.job import Job
from memorysam_cli.engine.prediction.shares import WHOLE, Share
from memorysam_cli.errors import DataError, FolderInUseError, UsageError
from memorysam_cli.storage import atomic, documents, lock

JOB, DONE, DEVICES, NAMES = "job.json", "done.json", "devices.json", "names.jsonl"
PATIENCE_S, SHORT_PATIENCE_S = 3600.0, 5.0
"""How long to wait for the folder's lock: other shards hold it for moments, a run without shards until it ends."""


def refuse(out: Path) -> None:
    """Refuse, to a run without shards, a folder in which a prediction in parts has begun.

    Raises:
        UsageError: names how far it is.
    """
    begun = _begun(out)
    if begun is not None and begun["parts"] != 1:
        done = sum(1 for _ in (out / PARTS).glob(f"*/{DONE}"))
        raise UsageError(
            f"--out {out}: {done} of {begun['parts']} parts of a prediction in shards are done there; finish it that "
            "way, give another folder, or begin anew with --overwrite"
        )


def refuse_unfinished(out: Path, job: Job) -> None:
    """Refuse, to a run without shards, to replace another such prediction that was cut short, unless nothing is done.

    Raises:
        UsageError: names how far it is, and what differs.
    """
    differing = _differing(out, job, 1)
    ledger = out / PARTS / WHOLE.name / LEDGER
    count = sum(line.get("status") == "done" for line in folder.lines(ledger)) if differing else 0
    if count:
        raise UsageError(
            f"--out {out}: {count:,} scenes of another prediction ({', '.join(differing)}) are done there, and it is "
            "not finished; finish it with its own command, give another folder, or begin anew with --overwrite"
        )


def refuse_finished(out: Path, job: Job) -> None:
    """Refuse to replace a finished prediction of another job.

    Raises:
        UsageError: there is one.
    """
    if _begun(out) is None and (out / SUCCESS).is_file() and complete(out, job) is None:
        raise UsageError(
            f"--resume: {out} holds a finished prediction of another job (weights, options, scenes or versions "
            "differ); give another folder, or leave --resume out to replace it"
        )


def drop(out: Path) -> None:
    """Remove all parts and the files that they made, those that no line names yet among them.

    Args:
        out: the output folder, locked by the caller.

    Raises:
        FolderInUseError: a shard is at work.
    """
    found = [path for path in (out / PARTS).glob("*-of-*") if path.is_dir()]
    for path in found:
        with lock.hold(path):
            pass
    for path in found:
        (path / DONE).unlink(missing_ok=True)
        folder.clear(path / LEDGER, out)
    for name in _names(out):
        for tree in (MASKS, *EXTRAS):
            folder.remove_file(out / tree / f"{name}.png", tree=out / tree)
    remove(out)


@contextlib.contextmanager
def begin(out: Path, job: Job, share: Share, *, overwrite: bool = False, is_alone: bool = False) -> Iterator[bool]:
    """Begin a part, or take it up again; the first part of all removes what an earlier prediction wrote.

    Args:
        out: the output folder.
        job: what is to be done.
        share: which part; its folder is locked while the block runs. Not before: parts that wait for their turn are
            not at work, and must not keep the first of them from dropping another job's.
        overwrite: whether parts of another job go first, and what there is of this part.
        is_alone: the caller holds the folder's lock, and has seen to what was there.

    Yields:
        False if this very job is complete already: then nothing is left to do.

    Raises:
        UsageError: parts of another job, or of another number, have begun there.
        FolderInUseError: a run without shards, or this very part, is at work there.
    """
    with contextlib.ExitStack() as held:
        with contextlib.nullcontext() if is_alone else turn(out):
            is_needed = is_alone or complete(out, job) is None
            if is_needed:
                held.enter_context(_begun_part(out, job, share, overwrite=overwrite))
        yield is_needed


@contextlib.contextmanager
def _begun_part(out: Path, job: Job, share: Share, *, overwrite: bool) -> Iterator[None]:
    """As :func:`begin`, where it is needed, in the folder's turn."""
    if overwrite and _differing(out, job, share.count):
        drop(out)
    refuse_other(out, job, share)
    part = out / PARTS / share.name
    with lock.hold(part):
        if not (_begun(out) or {}).get("ready"):
            _note(out, job, share.count, is_ready=False)
            folder.begin(out, job.card.dataset)
            _note(out, job, share.count, is_ready=True)
        (out / SUCCESS).unlink(missing_ok=True)  # of this job when it was complete, and is taken up again
        (part / DONE).unlink(missing_ok=True)
        if overwrite:
            folder.clear(part / LEDGER, out)
        yield


def reopen(out: Path, job: Job) -> None:
    """Make one part of a complete prediction, so that what has changed since can be done again.

    Args:
        out: the output folder, locked by the caller; a kill at any moment costs only to reopen it again.
        job: of which it is the prediction.
    """
    part = out / PARTS / WHOLE.name
    atomic.make_folder(part)
    devices = documents.read_json(out / SUCCESS).get("device")
    note_devices(out, WHOLE, devices.split(" + ") if isinstance(devices, str) else [])
    _note(out, job, 1, is_ready=True)
    (out / LEDGER).replace(part / LEDGER)
    (out / SUCCESS).unlink(missing_ok=True)


def _note(out: Path, job: Job, count: int, *, is_ready: bool) -> None:
    """Note what is begun and, before its first file is there, the names that its files may have."""
    begun = {"schema_version": 1, "parts": count, "marks": job.marks, "ready": is_ready}
    if is_ready:
        names = (documents.to_json(scene.id).encode() + b"\n" for scene in job.scenes)
        atomic.write_pieces(out / PARTS / NAMES, names)
    documents.write_json(out / PARTS / JOB, begun)


def _names(out: Path) -> Iterator[PurePosixPath]:
    """The scenes of the prediction that has begun, as far as they are names for files of ours."""
    if not (out / PARTS / NAMES).is_file():
        return
    for name in documents.each_json_line(out / PARTS / NAMES):
        path = PurePosixPath(str(name))
        if path.name and not path.is_absolute() and ".." not in path.parts:
            yield path


def refuse_other(out: Path, job: Job, share: Share) -> None:
    """Refuse to mix parts of different jobs.

    Raises:
        UsageError: names what differs.
    """
    differing = _differing(out, job, share.count)
    if differing:
        raise UsageError(
            f"--out {out}: the parts there are of another prediction ({', '.join(differing)}); run the same command "
            "for every shard, give another folder, or begin anew with --overwrite"
        )


def are_of_another(out: Path, job: Job) -> bool:
    """Whether what has begun is another prediction than this one without shards."""
    return bool(_differing(out, job, 1))


def _differing(out: Path, job: Job, count: int) -> list[str]:
    """In what the parts that have begun are another prediction's, in words."""
    begun = _begun(out)
    if begun is None:
        return []
    number = [f"{begun['parts']} parts, not {count}"] if begun["parts"] != count else []
    return number + [f"other {name}" for name, value in job.marks.items() if begun["marks"].get(name) != value]


def note_devices(out: Path, share: Share, devices: Iterable[str]) -> None:
    """Note, before its first line, which devices compute a part."""
    documents.write_json(out / PARTS / share.name / DEVICES, list(devices))


def devices_of(out: Path, share: Share) -> list[str]:
    """What :func:`note_devices` noted."""
    path = out / PARTS / share.name / DEVICES
    with contextlib.suppress(DataError):
        found = documents.read_json(path)
        return [str(each) for each in found] if isinstance(found, list) else []
    return []


def end(out: Path, share: Share) -> None:
    """Note that a part is done, all its files and lines written."""
    ledger = out / PARTS / share.name / LEDGER
    if ledger.is_file():
        atomic.sync(ledger)
    documents.write_json(out / PARTS / share.name / DONE, {"schema_version": 1})


def complete(out: Path, job: Job) -> dict[str, Any] | None:
    """The content of ``_SUCCESS.json`` if it is this job's."""
    if not (out / SUCCESS).is_file() or not (out / LEDGER).is_file():
        return None
    with contextlib.suppress(DataError):  # one that somebody damaged is no success
        report = documents.read_json(out / SUCCESS)
        return report if isinstance(report, dict) and report.get("job") == job.sha256 else None
    return None


def _begun(out: Path) -> dict[str, Any] | None:
    """What the parts' first one noted: ``parts``, ``marks``, and ``ready`` once the folder is cleared for them."""
    path = out / PARTS / JOB
    if not path.is_file():
        return None
    try:
        found = documents.read_json(path)
    except DataError:
        if not path.is_file():  # merged in this very moment
            return None
        raise
    if not isinstance(found, dict) or not {"parts", "marks", "ready"} <= found.keys():
        raise DataError(f"{path}: is none of ours; remove {out / PARTS}")
    return found


def remove(out: Path) -> None:
    """Remove the parts, and last the note that there are any."""
    for path in (out / PARTS).glob("*-of-*"):
        shutil.rmtree(path, ignore_errors=True)
    (out / PARTS / JOB).unlink(missing_ok=True)
    shutil.rmtree(out / PARTS, ignore_errors=True)


@contextlib.contextmanager
def turn(out: Path) -> Iterator[None]:
    """Hold the folder's lock for a moment; waits its turn."""
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock.hold(out))
                break
            except FolderInUseError:
                begun = _begun(out)
                patience = PATIENCE_S if begun is not None and begun["parts"] != 1 else SHORT_PATIENCE_S
                if time.monotonic() - start > patience:
                    raise
                time.sleep(0.05)
        yield
