"""Trials in child processes: what fits, what does not, and that no child outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.engine import runtime, surroundings
from memorysam_cli.engine.measure import trials
from memorysam_cli.engine.measure.trials import Trial
from memorysam_cli.engine.measure.workload import Frames
from memorysam_cli.errors import UsageError
from memorysam_cli.storage import children
from memorysam_cli.text import size

from ... import forked

TINY = ["model.backbone=nano", "model.base_weights=random", "data.image_size=64", "train.batch=2"]
NANO = recipes.load("deliver", [*TINY, "data.modalities=[img,depth]"])
LONG = Trial(NANO, 3, task="validate", steps=100_000)
GONE = "out of memory (the system killed it)"
Says = Callable[[dict[str, Any]], None]


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Has the child say something, and end well at once."""

    def say(words: dict[str, Any]) -> None:
        (tmp_path / "said_by_a_test.py").write_text(f"def main(_): print({json.dumps(words)!r})")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(trials, "PROCESS", "said_by_a_test")

    return say


def test_a_trial_is_the_same_on_the_other_side() -> None:
    trial = Trial(NANO, 25, "predict", "cuda:1", "plain", 3, Frames(((64, 96), (64, 64)), (97, 131)), 10**9, 7.5)
    line = trial.to_json()
    assert Trial.from_json(line) == trial and "\n" not in line
    assert Trial.from_json(Trial(NANO, 2).to_json()) == Trial(NANO, 2)


@pytest.mark.usefixtures("afresh")
def test_a_training_that_fits_tells_its_peaks_alone_even_under_torchrun_and_beside_files_named_like_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches of two make an update, with the optimizer; then a validation of larger frames."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong one')")
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    # Without LoRA, whose library alone takes two seconds to import.
    changes = ["data.modalities=[img,depth]", "train.accumulate=2", "model.encoder=full"]
    recipe = recipes.load("deliver", [*TINY, *changes])
    outcome = trials.run(Trial(recipe, 3, frames=Frames(((64, 96),), (97, 131)), limit=8 * 10**9, timeout=600))
    assert outcome.fits and outcome.why == ""
    assert len(outcome.seconds) == 2 and min(outcome.seconds) > 0
    assert 10**8 < outcome.training_peak <= outcome.peak < 8 * 10**9
    assert 10**8 < outcome.validation_peak <= outcome.peak
    assert 0 < outcome.free <= outcome.total


def test_a_limit_that_is_exceeded_is_an_answer() -> None:
    outcome = trials.run(Trial(NANO, 3, task="validate", limit=100 * 10**6))
    assert not outcome.fits and outcome.why == "needs more than 100 MB" and outcome.peak > 100 * 10**6
    assert outcome.total > 0


def test_memory_that_the_machine_does_not_have_is_an_answer() -> None:
    """Frames of 211 petabytes: no machine says yes."""
    said = told(Trial(NANO, 3, task="validate", frames=Frames(((2**22, 2**22),), (64, 64))))
    assert said["why"].startswith("out of memory (") and "ried to allocate" in said["why"] and said["total"] > 0


