"""Values are asked what they mean: gaps, narrow ranges, and scenes of another unit than the training's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.own.sensors import choices
from memorysam_cli.data.statistics import with_ranges
from memorysam_cli.engine.reporting import result_pages
from memorysam_cli.model import read_card
from memorysam_cli.storage import images

from ..data.tiffs import tiff
from .trained import Ended, Program, save_weights

SIDE = 32
LABEL = np.zeros((SIDE, SIDE), np.uint8)
LABEL[:, SIDE // 2 :] = 1
NAMES = ("0", "1", "2", "3", "4", "5")
TRAIN = ("0", "1", "2", "3")


def depth(number: int) -> np.ndarray:
    """Millimetres: 4000 at the left, 800 at the right, up to 29 more."""
    rng = np.random.Generator(np.random.PCG64(number))
    return (np.array([4000, 800])[LABEL] + rng.integers(0, 30, LABEL.shape)).astype(np.uint16)


def write(root: Path, **sensors: object) -> Path:
    """Scenes of rgb, and of sensors: folder → (suffix, what makes a file's bytes or array of a number)."""
    (root / "classes.txt").parent.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("left\nright\n")
    (root / "train.txt").write_text("\n".join(TRAIN))
    (root / "val.txt").write_text("4\n5\n")
    for number, name in enumerate(NAMES):
        images.write_png(root / f"rgb/{name}.png", np.array([[200, 40, 40], [40, 200, 40]], np.uint8)[LABEL])
        images.write_png(root / f"masks/{name}.png", LABEL)
        for sensor, (suffix, make) in sensors.items():  # type: ignore[misc, attr-defined]
            (root / sensor).mkdir(exist_ok=True)
            put(root / f"{sensor}/{name}{suffix}", make(number))
    return root


def put(path: Path, content: bytes | np.ndarray) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".npy":
        np.save(path, content)
    else:
        images.write_png(path, content)


def prepare(memorysam: Program, root: Path, *more: object, **sensors: str) -> Ended:
    words = [word for name, pattern in {"rgb": "rgb/*.png", **sensors}.items() for word in ("-m", f"{name}={pattern}")]
    splits = ("--split", "train=train.txt", "--split", "val=val.txt")
    labels = ("--labels", "masks/*.png", "--classes", "classes.txt", "--name", "own")
    return memorysam("prepare", "folder", root, *words, *labels, *splits, *more)


def gap(values: np.ndarray, value: float) -> np.ndarray:
    """The upper quarter is not a measurement."""
    values[: SIDE // 4] = value
    return values


def terrain(number: int) -> np.ndarray:
    return (depth(number) / 1000 + 411).astype(np.float32)  # 411.8 to 415.03


GAPS = {
    "a tag": ("dem", ".tif", lambda number: tiff(gap(terrain(number), -9999), nodata="-9999"), (), [-9999]),
    "declared": ("dem", ".tif", lambda number: tiff(gap(terrain(number), -1)), ("--nodata", "dem=-1"), [-1]),
    "NaN": ("dem", ".npy", lambda number: gap(terrain(number), np.nan), (), []),
    "declared NaN": ("dem", ".npy", lambda number: gap(terrain(number), np.nan), ("--nodata", "dem=nan"), []),
    "infinity": ("dem", ".npy", lambda number: gap(terrain(number), -np.inf), (), []),
}


@pytest.mark.parametrize("how", GAPS)
def test_gaps_are_counted_and_left_out_of_mean_deviation_and_range(
    how: str, memorysam: Program, tmp_path: Path
) -> None:
    sensor, suffix, make, options, nodata = GAPS[how]
    root = write(tmp_path / "own", **{sensor: (suffix, make)})
    ended = prepare(memorysam, root, *options, "--json", dem=f"dem/*{suffix}")
    assert ended.code == 0, ended.err
    rows = SIDE // 4
    assert ended.answer["stored"]["dem"][0]["invalid"] == len(NAMES) * rows * SIDE
    said = ", ".join([*(f"nodata {value}" for value in nodata), "NaN, infinity"])
    assert f"'dem': {6 * 256:,} of {6 * 1024:,} pixels (25 %) are no measurement ({said})" in ended.err
    info = manifests.read(root, "own").info
    valid = np.stack([terrain(int(name))[rows:] for name in TRAIN]).astype(np.float64)
    modality, found = info.modality("dem"), info.statistics["dem"]
    assert modality.mean == pytest.approx((valid.mean(),) * 3) and modality.std == pytest.approx((valid.std(),) * 3)
    assert (found.low, found.high, found.invalid) == (valid.min(), valid.max(), 4 * rows * SIDE)
    values = info.ranges["dem"]
    assert valid.min() <= values.low < 412 < values.high <= valid.max() and list(values.nodata) == nodata
    assert ended.answer["sensors"]["dem"]["nodata"] == nodata and ended.answer["sensors"]["dem"]["dtypes"] == [
        "float32"
    ]


def test_a_depth_of_0_is_pointed_at_however_near_it_is_and_a_declared_one_is_no_warning(
    memorysam: Program, tmp_path: Path
) -> None:
    """Depth and heat have the same values, a quarter of them 0: only of depth that is not a measurement."""
    near = (".png", lambda number: gap(depth(number), 0))
    root = write(tmp_path / "own", depth=near, heat=near)
    options = ("--kind", "heat=thermal")
    said = f"{6 * 256:,} of {6 * 1024:,} pixels (25 %)"
    ended = prepare(memorysam, root, *options, depth="depth/*.png", heat="heat/*.png")
    assert f"warning: 'depth': {said} hold 0, as depth cameras write it for no measurement" in ended.err
    assert "prepare with --nodata depth=0" in ended.err and "'heat': 1536" not in ended.err
    again = prepare(memorysam, root, *options, "--nodata", "depth=0", depth="depth/*.png", heat="heat/*.png")
    assert "hold 0" not in again.err and f"\n'depth': {said} are no measurement (nodata 0, " in again.err
    for first, second in (("0", "7"), ("7", "0")):
        both = ("--nodata", f"depth={first}", "--nodata", f"depth={second}")
        again = prepare(memorysam, root, *options, *both, depth="depth/*.png", heat="heat/*.png")
    assert "dataset.json.bak" not in again.err  # the order in which they are typed changes nothing


def test_saturated_values_are_pointed_at_with_the_option_to_type(memorysam: Program, tmp_path: Path) -> None:
    root = write(tmp_path / "own", depth=(".png", lambda number: gap(depth(number), 65535)))
    ended = prepare(memorysam, root, depth="depth/*.png")
    assert f"'depth': {6 * 256:,} of {6 * 1024:,} pixels (25 %) hold 65535, far from all others" in ended.err
    assert "prepare with --nodata depth=65535" in ended.err
    again = prepare(memorysam, root, "--nodata", "depth=65535", depth="depth/*.png")
    assert "far from all others" not in again.err and "are no measurement (nodata 65535, NaN, infinity)" in again.err
    assert manifests.read(root, "own").info.statistics["depth"].high <= 4029 / 65535


@pytest.mark.parametrize(
    ("tag", "ignored", "is_noted"), [("0", (), True), ("0", ("--ignore", 0), False), ("7", (), False)]
)
def test_a_label_s_tag_that_names_a_class_is_noted(
    tag: str, ignored: tuple[object, ...], is_noted: bool, memorysam: Program, tmp_path: Path
) -> None:
    """GIS programs write 0 there unasked, where it may be background or nothing."""
    root = write(tmp_path / "own")
    for name in NAMES:
        (root / f"masks/{name}.tif").write_bytes(tiff(LABEL, nodata=tag))
        (root / f"masks/{name}.png").unlink()
    ended = prepare(memorysam, root, "--labels", "masks/*.tif", *ignored)
    assert ended.code == 0, ended.err
    assert ("the first labels' own tag calls 0 nodata, but it is the number of a class" in ended.err) == is_noted


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dept=1", "'dept' is not a --modality"),
        ("depth=none", "'none' must be a number such as 65535, nan or inf"),
        ("depth", "must be NAME=VALUE"),
    ],
)
def test_a_wrong_nodata_ends_with_2(option: str, message: str, memorysam: Program, tmp_path: Path) -> None:
    ended = prepare(memorysam, write(tmp_path / "own"), "--nodata", option, depth="rgb/*.png")
    assert ended.code == 2 and message in ended.err


