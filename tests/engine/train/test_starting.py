"""What ``memorysam train`` starts with when little is said."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder, runtime
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import start
from memorysam_cli.errors import DataError, EnvironmentFault, FolderInUseError, UsageError, WeightsError
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import atomic, images

from ..stand_ins import write_data


@pytest.fixture
def default() -> Recipe:
    return recipes.load("default")


def rename(root: Path, manifest: Manifest, **changes: object) -> None:
    """Prepare the same scenes once more, as another data set."""
    manifests.write(root, manifest.info.model_copy(update=changes), manifest.scenes)


def test_the_only_data_set_and_all_its_modalities_are_taken(tmp_path: Path, default: Recipe) -> None:
    write_data(tmp_path)
    found = start.resolve(default, tmp_path)
    assert (found.data.dataset, found.data.modalities) == ("tiny", ("img", "depth"))
    assert start.resolve(found, tmp_path) == found
    assert recipes.parse(found.model_dump(mode="json"), where="test") == found


def test_modalities_that_are_named_stay(tmp_path: Path) -> None:
    write_data(tmp_path)
    found = start.resolve(recipes.load("default", ["data.modalities=[depth]"]), tmp_path)
    assert (found.data.dataset, found.data.modalities) == ("tiny", ("depth",))


def test_several_data_sets_are_named(tmp_path: Path, default: Recipe) -> None:
    rename(tmp_path, write_data(tmp_path), name="other")
    with pytest.raises(UsageError, match=r"2 data sets are prepared there \(other, tiny\).*--set data\.dataset=other"):
        start.resolve(default, tmp_path)
    chosen = recipes.load("default", ["data.dataset=tiny"])
    assert start.resolve(chosen, tmp_path).data.modalities == ("img", "depth")


def test_no_data_set_is_said_with_what_to_type(
    tmp_path: Path, default: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no data set is prepared there; type memorysam prepare folder"):
        start.resolve(default, tmp_path)
    write_data(tmp_path / "my rig")  # prepared beside the folder that was looked in
    with pytest.raises(DataError, match=r"^data: no data set is prepared there; give --data 'my rig'$"):
        start.resolve(default, Path("data"))


def test_a_recipe_that_names_everything_needs_no_data_set(tmp_path: Path, small: Recipe) -> None:
    assert start.resolve(small, tmp_path) is small


def test_a_data_set_without_labels_is_refused(tmp_path: Path, default: Recipe) -> None:
    rename(tmp_path, write_data(tmp_path), unlabeled=("train", "val"))
    with pytest.raises(DataError, match="was prepared without labels and can only be predicted"):
        start.resolve(default, tmp_path)


def test_a_missing_split_is_said_with_the_remedy(tmp_path: Path, default: Recipe) -> None:
    manifest = write_data(tmp_path)
    start.refuse_missing_splits(default, manifest)
    trained = [scene for scene in manifest.scenes if scene.split == "train"]
    lacking = replace(manifest, info=manifest.info.model_copy(update={"counts": {"train": len(trained)}}))
    with pytest.raises(DataError, match=r"split 'val', which is used to choose .* has no scene \(known: train \(1\)\)"):
        start.refuse_missing_splits(default, lacking)
    blind = replace(manifest, info=manifest.info.model_copy(update={"unlabeled": ("val",)}))
    with pytest.raises(DataError, match=r"'val', .* has no labels .*--set data\.selection_split=NAME"):
        start.refuse_missing_splits(default, blind)


@pytest.mark.parametrize(("split", "use"), [("train", "nothing to learn"), ("val", "nothing to choose")])
def test_a_split_without_one_labeled_pixel_is_refused(tmp_path: Path, default: Recipe, split: str, use: str) -> None:
    manifest = write_data(tmp_path)
    start.refuse_unlabeled(default, manifest)
    paths = [tmp_path / str(scene.label) for scene in manifest.of_split(split)]
    for path in paths:
        images.write_png(path, np.full((24, 40), 255, np.uint8))
    with pytest.raises(DataError, match=f"no labeled pixel in '{split}': {len(paths)} labels? .*{use}"):
        start.refuse_unlabeled(default, manifest)
    paths[-1].write_bytes(b"no picture")  # may hold what counts; training will say that it cannot be read
    start.refuse_unlabeled(default, manifest)


def test_resume_without_a_recipe_takes_that_of_the_default_s_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: Recipe
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start.choose_recipe(None, overrides=[], resume="auto", out=None) == default
    filled = default.for_dataset("tiny", ["img"])
    run_folder.create(filled, None)
    assert start.choose_recipe(None, overrides=[], resume="auto", out=None) == filled
    assert start.choose_recipe(None, overrides=[], resume="auto", out=Path("new")) == default
    assert start.choose_recipe(None, overrides=[], resume=None, out=None) == default


@pytest.fixture
def alone() -> Accelerator:
    return runtime.make_accelerator(torch.device("cpu"), precision="fp32")


def begun(recipe: Recipe, out: Path, alone: Accelerator, *, resume: str | None = None, size: int = 0) -> RunFolder:
    """Begin a run and leave it at once."""
    planned = start.plan(recipe, out=out, resume=resume)
    with start.begin(planned, alone, checkpoint_bytes=size) as run:
        return run


@pytest.mark.parametrize("files", range(4))
def test_a_run_killed_before_its_first_checkpoint_begins_again_by_the_same_command(
    files: int, tmp_path: Path, small: Recipe, alone: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before, between and after the files that make a run's folder."""
    honest, calls = atomic.write_bytes, 0

    def killing(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        if calls == files:
            raise KeyboardInterrupt
        calls += 1
        honest(*arguments, **options)

    monkeypatch.setattr(atomic, "write_bytes", killing)
    with contextlib.suppress(KeyboardInterrupt):
        begun(small, tmp_path / "run", alone)
    monkeypatch.undo()
    (tmp_path / "run" / ".recipe.yaml.tmp-host-1-0a1b2c3d").touch()
    (tmp_path / "run" / "checkpoints" / ".step-00000000.tmp-host-1-0a1b2c3d").mkdir(parents=True)
    if files == 0:  # then no checkpoint had begun either
        (tmp_path / "run" / "checkpoints" / ".step-00000000.tmp-host-1-0a1b2c3d").rmdir()
        (tmp_path / "run" / "checkpoints").rmdir()
    planned = start.plan(small, out=tmp_path / "run", resume="auto")
    assert planned.checkpoint is None and planned.run is None
    assert ("starting it again at step 0" in planned.notes[0]) == (files > 0)
    with start.begin(planned, alone) as run:
        names = {entry.name for entry in run.path.iterdir()}
    assert {"recipe.yaml", "environment.json", "command.txt"} <= names
    assert not list(run.path.rglob(".*.tmp-*"))


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/step-00000000.corrupt", "checkpoints/last.safetensors"])
def test_where_a_checkpoint_ever_was_nothing_begins_again(
    left: str, tmp_path: Path, small: Recipe, alone: Accelerator
) -> None:
    run = begun(small, tmp_path / "run", alone)
    assert run.is_unbegun()
    (run.path / left).parent.mkdir(exist_ok=True)
    (run.path / left).touch()
    with pytest.raises(WeightsError, match="no valid checkpoint"):
        start.plan(small, out=run.path, resume="auto")


def test_a_run_that_is_named_never_begins_again(tmp_path: Path, small: Recipe, alone: Accelerator) -> None:
    run = begun(small, tmp_path / "run", alone)
    with pytest.raises(WeightsError, match=r"no valid checkpoint .* --out \S+ --resume auto starts it again"):
        start.plan(small, out=None, resume=str(run.path))


def test_a_disk_with_too_little_room_is_refused_with_the_numbers_and_left_alone(
    tmp_path: Path, small: Recipe, alone: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start.shutil, "disk_usage", lambda _path: SimpleNamespace(free=300_000_000))
    begun(small, tmp_path / "enough", alone, size=95_000_000)
    with pytest.raises(EnvironmentFault, match=r"run: the disk is too full .* needs 315\.0 MB .* free 300\.0 MB"):
        begun(small, tmp_path / "run", alone, size=100_000_000)
    assert not (tmp_path / "run").exists()
    start.refuse_full_disk(tmp_path, checkpoint=100_000_000, keep=2, present=2)  # what is kept is there already


def test_a_link_that_leads_nowhere_is_called_so(tmp_path: Path, small: Recipe) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"--out \S+link: is a link to \S+gone, which does not exist"):
        start.plan(small, out=tmp_path / "link", resume="auto")


def test_an_owner_that_lives_is_told_before_anything_is_computed(tmp_path: Path, small: Recipe) -> None:
    script = "import sys, time; from pathlib import Path; from memorysam_cli.storage import lock\n"
    script += "with lock.hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    line = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        for resume in (None, "auto"):
            with pytest.raises(FolderInUseError, match=f"pid {owner.pid}"):
                start.plan(small, out=tmp_path / "run", resume=resume)
        owner.kill()
    start.plan(small, out=tmp_path / "run", resume=None)
