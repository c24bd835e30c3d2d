from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorysam_cli.data.own.patterns import read_shares, split_by_lists, split_by_shares, splits_in_order
from memorysam_cli.errors import DataError, UsageError

SHARES = (0.8, 0.1, 0.1)
KNOWN_DIVISION = "rrarrrrerr"
"""Second letters: train, val, test."""


@pytest.mark.parametrize(
    ("text", "shares"),
    [("0.8/0.1/0.1", SHARES), ("80/10/10", SHARES), ("0.9/0.1", (0.9, 0.1, 0.0)), ("0.5/0.5/0", (0.5, 0.5, 0.0))],
)
def test_shares_are_read(text: str, shares: tuple[float, float, float]) -> None:
    assert read_shares(text) == pytest.approx(shares)


@pytest.mark.parametrize(
    "text", ["0.8", "0.8/0.1", "a/b", "", "1/0/0", "0/1", "1.2/-0.2", "nan/nan", "0.25/0.25/0.25/0.25"]
)
def test_impossible_shares_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"such as 0\.8/0\.1/0\.1"):
        read_shares(text)


def test_a_known_division_never_changes() -> None:
    found = split_by_shares([f"{number:04}" for number in range(10)], SHARES, seed=0)
    assert "".join(found[f"{number:04}"][1] for number in range(10)) == KNOWN_DIVISION
    assert found != split_by_shares(list(found), SHARES, seed=1)


def test_the_shares_are_kept_in_the_large() -> None:
    counts = Counter(split_by_shares([str(number) for number in range(5000)], SHARES, seed=3).values())
    assert abs(counts["train"] - 4000) < 100 and abs(counts["val"] - 500) < 70 and abs(counts["test"] - 500) < 70


def test_a_scene_keeps_its_split_when_others_come() -> None:
    few = split_by_shares([str(number) for number in range(100)], SHARES, seed=0)
    many = split_by_shares([str(number) for number in range(300)], SHARES, seed=0)
    assert {name: many[name] for name in few} == few


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=12), st.integers(0, 50), st.booleans())
def test_no_split_is_empty(names: set[str], seed: int, has_test: bool) -> None:
    shares = SHARES if has_test else (0.9, 0.1, 0.0)
    found = split_by_shares(sorted(names), shares, seed=seed)
    assert set(found.values()) == ({"train", "val", "test"} if has_test and len(names) > 2 else {"train", "val"})
    assert found == split_by_shares(sorted(names, reverse=True), shares, seed=seed)


def test_one_scene_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="label at least two"):
        split_by_shares(["a"], SHARES, seed=0)


KNOWN = {
    "a/1": ["rgb/a/1_rgb.png", "depth/a/1.npy"],
    "a/2": ["rgb/a/2_rgb.png", "depth/a/2.npy"],
    "b/2": ["rgb/b/2_rgb.png", "depth/b/2.npy"],
    "my scene": ["rgb/my scene.png"],
}


def lists(tmp_path: Path, **texts: str) -> dict[str, Path]:
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return {name: tmp_path / f"{name}.txt" for name in texts}


def test_a_list_names_scenes_by_id_by_a_file_or_by_the_last_part(tmp_path: Path) -> None:
    train = "# mine\na/1\n\n./rgb/a/2_rgb.png  masks/a/2.png\nmy scene\n"
    assert split_by_lists(KNOWN, lists(tmp_path, train=train, val="b/2.png\n")) == {
        "a/1": "train", "a/2": "train", "my scene": "train", "b/2": "val",
    }  # fmt: skip
    assert split_by_lists(KNOWN, lists(tmp_path, train="1_rgb.png\n1\n")) == {"a/1": "train"}


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        ({"train": "a/1\n2\n"}, r"train.txt:2: '2' may be a/2 or b/2"),
        ({"train": "a/1\n", "val": "# later\n\n"}, r"val.txt: names no scene for 'val'"),
        ({"train": "c/9\n"}, r"train.txt:1: 'c/9' is not a scene \(a scene is called, for example, a/1\)"),
        ({"train": "a/1\n", "val": "b/2\na/1\n"}, r"val.txt:2: scene 'a/1' is in 'train' already \(.*train.txt:1\)"),
    ],
)
def test_a_line_that_is_wrong_is_refused(tmp_path: Path, texts: dict[str, str], why: str) -> None:
    with pytest.raises(DataError, match=why):
        split_by_lists(KNOWN, lists(tmp_path, **texts))


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--split .*x.txt: no such file"):
        split_by_lists(KNOWN, {"train": tmp_path / "x.txt"})


def test_the_usual_splits_come_first() -> None:
    assert splits_in_order(["zoo", "test", "val", "train", "train", "all"]) == ["train", "val", "test", "all", "zoo"]
