from __future__ import annotations

import pytest

from memorysam_cli.report import pages

COUNTS = [[90, 10, 0], [0, 0, 0], [5, 15, 0]]


def test_cells_are_shares_of_the_true_class_and_lie_row_by_row() -> None:
    found = pages.matrix_layout(COUNTS, names=["a", "b", "c"])
    assert [[cell["share"] for cell in row] for row in found["cells"]] == [[0.9, 0.1, 0], [0, 0, 0], [0.25, 0.75, 0]]
    first, second = found["cells"][0][0], found["cells"][2][1]
    assert second["y"] - first["y"] == 2 * found["cell"] and second["x"] - first["x"] == found["cell"]
    assert found["data"]["counts"] == COUNTS


def test_the_most_frequent_confusions_come_first_and_the_diagonal_never() -> None:
    found = pages.most_frequent_confusions(COUNTS, names=["a", "b", "c"])
    assert [(each["true"], each["predicted"], each["pixels"], each["share"]) for each in found] == [
        ("c", "b", 15, 75.0), ("a", "b", 10, 10.0), ("c", "a", 5, 25.0),
    ]  # fmt: skip


def test_long_names_are_cut_in_the_middle_and_told_whole() -> None:
    name = "a class that somebody named at great length"
    label = pages.matrix_layout([[1]], names=[name])["labels"][0]
    assert len(label["text"]) <= pages.LONGEST_NAME and label["text"].endswith("t length") and label["full"] == name


def test_many_classes_have_no_text_in_their_cells() -> None:
    size = pages.MOST_WITH_TEXT + 1
    assert not pages.matrix_layout([[0] * size] * size, names=[str(index) for index in range(size)])["has_text"]


@pytest.mark.parametrize(("classes", "amount"), [(16, "some"), (25, "some"), (40, "some"), (41, "many")])
def test_a_matrix_fills_its_card_or_is_scrolled(classes: int, amount: str) -> None:
    found = pages.matrix_layout([[0] * classes] * classes, names=["class"] * classes)
    assert found["amount"] == amount
    if amount == "some":  # another pixel a cell would not fit
        assert found["width"] <= pages.CARD_PX < found["width"] + classes or found["cell"] == pages.LARGEST_CELL
