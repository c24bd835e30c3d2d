"""Scenes that cannot be read: told once, listed once, and no more than were allowed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.data import decode
from memorysam_cli.data.loader import Batch, LeftOut
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.endings import Quarantine
from memorysam_cli.errors import DataError
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import documents

from .test_trainer import accelerator, changed, gone_on, start, state_of


def lacking(*scenes: str) -> Batch:
    return Batch([], None, (), tuple(LeftOut(scene, f"{scene}.png: is cut; fix it") for scene in scenes))


def quarantine(run: Path, share: float = 0.5) -> Quarantine:
    return Quarantine(RunFolder(run), share=share, scenes=4, accelerator=accelerator())


def test_a_scene_is_told_and_listed_once_also_over_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        listed = quarantine(tmp_path)
        listed.admit([lacking("a"), lacking("a", "b"), lacking()], step=step)
        assert len(listed) == 2
    rows = documents.read_json_lines(tmp_path / "quarantine.jsonl")
    assert [(row["scene"], row["step"]) for row in rows] == [("a", 1), ("b", 1)]
    assert capsys.readouterr().err.count("memorysam: warning: scene a: cannot be read") == 1


def test_more_than_allowed_end_the_run_with_3_and_are_named(tmp_path: Path) -> None:
    listed = quarantine(tmp_path)
    listed.admit([lacking("a", "b")], step=1)
    with pytest.raises(DataError, match=r"3 of 4 training scenes .* data\.max_bad=0\.5 .* a\.png: .* c\.png: is cut"):
        listed.admit([lacking("c")], step=2)
    assert len(documents.read_json_lines(tmp_path / "quarantine.jsonl")) == 3


@pytest.fixture
def bad_scene(rendered: Manifest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One training scene that cannot be read."""
    name = rendered.of_split("train")[3].id
    honest = decode.read_sample

    def read(root: Path, scene: Any, **options: Any) -> Any:
        if scene.id == name:
            raise DataError(f"{scene.id}.png: is cut; fix it")
        return honest(root, scene, **options)

    monkeypatch.setattr(decode, "read_sample", read)
    yield name


def test_others_stand_in_for_a_bad_scene_and_the_laws_hold(
    bad_scene: str, small: Recipe, rendered: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = changed(changed(small, "data", max_bad=0.1), "train", epochs=1, checkpoint_steps=1)
    result = start(recipe, rendered, tmp_path / "whole")
    assert (result.left_out, result.steps, result.scenes) == (1, 2, 10)
    assert all(law["holds"] for law in result.laws.values())
    assert [row["scene"] for row in documents.read_json_lines(result.run / "quarantine.jsonl")] == [bad_scene]
    assert "1 training scene was unreadable and replaced by others" in capsys.readouterr().err
    mine, wanted = state_of(gone_on(recipe, rendered, result.run, tmp_path)), state_of(result.run)
    assert mine.keys() == wanted.keys() and all(bool((mine[name] == wanted[name]).all()) for name in wanted)


def test_without_leave_the_first_bad_scene_ends_the_run_and_what_was_learnt_is_kept(
    bad_scene: str, small: Recipe, rendered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = changed(small, "train", checkpoint_minutes=60.0, batch=4, epochs=1)
    with pytest.raises(DataError, match="is cut"):
        start(recipe, rendered, tmp_path / "run")
    found, damaged = checkpoints.newest_valid(tmp_path / "run" / "checkpoints")
    assert found is not None and not damaged
    learnt = [row["step"] for row in documents.read_json_lines(tmp_path / "run" / "metrics.jsonl")]
    assert checkpoints.read_header(found).position.step == max(learnt)
    monkeypatch.undo()  # the file is fixed
    again = start(changed(recipe, "train", max_steps=len(learnt) + 1), rendered, tmp_path / "run", resume=found)
    assert again.resumed and again.steps == len(learnt) + 1
