"""Block O, rows 39 to 42: bad luck that takes a second process, a signal, or a server to bring about."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memorysam_cli.storage import lock
from tests.engine.stand_ins import PLANS, write_data
from tests.faults.bad_inputs import ERROR, PROGRAM
from tests.faults.jobs_bad_inputs import RECIPE
from tests.storage.test_hub import FLIPPED, served

LONG = ["--set", "train.epochs=100000", "--set", "train.validate_every=100000"]
"""A training run that ends only when it is told to."""
PATIENCE_S = 60


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working folder with a data set and a recipe."""
    folder = tmp_path / "here"
    write_data(folder / "data", [*PLANS, *((f"rain/train/{n}/1", "train", "rain", None, (64, 64)) for n in range(3))])
    (folder / "tiny.yaml").write_text(RECIPE.replace("checkpoint_minutes: 1e-6", "checkpoint_minutes: 60"))
    return folder


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with served() as address:
        yield address


def start(here: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    own = {"HOME": str(here.parent / "home"), "TMPDIR": str(here.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*PROGRAM, *arguments], cwd=here, env=os.environ | own | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def told(process: subprocess.Popen[str]) -> tuple[str, str]:
    """All that stderr said, and its last line; stdout stayed empty and there is no traceback."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert out == "" and "Traceback" not in err, err
    return err, err.rstrip("\n").rpartition("\n")[2]


def until_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a training run has logged an update."""
    deadline = time.monotonic() + PATIENCE_S
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count('"loss"') >= step):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_second_run_in_a_folder_ends_with_9(here: Path) -> None:
    """RELIABILITY §4, row 39."""
    with lock.hold(here / "runs/new"):
        process = start(here, "train", "-r", "tiny.yaml", "--out", "runs/new")
        _, line = told(process)
    assert process.returncode == 9
    for words in (f"{ERROR}9]: ", "runs/new: in use by ", f"pid {os.getpid()}", " since ", "another --out"):
        assert words in line
    assert [path.name for path in (here / "runs/new").iterdir()] == [lock.NAME]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        pytest.param("404", ("HTTP 404", "not retryable"), marks=pytest.mark.slow),
        ("flip", ("wrong content", "not retryable")),
    ],
)
def test_a_hub_that_does_not_deliver_ends_with_7(mode: str, words: tuple[str, ...], here: Path, hub: str) -> None:
    """RELIABILITY §4, row 40; all of its faults are block G."""
    home = here.parent / "hub"
    variables = {"HF_ENDPOINT": f"{hub}/{mode}", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    process = start(here, "weights", "fetch", "sam2-hiera-tiny", **variables)
    _, line = told(process)
    assert process.returncode == 7 and line.startswith(f"{ERROR}7]: facebook/sam2-hiera-tiny/sam2_hiera_tiny.pt: ")
    assert all(part in line for part in words), line
    cached = [path for path in home.rglob("*") if path.is_file()]
    assert not [path for path in cached if path.read_bytes() == FLIPPED or path.suffix == ".incomplete"]


def stopped(process: subprocess.Popen[str], here: Path, number: signal.Signals, *, code: int) -> str:
    """Tell a training to end: it saves, says how to continue, and leaves no temporary. All that it said on stderr."""
    process.send_signal(number)
    err, line = told(process)
    assert process.returncode == code and line.startswith(f"{ERROR}{code}]: ")
    saved = re.search(r"step (\d+) (?:is )?saved", line)
    assert saved is not None and "--resume runs/new" in line, line
    assert (here / f"runs/new/checkpoints/step-{int(saved[1]):08d}/MANIFEST.json").is_file()
    assert not list(here.rglob("*.tmp-*"))
    return err


@pytest.mark.slow
def test_a_training_that_is_interrupted_says_how_to_go_on(here: Path) -> None:
    """RELIABILITY §4, row 41: exit code 130."""
    process = start(here, "train", "-r", "tiny.yaml", "--out", "runs/new", *LONG)
    until_step(here / "runs/new", 3, process)
    stopped(process, here, signal.SIGINT, code=130)


def readers_of(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes of a training run."""
    found = []
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


@pytest.mark.slow  # plain runs kill readers in test_workers.py
def test_a_reader_of_scenes_that_is_killed_is_replaced_until_the_end(here: Path) -> None:
    """RELIABILITY §4, rows 42 and 41: the out-of-memory killer takes a worker; then exit code 143."""
    if sys.platform != "linux":
        pytest.skip("the children of a process are read from /proc, which is Linux's")
    process = start(here, "train", "-r", "tiny.yaml", "--out", "runs/new", "--set", "data.workers=1", *LONG)
    until_step(here / "runs/new", 2, process)
    ends = time.monotonic() + 120
    while time.monotonic() < ends:  # one that has nothing more to read in its epoch is not missed
        for worker in readers_of(process)[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGSTOP)  # so that it has something in hand when it dies, and is waited for
                time.sleep(0.5)
                os.kill(worker, signal.SIGKILL)
        if "rain/train/" in (here / "runs/new/train.log").read_text():
            break
        time.sleep(0.02)
    seen = (here / "runs/new/metrics.jsonl").read_text().count('"loss"')
    until_step(here / "runs/new", seen + 3, process)
    err = stopped(process, here, signal.SIGTERM, code=143)
    assert re.search(r"memorysam: warning: .*rain/train/", err), err
