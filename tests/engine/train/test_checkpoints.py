"""Checkpoints are whole, verified, and never fewer than asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.engine.train.checkpoints import Position, State
from memorysam_cli.errors import WeightsError
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import documents


def state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    return State(
        position=Position(step=step, epoch=1, batch=2, best_miou=12.5, best_step=1),
        model={"w": torch.randn(3, 4, generator=generator)},
        optimizer={"adamw/step/w": torch.tensor(float(step))},
        rng={"0/cpu": torch.arange(9, dtype=torch.uint8)},
        identity={"optim.lr": 0.1, "data set": "abc"},
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path, state(7), keep=2)
    assert sorted(entry.name for entry in path.iterdir()) == [
        "MANIFEST.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "trainer.json",
    ]  # fmt: skip
    found = checkpoints.read(path)
    assert found.position == state(7).position and found.identity == state(7).identity
    for part in ("model", "optimizer", "rng"):
        torch.testing.assert_close(getattr(found, part), getattr(state(7), part), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "rng.safetensors", "trainer.json", "MANIFEST.json"]
)
@pytest.mark.parametrize("fault", ["flipped", "cut", "gone"])
def test_any_damage_to_any_file_is_seen_and_the_one_before_is_taken(name: str, fault: str, tmp_path: Path) -> None:
    older = checkpoints.write(tmp_path, state(1), keep=2)
    newest = checkpoints.write(tmp_path, state(2), keep=2)
    assert checkpoints.newest_valid(tmp_path) == (newest, [])
    content = bytearray((newest / name).read_bytes())
    if fault == "gone":
        (newest / name).unlink()
    else:
        content[len(content) // 2] ^= 4
        (newest / name).write_bytes(content if fault == "flipped" else content[:-1])
    assert checkpoints.newest_valid(tmp_path) == (older, [newest])
    with pytest.raises(WeightsError, match="not a valid checkpoint"):
        checkpoints.read(newest)


def test_retention_keeps_the_newest_valid_ones_and_counts_no_damaged_one(tmp_path: Path) -> None:
    paths = [checkpoints.write(tmp_path, state(step), keep=9) for step in (1, 2, 3)]
    (paths[2] / "model.safetensors").unlink()
    newest = checkpoints.write(tmp_path, state(4), keep=2)
    left = [path for path in [*paths, newest] if path.exists() and checkpoints.is_valid(path)]
    assert left == [paths[1], newest]


def test_a_damaged_folder_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path, state(5), keep=2)
    (path / "model.safetensors").write_bytes(b"")
    assert checkpoints.write(tmp_path, state(5), keep=2) == path
    assert checkpoints.is_valid(path) and path.with_name("step-00000005.corrupt").is_dir()


def test_an_unfinished_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.tmp-host-1-ab").mkdir()
    (tmp_path / "step-00000009").mkdir()
    assert checkpoints.newest_valid(tmp_path) == (None, [tmp_path / "step-00000009"])


def test_identity_names_what_is_computed_and_nothing_else(small: Recipe) -> None:
    found = checkpoints.identity_of(small, dataset="abc", base="def", initial=None)
    assert found["optim.lr"] == 1e-3 and found["data set"] == "abc" and found["base weights"] == "def"
    assert not checkpoints.MAY_CHANGE & found.keys()
    assert {"model.lora.rank", "spmm.weight", "train.seed", "train.batch", "augment.flip"} <= found.keys()


def validated(step: int) -> State:
    """The same step, with the validation that came since."""
    before = state(step)
    return replace(before, position=replace(before.position, best_miou=50.0, best_step=step))


def test_the_same_step_saved_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path, state(3), keep=2)
    assert checkpoints.write(tmp_path, validated(3), keep=2) == path
    assert checkpoints.read(path).position.best_miou == 50.0
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_same_state_saved_again_touches_nothing(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path, state(3), keep=2)
    before = path.stat().st_ino
    assert checkpoints.write(tmp_path, state(3), keep=2) == path
    assert path.stat().st_ino == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("later", [3, 4])
@pytest.mark.parametrize("moment", range(8))
def test_a_kill_while_a_step_is_saved_again_leaves_a_valid_one_of_that_step(
    moment: int, later: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each renaming and removing of folders, before it and after it."""
    checkpoints.write(tmp_path, state(2), keep=2)
    checkpoints.write(tmp_path, state(3), keep=2)
    rename, rmtree, calls = Path.rename, checkpoints.shutil.rmtree, 0

    def killing(honest: Callable[..., Any]) -> Callable[..., Any]:
        def act(path: Path, *more: Any, **options: Any) -> Any:
            nonlocal calls
            for after in (False, True):
                calls += 1
                if calls == moment + 1:
                    raise KeyboardInterrupt
                found = None if after else honest(path, *more, **options)
            return found

        return act

    monkeypatch.setattr(Path, "rename", killing(rename))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", killing(rmtree))
    with contextlib.suppress(KeyboardInterrupt):
        checkpoints.write(tmp_path, validated(3), keep=2)
    monkeypatch.undo()
    newest, damaged = checkpoints.newest_valid(tmp_path)
    assert newest is not None and checkpoints.read(newest).position.step == 3 and not damaged
    checkpoints.sweep(tmp_path)
    path = checkpoints.write(tmp_path, validated(later), keep=2)
    assert checkpoints.newest_valid(tmp_path) == (path, []) and checkpoints.read(path).position.best_miou == 50.0
    names = [entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")]
    assert sorted(names) == [f"step-{later - 1:08d}", f"step-{later:08d}"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stpe": 1}, "stpe is unknown"),
        ({"epoch": None}, "epoch is missing"),
        ({"step": "many"}, "step: "),
        ({"best_miou": [1]}, "best_miou: "),
    ],
)
def test_a_position_of_another_version_is_refused_by_the_names_of_its_keys(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = checkpoints.write(tmp_path, state(1), keep=2)
    gone = {key for key, value in change.items() if value is None}
    content = documents.read_json(path / "trainer.json") | change
    documents.write_json(path / "trainer.json", {key: value for key, value in content.items() if key not in gone})
    with pytest.raises(WeightsError, match=f"trainer.json: .*{said}"):
        checkpoints.read_header(path)
