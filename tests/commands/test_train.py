"""``memorysam train`` as typed: every shipped recipe, resuming, and what it refuses."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli import app
from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train import checkpoints, training
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.storage import documents, tensors

from .trained import Ended, answered

Run = Callable[..., Ended]
Trained = Callable[[int], dict[str, Any]]
TINY = ["model.backbone=nano", "data.image_size=32", "data.workers=0", "train.batch=2", "train.max_steps=2"]
FEW = "data.modalities=[img,depth]"
"""Half of the demo's sensors, for half of the time."""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts rendered below one data root, and prepared as the published data sets that they imitate."""
    root = tmp_path_factory.mktemp("data")
    for layout in ("deliver", "mcubes"):
        code = app.run(["prepare", "synthetic", str(root), "--layout", layout, "--scenes", "20", "--size", "40", "-q"])
        assert code == 0
        assert app.run(["prepare", layout, str(root), "-q"]) == 0
    return root


@pytest.fixture
def memorysam(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMORYSAM_DATA", str(data))

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = app.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return Ended(code, said.out, said.err)

    return run


def changes(*more: str, sensors: str = FEW) -> list[str]:
    return [word for change in [*TINY, *filter(None, [sensors]), *more] for word in ("--set", change)]


@pytest.fixture(scope="module")
def demo_runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, dict[str, Any]]]:
    """A folder with a run of the demo's recipe, of so many updates, and what its training answered.

    Of more than two updates, the run has a checkpoint of each.
    """

    @functools.cache
    def train(steps: int) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("demo")
        each = ["train.checkpoint_minutes=0.000001", "train.keep_checkpoints=9"] if steps > 2 else []
        words = changes(f"train.max_steps={steps}", *each)
        return folder, answered(folder, "train", "-r", "demo", "--data", data, *words)

    return train


@pytest.fixture
def trained(memorysam: Run, demo_runs: Callable[[int], tuple[Path, dict[str, Any]]], tmp_path: Path) -> Trained:
    """Leaves a copy of such a run in the current folder, and returns the answer."""

    def copy(steps: int) -> dict[str, Any]:
        folder, answer = demo_runs(steps)
        shutil.copytree(folder, tmp_path, symlinks=True, dirs_exist_ok=True)
        return answer

    return copy


# With fewer sensors or losses than a neighbour, and nothing else.
FEWER = {"deliver", "deliver-rgbd", "mcubes", "mcubes-ia", "mcubes-iad"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in FEWER)) for name in sorted(recipes.shipped())]
)
def test_every_shipped_recipe_trains_two_steps_on_rendered_scenes(name: str, memorysam: Run) -> None:
    auto = ["data.dataset=synthetic"] if name == "default" else []
    ended = memorysam("train", "--recipe", name, "--json", *changes(*auto, sensors=""))
    assert ended.code == 0, ended.err
    answer = ended.answer
    assert answer["schema_version"] == 1 and answer["steps"] == 2 and answer["resumed"] is False
    rows = documents.read_json_lines(RunFolder(Path(answer["run"])).metrics)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 2
    assert Path("runs/latest").resolve() == Path(answer["run"]).resolve()
    assert Path(answer["best"]).is_file() and Path(answer["last"]).is_file()


def test_the_weights_of_a_run_are_found_by_the_other_commands(memorysam: Run, trained: Trained) -> None:
    answer = trained(2)
    scored = memorysam("evaluate", "--json", "--workers", 0, "--batch", 2)
    assert scored.code == 0, scored.err
    assert scored.answer["miou"] == pytest.approx(answer["miou"], abs=0.05)
    shown = memorysam("weights", "info", answer["best"], "--json").answer
    assert shown["recipe"]["model"]["backbone"] == "nano" and shown["kind"] == "trained"
    assert memorysam("weights", "verify", answer["best"]).code == 0
    assert memorysam("weights", "merge", answer["best"], "--out", "full.safetensors", "--json").code == 0
    assert memorysam("weights", "merge", answer["best"], "--out", "full.safetensors").code == 2
    merged = memorysam("evaluate", "--weights", "full.safetensors", "--json", "--workers", 0, "--batch", 2).answer
    assert merged["miou"] == scored.answer["miou"]


def test_damaged_weights_do_not_verify(memorysam: Run, trained: Trained, tmp_path: Path) -> None:
    best = Path(trained(2)["best"])
    state, metadata = tensors.read(best)
    state.pop("sam.no_mem_embed")
    tensors.write(tmp_path / "bad.safetensors", state, metadata)
    ended = memorysam("weights", "verify", tmp_path / "bad.safetensors", "--json")
    assert ended.code == 10 and ended.answer["ok"] is False and "changed after writing" in ended.err
    assert memorysam("predict", ".", "--weights", tmp_path / "bad.safetensors").code in {3, 5}