def raw(low: int, high: int, dtype: type = np.uint16) -> object:
    """What makes a frame of a range."""
    return lambda number: np.linspace(low, high, SIDE * SIDE).reshape(SIDE, SIDE).astype(dtype)


NARROW = {
    "raw thermal": ("ir", ".npy", raw(29815, 31034), "a span of only 1.8 % of the range"),
    "8 bits": ("ir", ".npy", raw(110, 130, np.uint8), "a span of only 7.5 % of the range"),
    "floats": (
        "ir",
        ".npy",
        lambda _: np.linspace(0.9, 1.0, 1024).reshape(32, 32),
        "a span of only 9.8 % of the range",
    ),
    "14 bits in 16": ("rgb14", ".npy", raw(0, 16383), "use only 25 % of the range"),
    "small floats": (
        "gray",
        ".npy",
        lambda _: np.linspace(0, 0.1, 1024).reshape(32, 32),
        "use only 9.9 % of the range",
    ),
}


@pytest.mark.parametrize("what", NARROW)
def test_narrow_and_small_ranges_are_noted_where_they_are_kept(what: str, memorysam: Program, tmp_path: Path) -> None:
    name, suffix, make, message = NARROW[what]
    root = write(tmp_path / "own", **{name: (suffix, make)})
    ended = prepare(memorysam, root, "--stored", **{name: f"{name}/*{suffix}"})
    assert ended.code == 0 and message in ended.err and "--measure" in ended.err


