"""``memorysam prepare folder``, ``hha`` and ``manifest`` as typed, and what can be done with what they make."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.decode import read_sample
from memorysam_cli.storage import documents, images, rasters

from ..data.own_sensors import save, write, write_sensors
from ..storage.tiffs import tiff
from .trained import Program

SENSORS = {
    "rgb": "images/**/*.jpg",
    "depth": "depth/**/*_depth.png",
    "ir": "ir/**/*.tiff",
    "ms": "ms/**/*.npy",
    "events": "events/**/*.npz",
    "aolp": "aolp/sin/**/*.npy+aolp/cos/**/*.npy",
}
LABELS = ["--labels", "masks/**/*.png", "--classes", "classes.txt"]
TINY = ["model.backbone=nano", "data.image_size=32", "data.workers=0", "train.batch=2", "train.max_steps=1"]


def sensors(*names: str) -> list[str]:
    return [word for name in names for word in ("--modality", f"{name}={SENSORS[name]}")]


@pytest.fixture
def memorysam(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMORYSAM_DATA", raising=False)
    return Program(capsys)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_sensors(tmp_path / "own")


def test_six_sensors_in_five_formats_are_prepared_trained_evaluated_and_predicted_by_the_root_alone(
    memorysam: Program, own: Path
) -> None:
    ended = memorysam("prepare", "folder", own, *sensors(*SENSORS), *LABELS, "--channels", "ms=5,3,1", "--json")
    assert ended.code == 0, ended.err
    assert (ended.answer["dataset"], ended.answer["scenes"]) == ("own", 10)
    assert ended.answer["modalities"] == list(SENSORS)
    changes = [word for change in TINY for word in ("--set", change)]
    trained = memorysam("train", "--data", own, *changes, "--json")
    assert trained.code == 0, trained.err
    assert "recipe default: data set own, rgb, depth, ir, ms, events, aolp" in trained.err
    stored = documents.read_yaml(Path(trained.answer["run"]) / "recipe.yaml")
    assert stored["data"]["dataset"] == "own" and stored["data"]["modalities"] == list(SENSORS)
    scored = memorysam("evaluate", "--data", own, "--workers", 0, "--json")
    assert scored.code == 0 and scored.answer["dataset"] == "own", scored.err
    predicted = memorysam("predict", own, "--out", "masks", "--workers", 0, "--json")
    assert predicted.code == 0 and predicted.answer["done"] == 10, predicted.err
    assert images.read(Path("masks/masks/cam1/0003.png")).shape == (40, 56)
    # A new recording of the same rig, not prepared: its patterns are on the weights' card.
    shutil.copytree(own, "drive", ignore=shutil.ignore_patterns("memorysam", "masks"))
    again = memorysam("predict", "drive", "--out", "again", "--workers", 0, "--json")
    assert again.code == 0 and again.answer["done"] == 10, again.err
    assert "read as the weights' own data were: rgb=images/**/*.jpg, depth=depth/**/*_depth.png" in again.err
    for mask in Path("masks/masks").rglob("*.png"):
        assert ("again" / mask.relative_to("masks")).read_bytes() == mask.read_bytes()
    Path("drive/images").rename("drive/left camera")
    patterns = ("--modality", "rgb=left camera/**/*.jpg", "--modality", "depth=depth/**/*_depth.png")
    given = memorysam("predict", "drive", "--out", "given", *patterns, "--workers", 0, "--json")
    assert given.code == 0 and given.answer["done"] == 10, given.err
    assert "no scene has 'ir'; predicting with the other modalities" in given.err


LABEL = np.repeat([[0, 1, 1, 2]], 4, axis=0).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)  # 32 × 32
COLORS = np.array([(0, 0, 0, 255), (0, 200, 0, 255), (0, 0, 200, 255)], np.uint8)
CLASSES = {"plain": "left\nmiddle\nright\n", "camvid": "name,r,g,b\nleft,0,0,0\nmiddle,0,200,0\nright,0,0,200\n"}
LABEL_FORMS = {
    "rgba": (COLORS[LABEL], "plain", "is in color; give each class its color in the class list"),
    "rgba with CamVid's list": (COLORS[LABEL], "camvid", None),
    "indexed": (LABEL, "plain", None),
    "void": (np.full_like(LABEL, 255), "plain", "no labeled pixel in 'train'"),
}


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_labels_mean_what_they_say_or_are_refused(form: str, memorysam: Program, tmp_path: Path) -> None:
    stored, classes, refusal = LABEL_FORMS[form]
    for number in range(4):
        images.write_png(tmp_path / f"own/images/{number}.png", COLORS[LABEL][..., :3])
        images.write_png(tmp_path / f"own/masks/{number}.png", stored)
        if form == "indexed":
            picture = Image.fromarray(stored, "L")
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            picture.save(tmp_path / f"own/masks/{number}.png")
    (tmp_path / "own/classes.txt").write_text(CLASSES[classes])
    given = ("--modality", "rgb=images/*.png", "--labels", "masks/*.png", "--classes", "classes.txt")
    prepared = memorysam("prepare", "folder", "own", *given, "--split", "0.5/0.5", "--json")
    if form == "rgba":
        assert prepared.code == 2 and str(refusal) in prepared.err
        return
    assert prepared.code == 0, prepared.err
    if form == "void":
        ended = memorysam(
            "train", "--data", "own", *(word for change in (*TINY, "train.batch=1") for word in ("--set", change))
        )
        assert ended.code == 3 and str(refusal) in ended.err
        return
    # Four scenes of 1,024 pixels, a quarter of class 0, a half of class 1, a quarter of class 2, none ignored.
    assert np.sum(list(prepared.answer["pixels"].values()), axis=0).tolist() == [1024, 2048, 1024, 0]


def test_measured_values_normalize_every_sensor(memorysam: Program, own: Path) -> None:
    ended = memorysam("prepare", "folder", own, *sensors("rgb", "depth"), *LABELS, "--measure", "--scale", "depth=1e-3")
    assert ended.code == 0, ended.err
    info = manifests.read(own, "own").info
    for modality in info.modalities:
        assert (modality.mean, modality.std) == (
            info.statistics[modality.name].mean,
            info.statistics[modality.name].std,
        )
    assert 1.0 < info.statistics["depth"].mean[0] < 2.8 and info.statistics["depth"].low == 1.0


def test_a_missing_file_ends_with_3_or_4(memorysam: Program, own: Path) -> None:
    (own / "depth/cam1/0003_depth.png").unlink()
    command = ["prepare", "folder", own, *sensors("rgb", "depth"), *LABELS]
    ended = memorysam(*command)
    assert ended.code == 3 and not (own / "memorysam/own/dataset.json").exists()
    assert "cam1/0003: has no 'depth' (looked for depth/cam1/0003_depth.png)" in ended.err
    assert memorysam(*command, "--drop-incomplete").code == 4
    assert len(manifests.read(own, "own").scenes) == 9


def test_without_labels_a_data_set_can_be_predicted_and_training_says_why_not(memorysam: Program, own: Path) -> None:
    assert memorysam("prepare", "folder", own, *sensors("rgb"), "--name", "drive").code == 0
    assert manifests.read(own, "drive").info.unlabeled == ("test",)
    ended = memorysam("train", "--data", own)
    assert ended.code == 3 and "prepared without labels and can only be predicted" in ended.err


def test_values_and_lists_are_taken_from_files_below_the_root(memorysam: Program, own: Path) -> None:
    (own / "classes.txt").write_text("0: ground 10 20 30\n1: car 1 2 3\n2: box 200 0 0\n")
    (own / "a.txt").write_text("cam0/0000\ncam0/0002\n")
    (own / "b.txt").write_text("cam1/0001\n")
    ended = memorysam(
        "prepare", "folder", own, *sensors("rgb"), *LABELS, "--split", "train=a.txt", "--split", "val=b.txt"
    )  # fmt: skip
    assert ended.code == 0, ended.err
    info = manifests.read(own, "own").info
    assert info.counts == {"train": 2, "val": 1} and info.palette[2] == (200, 0, 0)
    assert info.label.mapping == ((0, 0), (1, 1), (2, 2))


REFUSALS = {
    "no kind": (
        ["--modality", "x=images/**/*.jpg"],
        2,
        "--modality x: its name means no known kind; give --kind x=KIND",
    ),
    "an unknown kind": ([*sensors("rgb"), "--kind", "rgb=rbg"], 2, "'rbg' is not a kind; did you mean 'rgb'?"),
    "an option for no sensor": ([*sensors("rgb"), "--scale", "dept=1"], 2, "'dept' is not a --modality"),
    "no pattern": (["--modality", "rgb"], 2, "--modality rgb: must be NAME=VALUE"),
    "a sensor twice": ([*sensors("rgb"), *sensors("rgb")], 2, "'rgb' is given twice"),
    "a name that is reserved": (["--modality", "all=images/**/*.jpg"], 2, "'all' means all modalities"),
    "three patterns": (["--modality", "aolp=a/*.npy+b/*.npy+c/*.npy"], 2, "3 patterns; one, or sine+cosine"),
    "a pattern that leads out": (["--modality", "rgb=../*.png"], 2, "must be a path below ROOT"),
    "an empty list": (
        [*sensors("rgb"), *LABELS, "--split", "train=classes.txt"],
        3,
        "classes.txt:1: 'ground' is not a scene",
    ),
    "nothing that matches": (["--modality", "rgb=images/*.png"], 3, "no file matches 'images/*.png' (saw in images/: "),
    "classes without labels": ([*sensors("rgb"), "--classes", "classes.txt"], 2, "give both, or neither"),
    "no class list": ([*sensors("rgb"), *LABELS[:3], "no.txt"], 2, "--classes no.txt: does not exist"),
    "odd shares": (
        [*sensors("rgb"), *LABELS, "--split", "0.5/0.1"],
        2,
        "add up to 0.6, not to 1 (or 100); give the shares",
    ),
    "shares twice": ([*sensors("rgb"), *LABELS, "--split", "0.5/0.5", "--split", "0.9/0.1"], 2, "given once"),
    "two channels": ([*sensors("rgb"), "--channels", "rgb=0,1"], 2, "give one or three channels"),
    "no scale": ([*sensors("rgb"), "--scale", "rgb=0"], 2, "must be a number other than 0"),
    "a published name": ([*sensors("rgb"), "--name", "deliver"], 2, "is the name of another data set"),
    "a name with a slash": ([*sensors("rgb"), "--name", "a/b"], 2, "--name a/b: must be letters"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_one_line_with_their_code_and_write_nothing(refusal: str, memorysam: Program, own: Path) -> None:
    arguments, code, said = REFUSALS[refusal]
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    ended = memorysam("prepare", "folder", own, *arguments)
    assert ended.code == code, ended.err
    assert ended.out == "" and said in ended.err.splitlines()[-1]
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


def test_a_manifest_edited_by_hand_is_refused_until_it_is_accepted(memorysam: Program, own: Path) -> None:
    assert memorysam("prepare", "folder", own, *sensors("rgb", "depth"), *LABELS).code == 0
    place = own / "memorysam/own"
    lines = (place / "scenes.jsonl").read_text().splitlines()
    (place / "scenes.jsonl").write_text("\n".join(lines[1:]) + "\n")
    info = json.loads((place / "dataset.json").read_text())
    info["modalities"][1]["scale"] = 0.001
    (place / "dataset.json").write_text(json.dumps(info))
    ended = memorysam("train", "--data", own)
    assert ended.code == 3 and f"memorysam prepare manifest {own} own" in ended.err
    accepted = memorysam("prepare", "manifest", own, "own", "--json")
    assert accepted.code == 0 and accepted.answer["scenes"] == 9, accepted.err
    found = manifests.read(own, "own")
    assert len(found.scenes) == 9 and found.info.modality("depth").scale == 0.001


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda line: line | {"files": {"rgb": ["../x.png"]}}, "scenes.jsonl:1"),
        (lambda line: line | {"files": {"rgb": ["images/no.jpg"]}}, "has no 'rgb' (looked for images/no.jpg)"),
        (lambda line: line | {"split": ""}, "split"),
        (lambda line: line | {"splitt": "val"}, "scenes.jsonl:1: splitt"),
    ],
    ids=["a path that leads out", "a file that is not there", "no split", "an unknown key"],
)
def test_a_manifest_that_is_wrong_is_not_accepted(edit: object, said: str, memorysam: Program, own: Path) -> None:
    assert memorysam("prepare", "folder", own, *sensors("rgb"), *LABELS).code == 0
    path = own / "memorysam/own/scenes.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(edit(json.loads(first))), *others]) + "\n")  # type: ignore[operator]
    before = path.read_bytes()
    ended = memorysam("prepare", "manifest", own, "own")
    assert ended.code == 3 and said in ended.err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "said"), [("../../out", "name: must be a word"), ("other", "name: is 'other', but its folder is 'own'")]
)
def test_a_name_edited_by_hand_leads_nowhere_else(memorysam: Program, own: Path, name: str, said: str) -> None:
    assert memorysam("prepare", "folder", own, *sensors("rgb"), *LABELS).code == 0
    path = own / "memorysam/own/dataset.json"
    path.write_text(path.read_text().replace('"name": "own"', f'"name": "{name}"', 1))
    ended = memorysam("prepare", "manifest", own, "own")
    assert ended.code == 3 and said in ended.err
    assert not (own.parent / "out").exists()


@pytest.mark.parametrize(
    ("root", "said"), [("nothing", "does not exist"), ("own/classes.txt", "ROOT must be a folder")]
)
def test_the_root_must_be_a_folder(memorysam: Program, own: Path, root: str, said: str) -> None:
    ended = memorysam("prepare", "folder", root, *sensors("rgb"))
    assert ended.code == 3 and said in ended.err


def test_a_data_set_that_is_not_prepared_cannot_be_accepted(memorysam: Program, own: Path) -> None:
    ended = memorysam("prepare", "manifest", own, "own")
    assert ended.code == 3 and "data set 'own' is not prepared" in ended.err


HHA = ["--depth", "depth/**/*_depth.png", "--camera", "50,50,28,20"]


def test_hha_is_made_once_and_can_be_prepared(memorysam: Program, own: Path) -> None:
    first = memorysam("prepare", "hha", own, *HHA, "--json")
    assert first.code == 0, first.err
    assert (first.answer["made"], first.answer["kept"], first.answer["out"]) == (10, 0, str(own / "hha"))
    assert images.read(own / "hha/cam0/0000_depth.png").shape == (40, 56, 3)
    again = memorysam("prepare", "hha", own, *HHA)
    assert again.code == 0 and "0 made, 10 kept" in again.out
    ended = memorysam(
        "prepare", "folder", own, *sensors("rgb"), *LABELS, "--modality", "depth=hha/**/*_depth.png",
        "--kind", "depth=hha",
    )  # fmt: skip
    assert ended.code == 0 and manifests.read(own, "own").info.modality("depth").kind == "hha"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--depth", "d/*.png", "--camera", "50,50,28"], 2, "--camera 50,50,28: must be fx,fy,cx,cy"),
        (["--depth", "d/*.png", "--camera", "0,50,28,20"], 2, "fx and fy must be above 0"),
        (["--depth", "d/*.png", "--camera", "50,50,28,20"], 3, "no file matches 'd/*.png'"),
        ([*HHA, "--out", "images"], 2, "--out"),
        ([*HHA, "--gravity", "0,0,0"], 2, "--gravity 0,0,0: has no direction"),
        ([*HHA, "--nearest", "-1"], 2, "--nearest -1.0: must be a number above 0"),
        (["--depth", "depth/**/*_depth.png", "--camera", "500,500,320,240"], 2, "lies outside"),
        (["--depth", "color/*.png", "--camera", "50,50,28,20"], 3, "has 3 channels that differ; depth has one"),
    ],
)
def test_hha_refuses(memorysam: Program, own: Path, arguments: list[str], code: int, said: str) -> None:
    images.write_png(own / "color/1.png", np.tile(np.uint8([1, 2, 3]), (40, 56, 1)))
    ended = memorysam("prepare", "hha", own, *arguments)
    assert ended.code == code and said in ended.err, ended.err
    assert not list((own / "hha").rglob("*.png"))


def test_hha_of_a_known_scene(memorysam: Program, tmp_path: Path) -> None:
    images.write_png(tmp_path / "d/1.png", np.full((40, 56), 2000, np.uint16))
    options = ["--height", "1", "--gravity", "0,1,0"]
    assert memorysam("prepare", "hha", ".", "--depth", "d/*.png", "--camera", "50,50,28,20", *options).code == 0
    assert images.read(tmp_path / "hha/1.png")[20, 28].tolist() == [155, 100, 128]


def test_what_was_assumed_is_in_the_answer_too(memorysam: Program, own: Path) -> None:
    ended = memorysam("prepare", "folder", own, *sensors("rgb", "ir"), *LABELS, "--json")
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.answer["warnings"] if line.startswith("'ir' is treated as kind 'thermal'")]
    assert ended.err.count(line) == 1


@pytest.mark.parametrize(("option", "word"), [("--label-shift", "1000000000000"), ("--scale", "rgb=1e-40")])
def test_a_number_that_cannot_be_meant_ends_with_2(memorysam: Program, own: Path, option: str, word: str) -> None:
    ended = memorysam("prepare", "folder", own, *sensors("rgb"), *LABELS, option, word)
    assert ended.code == 2, ended.err


SIDE = 16


def put(folder: Path, arrays: dict[str, np.ndarray], *, suffix: str) -> str:
    """Files of one sensor, hand-made where the suffix is .tif; gives their pattern."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, array in arrays.items():
        path = folder / f"{name}{suffix}"
        if suffix == ".npy":
            np.save(path, array)
        elif suffix == ".tif":
            path.write_bytes(tiff(array))
        else:
            images.write_png(path, array)
    return f"{folder.name}/*{suffix}"


