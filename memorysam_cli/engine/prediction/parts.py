"""Parts of one prediction, made by shards or by the processes of one run, at once or in any order.

Each part takes whole groups of scenes in turn, writes their files into the common trees, and keeps its own ledger in
``.parts/<index>-of-<count>/``. Whoever finds all parts done merges the ledgers into the one that a single process
would have written, and removes the parts. The folder's lock is held for moments only: to begin a part, and to merge.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine.prediction import folder
from memorysam_cli.engine.prediction.folder import LEDGER, PARTS, SUCCESS
from memorysam_cli.engine.prediction.job import Job
from memorysam_cli.engine.prediction.ledger import Totals, finish
from memorysam_cli.errors import DataError, FolderInUseError, UsageError
from memorysam_cli.storage import atomic, documents, lock

JOB, DONE = "job.json", "done.json"
PATIENCE_S, SHORT_PATIENCE_S = 3600.0, 5.0
"""How long to wait for the folder's lock: other shards hold it for moments, a run without shards until it ends."""
READ_AHEAD = 2**16
"""Bytes of a part's ledger that are held while it is merged."""


@dataclass(frozen=True)
class Share:
    """One of several equal shares of the scenes."""

    index: int
    """From 0."""
    count: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.index}-of-{self.count}"

    def of(self, scenes: Sequence[Scene], *, stride: int) -> list[Scene]:
        """Every ``count``-th group of ``stride`` consecutive scenes; all shares together are all scenes, once."""
        starts = range(self.index * stride, len(scenes), self.count * stride)
        return [scene for start in starts for scene in scenes[start : start + stride]]

    def divided(self, rank: int, world: int) -> Share:
        """What one of ``world`` processes takes of this share."""
        return Share(self.index * world + rank, self.count * world)


def read_share(text: str | None) -> Share | None:
    """The share that ``--shard i/n`` means; None stays None.

    Raises:
        UsageError: not two numbers, or not 0 ≤ i < n.
    """
    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not slash or not all(word.isascii() and word.isdigit() for word in (index, count)):
        raise UsageError(f"--shard {text}: must be I/N, such as 0/4 for the first of four")
    if int(count) == 0:
        raise UsageError(f"--shard {text}: N, the number of shards, must be 1 or more")
    if int(index) >= int(count):
        raise UsageError(
            f"--shard {text}: shards count from 0, so that the last of {count} is {int(count) - 1}/{count}"
        )
    return Share(int(index), int(count))


def refuse(out: Path) -> None:
    """Refuse a folder in which a prediction in parts has begun.

    Raises:
        UsageError: names how far it is.
    """
    job = _begun(out)
    if job is not None:
        done = sum(1 for _ in (out / PARTS).glob(f"*/{DONE}"))
        raise UsageError(
            f"--out {out}: {done} of {job['parts']} parts of a prediction in shards are done there; finish it that "
            "way, give another folder, or begin anew with --overwrite"
        )


def drop(out: Path) -> None:
    """Remove all parts and the files that they made.

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
    _remove(out)


@contextlib.contextmanager
def begin(out: Path, job: Job, share: Share, *, overwrite: bool = False) -> Iterator[bool]:
    """Begin a part, anew if it was done before; the first part of all removes what an earlier prediction wrote.

    Args:
        out: the output folder.
        job: what is to be done.
        share: which part; its folder is locked while the block runs. Not before: parts that wait for their turn are
            not at work, and must not keep the first of them from dropping another job's.
        overwrite: whether parts of another job go first.

    Yields:
        False if this very job is complete already: then nothing is left to do.

    Raises:
        UsageError: parts of another job, or of another number, have begun there.
        FolderInUseError: a run without shards, or this very part, is at work there.
    """
    with contextlib.ExitStack() as held:
        with _turn(out):
            is_needed = _complete(out, job) is None
            if is_needed:
                held.enter_context(_begun_anew(out, job, share, overwrite=overwrite))
        yield is_needed


@contextlib.contextmanager
def _begun_anew(out: Path, job: Job, share: Share, *, overwrite: bool) -> Iterator[None]:
    """As :func:`begin`, where it is needed, in the folder's turn."""
    if overwrite and _differing(out, job, share.count):
        drop(out)
    refuse_other(out, job, share)
    part = out / PARTS / share.name
    with lock.hold(part):
        begun = {"schema_version": 1, "parts": share.count, "marks": job.marks}
        if not (_begun(out) or {}).get("ready"):
            documents.write_json(out / PARTS / JOB, {**begun, "ready": False})
            folder.begin(out, job.card.dataset)
            (out / LEDGER).unlink()  # until the parts are merged there is none
            documents.write_json(out / PARTS / JOB, {**begun, "ready": True})
        (part / DONE).unlink(missing_ok=True)
        folder.clear(part / LEDGER, out)
        yield


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