def test_a_child_that_the_system_kills_ran_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    start = children.start

    def kill_first(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = start(*arguments, **options)
        process.kill()
        return process

    monkeypatch.setattr(children, "start", kill_first)
    outcome = trials.run(LONG)
    assert (outcome.fits, outcome.why) == (False, GONE)


def test_a_child_that_hangs_is_ended() -> None:
    start = time.monotonic()
    outcome = trials.run(Trial(NANO, 3, task="validate", steps=100_000, timeout=0.3))
    assert not outcome.fits and outcome.why == "did not end within 0.3 s"
    assert time.monotonic() - start < 60


def test_any_other_fault_is_ours_and_shows_the_childs_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(NANO, 3, task="validate", frames=Frames(((65, 64),), (64, 64)))
    with pytest.raises(ValueError, match=r"65×64 pixels; height and width must be divisible") as fault:
        told(trial)  # what the child meets
    (tmp_path / "raised_by_a_test.py").write_text(f"def main(_): raise ValueError({str(fault.value)!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(trials, "PROCESS", "raised_by_a_test")
    with pytest.raises(
        RuntimeError, match=r"(?s)a trial ended with 1:.*65×64 pixels; height and width must be divisible"
    ):
        trials.run(trial)


def test_ctrl_c_ends_the_child_too(monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = [], children.start

    def interrupt() -> surroundings.Capacity:
        raise KeyboardInterrupt

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        monkeypatch.setattr(surroundings, "memory", interrupt)
        return started[0]

    monkeypatch.setattr(children, "start", noted)
    with pytest.raises(KeyboardInterrupt):
        trials.run(LONG)
    assert started[0].returncode == -signal.SIGKILL


def test_a_machine_near_its_end_ends_the_trial_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a control group or other programs leave too little; the trial itself may be far below its limit."""
    GB = 10**9
    left = iter([surroundings.Capacity(8 * GB, 3 * GB)] * 3)
    monkeypatch.setattr(surroundings, "memory", lambda: next(left, surroundings.Capacity(8 * GB, GB // 5)))
    start = time.monotonic()
    outcome = trials.run(Trial(NANO, 3, task="validate", steps=100_000, limit=8 * GB))
    assert not outcome.fits and time.monotonic() - start < 60
    assert outcome.why == "out of memory (the machine had 200 MB of 8.0 GB left; it was ended before that was gone)"


def test_the_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import pathlib, subprocess, sys
from memorysam_cli.engine.measure import trials
from memorysam_cli.engine.measure.trials import Trial
from memorysam_cli.storage import children
from tests import forked
children.start = forked.honest_start
begin = subprocess.Popen
def noted(*arguments, **more):
    process = begin(*arguments, **more)
    pathlib.Path({str(tmp_path / "pid")!r}).write_text(f"{{process.pid}}\\n")
    return process
subprocess.Popen = noted
trials.run(Trial.from_json({LONG.to_json()!r}))
"""
    parent = forked.Program(script, environment=os.environ)
    try:
        child = _wait_for(lambda: int((tmp_path / "pid").read_text()), tmp_path / "pid")
        assert (Path("/proc") / str(child)).exists()
    finally:
        parent.child.kill()
        parent.end()
    end = time.monotonic() + 60
    while _runs(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(child)


def _wait_for(read: Any, path: Path) -> int:
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end, f"{path.name} is not written"
        time.sleep(0.05)
    return int(read())


def _runs(process: int) -> bool:
    try:
        return "zombie" not in (Path("/proc") / str(process) / "status").read_text()
    except OSError:
        return False


def told(trial: Trial) -> dict[str, Any]:
    """What the child of a trial would tell, from this process."""
    said: dict[str, Any] = {}
    trials.perform(trial, lambda **values: said.update(values))
    return said


def test_a_device_out_of_memory_is_told_with_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which …"
        )

    monkeypatch.setitem(trials._WORK, "train", work)
    said = told(Trial(NANO, 3))
    assert said["why"] == "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB)" and said["peak"] > 0


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_the_limit_reaches_a_gpu_with_or_without_a_number(
    device: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through torch's own checks of its arguments: it takes no device without a number here, unlike elsewhere."""
    limits = []
    monkeypatch.setattr(runtime, "capacity", lambda _: surroundings.Capacity(total=80 * 10**9, free=70 * 10**9))
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *said: limits.append(said), raising=False)
    monkeypatch.setitem(trials._WORK, "train", lambda *_: None)
    assert told(Trial(NANO, 3, device=device, limit=20 * 10**9)) == {"total": 80 * 10**9, "free": 70 * 10**9}
    assert limits == [(0.25, number)]


def test_running_out_in_validation_is_told_as_such(says: Says) -> None:
    """From the words that a child says before it dies."""
    says({"training_peak": 5, "peak": 5, "why": "out of memory (x)"})
    outcome = trials.run(Trial(NANO, 3, frames=Frames(((64, 64),), (64, 64))))
    assert outcome.why == "out of memory (x), in validation" and not outcome.fits


def test_what_the_device_cannot_compute_is_the_users_to_mend(says: Says) -> None:
    said = told(Trial(recipes.load("deliver", [*TINY, "train.precision=fp16"]), 3))
    assert "fp16 needs a GPU" in said["refused"] and "why" not in said
    says(said)
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        trials.run(Trial(NANO, 3))


@pytest.mark.parametrize("task", ["validate", "predict"])
def test_looking_is_measured_too(task: Any) -> None:
    said = told(Trial(NANO, 3, task=task, steps=2))
    assert len(said["seconds"]) == 2 and said["peak"] > 0 and "why" not in said


def test_the_plain_implementation_trains_too() -> None:
    said = told(Trial(NANO, 3, implementation="plain", steps=1))
    assert len(said["seconds"]) == 1 and said["training_peak"] > 0


def test_an_update_that_was_skipped_is_done_again() -> None:
    answers = iter([False, True, False, True])
    seconds = trials._timed(lambda: next(answers), steps=2, device=torch.device("cpu"))
    assert len(seconds) == 2 and next(answers, None) is None
    with pytest.raises(RuntimeError, match="only 0 of 22 updates were finite"):
        trials._timed(lambda: False, steps=2, device=torch.device("cpu"))


def test_the_capacity_is_asked_without_a_child_on_the_cpu() -> None:
    assert trials.capacity("cpu").total == runtime.capacity(torch.device("cpu")).total > 0


def test_the_resident_peak_of_another_process_only_grows() -> None:
    assert runtime.resident_peak(os.getpid()) > 10**7
    assert runtime.resident_peak(2**22 + 1) == 0, "no process has this number"


@pytest.mark.parametrize(
    ("count", "text"), [(24 * 10**9, "24.0 GB"), (96 * 10**6, "96 MB"), (950 * 10**6, "0.9 GB"), (0, "0 MB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_an_outcome_is_not_believed_above_its_limit(says: Says) -> None:
    """A peak between two looks of the watcher counts too."""
    says({"peak": 2 * 10**8})
    assert trials.run(Trial(NANO, 3, limit=10**8)).why == "needs more than 100 MB"
    assert trials.run(Trial(NANO, 3, limit=10**9)).fits
