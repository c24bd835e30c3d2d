from __future__ import annotations

import gzip
import os
import random
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from memorysam_cli.errors import DataError, EnvironmentFault, UsageError
from memorysam_cli.storage import archive, archive_formats
from memorysam_cli.storage.archive import MARKER, unpack_beside

from .hostile import FILES, GOOD, HOSTILE, ZEROS, make_tar, make_zip, overlapping, special


def everything(folder: Path) -> dict[str, object]:
    """All names below a folder, hidden ones too, with their content."""
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", GOOD)
def test_a_good_archive_is_unpacked_beside_itself(tmp_path: Path, form: str) -> None:
    name, make = GOOD[form]
    folder, is_new = unpack_beside(put(tmp_path, name, make()))
    assert (folder, is_new) == (tmp_path / "DELIVER", True)
    found = {key: value for key, value in everything(folder).items() if isinstance(value, bytes)}
    del found[MARKER]
    assert found == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["DELIVER", name])


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_written(tmp_path: Path, what: str) -> None:
    name, make, message = HOSTILE[what]
    (tmp_path / "in" / "side").mkdir(parents=True)
    path = put(tmp_path / "in" / "side", name, make())
    before = everything(tmp_path)
    with pytest.raises(DataError) as caught:
        unpack_beside(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("what", ["bomb", "declared", "overlap", "tar bomb", "tar pax bomb"])
def test_a_bomb_costs_neither_time_nor_memory(tmp_path: Path, what: str) -> None:
    name, make, _ = HOSTILE[what]
    path = put(tmp_path, name, make())
    code = (
        "import resource, sys, time\n"
        "from pathlib import Path\n"
        "from memorysam_cli.errors import DataError\n"
        "from memorysam_cli.storage.archive import unpack_beside\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = time.process_time()\n"
        "try:\n"
        "    unpack_beside(Path(sys.argv[1]))\n"
        "except DataError:\n"
        "    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    print((after - before) // 1024, time.process_time() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    megabytes, seconds = done.stdout.split()
    assert int(megabytes) < 100 and float(seconds) < 10


def test_every_truncation_of_every_form_is_refused(tmp_path: Path) -> None:
    for form in ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz"):
        name, make = GOOD[form]
        data = make()
        end = len(data) if form != "tar" else data.rindex(b"top") + 3
        for cut in range(0, end, max(1, end // 60)):
            path = put(tmp_path, name, data[:cut])
            with pytest.raises(DataError):
                unpack_beside(path)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        path.unlink()


def test_a_flipped_bit_of_a_zip_is_refused_or_harmless(tmp_path: Path) -> None:
    data = make_zip()
    refused = 0
    places = range(0, len(data), 3)
    for place in places:
        folder = tmp_path / str(place)
        folder.mkdir()
        path = put(folder, "x.zip", data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            unpacked, _ = unpack_beside(path)
        except DataError:
            refused += 1
            continue
        found = {key: value for key, value in everything(unpacked).items() if isinstance(value, bytes)}
        assert {**found, MARKER: b""} == {**FILES, MARKER: b""}, place
    assert refused > len(places) / 2


@pytest.mark.parametrize("form", ["zip", "tar", "tar, GNU", "tar.gz", "tar.xz"])
def test_random_damage_is_refused_in_one_line_or_harmless(tmp_path: Path, form: str) -> None:
    name, make = GOOD[form]
    data, rng = make(), random.Random(7)
    for number in range(150):
        bad = bytearray(data)
        for _ in range(rng.choice((1, 1, 4, 30))):
            start = rng.randrange(len(bad))
            bad[start : start + rng.choice((0, 1, 8))] = rng.choice((b"", b"\0", b"\xff", b"9" * 8, rng.randbytes(5)))
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            unpack_beside(put(folder, name, bytes(bad)))
        except DataError as fault:
            assert "\n" not in str(fault)
            assert [path.name for path in folder.iterdir()] == [name]
    assert {path.name for path in tmp_path.iterdir()} == {str(number) for number in range(150)}


def test_more_entries_than_the_old_kind_of_zip_can_count(tmp_path: Path) -> None:
    path = put(tmp_path, "x.zip", make_zip({f"{number // 1000}/{number}": b"" for number in range(66_000)}))
    with path.open("rb") as stream:
        assert len(archive_formats.zip_entries(stream)) == 66_000


def test_a_second_run_keeps_what_the_first_unpacked(tmp_path: Path) -> None:
    path = put(tmp_path, "X.zip", make_zip())
    folder, _ = unpack_beside(path)
    (folder / "a" / "x.png").write_bytes(b"mine")
    assert unpack_beside(path) == (folder, False)
    assert (folder / "a" / "x.png").read_bytes() == b"mine"


def test_a_folder_of_an_older_archive_is_left_alone(tmp_path: Path) -> None:
    path = put(tmp_path, "X.zip", make_zip())
    unpack_beside(path)
    path.write_bytes(make_zip({"new.txt": b"n"}))
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="was unpacked from another X"):
        unpack_beside(path)
    assert everything(tmp_path) == before


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    path = put(tmp_path, "X.zip", make_zip())
    put(tmp_path, "X", b"")  # a file
    (tmp_path / "X").unlink()
    (tmp_path / "X").mkdir()
    put(tmp_path / "X", "mine.txt", b"m")
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="exists and was not unpacked from X"):
        unpack_beside(path)
    assert everything(tmp_path) == before


def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = put(tmp_path, "X.zip", make_zip())
    put(tmp_path, "X", b"mine")
    before = everything(tmp_path)
    with pytest.raises(UsageError, match="exists and was not unpacked"):
        unpack_beside(path)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("where", ["X", "X/a", "X/a/x.png"])
def test_a_link_in_the_way_is_never_followed(tmp_path: Path, where: str) -> None:
    victim = tmp_path / "victim"
    (victim / "a").mkdir(parents=True)
    put(victim, "x.png", b"precious")
    link = tmp_path / "here" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(victim if where != "X/a/x.png" else victim / "x.png")
    path = put(tmp_path / "here", "X.zip", make_zip())
    before = everything(tmp_path)
    with pytest.raises(DataError, match="is a symbolic link in the way of X"):
        unpack_beside(path)
    assert everything(tmp_path) == before


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "X").mkdir()
    assert unpack_beside(put(tmp_path, "X.zip", make_zip()))[1]


def test_an_archive_without_a_suffix_gets_a_folder_of_another_name(tmp_path: Path) -> None:
    assert unpack_beside(put(tmp_path, "download", make_zip()))[0] == tmp_path / "download.unpacked"


def test_more_is_unpacked_where_the_user_allows_it(tmp_path: Path) -> None:
    path = put(tmp_path, "x.zip", make_zip({"zeros": ZEROS}))
    with pytest.raises(DataError, match="--max-expand"):
        unpack_beside(path, max_bytes=len(ZEROS) - 1)
    folder, _ = unpack_beside(path, max_bytes=len(ZEROS))
    assert (folder / "zeros").stat().st_size == len(ZEROS)


@pytest.mark.parametrize("make", [make_zip, lambda files: make_tar(*files.items())], ids=["zip", "tar"])
def test_names_that_differ_in_case_are_unpacked_on_request(tmp_path: Path, make: object) -> None:
    assert callable(make)
    folder, _ = unpack_beside(put(tmp_path, "x.zip", make({"A.png": b"1", "a.png": b"2"})), allow_case=True)
    assert (folder / "A.png").read_bytes(), (folder / "a.png").read_bytes() == (b"1", b"2")


def test_the_same_name_twice_is_refused_even_then(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would become the same file"):
        unpack_beside(put(tmp_path, "x.tar", make_tar(("a", b"1"), ("a", b"2"))), allow_case=True)


def test_a_disk_without_case_refuses_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "x.zip", make_zip())
    monkeypatch.setattr(Path, "exists", lambda self: self.name == "A" or os.path.lexists(self))
    with pytest.raises(UsageError, match="does not tell 'A' from 'a'"):
        unpack_beside(path, allow_case=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_progress_counts_the_archives_megabytes(tmp_path: Path) -> None:
    path = put(tmp_path, "x.zip", make_zip({f"{n}.bin": os.urandom(1_500_000) for n in range(4)}))
    told: list[int] = []
    unpack_beside(path, advance=told.append)
    assert sum(told) == archive.megabytes(path) == 7
    assert len(told) > 3


def test_a_disk_that_cannot_hold_it_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "x.zip", make_zip())
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(EnvironmentFault, match=r"unpacking needs 557 bytes, free are 10 bytes"):
        unpack_beside(path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    path = put(tmp_path, "x.tar", make_tar(("a.bin", os.urandom(3_000_000))))
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from memorysam_cli.errors import EnvironmentFault\n"
        "from memorysam_cli.storage.archive import unpack_beside\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "try:\n"
        "    unpack_beside(Path(sys.argv[1]))\n"
        "except EnvironmentFault as fault:\n"
        "    print(fault)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout and "run the same command again" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    path = put(tmp_path, "x.tar", make_tar(*((f"{n}.bin", os.urandom(200_000)) for n in range(200))))
    code = "import sys\nfrom pathlib import Path\nfrom memorysam_cli.storage.archive import unpack_beside\n" \
        "unpack_beside(Path(sys.argv[1]))"  # fmt: skip
    running = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while running.poll() is None and not list(tmp_path.glob(".x.tmp-*/5.bin")):
        time.sleep(0.001)
    running.kill()
    running.wait()
    assert len(list(tmp_path.glob(".x.tmp-*"))) == 1, "killed in the middle"
    unpack_beside(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.tar"]


def test_long_names_of_both_kinds_of_tar_are_read(tmp_path: Path) -> None:
    name = "/".join(["folder-of-some-length"] * 9) + "/" + "n" * 150
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        folder, _ = unpack_beside(put(tmp_path, f"{form}.tar", make_tar((name, b"deep"), ("é.png", b"e"), form=form)))
        assert (folder / name).read_bytes() == b"deep"
        assert (folder / "é.png").read_bytes() == b"e"


def test_a_tar_of_git_with_a_remark_for_all_is_read(tmp_path: Path) -> None:
    data = make_tar(special("", tarfile.XGLTYPE), *FILES.items())
    stream = tmp_path / "g.tar"
    with tarfile.open(stream, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "abc"}) as made:
        info = tarfile.TarInfo("a")
        made.addfile(info)
    assert data
    assert (unpack_beside(stream)[0] / "a").is_file()


def test_other_peoples_files_are_as_open_as_ours(tmp_path: Path) -> None:
    data = make_zip({"run": b"#!/bin/sh"}, external_attr=0o104755 << 16, create_system=3)
    folder, _ = unpack_beside(put(tmp_path, "x.zip", data))
    mine = put(tmp_path, "mine", b"")
    assert (folder / "run").stat().st_mode == mine.stat().st_mode, "no set-uid bit, no execute bit"


def test_the_corpus_would_catch_a_naive_unpacker(tmp_path: Path) -> None:
    """Python's own: it collapses names, and takes overlapping entries and bombs."""
    import zipfile

    accepted = []
    for what, (name, make, _) in HOSTILE.items():
        path = put(tmp_path, name, make())
        if not zipfile.is_zipfile(path) or what in {"declared"}:
            continue
        try:
            zipfile.ZipFile(path).extractall(tmp_path / what)
        except Exception:
            continue
        accepted.append(what)
    assert {"parent", "same file", "absolute", "symlink", "bomb"} <= set(accepted)


def test_memory_is_measured_in_the_unit_we_think() -> None:
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 10_000  # kB on Linux
    assert len(overlapping()) < 100_000 < len(gzip.compress(os.urandom(200_000)))


@pytest.mark.parametrize("name", ["RGBDEL_epoch95_65.38.pth", "depth.NPZ"])
def test_a_zip_that_is_no_archive_to_its_owner_is_left_alone(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, name, make_zip())
    with pytest.raises(DataError, match="is not an archive"):
        unpack_beside(path)
    assert [found.name for found in tmp_path.iterdir()] == [name]
