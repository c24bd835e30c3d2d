from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.storage import lock

from .trained import Program


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.store_recipe(recipes.load("demo"))
    for step in range(1, 40):
        found.log_metrics({"step": step, "epoch": 0}, {"loss": 1 / step, "lr": 1e-3})
    return found


def test_in_a_pipe_it_looks_once(run: RunFolder, memorysam: Program) -> None:
    ended = memorysam("watch", run.path)
    assert ended.code == 0
    assert "state          stopped" in ended.out and "step           39, epoch 1 of 8" in ended.out
    loss = next(line for line in ended.out.splitlines() if line.startswith("loss"))
    assert loss.split()[1] == "0.0256" and loss.split()[2].startswith("█") and loss.endswith("▁")
    assert "\x1b" not in ended.out


def test_no_run_is_a_mistake(tmp_path: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = memorysam("watch")
    assert ended.code == 2 and "runs/latest: does not exist" in ended.err


def test_on_a_terminal_it_follows_until_the_run_ends(run: RunFolder) -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "30"}
    for name in ("CI", "GITHUB_ACTIONS"):
        environment.pop(name, None)
    words = [sys.executable, "-m", "memorysam_cli", "watch", str(run.path), "--every", "0.1"]
    held = contextlib.ExitStack()
    held.enter_context(lock.hold(run.path))
    process = subprocess.Popen(words, stdout=slave, stderr=slave, stdin=slave, env=environment)
    os.close(slave)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        until = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < until, seen[-2000:]
            if select.select([master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    seen += os.read(master, 65536)

    wait_for(b"running on")
    run.log_metrics({"step": 40, "epoch": 0}, {"loss": 0.5, "lr": 1e-3})
    wait_for(b"step           40")
    held.close()
    wait_for(b"state          stopped")
    assert process.wait(30) == 0
    os.close(master)
    assert b"Traceback" not in seen
