"""Trackers seen from the training: whatever becomes of them, it computes the same bits and waits for none."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder, runtime
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints, tracking
from memorysam_cli.engine.train.endings import TrainingResult
from memorysam_cli.engine.train.loop import Trainer
from memorysam_cli.engine.train.tracking import Tracking, names
from memorysam_cli.errors import UsageError
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import documents

from .test_trainer import changed, state_of

STAND_IN = """
import json, os, sys, time

def main(arguments):
    (name,) = arguments
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    if name == "crash":
        os._exit(3)
    if name == "hang":
        time.sleep(600)
    begin = json.loads(sys.stdin.readline())
    out.write(json.dumps({"note": "here"}).encode() + b"\\n")
    if name == "fail":
        out.write(json.dumps({"failed": "OSError: no such server"}).encode() + b"\\n")
        time.sleep(600)
    if name == "trouble":
        out.write(b"a word of another package\\n[1]\\n{}\\n")
        out.write(json.dumps({"trouble": "step 1: away"}).encode() + b"\\n")
    with open(os.path.join(begin["folder"], "trackers", name + ".jsonl"), "a") as file:
        print(json.dumps({"begin": begin, "environment": dict(os.environ)}), file=file)
        for line in sys.stdin:
            file.write(line)
            if "end" in json.loads(line):
                break
"""
"""A tracker's process that behaves as its name says."""


@pytest.fixture(autouse=True)
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a_stand_in_for_trackers.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    monkeypatch.setattr(tracking, "MODULE", "a_stand_in_for_trackers")


def train(recipe: Recipe, manifest: Manifest, path: Path, *trackers: str, resume: bool = False) -> RunFolder:
    run = RunFolder(path) if resume else run_folder.create(recipe, path)
    accelerator = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    trainer = Trainer(recipe, manifest, accelerator=accelerator)
    trainer.tracking = Tracking(trackers, patience_s=2)
    trainer.fit(run, resume=checkpoints.newest_valid(run.checkpoints)[0] if resume else None)
    return run


def heard(run: RunFolder, name: str = "record") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "trackers" / f"{name}.jsonl").read_text().splitlines()]


def test_whatever_becomes_of_the_trackers_the_training_makes_the_same_bits_and_each_is_handed_every_value(
    finished: TrainingResult, often: Recipe, rendered: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until the second of the finished run's four updates."""
    recipe, alone = changed(often, "train", max_steps=2), state_of(finished.run, step=2)
    capsys.readouterr()
    tracked = train(recipe, rendered, tmp_path / "tracked", "record", "crash", "hang", "fail", "trouble")
    with_them, said = state_of(tracked.path), capsys.readouterr().err
    assert alone.keys() == with_them.keys()
    assert all(torch.equal(alone[name], with_them[name]) for name in alone)
    for name, why in (("crash", ""), ("hang", "did not finish in time"), ("fail", "OSError: no such server")):
        assert said.count(f"--track {name}: ") - said.count(f"--track {name}: here") == 1, "told once"
        assert f"--track {name}: {why}" in said
    assert "--track trouble: step 1: away; the training continues (it tries on)" in said
    assert "warning: --track record" not in said and len(heard(tracked)) == len(heard(tracked, "trouble"))
    assert_all_was_handed_on(tracked, recipe, rendered.info.classes)


def assert_all_was_handed_on(run: RunFolder, recipe: Recipe, classes: Sequence[str]) -> None:
    """Every value that the metrics have, and more."""
    begin, *messages = heard(run)
    assert begin["begin"] == {"folder": str(run.path), "recipe": recipe.to_yaml(), "step": 0}
    rows = documents.read_json_lines(run.metrics)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    sent = [message for message in messages if "values" in message]
    for row in rows:
        group = "validation" if "miou" in row else "train"
        wanted = {f"{group}/{name}": value for name, value in row.items() if name not in {"step", "epoch"}}
        assert {"step": row["step"], "values": wanted} in sent
    assert {"train/loss", "train/ohem", "train/spmm", "train/lr", "train/gradient_norm", "train/scenes_per_second",
            "train/peak_memory_gb"} <= sent[0]["values"].keys()  # fmt: skip
    each_class = [m for m in sent if any(name.startswith("validation/iou/") for name in m["values"])]
    assert [message["step"] for message in each_class] == [2]
    assert list(each_class[0]["values"]) == [f"validation/iou/{name}" for name in classes]
    pictures = [message for message in messages if "picture" in message]
    assert [message["step"] for message in pictures] == [2]
    confusion = torch.tensor(pictures[0]["confusion"])
    assert confusion.shape == (len(classes), len(classes)) and Path(pictures[0]["picture"]).is_file()
    iou = 100 * confusion.diagonal() / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal()).clamp(min=1)
    assert iou.mean() == pytest.approx(next(r["miou"] for r in rows if "miou" in r), abs=1e-4)
    assert messages[-1] == {"end": True}


