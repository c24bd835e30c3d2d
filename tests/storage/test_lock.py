from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memorysam_cli.errors import DataError, EnvironmentFault, FolderInUseError, Stopped
from memorysam_cli.storage import atomic, lock

HOLD = """
import os, sys, time
from pathlib import Path
from memorysam_cli.errors import FolderInUseError
from memorysam_cli.storage import atomic, lock
try:
    with lock.hold(Path(sys.argv[1])):
        if "fork" in sys.argv:  # a data worker that outlives its parent
            ready, tell = os.pipe()
            if os.fork() == 0:
                os.write(tell, b"1")
                time.sleep(30)
            os.read(ready, 1)
        print("held", flush=True)
        sys.stdin.readline()
except FolderInUseError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(folder), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_run_is_told_who_owns_the_folder(tmp_path: Path) -> None:
    with start(tmp_path / "run", "--lr", "a b") as owner:
        assert first_line(owner) == "held"
        with pytest.raises(FolderInUseError) as caught, lock.hold(tmp_path / "run"):
            pytest.fail("two runs in one folder")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'run'}: in use by {socket.gethostname()} pid {owner.pid} since 20")
        assert "--lr 'a b'" in message
        assert "\n" not in message
        owner.communicate("\n")
    with lock.hold(tmp_path / "run"):
        pass


def test_within_one_process_a_folder_is_held_once_and_again_later(tmp_path: Path) -> None:
    for _ in range(2):
        with lock.hold(tmp_path):
            with pytest.raises(FolderInUseError, match=f"pid {os.getpid()}"), lock.hold(tmp_path):
                pytest.fail("held twice")
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert (tmp_path / ".lock").read_text() == ""
    with pytest.raises(ValueError, match="x"), lock.hold(tmp_path):
        raise ValueError("x")
    with lock.hold(tmp_path):
        pass


@pytest.mark.parametrize("words", [(), ("fork",)])
def test_a_killed_owner_frees_the_folder_at_once_even_if_its_workers_live_on(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    with start(tmp_path, *words) as owner:
        assert first_line(owner) == "held"
        owner.kill()
        owner.wait()
        try:
            started = time.monotonic()
            with lock.hold(tmp_path):
                assert time.monotonic() - started < 10  # the workers live for 30 s
        finally:
            if words:
                os.killpg(owner.pid, signal.SIGKILL)


def test_the_record_of_a_killed_owner_is_not_taken_for_its_heirs(tmp_path: Path) -> None:
    """The heir has the lock and has not signed yet."""
    with start(tmp_path) as killed:
        assert first_line(killed) == "held"
        killed.kill()
    with (tmp_path / ".lock").open("rb") as heir:
        fcntl.flock(heir, fcntl.LOCK_EX)
        with pytest.raises(FolderInUseError, match="in use by a run that left no record"), lock.hold(tmp_path):
            pytest.fail("two runs in one folder")


def test_of_eight_racing_starts_exactly_one_wins(tmp_path: Path) -> None:
    runs = [start(tmp_path / "run") for _ in range(8)]
    lines = [first_line(run) for run in runs]
    assert lines.count("held") == 1
    owner = runs[lines.index("held")]
    owner_name = f"{socket.gethostname()} pid {owner.pid} "
    assert all(owner_name in line for line in lines if line != "held")
    for run in runs:
        run.communicate("\n")
    assert sorted(run.returncode for run in runs) == [0] + [9] * 7


def test_without_flock_a_marker_file_keeps_the_second_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with lock.hold(tmp_path):
        with pytest.raises(FolderInUseError, match=f"pid {os.getpid()} .*dead, remove"), lock.hold(tmp_path):
            pytest.fail("held twice")
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFault, match="is a file"), lock.hold(tmp_path / "file" / "run"):
        pytest.fail("held nothing")


def test_a_fault_leaves_its_line_in_the_folder(tmp_path: Path) -> None:
    for number in range(2):
        with pytest.raises(DataError), lock.hold(tmp_path):
            raise DataError(f"a.png: empty\n{number}")
    lines = [json.loads(line) for line in (tmp_path / lock.FAULTS).read_text().splitlines()]
    assert [(line["code"], line["message"]) for line in lines] == [(3, "a.png: empty\n0"), (3, "a.png: empty\n1")]
    assert {"time", "command"} < set(lines[0])


@pytest.mark.parametrize("end", [Stopped("terminated", exit_code=143), ValueError("a bug")])
def test_a_clean_stop_and_a_bug_leave_none(tmp_path: Path, end: BaseException) -> None:
    with pytest.raises(type(end)), lock.hold(tmp_path):
        raise end
    assert not (tmp_path / lock.FAULTS).exists()


@pytest.mark.parametrize("is_made_again", [False, True], ids=["removed", "exchanged"])
@pytest.mark.parametrize("fault", [None, ValueError("its file is gone")], ids=["ends well", "fails of it"])
def test_a_folder_that_is_removed_meanwhile_is_told_however_the_work_ends(
    is_made_again: bool, fault: Exception | None, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(EnvironmentFault, match="was removed, or exchanged for another folder"), lock.hold(folder):
        shutil.rmtree(folder)
        if is_made_again:
            folder.mkdir()
        if fault is not None:
            raise fault
    assert folder.exists() == is_made_again
    with lock.hold(folder):  # the next run has nothing to do with it
        atomic.write_text(folder / "a", "1")


def test_nothing_is_written_anew_where_the_folder_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("run")
    with pytest.raises(EnvironmentFault, match="the folder is gone"), lock.hold(folder):
        atomic.write_text(folder / "below" / "a", "1")
        shutil.rmtree(folder)
        atomic.write_text(folder / "below" / "b", "2")
    assert not folder.exists()
