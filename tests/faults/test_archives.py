"""Block H: hostile archives leave no byte anywhere, whatever lies in their way (row 13)."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from memorysam_cli.errors import DataError, MemorySamError
from memorysam_cli.storage.archive import MARKER, unpack_beside
from tests.faults.conftest import Figures
from tests.faults.naive import unpacking
from tests.faults.scale import amount
from tests.storage.hostile import FILES, GOOD, HOSTILE, make_zip
from tests.storage.test_archive import everything

SECRET = b"nobody may write here"
SEALED = ("zip", "zip, stored", "zip, bzip2", "tar.gz", "tar.bz2", "tar.xz")
"""Forms whose content has a checksum."""


def place(folder: Path, name: str, content: bytes) -> Path:
    """An archive deep in a folder, with victims and links where hostile names lead."""
    side = folder / "outer" / "inner"
    (side / "a").mkdir(parents=True)
    (folder / "victims").mkdir()
    for victim in (folder / "victims" / "x.png", folder / "evil.png", folder / "outer" / "evil.png", side / "evil"):
        victim.write_bytes(SECRET)
    for link in (side / "link", side / "b"):
        link.symlink_to(folder / "victims", target_is_directory=True)
    (side / "l").symlink_to(folder / "victims" / "x.png")
    path = side / name
    path.write_bytes(content)
    return path


def target_of(path: Path) -> Path:
    return path.with_name(path.name.split(".")[0])


def seed(target: Path, victims: Path) -> None:
    """A folder in the way, with links out of it under the names that archives use."""
    target.mkdir()
    (target / "a").symlink_to(victims, target_is_directory=True)
    (target / "top.txt").symlink_to(victims / "x.png")
    (target / "mine.txt").write_bytes(SECRET)


def harms(folder: Path, unpack: Callable[[], object], *, allowed: type[Exception]) -> list[str]:
    """What happened that must not: it was not refused, or anything below the folder changed."""
    before, found = everything(folder), []
    try:
        unpack()
        found.append("accepted")
    except allowed:
        pass
    after = everything(folder)
    return found + [f"touched {name}" for name in sorted({*before} | {*after}) if before.get(name) != after.get(name)]


def test_hostile_archives_are_refused_and_leave_nothing_inside_or_outside(
    tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    found = {}
    for number, (what, (name, make, message)) in enumerate(HOSTILE.items()):
        folder = tmp_path / str(number)
        path = place(folder, name, make())
        if rng.random() < 0.5:
            target_of(path).mkdir()  # an empty one is taken over
        found[what] = harms(folder, lambda path=path: unpack_beside(path), allowed=DataError)
        with pytest.raises(DataError) as caught:
            unpack_beside(path)
        assert message in str(caught.value) and caught.value.exit_code == 3
    assert {what: harm for what, harm in found.items() if harm} == {}
    assert len(found) >= 30
    figures("H", archives=len(found), accepted=0, touched=0)


def test_a_folder_or_a_link_in_the_way_is_refused_and_never_written_through(
    tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    sources = [(name, make) for name, make in GOOD.values()] + [(name, make) for name, make, _ in HOSTILE.values()]
    for number, (name, make) in enumerate(sources):
        folder = tmp_path / str(number)
        path = place(folder, name, make())
        if rng.random() < 0.5:
            seed(target_of(path), folder / "victims")
        else:
            target_of(path).symlink_to(folder / "victims", target_is_directory=True)
        assert harms(folder, lambda path=path: unpack_beside(path), allowed=DataError) == []
    figures("H", seeded=len(sources), touched=0)


def test_a_damaged_archive_is_refused_whole_or_unpacked_exactly(
    tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    tries, refused = amount(150, soak=3000), 0
    for number in range(tries):
        name, make = GOOD[rng.choice(SEALED)]
        data = bytearray(make())
        if rng.random() < 0.5:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        folder = tmp_path / str(number)
        path = place(folder, name, bytes(data))
        before = everything(folder)
        try:
            target, _ = unpack_beside(path)
        except DataError:
            refused += 1
            assert everything(folder) == before
            continue
        whole = {key: value for key, value in everything(target).items() if isinstance(value, bytes)}
        del whole[MARKER]
        assert whole == FILES
        outside = f"{target.relative_to(folder)}"
        after = {key: value for key, value in everything(folder).items() if not key.startswith(outside)}
        assert after == {key: value for key, value in before.items() if not key.startswith(outside)}
    assert refused > tries // 2
    figures("H", damaged=tries, wrong=0)


def test_naive_unpacking_collapses_names_and_writes_through_links_under_the_same_judge(tmp_path: Path) -> None:
    def judge(number: int, data: bytes) -> list[str]:
        folder = tmp_path / str(number)
        path = place(folder, "x.zip", data)
        seed(target_of(path), folder / "victims")
        anything = (OSError, RuntimeError, MemorySamError)
        return harms(folder, lambda: unpacking.unpack(path, target_of(path)), allowed=anything)  # type: ignore[arg-type]

    through = judge(0, make_zip())
    assert "touched victims/x.png" in through and "accepted" in through
    for number, what in enumerate(("parent", "same file", "double slash", "absolute"), start=1):
        assert "accepted" in judge(number, HOSTILE[what][1]())
