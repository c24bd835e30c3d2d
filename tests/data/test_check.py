from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from memorysam_cli.data import decode
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.check import check
from memorysam_cli.data.datasets.deliver import DELIVER
from memorysam_cli.data.datasets.mcubes import MCUBES
from memorysam_cli.data.findings import CACHE, CheckReport
from memorysam_cli.data.manifest import Manifest, Scene
from memorysam_cli.dataset import Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

from .conftest import SCENES, write_deliver, write_mcubes


@pytest.fixture
def listed(tmp_path: Path) -> Manifest:
    """A hand-made DELIVER, listed and not yet checked."""
    folder = write_deliver(tmp_path / "DELIVER", SCENES)
    return Manifest(tmp_path, DELIVER.info(folder), tuple(DELIVER.scenes(folder, tmp_path)))


def only_problem(report: CheckReport) -> tuple[str, int, str]:
    (problem,) = report.problems
    return problem.kind, problem.count, problem.first[0]


def test_a_good_data_set_has_no_problems_and_every_scene_is_told(listed: Manifest) -> None:
    told: list[int] = []
    report = check(listed, advance=lambda: told.append(1))
    assert (report.problems, report.warnings, len(told)) == ((), (), len(SCENES))
    assert list(report.splits.items()) == [("train", 7), ("val", 2)]


def test_the_histogram_counts_every_pixel_once(listed: Manifest) -> None:
    report = check(listed)
    raw = [images.read(listed.root / scene.label)[..., 0] for scene in listed.of_split("val") if scene.label]
    counts = np.bincount(np.concatenate(raw).ravel(), minlength=26)
    assert report.pixels["val"] == (*counts[1:26].tolist(), int(counts[0]))
    assert sum(report.pixels["train"]) == 7 * 6 * 8


def test_a_missing_file_is_named_with_where_it_was_looked_for(listed: Manifest) -> None:
    (listed.root / listed.scenes[3].files["event"][0]).unlink()
    assert only_problem(check(listed)) == (
        "missing event", 1, f"{listed.scenes[3].id}: has no 'event' (looked for {listed.scenes[3].files['event'][0]})",
    )  # fmt: skip


def test_a_missing_label_counts_too(listed: Manifest) -> None:
    label = listed.scenes[0].label
    assert label is not None
    (listed.root / label).unlink()
    assert only_problem(check(listed)) == (
        "missing label", 1, f"{listed.scenes[0].id}: has no label (looked for {label})"
    )  # fmt: skip


def test_ten_of_each_kind_are_named_and_all_are_counted(tmp_path: Path) -> None:
    scenes = [f"sun/train/MAP_1_point1/{number:06}" for number in range(12)]
    folder = write_deliver(tmp_path, scenes)
    manifest = Manifest(tmp_path, DELIVER.info(folder), tuple(DELIVER.scenes(folder, tmp_path)))
    for scene in manifest.scenes:
        (tmp_path / scene.files["lidar"][0]).unlink()
    (problem,) = check(manifest).problems
    assert (problem.count, len(problem.first)) == (12, 10)
    assert problem.first[0].startswith(scenes[0])


def test_sizes_that_differ_are_listed_and_registered_sensors_may_be_of_another_resolution(listed: Manifest) -> None:
    for name in ("event", "lidar"):
        images.write_png(listed.root / listed.scenes[1].files[name][0], np.zeros((3, 4, 3), np.uint8))
    report = check(listed)
    assert report.problems == ()
    of = f"1 of {len(listed.scenes)} scenes"
    assert [line for line in report.remarks if "resampled" in line] == [
        f"'event' is 3×4 and the frame 6×8: resampled (nearest), in {of}",
        f"'lidar' is 3×4 and the frame 6×8: resampled (nearest), in {of}",
    ]
    images.write_png(listed.root / listed.scenes[1].files["lidar"][0], np.zeros((3, 5, 3), np.uint8))
    assert only_problem(check(listed)) == (
        "size", 1,
        f"{listed.scenes[1].id}: sizes differ (img 6×8, depth 6×8, event 3×4, lidar 3×5, label 6×8); sensors must be "
        "registered: one view, at any resolution, the label at that of a sensor",
    )  # fmt: skip