def bands(count: int, dtype: type[np.generic] = np.uint8) -> dict[str, np.ndarray]:
    values = np.arange(SIDE * SIDE * count).reshape(SIDE, SIDE, count)
    return {str(number): (values + number).astype(dtype) for number in range(3)}


# What is stored, what is made of it as the message says, and its suffix; and what the message must have said of it.
ADVICE = {
    "2 bands": (bands(2), ".tif", lambda array: array, ".npy", "save its array (H, W, 2) as .npy"),
    "4 bands": (bands(4), ".tif", lambda array: array, ".npy", "save its array (H, W, 4) as .npy"),
    "12 bands": (bands(12), ".tif", lambda array: array, ".npy", "save its array (H, W, 12) as .npy"),
    "channels first": (
        {name: np.moveaxis(array, -1, 0) for name, array in bands(12).items()}, ".npy",
        lambda array: np.moveaxis(array, 0, -1), ".npy", "if it is (C, H, W), save np.moveaxis(array, 0, -1)",
    ),
    "int32": (
        bands(1, np.int32), ".tif", lambda array: array.astype(np.float32), ".tif",
        "save it as float32, in TIFF or .npy",
    ),
    "float64": (
        bands(1, np.float64), ".tif", lambda array: array.astype(np.float32), ".tif",
        "save it as 8-bit or 16-bit PNG or a float32 TIFF",
    ),
    "float64 as PNG": (
        bands(1, np.float64), ".tif", lambda array: array[..., 0].astype(np.uint16), ".png",
        "save it as 8-bit or 16-bit PNG or a float32 TIFF",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ADVICE)
def test_what_a_refusal_tells_to_do_is_accepted(
    what: str, memorysam: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasters, "is_installed", lambda: False)  # GDAL would read most of them as they are
    arrays, suffix, change, new_suffix, said = ADVICE[what]
    root = tmp_path / "data"
    root.mkdir()
    command = ["prepare", "folder", root, "--kind", "ms=rgb"]
    refused = memorysam(*command, "--modality", f"ms={put(root / 'ms', arrays, suffix=suffix)}")
    assert refused.code == 3 and said in refused.err, refused.err
    assert "damaged" not in refused.err
    changed = {name: change(array) for name, array in arrays.items()}
    command += ["--modality", f"ms={put(root / 'ms', changed, suffix=new_suffix)}"]
    channels = re.search("--channels (?:NAME|ms)=([0-9,]+)", refused.err)
    ended = memorysam(*command, *(["--channels", f"ms={channels[1]}"] if channels else []))
    if ended.code == 3:  # of 12 channels in the right order, three must still be named
        channels = re.search("--channels ms=([0-9,]+)", ended.err)
        assert channels and "H, W" not in ended.err, ended.err
        ended = memorysam(*command, "--channels", f"ms={channels[1]}")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.int64])
