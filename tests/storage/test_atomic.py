from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.storage import atomic
from memorysam_cli.text import shown


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_bytes_and_text_arrive_as_they_are_and_parents_are_made(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a" / "b" / "x.bin", b"\x00\r\n\xff")
    atomic.write_text(tmp_path / "y.txt", "é\r\n", fsync=False)
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"\x00\r\n\xff"
    assert (tmp_path / "y.txt").read_bytes() == b"\xc3\xa9\r\n"
    assert names(tmp_path) == ["a", "a/b", "a/b/x.bin", "y.txt"]


def test_pieces_arrive_in_order_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    atomic.write_pieces(path, (f"{number}\n".encode() for number in range(3)))
    assert path.read_bytes() == b"0\n1\n2\n"

    def breaking() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        atomic.write_pieces(path, breaking())
    assert path.read_bytes() == b"0\n1\n2\n" and names(tmp_path) == ["lines"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_mode_of_the_umask_even_when_the_writer_replaces_them(
    mask: int, mode: int, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        atomic.write_bytes(tmp_path / "a", b"1")
        with atomic.new_file(tmp_path / "b") as temporary:  # as safetensors does: its own file, mode 0600
            own = temporary.with_suffix(".own")
            own.touch(mode=0o600)
            own.replace(temporary)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [mode, mode]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(fault: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "x"
    atomic.write_text(path, "old")
    with pytest.raises(fault), atomic.new_file(path) as temporary:
        temporary.write_text("half")
        raise fault
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_names_path_needed_and_free(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    atomic.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(EnvironmentFault, match=r"needs 2\.0 MB, free [0-9.]+ MB") as caught:
        atomic.write_bytes(path, bytes(2_000_000))
    assert str(caught.value).startswith(f"{path}: cannot write: {os.strerror(code)}")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


FILE_SIZE_LIMIT = """
import resource, signal, sys
from pathlib import Path
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.storage import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic.write_bytes(Path(sys.argv[1]), b"new" * 1000)
except EnvironmentFault as error:
    print(error)
"""


def test_a_write_that_the_kernel_cuts_short_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    atomic.write_text(path, "old")
    output = subprocess.run(
        [sys.executable, "-c", FILE_SIZE_LIMIT, str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert "File too large (needs 0.0 MB, free" in output
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_a_lying_write_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: real(self, data[:-1]))
    with pytest.raises(EnvironmentFault, match="only 4 of 5 bytes arrived"):
        atomic.write_bytes(tmp_path / "x", b"12345")
    assert names(tmp_path) == []


def test_impossible_targets_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, words in [
        (tmp_path / "file" / "x", "is a file"),
        (tmp_path / "folder", "is a folder"),
        (tmp_path / ("n" * 300), "shorter path"),
        (Path("/proc/memorysam/x"), "cannot write"),
    ]:
        with pytest.raises(EnvironmentFault, match=words) as caught:
            atomic.write_bytes(path, b"")
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "a\nb $(x)", os.fsdecode(b"\xff\xfe"), "-rf", "😀" * 60])
def test_strange_names_are_written_and_shown_on_one_line(name: str, tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / name, b"1")
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208  (as the kernel has it)
    assert shown(name).isprintable()
    shown(name).encode()


def test_a_folder_appears_whole_with_all_it_holds(tmp_path: Path) -> None:
    with atomic.new_folder(tmp_path / "runs" / "step-1") as folder:
        assert not (tmp_path / "runs" / "step-1").exists()
        atomic.write_text(folder / "a.json", "{}")
        atomic.write_text(folder / "deep" / "b.json", "{}")
    assert names(tmp_path) == [
        "runs",
        "runs/step-1",
        "runs/step-1/a.json",
        "runs/step-1/deep",
        "runs/step-1/deep/b.json",
    ]


def test_a_failing_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), atomic.new_folder(tmp_path / "x") as folder:
        atomic.write_text(folder / "a", "1")
        raise ValueError("stop")
    assert names(tmp_path) == []


def test_a_folder_that_exists_is_never_replaced(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "x" / "old", "1")
    with pytest.raises(EnvironmentFault, match="choose another name"), atomic.new_folder(tmp_path / "x"):
        pytest.fail("must not get here")
    with pytest.raises(EnvironmentFault, match="choose another name"), atomic.new_folder(tmp_path / "y") as folder:
        atomic.write_text(folder / "new", "2")
        atomic.write_text(tmp_path / "y" / "rival", "3")
    assert names(tmp_path) == ["x", "x/old", "y", "y/rival"]


def test_all_is_synced_before_the_rename_and_the_parent_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    real_fsync, real_rename, real_replace = os.fsync, Path.rename, Path.replace

    def fsync(descriptor: int) -> None:
        log.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name.split('.tmp-')[0]}")
        real_fsync(descriptor)

    def renamed(real: object, mark: str) -> object:
        def rename(self: Path, target: Path) -> Path:
            log.append(f"{mark} {target.name}")
            return real(self, target)  # type: ignore[operator,no-any-return]

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed(real_rename, "rename"))
    monkeypatch.setattr(Path, "replace", renamed(real_replace, "rename"))
    atomic.write_bytes(tmp_path / "x", b"1")
    assert log == ["sync .x", "rename x", f"sync {tmp_path.name}"]
    log.clear()
    with atomic.new_folder(tmp_path / "f") as folder:
        (folder / "a").write_bytes(b"1")
    assert log == ["sync a", "sync .f", "rename f", f"sync {tmp_path.name}"]
    log.clear()
    atomic.write_bytes(tmp_path / "x", b"1", fsync=False)
    assert log == ["rename x"]


def test_a_log_grows_line_by_line(tmp_path: Path) -> None:
    for word in ("a", "é\udcff"):
        with atomic.open_log(tmp_path / "run" / "log.txt") as log:
            log.write(f"{word}\n")
            assert (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()[-1][0] == word[0]
    assert (tmp_path / "run" / "log.txt").read_bytes() == b"a\n\xc3\xa9\\udcff\n"
    with pytest.raises(EnvironmentFault, match="is a folder"):
        atomic.open_log(tmp_path / "run")


OVERWRITE_FOR_EVER = """
import itertools, sys
from pathlib import Path
from memorysam_cli.storage import atomic
for number in itertools.count():
    atomic.write_bytes(Path(sys.argv[1]), b"%d " % number * 20_000 + b"end")
    print(number, flush=True)
"""


def test_after_a_kill_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", OVERWRITE_FOR_EVER, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        number, *rest, end = path.read_bytes().split()
        assert (end, len(rest)) == (b"end", 19_999)
        assert set(rest) == {number}


def test_a_folder_that_another_thread_makes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_dir, asked = Path.is_dir, []

    def late(path: Path) -> bool:
        """The folder appears right after it was requested."""
        if path == tmp_path / "a" and not asked:
            asked.append(path)
            path.mkdir()
            return False
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", late)
    atomic.write_text(tmp_path / "a" / "b.txt", "whole")
    assert asked and (tmp_path / "a" / "b.txt").read_text() == "whole"


def test_a_write_sweeps_what_killed_writers_of_the_same_file_left_and_nothing_else(tmp_path: Path) -> None:
    def left(name: str, *, pid: int, host: str | None = None) -> str:
        found = atomic._temporary(tmp_path / name).name.replace(f"-{os.getpid()}-", f"-{pid}-")
        found = found if host is None else found.replace(socket.gethostname().replace("/", "_")[:32], host)
        (tmp_path / found).write_text("half")
        return found

    dead = 2**22 + 1  # above the kernel's largest
    left("a", pid=dead)
    others = {left("b", pid=dead), left("a", pid=os.getpid()), left("a", pid=dead, host="elsewhere")}
    atomic.write_text(tmp_path / "a", "1", fsync=False)  # one of masses: its owner sweeps
    assert len(list(tmp_path.iterdir())) == 5
    atomic.write_text(tmp_path / "a", "2")
    assert {path.name for path in tmp_path.iterdir()} == {"a", *others}
    left("c", pid=dead)
    with atomic.new_folder(tmp_path / "c"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c", *others}


def test_a_disk_without_room_is_refused_ahead(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    atomic.refuse_unwritable(tmp_path / "new")
    with pytest.raises(EnvironmentFault, match=r"new: cannot write: No space left on device \(needs [\d.]+ MB, free"):
        atomic.refuse_unwritable(tmp_path / "new", needed_bytes=100 * free)


def test_a_file_never_takes_the_place_of_what_is_none(tmp_path: Path) -> None:
    """As root, ``report --out /dev/null`` would take it from every program of the machine."""
    os.mkfifo(tmp_path / "fifo")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(os.path.relpath(tmp_path / "socket"))
    bound.close()
    (tmp_path / "to a fifo").symlink_to("fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "socket", "to a fifo", "loop"):
        before = (tmp_path / name).lstat()
        with pytest.raises(EnvironmentFault, match=f"{name}: cannot write: "):
            atomic.write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).lstat() == before
    with pytest.raises(EnvironmentFault, match="it is in the folder of the devices"), atomic.new_file(Path("/dev/nul")):
        raise AssertionError("a place was given")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "loop", "socket", "to a fifo"]
