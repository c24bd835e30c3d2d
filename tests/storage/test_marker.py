from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.errors import FolderInUseError
from memorysam_cli.storage import lock
from memorysam_cli.storage.lock import Marker, Taken

OTHER_HOST = {
    "host": "node7",
    "pid": 1,
    "since": "2026-01-01",
    "command": "memorysam train",
    "where": "x",
    "started": 5,
}


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is on a network, and things go faster."""
    monkeypatch.setattr(lock, "needs_marker", lambda _: True)
    monkeypatch.setattr(lock, "SETTLE_S", 0.2)
    monkeypatch.setattr(lock, "BEAT_S", 0.02)


class LyingLocks:
    """A kernel that grants every lock, or has none."""

    LOCK_EX = LOCK_NB = 0

    def __init__(self, fault: int = 0) -> None:
        self.fault = fault

    def flock(self, _descriptor: int, _how: int) -> None:
        if self.fault:
            raise OSError(self.fault, os.strerror(self.fault))


def leave(folder: Path, record: dict[str, Any], *, silence: float) -> Path:
    """The marker of somebody who has been silent for so many seconds."""
    path = folder / lock.MARKER_NAME
    path.write_text(json.dumps(record))
    touched = time.time() - silence
    os.utime(path, (touched, touched))
    return path


@pytest.mark.parametrize("fault", [0, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_where_locks_lie_or_are_none_the_second_run_is_still_refused(
    fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", LyingLocks(fault))
    monkeypatch.setattr(lock, "needs_marker", lambda _: not fault)
    with lock.hold(tmp_path):
        record = (tmp_path / lock.NAME).read_text()
        with pytest.raises(FolderInUseError, match=rf"in use by \S+ pid {os.getpid()} since 20"), lock.hold(tmp_path):
            pytest.fail("held twice")
        assert (tmp_path / lock.NAME).read_text() == record != ""
        assert {path.name for path in tmp_path.iterdir()} == lock.NAMES
    assert {path.name for path in tmp_path.iterdir()} == {lock.NAME}
    with lock.hold(tmp_path):
        pass


def test_an_owner_on_another_machine_that_was_heard_of_lately_is_respected_and_named(tmp_path: Path) -> None:
    path = leave(tmp_path, OTHER_HOST, silence=20)
    wanted = (
        r"node7 pid 1 since 2026-01-01: memorysam train; .* free 60 s after its last sign of life, (19|20|21) s ago"
    )
    with pytest.raises(FolderInUseError, match=wanted), lock.hold(tmp_path):
        pytest.fail("held twice")
    assert json.loads(path.read_text()) == OTHER_HOST
    assert not (tmp_path / lock.FAULTS).exists()


def test_an_owner_on_another_machine_that_has_been_silent_for_long_is_replaced(tmp_path: Path) -> None:
    path = leave(tmp_path, OTHER_HOST, silence=lock.SILENCE_S + 1)
    with lock.hold(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


@pytest.mark.parametrize("silence", [0.0, 1e4])
def test_a_dead_owner_on_this_machine_is_replaced_at_once_and_a_living_one_never(
    silence: float, tmp_path: Path
) -> None:
    here = lock.this_kernel()
    if here is None:
        pytest.skip("no /proc")
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    record = OTHER_HOST | {"where": here, "pid": child, "started": lock.start_time(child)}
    leave(tmp_path, record, silence=silence)
    with pytest.raises(FolderInUseError, match=f"pid {child} "), lock.hold(tmp_path):
        pytest.fail("held twice")
    os.kill(child, 9)
    os.waitpid(child, 0)
    with lock.hold(tmp_path):
        pass


def test_a_number_that_another_process_has_by_now_is_no_owner(tmp_path: Path) -> None:
    leave(tmp_path, OTHER_HOST | {"where": lock.this_kernel(), "pid": os.getppid(), "started": 1}, silence=0)
    with lock.hold(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"null"])
def test_a_marker_that_says_nothing_counts_by_its_age(content: bytes, tmp_path: Path) -> None:
    path = leave(tmp_path, {}, silence=0)
    path.write_bytes(content)
    with pytest.raises(FolderInUseError, match="a run that left no record"), lock.hold(tmp_path):
        pytest.fail("held twice")
    os.utime(path, (1, 1))
    with lock.hold(tmp_path):
        pass


def test_the_owner_keeps_its_marker_young(tmp_path: Path) -> None:
    with lock.hold(tmp_path):
        os.utime(tmp_path / lock.MARKER_NAME, (1, 1))
        until = time.monotonic() + 60
        while (tmp_path / lock.MARKER_NAME).stat().st_mtime < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
    time.sleep(0.1)
    assert not (tmp_path / lock.MARKER_NAME).exists()


def test_an_owner_that_was_replaced_ends_and_leaves_the_others_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(lock.os, "_exit", codes.append)
    with lock.hold(tmp_path):
        path = leave(tmp_path, OTHER_HOST, silence=0)
        until = time.monotonic() + 60
        while not codes:
            assert time.monotonic() < until
    assert json.loads(path.read_text()) == OTHER_HOST
    assert set(codes) == {9} and f"{path}: was taken over by another run" in capfd.readouterr().err


def test_of_twelve_that_find_a_dead_owner_at_once_one_takes_its_place(tmp_path: Path) -> None:
    """Threads, each with a record of its own: no kernel decides among them."""
    for _ in range(5):
        path = leave(tmp_path, OTHER_HOST, silence=1e4)
        begin, won = threading.Barrier(12), []

        def compete(number: int, begin: threading.Barrier = begin, won: list[Marker] = won) -> None:
            made = Marker(tmp_path, json.dumps(OTHER_HOST | {"token": number}).encode())
            begin.wait()
            try:
                made.take()
            except Taken:
                return
            won.append(made)

        threads = [threading.Thread(target=compete, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].leave()
        assert not path.exists() and list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        Marker(tmp_path, b"{}").take()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mounts", "kind"),
    [
        ("1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:3 / {0} rw shared:1 - lustre m:/fs rw", "lustre"),
        ("1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:3 / {0}other rw - nfs4 m:/fs rw", "ext4"),
        ("1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:3 / {0} rw - nfs m:/ rw\n3 2 0:4 / {0} rw - tmpfs t rw", "tmpfs"),
        ("nonsense", None),
    ],
)
def test_the_kind_of_file_system_is_that_of_the_nearest_mount(
    mounts: str, kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    (tmp_path / "mountinfo").write_text(mounts.format(str(folder).replace(" ", r"\040")))
    monkeypatch.setattr(lock, "_SELF", tmp_path)
    assert lock.file_system(folder / "run") == kind


@pytest.mark.parametrize(
    ("kind", "wanted"), [("ext4", False), ("overlay", False), ("nfs4", True), ("lustre", True), (None, False)]
)
def test_only_a_file_system_that_machines_may_share_needs_a_marker(
    kind: str | None, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(lock, "file_system", lambda _: kind)
    assert lock.needs_marker(tmp_path) is wanted


def test_a_process_is_known_by_its_number_and_its_beginning() -> None:
    mine = lock.start_time(os.getpid())
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    theirs = lock.start_time(child)
    os.kill(child, 9)
    assert mine is not None and theirs is not None and theirs >= mine
    until = time.monotonic() + 60
    while lock.start_time(child) is not None:  # dead, though its parent has not yet asked
        assert time.monotonic() < until
    os.waitpid(child, 0)
    assert lock.start_time(child) is None
