"""Runs are found by their exact names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.errors import WeightsError


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
