"""The pages of ``memorysam report``, used as people use them: pointed at, clicked, typed in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from memorysam_cli.engine.reporting import run_pages
from memorysam_cli.storage import documents

from ..engine.reporting.test_pages import evaluated, make_prediction, make_run  # noqa: F401  (a fixture)
from .conftest import Opened

pytestmark = pytest.mark.rendered

CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")
LONG = "a class of things that somebody named at quite some length, with a remark"


@pytest.fixture(scope="module")
def pages(evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    folder = tmp_path_factory.mktemp("pages")
    run = make_run(folder / "run", lr=1e-3)
    shutil.copytree(evaluated, run / "evaluate" / "val")
    other = make_run(folder / "other")
    shutil.copytree(evaluated, other / "evaluate" / "val")
    made = {
        "training": (make_run(folder / "bare"),),
        "evaluation": (evaluated,),
        "prediction": (make_prediction(folder / "prediction"),),
        "both": (run,),
        "comparison": (run, other),
        "nothing": (make_prediction(folder / "nothing", scenes=0, failed=0),),
        "many": (_rewritten(evaluated, folder / "many", classes=25),),
        "one": (_rewritten(evaluated, folder / "one", classes=1),),
    }
    return {name: run_pages.write(each, out=folder / f"{name}.html").out for name, each in made.items()}


def _rewritten(source: Path, folder: Path, *, classes: int) -> Path:
    """An evaluation with another number of classes, the first with a long name, and without scenes."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("gallery", "img"))
    report = documents.read_json(folder / "metrics.json")
    each = report["classes"][0]
    report["classes"] = [{**each, "name": LONG if index == 0 else f"class {index}"} for index in range(classes)]
    report["palette"] = [[9 * index, 90, 200] for index in range(classes)]
    documents.write_json(folder / "metrics.json", report)
    rng = np.random.Generator(np.random.PCG64(1))
    counts = rng.integers(0, 1000, (classes, classes)).tolist()
    lines = [",".join(["x", *(["y"] * classes)])] + [",".join(["y", *map(str, row)]) for row in counts]
    (folder / "confusion-resized.csv").write_text("\n".join(lines) + "\n")
    return folder


def one(page: Any, selector: str) -> Any:
    return page.find_element(By.CSS_SELECTOR, selector)


def all_of(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements(By.CSS_SELECTOR, selector))


