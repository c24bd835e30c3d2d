from __future__ import annotations

from pathlib import Path

import pytest

from memorysam_cli.data.own import classes
from memorysam_cli.errors import UsageError


def read(tmp_path: Path, text: str) -> classes.ClassList:
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    return classes.read_classes(tmp_path / "classes.txt")


def test_a_name_per_line_may_hold_blanks_and_umlauts(tmp_path: Path) -> None:
    found = read(tmp_path, "\ufeff# mine\nroad\n\n  traffic light \nTür\n")
    assert found.names == ("road", "traffic light", "Tür")
    assert (found.has_colours, found.mapping) == (False, ())
    assert len(set(found.palette)) == 3


@pytest.mark.parametrize("line", ["road 128 64 128", "road, 128, 64,128", "road\t#804080", "road #804080"])
def test_a_colour_may_follow(tmp_path: Path, line: str) -> None:
    found = read(tmp_path, f"{line}\nsky 0 0 255\n")
    assert found.names == ("road", "sky") and found.has_colours
    assert found.palette == ((128, 64, 128), (0, 0, 255))


def test_values_make_a_mapping(tmp_path: Path) -> None:
    found = read(tmp_path, "0: background\n255: crack 1 2 3\n".replace(" 1 2 3", ""))
    assert found.names == ("background", "crack") and found.mapping == ((0, 0), (255, 1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 classes; from 1 to 255"),
        ("\n".join(f"c{number}" for number in range(256)), "256 classes"),
        ("road\nroad\n", "the name 'road' is given to two"),
        ("a 1 1 1\nb 1 1 1\n", "the colour"),
        ("1: a\n1: b\n", "the value '1' is given to two"),
        ("a 1 2 3\nb\n", "'b' has no colour, others have"),
        ("1: a\nb\n", "'b' has no value, others have"),
        ("a 1 2 300\n", "classes.txt:1: a colour is three numbers from 0 to 255, not 1 2 300"),
        ("a\n1:\n", "classes.txt:2: a class needs a name"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read(tmp_path, text)


def test_a_missing_or_binary_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--classes .*nothing.txt: no such file"):
        classes.read_classes(tmp_path / "nothing.txt")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        classes.read_classes(tmp_path / "classes.txt")


def test_colours_are_the_files_own_unless_safe_ones_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("road 128 64 128\nsky 70 130 180\n")
    assert classes.read_classes(tmp_path / "classes.txt").palette == ((128, 64, 128), (70, 130, 180))
    assert classes.read_classes(tmp_path / "classes.txt", is_safe=True).palette == classes.safe_palette(2)
