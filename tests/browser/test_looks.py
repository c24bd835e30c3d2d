"""How the pages look where it is easily spoilt: long names, tall pictures, colors, narrow windows, paper."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.common.by import By

from memorysam_cli.engine.reporting import run_pages
from memorysam_cli.report import pages
from memorysam_cli.storage import images

from ..engine.reporting.test_pages import make_prediction, make_run
from .conftest import Opened

pytestmark = pytest.mark.rendered

LONG = "night/val/" + "MAP_10_point12_underexposure_and_motionblur/" * 3 + "000150"
IN_VIEW = "const box = arguments[0].getBoundingClientRect(); return box.right <= innerWidth + 1 && box.left >= -1"
CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function painted(...layers) {  // what is seen of colors over each other, each with its opacity
  canvas.globalAlpha = 1; canvas.fillStyle = "#fff"; canvas.fillRect(0, 0, 1, 1);
  for (const [color, opacity] of layers) {
    canvas.globalAlpha = opacity; canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  }
  const linear = [...canvas.getImageData(0, 0, 1, 1).data].map((value) =>
    value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
const style = (node) => getComputedStyle(node);
"""
MATRIX = (
    CONTRASTS
    + """
const back = style(document.querySelector(".matrix .back")).fill;
const cells = [...document.querySelectorAll(".matrix .cell")], texts = [...document.querySelectorAll(".matrix .v")];
return cells.map((cell, index) => texts[index].textContent === "" ? 99 : ratio(
  painted([back, 1], [style(cell).fill, Number(cell.getAttribute("fill-opacity"))]),
  painted([style(texts[index]).fill, 1])));
"""
)
HEAT = (
    CONTRASTS
    + """
return [...document.querySelectorAll(".heat td[class^=h]")].map((cell) => ratio(
  painted([style(document.body).backgroundColor, 1], [style(cell).backgroundColor, 1]),
  painted([style(cell).color, 1])));
"""
)


def evaluation(folder: Path) -> Path:
    """A page whose matrix and heat map have every strength that there is."""
    counts = [[100 - share, share] for share in range(0, 101, 4)]
    square = [[*row, *([0] * (len(counts) - 2))] for row in counts]
    names = [f"class {index}" for index in range(len(counts))]
    levels = [{"miou": 10.0 * level + 5, "scenes": 3, "level": level} for level in range(10)]
    rows = [{"name": "sun", "miou": value, "miou_present": value, "mf1": 1.0, "macc": 1.0, "scenes": 2} for value in
            (None, 10.0, 9.5, None, 30.0)]  # fmt: skip
    shown = {
        "miou": 50.0, "classes": [], "matrix": pages.matrix_layout(square, names=names), "sensors": [], "scenes": [],
        "scenes_note": "", "legend": [], "worst": [], "parts": [{"name": "Condition", "rows": rows}],
        "heat": {"columns": [str(level) for level in range(10)], "rows": [{"name": "sun", "cells": levels}]},
    }  # fmt: skip
    head: dict[str, Any] = {"kind": "evaluation", "title": "t", "subtitle": "", "warnings": [], "sections": []}
    folder.mkdir()
    path = folder / "evaluation.html"
    path.write_text(pages.render("evaluation", **head, tiles=[], provenance=[], evaluation=shown), encoding="utf-8")
    return path


def gallery(folder: Path, *, height: int, width: int) -> Path:
    """A page with two scenes, of which only the second has depth."""
    picture = pages.data_uri(images.encode_png(np.full((height, width, 3), 120, np.uint8)), kind="png")
    layers = [{"key": key, "title": key, "src": picture} for key in ("img", "depth", "prediction")]
    scenes = [
        {"name": LONG, "caption": "", "layers": [layers[0], layers[2]]},
        {"name": "b", "caption": "", "layers": layers},
    ]
    rest: dict[str, Any] = {"shares": [], "failures": [], "failures_more": 0, "provenance": [], "legend": []}
    head: dict[str, Any] = {"kind": "prediction", "title": LONG, "subtitle": "", "warnings": [], "sections": []}
    folder.mkdir()
    path = folder / "gallery.html"
    text = pages.render("prediction", **head, tiles=[], scenes=scenes, scenes_note="", **rest)
    path.write_text(text, encoding="utf-8")
    return path


def one(root: Any, selector: str) -> Any:
    return root.find_element(By.CSS_SELECTOR, selector)


def all_of(root: Any, selector: str) -> list[Any]:
    return list(root.find_elements(By.CSS_SELECTOR, selector))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_stand_out_from_every_strength_of_the_matrix_and_the_heat_map(
    tmp_path: Path, opened: Opened, scheme: str
) -> None:
    shown = opened(evaluation(tmp_path / "a"), scheme=scheme)
    heat = shown.execute_script(HEAT)
    assert len(heat) == 10 and min(heat) > 4.4
    for mode in ("row", "column", "total"):
        one(shown, f"[data-matrix] input[value={mode}] + span").click()
        found = shown.execute_script(MATRIX)
        assert len([each for each in found if each < 99]) > 20 and min(found) > 4.3, mode


