from __future__ import annotations

import itertools
import math

import pytest

from memorysam_cli.report import pages
from memorysam_cli.report.pages import Series


def test_ticks_are_round_and_inside_the_range() -> None:
    assert pages.ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert pages.ticks(1, 144, whole=True) == [50, 100]
    assert pages.ticks(3, 3) == [3]
    for low, high in ((0.0003, 0.003), (-7, 12345), (1e-9, 2e-9)):
        found = pages.ticks(low, high)
        assert 2 <= len(found) <= 12 and all(low - 1e-12 <= each <= high + 1e-12 for each in found)


def test_thinning_keeps_every_peak() -> None:
    points: list[tuple[float, float | None]] = [(step, 1.0) for step in range(100_000)]
    points[41_007] = (41_007, 99.0)
    points[77_777] = (77_777, -5.0)
    kept = pages.thinned(points, most=600)
    assert len(kept) <= 600
    assert (41_007, 99.0) in kept and (77_777, -5.0) in kept
    assert all(a[0] < b[0] for a, b in itertools.pairwise(kept))


def test_values_that_are_not_finite_leave_a_gap() -> None:
    chart = pages.line_chart("a", "A", [Series("a", [(1, 1.0), (2, None), (3, math.nan), (4, 2.0), (5, 3.0)])])
    assert chart is not None
    assert chart.lines[0].path.count("M") == 2
    assert [point[0] for point in chart.lines[0].hover] == [1, 4, 5]
    assert [row[1] for row in chart.rows] == ["1", "–", "–", "2", "3"]


def test_a_larger_value_lies_higher_and_a_later_step_further_right() -> None:
    chart = pages.line_chart("a", "A", [Series("a", [(0, 0.0), (10, 5.0)])])
    assert chart is not None
    (_, _, left, low), (_, _, right, high) = chart.lines[0].hover
    assert (left, right) == (chart.left, chart.right)
    assert chart.top <= high < low <= chart.bottom


def test_a_single_point_has_a_place_and_nothing_has_no_chart() -> None:
    chart = pages.line_chart("a", "A", [Series("a", [(7, 3.0)])])
    assert chart is not None
    assert chart.lines[0].marks == ((pytest.approx((chart.left + chart.right) / 2), pytest.approx(102, abs=8)),)
    assert pages.line_chart("a", "A", [Series("a", [(1, None)]), Series("b", [])]) is None


def test_the_table_ends_with_the_last_step() -> None:
    chart = pages.line_chart("a", "A", [Series("a", [(step, float(step)) for step in range(1, 1001)])])
    assert chart is not None
    assert len(chart.rows) <= pages.MOST_ROWS and chart.rows[-1] == ("1,000", "1000")


def test_a_smoothed_course_is_the_line_and_the_values_lie_behind_it() -> None:
    values = [(0.0, 0.0), (1.0, 10.0), (2.0, 0.0)]
    plain = pages.line_chart("a", "A", [Series("a", values)])
    smooth = pages.line_chart("a", "A", [Series("a", values, course=[(0.0, 5.0), (2.0, 5.0)])])
    assert plain is not None and smooth is not None
    (line,), (both,) = plain.lines, smooth.lines
    assert line.under == "" and both.under == line.path and both.hover == line.hover and smooth.rows == plain.rows
    middle = (pages.TOP + pages.HEIGHT - pages.BOTTOM) / 2
    assert both.path == f"M{pages.LEFT:.1f} {middle:.1f}L{pages.WIDTH - pages.RIGHT:.1f} {middle:.1f}"
