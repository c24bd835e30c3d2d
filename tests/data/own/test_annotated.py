"""What tools write of outlines and runs becomes pixels as their own libraries have it, and hostile input one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from memorysam_cli.data.own.annotated import brush, coco_region, polygon, spell, to_brush
from memorysam_cli.errors import DataError

SMALL = np.array([[0, 1, 1], [1, 1, 0]], np.bool_)
AT = "a.json: annotations[0]"


def masks() -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    drawn = np.random.default_rng(0)
    noise = [drawn.random(drawn.integers(1, 50, 2)) < share for share in (0, 0.01, 0.2, 0.5, 0.9, 1)]
    return [SMALL, *noise, np.kron(noise[3], np.ones((40, 30), np.bool_)) > 0]  # runs longer than 2^16 values


def test_run_lengths_go_down_the_columns_and_are_spelled_as_pycocotools_spells_them() -> None:
    # Columns 01, 11, 10 in a row are 0 1 1 1 1 0: runs of 1, 4 and 1.
    assert coco_region({"size": [2, 3], "counts": [1, 4, 1]}, (2, 3), AT).tolist() == SMALL.tolist()
    for mask in masks():
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert spell(mask) == theirs
        assert (coco_region({"size": list(mask.shape), "counts": theirs}, mask.shape, AT) == mask).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 and NumPy 2
def test_polygons_hold_the_pixels_that_pycocotools_gives_them() -> None:
    square = polygon([1, 1, 4, 1, 4, 3, 1, 3], (5, 6), AT)
    assert np.argwhere(square).tolist() == [[row, column] for row in (1, 2) for column in (1, 2, 3)]
    drawn = np.random.default_rng(1)
    for _ in range(60):
        height, width = (int(side) for side in drawn.integers(1, 60, 2))
        corners = int(drawn.integers(3, 9))
        outline = (drawn.random(2 * corners) * np.tile([width + 20, height + 20], corners) - 10).tolist()
        theirs = coco.decode(coco.frPyObjects([outline], height, width))[:, :, 0]
        assert (polygon(outline, (height, width), AT) == theirs).all(), outline


def test_several_polygons_of_one_annotation_are_one_region() -> None:
    both = coco_region([[0, 0, 2, 0, 2, 2, 0, 2], [3, 3, 5, 3, 5, 5, 3, 5]], (6, 6), AT)
    assert int(both.sum()) == 8 and both[0, 0] and both[4, 4] and not both[2, 2]


def test_brushes_are_those_of_label_studio() -> None:
    # What label_studio_converter.brush.encode_rle (0.0.59) writes of SMALL, each pixel four times.
    theirs = [0, 0, 0, 24, 57, 27, 252, 96, 23, 255, 227, 0, 0]
    assert brush(theirs, (2, 3), AT).tolist() == SMALL.tolist()
    assert to_brush(SMALL) == theirs[:-1], "it always adds a byte of padding"
    for mask in masks():
        assert (brush(to_brush(mask), mask.shape, AT) == mask).all()


def test_a_brush_may_hold_runs_of_different_values() -> None:
    # By hand: 8 values (a row of two pixels), words of 8 bits, lengths of 1 bit; four lists of two values each.
    bits = f"{8:032b}{7:05b}" + 4 * f"{0:04b}" + "".join(f"000{1:01b}{0:08b}{alpha:08b}" for alpha in (0, 255, 0, 127))
    bits += "0" * (-len(bits) % 8)
    assert brush(list(int(bits, 2).to_bytes(len(bits) // 8, "big")), (1, 2), AT).tolist() == [[True, False]]


GOOD = to_brush(SMALL)


@pytest.mark.parametrize(
    "numbers",
    [
        [], [0], GOOD[:-3], [300, *GOOD], [-1], ["1"], [None], [1.5], GOOD[:5],
        [255, 255, 255, 255, *GOOD[4:]],  # four billion values
        [0, 0, 0, 20, *GOOD[4:]],  # of another size
        [*GOOD[:4], 255, *GOOD[5:]],  # words of 32 bits
    ],
)  # fmt: skip
def test_a_brush_that_is_none_of_this_picture_is_refused(numbers: list[Any]) -> None:
    with pytest.raises(DataError, match="is not a brush of 2 x 3 pixels"):
        brush(numbers, (2, 3), AT)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"size": [3, 2], "counts": [1, 4, 1]}, "its mask is of"),
        ({"size": [2, 3], "counts": [1, 4, 2]}, "run lengths"),
        ({"size": [2, 3], "counts": [1, 4]}, "run lengths"),
        ({"size": [2, 3], "counts": [10**30, 4, 1]}, "run lengths"),
        ({"size": [2, 3], "counts": [-1, 6, 1]}, "run lengths"),
        ({"size": [2, 3], "counts": [1, True, 4]}, "run lengths"),
        ({"size": [2, 3], "counts": [1, "4", 1]}, "run lengths"),
        ({"size": [2, 3], "counts": 6}, "'counts' must be a text or a list"),
        ({"size": [2, 3]}, "'counts' must be a text or a list, and is missing"),
        ({"counts": [6]}, "'size' must be a list"),
        ({"size": [2, 3], "counts": "o" * 40}, "are no run lengths of COCO"),
        ({"size": [2, 3], "counts": "1é"}, "are no run lengths of COCO"),
        ({"size": [2, 3], "counts": "T"}, "end within a number"),
        ({"size": [2, 3], "counts": "OO"}, "run lengths"),  # negative
        ([[0, 0, 1, 1, 2]], "a polygon must be"),
        ([[0, 0, 1, 1, 2, 1e9]], "a polygon must be"),
        ([[0, 0, 1, 1, 2, "3"]], "a polygon must be"),
        ([{"x": 1}], "a polygon must be"),
        ("everything", "'size' must be a list"),
        (7, "'size' must be a list"),
    ],
)
def test_a_region_that_does_not_fit_its_picture_is_refused(shape: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        coco_region(shape, (2, 3), AT)
