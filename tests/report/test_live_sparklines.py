from __future__ import annotations

import pytest

from memorysam_cli.report.live import ASCII, sparkline


def test_the_lowest_is_lowest_and_the_highest_highest() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, -3], width=8, blocks=ASCII) == "#_"


@pytest.mark.parametrize(("count", "width"), [(1, 1), (7, 8), (100, 8), (4000, 60)])
def test_it_is_never_wider_than_asked(count: int, width: int) -> None:
    line = sparkline([float(index) for index in range(count)], width=width)
    assert len(line) == min(count, width)
    assert list(line) == sorted(line)


def test_gaps_and_equal_values() -> None:
    assert sparkline([1, None, 1], width=3) == "▅ ▅"
    assert sparkline([None, None], width=5) == "  "
    assert sparkline([], width=5) == sparkline([1], width=0) == ""