def test_what_is_no_photo_is_measured_unless_stored_and_a_line_says_so(memorysam: Program, tmp_path: Path) -> None:
    root = write(tmp_path / "own", ir=(".npy", raw(29815, 31034)))
    values = raw(29815, 31034)(0).astype(np.float64) / 65535  # type: ignore[operator]
    ended = prepare(memorysam, root, ir="ir/*.npy")
    info = manifests.read(root, "own").info
    assert "span" not in ended.err and info.modality("ir").mean == pytest.approx((values.mean(),) * 3)
    assert info.modality("rgb").mean == (0.485, 0.456, 0.406) and set(info.statistics) == {"ir"}
    (line,) = [line for line in ended.out.splitlines() if line.startswith("sensor      ir")]
    mean, std = values.mean(), values.std()
    assert line.endswith(f"; ÷ 65535, normalized by its own mean {mean:.6g} and deviation {std:.6g}")
    assert "sensor      rgb (rgb): uint8 40 to 200 (1–99 %); ÷ 255, normalized by ImageNet's" in ended.out
    assert prepare(memorysam, root, "--stored", ir="ir/*.npy").code == 0
    info = manifests.read(root, "own").info
    assert info.modality("ir").mean is None and choices(info)[1].endswith("÷ 65535, not normalized")
    assert prepare(memorysam, root, "--measure", ir="ir/*.npy").code == 0
    assert set(manifests.read(root, "own").info.statistics) == {"rgb", "ir"}
    assert prepare(memorysam, root, "--stored", "--measure", ir="ir/*.npy").code == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a data set of millimeters, and the same scenes in meters; each command has its own copy."""
    from memorysam_cli import app

    here = tmp_path_factory.mktemp("values")
    root = write(here / "own", depth=(".png", depth))
    write(here / "meters", depth=(".npy", lambda number: (depth(number) / 1000).astype(np.float32)))
    write(here / "far", depth=(".png", lambda number: (depth(number) * 10).astype(np.uint16)))
    command = ["prepare", "folder", str(root), "-m", "rgb=rgb/*.png", "-m", "depth=depth/*.png", "--name", "own"]
    assert app.run([*command, "--labels", "masks/*.png", "--classes", "classes.txt", "--split", "0.5/0.5", "-q"]) == 0
    save_weights(here / "w.safetensors", manifests.read(root, "own").info, modalities=("rgb", "depth"))
    return here


@pytest.fixture
def place(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


KNOWN = "'depth': the weights were trained on uint16 80"
"""The rest of the range is by the drawn pixels: 800 to 4029."""
STRANGE = {"meters": "these scenes hold float32 0.8", "far": "these scenes hold uint16 800"}


@pytest.mark.parametrize("scenes", ["own", *STRANGE])
def test_predict_compares_the_scenes_with_the_training_s(scenes: str, memorysam: Program, place: Path) -> None:
    (place / scenes / "masks").rename(place / "labels")  # not the scenes' own
    arguments = ("predict", place / scenes, "--weights", "w.safetensors", "--workers", 0, "--batch", 2)
    ended = memorysam(*arguments, "--out", "a")
    strict = memorysam(*arguments, "--out", "b", "--strict")
    assert ended.code == 0, ended.err
    if scenes == "own":
        assert "trained on" not in ended.err and strict.code == 0
        return
    (line,) = [line for line in ended.err.splitlines() if "trained on" in line]
    assert line.startswith(f"memorysam: warning: {KNOWN}") and STRANGE[scenes] in line
    assert strict.code == 3 and not (place / "b").exists()
    assert f"memorysam: error [3]: {KNOWN}" in strict.err and "--strict" in strict.err


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_evaluate_and_train_compare_too(command: str, memorysam: Program, place: Path) -> None:
    assert prepare(memorysam, place / "meters", "-q", depth="depth/*.npy").code == 0
    tiny = ("model.backbone=nano", "data.image_size=32", "data.workers=0", "train.batch=2", "train.max_steps=1")
    arguments = {
        "evaluate": ("evaluate", "--weights", "w.safetensors", "--data", "meters", "--workers", 0, "--out", "e"),
        "train": (
            "train",
            "--init",
            "w.safetensors",
            "--data",
            "meters",
            *(word for key in tiny for word in ("--set", key)),
        ),
    }[command]
    strict = memorysam(*arguments, "--strict")
    assert strict.code == 3 and f"memorysam: error [3]: {KNOWN}" in strict.err
    assert not (place / "e").exists() and not list((place).glob("runs/*"))
    if command == "evaluate":
        ended = memorysam(*arguments, "--json")
        assert ended.code == 0 and ended.err.count("trained on") == 1
        assert ended.answer["warnings"][0].startswith(KNOWN)
        assert memorysam(*arguments[:3], "--data", "own", "--workers", 0, "--out", "f", "--strict").code == 0


def test_a_card_of_before_cannot_warn_and_loads(memorysam: Program, place: Path) -> None:
    """An earlier version wrote neither ranges nor nodata."""
    path = place / "own/memorysam/own/dataset.json"
    content = json.loads(path.read_text())
    assert content.pop("ranges")
    for modality in content["modalities"]:
        assert modality.pop("nodata") == []
    path.write_text(json.dumps(content))
    info = manifests.read(place / "own", "own").info
    save_weights(place / "old.safetensors", info, modalities=("rgb", "depth"))
    assert read_card(place / "old.safetensors").dataset.ranges == {}
    (place / "meters/masks").rename(place / "labels")
    ended = memorysam("predict", "meters", "--weights", "old.safetensors", "--workers", 0, "--out", "a", "--strict")
    assert ended.code == 0 and "trained on" not in ended.err


def test_a_report_shows_a_sensor_with_gaps_and_not_that_its_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    values = np.array([[np.nan, -9999, 1, 2]] * 4, np.float32)
    path.write_bytes(tiff(values, nodata="-9999"))
    picture = result_pages._frame(path)
    assert picture is not None
    # Gaps are black; 1 and 2 are stretched over the rest.
    assert picture[0, :2].max() == 0 and 100 < picture[0, 2, 0] < picture[0, 3, 0]


def test_a_data_set_of_before_gets_its_ranges_when_it_is_trained_on(place: Path) -> None:
    manifest = manifests.read(place / "own", "own")
    before = replace(manifest, info=manifest.info.model_copy(update={"ranges": {}}))
    assert with_ranges(before).info == manifest.info
    assert with_ranges(manifest) is manifest


def test_the_model_card_says_type_range_and_nodata(memorysam: Program, tmp_path: Path) -> None:
    root = write(tmp_path / "own", depth=(".png", lambda number: gap(depth(number), 65535)))
    assert prepare(memorysam, root, "--nodata", "depth=65535", depth="depth/*.png").code == 0
    weights = save_weights(tmp_path / "w.safetensors", manifests.read(root, "own").info, modalities=("rgb", "depth"))
    assert memorysam("card", weights, "--out", tmp_path / "README.md").code == 0
    (row,) = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| depth |")]
    assert row.startswith("| depth | depth | uint16 80") and "(1–99 %) | 65535 | by type |" in row
    said = memorysam("weights", "info", weights).out
    assert "sensor      depth (depth): uint16 80" in said and ", nodata 65535; ÷ 65535, normalized by its own" in said