def test_labels_of_any_whole_numbers_are_read(dtype: type[np.generic], memorysam: Program, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "classes.txt").write_text("a\nb\n")
    labels = {name: (array[..., 0] % 2).astype(dtype) for name, array in bands(1).items()}
    pattern = put(root / "masks", labels, suffix=".npy" if dtype == np.int64 else ".tif")
    photos = put(root / "rgb", bands(3), suffix=".png")
    ended = memorysam(
        "prepare", "folder", root, "--modality", f"rgb={photos}", "--labels", pattern, "--classes", "classes.txt",
        "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert sum(sum(counts[:2]) for counts in ended.answer["pixels"].values()) == 3 * SIDE * SIDE


def write_trip(root: Path, *, scenes: int = 8, values: tuple[int, ...] = (0, 1, 2)) -> None:
    """The rig of the README's kind of user: names, formats and sizes differ; labels are indexed."""
    for number in range(1, scenes + 1):
        label = np.repeat(np.array(values, np.uint8), 24 // len(values))[None].repeat(16, axis=0)  # (16, 24)
        images.write_png(root / f"rgb/rgb_{number:04}.png", np.repeat(label[..., None] * 40, 3, axis=2), fsync=False)
        images.write_png(root / f"depth/depth_{number:04}.png", label[::2, ::2].astype(np.uint16) + 900, fsync=False)
        (root / "Wärmebild Kamera").mkdir(exist_ok=True)
        write(root / f"Wärmebild Kamera/frame{number}.tif", label[::4, ::4].astype(np.uint16) + 29815)
        picture = Image.fromarray(label, "L")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *([7] * 759)])
        (root / "labels").mkdir(exist_ok=True)
        picture.save(root / f"labels/{number:04}_label.png")


