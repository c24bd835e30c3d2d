"""Block I, row 15: a label's values are exact or refused, of whatever type; no value wraps, and no pixel is lost."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from memorysam_cli.data import decode, findings
from memorysam_cli.dataset import IGNORE, LabelRule
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images
from tests.faults.conftest import Figures
from tests.faults.naive import pictures
from tests.faults.scale import amount

DTYPES = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
LOWEST, HIGHEST = -2, 70_000


def draw_rule(rng: random.Random, classes: int) -> LabelRule:
    """Plain, shifted, or with a table."""
    ignore = tuple(sorted({255, rng.choice([-1, 0, 254, 300, 65_535, 70_000])}))
    kind = rng.choice(["plain", "shifted", "table"])
    if kind == "shifted":
        return LabelRule(shift=rng.choice([-1, 1, -300, 2]), ignore=ignore)
    if kind == "table":
        raw = [value for value in rng.sample(range(65_536), 12) if value not in ignore]
        return LabelRule(mapping=tuple((value, rng.randrange(classes)) for value in raw), ignore=ignore)
    return LabelRule(ignore=ignore)


def meaning(value: int, rule: LabelRule, classes: int) -> int | None:
    """What a value is, in plain numbers: a class, 255, or nothing."""
    if value in rule.ignore:
        return IGNORE
    found = dict(rule.mapping).get(value, -1) if rule.mapping else value + rule.shift
    return found if 0 <= found < classes and 0 <= value < 65_536 else None


def draw_values(rng: random.Random, dtype: type, rule: LabelRule, classes: int) -> npt.NDArray[Any]:
    """Some legal values, and in half of the cases some of any kind."""
    info = np.iinfo(dtype)
    lowest, highest = max(LOWEST, info.min), min(HIGHEST, info.max)
    known = {*rule.ignore, *dict(rule.mapping), *(index - rule.shift for index in range(classes))}
    legal = [value for value in known if lowest <= value <= highest and meaning(value, rule, classes) is not None]
    edges = [-2, -1, classes, 200, 254, 255, 256, 300, 32_768, 65_535, 65_536, 65_537, 70_000]
    wild = [value for value in edges if lowest <= value <= highest] + [rng.randint(lowest, highest)]
    pool = legal if legal and rng.random() < 0.5 else [*legal, *rng.sample(wild, 1)]
    shape = rng.choice([(1, 1), (1, 37), (23, 19)])
    return np.array([rng.choice(pool) for _ in range(shape[0] * shape[1])], np.int64).reshape(shape).astype(dtype)


def write(folder: Path, values: npt.NDArray[Any], rng: random.Random) -> Path:
    """As NumPy, or as PNG where that can hold it."""
    if values.dtype in (np.uint8, np.uint16) and rng.random() < 0.7:
        images.write_png(folder / "label.png", values, fsync=False)
        return folder / "label.png"
    np.save(folder / "label.npy", values)
    return folder / "label.npy"


def harm(values: npt.NDArray[Any], rule: LabelRule, classes: int, read: Callable[[], npt.NDArray[Any]]) -> str:
    """What is wrong with how a label was read; empty if nothing is."""
    truth = [meaning(int(value), rule, classes) for value in values.ravel()]
    bad = Counter(int(value) for value, index in zip(values.ravel(), truth, strict=True) if index is None)
    try:
        found = read()
    except DataError as fault:
        first = next((place for place, index in enumerate(truth) if index is None), None)
        if first is None:
            return f"refused legal values: {fault}"
        value, (row, column) = int(values.flat[first]), divmod(first, values.shape[1])
        count = f"{bad[value]:,} pixel{'s' * (bad[value] != 1)}"
        said = f"label value {value} in {count}, first at (row {row}, column {column})"
        return "" if said in str(fault) else f"'{said}' is not in '{fault}'"
    if bad:
        return f"accepted {min(bad)}"
    if found.dtype != np.uint8 or found.shape != values.shape or found.ravel().tolist() != truth:
        return "other classes than the file's"
    return "" if findings.raw_histogram(values, rule) == findings.class_histogram(found) else "another histogram"


def test_labels_of_every_type_are_exact_or_refused_by_value_count_and_place(
    tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    tries, refused = amount(600, soak=10_000), 0
    for number in range(tries):
        classes = rng.choice([1, 2, 25, 255])
        rule = draw_rule(rng, classes)
        values = draw_values(rng, DTYPES[number % len(DTYPES)], rule, classes)
        path = write(tmp_path, values, rng)
        assert harm(values, rule, classes, lambda: decode.read_label(path, rule, classes)) == "", (values.dtype, rule)  # noqa: B023
        refused += any(meaning(int(value), rule, classes) is None for value in np.unique(values))
    assert tries // 5 < refused < tries * 9 // 10
    figures("I", labels=tries, wrapped=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_value_from_minus_2_to_70000_is_itself_or_refused(tmp_path: Path, dtype: type, figures: Figures) -> None:
    info = np.iinfo(dtype)
    everything = np.arange(max(LOWEST, info.min), min(HIGHEST, info.max) + 1).astype(dtype)
    path = tmp_path / "label.npy"
    np.save(path, everything[None])
    legal = (everything >= 0) & (everything <= 255)
    if legal.all():
        assert decode.read_label(path, LabelRule(), 255).ravel().tolist() == everything.tolist()
    else:
        with pytest.raises(DataError, match=rf"and {int((~legal).sum()) - 1} pixels of other|label value -?\d+ in 1"):
            decode.read_label(path, LabelRule(), 255)
    np.save(path, everything[legal][None])
    assert decode.read_label(path, LabelRule(), 255).ravel().tolist() == everything[legal].tolist()
    figures("I", values=len(everything), wrapped=0)


def test_naive_labels_wrap_under_the_same_judge(rng: random.Random) -> None:
    found = set()
    for number in range(300):
        classes, rule = 25, LabelRule()
        values = draw_values(rng, DTYPES[number % len(DTYPES)], rule, classes)
        found.add(harm(values, rule, classes, lambda: pictures.label(values)))  # noqa: B023
    assert {each.split()[0] for each in found if each} == {"accepted"}
    assert any(f"accepted {value}" in found for value in (256, 300, 65_536, 65_537, 70_000))
