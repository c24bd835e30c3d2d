"""Confusion matrices in reports: where the cells lie, and what confuses most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LONGEST = 22
"""Letters of a class's name beside the matrix; the whole name shows when it is pointed at."""
MOST_WITH_TEXT = 40
"""Classes up to which each cell carries its percentage."""
SHOWN = 12
"""Confusions that are listed."""


def lay_out(counts: Sequence[Sequence[int]], *, names: Sequence[str]) -> dict[str, Any]:
    """What the macro ``matrix`` draws.

    Args:
        counts: (K, K) pixels, rows the truth.
        names: K classes.
    """
    size = len(names)
    cell = 26 if size <= 12 else 22 if size <= MOST_WITH_TEXT else 11
    short = [name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}…{name[-8:]}" for name in names]
    margin = 14 + round(6.4 * max(map(len, short)))
    truth = [sum(row) for row in counts]
    cells = [
        [
            {"x": margin + column * cell, "y": margin + row * cell, "share": count / max(1, truth[row])}
            for column, count in enumerate(counts[row])
        ]
        for row in range(size)
    ]
    labels = [
        {"text": text, "full": name, "x": margin + (index + 0.5) * cell + 4, "y": margin + (index + 0.5) * cell + 4}
        for index, (text, name) in enumerate(zip(short, names, strict=True))
    ]
    has_text = size <= MOST_WITH_TEXT
    return {
        "name": "",
        "width": margin + size * cell + 10,
        "height": margin + size * cell + 10,
        "left": margin,
        "top": margin,
        "side": size * cell,
        "cell": cell,
        "cells": cells,
        "labels": labels,
        "has_text": has_text,
        "confusions": most_frequent(counts, names=names),
        "data": {
            "counts": [list(row) for row in counts],
            "names": list(names),
            "cell": cell,
            "left": margin,
            "top": margin,
            "hasText": has_text,
        },
    }


def most_frequent(counts: Sequence[Sequence[int]], *, names: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of classes that most pixels were confused in.

    Returns:
        ``true``, ``predicted``, ``pixels`` and their ``share`` of the true class in percent; the largest first.
    """
    wrong = [
        {
            "true": names[row],
            "predicted": names[column],
            "pixels": count,
            "share": 100 * count / max(1, sum(counts[row])),
        }
        for row in range(len(names))
        for column, count in enumerate(counts[row])
        if row != column and count
    ]
    return sorted(wrong, key=lambda each: -int(str(each["pixels"])))[:SHOWN]
