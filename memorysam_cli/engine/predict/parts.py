"""The state of an output folder, the user's wish, and the resulting action: one table, and the code that acts on it.

A prediction consists of parts, which shards or the processes of one run compute, at the same time or in any order. A
run of one process has one part. Each part takes whole groups of scenes in turn, writes their files into the common
trees, and has its own ledger in ``.parts/<index>-of-<count>/``, from which it continues after a kill. The last part to
finish merges all. A run without shards holds the folder's lock while it works. Each of several parts holds it only for
moments, to start and to merge, and the lock of its own part's folder while it works.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Self

from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine.predict import files
from memorysam_cli.engine.predict.files import EXTRAS, LEDGER, MASKS, PARTS, SUCCESS
from memorysam_cli.engine.predict.job import Job, RunOptions
from memorysam_cli.engine.predict.ledger import SCHEMA_VERSION, counts, merge, scenes_of, survey, totals_of
from memorysam_cli.engine.surroundings import WHOLE, Shard
from memorysam_cli.errors import DataError, FolderInUseError, UsageError
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents, lock
from memorysam_cli.text import counted

JOB, DONE, DEVICES, NAMES = "job.json", "done.json", "devices.json", "names.jsonl"
PATIENCE_S, SHORT_PATIENCE_S = 3600.0, 5.0
"""Seconds to wait for the folder's lock: other shards hold it for moments, a run without shards until it ends."""


@dataclass(frozen=True)
class Empty:
    """Nothing, or only files of a run that was killed before it recorded its job."""


@dataclass(frozen=True)
class Foreign:
    """Files that are not a prediction."""


@dataclass(frozen=True)
class Begun:
    """An unfinished prediction."""

    parts: int
    """Number of its parts."""
    differences: tuple[str, ...] = ()
    """Differences from the requested prediction, in words."""
    parts_done: int = 0
    """Number of parts done; counted only if another number of parts is requested."""
    scenes_done: int = 0
    """Number of scenes done by a run without shards; counted only if another prediction is requested."""


@dataclass(frozen=True)
class Complete:
    """A finished prediction."""

    report: dict[str, Any]
    """The content of ``_SUCCESS.json``; empty if it is damaged."""
    is_wanted: bool
    """Whether it is the requested prediction."""


FolderState = Empty | Foreign | Begun | Complete


@dataclass(frozen=True)
class Wish:
    """The user's request for a folder."""

    shard: Shard = WHOLE
    is_alone: bool = True
    """No other shard or process takes part."""
    overwrite: bool = False
    resume: bool = False
    skip_bad: bool = False
    """Unreadable scenes may stay left out; otherwise they are tried again."""
    run_shards: tuple[Shard, ...] = (WHOLE,)
    """The shards of all processes of this run; one of these processes reports the result of all."""

    @classmethod
    def of(cls, options: RunOptions, *, rank: int = 0, world: int = 1) -> Self:
        """The request of one of ``world`` processes: each is a shard of the requested shard."""
        run_shards = tuple((options.shard or WHOLE).divided(each, world) for each in range(world))
        return cls(
            run_shards[rank], is_alone=options.shard is None and world == 1, overwrite=options.overwrite,
            resume=options.resume, skip_bad=options.skip_bad, run_shards=run_shards,
        )  # fmt: skip


class Action(Enum):
    """What to do with a folder."""

    BEGIN = "remove what other predictions left there, and begin"
    RESUME = "do what is left of this part"
    RESTART = "start this part over; the other parts stay"
    REOPEN = "look at every file; do again what has changed since, and answer where nothing has"
    ANSWER = "answer from _SUCCESS.json"
    REFUSE = "leave it as it is"


Row = Literal["empty", "foreign", "begun", "begun, another", "begun, another, nothing done", "complete",
              "complete, another"]  # fmt: skip
