from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.engine import processes
from memorysam_cli.engine.predict import files as folder
from memorysam_cli.engine.predict import ledger as ledgers
from memorysam_cli.engine.predict import parts
from memorysam_cli.engine.predict import run as running
from memorysam_cli.engine.predict.files import PARTS
from memorysam_cli.engine.predict.job import Job, RunOptions
from memorysam_cli.engine.predict.parts import Foreign, PredictionFolder, Wish, look
from memorysam_cli.engine.surroundings import Shard, read_shard
from memorysam_cli.errors import DataError, FolderInUseError, Stopped, UsageError
from memorysam_cli.model.weights import Segmenter
from memorysam_cli.storage import atomic, documents, lock

from .jobs import Killed, Steps, job_of, tree

pytestmark = pytest.mark.usefixtures("light_network")


@pytest.fixture
def whole(job: Job, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What one process writes."""
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path / "there")
        running.run(job, out, RunOptions("cpu", workers=0))
        return tree(out)


def shard(job: Job, out: Path, index: int, count: int = 3, **options: Any) -> dict[str, Any]:
    report = running.run(job, out, RunOptions("cpu", workers=0, shard=Shard(index, count), **options))
    assert report is not None
    return report


def pretend(job: Job, out: Path, index: int, count: int = 3) -> None:
    """A part's work without a network: a line and a small file for each of its scenes."""
    with part_of(job, out, index, count).begin() as part:
        assert part is not None
        part.ledger.write_text("")
        for scene in part.shard.of(job.scenes, stride=job.stride):
            documents.append_json_line(part.ledger, pretended(job, out, scene))
        part.note_devices(["cpu"])


def part_of(job: Job, out: Path, index: int, count: int = 3, **options: Any) -> PredictionFolder:
    """The folder as one shard sees it."""
    own = Shard(index, count)
    return PredictionFolder(out, job, Wish(own, is_alone=False, run_shards=(own,), **options))


def merge(job: Job, out: Path, count: int = 3) -> dict[str, Any]:
    """What a shard does behind its work, and what it then answers."""
    folder_ = part_of(job, out, 0, count)
    folder_.finish()
    return folder_.report()


def pretended(job: Job, out: Path, scene: Scene) -> dict[str, Any]:
    """A scene's line and file, of one pixel."""
    files, names = job.files(out), [modality.name for modality in job.modalities]
    atomic.write_text(out / files.paths(scene)["mask"], "a mask")
    return {
        "id": scene.id, "status": "done", **files.paths(scene), "size": [1, 1], "modalities": names,
        "inputs": {name: list(scene.files[name]) for name in names}, "stamp": files.stamp(scene, names),
        "classes": {"0": 1},
    }  # fmt: skip


@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 5))
def test_shares_are_all_scenes_once_in_whole_groups(total: int, count: int, stride: int) -> None:
    scenes = [Scene(f"{number:03}", "", None, None, {}, None) for number in range(total)]
    shares = [Shard(index, count).of(scenes, stride=stride) for index in range(count)]
    assert sorted(scene.id for share in shares for scene in share) == [scene.id for scene in scenes]
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= stride
    for share in shares:
        for place in range(0, len(share), stride):
            assert scenes.index(share[place]) % stride == 0


def test_processes_divide_a_share_into_shares_of_the_whole() -> None:
    scenes = [Scene(f"{number:03}", "", None, None, {}, None) for number in range(20)]
    divided = [Shard(index, 2).divided(rank, 3) for index in range(2) for rank in range(3)]
    assert divided == [Shard(index, 6) for index in range(6)]
    found = [scene.id for share in divided for scene in share.of(scenes, stride=2)]
    assert sorted(found) == [scene.id for scene in scenes]


