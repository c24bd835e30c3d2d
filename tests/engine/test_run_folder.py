"""Runs are found by their exact names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.errors import DataError, WeightsError
from memorysam_cli.storage import lock

from .stand_ins import PLANS, write_data


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_newest_run_of_deliver_is_none_of_deliver_rgbd() -> None:
    wanted = run_folder.create(recipes.load("deliver"), None)
    run_folder.create(recipes.load("deliver-rgbd"), None)
    found = run_folder.newest("deliver")
    assert found is not None and found.path == wanted.path
    assert run_folder.newest("mcubes") is None


def test_runs_of_one_second_have_different_folders_and_the_later_one_is_newest() -> None:
    first, second = (run_folder.create(recipes.load("demo"), None) for _ in range(2))
    assert first.path != second.path
    os.utime(first.path / run_folder.RECIPE, (1, 1))
    found = run_folder.newest("demo")
    assert found is not None and found.path == second.path


def test_a_stored_recipe_is_read_back_as_it_was() -> None:
    recipe = recipes.load("mcubes", ["optim.lr=1e-5"])
    run = run_folder.create(recipe, None)
    assert recipes.load(run.path / run_folder.RECIPE) == recipe


def test_latest_points_to_the_last_and_survives_a_move_of_the_whole_tree() -> None:
    for name in ("runs/a", "runs/b"):
        run_folder.point_latest(Path(name))
    assert Path("runs/latest").readlink() == Path("b")


def made(name: str, *, finished: bool = False) -> RunFolder:
    run = run_folder.create(recipes.load("demo"), Path(name))
    run.checkpoints.mkdir()
    run.best.touch()
    if finished:
        run.result.touch()
    return run


def test_latest_is_unfinished_only_until_a_run_has_finished() -> None:
    for name, finished, latest in (("a", False, "a"), ("b", False, "b"), ("c", True, "c"), ("d", False, "c")):
        run = made(f"runs/{name}", finished=finished)
        run_folder.note_begun(run.path)
        if finished:
            run_folder.point_latest(run.path)  # as a training run does at its end
        assert Path("runs/latest").resolve().name == latest, f"after {name}"
    run_folder.point_latest(Path("runs/a"))
    assert Path("runs/latest").resolve().name == "a", "the last one that finished"


def test_the_weights_that_are_taken_are_told_with_their_run(capsys: pytest.CaptureFixture[str]) -> None:
    run_folder.note_begun(made("runs/a").path)
    assert run_folder.default_weights() == Path("runs/a/checkpoints/best.safetensors")
    run_folder.tell_default(run_folder.default_weights())
    assert "weights of runs/a, which has not finished" in capsys.readouterr().err
    made("elsewhere", finished=True)
    run_folder.point_latest(Path("elsewhere"))
    assert run_folder.default_weights() == Path("elsewhere/checkpoints/best.safetensors")
    run_folder.tell_default(run_folder.default_weights())
    assert "weights of elsewhere, which finished" in capsys.readouterr().err


def test_a_run_at_work_is_watched_before_the_one_that_finished() -> None:
    made("runs/old", finished=True)
    run_folder.point_latest(Path("runs/old"))
    run_folder.note_begun(made("runs/new").path)
    assert run_folder.watched_by_default() == Path("runs/old"), "nobody is at work in the new one"
    with lock.hold(Path("runs/new")):
        assert run_folder.watched_by_default() == Path("runs/new")


def prepared(root: str) -> Manifest:
    return write_data(Path(root), PLANS[:1])


def test_the_data_root_of_a_run_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made("run").path.absolute()
    RunFolder(run).store_data(prepared("here/data"))
    assert run_folder.data_root(None, None) == Path("data")
    assert run_folder.data_root(run, None) == tmp_path / "here/data"
    assert run_folder.data_root(run, Path("other")) == Path("other"), "--data decides"
    monkeypatch.setenv("MEMORYSAM_DATA", "other")
    assert run_folder.data_root(run, None) == tmp_path / "here/data", "the run's own, whatever is usual here"
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(DataError, match=r"data set 'tiny' below .*here/data, which no longer exists .*--data ROOT"):
        run_folder.data_root(run, None)
    monkeypatch.setenv("MEMORYSAM_DATA", "there/data")
    assert run_folder.data_root(run, None) == Path("there/data")
    assert "is not below" in capsys.readouterr().err
    RunFolder(run).data.write_text('{"root": 3}')
    with pytest.raises(DataError, match=r"data\.json: is not as this version"):
        run_folder.data_root(run, None)
    RunFolder(run).data.unlink()  # a run of an earlier version
    assert run_folder.data_root(run, None) == Path("there/data")


def test_weights_in_a_run_know_it_from_wherever_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder.create(recipes.load("demo"), None)
    run.checkpoints.mkdir()
    run.best.touch()
    assert run_folder.run_of(run.best) == run.path.resolve()
    whole = run.path.resolve()
    monkeypatch.chdir(run.checkpoints)
    assert run_folder.run_of(Path("best.safetensors")) == whole
    assert run_folder.run_of(Path("/elsewhere/best.safetensors")) is None


def test_no_weights_says_how_to_get_some() -> None:
    with pytest.raises(WeightsError, match=r"does not exist; give --weights FILE, or train first: memorysam prepare"):
        run_folder.default_weights()


def test_a_validation_still_to_come_is_forgotten_with_the_rows_after_it() -> None:
    run = RunFolder(Path("run"))
    for step in (1, 2, 3):
        run.log_metrics({"step": step, "epoch": 0}, {"loss": float("nan") if step == 3 else 1.0})
        run.log_metrics({"step": step, "epoch": 0}, {"miou": 5.0})
    assert '"loss":null' in run.metrics.read_text().replace(" ", "")
    run.forget_metrics_after(2, validated=True)
    assert run.metrics.read_text().count("miou") == 2
    run.forget_metrics_after(2, validated=False)
    assert run.metrics.read_text().count("miou") == 1 and run.metrics.read_text().count("loss") == 2