def test_a_label_lies_on_the_pixels_of_a_sensor(listed: Manifest) -> None:
    scene = listed.scenes[1]
    assert scene.label is not None
    images.write_png(listed.root / scene.label, np.ones((3, 4), np.uint8))
    (problem,) = check(listed).problems
    assert problem.kind == "size" and "label 3×4" in problem.first[0]
    images.write_png(listed.root / scene.files["lidar"][0], np.zeros((3, 4, 3), np.uint8))
    report = check(listed)
    assert report.problems == ()
    assert "'img' is 6×8 and the frame 3×4: resampled (bilinear), in 1 of" in "\n".join(report.remarks)


def test_an_illegal_label_value_is_a_problem_with_its_place(listed: Manifest) -> None:
    label = listed.scenes[2].label
    assert label is not None
    pixels = images.read(listed.root / label)
    pixels[4, 5, 0] = 26
    images.write_png(listed.root / label, pixels)
    kind, count, first = only_problem(check(listed))
    assert (kind, count) == ("label", 1)
    assert "label value 26 in 1 pixel, first at (row 4, column 5)" in first


def test_damaged_files_and_odd_dtypes_are_problems(listed: Manifest) -> None:
    (listed.root / listed.scenes[0].files["img"][0]).write_bytes(b"not an image")
    np.save(listed.root / "x.npy", np.zeros((6, 8), np.int64))
    (listed.root / "x.npy").rename(listed.root / listed.scenes[1].files["lidar"][0])
    problems = {problem.kind: problem.first[0] for problem in check(listed).problems}
    assert set(problems) == {"unreadable", "dtype"}
    assert "holds 1 channel of int64" in problems["dtype"]


def test_mixed_dtypes_and_alpha_are_worth_a_warning(listed: Manifest) -> None:
    deep = np.full((6, 8, 3), 999, np.uint16)
    deep[0] = 7
    images.write_png(listed.root / listed.scenes[0].files["depth"][0], deep)
    for scene in listed.scenes:
        images.write_png(listed.root / scene.files["lidar"][0], np.zeros((6, 8, 4), np.uint8))
    report = check(listed)
    assert report.problems == ()
    assert report.warnings == (
        "'depth' is stored in several ways (8 of uint8 in 3 channels, 1 of uint16 in 3 channels); each is scaled "
        "by its own dtype",
        "'lidar' has an alpha channel, which is dropped",
        "'lidar' contains only 0",
    )


def test_a_name_in_two_lists_is_a_problem(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path, {"train": ["a"], "test": ["a"]})
    manifest = Manifest(tmp_path, MCUBES.info(folder), tuple(MCUBES.scenes(folder, tmp_path)))
    assert only_problem(check(manifest)) == (
        "two splits",
        1,
        "scene 'a' is in train and in test; keep it in one of them",
    )


def test_a_name_that_a_list_has_twice_is_a_problem(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path, {"train": ["a", "a"]})
    manifest = Manifest(tmp_path, MCUBES.info(folder), tuple(MCUBES.scenes(folder, tmp_path)))
    assert only_problem(check(manifest)) == ("name", 1, "scene 'a' is listed twice in train; remove one of the lines")


def test_both_missing_halves_of_an_angle_are_one_problem(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path, {"train": ["a"]})
    manifest = Manifest(tmp_path, MCUBES.info(folder), tuple(MCUBES.scenes(folder, tmp_path)))
    for path in manifest.scenes[0].files["aolp"]:
        (tmp_path / path).unlink()
    sine, cosine = manifest.scenes[0].files["aolp"]
    assert only_problem(check(manifest)) == ("missing aolp", 1, f"a: has no 'aolp' (looked for {sine} and {cosine})")


def test_only_an_angle_has_two_files(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path, {"train": ["a"]})
    manifest = Manifest(tmp_path, MCUBES.info(folder), tuple(MCUBES.scenes(folder, tmp_path)))
    (scene,) = manifest.scenes
    twice = replace(manifest, scenes=(replace(scene, files={**scene.files, "dolp": scene.files["dolp"] * 2}),))
    kind, _, first = only_problem(check(twice))
    assert kind == "dtype" and first.endswith("is one of 2 files; 'dolp' takes one")


