"""Pages of folders as commands leave them, read back as a browser's parser would."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from memorysam_cli import recipe as recipes
from memorysam_cli.engine.evaluate import evaluation as evaluation_run
from memorysam_cli.engine.infer.views import View
from memorysam_cli.engine.reporting import folders, result_pages, run_pages
from memorysam_cli.engine.reporting.run_pages import write
from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.report import pages
from memorysam_cli.storage import documents, images

from ...commands.trained import save_weights
from ..stand_ins import CLASSES, PALETTE, write_data

HOSTILE = "</script><img src=x onerror=alert(1)>\"'\u202e\x1b[2J\udcff.png"
SHOWN = "</script><img src=x onerror=alert(1)>\"'\\u202e\\x1b[2J\\udcff.png"
"""The same as people may see it: still words, and nothing that turns, drives a terminal, or is not text."""
VOID = {"meta", "img", "input", "br", "wbr", "rect", "line", "path", "circle", "link"}


class Page(HTMLParser):
    """What a page holds, and that its tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.text = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.scripts: list[str] = []
        self.feed(self.text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluated")
    manifest = write_data(root / "data")
    save_weights(root / "w.safetensors", manifest.info)
    for names in (None, ["img"]):
        torch.manual_seed(0)
        task = evaluation_run.plan(
            root / "w.safetensors", data=root / "data", split="val", modalities=names, view=View(),
            out=root / "out" / ("img" if names else "."), device="cpu", batch=2, workers=0,
        )  # fmt: skip
        evaluation_run.score(task, protocol="resized", pictured=4)
    return root / "out"


@pytest.fixture
def evaluation(evaluated: Path, tmp_path: Path) -> Path:
    shutil.copytree(evaluated, tmp_path / "evaluation")
    return tmp_path / "evaluation"


def make_run(folder: Path, *, name: str = "demo", lr: float = 3e-3, steps: int = 20) -> Path:
    run = RunFolder(folder)
    run.store_recipe(recipes.load(name, [f"optim.lr={lr}"]))
    documents.write_json(folder / "environment.json", {"python": "3.11", "gpus": [], "versions": {"torch": "2.13.0"}})
    for step in range(1, steps + 1):
        values = {"loss": 3 / step, "ohem": 2 / step, "spmm": 0.1, "lr": lr, "gradient_norm": 1.0}
        run.log_metrics({"step": step, "epoch": 0}, {**values, "scenes_per_second": 2.0, "peak_memory_gb": 0.5})
    run.log_metrics(
        {"step": steps, "epoch": 1}, {"miou": 20.0 + 1000 * lr, "macc": 30.0, "mf1": 25.0, "miou_native": 19.0}
    )
    return folder


def make_prediction(folder: Path, *, scenes: int = 3, failed: int = 1) -> Path:
    (folder / "inputs").mkdir(parents=True)
    classes = [{"id": index, "name": name, "color": list(PALETTE[index])} for index, name in enumerate(CLASSES)]
    documents.write_json(folder / "classes.json", classes)
    for index in range(scenes):
        images.write_png(folder / f"masks/{index}.png", np.full((20, 30), index % 4, np.uint8))
        images.write_png(folder / f"inputs/{index}.png", np.full((20, 30, 3), 99, np.uint8))
        line = {"id": f"{index}", "status": "done", "mask": f"masks/{index}.png", "size": [20, 30]}
        documents.append_json_line(
            folder / "predictions.jsonl",
            {**line, "inputs": {"img": [f"{index}.png"]}, "classes": {str(index % 4): 600}},
        )
    for index in range(failed):
        documents.append_json_line(
            folder / "predictions.jsonl", {"id": f"bad{index}{HOSTILE}", "status": "failed", "error": "cannot be read"}
        )
    facts = {"dataset": "tiny", "inputs": str(folder / "inputs"), "modalities": ["img"], "weights": "w", "versions": {}}
    more = {"weights_sha256": "0" * 64, "image_size": 32, "device": "cpu", "precision": "fp32"}
    totals = [{**each, "pixels": 600 * (index < 3)} for index, each in enumerate(classes)]
    documents.write_json(folder / "_SUCCESS.json", {**facts, **more, "classes": totals})
    return folder


def told(*folder: Path, out: Path | None = None) -> Page:
    written = write(folder, out=out)
    assert written.size == written.out.stat().st_size < pages.MOST_BYTES
    return Page(written.out)


def test_a_page_is_sound_and_needs_nothing_else(evaluation: Path, tmp_path: Path) -> None:
    pages = [
        told(evaluation),
        told(make_run(tmp_path / "run")),
        told(make_prediction(tmp_path / "prediction")),
        told(tmp_path / "run", make_run(tmp_path / "other", lr=1e-3), out=tmp_path / "both.html"),
    ]
    for found in pages:
        assert len(found.all("h1")) == 1
        assert all(
            picture.get("alt") is not None and str(picture["src"]).startswith("data:") for picture in found.all("img")
        )
        assert not [each for _, each in found.tags if {"style", "onclick", "onload", "onerror"} & set(each)]
        assert not found.all("link") and not re.search(r"https?://|url\(", found.text)
        names = [each["id"] for _, each in found.tags if "id" in each]
        assert len(set(names)) == len(names)
        links = [str(each["href"])[1:] for each in found.all("a")]
        assert set(links) <= set(names)


def test_the_policy_allows_exactly_the_pages_own_script_and_style(evaluation: Path) -> None:
    found = told(evaluation)
    policy = next(str(each["content"]) for each in found.all("meta") if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:; ")
    code = [text for text, tag in zip(found.scripts, found.all("script"), strict=True) if "type" not in tag]
    assert len(code) == 1
    assert base64.b64encode(hashlib.sha256(code[0].encode()).digest()).decode() in policy
    style = found.text.split("<style>")[1].split("</style>")[0]
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy


def test_an_evaluation_shows_its_figures(evaluation: Path) -> None:
    found = told(evaluation)
    report = documents.read_json(evaluation / "metrics.json")
    assert f"{report['miou']:.2f}" in found.words
    assert all(name in found.words for name in ("resized protocol", "tiny · val", "rain", "motionblur", "img+depth"))
    scenes = json.loads(next(text for text in found.scripts if text.startswith('[{"caption"')))
    assert [layer["key"] for layer in scenes[0]["layers"]] == [
        "img",
        "depth",
        "label",
        "prediction",
        "error",
        "confidence",
    ]
    ranks = [scene["caption"].split(" ")[0] for scene in scenes]
    assert ranks == ["worst"] * 3 + ["best"] * 2
    matrix = next(json.loads(text) for text in found.scripts if '"counts"' in text)
    assert sum(map(sum, matrix["counts"])) == report["pixels"]["scored"]


def test_hostile_names_stay_text(evaluation: Path, tmp_path: Path) -> None:
    path = evaluation / "metrics.json"
    report = documents.read_json(path)
    report["classes"][0]["name"] = HOSTILE
    report["worst"][0]["scene"] = HOSTILE
    documents.write_json(path, report)
    gallery = documents.read_json(evaluation / "gallery/gallery.json")
    gallery["scenes"][0]["scene"] = HOSTILE
    documents.write_json(evaluation / "gallery/gallery.json", gallery)
    for found in (told(evaluation), told(make_prediction(tmp_path / "prediction"))):
        assert SHOWN in found.words and HOSTILE not in found.words
        assert not [each for each in found.all("img") if each["src"] == "x"]


def test_a_run_shows_what_its_recipe_changes(tmp_path: Path) -> None:
    found = told(make_run(tmp_path / "run", lr=1e-3))
    assert "optim.lr" in found.words and "0.003" in found.words
    assert "has not finished" in found.words
    unchanged = told(make_run(tmp_path / "same"))
    assert "It is the shipped recipe 'demo' unchanged." in unchanged.words


def test_a_recipe_of_ones_own_is_compared_with_the_nearest_shipped_one(tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path / "run", lr=1e-3))
    own = recipes.load("demo", ["optim.lr=0.001"]).model_copy(update={"name": "mine"})
    run.store_recipe(own)
    found = told(run.path)
    assert "the shipped recipe 'demo', the nearest one" in found.words and "optim.lr" in found.words


def test_a_run_has_a_chart_for_each_kind_of_value_and_none_for_what_was_not_logged(tmp_path: Path) -> None:
    found = told(make_run(tmp_path / "run"))
    assert [each["data-chart"] for each in found.all("figure")] == [
        each[0] for each in run_pages.charts_of(("ohem", "spmm"))
    ]
    empty = told(make_run(tmp_path / "none", steps=0))
    assert [each["data-chart"] for each in empty.all("figure")] == ["miou"]


def test_a_run_that_only_began_has_a_page(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").store_recipe(recipes.load("demo"))
    assert "No step has been logged yet." in told(tmp_path / "run").words


def test_a_run_shows_its_newest_whole_evaluation(evaluation: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    shutil.copytree(evaluation, run / "evaluate" / "val")
    assert folders.newest_evaluation(run) == run / "evaluate" / "val"
    found = told(run)
    assert "Confusion matrix" in found.words and "Loss" in found.words


def test_a_prediction_shows_shares_and_what_was_left_out(tmp_path: Path) -> None:
    found = told(make_prediction(tmp_path / "prediction", failed=250))
    assert "33.33" in found.words and "cannot be read" in found.words
    assert "… and 50 more" in found.words
    scenes = json.loads(next(text for text in found.scripts if text.startswith('[{"caption"')))
    assert [[layer["key"] for layer in scene["layers"]] for scene in scenes] == [["img", "prediction"]] * 3


def test_a_prediction_whose_inputs_are_gone_still_has_its_masks(tmp_path: Path) -> None:
    folder = make_prediction(tmp_path / "prediction")
    shutil.rmtree(folder / "inputs")
    found = told(folder)
    assert "no longer exist" in found.words
    assert len(found.all("img")) == 3 + 2


@pytest.mark.parametrize("key", ["inputs", "mask", "confidence"])
@pytest.mark.parametrize("way", ["absolute", "..", "inside/../.."])
def test_a_page_carries_no_file_from_outside_away(key: str, way: str, tmp_path: Path) -> None:
    folder = make_prediction(tmp_path / "prediction", scenes=1, failed=0)
    images.write_png(tmp_path / "secret.png", np.full((20, 30), 1, np.uint8))
    steps = {"inputs": "../../secret.png"}.get(key, "../secret.png")
    path = {"absolute": str(tmp_path / "secret.png"), "..": steps, "inside/../..": f"inside/../{steps}"}[way]
    (line,) = documents.read_json_lines(folder / "predictions.jsonl")
    (folder / "predictions.jsonl").unlink()
    documents.append_json_line(
        folder / "predictions.jsonl", {**line, key: {"img": [path]} if key == "inputs" else path}
    )
    with pytest.raises(DataError, match=r"predictions.jsonl: is not as this version.*leads out of its folder"):
        write([folder])
    assert not (folder / "report.html").exists()


def test_a_prediction_finds_its_inputs_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_prediction(tmp_path / "prediction")
    report = documents.read_json(folder / "_SUCCESS.json")
    documents.write_json(folder / "_SUCCESS.json", {**report, "inputs": "photos", "inputs_root": report["inputs"]})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "no longer exist" not in told(folder).words


def test_a_prediction_of_nothing_has_a_page(tmp_path: Path) -> None:
    assert "No scene was predicted." in told(make_prediction(tmp_path / "p", scenes=0, failed=0)).words


def test_what_there_is_no_room_for_is_told() -> None:
    each = [{"name": str(n), "caption": "", "layers": [{"key": "img", "src": "x" * 100}]} for n in range(9)]
    kept, note = folders.fitting(each, room=650)
    assert len(kept) == 3 and note.startswith("6 of 9 scenes are left out")
    assert folders.fitting(each)[1] == ""


def test_two_runs_are_compared_class_by_class(evaluation: Path, tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", lr=1e-3)
    for run in (a, b):
        shutil.copytree(evaluation, run / "evaluate" / "val")
    report = documents.read_json(b / "evaluate/val/metrics.json")
    report["classes"][1]["iou"] += 10
    documents.write_json(b / "evaluate/val/metrics.json", report)
    found = told(a, b, out=tmp_path / "both.html")
    assert "+10.00" in found.words and "optim.lr" in found.words
    assert found.words.count("sky") >= 1


def subsets(folder: Path, figures: dict[str, float], *, missing: str = "both", split: str = "val") -> Path:
    """A folder with the benchmark ``any`` of two sensors: "x+y" → mIoU with the others dropped; zeroed 1 less."""
    levels = [
        {
            "level": level,
            "average": {"miou": sum(figures.values()) / 3 - less},
            "sets": [
                {"available": name.split("+"), "missing": [], "miou": value - less} for name, value in figures.items()
            ],
        }
        for level, less in (("dropped", 0), ("zeroed", 1))
    ]
    if missing == "drop":  # as of earlier versions
        levels = [{**levels[0], "level": None}]
    report = {
        "dataset": "tiny", "split": split, "split_sha256": {split: "0"}, "protocol": "resized",
        "modalities": ["x", "y"], "missing": missing, "levels": levels, "weights_sha256": folder.name,
        "robustness": "any",
    }  # fmt: skip
    documents.write_json(folder / "robustness-any.json", report)
    return folder


def test_two_models_are_compared_by_what_is_left_of_them_without_sensors(tmp_path: Path) -> None:
    a = subsets(tmp_path / "a", {"x+y": 30.0, "y": 3.0, "x": 6.0})
    b = subsets(tmp_path / "b", {"x+y": 29.0, "y": 18.0, "x": 16.0})
    words = told(a, b, out=tmp_path / "both.html").words
    dropped, zeroed = words.partition("Missing sensors are not fed")[2].split("Missing sensors are zeros")
    for row in (
        ("All sensors", "30.00", "29.00", "-1.00"),
        ("Mean of 3 sets", "13.00", "21.00", "+8.00"),
        ("Worst set (A: y, B: x)", "3.00", "16.00", "+13.00"),
        ("y alone", "3.00", "18.00", "+15.00"),
    ):
        assert "".join(row) in dropped
    assert dropped.index("x alone") < dropped.index("y alone")
    assert "Worst set (A: y, B: x)2.0015.00+13.00" in zeroed
    earlier = subsets(tmp_path / "c", {"x+y": 30.0, "y": 3.0, "x": 6.0}, missing="drop")
    words = told(earlier, b, out=tmp_path / "both.html").words
    assert "Mean of 3 sets13.0021.00+8.00" in words and "are zeros" not in words
    with pytest.raises(UsageError, match="do not compare: the one is of split val, the other of test"):
        write([a, subsets(tmp_path / "d", {"x+y": 1.0, "y": 1.0, "x": 1.0}, split="test")])


@pytest.mark.parametrize(
    ("differ", "said"),
    [
        ("data set", "the one is of data set synthetic, the other of mcubes"),
        ("content", "the one is of another content of data set synthetic than the other"),
    ],
)
def test_runs_of_different_data_do_not_compare(
    differ: str, said: str, evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", name="mcubes" if differ == "data set" else "demo")
    for run, digest in ((a, "a"), (b, "b")):
        documents.write_json(run / "data.json", {"root": "/data", "dataset": "synthetic", "content_hash": digest * 64})
    found = told(a, b, out=tmp_path / "both.html")
    assert f"These two runs do not compare: {said}." in found.words
    assert f"These two runs do not compare: {said}." in capsys.readouterr().err
    assert "Best validation mIoU23.00 (step 20)23.00 (step 20)\n" in found.words, "and no difference of them"
    assert "miou" not in [each["data-chart"] for each in found.all("figure")]


def test_other_ways_of_looking_are_labeled_beside_parts_of_the_sensors(evaluation: Path) -> None:
    plain = documents.read_json(evaluation / "metrics.json")
    for name, change in (
        ("tta", {"tta": {"scales": [1.0]}}), ("tile", {"tile": {"window": 32}}), ("bf16", {"precision": "bf16"}),
        ("other", {"split_sha256": {"val": "0"}, "modalities": ["other"]}),
    ):  # fmt: skip
        documents.write_json(evaluation / name / "metrics.json", plain | change)
    words = told(evaluation).words
    for name in ("img+depth (test-time augmentation)", "img+depth (tiled)", "img+depth (bf16)"):
        assert name in words
    assert "other" not in words.partition("Sensors and settings")[2].partition("Scenes")[0]


def test_what_does_not_compare_is_refused(evaluation: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(evaluation, other)
    report = documents.read_json(other / "metrics.json")
    documents.write_json(other / "metrics.json", {**report, "split": "test"})
    with pytest.raises(UsageError, match="the one is of split val, the other of test"):
        write([evaluation, other], out=tmp_path / "x.html")
    with pytest.raises(UsageError, match="is a prediction; compare two runs"):
        write([evaluation, make_prediction(tmp_path / "p")], out=tmp_path / "x.html")
    with pytest.raises(UsageError, match="two folders at most, not 3"):
        write([evaluation] * 3)
    assert not (tmp_path / "x.html").exists()


def test_a_folder_of_nothing_is_refused_by_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing to report on; expected a run \(recipe.yaml\)"):
        write([tmp_path])
    with pytest.raises(UsageError, match="does not exist"):
        write([tmp_path / "nowhere"])
    (tmp_path / ".parts").mkdir()
    with pytest.raises(UsageError, match="are not done; run their command again first"):
        write([tmp_path])


def test_a_damaged_file_is_named(evaluation: Path) -> None:
    (evaluation / "confusion-resized.csv").write_text("truth,road\nroad,x\n")
    with pytest.raises(DataError, match=r"confusion-resized.csv: is not as this version"):
        write([evaluation])
    documents.write_json(evaluation / "metrics.json", {"weights_sha256": "0"})
    with pytest.raises(DataError, match=r"metrics.json: is not as this version"):
        write([evaluation])


def test_an_out_that_is_a_folder_is_refused(evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; give a file"):
        write([evaluation], out=tmp_path)


def test_pixels_of_no_class_count_in_the_shares_of_a_prediction() -> None:
    assert [each["share"] for each in result_pages._shares([{"pixels": 3}, {"pixels": 2}], others=5)] == [30, 20]