@pytest.mark.parametrize("text", ["4/4", "1", "1/", "/4", "a/4", "-1/4", "1/0", "0/0", "1/4/2", "²/4", " 1/4"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        read_shard(text)


def test_shards_count_from_zero() -> None:
    assert (read_shard("0/4"), read_shard("3/4"), read_shard(None)) == (Shard(0, 4), Shard(3, 4), None)
    with pytest.raises(UsageError, match="the last of 4 is 3/4"):
        read_shard("4/4")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 2, 0)], ids=str)
def test_shards_in_any_order_leave_what_one_process_does(
    job: Job, out: Path, whole: dict[str, bytes], order: tuple[int, ...]
) -> None:
    *first, last = order
    for index in first:
        report = shard(job, out, index)
        assert report["shard"] == {"index": index, "count": 3} and report["parts_missing"] > 0
        assert report["scenes"] == 2 and report["success"] is None
        assert not (out / folder.SUCCESS).exists() and not (out / folder.LEDGER).exists()
    merged = shard(job, out, last)
    assert tree(out) == whole
    assert merged == documents.read_json(out / folder.SUCCESS) and "shard" not in merged


def test_more_shards_than_scenes_are_fine(job: Job, out: Path, whole: dict[str, bytes]) -> None:
    for index in range(5):
        report = shard(job, out, index, 5)
    assert tree(out) == whole and report["scenes"] == 6