def test_a_rig_is_prepared_without_a_pattern_after_it_was_shown(memorysam: Program, tmp_path: Path) -> None:
    write_trip(tmp_path / "mein rig")
    shown = memorysam("prepare", "folder", "mein rig", "--split", "0.5/0.5")
    assert shown.code == 2 and "nothing is prepared yet; add --yes" in shown.err
    assert "the data set is named 'mein-rig'" in shown.err and "renamed to 'Waermebild-Kamera'" in shown.err
    assert "files pair by their numbers" in shown.err
    assert not (tmp_path / "mein rig/memorysam/mein-rig/dataset.json").exists()
    (sheet,) = re.findall(r"pictures    (.*)", shown.out)
    assert images.read(tmp_path / sheet).ndim == 3
    (line,) = re.findall(r"to type     memorysam (.*)", shown.out)
    assert shlex.split(line) == [
        "prepare", "folder", "mein rig", "--modality", "rgb=rgb/*.png", "--modality", "depth=depth/*.png",
        "--modality", "Waermebild-Kamera=Wärmebild Kamera/*.tif", "--labels", "labels/*.png", "--split", "0.5/0.5",
    ]  # fmt: skip
    agreed = memorysam("prepare", "folder", "mein rig", "--split", "0.5/0.5", "--yes", "--json")
    assert agreed.code == 0, agreed.err
    made = (tmp_path / "mein rig/memorysam/mein-rig/dataset.json").read_bytes()
    typed = memorysam(*shlex.split(line), "--json")
    assert typed.code == 0 and (tmp_path / "mein rig/memorysam/mein-rig/dataset.json").read_bytes() == made
    info = manifests.read(tmp_path / "mein rig", "mein-rig").info
    assert [(each.name, each.kind) for each in info.modalities] == [
        ("rgb", "rgb"), ("depth", "depth"), ("Waermebild-Kamera", "thermal"),
    ]  # fmt: skip
    # No class list: the values are the classes, in the palette's colors.
    assert (info.classes, info.palette) == (("class_0", "class_1", "class_2"), ((0, 0, 0), (128, 0, 0), (0, 128, 0)))
    sizes = {name: form[0]["scenes"] for name, form in agreed.answer["stored"].items()}
    assert sizes == {"rgb": 8, "depth": 8, "Waermebild-Kamera": 8}
    assert any("resampled (nearest), in 8 of 8" in line for line in agreed.answer["warnings"])


