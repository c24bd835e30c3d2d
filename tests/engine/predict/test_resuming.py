"""A prediction that was cut short continues; one that is complete is answered at once; nothing else is believed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.predict import parts, segment
from memorysam_cli.engine.predict import run as running
from memorysam_cli.engine.predict.files import CLASSES, LEDGER, PARTS, SUCCESS, SceneFiles
from memorysam_cli.engine.predict.job import Job, RunOptions
from memorysam_cli.engine.predict.parts import PredictionFolder
from memorysam_cli.engine.surroundings import Shard
from memorysam_cli.errors import DataError, EnvironmentFault, FolderInUseError, UsageError
from memorysam_cli.storage import atomic, documents, lock

from .jobs import Killed, Steps, job_of, tree

pytestmark = pytest.mark.usefixtures("light_network")

PART = Path("out", PARTS, "0-of-1", LEDGER)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scenes that are segmented, one after the other."""
    write, found = SceneFiles.write, []

    def noted(self: SceneFiles, scene: Any, *arguments: Any, **options: Any) -> Any:
        found.append(scene.id)
        return write(self, scene, *arguments, **options)

    monkeypatch.setattr(SceneFiles, "write", noted)
    return found


def predict(job: Job, out: Path, **options: Any) -> dict[str, Any]:
    report = running.run(job, out, RunOptions("cpu", workers=0, **options))
    assert report is not None
    return report


def whole(job: Job, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, bytes]:
    """What a run leaves that nobody disturbs, elsewhere."""
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(Path.cwd().parent / "there")
        predict(job, out, **options)
        return tree(out)


def cut(job: Job, out: Path, *, after: int, **options: Any) -> None:
    """A run that is killed after so many lines; of the scenes behind them some files are there already."""
    do = segment.segment_scenes

    def dying(*arguments: Any, tell: Callable[[Any], object], **others: Any) -> None:
        count = 0

        def telling(line: Any) -> None:
            nonlocal count
            if count == after:
                raise Killed
            count += 1
            tell(line)

        # As under a real kill nothing is undone.
        with pytest.MonkeyPatch.context() as fragile:
            fragile.setattr(segment, "remove", lambda *_: None)
            do(*arguments, tell=telling, **others)

    with pytest.MonkeyPatch.context() as fragile, contextlib.suppress(Killed):
        fragile.setattr(segment, "segment_scenes", dying)
        predict(job, out, **options)


def clean(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in found.items() if name != lock.FAULTS}


