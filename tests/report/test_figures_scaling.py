from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from memorysam_cli.report.figures import BLUE, ORANGE, scaling

pytestmark = pytest.mark.rendered

PANELS = {
    "seconds": {"training": [(1.0, 2.0), (2.0, 4.0)], "prediction": [(2.0, 2.0), (1.0, 1.0)]},
    "GB": {"prediction": [(1.0, 3.0), (2.0, 3.0)]},
}


def pixels(png: bytes, shade: str) -> NDArray[np.intp]:
    """Rows and columns of a shade."""
    bgr = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return np.argwhere((bgr[..., ::-1] == [int(shade[place : place + 2], 16) for place in (1, 3, 5)]).all(-1))


def test_a_series_has_one_color_in_all_panels() -> None:
    png = scaling(PANELS, against="modalities")
    middle = pixels(png, ORANGE)[:, 1].max() / 2
    assert (pixels(png, BLUE)[:, 1] < middle * 1.2).all()  # training: the left panel, and the legend below
    assert (pixels(png, ORANGE)[:, 1] > middle * 1.2).any()


def test_what_costs_more_is_drawn_higher_whatever_the_order_of_the_points() -> None:
    png = scaling({"seconds": {"prediction": [(2.0, 2.0), (1.0, 1.0)]}}, against="batch")
    places = pixels(png, BLUE)
    rows, columns = places[places[:, 0] < 300].T
    assert np.corrcoef(rows, columns)[0, 1] < -0.8


def test_the_same_points_give_the_same_bytes() -> None:
    assert scaling(PANELS, against="size", title="$x_{$") == scaling(PANELS, against="size", title="$x_{$")