def test_resume_auto_starts_then_continues_then_has_nothing_left(memorysam: Run) -> None:
    command = ["train", "-r", "demo", "--out", "run", "--resume", "auto", "--json"]
    first = memorysam(*command, *changes("train.max_steps=1"))
    assert first.code == 0 and "holds no run yet; starting one" in first.err and not first.answer["resumed"]
    second = memorysam(*command, *changes())
    assert second.code == 0 and second.answer["resumed"] and second.answer["steps"] == 2
    assert "resumed at step 1" in second.err
    third = memorysam(*command, *changes())
    assert third.code == 0 and third.answer["miou"] == second.answer["miou"]


def test_resume_auto_without_out_takes_the_newest_run_of_the_recipe(memorysam: Run, trained: Trained) -> None:
    started = trained(1)
    continued = memorysam("train", "-r", "demo", "--resume", "auto", "--json", *changes()).answer
    assert continued["resumed"] and continued["run"] == started["run"]


def test_resume_of_a_folder_takes_its_own_recipe(memorysam: Run, trained: Trained) -> None:
    started = trained(1)
    ended = memorysam("train", "--resume", started["run"], "--set", "train.max_steps=2", "--json")
    assert ended.code == 0 and ended.answer["steps"] == 2
    assert recipes.load(Path(started["run"]) / "recipe.yaml").train.max_steps == 2


def test_going_on_from_an_older_checkpoint_leaves_the_newer_ones_aside(memorysam: Run, trained: Trained) -> None:
    run = RunFolder(Path(trained(3)["run"]))
    older = run.checkpoints / "step-00000001"
    ended = memorysam("train", "--resume", older, "--json", "--set", "train.max_steps=2", "--set", "data.workers=0")
    assert ended.code == 0 and ended.answer["steps"] == 2, ended.err
    newest, damaged = checkpoints.newest_valid(run.checkpoints)
    assert newest is not None and newest.name == "step-00000002" and not damaged
    assert (run.checkpoints / "step-00000003.abandoned").is_dir()


def test_a_refused_resume_leaves_every_checkpoint_and_the_recipe_as_they_were(memorysam: Run, trained: Trained) -> None:
    run = RunFolder(Path(trained(3)["run"]))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    older = run.checkpoints / "step-00000001"
    ended = memorysam("train", "--resume", older, "--set", "optim.lr=0.5")
    assert ended.code == 2 and "optim.lr was 0.003, is 0.5" in ended.err
    after = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(memorysam: Run, trained: Trained) -> None:
    run = RunFolder(Path(trained(2)["run"]))
    newest, _ = checkpoints.newest_valid(run.checkpoints)
    assert newest is not None
    damage(newest)
    ended = memorysam("train", "-r", "demo", "--resume", "auto", "--json", *changes())
    assert ended.code == 0 and ended.answer["steps"] == 2
    assert "is damaged and set aside" in ended.err and newest.with_name(newest.name + ".corrupt").is_dir()


def test_a_run_without_a_valid_checkpoint_ends_with_5_and_never_starts_afresh(memorysam: Run, trained: Trained) -> None:
    run = RunFolder(Path(trained(2)["run"]))
    for path in run.checkpoints.glob("step-*"):
        damage(path)
    before = run.last.read_bytes()
    ended = memorysam("train", "-r", "demo", "--resume", "auto", *changes())
    assert ended.code == 5 and "no valid checkpoint" in ended.err
    assert run.last.read_bytes() == before


