"""Figures that are composed and not rendered: rendering is more than half of what a training of a few updates takes.

Tests that look at a figure are marked ``rendered``; commands in processes of their own render theirs, too.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from memorysam_cli.report import figures
from tests.faults.scale import SOAK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REAL, MATRIX = figures.drawing, figures.confusion_matrix
BLANK = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000b49444154789c63f80f040009fb03fdfb5e6b2b0000"
    "000049454e44ae426082"
)
"""A PNG of one pixel, with the four channels that Matplotlib writes."""
SAMPLES = 4
"""Scenes in the pictures of a training; each one is a further prediction, so that most tests draw one."""


@contextmanager
def blank(*, width: float, height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """As :func:`figures.drawing`: all is put into a figure, and the buffer holds :data:`BLANK` in the end."""
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    yield Figure(figsize=(width, height), layout="constrained"), buffer
    buffer.write(BLANK)


def blank_matrix(*_: object, **__: object) -> bytes:
    """As :func:`figures.confusion_matrix`, of which nothing is composed: hundreds of labels and cells are slow, too."""
    return BLANK


@contextmanager
def drawn_by(drawing: Callable[..., Any]) -> Iterator[None]:
    """Until the block ends, figures are drawn by :func:`blank`, or by :data:`REAL` again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "drawing", drawing)
        patch.setattr(figures, "confusion_matrix", MATRIX if drawing is REAL else blank_matrix)
        if validation := sys.modules.get("memorysam_cli.engine.train.validation"):  # not where torch is not wanted
            patch.setattr(validation, "SAMPLES", SAMPLES if drawing is REAL else 1)
        yield


def use() -> None:
    """From now on no figure is rendered in this process and its forks; but in a soak, which kills there, too."""
    if not SOAK:
        figures.drawing = blank  # type: ignore[assignment]
        figures.confusion_matrix = blank_matrix
        if validation := sys.modules.get("memorysam_cli.engine.train.validation"):
            validation.SAMPLES = 1  # type: ignore[attr-defined]