def test_a_flip_that_would_fail_in_training_fails_here(listed: Manifest) -> None:
    first, *others = listed.info.modalities
    turned = (first.model_copy(update={"flip": "negate_sine"}), *others)
    faulty = replace(listed, info=listed.info.model_copy(update={"modalities": turned}))
    kind, count, first_fault = only_problem(check(faulty))
    assert (kind, count) == ("dtype", len(SCENES)) and "needs uint8 values whose range is symmetric" in first_fault


def test_labels_keep_to_the_limit_of_pixels_too(listed: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMORYSAM_MAX_PIXELS", "10")
    report = check(listed, max_pixels=48)
    assert report.problems == ()
    assert any("more pixels than the other commands take" in line and "=48" in line for line in report.warnings)
    kinds = {problem.kind: problem.count for problem in check(listed).problems}
    assert kinds == {"unreadable": 4 * len(SCENES), "label": len(SCENES)}, "what was remembered keeps to it as well"


def test_both_files_of_an_angle_are_checked(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path, {"train": ["a"]})
    manifest = Manifest(tmp_path, MCUBES.info(folder), tuple(MCUBES.scenes(folder, tmp_path)))
    np.save(folder / "polL_aolp_sin/a.npy", np.zeros((3, 3)))
    assert only_problem(check(manifest))[0] == "size"
    np.save(folder / "polL_aolp_sin/a.npy", np.zeros((8, 12, 3)))
    assert only_problem(check(manifest))[0] == "dtype"


def test_the_report_does_not_depend_on_chance(listed: Manifest) -> None:
    for scene in listed.scenes[::2]:
        (listed.root / scene.files["img"][0]).unlink()
    assert check(listed) == check(listed)


def test_the_json_has_the_documented_keys(listed: Manifest) -> None:
    broken = replace(listed, scenes=(*listed.scenes, replace(listed.scenes[0], id="x", label=None)))
    found = check(broken).to_json()
    pixels, stored = found.pop("pixels"), found.pop("stored")
    assert {split: len(counts) for split, counts in pixels.items()} == {"train": 26, "val": 26}
    assert sum(pixels["train"]) == 7 * 6 * 8 and sum(pixels["val"]) == 2 * 6 * 8
    assert list(stored) == ["img", "depth", "event", "lidar"]
    assert {form["dtype"] for forms in stored.values() for form in forms} == {"uint8"}
    assert found == {
        "dataset": "deliver",
        "root": str(listed.root),
        "scenes": 10,
        "splits": {"train": 8, "val": 2},
        "published": {},
        "modalities": ["img", "depth", "event", "lidar"],
        "classes": 25,
        "problems": [
            {"kind": "missing label", "count": 1, "first": ["x: has no label (its split is not called unlabeled)"]}
        ],
        "dropped": 0,
        "strays": {"count": 0, "first": []},
        "offsets": {},
        "laws": {
            "scenes found = accepted + left out": {"left": 10, "right": 10, "holds": True},
            "height × width of the labels = pixels of classes + ignored": {"left": 432, "right": 432, "holds": True},
        },
        "warnings": [],
    }


def test_the_range_of_every_modality_is_exact(listed: Manifest) -> None:
    pixels = np.full((6, 8, 3), 100, np.uint8)
    for scene in listed.scenes:
        images.write_png(listed.root / scene.files["lidar"][0], pixels)
    pixels[0, 0, 0], pixels[5, 7, 2] = 3, 251
    images.write_png(listed.root / listed.scenes[4].files["lidar"][0], pixels)
    (form,) = check(listed).stored["lidar"]
    assert (form.dtype, form.channels, form.scenes, form.low, form.high) == ("uint8", 3, 9, 3, 251)


def test_headers_alone_tell_no_range_and_miss_a_torn_picture(listed: Manifest) -> None:
    path = listed.root / listed.scenes[0].files["img"][0]
    path.write_bytes(path.read_bytes()[:-20])
    quick = check(listed, headers_only=True)
    assert (quick.problems, quick.stored["img"][0].low) == ((), None)
    kind, count, first = only_problem(check(listed))
    assert (kind, count) == ("unreadable", 1)
    assert first.startswith(f"{listed.scenes[0].files['img'][0]}: truncated PNG")


def test_a_second_check_reads_nothing_and_finds_the_same(listed: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    first = check(listed)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(images, "header", refuse)
    assert check(listed) == first
    assert check(listed, headers_only=True).problems == ()


def test_what_headers_told_is_not_taken_for_a_whole_reading(listed: Manifest) -> None:
    check(listed, headers_only=True)
    assert check(listed).stored["img"][0].low is not None


def test_changed_files_are_read_again(listed: Manifest) -> None:
    check(listed)
    path = listed.root / listed.scenes[0].files["img"][0]
    time = path.stat().st_mtime_ns
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"?")
    os.utime(path, ns=(time, time + 1_000))
    assert only_problem(check(listed))[0] == "unreadable"
    path.write_bytes(data)
    os.utime(path, ns=(time, time + 1_000))
    assert check(listed).problems == (), "a fault is never remembered"


def test_other_classes_read_the_labels_again(listed: Manifest) -> None:
    check(listed)
    info = listed.info.model_copy(update={"classes": listed.info.classes[:5], "palette": listed.info.palette[:5]})
    assert only_problem(check(replace(listed, info=info)))[0] == "label"


@pytest.mark.parametrize("damage", [b"", b"not json\n", b'{"path": 3}\n', b"[]\n\xff"])
def test_a_damaged_cache_is_ignored(listed: Manifest, damage: bytes) -> None:
    first = check(listed)
    cache = manifests.folder(listed.root, "deliver") / CACHE
    whole = cache.read_bytes()
    cache.write_bytes(damage)
    assert check(listed) == first
    assert cache.read_bytes() == whole


def test_an_interrupted_check_keeps_what_it_read(listed: Manifest) -> None:
    told: list[int] = []

    def stop() -> None:
        told.append(1)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(listed, advance=stop)
    lines = (manifests.folder(listed.root, "deliver") / CACHE).read_text().splitlines()
    assert len(lines) >= 4 * 5


def test_the_cache_forgets_files_that_are_no_longer_wanted(listed: Manifest) -> None:
    check(listed)
    check(replace(listed, scenes=listed.scenes[:2]))
    lines = (manifests.folder(listed.root, "deliver") / CACHE).read_text().splitlines()
    assert len(lines) == 2 * 5


def test_scenes_with_problems_can_be_left_out(listed: Manifest) -> None:
    (listed.root / listed.scenes[3].files["event"][0]).unlink()
    report = check(listed, drop_incomplete=True)
    assert [dropped.scene.id for dropped in report.dropped] == [listed.scenes[3].id]
    assert "has no 'event'" in report.dropped[0].reasons[0]
    assert len(report.scenes) + len(report.dropped) == len(listed.scenes)
    assert sum(report.splits.values()) == 8
    assert sum(map(sum, report.pixels.values())) == 8 * 6 * 8
    assert report.problems[0].count == 1


def test_a_file_in_two_splits_is_a_problem(listed: Manifest) -> None:
    val = listed.of_split("val")[0]
    first = listed.scenes[0]
    shared = replace(val, files={**val.files, "img": first.files["img"]})
    scenes = tuple(shared if scene is val else scene for scene in listed.scenes)
    kind, count, line = only_problem(check(replace(listed, scenes=scenes)))
    assert (kind, count) == ("two splits", 1)
    assert line == f"{first.files['img'][0]}: is in train ({first.id}) and in val ({val.id})"


def test_one_picture_under_two_names_in_two_splits_is_worth_a_warning(listed: Manifest) -> None:
    train, val = listed.scenes[0], listed.of_split("val")[0]
    (listed.root / val.files["img"][0]).write_bytes((listed.root / train.files["img"][0]).read_bytes())
    report = check(listed)
    assert report.problems == ()
    assert report.warnings == (
        f"1 picture of 'img' in more than one split, such as {train.id} (train) and {val.id} (val)",
    )


def test_a_picture_that_a_split_has_twice_is_named_with_a_scene_of_another_split(listed: Manifest) -> None:
    first, second = listed.of_split("train")[:2]
    val = listed.of_split("val")[0]
    for scene in (second, val):
        (listed.root / scene.files["img"][0]).write_bytes((listed.root / first.files["img"][0]).read_bytes())
    (line,) = check(listed).warnings
    assert f"such as {first.id} (train) and {val.id} (val)" in line


def test_a_label_without_any_class_is_worth_a_warning(listed: Manifest) -> None:
    label = listed.scenes[0].label
    assert label is not None
    images.write_png(listed.root / label, np.full((6, 8), 255, np.uint8))
    report = check(listed)
    assert report.problems == ()
    assert report.warnings == (f"{label} has no class at all: every pixel of these labels is ignored",)


def test_sixteen_bits_that_hold_eight_are_worth_a_warning(listed: Manifest) -> None:
    for number, scene in enumerate(listed.scenes):
        images.write_png(listed.root / scene.files["depth"][0], np.full((6, 8), 100 + number, np.uint16))
    (warning,) = check(listed).warnings
    assert "'depth' is stored in 16 bits, but no value is above 108" in warning


def test_a_turned_jpeg_is_noted(listed: Manifest) -> None:
    path = listed.root / listed.scenes[0].files["lidar"][0]
    jpeg = cv2.imencode(".jpg", np.tile(np.arange(8, dtype=np.uint8), (6, 3, 1)).transpose(0, 2, 1))[1].tobytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 274, 3, 1, 6, 0) + bytes(4)
    path.write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    assert images.header(path).is_turned
    assert f"{listed.scenes[0].files['lidar'][0]} has an EXIF rotation, which is ignored" in check(listed).warnings[0]