_B, _R, _S, _O, _A, _X = Action.BEGIN, Action.RESUME, Action.RESTART, Action.REOPEN, Action.ANSWER, Action.REFUSE
TABLE: dict[Row, tuple[Action, ...]] = {
    # A run without shards      a shard
    # plain  resume  overwrite  plain  resume  overwrite
    "empty": (_B, _B, _B, _B, _B, _B),
    "foreign": (_X, _X, _B, _X, _X, _B),
    "begun": (_R, _R, _B, _R, _R, _S),
    "begun, another": (_X, _X, _B, _X, _X, _B),
    "begun, another, nothing done": (_B, _B, _B, _X, _X, _B),
    "complete": (_O, _O, _B, _A, _A, _A),
    "complete, another": (_B, _X, _B, _B, _X, _B),
}
"""The action for each state of the folder and each request; docs/many-scenes.md explains it."""


def decide(out: Path, state: FolderState, wish: Wish) -> Action:
    """What to do with a folder in this ``state``.

    Raises:
        UsageError: nothing can be done; the message names the content and the alternatives.
    """
    column = (0 if wish.is_alone else 3) + (2 if wish.overwrite else 1 if wish.resume else 0)
    action = TABLE[_row(state)][column]
    if action is Action.REFUSE:
        raise UsageError(_refusal(out, state, wish))
    return action


def _row(state: FolderState) -> Row:
    match state:
        case Empty():
            return "empty"
        case Foreign():
            return "foreign"
        case Complete(is_wanted=is_wanted):
            return "complete" if is_wanted else "complete, another"
        case Begun(differences=()):
            return "begun"
        case Begun(parts=1, scenes_done=0):
            return "begun, another, nothing done"
    return "begun, another"


def _refusal(out: Path, state: FolderState, wish: Wish) -> str:
    """The message for a refused folder."""
    match state:
        case Begun(parts=parts, parts_done=done) if wish.is_alone and parts != 1:
            return (
                f"--out {out}: holds {done} of {counted(parts, 'part')} of a prediction in shards; finish it that way, "
                "give another folder, or start over with --overwrite"
            )
        case Begun(differences=differences, scenes_done=count) if wish.is_alone:
            return (
                f"--out {out}: holds {counted(count, 'scene')} of another prediction ({', '.join(differences)}), "
                "which is not finished; finish it with its own command, give another folder, or start over with "
                "--overwrite"
            )
        case Begun(differences=differences):
            return (
                f"--out {out}: the parts there are of another prediction ({', '.join(differences)}); run the same "
                "command for every shard, give another folder, or start over with --overwrite"
            )
        case Complete():
            return (
                f"--resume: {out} holds a finished prediction of another job (weights, options, scenes or versions "
                "differ); give another folder, or leave --resume out to replace it"
            )
    return f"--out {out}: {files.FOREIGN}"


def refuse_others(out: Path, job: Job, wish: Wish) -> None:
    """Refuse a folder with other contents, as :class:`PredictionFolder` does; needs no torch and writes nothing.

    If another run uses the folder, its lock is reported later.

    Raises:
        UsageError: as :func:`decide`.
        EnvironmentFault, DataError: as :func:`look`.
    """
    owner = lock.owner(out)
    if owner is None or owner.lives is False:
        decide(out, look(out, job, parts=wish.shard.count), wish)


def look(out: Path, job: Job, *, parts: int) -> FolderState:
    """The state of a folder for a job with this number of parts; writes nothing.

    Raises:
        UsageError: it is a file.
        EnvironmentFault: nothing can be written there.
        DataError: the record of an unfinished prediction is damaged.
    """
    files.refuse_out(out, overwrite=True)  # :func:`decide` handles foreign content
    report = _report(out)
    if report is not None and (out / LEDGER).is_file():
        # A followed folder has the prediction of the scenes that had arrived.
        wanted = job.of(scenes_of(out / LEDGER)) if job.follows else job
        return Complete(report, is_wanted=report.get("job") == wanted.sha256)
    note = _read_note(out)
    if note is not None:
        return _begun(out, job, note, parts=parts)
    if files.is_foreign(out):
        return Foreign()
    return Complete({}, is_wanted=False) if (out / SUCCESS).is_file() else Empty()


def _report(out: Path) -> dict[str, Any] | None:
    """The content of ``_SUCCESS.json``; empty if it is missing or damaged."""
    path = out / SUCCESS
    if path.is_file():
        with contextlib.suppress(DataError), documents.understood(path):
            report = documents.read_object(path)
            numbers = [report[key] for key in ("done", "scenes", "failed")]
            words = [report["ledger"], *report["modalities"], *report["trees"].values()]
            is_ours = all(type(each) is int for each in numbers) and all(type(each) is str for each in words)
            return report if is_ours else None
    return None