def test_what_memorysam_wrote_into_the_data_is_no_data(memorysam: Program, tmp_path: Path) -> None:
    """As after a whole trip within the folder of the recording."""
    write_trip(tmp_path / "rig", scenes=4)
    before = memorysam("prepare", "folder", "rig", "--json").answer["proposal"]
    mask = np.zeros((16, 24), np.uint8)
    for folder, files in {
        "runs/a": ("recipe.yaml", "environment.json", "samples/first.png", "evaluate/val/gallery/000-label.png"),
        "masks": ("predictions.jsonl", "masks/0001.png", "overlay/0001.png"),
        "check-rig": ("report.json", "sheet.png", "labels.png"),
        "rgb/memorysam/rgb": ("proposal.png",),
    }.items():
        for name in files:
            path = tmp_path / "rig" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            images.write_png(path, mask, fsync=False) if path.suffix == ".png" else path.touch()
    assert memorysam("prepare", "folder", "rig", "--json").answer["proposal"] == before


def test_a_proposal_as_json_has_the_line_to_type(memorysam: Program, tmp_path: Path) -> None:
    write_trip(tmp_path / "rig", scenes=4)
    ended = memorysam("prepare", "folder", "rig", "--json")
    assert ended.code == 2 and ended.answer["error"]["code"] == 2
    proposal = ended.answer["proposal"]
    assert ended.answer["manifest"] is None and proposal["command"].startswith(
        "memorysam prepare folder rig --modality"
    )
    assert proposal["files"] == {"rgb": 4, "depth": 4, "Waermebild-Kamera": 4, "labels": 4}


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("no\n", 2), ("", 2)])
def test_on_a_terminal_a_typed_yes_writes(
    answer: str, code: int, memorysam: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trip(tmp_path / "rig", scenes=4)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    ended = memorysam("prepare", "folder", "rig")
    assert ended.code == code, ended.err
    assert "Write this? Type yes or no: " in ended.err
    assert (tmp_path / "rig/memorysam/rig/dataset.json").exists() == (code == 0)


@pytest.mark.parametrize(
    ("values", "ignore", "classes", "mapping"),
    [
        ((0, 1, 2), [], ["class_0", "class_1", "class_2"], ()),
        ((0, 1, 255), [], ["class_0", "class_1"], ()),  # 255 counts nowhere
        ((0, 255), [], ["class_0", "class_255"], ((0, 0), (255, 1))),  # a mask: one class alone would mean nothing
        ((1, 2, 4), [], ["class_1", "class_2", "class_4"], ((1, 0), (2, 1), (4, 2))),
        ((0, 1, 2), ["--ignore", 0], ["class_1", "class_2"], ((1, 0), (2, 1))),
    ],
)
def test_without_a_class_list_the_labels_values_are_the_classes(
    values: tuple[int, ...],
    ignore: list[object],
    classes: list[str],
    mapping: object,
    memorysam: Program,
    tmp_path: Path,
) -> None:
    write_trip(tmp_path / "rig", scenes=4, values=values)
    ended = memorysam(
        "prepare", "folder", "rig", "--modality", "rgb=rgb/*.png", "--labels", "labels/*.png", *ignore, "--json"
    )
    assert ended.code == 0, ended.err
    info = manifests.read(tmp_path / "rig", "rig").info
    assert (list(info.classes), info.label.mapping) == (classes, mapping)
    # Every value has the same share of the pixels of 4 labels of 16 × 24.
    share = 4 * 16 * 24 // len(values)
    pixels = np.sum(list(ended.answer["pixels"].values()), axis=0).tolist()
    assert pixels == [share] * len(classes) + [share * (len(values) - len(classes))]


@pytest.mark.parametrize("count", [4, 5])
def test_a_small_validation_split_is_warned_of(count: int, memorysam: Program, tmp_path: Path) -> None:
    write_trip(tmp_path / "rig")
    for split, numbers in (("train", range(1, 4)), ("val", range(4, 4 + count))):
        (tmp_path / f"rig/{split}.txt").write_text("".join(f"rgb_{number:04}\n" for number in numbers))
    lists = ("--split", "train=train.txt", "--split", "val=val.txt")
    ended = memorysam(
        "prepare", "folder", "rig", "--modality", "rgb=rgb/*.png", "--labels", "labels/*.png", *lists, "--json"
    )
    assert ended.code == 0 and ended.answer["splits"] == {"train": 3, "val": count}
    assert any("split val has 4 scenes: its mIoU" in line for line in ended.answer["warnings"]) == (count < 5)


RASTERS = [
    "--modality", "rgb=s2/*.tif", "--bands", "rgb=B4,B3,B2", "--modality", "nir=s2/*.tif", "--bands", "nir=5",
    "--labels", "masks/*.tif", "--classes", "classes.txt",
]  # fmt: skip


@pytest.fixture
def rasters_of_five_bands(tmp_path: Path) -> Path:
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    from ..storage.geotiffs import noise, write_geotiff

    root = tmp_path / "data"
    for number in range(4):
        stored = (noise(5, 32, 32, dtype=np.uint16) + 100 * np.arange(1, 6)[:, None, None] + number).astype(np.uint16)
        write_geotiff(root / f"s2/{number}.tif", stored, names=("B1", "B2", "B3", "B4", "B8"), compress="zstd")
        write_geotiff(root / f"masks/{number}.tif", noise(1, 32, 32, high=2), compress="zstd")
    np.save(root / "s2/0.npy", np.zeros((32, 32, 5), np.uint16))
    (root / "classes.txt").write_text("land\nwater\n")
    return root


def test_two_sensors_of_one_raster_are_prepared_trained_and_predicted(
    memorysam: Program, rasters_of_five_bands: Path
) -> None:
    root = rasters_of_five_bands
    ended = memorysam("prepare", "folder", root, *RASTERS, "--stored", "--json")
    assert ended.code == 0, ended.err
    assert "'rgb' takes bands 4, 3, 2 (B4, B3, B2) of s2/" in ended.err
    assert "'nir' takes band 5 (B8) of s2/" in ended.err
    for again in (memorysam("check", root), memorysam("prepare", "manifest", root, "data", "--json")):
        assert again.code == 0 and "'rgb' takes bands 4, 3, 2 (B4, B3, B2) of s2/" in again.err
    low, high = (ended.answer["stored"]["nir"][0][end] for end in ("low", "high"))
    assert (low, high) == (500, 502 + 199 + 1), "noise of 0 to 199, 500 and the scene's number; of band 5 alone"
    info = manifests.read(root, "data").info
    assert [modality.bands for modality in info.modalities] == [("B4", "B3", "B2"), (5, 5, 5)]
    trained = memorysam("train", "--data", root, *[word for change in TINY for word in ("--set", change)], "--json")
    assert trained.code == 0, trained.err
    predicted = memorysam("predict", root, "--weights", trained.answer["best"], "--out", "masks-out", "--json")
    assert predicted.code == 0 and predicted.answer["done"] == 4, predicted.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--channels", "s2=3,2,1"], "is a raster, whose bands are counted from 1; the same are --bands s2=4,3,2"),
        (["--bands", "s2=0,1,2"], "bands are counted from 1, as GDAL does; there is no band 0"),
        (["--bands", "s2=4,3"], "give one or three bands, such as 4,3,2 or B4,B3,B2"),
        (["--bands", "s2=4,3,2", "--channels", "s2=3,2,1"], "--channels s2=… is given as well"),
        (
            ["--modality", "x=s2/*.npy", "--bands", "x=3,2,1"],
            "s2/0.npy is not a raster (TIFF); --channels x=… takes its",
        ),
    ],
)
def test_no_one_is_off_by_one(options: list[str], said: str, memorysam: Program, rasters_of_five_bands: Path) -> None:
    kinds = ["--kind", "s2=rgb", *(["--kind", "x=rgb"] if "--modality" in options else [])]
    ended = memorysam("prepare", "folder", rasters_of_five_bands, "--modality", "s2=s2/*.tif", *kinds, *options)
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1, ended.err


