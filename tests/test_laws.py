from __future__ import annotations

import json

import numpy as np
import pytest

from memorysam_cli.errors import LawBroken, MemorySamError, check_laws


def test_laws_that_hold_are_told_with_both_sums() -> None:
    assert check_laws({"scenes found = accepted + left out": (7, 5 + 2), "none = none": (0, 0)}) == {
        "scenes found = accepted + left out": {"left": 7, "right": 7, "holds": True},
        "none = none": {"left": 0, "right": 0, "holds": True},
    }


def test_every_broken_law_is_named_with_its_sums() -> None:
    with pytest.raises(LawBroken, match=r"'a = b': 1,897 ≠ 1,270; 'e = f': 0 ≠ 1;") as caught:
        check_laws({"a = b": (1897, 1270), "c = d": (3, 3), "e = f": (0, 1)})
    assert "'c = d'" not in str(caught.value)


def test_a_broken_law_is_our_bug_not_the_users_mistake() -> None:
    assert issubclass(LawBroken, AssertionError)
    assert not issubclass(LawBroken, MemorySamError)


def test_the_report_is_plain_json_whatever_was_counted_with() -> None:
    said = check_laws({"a = b": (int(np.int64(3)), 3)}) | check_laws({"c = d": (np.int64(4), 4)})  # type: ignore[dict-item]
    assert json.loads(json.dumps(said)) == said


def test_the_same_laws_give_the_same_report_in_their_order() -> None:
    asked = {"z = z": (1, 1), "a = a": (2, 2)}
    assert list(check_laws(asked)) == ["z = z", "a = a"]
    assert check_laws(asked) == check_laws(asked)