def _read_note(out: Path) -> dict[str, Any] | None:
    """The record that the first part wrote: ``parts``, ``marks``, and ``ready`` once the folder is cleared."""
    path = out / PARTS / JOB
    if not path.is_file():
        return None
    try:
        note = documents.read_json(path)
    except DataError:
        if not path.is_file():  # merged at this moment
            return None
        raise
    if not isinstance(note, dict) or not {"parts", "marks", "ready"} <= note.keys():
        raise DataError(f"{path}: was not written by memorysam; remove {out / PARTS}")
    return note


def _begun(out: Path, job: Job, note: dict[str, Any], *, parts: int) -> Begun:
    """The progress of the recorded prediction, and its differences from the requested one."""
    number = [f"{counted(note['parts'], 'part')}, not {parts}"] if note["parts"] != parts else []
    noted = note["marks"]
    marks = [f"other {name}" for name in {**job.marks, **noted} if noted.get(name) != job.marks.get(name)]
    is_by_one = note["parts"] == 1 and bool(number or marks)
    ledger = Part(out, WHOLE).ledger
    return Begun(
        note["parts"],
        (*number, *marks),
        parts_done=sum(1 for _ in (out / PARTS).glob(f"*/{DONE}")) if number else 0,
        scenes_done=sum(line.get("status") == "done" for line in files.lines(ledger)) if is_by_one else 0,
    )


@dataclass(frozen=True)
class Part:
    """A part of a prediction: the work of one process."""

    out: Path
    shard: Shard

    @property
    def folder(self) -> Path:
        """Its folder below ``.parts``."""
        return self.out / PARTS / self.shard.name

    @property
    def ledger(self) -> Path:
        """Its own ledger."""
        return self.folder / LEDGER

    @property
    def is_done(self) -> bool:
        """Whether all its files and lines are written."""
        return (self.folder / DONE).is_file()

    def note_devices(self, devices: Iterable[str]) -> None:
        """Record, before the first line, the devices that compute it."""
        documents.write_json(self.folder / DEVICES, list(devices))

    def devices(self) -> list[str]:
        """The devices recorded by :meth:`note_devices`."""
        with contextlib.suppress(DataError):
            names = documents.read_json(self.folder / DEVICES)
            return [str(name) for name in names] if isinstance(names, list) else []
        return []