@pytest.mark.parametrize("after", range(6))
def test_the_same_command_goes_on_in_whole_groups_and_ends_with_the_same_bytes(
    job: Job, out: Path, computed: list[str], after: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    expected = whole(job, out, monkeypatch)
    cut(job, out, after=after)
    assert not (out / SUCCESS).exists() and len(PART.read_text().splitlines()) == after
    computed.clear()
    report = predict(job, out)
    kept = after // job.batch * job.batch
    assert computed == [scene.id for scene in job.scenes[kept:]]
    assert tree(out) == expected and report == documents.read_json(out / SUCCESS)
    assert (f"continues: {kept} of 6 scenes done" in capsys.readouterr().err) == (kept > 0)


def test_a_complete_prediction_is_answered_from_its_report_without_weights(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, before = predict(job, out), tree(out)
    monkeypatch.setattr(Job, "load", lambda *_: pytest.fail("loaded"))
    assert predict(job, out) == report and tree(out) == before
    assert "already complete" in capsys.readouterr().err


def test_overwriting_begins_anew_finished_or_not(job: Job, out: Path, computed: list[str]) -> None:
    predict(job, out)
    before = tree(out)
    for _ in range(2):
        computed.clear()
        predict(job, out, overwrite=True)
        assert len(computed) == 6 and tree(out) == before
        (out / SUCCESS).unlink()
    cut(job, out, after=4)
    computed.clear()
    predict(job, out, overwrite=True)
    assert len(computed) == 6 and tree(out) == before


def test_an_unfinished_prediction_of_another_job_is_refused_by_name_and_untouched(
    data: Manifest, job: Job, out: Path
) -> None:
    cut(job, out, after=4)
    before = clean(tree(out))
    with pytest.raises(UsageError, match=r"holds 4 scenes of another prediction \(other --batch\)"):
        predict(job_of(data, batch=3), out)
    assert clean(tree(out)) == before


def test_an_unfinished_prediction_of_another_job_goes_with_all_its_files_if_that_is_asked(
    data: Manifest, job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = job_of(data, scenes=data.scenes[:1])
    expected = whole(other, out, monkeypatch)
    cut(job, out, after=1)
    assert len(list(out.rglob("*.png"))) > 1, "files that no line names"
    (out / "masks/mine.png").write_text("years of work")
    predict(other, out, overwrite=True)
    found = tree(out)
    assert found.pop("masks/mine.png") == b"years of work" and found == expected


def test_an_unfinished_prediction_of_which_nothing_is_done_gives_way(
    data: Manifest, job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = job_of(data, batch=3)
    expected = whole(other, out, monkeypatch)
    cut(job, out, after=0)
    predict(other, out)
    assert tree(out) == expected


def test_resume_goes_on_or_begins_and_replaces_nothing(data: Manifest, job: Job, out: Path) -> None:
    predict(job, out, resume=True)
    before = tree(out)
    with pytest.raises(UsageError, match="finished prediction of another job"):
        predict(job_of(data, batch=3), out, resume=True)
    with pytest.raises(UsageError, match="finished prediction of another job"):
        predict(job_of(data, batch=3), out, resume=True, shard=Shard(0, 2))
    assert clean(tree(out)) == before
    (out / SUCCESS).unlink()
    cut(job, out, after=2, overwrite=True)
    predict(job, out, resume=True)
    assert clean(tree(out)) == before


def test_only_what_was_mended_is_tried_again(
    data: Manifest, job: Job, out: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = clean(whole(job, out, monkeypatch))
    bad = [data.root / data.scenes[place].files["img"][0] for place in (0, 3)]
    content = [path.read_bytes() for path in bad]
    times = [path.stat() for path in bad]
    for path in bad:
        path.write_bytes(b"")
    report = predict(job, out, skip_bad=True)
    assert report["failed"] == 2 and len(computed) == 4 + 6
    computed.clear()
    assert predict(job, out, skip_bad=True) == report and not computed
    restore(bad[1], content[1], times[1])
    assert predict(job, out, skip_bad=True)["failed"] == 1
    assert computed == [scene.id for scene in data.scenes[2:4]]
    with pytest.raises(DataError, match="--on-error skip"):
        predict(job, out)
    restore(bad[0], content[0], times[0])
    assert predict(job, out)["failed"] == 0
    assert clean(tree(out)) == expected


def restore(path: Path, content: bytes, facts: Any) -> None:
    """Put a file back as it was, with its time."""
    import os

    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_file_that_vanishes_is_missing_in_the_ledger(data: Manifest, job: Job, out: Path) -> None:
    (data.root / data.scenes[1].files["depth"][0]).unlink()
    report = predict(job, out, skip_bad=True)
    lines = documents.read_json_lines(out / LEDGER)
    assert [line["status"] for line in lines] == ["done", "missing", *["done"] * 4]
    assert report["failed"] == 1 and "000002.png" in report["failures"][0]["error"]


def test_scenes_whose_inputs_have_changed_are_done_again(
    data: Manifest, job: Job, out: Path, computed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    predict(job, out)
    changed, other = (data.root / data.scenes[place].files["img"][0] for place in (4, 3))
    changed.write_bytes(other.read_bytes())
    computed.clear()
    capsys.readouterr()
    predict(job, out)
    assert computed == [scene.id for scene in data.scenes[4:6]]
    assert "inputs have changed" in capsys.readouterr().err
    assert [line["id"] for line in documents.read_json_lines(out / LEDGER)] == [scene.id for scene in data.scenes]


@pytest.mark.parametrize("how", ["gone", "empty", "a link", "a folder"])
def test_masks_that_are_gone_or_no_files_of_ours_are_made_again(
    job: Job, out: Path, computed: list[str], how: str, tmp_path: Path
) -> None:
    predict(job, out)
    before = tree(out)
    mask = out / "masks" / f"{job.scenes[2].id}.png"
    (tmp_path / "victim.png").write_bytes(mask.read_bytes())
    mask.unlink()
    if how == "empty":
        mask.touch()
    if how == "a link":
        mask.symlink_to(tmp_path / "victim.png")
    if how == "a folder":
        mask.mkdir()
        with pytest.raises(EnvironmentFault, match="it is a folder"):
            predict(job, out)
        mask.rmdir()
    computed.clear()
    predict(job, out)
    assert computed == [scene.id for scene in job.scenes[2:4]] and clean(tree(out)) == before
    assert (tmp_path / "victim.png").read_bytes() == mask.read_bytes() and not mask.is_symlink()


def edited(line: dict[str, Any], **changes: Any) -> bytes:
    return documents.to_json({**line, **changes}).encode() + b"\n"


HOSTILE: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "no JSON": lambda _: b"{{{\n",
    "not an object": lambda _: b"[1]\n",
    "not UTF-8": lambda _: b"\xff\xfe\n",
    "deep": lambda _: b"[" * 100_000 + b"\n",
    "a path outside": lambda line: edited(line, mask="masks/../../victim.png"),
    "an absolute path": lambda line: edited(line, mask="/etc/passwd"),
    "another scene's mask": lambda line: edited(line, mask="masks/fog/val/a/000002.png"),
    "a scene that is none": lambda line: edited(line, id="nobody"),
    "an id that is not text": lambda line: edited(line, id=[1]),
    "a status that is none": lambda line: edited(line, status="skipped"),
    "a failure that is none": lambda line: edited(line, status="failed", error="cut"),
    "pixels that do not add up": lambda line: edited(line, classes={"0": 1}),
    "a class that is none": lambda line: edited(line, classes={"99": 97 * 131}),
    "negative pixels": lambda line: edited(line, classes={"0": -1, "1": 97 * 131 + 1}),
    "a size of text": lambda line: edited(line, size=["97", "131"]),
    "a key more": lambda line: edited(line, more=1),
    "other blanks": lambda line: json.dumps(line, indent=None, separators=(",", ":")).encode() + b"\n",
    "another stamp": lambda line: edited(line, stamp="0" * 16),
    "no stamp": lambda line: edited(line, stamp=""),
}


FINISHED = ("not UTF-8", "a path outside", "another scene's mask", "pixels that do not add up", "another stamp")
"""Of a finished prediction, whose lines are looked at alike, these are always tried."""


@pytest.mark.parametrize(
    ("what", "is_finished"),
    [
        *(pytest.param(what, False, id=f"unfinished-{what}") for what in HOSTILE),
        *(
            pytest.param(what, True, id=f"finished-{what}", marks=[pytest.mark.slow] * (what not in FINISHED))
            for what in HOSTILE
        ),
    ],
)
def test_an_edited_line_skips_nothing_and_removes_nothing(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch, what: str, is_finished: bool
) -> None:
    expected = whole(job, out, monkeypatch)
    cut(job, out, after=6 if is_finished else 4)
    ledger = out / LEDGER if is_finished else PART
    first, *rest = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(HOSTILE[what](json.loads(first)) + b"".join(rest))
    victim = Path("victim.png")
    victim.write_text("precious")
    assert predict(job, out, skip_bad=True)["done"] == 6
    assert tree(out) == expected and victim.read_text() == "precious"


def test_a_line_that_is_there_twice_counts_once(job: Job, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(job, out, monkeypatch)
    cut(job, out, after=4)
    PART.write_bytes(PART.read_bytes() * 2)
    predict(job, out)
    assert tree(out) == expected


def test_a_torn_line_is_done_again_and_not_told(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = whole(job, out, monkeypatch)
    cut(job, out, after=4)
    PART.write_bytes(PART.read_bytes()[:-9])
    capsys.readouterr()
    predict(job, out)
    assert tree(out) == expected and "warning" not in capsys.readouterr().err


def test_what_dead_writers_left_goes_and_what_is_not_ours_stays(job: Job, out: Path) -> None:
    cut(job, out, after=2)
    dead = [
        out / "masks/fog/val/a/.000001.png.tmp-host-99-0123abcd",
        out / f".{SUCCESS}.tmp-host-99-0123abcd",
        out / f".{CLASSES}.tmp-host-99-0123abcd",
    ]
    kept = [out / "masks/mine.png", out / "masks/fog/.hidden", out / "notes.txt", out / ".notes.tmp-host-99-0123abcd"]
    for path in (*dead, *kept):
        path.touch()
    predict(job, out)
    assert not [path for path in dead if path.exists()] and all(path.exists() for path in kept)


def test_files_of_a_scene_that_cannot_be_read_any_more_go(data: Manifest, job: Job, out: Path) -> None:
    cut(job, out, after=0)
    mask = out / "masks" / f"{data.scenes[0].id}.png"
    assert mask.exists(), "written, and killed before its line"
    (data.root / data.scenes[0].files["img"][0]).write_bytes(b"")
    report = predict(job, out, skip_bad=True)
    assert not mask.exists() and report["laws"]["files in the trees = files named by the ledger"]["left"] == 5


def test_a_mask_that_somebody_removes_meanwhile_is_no_success_and_is_made_again(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(job, out, monkeypatch)
    finish, mask = PredictionFolder.finish, out / "masks" / f"{job.scenes[5].id}.png"

    def robbed(folder: PredictionFolder) -> None:
        mask.unlink()
        finish(folder)

    with monkeypatch.context() as fragile, pytest.raises(EnvironmentFault, match="is gone since it was written"):
        fragile.setattr(PredictionFolder, "finish", robbed)
        predict(job, out)
    assert not (out / SUCCESS).exists()
    predict(job, out)
    assert clean(tree(out)) == expected


def test_a_shard_that_was_killed_goes_on(
    job: Job, out: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(job_of_one(job), out, monkeypatch)
    cut(job_of_one(job), out, after=2, shard=Shard(1, 2))
    computed.clear()
    predict(job_of_one(job), out, shard=Shard(1, 2))
    assert computed == [job.scenes[5].id]
    predict(job_of_one(job), out, shard=Shard(0, 2))
    assert tree(out) == expected


def job_of_one(job: Job) -> Job:
    """The same, one scene at a time."""
    import dataclasses

    return dataclasses.replace(job, batch=1)


def test_a_shard_tells_how_scenes_that_were_left_out_are_tried_again(
    data: Manifest, job: Job, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data.root / data.scenes[0].files["img"][0]).write_bytes(b"")
    predict(job, out, skip_bad=True)
    capsys.readouterr()
    predict(job, out, skip_bad=True, shard=Shard(0, 2))
    assert "without --shard, the 1 scene left out will be tried again" in capsys.readouterr().err


def test_all_devices_that_took_part_are_named(job: Job, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(running, "device_name", lambda _: "an older GPU")
        cut(job, out, after=2)
    assert predict(job, out)["device"] == "an older GPU + cpu"


def test_a_kill_while_a_complete_prediction_is_taken_up_again_loses_nothing(
    data: Manifest, job: Job, out: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(job, out)
    before = tree(out)
    mask = out / "masks" / f"{job.scenes[5].id}.png"
    for moment in range(100):
        mask.unlink()
        step = Steps(moment)

        with monkeypatch.context() as fragile, contextlib.suppress(Killed):
            fragile.setattr(segment, "segment_scenes", step.kill)  # what follows is any part's work
            fragile.setattr(atomic, "write_bytes", step(atomic.write_bytes))
            fragile.setattr(atomic, "write_pieces", step(atomic.write_pieces))
            fragile.setattr(Path, "replace", step(Path.replace))
            fragile.setattr(Path, "unlink", step(Path.unlink))
            predict(job, out)
        computed.clear()
        predict(job, out)
        assert computed == [scene.id for scene in data.scenes[4:6]] and tree(out) == before
        if step.is_through:
            break
    assert moment >= 4


def test_another_prediction_that_is_at_work_is_in_use_not_refused(data: Manifest, job: Job, out: Path) -> None:
    cut(job, out, after=4)
    with lock.hold(out), pytest.raises(FolderInUseError):
        predict(job_of(data, batch=3), out)


def test_a_run_without_shards_that_is_at_work_is_not_waited_for(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(job, out, after=4)
    monkeypatch.setattr(parts, "SHORT_PATIENCE_S", 0.1)
    with lock.hold(out), pytest.raises(FolderInUseError):
        predict(job, out, shard=Shard(0, 1))