def test_a_split_without_published_labels_needs_none(listed: Manifest) -> None:
    scenes = tuple(replace(scene, label=None) if scene.split == "val" else scene for scene in listed.scenes)
    assert check(replace(listed, scenes=scenes)).problems[0].count == 2
    info = listed.info.model_copy(update={"unlabeled": ("val",)})
    report = check(replace(listed, scenes=scenes, info=info))
    assert report.problems == ()
    assert sum(report.pixels["val"]) == 0


FORMS = [
    (np.uint8, (4, 4)), (np.uint8, (4, 4, 2)), (np.uint8, (4, 4, 3)), (np.uint8, (4, 4, 4)), (np.uint8, (4, 4, 6)),
    (np.uint16, (4, 4)), (np.float16, (4, 4)), (np.float64, (4, 4, 3)), (np.int32, (4, 4)), (bool, (4, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "shape"), FORMS)
@pytest.mark.parametrize("modality", [
    Modality(name="x", kind="depth"),
    Modality(name="x", kind="angle"),
    Modality(name="x", kind="rgb", channels=(2, 1, 0)),
    Modality(name="x", kind="thermal", channels=(0, 0, 0)),
], ids=["plain", "angle", "bgr", "first"])  # fmt: skip
def test_the_check_refuses_exactly_what_training_could_not_read(
    tmp_path: Path, listed: Manifest, modality: Modality, dtype: type, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones(shape, dtype))
    info = listed.info.model_copy(update={"modalities": (modality,), "unlabeled": ("train",)})
    scene = Scene("a", "train", None, None, {"x": ("x.npy",)}, None)
    problems = check(Manifest(tmp_path, info, (scene,))).problems
    try:
        decode.read_modality([path], modality)
    except DataError:
        assert problems and problems[0].kind == "dtype"
    else:
        assert problems == ()


def test_a_name_that_is_no_text_is_told_and_not_opened(listed: Manifest) -> None:
    scenes = (replace(listed.scenes[0], id="bad\udcff"), *listed.scenes[1:])
    kind, _, line = only_problem(check(replace(listed, scenes=scenes)))
    assert kind == "name" and "\\udcff" in line and "not valid UTF-8" in line