def test_a_resumed_run_says_after_which_step_it_goes_on(
    finished: TrainingResult, often: Recipe, rendered: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(finished.run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    run = train(often, rendered, tmp_path / "run", "record", resume=True)
    begin, *messages = heard(run)
    assert begin["begin"]["step"] == 3
    assert {message["step"] for message in messages if "step" in message} == {4}


def test_the_process_is_none_of_the_training_and_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with Tracking(["record"]).of_run(tmp_path, recipe="", step=0):
        pass
    environment = heard(RunFolder(tmp_path))[0]["environment"]
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK"} & environment.keys()
    assert environment.items() >= tracking.OPT_OUT.items()
    assert environment["CUDA_VISIBLE_DEVICES"] == "" and environment["PATH"] == os.environ["PATH"]


def test_one_that_reads_nothing_is_given_up_and_no_row_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "MOST_BYTES", 100_000)
    tracked = Tracking(["hang"], patience_s=30)
    begun = time.monotonic()
    with tracked.of_run(tmp_path, recipe="x" * 50_000, step=0):
        for step in range(5000):
            tracked.log(step, {"loss": 1.0})
    assert time.monotonic() - begun < 10
    assert capsys.readouterr().err.count("does not keep up, or hangs; the training continues") == 1


def test_after_a_fault_nobody_waits_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PATIENCE_STOPPED_S", 0.3)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Tracking(["hang"]).of_run(tmp_path, recipe="", step=0):
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 10


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    tracked = Tracking(["record"])
    with tracked.of_run(tmp_path, recipe="", step=0):
        tracked.log(1, {"loss": float("nan"), "lr": 0.5, "gradient_norm": float("inf")})
    assert heard(RunFolder(tmp_path))[1] == {"step": 1, "values": {"train/lr": 0.5}}


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again_though_it_has_trackers(
    small: Recipe, tmp_path: Path
) -> None:
    run = run_folder.create(small, tmp_path / "run")
    (run.path / "trackers" / "mlflow").mkdir(parents=True)
    assert run.is_unbegun()


def test_without_trackers_nothing_is_made(tmp_path: Path) -> None:
    tracked = Tracking()
    with tracked.of_run(tmp_path, recipe="", step=0):
        tracked.log(1, {"loss": 1.0})
    assert not (tmp_path / "trackers").exists()


def test_names_are_separated_by_commas_or_given_again() -> None:
    assert names(["tensorboard, mlflow", "wandb", "mlflow"]) == ("tensorboard", "mlflow", "wandb")
    assert names([]) == ()


@pytest.mark.parametrize("given", ["tensorbord", "", "wandb,", "neptune"])
def test_an_unknown_tracker_is_refused_with_those_that_there_are(given: str) -> None:
    with pytest.raises(UsageError, match=r"is not a tracker.*known: tensorboard, wandb, mlflow, trackio"):
        names([given])


def test_one_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (None, ModuleSpec("mlflow", None)):  # a folder of that name is not a package
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(UsageError, match=r"pip install 'memorysam\[mlflow\]'"):
            names(["mlflow"])