def write_drive(root: Path, *, scenes: int = 6) -> None:
    """Ten frames a second in seconds of Unix time; a second camera, 5 ms late and in ns, misses the last frame."""
    for number in range(scenes):
        ms = 1_700_000_000_000 + 100 * number
        images.write_png(
            root / f"rgb/{ms // 1000}.{ms % 1000:03}.png", np.full((8, 8, 3), number, np.uint8), fsync=False
        )
        if number < scenes - 1:
            images.write_png(root / f"ir/{ms + 5}000000.png", np.full((8, 8), number, np.uint8), fsync=False)


DRIVE = ("--modality", "rgb=rgb/*.png", "--modality", "ir=ir/*.png")


def test_frames_pair_by_time_and_the_offsets_are_shown(memorysam: Program, tmp_path: Path) -> None:
    write_drive(tmp_path / "drive")
    unpaired = memorysam("prepare", "folder", "drive", *DRIVE)
    assert unpaired.code == 3 and "the names contain times: add --pair nearest --tolerance 20ms" in unpaired.err
    ended = memorysam("prepare", "folder", "drive", *DRIVE, "--pair", "nearest", "--tolerance", "20ms", "--json")
    assert ended.code == 0 and ended.answer["scenes"] == 5, ended.err
    assert ended.answer["offsets"] == {"ir": {"pairs": 5, "least_ms": 5.0, "median_ms": 5.0, "most_ms": 5.0}}
    assert "5 pairs within 20 ms; without a partner: 1 of 'rgb', 0 of 'ir'" in ended.err
    layout = manifests.read(tmp_path / "drive", "drive").info.layout
    assert layout is not None and (layout.pair, layout.tolerance_ns) == ("nearest", 20_000_000)
    made = (tmp_path / "drive/memorysam/drive/dataset.json").read_bytes()
    # Without a pattern the same is proposed, and said in the line to type; a pairing that was typed is kept to.
    proposed = memorysam("prepare", "folder", "drive")
    assert proposed.code == 2 and "--pair nearest --tolerance 20ms" in proposed.out, proposed.err
    assert memorysam("prepare", "folder", "drive", "--yes").code == 0
    assert (tmp_path / "drive/memorysam/drive/dataset.json").read_bytes() == made
    assert memorysam("prepare", "folder", "drive", "--pair", "name", "--yes").code == 3
    checked = memorysam("check", "drive")
    assert checked.code == 0 and "drive: 'ir' behind 'rgb'" in checked.out, checked.err
    assert images.read(tmp_path / "check-drive/offsets.png").ndim == 3


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--pair", "nearest"], 2, "--pair nearest: needs --tolerance: give the largest time difference"),
        (
            ["--pair", "nearest", "--tolerance", "20"],
            2,
            "--tolerance 20: give the largest time difference of two frames, with a unit",
        ),
        (["--pair", "nearest", "--tolerance", "0ms"], 2, "must be above 0"),
        (["--tolerance", "20ms"], 2, "--tolerance: is for --pair nearest"),
        (["--times", "t.csv"], 2, "--times: is for --pair nearest"),
        (["--pair", "nearest", "--tolerance", "20ms", "--times", "no.csv"], 2, "--times no.csv: does not exist"),
        (["--pair", "nearest", "--tolerance", "1ms"], 3, "no frame of 'ir' is within 1 ms of one of 'rgb'"),
        (["--resize", "ir=cubic"], 2, "--resize ir=cubic: must be nearest or bilinear"),
        (["--kind", "ir=depth", "--resize", "ir=bilinear"], 2, "a value between two neighbors was never measured"),
    ],
)
def test_what_cannot_pair_or_resize_is_refused(
    words: list[str], code: int, said: str, memorysam: Program, tmp_path: Path
) -> None:
    write_drive(tmp_path / "drive", scenes=2)
    (tmp_path / "drive/t.csv").write_text("file,time_ms\n")
    ended = memorysam("prepare", "folder", "drive", *DRIVE, *words)
    assert ended.code == code and said in ended.err, ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pair", "nearest"], "--pair, --tolerance, --times: are for --modality"),
        (["--modality", "rgb=*.png", "--map", "rgb=x"], "--map names it already"),
        (["--modality", "rgb"], "--modality rgb: must be NAME=VALUE"),
    ],
)
def test_predict_refuses_half_a_layout_before_the_weights_are_read(
    words: list[str], said: str, memorysam: Program, tmp_path: Path
) -> None:
    write_drive(tmp_path / "drive", scenes=1)
    ended = memorysam("predict", "drive", *words)
    assert ended.code == 2 and said in ended.err, ended.err