def damage(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


SHORT = {
    "--batch 3": ("train.batch", 3),
    "--accumulate 2": ("train.accumulate", 2),
    "--precision bf16": ("train.precision", "bf16"),
    "--saver on": ("train.saver", "on"),
    "--compile": ("train.compile", True),
    "--no-compile": ("train.compile", False),
    "--seed 7": ("train.seed", 7),
    "--deterministic": ("train.deterministic", True),
    "--init a:b#c.safetensors": ("model.init", "a:b#c.safetensors"),
    "--max-bad 0.1%": ("data.max_bad", 0.001),
    "--max-bad 3e-3": ("data.max_bad", 0.003),
    "--epochs 7": ("train.epochs", 7),
    "--lr 3e-5": ("optim.lr", 3e-5),
    "--lr 0.5": ("optim.lr", 0.5),
    "--size 96": ("data.image_size", 96),
}


@pytest.mark.parametrize("words", SHORT)
def test_short_options_are_the_same_as_set(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:b#c.safetensors").touch()
    monkeypatch.setattr("memorysam_cli.model.read_card", lambda _: None)  # and no weights are
    seen = []
    monkeypatch.setattr(training, "train", seen.append)
    monkeypatch.setattr(manifest, "read_info", lambda *_: None)  # nothing is prepared here
    key, value = SHORT[words]
    assert app.run(["train", "-r", "demo", *words.split()]) == 0
    section, _, name = key.partition(".")
    assert getattr(getattr(recipes.load("demo", seen[-1].overrides), section), name) == value
    assert seen[-1].plans_batch is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--batch 2 --set train.batch=4", "--batch 2 and --set train.batch=4: are two values for train.batch"),
        ("--seed 2 --set train.seed=4", "--seed 2 and --set train.seed=4"),
        ("--epochs 2 --set train.epochs=4", "--epochs 2 and --set train.epochs=4: are two values for train.epochs"),
        ("--lr 1e-3 --set optim.lr=1e-4", "--lr 0.001 and --set optim.lr=1e-4: are two values for optim.lr"),
        ("--size 64 --set data.image_size=96", "--size 64 and --set data.image_size=96: are two values"),
        ("--size 100", "--size 100: must be a multiple of 32 above 0, such as 96"),
        ("--size 0", "--size 0: must be a multiple of 32 above 0, such as 32"),
        ("--lr 0", "--lr 0: must be a number above 0"),
        ("--lr nan", "--lr nan: must be a number above 0"),
        ("--max-bad 2", "--max-bad 2: must be a share from 0"),
        ("--max-bad 3%%", "--max-bad 3%%: must be a share"),
        ("--max-bad nan", "--max-bad nan: must be a share"),
        ("--batch ٣", "--batch ٣: must be a number of scenes"),
    ],
)
def test_two_values_and_impossible_ones_are_refused(words: str, said: str, memorysam: Run) -> None:
    ended = memorysam("train", "-r", "demo", *words.split())
    assert ended.code == 2 and said in ended.err and len(ended.err.splitlines()) == 1


def test_the_same_value_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(training, "train", seen.append)
    monkeypatch.setattr(manifest, "read_info", lambda *_: None)  # nothing is prepared here
    assert app.run(["train", "-r", "demo", "--set", "train.batch=4", "--batch", "4"]) == 0
    assert app.run(["train", "-r", "demo", "--set", "train.batch=4", "--batch", "auto"]) == 0
    assert [recipes.load("demo", each.overrides).train.batch for each in seen] == [4, 4]
    assert app.run(["train", "-r", "demo", "--set", "optim.lr=1e-3", "--lr", "0.001"]) == 0
    assert recipes.load("demo", seen[-1].overrides).optim.lr == 1e-3


def test_a_run_begins_from_the_weights_of_another_one(memorysam: Run, trained: Trained) -> None:
    first, once = trained(1), "train.max_steps=1"
    second = memorysam("train", "-r", "demo", "--json", "--init", first["best"], "--out", "second", *changes(once))
    assert second.code == 0, second.err
    assert "tensors of the initial weights = tensors saved" in second.answer["laws"]
    other = changes(once, sensors="data.modalities=[img]")
    third = memorysam("train", "-r", "demo", "--json", "--init", first["best"], "--out", "third", *other)
    assert third.code == 0, third.err
    said = "was trained on img, depth, continues with img"
    assert said in third.err and said in (Path("third") / "train.log").read_text()
    refused = memorysam(
        "train", "-r", "demo", "--init", first["best"], "--out", "fourth", *changes("model.lora.rank=3")
    )
    assert refused.code == 5 and "model.lora.rank was" in refused.err
    assert not Path("fourth").exists()


