"""``memorysam plan`` as typed, and ``memorysam train --batch auto``, which does as it says."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.measure import trials
from memorysam_cli.engine.measure.trials import Outcome, Trial

from .trained import Ended, Program

pytestmark = pytest.mark.usefixtures("counted_once")
TINY = [
    "model.backbone=nano", "data.image_size=64", "data.modalities=[img]", "data.workers=0", "train.batch=4",
    "train.max_steps=1", "losses={}",
]  # fmt: skip
SETS = [word for change in TINY for word in ("--set", change)]


@pytest.fixture
def memorysam(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendered: Path
) -> Program:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(rendered, tmp_path / "rendered")
    monkeypatch.setenv("MEMORYSAM_DATA", str(tmp_path / "rendered"))
    return Program(capsys)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """Trials that are not run: only the saver with at most two scenes fits."""
    seen: list[Trial] = []

    def run(trial: Trial) -> Outcome:
        seen.append(trial)
        train = trial.recipe.train
        if train.batch > 2 or train.saver == "off":
            return Outcome(False, "out of memory (made up)", peak=10**9)
        return Outcome(True, seconds=(2.0, 1.5), peak=10**8, training_peak=10**8, validation_peak=10**7)

    monkeypatch.setattr(trials, "run", run)
    return seen


def test_a_plan_that_is_tried_ends_with_a_line_that_can_be_typed(memorysam: Program) -> None:
    """Counted, and then real: updates and a validation in a child process."""
    ended = memorysam("plan", "--recipe", "demo", "--device", "cpu", "--try", "--json", *SETS)
    assert ended.code == 0, ended.err
    answer = ended.answer
    assert answer["proposal"] == {"batch": 4, "accumulate": 1, "saver": "off"} and answer["effective_batch"] == 4
    (trial,) = answer["trials"]
    assert trial["fits"] and 10**8 < trial["peak"] < answer["limit"] < answer["memory"] <= answer["total"]
    assert trial["seconds"] > 0 and trial["validation_peak"] > 10**8
    assert answer["validation"]["inputs"] == [[64, 64]] and answer["validation"]["native"] == [72, 72]
    typed = shlex.split(answer["command"])
    assert typed[:4] == ["memorysam", "train", "--recipe", "demo"]
    assert "trying batch 4 × 1 accumulated, saver off" in ended.err and "fits, peak" in ended.err
    trained = memorysam(*typed[1:], "--json")
    assert trained.code == 0 and trained.answer["steps"] == 1


def test_a_gpu_that_is_not_here_is_planned_for_and_nothing_is_tried(memorysam: Program, tried: list[Trial]) -> None:
    """The cards of that size are estimated, and prediction is counted too."""
    peaks = {}
    for precision in ("fp32", "bf16"):
        ended = memorysam(
            "plan", "-r", "demo", *SETS, "--set", f"train.precision={precision}", "--gpu-memory", "24GB", "--json",
            "--set", "data.image_size=192",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        answer = ended.answer
        assert (answer["device"], answer["total"]) == ("cuda", 24 * 10**9) and answer["proposal"]["batch"] == 4
        assert {each["device"] for each in answer["estimates"]} == {"RTX 3090", "RTX 4090", "A10", "L4"}
        assert answer["updates"] == 1 and answer["prediction"]["batch"] == 64
        peaks[precision] = answer["counts"][0]["peak"]
    assert tried == [] and peaks["fp32"] > peaks["bf16"]


def test_a_memory_that_is_too_small_for_anything_ends_with_6_and_the_levers(memorysam: Program) -> None:
    ended = memorysam("plan", "-r", "demo", *SETS, "--set", "train.batch=1", "--gpu-memory", "10MB", "--json")
    assert ended.code == 6 and ended.answer["proposal"] is None and ended.answer["command"] is None
    last = ended.err.splitlines()[-1]
    assert "cuda: nothing fits into 9 MB (10 MB less the 10 % that stay free)" in last
    assert "batch 1 × 1 accumulated, saver on: needs " in last
    assert "--set train.precision=bf16" in last and "--set data.image_size=32" in last
    assert not any(each["fits"] for each in ended.answer["counts"])


def test_the_tables_show_what_was_counted_and_tried(memorysam: Program, tried: list[Trial]) -> None:
    arguments = ("--device", "cpu", "--gpu-memory", "2GB", "--try", "--timeout", "3")
    ended = memorysam("plan", "-r", "demo", *SETS, *arguments)
    assert ended.code == 0, ended.err
    assert [(trial.recipe.train.batch, trial.recipe.train.saver) for trial in tried] == [
        (4, "off"), (4, "on"), (2, "off"), (2, "on"),
    ]  # fmt: skip
    assert {(trial.limit, trial.timeout, trial.device) for trial in tried} == {(1_800_000_000, 180.0, "cpu")}
    lines = ended.out.splitlines()
    assert sum("no: out of memory (made up)" in line for line in lines) == 3
    row = next(line for line in lines if "1.50" in line)
    assert row.split() == ["2", "2", "on", "100", "MB", "1.9", "GB", "1.50", "yes"]
    assert lines[-2] == "fits: batch 2 × 2 accumulated, saver on; 4 scenes per update, as in the recipe"
    assert lines[-1].endswith("--set train.batch=2 --set train.accumulate=2 --set train.saver=on")
    assert lines[-1].count("train.batch") == 1, "the user's own value gives way to the plan's"
    assert "time, an estimate" in ended.out and "not counted: oneDNN's scratch memory" in ended.out


REFUSALS: dict[str, tuple[list[str], int, str]] = {
    "no memory": (["--gpu-memory", "0"], 2, "--gpu-memory '0'"),
    "no amount": (["--gpu-memory", "much"], 2, "such as 24GB"),
    "more than there is": (["--gpu-memory", "99999GB", "--try"], 2, "leave --try out"),
    "an unknown key": (["--set", "train.bach=4"], 2, "did you mean 'batch'"),
    "an absent device": (["--device", "cuda:7"], 6, "--device cuda:7"),
    "modalities that are known": (["--modalities", "2"], 2, "leave it out"),
    "a modality that is not there": (["--set", "data.modalities=[sonar]"], 3, "sonar"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_one_line_before_any_trial(refusal: str, memorysam: Program, tried: list[Trial]) -> None:
    arguments, code, said = REFUSALS[refusal]
    ended = memorysam("plan", "-r", "demo", *arguments)
    assert (ended.code, ended.out, tried) == (code, "", []), ended.err
    assert said in ended.err.splitlines()[-1]


def stored(ended: Ended) -> Any:
    return recipes.load(Path(ended.answer["run"]) / run_folder.RECIPE).train


def test_batch_auto_trains_with_what_fits_and_keeps_the_scenes_per_update(
    memorysam: Program, tried: list[Trial]
) -> None:
    ended = memorysam("train", "-r", "demo", *SETS, "--batch", "auto", "--out", "run", "--json")
    assert ended.code == 0, ended.err
    assert "--batch auto: batch 2 × 2 accumulated, saver on" in ended.err and len(tried) == 4
    train = stored(ended)
    assert (train.batch, train.accumulate, train.saver) == (2, 2, "on")
    more = ["--set", "train.max_steps=2", "--resume", "auto"]
    again = memorysam("train", "-r", "demo", *SETS, *more, "--batch", "auto", "--out", "run", "--json")
    assert again.code == 0 and again.answer["resumed"] and again.answer["steps"] == 2, again.err
    assert "the run keeps its batch 2 × 2 accumulated" in again.err and len(tried) == 4, "nothing was tried again"
    assert stored(again).batch == 2


def test_batch_auto_starts_no_run_where_nothing_fits(memorysam: Program, tried: list[Trial]) -> None:
    ended = memorysam("train", "-r", "demo", *SETS, "--batch", "auto", "--saver", "off")
    assert ended.code == 6 and "nothing fits" in ended.err.splitlines()[-1] and len(tried) == 3
    assert "--set train.saver=on" in ended.err.splitlines()[-1]
    assert not Path("runs").exists()


@pytest.mark.slow
def test_two_processes_take_the_plan_of_the_first(memorysam: Program) -> None:
    """Under torchrun: real trials in rank 0, each alone with half of the machine's memory."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "memorysam_cli", "train", "-r", "demo", "--device", "cpu", "--batch", "auto", "--json", *SETS]
    ended = subprocess.run([*launch, *command], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    train = stored(Ended(0, ended.stdout, ended.stderr))
    assert (train.batch, train.accumulate, train.saver) == (4, 1, "off")
    assert ended.stderr.count("--batch auto: batch 4") == 1


def test_several_processes_are_refused(memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = memorysam("plan", "-r", "demo")
    assert ended.code == 2 and "plan: measures from one process; start it without torchrun" in ended.err