def test_a_sensor_of_five_channels_is_fed_as_two_frames(memorysam: Program, tmp_path: Path) -> None:
    for number in range(4):  # channel c holds 10 c everywhere
        save(tmp_path / f"rig/voxels/{number}.npy", np.tile(np.arange(5, dtype=np.float32) * 10, (8, 8, 1)))
    words = ("--modality", "voxels=voxels/*.npy", "--channels", "voxels=0-4", "--kind", "voxels=event")
    ended = memorysam("prepare", "folder", "rig", *words, "--scale", "voxels=0.1", "--json")
    assert ended.code == 0 and ended.answer["modalities"] == ["voxels-1", "voxels-2"], ended.err
    assert "'voxels' is fed as the frames voxels-1, voxels-2" in ended.err
    found = manifests.read(tmp_path / "rig", "rig")
    assert [(each.kind, each.channels, each.scale) for each in found.info.modalities] == [
        ("event", (0, 1, 2), 0.1), ("event", (3, 4, 4), 0.1),
    ]  # fmt: skip
    sample = read_sample(tmp_path / "rig", found.scenes[0], modalities=found.info.modalities)
    assert sample.frames["voxels-1"][0, 0].tolist() == [0, 10, 20]
    assert sample.frames["voxels-2"][0, 0].tolist() == [30, 40, 40]


def test_a_frames_name_may_not_be_another_sensors(memorysam: Program, own: Path) -> None:
    taken = ("--modality", "ms-1=images/**/*.jpg", "--channels", "ms=0-5")
    ended = memorysam("prepare", "folder", own, *sensors("ms"), *taken)
    assert ended.code == 2 and "--modality ms-1=…: is what a frame" in ended.err
