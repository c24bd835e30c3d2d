from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from memorysam_cli.report import figures

pytestmark = pytest.mark.rendered

LONG_NAMES = [f"a long class name {index}" for index in range(25)]


def decoded(png: bytes) -> NDArray[np.uint8]:
    bgr = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return np.asarray(bgr[..., ::-1], np.uint8)


def count(picture: NDArray[np.uint8], shade: str) -> int:
    rgb = [int(shade[place : place + 2], 16) for place in (1, 3, 5)]
    return int((picture == rgb).all(-1).sum())


def test_a_perfect_confusion_matrix_is_dark_on_its_diagonal_only() -> None:
    perfect = decoded(figures.confusion_matrix(np.eye(4) * 9, classes=list("abcd")))
    swapped = decoded(figures.confusion_matrix(np.eye(4)[::-1] * 9, classes=list("abcd")))
    darkest = "#08306b"  # the end of matplotlib's Blues
    assert count(perfect, darkest) > 1000
    rows, columns = np.nonzero((perfect == [8, 48, 107]).all(-1))
    assert np.corrcoef(rows, columns)[0, 1] > 0.8
    rows, columns = np.nonzero((swapped == [8, 48, 107]).all(-1))
    assert np.corrcoef(rows, columns)[0, 1] < 0.5


def test_a_confusion_matrix_is_normalized_by_row_so_that_rare_classes_show() -> None:
    even = figures.confusion_matrix([[5, 5], [0, 7]], classes=["a", "b"])
    scaled = figures.confusion_matrix([[5_000_000, 5_000_000], [0, 7]], classes=["a", "b"])
    assert even == scaled


def test_a_class_without_ground_truth_is_a_grey_row() -> None:
    full = decoded(figures.confusion_matrix([[3, 1], [1, 3]], classes=["a", "b"]))
    partly = decoded(figures.confusion_matrix([[3, 1], [0, 0]], classes=["a", "b"]))
    assert count(full, "#dddddd") < 100  # but for the edges of letters
    assert count(partly, "#dddddd") > 10_000


def test_a_confusion_matrix_of_25_long_names_leaves_each_a_line() -> None:
    height, width = decoded(figures.confusion_matrix(np.ones((25, 25)), classes=LONG_NAMES)).shape[:2]
    assert min(height, width) >= 25 * 40  # pixels per class, of which a 9-point letter at 120 dpi takes 15
    assert max(height, width) < 4000


def test_a_confusion_matrix_of_many_classes_is_a_picture_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """255 classes took 7.4 GB and a minute; the same with smaller bounds."""
    assert figures.WIDEST_MATRIX * 120 <= 4000, "pixels"
    monkeypatch.setattr(figures, "WIDEST_MATRIX", 6.0)
    monkeypatch.setattr(figures, "MOST_WITH_TEXT", 5)
    names = [str(index) for index in range(30)]
    bare = decoded(figures.confusion_matrix(np.eye(30) * 9, classes=names))
    assert max(bare.shape) <= (6 + 0.8 + 0.5) * 120  # its color bar, and the margins
    monkeypatch.setattr(figures, "MOST_WITH_TEXT", 30)
    assert count(decoded(figures.confusion_matrix(np.eye(30) * 9, classes=names)), "#ffffff") > count(bare, "#ffffff")


def test_no_figure_is_too_tall_for_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert figures.TALLEST * 120 < 2**16
    monkeypatch.setattr(figures, "TALLEST", 3.0)
    shares = {str(split): [50.0, 50.0] for split in range(20)}  # 1.8 + 2 · 20 · 0.17 inches otherwise
    assert decoded(figures.class_histogram(shares, classes=["a", "b"])).shape[0] <= (3.0 + 0.5) * 120