def _differing(out: Path, job: Job, count: int) -> list[str]:
    """In what the parts that have begun are another prediction's, in words."""
    begun = _begun(out)
    if begun is None:
        return []
    number = [f"{begun['parts']} parts, not {count}"] if begun["parts"] != count else []
    return number + [f"other {name}" for name, value in job.marks.items() if begun["marks"].get(name) != value]


def end(out: Path, share: Share, *, device: str) -> None:
    """Note that a part is done, all its files and lines written."""
    atomic.sync(out / PARTS / share.name / LEDGER)
    documents.write_json(out / PARTS / share.name / DONE, {"schema_version": 1, "device": device})


def merge(out: Path, job: Job, *, count: int) -> dict[str, Any] | int:
    """Make one prediction of the parts, if all of them are done; a kill at any moment costs only to merge again.

    Args:
        out: the output folder.
        job: of all parts.
        count: how many parts there are.

    Returns:
        The content of ``_SUCCESS.json``, whoever wrote it; or how many parts are missing still.

    Raises:
        DataError: a part's ledger is damaged, or no scene of any part could be read.
    """
    with _turn(out):
        complete = _complete(out, job)
        if complete is None:
            refuse_other(out, job, Share(0, count))
            parts = [out / PARTS / Share(index, count).name for index in range(count)]
            missing = sum(not (part / DONE).is_file() for part in parts)
            if missing:
                return missing
            complete = _merged(out, job, parts)
        _remove(out)
        return complete


def _merged(out: Path, job: Job, parts: Sequence[Path]) -> dict[str, Any]:
    """Merge the ledgers in the order of the scenes, and write ``_SUCCESS.json``."""
    totals = Totals(job.card.dataset)
    atomic.write_pieces(out / LEDGER, _counted(_lines(job, parts), totals))
    devices = dict.fromkeys(str(documents.read_json(part / DONE)["device"]) for part in parts)
    return finish(out, totals, job.facts(devices), scenes=len(job.scenes), extras=job.extras)


def _counted(lines: Iterable[bytes], totals: Totals) -> Iterator[bytes]:
    """The lines, each added to the totals on its way."""
    for line in lines:
        totals.add(json.loads(line))
        yield line


def _lines(job: Job, parts: Sequence[Path]) -> Iterator[bytes]:
    """The lines of all parts' ledgers as they are, in the order of the scenes."""
    ledgers = [_Ledger(part / LEDGER) for part in parts]
    for start in range(0, len(job.scenes), job.stride):
        index = start // job.stride % len(parts)
        for scene in job.scenes[start : start + job.stride]:
            line = ledgers[index].next_line()
            with contextlib.suppress(ValueError):
                if json.loads(line)["id"] == scene.id:
                    yield line
                    continue
            raise DataError(
                f"{ledgers[index].path}: is damaged: it has no line for scene {scene.id!r} where one should be; run "
                f"that shard again: --shard {index}/{len(parts)}"
            )


class _Ledger:
    """A ledger that is read piece by piece: thousands of them cannot all be open."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, 0
        self._lines: deque[bytes] = deque()

    def next_line(self) -> bytes:
        """The next line with its newline; empty at the end."""
        if not self._lines:
            with atomic.faults(self.path), self.path.open("rb") as stream:
                stream.seek(self._offset)
                self._lines.extend(stream.readlines(READ_AHEAD))
            self._offset += sum(map(len, self._lines))
        return self._lines.popleft() if self._lines else b""


def _complete(out: Path, job: Job) -> dict[str, Any] | None:
    """The content of ``_SUCCESS.json`` if it is this job's."""
    if not (out / SUCCESS).is_file():
        return None
    report = documents.read_json(out / SUCCESS)
    return report if isinstance(report, dict) and report.get("job") == job.sha256 else None


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


def _remove(out: Path) -> None:
    """Remove the parts, and last the note that there are any."""
    for path in (out / PARTS).glob("*-of-*"):
        shutil.rmtree(path, ignore_errors=True)
    (out / PARTS / JOB).unlink(missing_ok=True)
    shutil.rmtree(out / PARTS, ignore_errors=True)


@contextlib.contextmanager
def _turn(out: Path) -> Iterator[None]:
    """Hold the folder's lock for a moment; waits its turn."""
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock.hold(out))
                break
            except FolderInUseError:
                patience = PATIENCE_S if (out / PARTS / JOB).is_file() else SHORT_PATIENCE_S
                if time.monotonic() - start > patience:
                    raise
                time.sleep(0.05)
        yield
