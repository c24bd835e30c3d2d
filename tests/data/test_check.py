from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.data.check import Report, check
from memorysam_cli.data.deliver import DELIVER
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.data.mcubes import MCUBES
from memorysam_cli.storage import images

from .conftest import SCENES, write_deliver, write_mcubes


@pytest.fixture
def listed(tmp_path: Path) -> Manifest:
    """A hand-made DELIVER, listed and not yet checked."""
    folder = write_deliver(tmp_path / "DELIVER", SCENES)
    return Manifest(tmp_path, DELIVER.info(folder), tuple(DELIVER.scenes(folder, tmp_path)))


def only_problem(report: Report) -> tuple[str, int, str]:
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
        "missing file", 1, f"{listed.scenes[3].id}: has no 'event' (looked for {listed.scenes[3].files['event'][0]})",
    )  # fmt: skip


def test_a_missing_label_counts_too(listed: Manifest) -> None:
    label = listed.scenes[0].label
    assert label is not None
    (listed.root / label).unlink()
    assert only_problem(check(listed)) == (
        "missing file", 1, f"{listed.scenes[0].id}: has no label (looked for {label})"
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


def test_sizes_that_differ_are_listed_but_events_may_be_smaller(listed: Manifest) -> None:
    images.write_png(listed.root / listed.scenes[1].files["event"][0], np.zeros((3, 4, 3), np.uint8))
    assert check(listed).problems == ()
    images.write_png(listed.root / listed.scenes[1].files["lidar"][0], np.zeros((3, 4, 3), np.uint8))
    assert only_problem(check(listed)) == (
        "size", 1,
        f"{listed.scenes[1].id}: sizes differ (img 6×8, depth 6×8, event 3×4, lidar 3×4, label 6×8)",
    )  # fmt: skip


def test_an_illegal_label_value_is_a_problem_with_its_place(listed: Manifest) -> None:
    label = listed.scenes[2].label
    assert label is not None
    pixels = images.read(listed.root / label)
    pixels[4, 5, 0] = 26
    images.write_png(listed.root / label, pixels)
    kind, count, first = only_problem(check(listed))
    assert (kind, count) == ("label", 1)
    assert "label value 26 in 1 pixels, first at (row 4, column 5)" in first


def test_damaged_files_and_odd_dtypes_are_problems(listed: Manifest) -> None:
    (listed.root / listed.scenes[0].files["img"][0]).write_bytes(b"not an image")
    np.save(listed.root / "x.npy", np.zeros((6, 8), np.int64))
    (listed.root / "x.npy").rename(listed.root / listed.scenes[1].files["lidar"][0])
    problems = {problem.kind: problem.first[0] for problem in check(listed).problems}
    assert set(problems) == {"unreadable", "dtype"}
    assert "holds 1 channel(s) of int64" in problems["dtype"]


def test_mixed_dtypes_and_alpha_are_worth_a_warning(listed: Manifest) -> None:
    images.write_png(listed.root / listed.scenes[0].files["depth"][0], np.zeros((6, 8, 3), np.uint16))
    for scene in listed.scenes:
        images.write_png(listed.root / scene.files["lidar"][0], np.zeros((6, 8, 4), np.uint8))
    report = check(listed)
    assert report.problems == ()
    assert report.warnings == (
        "'depth' is stored in several ways (8 of uint8 in 3 channel(s), 1 of uint16 in 3 channel(s)); each is scaled "
        "by its own dtype",
        "'lidar' has an alpha channel, which is dropped",
    )


def test_a_name_in_two_lists_is_a_problem(tmp_path: Path) -> None:
    folder = write_mcubes(tmp_path, {"train": ["a"], "test": ["a"]})
    manifest = Manifest(tmp_path, MCUBES.info(folder), tuple(MCUBES.scenes(folder, tmp_path)))
    kind, _, first = only_problem(check(manifest))
    assert kind == "name" and "'a' and 'a'" in first


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
    pixels = found.pop("pixels")
    assert {split: len(counts) for split, counts in pixels.items()} == {"train": 26, "val": 26}
    assert sum(pixels["train"]) == 7 * 6 * 8 and sum(pixels["val"]) == 2 * 6 * 8
    assert found == {
        "dataset": "deliver",
        "root": str(listed.root),
        "scenes": 10,
        "splits": {"train": 8, "val": 2},
        "modalities": ["img", "depth", "event", "lidar"],
        "classes": 25,
        "problems": [{"kind": "missing file", "count": 1, "first": ["x: has no label (looked for None)"]}],
        "warnings": [],
    }