class PredictionFolder:
    """An output folder and the user's request for it: enter it before any work, then begin and finish a part.

    A context manager. It refuses what :data:`TABLE` refuses before anything is written. A run without shards then holds
    the folder's lock until its end. A process that finds the lock held by another shard waits for its turn.

    Args:
        out: the output folder.
        job: the work.
        wish: the request.

    Raises:
        UsageError: the folder contains something that must not be changed.
        FolderInUseError: another prediction is running there.
    """

    def __init__(self, out: Path, job: Job, wish: Wish) -> None:
        self.out, self.job, self.wish = out, job, wish
        self.part = Part(out, wish.shard)
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> Self:
        state = self._look()
        # If a run without shards is running, another one reports only that, not its progress.
        if not self.wish.is_alone or isinstance(state, Foreign) or (isinstance(state, Begun) and state.parts != 1):
            decide(self.out, state, self.wish)
        if self.wish.is_alone:
            self._locks.enter_context(lock.hold(self.out))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._locks.__exit__(kind, error, traceback)

    def is_answered(self) -> bool:
        """Whether everything is complete and unchanged, so that only the result is printed.

        Raises:
            UsageError: another run was faster, see :func:`decide`.
        """
        with self._turn():
            action = decide(self.out, self._look(), self.wish)
            if action is Action.REOPEN:
                inventory, _ = survey(
                    self.out / LEDGER, self.job, self.out, self.job.scenes, skip_bad=self.wish.skip_bad
                )  # fmt: skip
                is_answered = not inventory.left and not inventory.reasons and inventory.is_a_beginning
            else:
                is_answered = action is Action.ANSWER
            if is_answered:
                _remove_parts(self.out)  # from a merge that was killed at its end
                self._say_complete()
            return is_answered

    @contextlib.contextmanager
    def begin(self) -> Iterator[Part | None]:
        """Begin or continue a part, and record that it is done if the block succeeds.

        The first part removes the files of an earlier prediction. The part's folder is locked only within the block:
        parts that wait for their turn are not running, and must not keep the first of them from dropping another job's
        parts.

        Yields:
            None if everything is complete and nothing is left to do.

        Raises:
            UsageError: parts of another job, or of another number, have begun there.
            FolderInUseError: a run without shards, or the same part, is running there.
        """
        with contextlib.ExitStack() as locks:
            with self._turn():
                action = decide(self.out, self._look(), self.wish)
                if action is Action.ANSWER:
                    self._say_complete()
                else:
                    self._act(action, locks)
            yield self.part if action is not Action.ANSWER else None
            if action is not Action.ANSWER:
                if self.part.ledger.is_file():
                    atomic.sync(self.part.ledger)
                documents.write_json(self.part.folder / DONE, {"schema_version": 1})

    def finish(self) -> None:
        """Merge the parts if all of them are done; after a kill at any moment, only the merge is repeated.

        Raises:
            UsageError: the parts now belong to another prediction.
            DataError: a part's ledger is damaged, or no scene of any part could be read.
            EnvironmentFault: a file named in the ledger is missing.
        """
        with self._turn():
            state = self._look()
            if isinstance(state, Begun) and state.differences:
                raise UsageError(_refusal(self.out, state, self.wish))
            is_complete = isinstance(state, Complete) and state.is_wanted
            if not is_complete and not self._missing():
                parts = self._parts()
                devices = dict.fromkeys(device for part in parts for device in part.devices())
                merge(self.out, self.job, [part.ledger for part in parts], devices=devices)
                is_complete = True
            if is_complete:
                _remove_parts(self.out)

    def announce(self, scenes: Iterable[Scene]) -> None:
        """Record the names of files of newly arrived scenes, before the first file exists."""
        for scene in scenes:
            documents.append_json_line(self.out / PARTS / NAMES, scene.id)

    def finish_as(self, job: Job) -> dict[str, Any]:
        """Make a prediction of the finished scenes of a followed folder.

        Args:
            job: of exactly the scenes in the part's ledger, in its order.

        Returns:
            The content of ``_SUCCESS.json``.
        """
        merge(self.out, job, [self.part.ledger], devices=self.part.devices())
        _remove_parts(self.out)
        report = _report(self.out)
        assert report is not None  # it was just written
        return report

    def report(self) -> dict[str, Any]:
        """The content of ``_SUCCESS.json``; before all parts are done, the same keys for the parts of this run."""
        with self._turn():
            state = self._look()
            if isinstance(state, Complete) and state.is_wanted:
                return state.report
            return self._report_of(self.wish.run_shards)

    def _report_of(self, shards: tuple[Shard, ...]) -> dict[str, Any]:
        own = [Part(self.out, shard) for shard in shards]
        totals = totals_of([part.ledger for part in own], self.job.card.dataset)
        whole = Shard(shards[0].index // len(shards), self.wish.shard.count // len(shards))
        return {
            "schema_version": SCHEMA_VERSION,
            "shard": {"index": whole.index, "count": whole.count},
            "parts": self.wish.shard.count,
            "parts_missing": self._missing(),
            **self.job.facts(dict.fromkeys(device for part in own for device in part.devices())),
            **counts(totals),
            "laws": totals.laws(),
            "out": str(self.out),
            "trees": {tree: str(self.out / tree) for tree in (MASKS, *self.job.extras)},
            "ledger": str(own[0].ledger if len(own) == 1 else self.out / PARTS),
            "success": None,
        }

    def _look(self) -> FolderState:
        return look(self.out, self.job, parts=self.wish.shard.count)

    def _parts(self) -> list[Part]:
        """All parts."""
        return [Part(self.out, Shard(index, self.wish.shard.count)) for index in range(self.wish.shard.count)]

    def _missing(self) -> int:
        """Number of parts that are not done."""
        return sum(not part.is_done for part in self._parts())

    def _say_complete(self) -> None:
        """Report why nothing is done, and how to repeat the prediction."""
        again = "to make it again: --overwrite"
        if not self.wish.is_alone:
            failed = (_report(self.out) or {}).get("failed")
            left_out = (
                f"; without --shard, the {counted(failed, 'scene')} left out will be tried again" if failed else ""
            )
            again = f"remove the folder to make it again{left_out}"
        console.note(f"{self.out}: this prediction is already complete; {again}")

    def _act(self, action: Action, locks: contextlib.ExitStack) -> None:
        """Make the folder ready for work on the part, and hold the part's lock."""
        if action is Action.BEGIN:
            _drop(self.out)
        if action is Action.REOPEN:
            _reopen(self.out, self.job)
        locks.enter_context(lock.hold(self.part.folder))
        if not (_read_note(self.out) or {}).get("ready"):
            _write_note(self.out, self.job, self.wish.shard.count, is_ready=False)
            files.clear_earlier(self.out, self.job.card.dataset)
            _write_note(self.out, self.job, self.wish.shard.count, is_ready=True)
        (self.out / SUCCESS).unlink(missing_ok=True)  # of this job when it was complete, and is continued
        (self.part.folder / DONE).unlink(missing_ok=True)
        if action is Action.RESTART:
            files.clear(self.part.ledger, self.out)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for the folder's lock and hold it for a moment; a run without shards holds it all the time."""
        start = time.monotonic()
        with contextlib.ExitStack() as locks:
            while not self.wish.is_alone:
                try:
                    locks.enter_context(lock.hold(self.out))
                    break
                except FolderInUseError:
                    note = _read_note(self.out)
                    patience = PATIENCE_S if note is not None and note["parts"] != 1 else SHORT_PATIENCE_S
                    if time.monotonic() - start > patience:
                        raise
                    time.sleep(0.05)
            yield


def _drop(out: Path) -> None:
    """Remove all parts and their files, including files that have no line yet.

    Raises:
        FolderInUseError: a shard is running.
    """
    folders = [path for path in (out / PARTS).glob("*-of-*") if path.is_dir()]
    for path in folders:
        with lock.hold(path):
            pass
    for path in folders:
        (path / DONE).unlink(missing_ok=True)
        files.clear(path / LEDGER, out)
    for name in _names(out):
        for tree in (MASKS, *EXTRAS):
            files.remove_file(out / files.file_of(tree, name), tree=out / tree)
    _remove_parts(out)


def _remove_parts(out: Path) -> None:
    """Remove the parts, and last the record of them."""
    for path in (out / PARTS).glob("*-of-*"):
        shutil.rmtree(path, ignore_errors=True)
    (out / PARTS / JOB).unlink(missing_ok=True)
    shutil.rmtree(out / PARTS, ignore_errors=True)


def _reopen(out: Path, job: Job) -> None:
    """Turn a complete prediction into one part, so that changed scenes can be repeated.

    After a kill at any moment, only this is repeated.
    """
    _remove_parts(out)
    part = Part(out, WHOLE)
    atomic.make_folder(part.folder)
    devices = documents.read_json(out / SUCCESS).get("device")
    part.note_devices(devices.split(" + ") if isinstance(devices, str) else [])
    _write_note(out, job, 1, is_ready=True)
    (out / LEDGER).replace(part.ledger)
    (out / SUCCESS).unlink(missing_ok=True)


def _write_note(out: Path, job: Job, count: int, *, is_ready: bool) -> None:
    """Record the job and, before its first file exists, the names that its files may have."""
    begun = {"schema_version": 1, "parts": count, "marks": job.marks, "ready": is_ready}
    if is_ready:
        names = (documents.to_json(scene.id).encode() + b"\n" for scene in job.scenes)
        atomic.write_pieces(out / PARTS / NAMES, names)
    documents.write_json(out / PARTS / JOB, begun)


def _names(out: Path) -> Iterator[PurePosixPath]:
    """The scenes of the unfinished prediction whose ids are valid names of our files."""
    if not (out / PARTS / NAMES).is_file():
        return
    for name in documents.each_json_line(out / PARTS / NAMES):
        path = PurePosixPath(str(name))
        if path.name and not path.is_absolute() and ".." not in path.parts:
            yield path
