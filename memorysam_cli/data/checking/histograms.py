"""What a label's raw values come to as classes, by the rule's words: the other side of the loader's look-up table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memorysam_cli.dataset import IGNORE, RAW_VALUES, LabelRule
from memorysam_cli.laws import LawBroken
from memorysam_cli.text import shown


def of_raw(raw: npt.NDArray[Any], rule: LabelRule) -> dict[int, int]:
    """Class or 255 → pixels.

    Args:
        raw: (H, W) whole numbers as stored, all of them legal.
        rule: how each becomes a class; not of colours.
    """
    mapping = dict(rule.mapping)
    found: dict[int, int] = {}
    for value, count in _counts(raw).items():
        index = IGNORE if value in rule.ignore else mapping[value] if mapping else value + rule.shift
        found[index] = found.get(index, 0) + count
    return found


def of_classes(label: npt.NDArray[np.uint8]) -> dict[int, int]:
    """Class or 255 → pixels, of what the loader gives: (H, W) uint8."""
    return _counts(label)


def refuse_changed(path: Path, before: Mapping[int, int], after: Mapping[int, int]) -> None:
    """See that reading a label kept every pixel's class.

    Raises:
        LawBroken: the histograms differ; names the file and the first class.
    """
    if before == after:
        return
    first = min(index for index in {*before, *after} if before.get(index, 0) != after.get(index, 0))
    raise LawBroken(
        f"{shown(path)}: class {first} has {before.get(first, 0)} pixels in the file and {after.get(first, 0)} as it "
        "is read; do not train on this, and report this bug"
    )


def _counts(values: npt.NDArray[Any]) -> dict[int, int]:
    """Value → how often."""
    if values.dtype == np.uint8 or (values.dtype == np.uint16 and values.size >= RAW_VALUES):
        counts = np.bincount(values.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, numbers = np.unique(values, return_counts=True)
    return {int(value): int(number) for value, number in zip(found, numbers, strict=True)}