def test_scenes_that_were_left_out_are_listed_as_by_one_process(
    data: Manifest, job: Job, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (1, 4):
        (data.root / data.scenes[place].files["img"][0]).write_bytes(b"")
    for index in (2, 1, 0):
        shard(job, out, index, skip_bad=True)
    found = tree(out)
    monkeypatch.chdir(tmp_path / "there")
    running.run(job, out, RunOptions("cpu", workers=0, skip_bad=True))
    assert tree(out) == found
    assert len(documents.read_json(out / folder.SUCCESS)["failures"]) == 2


def test_a_shard_begun_anew_replaces_its_own_part_only(job: Job, out: Path) -> None:
    pretend(job, out, 0)
    pretend(job, out, 1)
    before = {name: data for name, data in tree(out).items() if "0-of-3" in name}
    mine, others = (out / "masks" / f"{job.scenes[place].id}.png" for place in (2, 0))
    for path in (mine, others):
        path.write_text("old")
    with contextlib.suppress(Killed), part_of(job, out, 1, overwrite=True).begin():
        raise Killed
    assert not mine.exists() and others.read_text() == "old"
    assert not (out / PARTS / "1-of-3" / parts.DONE).exists()
    assert {name: data for name, data in tree(out).items() if "0-of-3" in name} == before
    pretend(job, out, 1)
    assert merge(job, out)["parts_missing"] == 1


def test_parts_of_another_job_or_number_are_refused_by_name_and_nothing_is_touched(data: Manifest, out: Path) -> None:
    job = job_of(data)
    pretend(job, out, 0)
    before = tree(out)
    for other, count, words in (
        (job, 4, "3 parts, not 4"),
        (job_of(data, batch=3), 3, "other --batch"),
        (job_of(data, scenes=data.scenes[:5]), 3, "other scenes"),
        (job_of(data, weights_sha256="0" * 64), 3, "other weights"),
    ):
        with pytest.raises(UsageError, match=words):
            shard(other, out, 1, count)
        assert tree(out) == before and not (out / PARTS / f"1-of-{count}").exists()


def test_parts_of_another_job_can_be_dropped_with_all_that_they_made(data: Manifest, out: Path) -> None:
    pretend(job_of(data), out, 0, 4)
    pretend(job_of(data), out, 1, 4)
    job = job_of(data, batch=1)
    for index in range(4):
        shard(job, out, index, 4, overwrite=True)
    lines = documents.read_json_lines(out / folder.LEDGER)
    assert len(lines) == 6 and all("size" in line for line in lines) and not (out / PARTS).exists()
    assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == {line["mask"] for line in lines}


def test_overwriting_shards_of_one_job_do_not_drop_each_other(
    job: Job, out: Path, whole: dict[str, bytes]
) -> None:  # fmt: skip
    for index in range(3):
        shard(job, out, index, overwrite=True)
    assert tree(out) == whole


def test_overwriting_shards_at_once_drop_what_was_there_and_not_each_other(
    data: Manifest, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(job_of(data), out, 0)
    job, load = job_of(data, batch=1), Job.load
    loading = iter((1, 2))

    def meanwhile(self: Job, device: torch.device) -> Segmenter:
        for index in loading:
            shard(job, out, index, overwrite=True)
        return load(self, device)

    monkeypatch.setattr(Job, "load", meanwhile)
    shard(job, out, 0, overwrite=True)
    assert len(documents.read_json_lines(out / folder.LEDGER)) == 6 and not (out / PARTS).exists()


def test_a_run_without_shards_is_refused_where_parts_are_unless_it_may_overwrite(
    job: Job, out: Path, whole: dict[str, bytes]
) -> None:
    pretend(job, out, 0)
    before = tree(out)
    with pytest.raises(UsageError, match="holds 1 of 3 parts of a prediction in shards"):
        running.run(job, out, RunOptions("cpu", workers=0))
    assert tree(out) == before
    running.run(job, out, RunOptions("cpu", workers=0, overwrite=True))
    assert tree(out) == whole


def test_a_run_without_shards_drops_no_part_that_began_behind_its_back(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, begins = lock.hold, iter((0,))

    def late(place: Path) -> contextlib.AbstractContextManager[None]:
        for index in begins:
            pretend(job, out, index)
        return hold(place)

    monkeypatch.setattr(lock, "hold", late)
    with pytest.raises(UsageError, match="1 of 3 parts"):
        running.run(job, out, RunOptions("cpu", workers=0))
    assert (out / PARTS / "0-of-3" / parts.DONE).exists() and len(list((out / "masks").rglob("*.png"))) == 2


def test_a_word_of_another_process_leaves_no_line_without_its_files(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = iter((None, Stopped("process 1 failed", exit_code=3)))

    def notice(_: processes.Peers) -> None:
        fault = next(heard)
        if fault is not None:
            raise fault

    monkeypatch.setattr(processes.Peers, "notice", notice)
    with pytest.raises(Stopped):
        shard(job, out, 0, 1)
    lines = documents.read_json_lines(out / PARTS / "0-of-1" / folder.LEDGER)
    assert [line["id"] for line in lines] == [job.scenes[0].id]
    assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == {line["mask"] for line in lines}


def test_parts_at_work_are_not_dropped(job: Job, out: Path) -> None:
    pretend(job, out, 0)
    pretend(job, out, 1)
    with lock.hold(out / PARTS / "1-of-3"), pytest.raises(FolderInUseError, match="1-of-3"):
        running.run(job, out, RunOptions("cpu", workers=0, overwrite=True))
    assert len(list((out / "masks").rglob("*.png"))) == 4


def test_a_part_that_is_being_made_cannot_be_made_twice(job: Job, out: Path) -> None:
    with lock.hold(out / PARTS / "1-of-3"), pytest.raises(FolderInUseError, match="1-of-3"):
        shard(job, out, 1)


def test_shards_wait_for_each_other_and_refuse_a_folder_that_a_whole_run_uses(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SHORT_PATIENCE_S", 0.1)
    with lock.hold(out), pytest.raises(FolderInUseError):
        shard(job, out, 0)
    pretend(job, out, 0)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.hold(out):
            inside.set()
            leave.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert inside.wait(60)
    threading.Timer(0.3, leave.set).start()
    assert merge(job, out)["parts_missing"] == 2  # it waited longer than the short patience
    other.join()


def test_a_complete_prediction_is_not_made_again_by_a_shard(
    job: Job, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running.run(job, out, RunOptions("cpu", workers=0))
    before = tree(out)
    report = shard(job, out, 1)
    assert "already complete" in capsys.readouterr().err
    assert tree(out) == before and report == documents.read_json(out / folder.SUCCESS)


def test_the_first_shard_removes_what_another_prediction_left(data: Manifest, job: Job, out: Path) -> None:
    running.run(job, out, RunOptions("cpu", workers=0))
    other = job_of(data, scenes=data.scenes[:3], batch=1)
    for index in range(3):
        shard(other, out, index)
    assert len(list((out / "masks").rglob("*.png"))) == 3


def test_a_shard_killed_while_it_clears_the_folder_leaves_the_rest_to_the_next(
    data: Manifest, job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.run(job, out, RunOptions("cpu", workers=0))
    other = job_of(data, scenes=data.scenes[:3], batch=1)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as fragile, pytest.raises(Killed):
        fragile.setattr(folder, "remove", killed)
        shard(other, out, 0)
    for index in (1, 0, 2):
        shard(other, out, index)
    assert len(list((out / "masks").rglob("*.png"))) == 3


@pytest.mark.parametrize("before", ["nothing", "whole", "parts"])
def test_a_run_killed_while_it_clears_the_folder_can_be_given_again(
    data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    job, old = job_of(data, scenes=data.scenes[:1]), job_of(data, scenes=data.scenes[1:3])
    for moment in range(100):
        out = tmp_path / f"out{moment}"
        if before == "whole":
            running.run(old, out, RunOptions("cpu", workers=0))
        if before == "parts":
            pretend(old, out, 0, 2)
        step, options = Steps(moment), RunOptions("cpu", workers=0, overwrite=before == "parts")

        with monkeypatch.context() as fragile, contextlib.suppress(Killed):
            fragile.setattr(atomic, "write_bytes", step(atomic.write_bytes))
            fragile.setattr(parts.shutil, "rmtree", step(parts.shutil.rmtree))
            fragile.setattr(Path, "unlink", step(Path.unlink))
            running.run(job, out, options)
        assert look(out, job, parts=1) != Foreign()
        running.run(job, out, options)
        assert [path.name for path in out.rglob("*.png")] == [f"{data.scenes[0].id}.png".rpartition("/")[2]]
        if step.count <= moment:
            break
    assert moment >= 3


def test_a_merge_killed_at_any_moment_is_done_again_with_the_same_result(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, kills = [], 0
    for moment in range(100):
        out = Path("out")
        place = tmp_path / str(moment)
        place.mkdir()
        monkeypatch.chdir(place)
        for index in range(3):
            pretend(job, out, index)
        step = Steps(moment)

        with monkeypatch.context() as fragile:
            fragile.setattr(atomic, "write_bytes", step(atomic.write_bytes))
            fragile.setattr(parts.shutil, "rmtree", step(parts.shutil.rmtree))
            fragile.setattr(atomic, "new_file", step(atomic.new_file))
            fragile.setattr(Path, "unlink", step(Path.unlink))
            try:
                merge(job, out)
                is_killed = False
            except Killed:
                is_killed = True
                kills += 1
        assert merge(job, out)["success"] is not None
        found.append(tree(out))
        assert not (out / PARTS).exists()
        if not is_killed:
            break
    assert kills >= 4 and all(each == found[0] for each in found)


def test_a_part_whose_ledger_lost_a_line_is_named_and_nothing_is_merged(job: Job, out: Path) -> None:
    for index in range(3):
        pretend(job, out, index)
    ledger = out / PARTS / "1-of-3" / folder.LEDGER
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    with pytest.raises(DataError, match=r"has no line for scene .*--shard 1/3"):
        merge(job, out)
    assert not (out / folder.LEDGER).exists() and not (out / folder.SUCCESS).exists()
    pretend(job, out, 1)
    assert merge(job, out)["success"] is not None


def test_ledgers_longer_than_what_is_held_are_merged_whole(
    job: Job, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "READ_AHEAD", 100)
    for index in range(2):
        pretend(job, out, index, 2)
    merge(job, out, 2)
    ids = [line["id"] for line in documents.read_json_lines(out / folder.LEDGER)]
    assert ids == [scene.id for scene in job.scenes]
