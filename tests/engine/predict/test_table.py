"""What a folder holds × what is wanted of it: every pair, what follows, and that folders are read as what they hold."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.predict import parts
from memorysam_cli.engine.predict.files import LEDGER, PARTS, SUCCESS
from memorysam_cli.engine.predict.job import Job, RunOptions
from memorysam_cli.engine.predict.parts import Action, Begun, Complete, Empty, FolderState, Foreign, Wish, decide, look
from memorysam_cli.engine.predict.run import run
from memorysam_cli.engine.surroundings import Shard
from memorysam_cli.errors import MemorySamError, UsageError
from memorysam_cli.storage import documents

from .jobs import job_of, tree

pytestmark = pytest.mark.usefixtures("light_network")

OUT = Path("out")
OTHER = ("other weights",)
HOWS: dict[str, dict[str, Any]] = {"plain": {}, "resume": {"resume": True}, "overwrite": {"overwrite": True}}
STATES: dict[str, FolderState] = {
    "empty": Empty(),
    "foreign": Foreign(),
    "begun": Begun(3),
    "begun, another": Begun(3, OTHER),
    "another number": Begun(4, ("4 parts, not 3",), parts_done=2),
    "another of one, some done": Begun(1, OTHER, scenes_done=7),
    "another of one, nothing done": Begun(1, OTHER),
    "complete": Complete({}, is_wanted=True),
    "complete, another": Complete({}, is_wanted=False),
}
# plain, --resume, --overwrite; a word in quotes is of the refusal
ALONE: dict[str, tuple[Action | str, Action | str, Action | str]] = {
    "empty": (Action.BEGIN, Action.BEGIN, Action.BEGIN),
    "foreign": ("holds no predictions", "holds no predictions", Action.BEGIN),
    "begun": (Action.RESUME, Action.RESUME, Action.BEGIN),
    "begun, another": ("0 of 3 parts", "0 of 3 parts", Action.BEGIN),
    "another number": ("2 of 4 parts", "2 of 4 parts", Action.BEGIN),
    "another of one, some done": ("7 scenes of another", "7 scenes of another", Action.BEGIN),
    "another of one, nothing done": (Action.BEGIN, Action.BEGIN, Action.BEGIN),
    "complete": (Action.REOPEN, Action.REOPEN, Action.BEGIN),
    "complete, another": (Action.BEGIN, "finished prediction of another job", Action.BEGIN),
}
SHARD: dict[str, tuple[Action | str, Action | str, Action | str]] = {
    "empty": (Action.BEGIN, Action.BEGIN, Action.BEGIN),
    "foreign": ("holds no predictions", "holds no predictions", Action.BEGIN),
    "begun": (Action.RESUME, Action.RESUME, Action.RESTART),
    "begun, another": ("other weights", "other weights", Action.BEGIN),
    "another number": ("4 parts, not 3", "4 parts, not 3", Action.BEGIN),
    "another of one, some done": ("other weights", "other weights", Action.BEGIN),
    "another of one, nothing done": ("other weights", "other weights", Action.BEGIN),
    "complete": (Action.ANSWER, Action.ANSWER, Action.ANSWER),
    "complete, another": (Action.BEGIN, "finished prediction of another job", Action.BEGIN),
}


@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "shard"])
@pytest.mark.parametrize("state", STATES)
def test_every_state_and_wish_has_its_step(state: str, is_alone: bool) -> None:
    for expected, options in zip((ALONE if is_alone else SHARD)[state], HOWS.values(), strict=True):
        wish = Wish(Shard(0, 1) if is_alone else Shard(0, 3), is_alone=is_alone, **options)
        if isinstance(expected, Action):
            assert decide(OUT, STATES[state], wish) is expected
        else:
            with pytest.raises(UsageError, match=expected):
                decide(OUT, STATES[state], wish)


def test_the_table_has_a_step_for_each_of_six_wishes_and_overwriting_is_never_refused() -> None:
    for row in parts.TABLE.values():
        assert len(row) == 6 and Action.REFUSE not in {row[2], row[5]}
    assert {*itertools.chain(*parts.TABLE.values())} == {*Action}, "a step that nothing leads to"


@pytest.fixture
def other(data: Manifest) -> Job:
    return job_of(data, batch=3)


def begin(job: Job, out: Path, *, count: int = 1) -> None:
    """A part that is begun, and cut short after one line."""
    wish = Wish(Shard(0, count), is_alone=count == 1)
    with parts.PredictionFolder(out, job, wish) as folder, folder.begin() as part:
        assert part is not None
        documents.append_json_line(part.ledger, {"id": job.scenes[0].id, "status": "done"})
    (part.folder / parts.DONE).unlink()


def test_folders_are_read_as_what_they_hold(job: Job, other: Job, out: Path) -> None:
    assert look(out, job, parts=1) == Empty()
    out.mkdir()
    (out / ".lock").touch()
    (out / "errors.jsonl").touch()
    assert look(out, job, parts=1) == Empty()
    (out / "thesis.txt").write_text("years of work")
    assert look(out, job, parts=1) == Foreign()
    (out / "thesis.txt").unlink()
    begin(job, out)
    assert look(out, job, parts=1) == Begun(1)
    assert look(out, job, parts=3) == Begun(1, ("1 part, not 3",), scenes_done=1)
    assert look(out, other, parts=1) == Begun(1, ("other --batch",), scenes_done=1)
    report = run(job, out, RunOptions("cpu", workers=0))
    assert report is not None
    assert look(out, job, parts=1) == look(out, job, parts=3) == Complete(report, is_wanted=True)
    assert look(out, other, parts=1) == Complete(report, is_wanted=False)
    # What a merge leaves that is killed at its very end.
    (out / PARTS / "0-of-1").mkdir(parents=True)
    assert look(out, job, parts=1) == Complete(report, is_wanted=True)
    (out / SUCCESS).write_text("{")
    assert look(out, job, parts=1) == Complete({}, is_wanted=False)
    (out / SUCCESS).unlink()
    assert look(out, job, parts=1) == Empty()
    (out / LEDGER).unlink()
    assert look(out, job, parts=1) == Empty()


def test_a_file_is_no_folder(job: Job, out: Path) -> None:
    out.touch()
    with pytest.raises(UsageError, match="is a file; give a folder"):
        look(out, job, parts=1)


def make(state: str, job: Job, other: Job, out: Path) -> None:
    """A folder in a state."""
    match state:
        case "foreign":
            out.mkdir()
            (out / "thesis.txt").write_text("years of work")
        case "begun" | "begun, three":
            begin(job, out, count=3 if state.endswith("three") else 1)
        case "another" | "another, three":
            begin(other, out, count=3 if state.endswith("three") else 1)
        case "complete" | "complete, another":
            run(job if state == "complete" else other, out, RunOptions("cpu", workers=0))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "state",
    ["empty", "foreign", "begun", "begun, three", "another", "another, three", "complete", "complete, another"],
)
def test_a_real_folder_is_left_as_it_was_or_ends_with_what_was_wanted(
    job: Job, other: Job, tmp_path: Path, state: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, whatever was there before; and what is not ours stays in any case."""
    monkeypatch.chdir(tmp_path)
    run(job, Path("whole"), RunOptions("cpu", workers=0))
    whole = {name: content for name, content in tree(Path("whole")).items() if name != SUCCESS}
    for count in (1, 3):
        out = Path(f"out{count}")
        make(state, job, other, out)
        before = tree(out)
        try:
            for index in range(count):
                shard = None if count == 1 else Shard(index, count)
                run(job, out, RunOptions("cpu", workers=0, shard=shard, **HOWS[how]))
        except MemorySamError as error:
            assert isinstance(error, UsageError)
            before["errors.jsonl"] = tree(out).get("errors.jsonl", b"")
            assert tree(out) | {"errors.jsonl": before["errors.jsonl"]} == before
        else:
            found = tree(out)
            assert found.pop("thesis.txt", b"years of work") == b"years of work"
            assert documents.read_json(out / SUCCESS)["job"] == job.sha256
            assert {name: content for name, content in found.items() if name not in {SUCCESS, "errors.jsonl"}} == whole
