from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from memorysam_cli.data import manifest
from memorysam_cli.data.loader import unlabeled_scenes
from memorysam_cli.engine import run_folder
from memorysam_cli.engine.evaluate.counts import confusion, scores
from memorysam_cli.engine.infer.decision import own_size
from memorysam_cli.model import load
from memorysam_cli.storage import documents, images

from ..engine.stand_ins import CLASSES, PALETTE, PLANS, write_data
from .trained import Program, save_weights

KEYS = {
    "schema_version", "job", "inputs", "dataset", "modalities", "missing", "tta", "tile", "image_size", "weights",
    "weights_sha256", "device", "precision", "versions", "scenes", "done", "failed", "failures", "classes", "out",
    "trees", "ledger", "success", "laws", "inputs_root", "probabilities", "thresholds", "unsure", "unsure_pixels",
    "untrained",
}  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``data/``, ``photos/`` (a folder per scene), and a run with its best weights."""
    folder = tmp_path_factory.mktemp("template")
    data = write_data(folder / "data")
    save_weights(folder / "runs/small-1/checkpoints/best.safetensors", data.info)
    (folder / "runs/small-1" / run_folder.RECIPE).write_text("{}")
    (folder / "runs/latest").symlink_to("small-1")
    rng = np.random.Generator(np.random.PCG64(3))
    for place, size in {"kitchen/a": (41, 57), "cellar/a": (64, 48)}.items():
        images.write_png(folder / "photos" / place / "rgb.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        images.write_png(folder / "photos" / place / "depth.png", rng.integers(0, 65536, size, dtype=np.uint16))
    return folder


def masks(out: Path) -> dict[str, tuple[int, ...]]:
    """Id and size of each mask."""
    paths = sorted((out / "masks").rglob("*.png"))
    return {path.relative_to(out / "masks").with_suffix("").as_posix(): images.shape(path)[:2] for path in paths}


def test_a_prepared_data_set_needs_no_option_but_its_place(here: Path, memorysam: Program) -> None:
    ended = memorysam("predict", "data", "--json", "--workers", 0)
    assert ended.code == 0
    assert set(ended.answer) == KEYS
    assert documents.read_json(Path("masks/_SUCCESS.json")) == ended.answer
    assert masks(Path("masks")) == {plan[0]: plan[4] for plan in PLANS}
    lines = documents.read_json_lines(Path("masks/predictions.jsonl"))
    assert [line["id"] for line in lines] == [plan[0] for plan in PLANS]
    assert {line["status"] for line in lines} == {"done"}
    counted = {each["id"]: each["pixels"] for each in ended.answer["classes"]}
    assert sum(counted.values()) == sum(height * width for *_, (height, width) in PLANS)


def test_without_scenes_the_prepared_data_below_the_root_are_meant(here: Path, memorysam: Program) -> None:
    for arguments in ((), ("--data", "data")):
        ended = memorysam("predict", *arguments, "--limit", 2, "--workers", 0, "--json")
        assert ended.code == 0, ended.err
        assert (ended.answer["inputs"], ended.answer["dataset"], ended.answer["done"]) == ("data", "tiny", 2)
        assert ("scenes of data; others are given as SCENES" in ended.err) == (not arguments)


def test_scenes_and_a_root_or_a_root_without_data_are_refused(here: Path, memorysam: Program) -> None:
    both = memorysam("predict", "photos", "--data", "data")
    assert both.code == 2 and "SCENES (photos) are given already" in both.err
    nothing = memorysam("predict", "--data", "photos")
    assert nothing.code == 3 and "data set 'tiny' is not prepared (prepared there: nothing)" in nothing.err
    assert not (here / "masks").exists()


def test_a_legend_shows_every_class_in_its_color_and_goes_with_its_classes(here: Path, memorysam: Program) -> None:
    words = ("predict", "data", "--limit", 1, "--workers", 0)
    assert memorysam(*words, "--legend").code == 0
    legend = images.read(here / "masks" / "legend.png")
    assert all((legend == color).all(-1).sum() > 100 for color in PALETTE)  # RGB, not BGR
    assert memorysam(*words, "--overwrite").code == 0
    assert not (here / "masks" / "legend.png").exists()


def test_a_split_and_a_limit_choose_scenes(here: Path, memorysam: Program) -> None:
    assert memorysam("predict", "data", "--split", "train", "--workers", 0).code == 0
    assert list(masks(Path("masks"))) == ["rain/train/a/000001"]
    assert memorysam("predict", "data", "--limit", 2, "--out", "two", "--workers", 0, "--json").answer["done"] == 2


def test_plain_folders_with_other_names_and_every_extra(here: Path, memorysam: Program) -> None:
    ended = memorysam(
        "predict", "photos", "--map", "img=rgb", "--out", "out", "--color", "--overlay", "--confidence", "--json",
        "--workers", 0,
    )  # fmt: skip
    assert ended.code == 0
    assert masks(Path("out")) == {"kitchen/a": (41, 57), "cellar/a": (64, 48)}
    trees = ("masks", "color", "overlay", "confidence")
    assert ended.answer["trees"] == {tree: f"out/{tree}" for tree in trees}
    assert len(list(Path("out").rglob("*.png"))) == 8
    assert images.shape(Path("out/confidence/kitchen/a.png")) == (41, 57, 1, "uint8")
    assert images.shape(Path("out/color/kitchen/a.png")) == (41, 57, 3, "uint8")


def test_probabilities_and_thresholds_of_a_job_are_its_own_and_are_taken_up_again(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = memorysam("predict", "data", "--out", "plain", "--workers", 0, "--json").answer
    assert (plain["probabilities"], plain["thresholds"], plain["unsure"], plain["unsure_pixels"]) == (
        None,
        None,
        None,
        0,
    )
    words = ("predict", "data", "--probabilities", "float16", "--workers", 0, "--json")
    needed = 0.26  # of four classes the best has at least 0.25
    words = (*words, *(word for name in CLASSES for word in ("--threshold", f"{name}={needed}")))
    report = memorysam(*words).answer
    assert report["probabilities"] == "float16" and report["thresholds"] == dict.fromkeys(CLASSES, needed)
    assert report["trees"] == {"masks": "masks/masks", "probabilities": "masks/probabilities"}
    unsure = 0
    for name, *_, size in PLANS:
        mask, free = images.read(here / f"masks/masks/{name}.png"), images.read(here / f"plain/masks/{name}.png")
        with np.load(here / f"masks/probabilities/{name}.npz") as archive:
            assert archive["classes"].tolist() == list(CLASSES)
            probabilities = archive["probabilities"]
        assert probabilities.shape == (4, *size) and probabilities.dtype == np.float16
        best = probabilities.max(0).astype(np.float32)
        far = abs(best - needed) > 1e-3  # half precision cannot tell the others
        np.testing.assert_array_equal(mask[far], np.where(best < needed, 255, free)[far])
        unsure += int((mask == 255).sum())
    assert report["unsure"] == 255 and report["unsure_pixels"] == unsure > 0
    assert sum(each["pixels"] for each in report["classes"]) + unsure == sum(h * w for *_, (h, w) in PLANS)
    assert "pixels of all classes + unsure pixels = pixels of all masks" in report["laws"]
    lines = Path("masks/predictions.jsonl").read_bytes()
    (here / f"masks/probabilities/{PLANS[0][0]}.npz").unlink()
    again = memorysam(*words)
    assert again.answer == report and "continues: 2 of 6 scenes done" in again.err
    assert Path("masks/predictions.jsonl").read_bytes() == lines
    for other in (("--unsure", CLASSES[1]), ("--threshold", "road=0.3"), ("--probabilities", "uint8")):
        swapped = [word for word in words if word != "road=0.26" or other[0] != "--threshold"]
        if other[0] == "--threshold":
            swapped.remove("--threshold")
        ended = memorysam(*swapped, *other, "--resume")
        assert ended.code == 2 and "a finished prediction of another job" in ended.err, other
    shards = [memorysam(*words, "--out", "shards", "--batch", 4, "--shard", f"{index}/2") for index in (1, 0)]
    assert shards[1].answer["unsure_pixels"] == unsure and shards[0].answer["parts_missing"] == 1
    assert Path("shards/predictions.jsonl").read_bytes() == lines
    assert memorysam("predict", "data", "--workers", 0, "--limit", 1).code == 0
    assert not list(Path("masks").rglob("*.npz")), "another prediction takes them away"


def test_an_unfinished_job_with_thresholds_is_another_one_than_without(here: Path, memorysam: Program) -> None:
    bad = Path("data/tiny/img/fog/val/b/000001.png")
    bad.write_bytes(bad.read_bytes()[:100])
    words = ("predict", "data", "--workers", 0, "--batch", 1)
    assert memorysam(*words, "--threshold", "sky=0.3").code == 3
    other = memorysam(*words)
    assert other.code == 2 and "5 scenes of another prediction (other thresholds, other unsure)" in other.err


def test_a_disk_without_room_for_probabilities_is_refused_before_computing(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(height * width for *_, (height, width) in PLANS) * 4 * 2  # four classes in two bytes
    free = shutil.disk_usage(here)._replace(free=needed - 1)
    monkeypatch.setattr("memorysam_cli.storage.atomic.shutil.disk_usage", lambda _: free)
    words = ("predict", "data", "--probabilities", "float16", "--workers", 0)
    ended = memorysam(*words)
    assert ended.code == 6 and "No space left on device (needs 0.5 MB, free 0.5 MB)" in ended.err
    assert not list(Path("masks").rglob("*.p*g"))
    monkeypatch.setattr("memorysam_cli.storage.atomic.shutil.disk_usage", lambda _: free._replace(free=needed))
    assert memorysam(*words).code == 0


def test_a_missing_modality_is_said_once_and_the_others_are_used(here: Path, memorysam: Program) -> None:
    for path in Path("photos").rglob("depth.png"):
        path.unlink()
    ended = memorysam("predict", "photos", "--map", "img=rgb", "--workers", 0, "--json")
    assert ended.code == 0 and ended.err.count("'depth'") == 1
    assert ended.answer["modalities"] == ["img"]
    assert ended.answer["untrained"] == [{"modalities": ["img"], "scenes": 2}]
    assert ended.err.count("2 of 2 scenes have a combination of sensors that these weights were never trained for") == 1
    lines = documents.read_json_lines(Path("masks/predictions.jsonl"))
    assert [line["modalities"] for line in lines] == [["img"], ["img"]]


def test_chosen_modalities_alone_are_used(here: Path, memorysam: Program) -> None:
    report = memorysam("predict", "data", "--modalities", "depth", "--json", "--workers", 0).answer
    assert report["modalities"] == ["depth"]
    assert {len(line["inputs"]) for line in documents.read_json_lines(Path("masks/predictions.jsonl"))} == {1}


def test_what_is_missing_can_be_fed_as_zeros(here: Path, memorysam: Program) -> None:
    arguments = ("predict", "data", "--modalities", "depth", "--json", "--workers", 0)
    assert memorysam(*arguments, "--out", "dropped").answer["missing"] == "drop"
    report = memorysam(*arguments, "--missing", "zero", "--out", "zeroed").answer
    assert (report["missing"], report["modalities"]) == ("zero", ["depth"])
    model = load("runs/latest/checkpoints/best.safetensors")
    scenes = manifest.read(here / "data", "tiny").scenes
    for found in unlabeled_scenes(
        here / "data", scenes=scenes, modalities=model.card.modalities[1:], size=32, workers=0
    ):
        with torch.inference_mode():
            logits = model.logits([torch.zeros_like(found.frames[0]), *found.frames])
        expected = own_size(logits[0], height=found.height, width=found.width).argmax(0).numpy()
        np.testing.assert_array_equal(images.read(here / "zeroed/masks" / f"{found.scene.id}.png"), expected)


def test_augmented_predictions_score_what_evaluate_says(here: Path, memorysam: Program) -> None:
    """Of two small scenes: each becomes 13 windows, seen twice."""
    write_data(here / "data", [(f"fog/val/a/00000{n}", "val", "fog", None, (40, 56)) for n in (1, 2)])
    view = ("--tta-scales", "1,1.5", "--tile", "--workers", 0, "--json")
    scored = memorysam("evaluate", *view).answer["protocols"]["native"]
    report = memorysam("predict", "data", "--split", "val", "--confidence", *view).answer
    assert report["tta"] == {"scales": [1.0, 1.5], "flip": True} and report["tile"] == {"window": 32, "overlap": 0.25}
    data = manifest.read(here / "data", "tiny")
    matrix = torch.zeros(4, 4, dtype=torch.int64)
    for scene in data.of_split("val"):
        mask, label = images.read(Path("masks/masks") / f"{scene.id}.png"), images.read(data.root / str(scene.label))
        matrix += confusion(torch.from_numpy(mask), torch.from_numpy(label), 4)
        confidence = images.read(Path("masks/confidence") / f"{scene.id}.png")
        assert confidence.min() >= 255 // 4  # the best of four classes
    assert scores(matrix).miou == scored["miou"]


def test_people_are_told_where_the_masks_are(here: Path, memorysam: Program) -> None:
    ended = memorysam("predict", "data", "--workers", 0)
    assert "6 of 6 scenes" in ended.out and "masks/masks" in ended.out and "masks/predictions.jsonl" in ended.out


def test_predicting_again_gives_the_same_bytes_and_mixes_nothing(here: Path, memorysam: Program) -> None:
    memorysam("predict", "data", "--workers", 0)
    first = {path: path.read_bytes() for path in Path("masks").rglob("*.png")}
    assert memorysam("predict", "data", "--workers", 2).code == 0
    assert {path: path.read_bytes() for path in Path("masks").rglob("*.png")} == first
    memorysam("predict", "photos", "--map", "img=rgb", "--workers", 0)
    assert len(masks(Path("masks"))) == 2


def test_the_same_command_is_answered_at_once_goes_on_or_begins_anew(here: Path, memorysam: Program) -> None:
    arguments = ("predict", "data", "--workers", 0, "--json")
    first = memorysam(*arguments).answer
    before = {path: path.read_bytes() for path in Path("masks").rglob("*") if path.is_file() and path.name != ".lock"}
    assert all(law["holds"] for law in first["laws"].values()) and len(first["laws"]) == 3
    again = memorysam(*arguments)
    assert again.answer == first and "already complete" in again.err
    Path("masks/masks/fog/val/a/000001.png").unlink()
    more = memorysam(*arguments, "--resume")
    assert more.answer == first and "continues: 2 of 6 scenes done" in more.err
    assert memorysam(*arguments, "--overwrite").answer == first
    assert before == {path: path.read_bytes() for path in before}


def test_resume_replaces_nothing_and_excludes_overwrite(here: Path, memorysam: Program) -> None:
    memorysam("predict", "data", "--workers", 0)
    before = Path("masks/predictions.jsonl").read_bytes()
    other = memorysam("predict", "data", "--workers", 0, "--color", "--resume")
    assert other.code == 2 and "finished prediction of another job" in other.err
    both = memorysam("predict", "data", "--resume", "--overwrite")
    assert both.code == 2 and "exclude each other" in both.err and both.err.count("\n") == 1
    assert Path("masks/predictions.jsonl").read_bytes() == before


def test_an_unfinished_prediction_is_not_replaced_by_mistake(here: Path, memorysam: Program) -> None:
    bad = Path("data/tiny/img/fog/val/b/000001.png")
    bad.write_bytes(bad.read_bytes()[:100])
    arguments = ("predict", "data", "--workers", 0, "--batch", 1)
    assert memorysam(*arguments).code == 3
    other = memorysam(*arguments, "--color")
    assert other.code == 2 and "5 scenes of another prediction (other pictures)" in other.err
    ended = memorysam(*arguments, "--on-error", "skip")
    assert ended.code == 4 and "continues: 5 of 6 scenes done" in ended.err


def test_a_foreign_folder_is_refused_untouched_unless_it_may_be_used(here: Path, memorysam: Program) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("years of work")
    ended = memorysam("predict", "data", "--out", "thesis")
    assert ended.code == 2 and "--overwrite" in ended.err
    assert [path.name for path in Path("thesis").iterdir()] == ["chapter.txt"]
    assert memorysam("predict", "data", "--out", "thesis", "--overwrite", "--workers", 0).code == 0
    assert Path("thesis/chapter.txt").read_text() == "years of work"


def test_colliding_names_are_refused_before_the_weights_are_loaded(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memorysam_cli.model.load", lambda *_, **__: pytest.fail("loaded"))
    data = manifest.read(here / "data", "tiny")
    # No manifest of ours holds such ids: a hand-made one might.
    twins = tuple(
        manifest.Scene(name, "val", None, None, data.scenes[0].files, None) for name in ("fog/a", "fog/A", "rain/a")
    )
    monkeypatch.setattr(manifest, "read", lambda *_: manifest.Manifest(data.root, data.info, twins))
    ended = memorysam("predict", "data")
    assert ended.code == 3 and "'fog/a' and 'fog/A'" in ended.err
    assert not Path("masks").exists()


@pytest.mark.parametrize("suffix", [".png", ".gif", ".heic"])
def test_a_bad_scene_ends_with_3_or_is_left_out_with_4(here: Path, memorysam: Program, suffix: str) -> None:
    bad = Path("photos/cellar/a/depth.png").rename(f"photos/cellar/a/depth{suffix}")
    bad.write_bytes(bad.read_bytes()[:100])
    arguments = ("predict", "photos", "--map", "img=rgb", "--workers", 0, "--json")
    ended = memorysam(*arguments)
    assert (ended.code, ended.answer["error"]["code"]) == (3, 3) and f"cellar/a/depth{suffix}" in ended.err
    assert "lack" not in ended.err
    assert ended.err.endswith("; fix the file, or continue without such scenes: --on-error skip\n")
    assert not Path("masks/_SUCCESS.json").exists()
    ended = memorysam(*arguments, "--on-error", "skip")
    assert ended.code == 4 and "1 of 2 scenes were left out" in ended.err
    (line,) = [each for each in documents.read_json_lines(Path("masks/errors.jsonl")) if each["code"] == 4]
    assert line["message"] in ended.err
    assert [each["id"] for each in ended.answer["failures"]] == ["cellar/a"]
    assert list(masks(Path("masks"))) == ["kitchen/a"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("data", "--modalities", "dept"), 2, "did you mean 'depth'"),
        (("photos", "--map", "rgb=img"), 2, "did you mean --map img=rgb?"),
        (("photos", "--map", "img"), 2, "must be MODALITY=NAME"),
        (("photos", "--split", "val"), 2, "--split val"),
        (("data", "--split", "tset"), 3, "no scene in split 'tset'"),
        (("nowhere",), 3, "nowhere"),
        (("photos",), 3, "--map img="),
        (("data", "--weights", "none.safetensors"), 5, "none.safetensors"),
        (("data", "--device", "cuda:99"), 6, "cuda:99"),
        (("data", "--limit", 0), 2, "--limit"),
        (("data", "--threshold", "raod=0.5"), 2, "no class 'raod'; did you mean 'road'?"),
        (("data", "--threshold", "road"), 2, "must be CLASS=PROBABILITY"),
        (("data", "--threshold", "road=nan"), 2, "must be CLASS=PROBABILITY"),
        (("data", "--threshold", "road=7"), 2, "must be a probability from 0 to 1"),
        (("data", "--threshold", "road=.7", "--threshold", "road=.8"), 2, "'road' has 0.7 already"),
        (("data", "--threshold", "road=.7", "--unsure", "4"), 2, "must be 255, or a class by name or number (0 to 3)"),
        (("data", "--threshold", "road=.7", "--unsure", "raod"), 2, "did you mean 'road'?"),
        (("data", "--unsure", "255"), 2, "is for pixels below a threshold"),
        (("data", "--probabilities", "float64"), 2, "--probabilities"),
        (("data", "--shard", "2/2"), 2, "the last of 2 is 1/2"),
        (("data", "--precision", "tf32", "--device", "cpu"), 2, "tf32 needs an NVIDIA GPU"),
        (("data", "--precision", "fp16", "--device", "cpu"), 2, "fp16 needs a GPU"),
        (("data", "--out", "data/memorysam/tiny/dataset.json"), 2, "is a file"),
    ],
    ids=str,
)
def test_what_cannot_be_done_ends_with_its_code_and_one_line(
    here: Path, memorysam: Program, arguments: tuple[object, ...], code: int, words: str
) -> None:
    ended = memorysam("predict", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert words in ended.err.splitlines()[-1] and ended.err.count("error [") == 1
    assert not Path("masks").exists()


def test_without_weights_the_code_is_5_and_says_how_to_get_some(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs/latest").unlink()
    ended = memorysam("predict", "data")
    assert ended.code == 5 and "memorysam train" in ended.err


def test_an_output_that_cannot_be_written_ends_with_6_before_anything_is_computed(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").touch()
    monkeypatch.setattr("memorysam_cli.model.load", lambda *_, **__: pytest.fail("loaded"))
    ended = memorysam("predict", "data", "--out", "file/masks")
    assert ended.code == 6 and "file/masks" in ended.err


def test_a_name_with_blanks_newlines_and_shell_signs_stays_one_line_in_the_ledger(
    here: Path, memorysam: Program
) -> None:
    name = "a b\n$(x) ä"
    Path("photos/kitchen/a").rename(f"photos/kitchen/{name}")
    ended = memorysam("predict", "photos", "--map", "img=rgb", "--workers", 0, "--json")
    assert ended.code == 0
    assert f"kitchen/{name}" in masks(Path("masks"))
    lines = Path("masks/predictions.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == ["cellar/a", f"kitchen/{name}"]


def test_shards_say_what_is_missing_and_the_last_one_answers_for_all(here: Path, memorysam: Program) -> None:
    arguments = ("predict", "data", "--workers", 0, "--batch", 2, "--out", "out")
    whole = memorysam(*arguments, "--json").answer
    ledger = Path("out/predictions.jsonl").read_bytes()
    shutil.rmtree("out")
    told = memorysam(*arguments, "--shard", "1/2")
    assert told.code == 0 and "2 of 2 scenes" in told.out and "missing     1 of 2 parts" in told.out
    assert memorysam(*arguments, "--shard", "0/3").code == 2
    again = memorysam(*arguments, "--shard", "1/2", "--json").answer
    assert set(again) == KEYS | {"shard", "parts", "parts_missing"}
    assert (again["shard"], again["parts_missing"], again["success"]) == ({"index": 1, "count": 2}, 1, None)
    assert memorysam(*arguments, "--shard", "0/2", "--json").answer == whole
    assert Path("out/predictions.jsonl").read_bytes() == ledger and not Path("out/.parts").exists()


def test_a_shard_that_leaves_scenes_out_ends_with_4(here: Path, memorysam: Program) -> None:
    bad = here / "data/tiny/img/rain/val/a/000001.png"
    bad.write_bytes(bad.read_bytes()[:100])
    arguments = ("predict", "data", "--workers", 0, "--batch", 2, "--on-error", "skip", "--json")
    ended = memorysam(*arguments, "--shard", "1/2")
    assert ended.code == 4 and [each["id"] for each in ended.answer["failures"]] == ["rain/val/a/000001"]
    assert ended.err.rstrip().endswith("1 of 2 scenes were left out; see masks/.parts/1-of-2/predictions.jsonl")
    merged = memorysam(*arguments, "--shard", "0/2")
    assert (merged.code, merged.answer["done"], merged.answer["failed"]) == (4, 5, 1)


def test_ray_is_asked_for_in_one_line_where_it_is_missing(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = memorysam("predict", "data", "--engine", "ray")
    assert ended.code == 2 and "pip install 'memorysam[ray]'" in ended.err.splitlines()[-1]
    assert ended.err.count("error [") == 1
    assert not Path("masks").exists()


def test_ray_divides_the_scenes_itself(here: Path, memorysam: Program) -> None:
    ended = memorysam("predict", "data", "--engine", "ray", "--shard", "0/2")
    assert ended.code == 2 and "leave --shard and torchrun out" in ended.err
    assert not Path("masks").exists()


def test_half_precision_is_another_job_and_is_told(here: Path, memorysam: Program) -> None:
    arguments = ("predict", "data", "--workers", 0, "--device", "cpu", "--json")
    exact = memorysam(*arguments).answer
    half = memorysam(*arguments, "--precision", "bf16").answer
    assert (exact["precision"], half["precision"]) == ("fp32", "bf16") and exact["job"] != half["job"]
    shares = [np.array([each["pixels"] for each in report["classes"]]) / 1e4 for report in (exact, half)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.5)


def test_only_the_first_of_several_processes_speaks(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # nobody answers, and so it ends before anything is computed
    for path in Path("photos").rglob("depth.png"):
        path.unlink()
    said = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said[rank] = memorysam("predict", "photos", "--map", "img=rgb").err
    assert "'depth'" in said["0"] and "'depth'" not in said["1"]
    assert all("start them all with torchrun" in text for text in said.values())
