"""One process, shards, processes of torchrun, and Ray: the same files, byte for byte."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from memorysam_cli import app

from ...commands.trained import save_weights
from ...forked import Program, python
from ..stand_ins import Plan, write_data
from .jobs import tree

SIZES = ((64, 96), (64, 64))
PLANS: tuple[Plan, ...] = tuple(
    (f"{weather}/{number:03}", "val", weather, None, SIZES[(number // 3) % 2])
    for weather in ("fog", "rain")
    for number in range(9)
)
PREDICT = [
    "predict", "data", "--weights", "w.safetensors", "--workers", "0", "--batch", "2", "--color", "--overlay",
    "--confidence", "--device", "cpu", "--out", "out",
]  # fmt: skip
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
MEMORYSAM = "from memorysam_cli import app; app.main()"
LAUNCHER = "import sys; from tests import forked; forked.launch(sys.argv[1], sys.argv[2:])"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ways")
    save_weights(folder / "w.safetensors", write_data(folder / "data", PLANS).info)
    return folder


@pytest.fixture
def here(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="module")
def whole(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process writes."""
    place = tmp_path_factory.mktemp("whole") / "here"
    shutil.copytree(template, place)
    with contextlib.chdir(place):
        assert app.run(PREDICT) == 0
    return tree(place / "out")


