"""What needs no Ray; with it: test_ways."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from memorysam_cli.engine.predict import ray
from memorysam_cli.engine.predict.job import RunOptions

from ..stand_ins import write_data
from .jobs import job_of


def test_what_ray_prints_does_not_mix_with_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub = SimpleNamespace(
        is_initialized=lambda: False, init=lambda **_: None, shutdown=lambda: print("(raylet) leftovers")
    )
    monkeypatch.setattr(ray, "_quiet_import", lambda: stub)
    with ray._cluster():
        print("(raylet) Task failed")
    print("the answer")
    said = capsys.readouterr()
    assert said.out == "the answer\n" and said.err == "(raylet) Task failed\n(raylet) leftovers\n"


@pytest.mark.parametrize(
    ("text", "count"), [(None, 4), ("", 4), ("2", 2), ("3,2", 3), ("0", 4), ("many", 4), ("99", 8)]
)
def test_threads_of_an_actor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, count: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    if text is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
    stub = SimpleNamespace(
        cluster_resources=lambda: {"CPU": 8.0}, nodes=lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}]
    )
    monkeypatch.setattr(ray, "_quiet_import", lambda: stub)
    job = job_of(write_data(tmp_path / "data"))
    assert ray._resources(job, RunOptions("cpu")) == ("cpu", {"num_cpus": count})


def test_a_machine_that_does_not_see_the_working_folder_is_named(tmp_path: Path) -> None:
    job = job_of(write_data(tmp_path / "data"))
    actor = ray.Actor(job, tmp_path / "out", RunOptions("cpu"), "cpu", 1, str(tmp_path / "elsewhere"))
    assert actor.error is not None and actor.error["code"] == 6
    assert "elsewhere: cannot be entered on" in actor.error["message"]
