from __future__ import annotations

import numpy as np
import pytest

from memorysam_cli.data.own import classes


def least_distance(colors: object) -> dict[str, float]:
    """Of the two colors that look most alike, in each vision; CIELAB."""
    seen = classes.appearances(np.array(colors, dtype=float) / 255)
    apart = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1) + 1e9 * np.eye(seen.shape[1])
    return dict(zip(classes.VISIONS, apart.min((1, 2)).tolist(), strict=True))


def test_more_classes_change_no_color_and_none_is_black_or_white() -> None:
    many = classes.safe_palette(255)
    assert len(set(many)) == 255 and classes.safe_palette(7) == many[:7]
    assert (0, 0, 0) not in many and (255, 255, 255) not in many


@pytest.mark.parametrize(("count", "apart"), [(8, 30.0), (12, 25.0), (25, 15.0)])
def test_everybody_tells_them_apart(count: int, apart: float) -> None:
    assert min(least_distance(classes.safe_palette(count)).values()) > apart


def test_the_measure_knows_red_from_green_as_the_color_blind_do() -> None:
    pair = least_distance([(200, 80, 60), (120, 120, 40)])
    assert pair["usual"] > 2.5 * pair["deuteranopia"]
    gray = least_distance([(40, 40, 40), (200, 200, 200)])
    assert max(gray.values()) - min(gray.values()) < 1.0