def environment(**more: str) -> dict[str, str]:
    """One thread everywhere: sums depend on how many there are."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run(here: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=here, env=environment(**more), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def memorysam(here: Path, *arguments: str, code: str = MEMORYSAM, **more: str) -> Program:
    """The program, forked from a process that has imported torch."""
    return Program(code, *PREDICT, *arguments, environment=environment(**more), cwd=here)


def free_port() -> str:
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def break_scene(here: Path, name: str = "rain/000") -> None:
    """Scene 9 of 18: in the groups of two it is in the fifth, which the first of two processes takes."""
    path = here / f"data/tiny/img/{name}.png"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.slow
def test_shards_at_once(here: Path, whole: dict[str, bytes]) -> None:
    shards = [
        subprocess.Popen(
            [sys.executable, "-m", "memorysam_cli", *PREDICT, "--shard", f"{index}/3", "--json"], cwd=here,
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in (2, 0, 1)
    ]  # fmt: skip
    answers = []
    for each in shards:
        said, complained = each.communicate(timeout=300)
        assert each.returncode == 0, complained
        answers.append(json.loads(said))
    assert tree(here / "out") == whole
    merged = [answer for answer in answers if "shard" not in answer]
    assert merged and merged[0].pop("inputs_root") == str(here / "data")
    assert merged[0] == json.loads(whole["_SUCCESS.json"])
    assert all(answer["parts_missing"] > 0 for answer in answers if "shard" in answer)


def test_two_processes_of_torchrun(here: Path, whole: dict[str, bytes]) -> None:
    line = (*TORCHRUN, "-m", "memorysam_cli", *PREDICT, "--json")
    ended = python(LAUNCHER, *line, environment=environment(), cwd=here)
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer.pop("inputs_root") == str(here / "data")
    assert answer == json.loads(whole["_SUCCESS.json"])
    assert tree(here / "out") == whole


@pytest.mark.slow
def test_processes_that_are_shards_too(here: Path, whole: dict[str, bytes]) -> None:
    first = run(here, "-m", *TORCHRUN, "-m", "memorysam_cli", *PREDICT, "--json", "--shard", "1/2")
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    assert (answer["shard"], answer["parts"], answer["parts_missing"]) == ({"index": 1, "count": 2}, 4, 2)
    assert answer["scenes"] == answer["done"] == 8
    ended = run(here, "-m", *TORCHRUN, "-m", "memorysam_cli", *PREDICT, "--json", "--shard", "0/2")
    assert ended.returncode == 0, ended.stderr
    assert tree(here / "out") == whole


def test_a_process_that_fails_ends_all_with_its_code_and_one_line(here: Path) -> None:
    break_scene(here)
    several = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [memorysam(here, RANK=str(rank), **several) for rank in range(2)]
    said = [each.end() for each in both]
    assert [each.returncode for each in said] == [3, 3], said
    errors = [each.stderr.splitlines()[-1] for each in said]
    assert "rain/000.png" in errors[0] and errors[0].startswith("memorysam: error [3]: data/tiny")
    assert errors[1].startswith("memorysam: error [3]: process 0 failed: data/tiny")
    assert not any(each.stdout for each in said) and not (here / "out/_SUCCESS.json").exists()


def test_a_process_that_is_lost_is_noticed(here: Path) -> None:
    several = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    gone = (
        "import os; from memorysam_cli.engine.predict.parts import PredictionFolder; "
        f"PredictionFolder.begin = lambda *_: os._exit(9); {MEMORYSAM}"
    )
    lost = memorysam(here, code=gone, **several, RANK="1")
    ended = memorysam(here, **several, RANK="0").end()
    assert lost.end().returncode == 9
    assert ended.returncode == 6 and "process 1 of this run is lost" in ended.stderr


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_leaves_no_line_without_files_no_file_without_its_line_and_the_same_command_goes_on(
    here: Path, whole: dict[str, bytes], number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = (
        "import time; from memorysam_cli.storage import images; write = images.write_png; "
        "images.write_png = lambda *a, **k: (time.sleep(0.1), write(*a, **k)); "
        f"{MEMORYSAM}"
    )
    started = memorysam(here, code=slow)
    ledger = here / "out/.parts/0-of-1/predictions.jsonl"
    while started.child.poll() is None and not (ledger.exists() and ledger.stat().st_size):
        time.sleep(0.02)
    started.child.send_signal(number)
    ended = started.end()
    assert ended.returncode == code and "Traceback" not in ended.stderr
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert 0 < len(lines) < len(PLANS)
    named = {line[key] for line in lines for key in ("mask", "color", "overlay", "confidence")}
    assert {str(path.relative_to(here / "out")) for path in (here / "out").rglob("*.png")} == named
    assert not list(here.rglob("*.tmp-*")) and not (here / "out/_SUCCESS.json").exists()
    capsys.readouterr()
    with contextlib.chdir(here):
        assert app.run(PREDICT) == 0
    kept_any = len(lines) >= 2  # a group of --batch scenes counts as a whole
    assert (f"of {len(PLANS)} scenes done" in capsys.readouterr().err) == kept_any
    assert tree(here / "out") == whole


def test_processes_that_nobody_started_are_not_waited_for(here: Path) -> None:
    ended = memorysam(here, WORLD_SIZE="2", RANK="0").end()
    assert ended.returncode == 6 and "start them all with torchrun" in ended.stderr
    assert "Traceback" not in ended.stderr and not (here / "out").exists()


class Cluster:
    """As much of Ray as the program uses: one actor that gets two groups at a time, all of it copied on the way."""

    __spec__ = ModuleSpec("ray", None, origin="here")

    def __init__(self) -> None:
        self.data = self
        context = SimpleNamespace(execution_options=SimpleNamespace())
        self.DataContext = SimpleNamespace(get_current=lambda: context)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.cluster_resources()}]

    def ActorPoolStrategy(self, **_: int) -> None:
        """Of one size."""

    def from_items(self, items: list[dict[str, Any]], **_: int) -> Cluster:
        self.blocks = [items[place : place + 2] for place in range(0, len(items), 2)]
        return self

    def map_batches(self, actor: type, *, fn_constructor_args: tuple[Any, ...], **_: Any) -> Cluster:
        self.actor = actor(*pickle.loads(pickle.dumps(fn_constructor_args)))
        return self

    def iter_rows(self) -> Iterator[dict[str, str]]:
        for block in self.blocks:
            found = self.actor({"scenes": np.array([each["scenes"] for each in block], object)})
            for row in zip(*found.values(), strict=True):
                yield dict(zip(found, row, strict=True))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is imported as Ray."""
    ray = Cluster()
    faults = SimpleNamespace(ExecutionTimeoutError=TimeoutError, RayActorError=TimeoutError, RayError=TimeoutError)
    for name, module in {"ray": ray, "ray.data": ray, "ray.exceptions": faults, "ray.data.exceptions": faults}.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_actors_of_ray(
    here: Path, whole: dict[str, bytes], cluster: None, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """What they do; that real Ray runs them is slow to try."""
    monkeypatch.chdir(here)
    assert app.run([*PREDICT, "--engine", "ray", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.pop("inputs_root") == str(here / "data")
    assert answer == json.loads(whole["_SUCCESS.json"])
    assert tree(here / "out") == whole
    break_scene(here)
    assert app.run([*PREDICT, "--engine", "ray", "--overwrite"]) == 3
    assert "rain/000.png" in capsys.readouterr().err
    assert app.run([*PREDICT, "--engine", "ray", "--on-error", "skip"]) == 4
    assert "continues: 8 of 18 scenes done" in capsys.readouterr().err
    assert [each["id"] for each in json.loads((here / "out/_SUCCESS.json").read_text())["failures"]] == ["rain/000"]


@pytest.mark.slow
@needs_ray
def test_ray(here: Path, whole: dict[str, bytes]) -> None:
    ended = run(here, "-m", "memorysam_cli", *PREDICT, "--engine", "ray", "--json")
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer.pop("inputs_root") == str(here / "data")
    assert answer == json.loads(whole["_SUCCESS.json"])
    assert tree(here / "out") == whole


@pytest.mark.slow
@needs_ray
def test_ray_replaces_an_actor_that_is_killed(here: Path, whole: dict[str, bytes]) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "memorysam_cli", *PREDICT, "--engine", "ray"], cwd=here, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killed = 0
    while started.poll() is None and not killed:
        for actor in actors(started.pid):
            # Killed while it loads the network or segments: its scenes are not all written yet.
            if not (here / "out/masks/rain/008.png").exists():
                with contextlib.suppress(psutil.NoSuchProcess):
                    actor.kill()
                    killed += 1
        time.sleep(0.05)
    _, complained = started.communicate(timeout=300)
    assert killed and started.returncode == 0, complained
    assert tree(here / "out") == whole


@pytest.mark.slow
@needs_ray
def test_ray_and_bad_scenes(here: Path) -> None:
    break_scene(here)
    ended = run(here, "-m", "memorysam_cli", *PREDICT, "--engine", "ray", "--json")
    assert ended.returncode == 3 and "rain/000.png" in ended.stderr
    assert json.loads(ended.stdout)["error"]["code"] == 3
    assert "Traceback" not in ended.stderr and not (here / "out/_SUCCESS.json").exists()
    ended = run(here, "-m", "memorysam_cli", *PREDICT, "--engine", "ray", "--json", "--on-error", "skip")
    assert ended.returncode == 4
    assert [each["id"] for each in json.loads(ended.stdout)["failures"]] == ["rain/000"]
    found = tree(here / "out")
    shutil.rmtree(here / "out")
    run(here, "-m", "memorysam_cli", *PREDICT, "--on-error", "skip")
    again = tree(here / "out")
    assert {**found, "errors.jsonl": b""} == {**again, "errors.jsonl": b""}


@pytest.mark.slow
@needs_ray
def test_a_signal_ends_ray_and_leaves_none_of_its_processes(here: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "memorysam_cli", *PREDICT, "--engine", "ray"], cwd=here, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while started.poll() is None and not list(actors(started.pid)):
        time.sleep(0.05)
    below = psutil.Process(started.pid).children(recursive=True)
    started.send_signal(signal.SIGTERM)
    _, complained = started.communicate(timeout=120)
    assert started.returncode == 143 and "terminated" in complained, complained
    _, left = psutil.wait_procs(below, timeout=30)
    assert not left
    assert not (here / "out/_SUCCESS.json").exists() and not list(here.rglob("*.tmp-*"))


def actors(pid: int) -> Iterator[psutil.Process]:
    """The processes of Ray's that hold a network."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if "Actor" in " ".join(each.cmdline()):
                    yield each
