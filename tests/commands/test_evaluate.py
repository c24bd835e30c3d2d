from __future__ import annotations

import csv
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import memorysam_cli
from memorysam_cli.data import manifest
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.evaluate import evaluation, scoring
from memorysam_cli.engine.evaluate.scoring import evaluate
from memorysam_cli.engine.infer.inference import Inference
from memorysam_cli.model import load, read_card, weights
from memorysam_cli.storage import images, tensors

from ..engine.stand_ins import CLASSES, write_data
from .trained import Program, answered, save_weights

Told = Callable[..., dict[str, Any]]

FILES = {
    "metrics": "metrics.json",
    "per_class": "per_class.csv",
    "breakdown": "breakdown.csv",
    "scenes": "scenes.csv",
    "confusion": "confusion-resized.csv",
    "confusion_resized": "confusion-resized.csv",
    "confusion_native": "confusion-native.csv",
    "confusion_figure": "confusion.png",
    "per_class_figure": "per_class.png",
}
KEYS = {
    "schema_version", "dataset", "dataset_hash", "split", "split_sha256", "selection_split", "scenes", "modalities",
    "palette", "missing", "tta", "tile", "image_size", "weights", "weights_sha256", "device", "precision", "versions",
    "warnings", "protocol", "miou", "macc", "mf1", "miou_present", "macc_present", "mf1_present", "classes", "splits",
    "conditions", "cases", "condition_cases", "worst", "pixels", "protocols", "means", "laws", "files",
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``data/``, and a run with its best weights."""
    folder = tmp_path_factory.mktemp("template")
    data = write_data(folder / "data")
    save_weights(folder / "runs/small-1/checkpoints/best.safetensors", data.info)
    (folder / "runs/small-1" / run_folder.RECIPE).write_text("{}")
    (folder / "runs/latest").symlink_to("small-1")
    return folder


@pytest.fixture(scope="module")
def answers(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """A folder, and the answer of ``evaluate`` with some options in it, which run once however many tests ask."""
    folder = tmp_path_factory.mktemp("told") / "here"
    shutil.copytree(template, folder, symlinks=True)
    return folder, functools.cache(lambda *arguments: answered(folder, "evaluate", "--workers", 0, *arguments))


@pytest.fixture
def told(answers: tuple[Path, Told], monkeypatch: pytest.MonkeyPatch) -> Told:
    """Those answers; the test runs in their folder, and only reads."""
    monkeypatch.chdir(answers[0])
    return answers[1]


def test_without_any_option_the_best_of_the_latest_run_is_scored_on_val(told: Told) -> None:
    report = told()
    assert set(report) == KEYS
    assert (report["schema_version"], report["split"], report["protocol"], report["scenes"]) == (1, "val", "resized", 5)
    folder = Path("runs/small-1/evaluate/val")
    assert report["files"] == {key: str(folder / name) for key, name in FILES.items()}
    assert all(Path(path).is_file() for path in report["files"].values())
    assert json.loads((folder / "metrics.json").read_text()) == report
    assert [each["name"] for each in report["classes"]] == list(CLASSES)
    assert {"name", "iou", "f1", "accuracy", "pixels"} == set(report["classes"][0])
    assert set(report["conditions"]) == {"fog", "rain"} and set(report["cases"]) == {
        "normal", "lidarjitter", "motionblur",
    }  # fmt: skip
    assert set(report["protocols"]) == {"resized", "native"}
    assert sum(report["protocols"]["native"]["pixels"].values()) == 4 * 97 * 131 + 64 * 64


def test_the_result_is_that_of_the_function_that_training_validates_with(told: Told) -> None:
    report = told()
    model = load("runs/latest/checkpoints/best.safetensors")
    data = _manifest(Path())
    found = evaluate(
        model, data, scenes=data.of_split("val"), inference=Inference(model.card.modalities, 32, "cpu", workers=0)
    )  # fmt: skip
    assert report["miou"] == found.protocol("resized").miou
    assert report["protocols"] == json.loads(json.dumps(found.to_json()))


def test_unmerged_weights_in_training_score_as_the_saved_ones(here: Path) -> None:
    data, path = _manifest(here), Path("runs/latest/checkpoints/best.safetensors")
    live = weights.build_for_training(read_card(path).recipe, data.info).train()
    merged = load(path)
    options: dict[str, Any] = {
        "scenes": data.of_split("val"), "inference": Inference(merged.card.modalities, 32, "cpu", workers=0),
    }  # fmt: skip
    torch.testing.assert_close(
        evaluate(live, data, **options).confusions, evaluate(merged, data, **options).confusions, rtol=0, atol=0
    )
    assert live.training
    frames = [torch.zeros(1, 3, 32, 32)] * 2
    live.logits(frames).sum().backward()  # nothing that a step needs was made in inference mode


@pytest.mark.rendered
def test_the_table_files_hold_the_same_numbers(here: Path, memorysam: Program) -> None:
    report = memorysam("evaluate", "--json", "--workers", 0).answer
    with Path(report["files"]["per_class"]).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["protocol"], row["class"]) for row in rows] == [
        (protocol, name) for protocol in ("resized", "native") for name in (*CLASSES, "mean")
    ]
    assert [float(row["iou"]) for row in rows[:4]] == [each["iou"] for each in report["classes"]]
    assert float(rows[4]["iou"]) == report["miou"]
    with Path(report["files"]["confusion"]).open() as stream:
        header, *lines = list(csv.reader(stream))
    assert header[1:] == list(CLASSES) == [line[0] for line in lines]
    assert [sum(map(int, line[1:])) for line in lines] == [each["pixels"] for each in report["classes"]]
    with Path(report["files"]["scenes"]).open() as stream:
        each = list(csv.DictReader(stream))
    assert [row["protocol"] for row in each] == ["resized"] * 5 + ["native"] * 5
    assert sum(int(row["pixels"]) for row in each[:5]) == report["pixels"]["scored"]
    worst = min(each[:5], key=lambda row: float(row["miou_present"]))
    assert worst["scene"] == report["worst"][0]["scene"]
    assert float(worst["miou_present"]) == report["worst"][0]["miou_present"]
    with Path(report["files"]["breakdown"]).open() as stream:
        parts = {tuple(list(row.values())[:4]): row for row in csv.DictReader(stream)}
    assert float(parts["native", "", "", ""]["miou"]) == report["protocols"]["native"]["miou"]
    product = report["condition_cases"]["fog"]["lidarjitter"]
    assert float(parts["resized", "", "fog", "lidarjitter"]["miou"]) == product["miou"]
    for key in ("confusion_figure", "per_class_figure"):
        assert images.shape(Path(report["files"][key]))[2] == 4  # RGBA, decodable


def test_people_get_a_table_and_where_things_are(here: Path, memorysam: Program) -> None:
    ended = memorysam("evaluate", "--workers", 0)
    for words in ("class", "IoU", *CLASSES, "mean", "fog", "lidarjitter", "resized", "native", "runs/small-1/evaluate"):
        assert words in ended.out
    assert "tiny val: %, resized protocol" in ended.out
    assert "'val' also chose these weights" in ended.err


def test_a_split_that_chose_nothing_needs_no_such_note(here: Path, memorysam: Program) -> None:
    ended = memorysam("evaluate", "--split", "train", "--json", "--workers", 0)
    assert "also chose" not in ended.err
    assert ended.answer["files"]["metrics"] == "runs/small-1/evaluate/train/metrics.json"


def test_the_native_protocol_can_head_the_report(told: Told, here: Path, memorysam: Program) -> None:
    resized = told()
    native = memorysam("evaluate", "--protocol", "native", "--json", "--workers", 0).answer
    assert native["miou"] == resized["protocols"]["native"]["miou"] != resized["miou"]
    assert native["protocols"] == resized["protocols"]


def test_a_report_says_all_that_decides_it(told: Told) -> None:
    report = told()
    data = _manifest(Path())
    assert report["split_sha256"] == {"val": evaluation.scenes_sha256(data.of_split("val"))}
    assert report["weights_sha256"] == tensors.sha256(Path("runs/latest/checkpoints/best.safetensors"))
    assert (report["missing"], report["tta"], report["tile"]) == ("drop", None, None)
    assert (report["device"], report["precision"]) == ("cpu", "fp32")
    assert report["versions"] == {"memorysam": memorysam_cli.__version__, "torch": torch.__version__}
    assert "'val' also chose these weights" in report["warnings"][0]


@pytest.mark.parametrize("split", ["val,train", "all"])
def test_several_splits_are_one_result_with_a_part_for_each(
    told: Told, here: Path, memorysam: Program, split: str
) -> None:
    ended = memorysam("evaluate", "--split", split, "--json", "--workers", 0, "-q")
    report, folder = ended.answer, "val+train" if split == "val,train" else "train+val"
    assert (report["split"], report["scenes"]) == (folder, 6)
    assert {name: part["scenes"] for name, part in report["splits"].items()} == {"val": 5, "train": 1}
    assert set(report["split_sha256"]) == {"val", "train"}
    assert Path(report["files"]["metrics"]) == Path("runs/small-1/evaluate") / folder / "metrics.json"
    assert len(report["warnings"]) == 2 == ended.err.count("memorysam: warning:")
    alone = told()
    assert report["splits"]["val"]["miou"] == alone["miou"] == alone["splits"]["val"]["miou"]


def test_people_see_the_worst_scenes_first_and_conditions_against_cases(here: Path, memorysam: Program) -> None:
    ended = memorysam("evaluate", "--split", "all", "--workers", 0)
    report = json.loads(Path("runs/small-1/evaluate/train+val/metrics.json").read_text())
    lines = ended.out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("worst scenes"))
    assert report["worst"][0]["scene"] in lines[start + 2]
    head = next(line for line in lines if line.startswith("mIoU "))
    assert head.split() == ["mIoU", "normal", "lidarjitter", "motionblur"]
    rain = report["condition_cases"]["rain"]
    row = [f"{rain['normal']['miou']:.2f}", "–", f"{rain['motionblur']['miou']:.2f}"]
    assert ["rain", *row] in [line.split() for line in lines]
    assert any(line.startswith("splits") for line in lines)


def test_a_missing_modality_is_dropped_or_fed_as_zeros(told: Told) -> None:
    arguments = ("--modalities", "img")
    dropped, zeroed = told(*arguments), told(*arguments, "--missing", "zero")
    assert (dropped["missing"], zeroed["missing"]) == ("drop", "zero")
    assert zeroed["files"]["metrics"] == "runs/small-1/evaluate/val/img-zero/metrics.json"
    model, data = load("runs/latest/checkpoints/best.safetensors"), _manifest(Path())

    class BlackDepth:
        training = False

        def eval(self) -> Any: ...

        def train(self, mode: bool = True) -> Any: ...

        def logits(self, frames: list[torch.Tensor]) -> torch.Tensor:
            return model.logits([frames[0], torch.zeros_like(frames[0])])

    expected = evaluate(
        BlackDepth(), data, scenes=data.of_split("val"),
        inference=Inference(model.card.modalities[:1], 32, "cpu", workers=0),
    )  # fmt: skip
    assert zeroed["protocols"] == json.loads(json.dumps(expected.to_json()))


def write_two(here: Path, size: tuple[int, int] = (40, 48)) -> None:
    """Two small scenes in place of the five: they are soon seen many times."""
    write_data(here / "data", [("a", "val", "fog", None, size), ("b", "val", "rain", None, size)])


def test_augmentation_and_windows_have_folders_of_their_own_and_say_so(here: Path, memorysam: Program) -> None:
    write_two(here)
    plain = memorysam("evaluate", "--json", "--workers", 0).answer
    tta = memorysam("evaluate", "--tta-scales", "0.5,1", "--json", "--workers", 0).answer
    tile = memorysam("evaluate", "--tile", "--tile-overlap", 0.5, "--json", "--workers", 0).answer
    assert tta["tta"] == {"scales": [0.5, 1.0], "flip": True}
    assert tile["tile"] == {"window": 32, "overlap": 0.5}
    assert tta["files"]["metrics"] == "runs/small-1/evaluate/val/tta-0.5-1/metrics.json"
    assert tile["files"]["metrics"] == "runs/small-1/evaluate/val/tile-0.5/metrics.json"
    assert plain["pixels"] == tta["pixels"] == tile["pixels"]
    assert json.loads(Path(plain["files"]["metrics"]).read_text()) == plain


def test_people_are_told_how_scenes_were_shown(here: Path, memorysam: Program) -> None:
    write_two(here, size=(32, 32))
    view = ("--modalities", "img", "--missing", "zero", "--tta-scales", "1,1.5", "--tile")
    told = memorysam("evaluate", *view, "--workers", 0).out
    assert "2 of val, img (others as zeros; scales 1, 1.5, each also mirrored; windows of 32 pixels)" in told
    assert "2 of val, img, depth\n" in memorysam("evaluate", "--workers", 0).out


def test_frames_of_the_models_size_need_no_windows(here: Path, memorysam: Program) -> None:
    write_data(here / "data", [("a", "val", None, None, (32, 32)), ("b", "val", None, None, (32, 32))])
    plain = memorysam("evaluate", "--json", "--workers", 0).answer
    tiled = memorysam("evaluate", "--tile", "--json", "--workers", 0).answer
    assert tiled["protocols"] == plain["protocols"]


def test_a_split_without_labels_is_refused_and_left_out_of_all(here: Path, memorysam: Program) -> None:
    data = _manifest(here)
    info = data.info.model_copy(update={"unlabeled": ("test",)})
    bare = dataclasses.replace(data.scenes[0], id="test/a", split="test", label=None)
    manifest.write(data.root, info, [*data.scenes, bare])
    ended = memorysam("evaluate", "--split", "test")
    assert (ended.code, ended.out) == (3, "") and "predict --split test" in ended.err and ended.err.count("\n") == 1
    ended = memorysam("evaluate", "--split", "all", "--json", "--workers", 0)
    assert ended.code == 0 and "left out, because they have no labels: test" in ended.err
    assert ended.answer["split"] == "train+val"


def test_a_part_of_the_modalities_is_scored_beside_the_full_result(told: Told) -> None:
    full, part = told(), told("--modalities", "img")
    assert (full["modalities"], part["modalities"]) == (["img", "depth"], ["img"])
    said = "have a combination of sensors that these weights were never trained for: img ("
    assert [said in each["warnings"][0] for each in (full, part)] == [False, True]
    assert part["files"]["metrics"] == "runs/small-1/evaluate/val/img/metrics.json"
    assert json.loads(Path(full["files"]["metrics"]).read_text()) == full


def test_weights_outside_a_run_and_an_out_folder(here: Path, memorysam: Program) -> None:
    write_two(here)
    shutil.copy("runs/latest/checkpoints/best.safetensors", "mine.safetensors")
    arguments = ("evaluate", "--weights", "mine.safetensors", "--json", "--workers", 0)
    digest = tensors.sha256(Path("mine.safetensors"))
    assert memorysam(*arguments).answer["files"]["metrics"] == f"evaluate/mine-{digest[:8]}/val/metrics.json"
    for _ in range(2):  # its own result may be replaced
        assert memorysam(*arguments, "--out", "there").answer["files"]["metrics"] == "there/metrics.json"


def test_other_weights_of_a_run_leave_the_result_of_its_best_alone(here: Path, memorysam: Program) -> None:
    write_two(here)
    best = memorysam("evaluate", "--json", "--workers", 0).answer
    last = Path("runs/small-1/checkpoints/last.safetensors")
    save_weights(last, _manifest(here).info, modalities=("img",))
    other = memorysam("evaluate", "--weights", last, "--json", "--workers", 0).answer
    assert other["files"]["metrics"] == "runs/small-1/evaluate/last/val/metrics.json"
    assert json.loads(Path(best["files"]["metrics"]).read_text()) == best


def test_a_users_own_files_are_not_replaced(here: Path, memorysam: Program) -> None:
    Path("mine").mkdir()
    Path("mine/scenes.csv").write_text("my list")
    ended = memorysam("evaluate", "--out", "mine")
    assert ended.code == 2 and "mine: holds scenes.csv, which no evaluation wrote" in ended.err
    assert [path.name for path in Path("mine").iterdir()] == ["scenes.csv"]


def test_weights_that_are_replaced_meanwhile_are_not_credited(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_two(here)
    path = Path("runs/small-1/checkpoints/best.safetensors")
    digest, real = tensors.sha256(path), scoring.evaluate

    def replaced(*arguments: Any, **options: Any) -> Any:
        save_weights(path, _manifest(here).info, modalities=("depth",))
        return real(*arguments, **options)

    monkeypatch.setattr(scoring, "evaluate", replaced)
    assert memorysam("evaluate", "--json", "--workers", 0).answer["weights_sha256"] == digest
    assert tensors.sha256(path) != digest


def test_zeros_for_nothing_are_called_nothing(here: Path, memorysam: Program) -> None:
    write_two(here)
    ended = memorysam("evaluate", "--missing", "zero", "--workers", 0)
    assert "others as zeros" not in ended.out and "no modality is left out" in ended.err


def test_frames_smaller_than_the_model_are_seen_as_without_windows(here: Path, memorysam: Program) -> None:
    write_data(here / "data", [("a", "val", None, None, (20, 90)), ("b", "val", None, None, (17, 30))])
    plain = memorysam("evaluate", "--json", "--workers", 0).answer
    assert memorysam("evaluate", "--tile", "--json", "--workers", 0).answer["protocols"] == plain["protocols"]


def test_a_miou_below_the_asked_one_ends_with_10_after_everything_is_written(here: Path, memorysam: Program) -> None:
    write_two(here)
    ended = memorysam("evaluate", "--min-miou", 99, "--json", "--workers", 0)
    assert ended.code == 10
    assert "--min-miou 99: the mIoU is " in ended.err
    assert Path(ended.answer["files"]["metrics"]).is_file()
    assert memorysam("evaluate", "--min-miou", 0, "--workers", 0).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--modalities", "img,dept"), 2, "did you mean 'depth'"),
        (("--modalities", "img,,depth"), 2, "a name is missing"),
        (("--protocol", "naive"), 2, "resized"),
        (("--batch", 0), 2, "--batch"),
        (("--missing", "guess"), 2, "zero"),
        (("--tta-scales", "1,big"), 2, "different numbers from 0.1 to 4"),
        (("--tta-scales", "1,1"), 2, "different numbers"),
        (("--tta-scales", "nan"), 2, "different numbers"),
        (("--tta-scales", "100"), 2, "different numbers"),
        (("--tile-overlap", 1), 2, "--tile-overlap"),
        (("--robustness", "all"), 2, "rmm"),
        (("--robustness", "emm", "--tta"), 2, "without --tta"),
        (("--robustness", "emm", "--min-miou", 50), 2, "--min-miou"),
        (("--repeats", 0), 2, "--repeats"),
        (("--repeats", 1), 2, "only with --robustness rmm or nm"),
        (("--seed", 0), 2, "only with --robustness rmm or nm"),
        (("--noise-extremes", "batch"), 2, "only with --robustness nm;"),
        (("--split", "val,,test"), 2, "a name is missing"),
        (("--split", "tset"), 3, "no scene in split 'tset' (known: "),
        (("--data", "elsewhere"), 3, "elsewhere: does not exist"),
        (("--weights", "none.safetensors"), 5, "none.safetensors"),
        (("--weights", "data/memorysam/tiny/dataset.json"), 5, "dataset.json"),
        (("--device", "cuda:99"), 6, "cuda:99"),
        (("--device", "gpu"), 2, "gpu"),
        (("--device", "cpu", "--precision", "fp16"), 2, "fp16 needs a GPU"),
        (("--device", "cpu", "--precision", "tf32"), 2, "tf32 needs an NVIDIA GPU"),
    ],
    ids=str,
)
def test_what_cannot_be_done_ends_with_its_code_and_one_line(
    here: Path, memorysam: Program, arguments: tuple[object, ...], code: int, words: str
) -> None:
    ended = memorysam("evaluate", "--workers", 0, *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err.splitlines()[-1] and ended.err.count("error [") == 1
    assert not Path("runs/small-1/evaluate").exists()


def test_without_weights_the_code_is_5_and_says_how_to_get_some(
    tmp_path: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = memorysam("evaluate")
    assert ended.code == 5 and "memorysam train" in ended.err


def test_data_of_other_classes_are_refused(here: Path, memorysam: Program) -> None:
    data = _manifest(here)
    save_weights(here / "other.safetensors", data.info.model_copy(update={"classes": CLASSES[::-1]}))
    ended = memorysam("evaluate", "--weights", "other.safetensors")
    assert ended.code == 5 and "'sign' against 'road'" in ended.err


def test_a_broken_image_is_named_and_leaves_no_result(here: Path, memorysam: Program) -> None:
    path = here / "data/tiny/depth/fog/val/a/000002.png"
    path.write_bytes(path.read_bytes()[:60])
    ended = memorysam("evaluate", "--workers", 0)
    assert ended.code == 3 and "depth/fog/val/a/000002.png" in ended.err
    assert not list(Path("runs/small-1/evaluate").rglob("*.json"))


def test_an_output_that_cannot_be_written_ends_with_6_before_anything_is_computed(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    monkeypatch.setattr("memorysam_cli.model.load", lambda *_, **__: pytest.fail("loaded"))
    ended = memorysam("evaluate", "--out", "file/results")
    assert ended.code == 6 and "file/results" in ended.err


def _manifest(here: Path) -> Manifest:
    return manifest.read(here / "data", "tiny")


def test_half_precision_has_a_folder_of_its_own_and_scores_nearly_the_same(told: Told) -> None:
    exact, half = told(), told("--device", "cpu", "--precision", "bf16")
    assert (exact["precision"], half["precision"]) == ("fp32", "bf16")
    assert half["files"]["metrics"] == "runs/small-1/evaluate/val/bf16/metrics.json"
    assert abs(exact["miou"] - half["miou"]) < 1
    assert torch.get_autocast_dtype("cpu") is torch.bfloat16 and not torch.is_autocast_enabled("cpu")


def test_compiling_is_the_networks(here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    write_two(here)
    compiled: list[object] = []

    def compile_blocks(network: weights.Segmenter) -> None:
        compiled.append(network)

    monkeypatch.setattr(weights.Segmenter, "compile_blocks", compile_blocks)
    assert memorysam("evaluate", "--workers", 0).code == 0 and not compiled
    assert memorysam("evaluate", "--workers", 0, "--compile").code == 0 and len(compiled) == 1