def test_under_a_launcher_the_exit_code_is_in_a_file(memorysam: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    sets = changes("train.max_steps=2", "optim.lr=1e30", "optim.warmup_epochs=0")
    assert memorysam("train", "-r", "demo", "--out", "run", *sets).code == 8
    assert documents.read_json(Path("run/exit.json"))["code"] == 8
    assert documents.read_json(Path("run/diverged.json"))["step"] == 2


def test_running_out_of_memory_ends_with_6_and_keeps_the_run(memorysam: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the second update; the checkpoint of the first one continues with the saver."""
    small = "data.image_size=64"  # there is something smaller
    sets = changes("train.checkpoint_steps=1", "train.saver=off", small)
    command = ["train", "-r", "demo", "--out", "run", *sets]
    calls, forward = [], MemorySAM.forward

    def greedy(self: MemorySAM, *arguments: Any, **options: Any) -> Any:
        calls.append(self.training)
        if calls.count(True) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity …")
        return forward(self, *arguments, **options)

    monkeypatch.setattr(MemorySAM, "forward", greedy)
    ended = memorysam(*command)
    monkeypatch.setattr(MemorySAM, "forward", forward)
    assert ended.code == 6 and ended.out == ""
    line = ended.err.splitlines()[-1]
    assert "out of memory on cpu (CUDA out of memory. Tried to allocate 2.00 GiB; peak " in line and " free of " in line
    for lever in ("--resume run --saver on", "--batch auto", "--precision bf16", "a smaller data.image_size than 64"):
        assert lever in line
    newest, damaged = checkpoints.newest_valid(Path("run/checkpoints"))
    assert newest is not None and newest.name == "step-00000001" and not damaged
    again = memorysam("train", "--resume", "run", "--saver", "on", "--json")
    assert again.code == 0 and again.answer["steps"] == 2, again.err


REFUSALS = {
    "no number of scenes": (
        ["train", "-r", "demo", "--batch", "many"],
        2,
        "--batch many: must be a number of scenes from 1, or auto",
    ),
    "no scene at all": (
        ["train", "-r", "demo", "--batch", "0"],
        2,
        "--batch 0: must be a number of scenes from 1, or auto",
    ),
    "no recipe and several data sets": (["train"], 2, "4 data sets are prepared there (deliver, mcubes, synthetic, "),
    "an unknown recipe": (["train", "-r", "delivr"], 2, "did you mean 'deliver'?"),
    "an unknown key": (["train", "-r", "demo", "--set", "optim.lrr=1"], 2, "unknown key 'lrr'; did you mean 'lr'?"),
    "an impossible value": (["train", "-r", "demo", "--set", "train.batch=0"], 2, "train.batch"),
    "another data set": (["train", "-r", "demo", "--set", "data.dataset=mfnet"], 3, "memorysam prepare"),
    "an unknown modality": (["train", "-r", "demo", "--set", "data.modalities=[img,depht]"], 3, "depth"),
    "an absent device": (["train", "-r", "demo", "--device", "cuda:7"], 6, "--device cuda:7"),
    "no device at all": (["train", "-r", "demo", "--device", "tpu"], 2, "is not a device"),
    "a link that leads nowhere": (
        ["train", "-r", "demo", "--out", "link"],
        2,
        "is a link to nowhere, which does not exist",
    ),
    "no weights to begin from": (
        ["train", "-r", "demo", "--init", "x.safetensors"],
        5,
        "--init x.safetensors: does not",
    ),
    "a run that is not there": (["train", "--resume", "runs/nothing"], 5, "does not exist"),
    "an unknown split": (["train", "-r", "demo", "--set", "data.selection_split=vall"], 3, "known: "),
    "a base that is not there": (["train", "-r", "demo", "--set", "model.base_weights=x.pt"], 5, "is not a file"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_one_line_with_their_code_and_leave_no_run(refusal: str, memorysam: Run) -> None:
    arguments, code, said = REFUSALS[refusal]
    Path("link").symlink_to("nowhere")
    ended = memorysam(*arguments)
    assert ended.code == code, ended.err
    assert ended.out == "" and said in ended.err.splitlines()[-1]
    assert not list(Path().glob("runs/*/checkpoints")), "nothing may look like a run"


def test_a_taken_folder_ends_with_9_and_names_its_owner(memorysam: Run, trained: Trained) -> None:
    script = "import sys, time; from pathlib import Path; from memorysam_cli.storage import lock\n"
    script += "with lock.hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    Path(trained(1)["run"]).rename("run")
    owner = subprocess.Popen([sys.executable, "-c", script, "run"], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "held\n"
        ended = memorysam("train", "-r", "demo", "--out", "run", "--resume", "auto", *changes())
    finally:
        owner.kill()
        owner.communicate()
    assert ended.code == 9 and str(owner.pid) in ended.err


@pytest.mark.slow
def test_a_run_killed_by_sigkill_ends_bit_for_bit_as_an_unkilled_one(memorysam: Run, tmp_path: Path) -> None:
    """Real processes: killed in the middle of whatever they were doing, restarted by the same line."""
    more = ["train.max_steps=6", "train.checkpoint_minutes=0.00001"]
    command = ["train", "-r", "demo", "--resume", "auto", "--json", "-q", *changes(*more)]
    assert memorysam(*command, "--out", "whole").code == 0
    line = [sys.executable, "-m", "memorysam_cli", *command, "--out", "killed"]
    kills = 0
    for steps in (1, 3, 4):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        metrics = tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("loss") >= steps):
            time.sleep(0.01)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2, "the runs ended before they could be killed"
    ended = subprocess.run(line, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert json.loads(ended.stdout)["resumed"] is True
    for name in ("best", "last"):
        files = [RunFolder(tmp_path / run) for run in ("whole", "killed")]
        assert len({tensors.sha256(getattr(run, name)) for run in files}) == 1, name
    measured = {"scenes_per_second", "seconds_data", "peak_memory_gb"}
    logs = [documents.read_json_lines(RunFolder(tmp_path / run).metrics) for run in ("whole", "killed")]
    learned = [[{key: row[key] for key in row.keys() - measured} for row in log] for log in logs]
    assert learned[0] == learned[1]