KINDS = ("training", "evaluation", "prediction", "both", "comparison", "nothing", "many", "one")


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_fits_its_window_and_asks_nothing_of_any_network(
    pages: dict[str, Path], opened: Opened, kind: str, width: int, scheme: str
) -> None:
    page = opened(pages[kind], width=width, scheme=scheme)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    asked = [json.loads(each["message"])["message"] for each in page.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:", "about:")) for url in urls)
    assert all(
        page.execute_script("return arguments[0].complete && arguments[0].naturalWidth > 0", picture)
        for picture in all_of(page, "img")
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["training", "evaluation", "prediction", "comparison"])
def test_text_stands_out_from_what_is_behind_it(pages: dict[str, Path], opened: Opened, kind: str, scheme: str) -> None:
    page = opened(pages[kind], scheme=scheme)
    # WCAG 2.2 (AA) asks for 4.5 : 1.
    assert page.execute_script(CONTRAST) == []


def test_the_theme_is_switched_and_stays(pages: dict[str, Path], opened: Opened) -> None:
    page = opened(pages["evaluation"])
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = page.execute_script(paper)
    one(page, "#theme").click()
    dark = page.execute_script(paper)
    assert light != dark
    page.refresh()
    assert page.execute_script(paper) == dark
    one(page, "#theme").click()
    assert page.execute_script(paper) == light
    page.execute_script("localStorage.clear()")


def test_classes_are_sorted_by_clicks_and_keys(pages: dict[str, Path], opened: Opened) -> None:
    page = opened(pages["evaluation"])
    table = one(page, "#classes table")

    def column(index: int) -> list[str]:
        return [each.text for each in all_of(table, f"tbody tr > :nth-child({index})")]

    was, iou = column(1), all_of(table, "th button")[1]
    iou.click()
    values = [float(text) for text in column(3)]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    assert one(table, "th[aria-sort]").get_attribute("aria-sort") == "descending"
    iou.send_keys(Keys.ENTER)
    assert [float(text) for text in column(3)] == sorted(values)
    all_of(table, "th button")[0].click()
    assert column(1) == sorted(was) and len(all_of(table, "th[aria-sort]")) == 1


def test_the_matrix_is_normalized_otherwise_and_read_by_mouse_and_keys(pages: dict[str, Path], opened: Opened) -> None:
    page = opened(pages["evaluation"])
    root = one(page, "[data-matrix]")
    counts = json.loads(one(root, "script").get_attribute("textContent"))["counts"]
    size = len(counts)

    def shares() -> list[float]:
        return [float(each.get_attribute("fill-opacity")) for each in all_of(root, ".cell")]

    by_row = shares()
    assert by_row == pytest.approx([value / sum(row) for row in counts for value in row], abs=1e-3)
    one(root, "input[value=column] + span").click()
    columns = [sum(row[index] for row in counts) for index in range(size)]
    assert shares() == pytest.approx([row[j] / max(1, columns[j]) for row in counts for j in range(size)], abs=1e-3)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", root)
    reading = one(root, ".reading")
    ActionChains(page).move_to_element(all_of(root, ".cell")[size + 2]).perform()
    assert reading.text.startswith(f"true sky, predicted pole: {counts[1][2]:,} pixels, ")
    assert reading.text.endswith("% of predicted pole")
    one(root, "svg").send_keys(Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert reading.text.startswith(f"true pole, predicted sky: {counts[2][1]:,} pixels, ")


def test_curves_tell_their_values_by_mouse_and_keys(pages: dict[str, Path], opened: Opened) -> None:
    page = opened(pages["training"])
    figure = one(page, "[data-chart=loss]")
    svg, reading = one(figure, "svg"), one(figure, ".reading")
    assert reading.text == ""
    ActionChains(page).move_to_element(svg).perform()
    hovered = reading.text
    assert hovered.startswith("step 1") and "loss " in hovered and "ohem " in hovered
    svg.send_keys(Keys.END)
    assert reading.text == "step 20: loss 0.15 · ohem 0.1"
    svg.send_keys(Keys.ARROW_LEFT)
    assert reading.text.startswith("step 19: loss 0.15789")
    svg.send_keys(Keys.HOME)
    assert reading.text == "step 1: loss 3 · ohem 2"


def test_scenes_are_flipped_through_and_divided(pages: dict[str, Path], opened: Opened) -> None:
    page = opened(pages["evaluation"], height=1400)
    root = one(page, "[data-gallery]")
    scenes = json.loads(one(root, "script").get_attribute("textContent"))
    left, right = one(root, ".stage .left"), one(root, ".stage .right")

    def clip() -> str:
        return str(page.execute_script("return getComputedStyle(arguments[0]).clipPath", right))

    assert (left.get_attribute("alt"), right.get_attribute("alt")) == ("img", "Prediction")
    slide = one(root, ".slide")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", one(root, ".stage"))
    before = clip()
    slide.send_keys(Keys.HOME)
    assert clip() != before and clip() in ("inset(0px)", "inset(0px 0px 0px 0%)")
    slide.send_keys(Keys.ARROW_RIGHT * 3)
    assert clip() == "inset(0px 0px 0px 3%)"
    stage = one(root, ".stage")
    quarter = stage.size["width"] // 4
    ActionChains(page).move_to_element(stage).click_and_hold().move_by_offset(quarter, 0).release().perform()
    assert 74 <= float(slide.get_attribute("value")) <= 76
    one(root, "input[name^=left][value=error] + span").click()
    assert left.get_attribute("alt") == "Errors"
    one(root, "input[name^=left][value=error]").send_keys(Keys.ARROW_RIGHT)
    assert left.get_attribute("alt") == "Confidence"
    all_of(root, ".picker button")[1].click()
    assert one(root, ".scene bdi").text == scenes[1]["name"]
    assert left.get_attribute("src") == scenes[1]["layers"][-1]["src"]
    assert [each.get_attribute("aria-pressed") for each in all_of(root, ".picker button")[:2]] == ["false", "true"]


def test_everything_that_can_be_used_has_a_name_for_screen_readers(pages: dict[str, Path], opened: Opened) -> None:
    page = opened(pages["both"])
    roles = {"button", "radio", "slider", "link", "image"}

    def used() -> list[Any]:
        nodes = page.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        return [each for each in nodes if not each.get("ignored") and each["role"]["value"] in roles]

    WebDriverWait(page, 20).until(lambda _: len(used()) > 50)  # the tree grows after the page is there
    assert [each for each in used() if not each.get("name", {}).get("value")] == []
