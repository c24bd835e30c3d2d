from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from memorysam_cli.engine.reporting import run_pages
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

from .test_pages import make_run, told

CHARTS = {chart[0]: chart for chart in run_pages.charts_of(("ohem", "spmm"))}


def size_of(src: object) -> tuple[int, int]:
    data = base64.b64decode(str(src).partition(",")[2])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return shown.shape[1], shown.shape[0]


def with_pictures(folder: Path, *, side: int, names: list[str]) -> Path:
    made = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (side, side, 3)).astype(np.uint8)
    for name in names:
        images.write_png(RunFolder(make_run(folder)).samples / name, made, fsync=False)
    return folder


def test_pictures_of_a_run_are_shown_in_their_order_and_no_larger_than_can_be_seen(tmp_path: Path) -> None:
    names = list(run_pages.PICTURES.values())
    shown = run_pages.gather_training(with_pictures(tmp_path / "run", side=1700, names=names[:1]))["pictures"]
    assert [size_of(each["src"]) for each in shown] == [(1600, 1600)]
    shown = run_pages.gather_training(with_pictures(tmp_path / "small", side=64, names=names[::-1]))["pictures"]
    assert [each["title"] for each in shown] == list(run_pages.PICTURES)
    assert [size_of(each["src"]) for each in shown] == [(64, 64)] * len(names)


def test_pictures_that_nobody_could_make_smaller_leave_room_for_the_rest_and_are_named(tmp_path: Path) -> None:
    run = with_pictures(tmp_path / "run", side=1600, names=list(run_pages.PICTURES.values()))
    shown = run_pages.gather_training(run)["pictures"]
    assert sum(len(each["src"]) for each in shown) <= run_pages.PICTURE_ROOM
    assert shown[0]["src"] and not shown[-1]["src"]
    found = told(run)
    assert "is too large for this page; it lies in the run's folder as samples/" in found.words
    assert all(str(picture["src"]).startswith("data:") for picture in found.all("img"))


def test_a_picture_that_is_damaged_is_named(tmp_path: Path) -> None:
    run = with_pictures(tmp_path / "run", side=64, names=["validation.png"])
    (run / "samples" / "validation.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"validation\.png"):
        run_pages.gather_training(run)


def test_values_have_names_that_people_use() -> None:
    rows = [{"step": step, "miou": 1.0, "miou_native": 2.0, "mf1": 3.0, "macc": 4.0} for step in (1, 2)]
    chart = run_pages.draw(CHARTS["miou"], [("", rows)])
    assert chart is not None
    assert [line.name for line in chart.lines] == ["mIoU", "mIoU, native", "mF1", "mAcc"]
    assert [line.is_main for line in chart.lines] == [True, False, False, False]


def test_two_runs_share_a_chart_under_their_own_names() -> None:
    rows = [{"step": step, "loss": 1.0, "ohem": 0.5} for step in (1, 2)]
    chart = run_pages.draw(CHARTS["loss"], [("A", rows), ("B", rows)])
    assert chart is not None
    assert [(line.name, line.is_main) for line in chart.lines] == [("A", True), ("B", True)]