@pytest.mark.slow
def test_the_figure_of_255_classes_stays_below_a_gigabyte_and_20_seconds() -> None:
    script = (
        "import resource, numpy, matplotlib.figure, matplotlib.backends.backend_agg\n"
        "from memorysam_cli.report import figures\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "counts = numpy.random.default_rng(0).integers(0, 10**6, (255, 255))\n"
        "figures.confusion_matrix(counts, classes=[f'a rather long class name {i}' for i in range(255)])\n"
        "print(peak() - before, resource.getrusage(resource.RUSAGE_SELF).ru_utime)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 1e6 and seconds < 20


@pytest.mark.parametrize("count", [1, 2])
def test_a_confusion_matrix_of_few_very_long_names_is_still_seen(count: int) -> None:
    names = [f"a class with an extraordinarily long name, number {index}" for index in range(count)]
    matrix = decoded(figures.confusion_matrix(np.eye(count) * 9, classes=names, title="data val: mIoU 100.00"))
    darkest = (matrix == [8, 48, 107]).all(-1)
    assert darkest.mean() > 0.04  # of the picture


def test_a_long_name_keeps_both_ends() -> None:
    assert figures._short("road") == "road"
    short = figures._short("a class with an extraordinarily long name, number 12")
    assert len(short) == figures.LONGEST_NAME and short.startswith("a class") and short.endswith("number 12")


def test_bars_are_as_long_as_their_values() -> None:
    def blue(value: float) -> int:
        png = figures.per_class_bars([value], classes=["a"], pixels=[1], mean=0)
        return count(decoded(png), figures.BLUE)

    assert blue(80) == pytest.approx(2 * blue(40), rel=0.02)
    assert blue(40) > 1000


def test_bars_refuse_lists_of_different_length() -> None:
    with pytest.raises(ValueError):
        figures.per_class_bars([1.0, 2.0], classes=["a"], pixels=[1, 1], mean=0)


def test_curves_draw_a_line_for_each_key_that_has_values() -> None:
    rows = [{"step": step, "loss": 3 - step / 10, "lr": 1e-3} for step in range(10)]
    picture = decoded(figures.curves(rows))
    with_validation = decoded(figures.curves([*rows, {"step": 9, "miou": 40.0}, {"step": 5, "miou": 30.0}]))
    assert count(picture, figures.BLUE) > 100
    assert count(picture, figures.GREEN) == 0 < count(with_validation, figures.GREEN)
    assert with_validation.shape[0] > picture.shape[0]


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    whole = [{"step": step, "loss": 1.0} for step in range(40)]
    torn: list[dict[str, float | None]] = [dict(row) for row in whole]
    torn[10:20] = [{"step": step, "loss": None if step % 2 else float("nan")} for step in range(10, 20)]
    assert 0 < count(decoded(figures.curves(torn)), figures.BLUE) < count(decoded(figures.curves(whole)), figures.BLUE)


def test_a_smoothed_line_is_the_mean_around_each_value_and_keeps_its_gaps() -> None:
    found = figures.smoothed([3.0, 6.0, float("nan"), 2.0, 4.0], window=3)
    np.testing.assert_allclose(found, [4.5, 4.5, np.nan, 3.0, 3.0])
    np.testing.assert_allclose(figures.smoothed([1.0, 7.0], window=1), [1.0, 7.0])


def test_a_loss_that_is_a_thousandth_of_the_sum_has_an_axis_of_its_own() -> None:
    """On the sum's axis it is a flat line: of the picture's rows, its color takes but a few."""
    rows = [{"step": step, "loss": 3.0, "ohem": 3.0, "spmm": 1e-3 * (step % 2)} for step in range(20)]
    picture = decoded(figures.curves(rows))
    assert np.ptp(np.nonzero((picture == [204, 121, 167]).all(-1))[0]) > 100  # PURPLE


def test_curves_of_nothing_are_still_a_picture() -> None:
    assert decoded(figures.curves([])).size


def test_the_same_figure_has_the_same_bytes() -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert figures.curves(rows, title="run") == figures.curves(rows, title="run")


def test_names_are_text_and_not_mathematics() -> None:
    assert decoded(figures.confusion_matrix([[1]], classes=["$x_{$"], title="$")).size


def test_names_that_are_no_text_are_drawn_escaped() -> None:
    """Matplotlib takes no lone surrogates: a figure of escaped names and one of their escapes are the same picture."""
    odd, escaped = "a\x1b\udcff", "a\\x1b\\udcff"
    rows = [{"step": 1, "loss": 1.0}]
    assert figures.curves(rows, title=odd) == figures.curves(rows, title=escaped)
    bars = [
        figures.per_class_bars([1.0, 2.0], classes=[name, "b"], pixels=[1, 1], mean=1.5, title=name)
        for name in (odd, escaped)
    ]
    assert bars[0] == bars[1]
    level = [figures.failure_bars({name: [(1.0, None)]}, labels=[name], what="missing") for name in (odd, escaped)]
    assert level[0] == level[1]


def test_matplotlib_is_not_loaded_before_a_figure_is_drawn_and_pyplot_never() -> None:
    script = (
        "import sys; from memorysam_cli.report import figures; assert 'matplotlib' not in sys.modules;"
        "figures.curves([]); assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_failure_bars_are_as_long_as_their_figures_and_have_a_color_per_level() -> None:
    bars = {"r = 0.25": [(80.0, None), (40.0, None)], "r = 0.5": [(40.0, None), (20.0, None)]}
    picture = decoded(figures.failure_bars(bars, labels=["none", "img"], what="missing"))
    first, second = count(picture, figures.BLUE), count(picture, figures.ORANGE)
    assert first > 2000
    assert abs(first / second - 2) < 0.1


def test_a_loss_is_titled_as_a_title_is_written() -> None:
    assert figures.term_title("prefix") == ("Prefix loss", "")
    assert figures.term_title("z_loss") == ("Z loss", "")
    assert figures.term_title("spmm") == ("SPMM loss", "before its weight")


def test_failure_bars_show_deviations_and_means() -> None:
    plain = decoded(figures.failure_bars({"": [(50.0, None)]}, labels=["a"], what="noise"))
    spread = decoded(figures.failure_bars({"": [(50.0, 9.0)]}, labels=["a"], what="noise"))
    mean = decoded(figures.failure_bars({"": [(50.0, None)]}, labels=["a"], what="noise", means=[70.0]))
    assert count(spread, "#000000") > count(plain, "#000000")
    assert count(mean, figures.VERMILION) > 0 == count(plain, figures.VERMILION)


def test_each_loss_has_a_line_of_its_own_color() -> None:
    rows = [{"step": step, "loss": 3.0, "ohem": 2.0, "spmm": 0.5, "dice": step / 40, "edge": 0.2} for step in range(40)]
    two = decoded(figures.curves(rows))
    four = decoded(figures.curves(rows, terms=("ohem", "spmm", "dice", "edge")))
    for shade in figures.TERM_COLORS[:2]:
        assert count(two, shade) > 100 and count(four, shade) > 100
    for shade in figures.TERM_COLORS[2:4]:
        assert count(two, shade) == 0 < count(four, shade)
