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
    assert (found.has_colors, found.mapping) == (False, ())
    assert len(set(found.palette)) == 3


@pytest.mark.parametrize("line", ["road 128 64 128", "road, 128, 64,128", "road\t#804080", "road #804080"])
def test_a_color_may_follow(tmp_path: Path, line: str) -> None:
    found = read(tmp_path, f"{line}\nsky 0 0 255\n")
    assert found.names == ("road", "sky") and found.has_colors
    assert found.palette == ((128, 64, 128), (0, 0, 255))


PLAIN, COLORED = ("road", "traffic light"), ((128, 64, 128), (250, 170, 30))


@pytest.mark.parametrize(
    ("text", "has_colors", "mapping"),
    [
        ("name,r,g,b\nroad,128,64,128\ntraffic light,250,170,30\n", True, ()),  # CamVid's class_dict.csv
        (' name, r, g, b\nroad, 128, 64, 128\n"traffic light", 250, 170, 30\n', True, ()),
        ("# label:color_rgb:parts:actions\nroad:128,64,128::\ntraffic light:250,170,30:lamp,pole:on\n", True, ()),
        ("class red green blue\nroad 128 64 128\ntraffic light 250 170 30\n", True, ()),
        ("Class Name;Hex;super\nroad;#804080;flat\ntraffic light;#faaa1e;thing\n", True, ()),
        ("r\tg\tb\tid\tname\n128\t64\t128\t7\troad\n250\t170\t30\t19\ttraffic light\n", True, ((7, 0), (19, 1))),
        ("index,name\n7,road\n19,traffic light\n", False, ((7, 0), (19, 1))),
        ("name\nroad\ntraffic light\n", False, ()),
    ],
)
def test_a_header_line_and_the_lists_of_other_programs_are_understood(
    tmp_path: Path, text: str, has_colors: bool, mapping: tuple[tuple[int, int], ...]
) -> None:
    found = read(tmp_path, text)
    assert (found.names, found.has_colors, found.mapping) == (PLAIN, has_colors, mapping)
    assert not has_colors or found.palette == COLORED


def test_words_of_a_header_may_be_in_names(tmp_path: Path) -> None:
    assert read(tmp_path, "class road\nname tag\n").names == ("class road", "name tag")


def test_values_make_a_mapping(tmp_path: Path) -> None:
    found = read(tmp_path, "0: background\n255: crack 1 2 3\n".replace(" 1 2 3", ""))
    assert found.names == ("background", "crack") and found.mapping == ((0, 0), (255, 1))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "0 classes; from 1 to 255"),
        ("\n".join(f"c{number}" for number in range(256)), "256 classes"),
        ("road\nroad\n", "the name 'road' is given to two"),
        ("a 1 1 1\nb 1 1 1\n", "the color"),
        ("1: a\n1: b\n", "the value '1' is given to two"),
        ("a 1 2 3\nb\n", "'b' has no color, others have"),
        ("1: a\nb\n", "'b' has no value, others have"),
        ("a 1 2 300\n", "classes.txt:1: a color is three numbers from 0 to 255, not 1 2 300"),
        ("a\n1:\n", "classes.txt:2: a class needs a name"),
        ("name,r,g,b\nroad,1,2\n", "classes.txt:2: 3 cells, but the header line has 4"),
        ("id,name\nx,road\n", "classes.txt:2: a class's value is a whole number from 0 to 65535, not 'x'"),
        ("name,r,g,b\n", "0 classes; from 1 to 255"),
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


def test_colors_are_the_files_own_unless_safe_ones_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("road 128 64 128\nsky 70 130 180\n")
    assert classes.read_classes(tmp_path / "classes.txt").palette == ((128, 64, 128), (70, 130, 180))
    assert classes.read_classes(tmp_path / "classes.txt", is_safe=True).palette == classes.safe_palette(2)
