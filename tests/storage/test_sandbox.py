"""A confined process can read, compute and answer, and nothing else; and nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.storage import children, torch_child

pytestmark = pytest.mark.usefixtures("afresh")

JOBS = "tests.storage.confined_jobs"


def confined(folder: Path, *, port: int, how: str) -> dict[str, Any]:
    process = children.start(JOBS, str(folder), str(port), how, environment=os.environ, show_errors=True)
    try:
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.read())
        return found
    finally:
        children.end(process)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bounds are Linux's")
def test_the_kernel_alone_holds_it_to_memory_and_files(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = confined(tmp_path, port=server.getsockname()[1], how="bare")
    ends = found["ends"]
    assert ends["memory"] == "OSError" and ends["write"] == "OSError" and (tmp_path / "there").read_bytes() == b""
    assert ends["little memory"] == ends["read"] == "done"
    assert (ends["connect"] == "OSError") == (found["network"] == torch_child.NAMESPACE), found


def test_python_s_own_events_stop_the_rest(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = confined(tmp_path, port=server.getsockname()[1], how="watched")
    ends = found["ends"]
    assert [ends[name] for name in ("connect", "open", "system")] == ["Attempt"] * 3 and ends["read"] == "done"
    assert found["tried"][1:] == ["writing a file", "os.system"] and found["tried"][0].startswith("socket.")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_time_that_is_used_up_is_an_end(tmp_path: Path) -> None:
    code = f"from {JOBS} import spin; spin([])"
    ended = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert ended.returncode == -signal.SIGXCPU


def test_a_child_that_ended_before_it_read_leaves_no_file_open() -> None:
    process = children.start("no_such_module", environment=os.environ)
    assert process.stdin is not None and process.stdout is not None
    process.wait()
    process.stdin.write(b"a line that nobody reads")  # stays in the buffer until the pipe is closed
    children.end(process)
    assert process.stdin.closed and process.stdout.closed


def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys; from memorysam_cli.storage import children\n"
        "process = children.start('waiting', environment=os.environ)\n"
        "print(process.pid, flush=True); process.wait()"
    )
    (tmp_path / "waiting.py").write_text(
        "import os, time\nfrom memorysam_cli.storage import children\n"
        "def main(arguments):\n    children.watch_parent(lambda: os._exit(0))\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while _lives(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_signal_has_its_name() -> None:
    assert children.signal_name(-11) == "SIGSEGV" and children.signal_name(-500) == "signal 500"