def test_rows_without_a_value_come_last_in_either_order(tmp_path: Path, opened: Opened) -> None:
    shown = opened(evaluation(tmp_path / "a"))
    table = one(shown, "#conditions table[data-sortable]")
    button = all_of(table, "th button")[2]
    for wanted in (["30.00", "10.00", "9.50", "–", "–"], ["9.50", "10.00", "30.00", "–", "–"]):
        button.click()
        assert [each.text for each in all_of(table, "tbody td:nth-child(3)")] == wanted


@pytest.mark.parametrize(("height", "width"), [(400, 100), (64, 64), (100, 400)])
def test_a_picture_and_its_slider_fit_into_a_window(tmp_path: Path, opened: Opened, height: int, width: int) -> None:
    shown = opened(gallery(tmp_path / "a", height=height, width=width))
    stage, slide = one(shown, ".stage").size, one(shown, ".slide").size
    assert stage["height"] <= 541 and stage["width"] <= 720
    assert max(stage["height"] / 540, stage["width"] / 720) > 0.99
    assert stage["width"] / stage["height"] == pytest.approx(width / height, rel=0.02)
    assert abs(slide["width"] - stage["width"]) <= 1


def test_a_layer_is_offered_for_the_scenes_that_have_it(tmp_path: Path, opened: Opened) -> None:
    shown = opened(gallery(tmp_path / "a", height=64, width=64))
    depth = one(shown, "input[name^=left][value=depth]")
    assert not depth.is_enabled()
    all_of(shown, ".picker button")[1].click()
    assert depth.is_enabled()
    one(shown, "input[name^=left][value=depth] + span").click()
    assert one(shown, ".stage .left").get_attribute("alt") == "depth"


@pytest.mark.parametrize("width", [1280, 360])
def test_long_names_stay_inside_the_window(tmp_path: Path, opened: Opened, width: int) -> None:
    shown = opened(gallery(tmp_path / "a", height=64, width=64), width=width)
    all_of(shown, ".picker button")[1].click()
    all_of(shown, ".picker button")[0].click()
    title = one(shown, ".scene bdi")
    assert title.text == LONG and all_of(title, "wbr")
    for each in (title, one(shown, "h1"), all_of(shown, ".picker bdi")[0]):
        assert shown.execute_script(IN_VIEW, each)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_scrolls_fades_on_the_side_where_more_is(tmp_path: Path, opened: Opened, scheme: str) -> None:
    shown = opened(evaluation(tmp_path / "a"), width=500, scheme=scheme)
    matrix = one(shown, ".matrix")
    mask = "const style = getComputedStyle(arguments[0]); return [style.maskImage.includes('linear-gradient'), "
    mask += "style.getPropertyValue('--l'), style.getPropertyValue('--r')]"
    sides = {"": ["#000", "#0000"], "scrollLeft = 40": ["#0000", "#0000"], "scrollLeft = 9999": ["#0000", "#000"]}
    for moved, expected in sides.items():
        shown.execute_async_script(
            f"arguments[0].{moved or 'scrollLeft'}; requestAnimationFrame(() => requestAnimationFrame(arguments[1]))",
            matrix,
        )
        assert shown.execute_script(mask, matrix) == [True, *expected], moved
    assert shown.execute_script(mask, one(opened(evaluation(tmp_path / "b")), ".matrix"))[1:] == ["#000", "#000"]


def test_a_curves_figures_can_be_read_in_a_narrow_window(tmp_path: Path, opened: Opened) -> None:
    path = run_pages.write([make_run(tmp_path / "run", steps=144)], out=tmp_path / "run.html").out
    shown = opened(path, width=360)
    assert shown.execute_script("return document.documentElement.scrollWidth") <= 360
    figure = one(shown, "[data-chart=loss]")
    labels = [each for each in all_of(figure, ".grid text") if each.is_displayed()]
    boxes = [each.rect for each in labels if "x" in each.get_attribute("class").split()]
    assert min(each.rect["height"] for each in labels) >= 7.5
    assert len(boxes) >= 3
    assert all(left["x"] + left["width"] < right["x"] for left, right in itertools.pairwise(boxes))


def test_on_paper_it_is_light_and_has_no_controls(tmp_path: Path, opened: Opened) -> None:
    path = run_pages.write([make_prediction(tmp_path / "prediction")], out=tmp_path / "p.html").out
    shown = opened(path, scheme="dark")
    shown.execute_script("document.documentElement.dataset.theme = 'dark'")
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        ink = shown.execute_script("return getComputedStyle(document.body).color")
        assert max(int(value) for value in ink.strip("rgba()").split(",")[:3]) < 64
        assert not [each for each in all_of(shown, "#theme, nav, .slide, .layers") if each.is_displayed()]
        assert one(shown, ".stage .left").is_displayed() and one(shown, "#classes table").is_displayed()
    finally:
        shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
