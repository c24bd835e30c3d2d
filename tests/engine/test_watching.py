from __future__ import annotations

import os
from pathlib import Path

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.run_folder import RunFolder, Watch
from memorysam_cli.errors import UsageError
from memorysam_cli.storage import documents, lock


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.store_recipe(recipes.load("demo"))
    documents.write_json(found.extent, {"scenes_per_step": 8, "steps_per_epoch": 18, "last_step": 144})
    return found


def learn(run: RunFolder, *steps: int) -> None:
    for step in steps:
        figures = {"loss": 3.0 / step, "spmm": 0.1, "lr": 1e-3, "scenes_per_second": 4.0, "peak_memory_gb": 1.0}
        run.log_metrics({"step": step, "epoch": (step - 1) // 18}, figures)


def test_a_run_that_only_began_is_looked_at(run: RunFolder) -> None:
    look = Watch(run.path).look()
    assert (look.state, look.step, look.last_step, look.latest, look.best_miou) == ("stopped", 0, 144, {}, None)


def test_each_look_takes_in_what_is_new_and_leaves_a_torn_line(run: RunFolder) -> None:
    watch = Watch(run.path)
    learn(run, 1, 2)
    assert watch.look().step == 2
    learn(run, 3)
    with run.metrics.open("ab") as stream:
        stream.write(b'{"step": 4, "epoch": 0, "los')
    look = watch.look()
    assert look.step == 3 and look.series["loss"] == [3.0, 1.5, 1.0]
    with run.metrics.open("ab") as stream:
        stream.write(b's": 0.5}\n')
    assert watch.look().series["loss"][-1] == 0.5


def test_rows_that_a_resumed_run_drops_are_forgotten(run: RunFolder) -> None:
    watch = Watch(run.path)
    learn(run, *range(1, 11))
    assert watch.look().step == 10
    run.forget_metrics_after(4, validated=True)
    assert watch.look().step == 4 and len(watch.look().series["loss"]) == 4


def test_the_best_validation_is_kept_and_a_nan_is_none(run: RunFolder) -> None:
    learn(run, 18)
    for step, miou in ((18, 20.0), (36, 30.0), (54, float("nan")), (72, 25.0)):
        run.log_metrics({"step": step, "epoch": step // 18}, {"miou": miou})
    look = Watch(run.path).look()
    assert (look.best_miou, look.best_step) == (30.0, 36)
    assert look.series["miou"] == [20.0, 30.0, None, 25.0]


def test_who_runs_is_seen_and_the_time_that_is_left(run: RunFolder) -> None:
    learn(run, 44)
    with lock.hold(run.path):
        before = (run.path / lock.NAME).read_bytes()
        look = Watch(run.path).look()
        assert (run.path / lock.NAME).read_bytes() == before
    assert look.state == "running" and look.owner is not None
    assert (look.owner.pid, look.owner.lives) == (os.getpid(), True)
    assert look.seconds_left == pytest.approx(100 * 8 / 4.0)
    assert Watch(run.path).look().state == "stopped"


def test_an_owner_that_was_killed_runs_no_longer(run: RunFolder) -> None:
    with lock.hold(run.path):
        record = documents.read_json(run.path / lock.NAME)
    (run.path / lock.NAME).write_text(documents.to_json({**record, "pid": 2**22 - 1}))
    assert Watch(run.path).look().state == "stopped"
    (run.path / lock.NAME).write_text(documents.to_json({**record, "where": "another machine"}))
    look = Watch(run.path).look()
    assert look.state == "running" and look.owner is not None and look.owner.lives is None


def test_a_finished_and_a_diverged_run_are_told_apart(run: RunFolder) -> None:
    documents.write_json(run.diverged, {})
    assert Watch(run.path).look().state == "diverged"
    documents.write_json(run.result, {})
    assert Watch(run.path).look().state == "finished"


def test_nothing_is_written_and_what_is_no_run_is_refused(run: RunFolder, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*"))
    Watch(run.path).look()
    assert sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*")) == before
    with pytest.raises(UsageError, match="holds no run"):
        Watch(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        Watch(tmp_path / "nowhere")
