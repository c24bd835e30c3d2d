from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from memorysam_cli.report import pictures
from memorysam_cli.report.pictures import Panel

PALETTE = [(10, 20, 30), (200, 0, 0), (0, 0, 0)]
CLASSES = ["road", "sign", "void-like"]


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_each_class_gets_its_own_color_in_rgb_order() -> None:
    np.testing.assert_array_equal(pictures.paint(np.array([[1, 0]]), PALETTE)[0], [[200, 0, 0], [10, 20, 30]])


def test_ignored_pixels_are_striped_and_not_like_a_black_class() -> None:
    painted = pictures.paint(np.full((8, 8), 255, np.uint8), PALETTE)
    assert len(np.unique(painted.reshape(-1, 3), axis=0)) == 2
    assert not (painted == 0).all(-1).any()


def test_in_a_palette_of_more_than_255_colors_255_is_a_class() -> None:
    palette = [(index % 256, index // 256, 7) for index in range(300)]
    painted = pictures.paint(np.array([[255, 299]], np.uint16), palette)
    np.testing.assert_array_equal(painted[0], [palette[255], palette[299]])


@given(st.sampled_from([np.uint8, np.uint16, np.int64]), st.integers(0, 2**31))
def test_colors_lead_back_to_the_classes(dtype: type[np.integer], seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 3, (5, 7)).astype(dtype)
    painted = pictures.paint(mask, PALETTE)
    back = np.array([[PALETTE.index(tuple(int(value) for value in pixel)) for pixel in row] for row in painted])
    np.testing.assert_array_equal(back, mask)


@pytest.mark.parametrize("value", [3, 254, -1])
def test_a_value_without_a_color_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="3 colors"):
        pictures.paint(np.array([[0, value]]), PALETTE)


def test_a_region_is_tinted_inside_and_has_a_contour_of_its_own_color_and_ignored_pixels_stay() -> None:
    image = np.full((4, 1, 3), 100, np.uint8)
    mask = np.array([[1], [1], [1], [255]], np.uint8)
    drawn = pictures.overlay(image, mask, PALETTE, alpha=0.5)
    np.testing.assert_array_equal(drawn[:, 0], [[150, 50, 50], [150, 50, 50], [200, 0, 0], [100, 100, 100]])
    assert 0 < pictures.OPACITY < 0.5, "more of the picture than of the color"


@pytest.mark.parametrize(("height", "width"), [(300, 1), (1000, 2), (2000, 4)])
def test_a_contour_is_as_wide_on_each_side_as_the_picture_is_large(height: int, width: int) -> None:
    mask = np.zeros((height, height), np.uint8)
    mask[:, height // 2 :] = 1
    assert np.flatnonzero(pictures.contours(mask)[0]).tolist() == list(range(height // 2 - width, height // 2 + width))


@pytest.mark.parametrize(("alpha", "source"), [(0.0, "image"), (1.0, "mask")])
def test_alpha_runs_from_the_image_to_the_mask(alpha: float, source: str) -> None:
    image, mask = noise(9, 11), np.zeros((9, 11), np.uint8)
    expected = image if source == "image" else pictures.paint(mask, PALETTE)
    np.testing.assert_array_equal(pictures.overlay(image, mask, PALETTE, alpha), expected)


def test_errors_are_red_where_and_only_where_the_prediction_is_wrong() -> None:
    label = np.array([[0, 0, 255]], np.uint8)
    shown = pictures.errors(noise(1, 3), np.array([[0, 1, 1]], np.uint8), label)
    assert (shown == pictures.WRONG).all(-1).tolist() == [[False, True, False]]
    assert len(set(shown[0, 0].tolist())) == 1  # gray


@pytest.mark.parametrize("picture", [pictures.overlay, pictures.errors])
def test_sizes_that_differ_are_refused(picture: object) -> None:
    mask = np.zeros((4, 5), np.uint8)
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(4, 5\)"):
        picture(noise(5, 4), mask, PALETTE if picture is pictures.overlay else mask)  # type: ignore[operator]


def test_an_8_bit_frame_is_shown_as_it_is() -> None:
    frame = noise(4, 5)
    np.testing.assert_array_equal(pictures.as_picture(frame), frame)


def test_a_16_bit_depth_uses_the_whole_range_and_keeps_unmeasured_pixels_black() -> None:
    depth = np.linspace(500, 3000, 100).astype(np.uint16).reshape(10, 10)
    depth[0] = 0
    shown = pictures.as_picture(depth)
    assert shown.shape == (10, 10, 3) and shown.dtype == np.uint8
    assert (shown[0] == 0).all() and shown[1:].min() > 0 and shown.max() == 255


def test_angles_between_minus_one_and_one_do_not_wrap() -> None:
    angle = np.linspace(-1, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    shown = pictures.as_picture(angle).reshape(-1).astype(int)
    assert (np.diff(shown) >= 0).all() and shown[0] == 0 and shown[-1] == 255


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_a_frame_of_any_number_of_channels_becomes_a_picture_of_three(channels: int) -> None:
    values = np.arange(channels, dtype=np.uint8) + 1
    shown = pictures.as_picture(np.tile(values, (2, 3, 1)))
    assert shown.shape == (2, 3, 3) and shown.dtype == np.uint8
    assert shown[0, 0].tolist() == [1, min(2, channels), min(3, channels)]  # the last one fills up


@pytest.mark.parametrize("frame", [np.zeros((3, 4), np.float32), np.full((3, 4), 7, np.uint16)])
def test_a_constant_frame_is_a_plain_picture(frame: NDArray[np.generic]) -> None:
    assert np.unique(pictures.as_picture(frame)).size == 1


def test_a_comparison_shows_label_and_errors_only_where_there_is_a_label() -> None:
    frames = {"img": noise(4, 5), "depth": np.ones((4, 5), np.uint16)}
    mask = np.zeros((4, 5), np.uint8)
    titles = [panel.title for panel in pictures.comparison(frames, mask, palette=PALETTE, label=mask)]
    assert titles == ["img", "depth", "label", "prediction", "wrong in red"]
    titles = [panel.title for panel in pictures.comparison(frames, mask, palette=PALETTE)]
    assert titles == ["img", "depth", "prediction"]


def test_the_legend_names_what_occurs_in_any_mask_and_not_the_ignored() -> None:
    found = pictures.legend([np.array([[2, 255]]), np.array([[0]])], classes=CLASSES, palette=PALETTE)
    assert found == [("road", PALETTE[0]), ("void-like", PALETTE[2])]
    assert pictures.legend([], classes=CLASSES, palette=PALETTE) == []


def test_a_sheet_shows_every_panel_undistorted_and_every_color_of_its_legend() -> None:
    wide = np.full((10, 40, 3), (1, 2, 3), np.uint8)
    tall = np.full((40, 10, 3), (4, 5, 6), np.uint8)
    rows = [[Panel("wide", wide), Panel("tall", tall)], [Panel("again", tall)]]
    picture = pictures.sheet(rows, [("road", (9, 8, 7)), ("sign", (200, 0, 0))], panel_px=80)
    counted = {shade: int((picture == shade).all(-1).sum()) for shade in [(1, 2, 3), (4, 5, 6), (9, 8, 7)]}
    assert counted[1, 2, 3] == 80 * 320
    assert counted[4, 5, 6] == 2 * 80 * 20
    assert counted[9, 8, 7] > 50


def test_a_legend_wider_than_its_panel_widens_the_sheet() -> None:
    entry = ("a class with quite a long name indeed, longer than the panel", (9, 8, 7))
    narrow = pictures.sheet([[Panel("", noise(10, 10))]], panel_px=32)
    wide = pictures.sheet([[Panel("", noise(10, 10))]], [entry], panel_px=32)
    assert wide.shape[1] > 300 > narrow.shape[1]


def test_a_long_title_is_cut_to_its_panel() -> None:
    titled = pictures.sheet([[Panel("a very long title " * 9, noise(10, 10))]], panel_px=64)
    assert titled.shape == pictures.sheet([[Panel("", noise(10, 10))]], panel_px=64).shape
    assert (titled[:, -pictures.GAP_PX :] == pictures.MATTE).all()


def test_titles_stand_where_they_change_and_captions_above_every_row() -> None:
    line, row = 22, 80 + pictures.GAP_PX  # 0.5 · 44 pixels of text, and a panel
    alike = [[Panel("img", noise(8, 8)), Panel("label", noise(8, 8))] for _ in range(3)]
    assert pictures.sheet(alike, panel_px=80).shape[0] == line + 3 * row
    assert pictures.sheet(alike, captions=["a", "b", "c"], panel_px=80).shape[0] == line + 3 * (line + row)
    assert pictures.sheet([*alike, alike[0][:1]], panel_px=80).shape[0] == 2 * line + 4 * row


def test_a_wide_sheet_has_large_letters_for_a_page_shows_it_smaller() -> None:
    wide = noise(10, 10 * pictures.SHOWN_PX // 50)  # 2,200 pixels at a height of 100, and margins
    assert pictures.sheet([[Panel("img", wide)]], panel_px=100).shape[0] - 100 - pictures.GAP_PX == 44
    assert (pictures.key([("road", (9, 8, 7))], width=50)[:, -1] == 255).all(), "a legend alone is on white paper"


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one panel"):
        pictures.sheet([[]])
