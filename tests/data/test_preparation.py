from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.data.layout import MARKER, DataNotFound
from memorysam_cli.data.preparation import check_and_write, render_synthetic, survey, survey_synthetic
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.errors import DataError, EnvironmentFault, PartialError, UsageError

from .conftest import SCENES, write_deliver, write_mcubes
from .trees import write_tree

SMALL = {"scenes": 3, "size": 32, "seed": 1}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_published_data_set_is_prepared_below_its_root(tmp_path: Path) -> None:
    write_deliver(tmp_path / "x" / "DELIVER", SCENES)
    prepared = check_and_write(survey("deliver", tmp_path))
    assert prepared.fault() is None
    assert prepared.manifest == tmp_path / "memorysam" / "deliver"
    manifest = manifests.read(tmp_path, "deliver")
    assert (manifest.info.root, len(manifest.scenes)) == ("x/DELIVER", len(SCENES))
    assert all((tmp_path / path).is_file() for scene in manifest.scenes for path in scene.files["img"])


def test_the_data_sets_own_folder_can_be_the_root(tmp_path: Path) -> None:
    write_mcubes(tmp_path, {"train": ["a"], "val": ["b"]})
    prepared = check_and_write(survey("mcubes", tmp_path))
    assert prepared.manifest == tmp_path / "memorysam" / "mcubes"
    assert manifests.read(tmp_path, "mcubes").info.root == "."


def test_problems_leave_no_manifest_and_end_as_a_data_error(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES)
    shutil.rmtree(folder / "hha" / "cloud")
    prepared = check_and_write(survey("deliver", tmp_path))
    fault = prepared.fault()
    assert isinstance(fault, DataError)
    assert "2 × missing depth" in str(fault) and "hha/cloud/" in str(fault) and "--drop-incomplete" in str(fault)
    assert prepared.manifest is None
    assert set(files_of(tmp_path / "memorysam")) == {"deliver/checked.jsonl"}


def test_a_failed_preparation_keeps_the_old_manifest(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES)
    check_and_write(survey("deliver", tmp_path))
    before = files_of(tmp_path / "memorysam")
    shutil.rmtree(folder / "event" / "sun")
    check_and_write(survey("deliver", tmp_path))
    after = files_of(tmp_path / "memorysam")
    before.pop("deliver/checked.jsonl"), after.pop("deliver/checked.jsonl")
    assert after == before


def test_incomplete_scenes_can_be_left_out_and_are_listed(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES)
    shutil.rmtree(folder / "hha" / "cloud")
    prepared = check_and_write(survey("deliver", tmp_path), drop_incomplete=True)
    fault = prepared.fault()
    assert isinstance(fault, PartialError)
    assert "without 2 of 9 scenes (2 × missing depth)" in str(fault) and "dropped.jsonl" in str(fault)
    lines = [json.loads(line) for line in (tmp_path / "memorysam/deliver/dropped.jsonl").read_text().splitlines()]
    assert [line["scene"] for line in lines] == [scene for scene in sorted(SCENES) if scene.startswith("cloud")]
    assert lines[0]["split"] == "train" and "has no 'depth'" in lines[0]["reasons"][0]
    kept = manifests.read(tmp_path, "deliver")
    assert {scene.id for scene in kept.scenes} == {scene for scene in SCENES if not scene.startswith("cloud")}


def test_once_all_is_well_no_list_of_dropped_scenes_stays(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES)
    away = tmp_path.with_name(f"{tmp_path.name}-away")
    (folder / "hha" / "cloud").rename(away)
    check_and_write(survey("deliver", tmp_path), drop_incomplete=True)
    away.rename(folder / "hha" / "cloud")
    prepared = check_and_write(survey("deliver", tmp_path), drop_incomplete=True)
    assert prepared.fault() is None
    assert not (tmp_path / "memorysam/deliver/dropped.jsonl").exists()


def test_nothing_is_written_when_no_scene_is_left(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES)
    shutil.rmtree(folder / "semantic")
    prepared = check_and_write(survey("deliver", tmp_path), drop_incomplete=True)
    assert isinstance(prepared.fault(), DataError) and "no scene is left" in str(prepared.fault())
    assert set(files_of(tmp_path / "memorysam")) == {"deliver/checked.jsonl"}


def test_what_is_measured_is_stored(tmp_path: Path) -> None:
    write_deliver(tmp_path, SCENES)
    seen: list[int] = []

    def measure(manifest: manifests.Manifest) -> DatasetInfo:
        seen.append(len(manifest.of_split("train")))
        return manifest.info.model_copy(update={"title": "measured"})

    check_and_write(survey("deliver", tmp_path), measure=measure)
    assert seen == [7]
    assert manifests.read(tmp_path, "deliver").info.title == "measured"


def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_deliver(tmp_path, SCENES)
    found = survey("deliver", tmp_path)
    (tmp_path / "memorysam").write_text("a file")
    monkeypatch.setattr(preparation, "check", None)
    with pytest.raises(EnvironmentFault, match="memorysam"):
        check_and_write(found)


def test_files_that_belong_to_no_scene_are_counted(tmp_path: Path) -> None:
    folder = write_deliver(tmp_path, SCENES)
    (folder / "img/sun/val/MAP_3_point2_motionblur/notes.txt").write_text("x")
    report = check_and_write(survey("deliver", tmp_path)).report
    assert report.strays is not None
    assert (report.strays.count, report.strays.first) == (1, ("img/sun/val/MAP_3_point2_motionblur/notes.txt",))
    assert (
        "1 file belongs to no scene (1 .txt), such as img/sun/val/MAP_3_point2_motionblur/notes.txt" in report.warnings
    )


def test_a_part_of_the_published_scenes_is_allowed_and_said(tmp_path: Path) -> None:
    write_deliver(tmp_path, SCENES)
    warnings = check_and_write(survey("deliver", tmp_path)).report.warnings
    assert any(said.startswith("train: 7 of the 3983 published scenes (cloud 2 of 794, ") for said in warnings)


def test_missing_data_carry_the_expected_tree(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound) as caught:
        survey("mcubes", tmp_path)
    assert "polL_aolp_sin/" in caught.value.expected_tree
    assert "9.27 GB" in str(caught.value)


@pytest.mark.parametrize(("layout", "name"), [("deliver", "synthetic"), ("mcubes", "synthetic-mcubes")])
def test_rendered_scenes_are_prepared_by_the_same_code(
    tmp_path: Path, layout: preparation.SyntheticLayout, name: str
) -> None:
    told: list[int] = []
    assert render_synthetic(tmp_path, layout=layout, **SMALL, advance=lambda: told.append(1))
    assert len(told) == 3
    prepared = check_and_write(survey_synthetic(tmp_path, layout=layout))
    assert (prepared.report.problems, prepared.report.warnings) == ((), ())
    manifest = manifests.read(tmp_path, name)
    assert len(manifest.scenes) == 3
    assert manifest.info.title.startswith("mini-")
    assert not any(modality.antialias for modality in manifest.info.modalities)  # the demo's figures are without
    assert manifest.info.classes == survey(layout, tmp_path).info.classes


def test_the_same_arguments_keep_whole_scenes_and_mend_damaged_ones(tmp_path: Path) -> None:
    render_synthetic(tmp_path, layout="deliver", **SMALL)
    before = files_of(tmp_path)
    assert not render_synthetic(tmp_path, layout="deliver", **SMALL)
    next((tmp_path / "mini-deliver" / "img").rglob("*.png")).unlink()
    assert render_synthetic(tmp_path, layout="deliver", **SMALL)
    assert files_of(tmp_path) == before


def test_scenes_of_another_version_are_rendered_again(tmp_path: Path) -> None:
    render_synthetic(tmp_path, layout="deliver", **SMALL)
    marker = tmp_path / "mini-deliver" / MARKER
    whole = marker.read_text()
    marker.write_text(whole.replace("memorysam 0", "memorysam 99"))
    assert render_synthetic(tmp_path, layout="deliver", **SMALL)
    assert marker.read_text() == whole


def test_other_arguments_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    render_synthetic(tmp_path, layout="deliver", **SMALL)
    before = files_of(tmp_path)
    with pytest.raises(
        UsageError, match="was rendered with --scenes 3 --size 32 --seed 1, not --scenes 3 --size 32 --seed 2"
    ):
        render_synthetic(tmp_path, layout="deliver", scenes=3, size=32, seed=2)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("content", [{}, {"img/mine.png": "x"}])
def test_a_folder_that_is_not_ours_is_refused_untouched(tmp_path: Path, content: dict[str, str]) -> None:
    folder = tmp_path / "mini-deliver"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    before = files_of(tmp_path)
    with pytest.raises(UsageError, match="was not made by 'prepare synthetic'"):
        render_synthetic(tmp_path, layout="deliver", **SMALL)
    assert files_of(tmp_path) == before


def test_an_interrupted_rendering_leaves_nothing(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_synthetic(tmp_path, layout="deliver", **SMALL, advance=interrupt)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"memorysam/synthetic/.lock"}  # which stays where locks are the kernel's


def test_rendered_scenes_under_a_published_name_are_called_rendered(tmp_path: Path) -> None:
    for layout in ("deliver", "mcubes"):
        render_synthetic(tmp_path, layout=layout, **SMALL)
        warnings = check_and_write(survey(layout, tmp_path)).report.warnings
        assert any("these are rendered scenes, not" in line for line in warnings)


def test_the_json_is_the_documented_object(tmp_path: Path) -> None:
    write_mcubes(tmp_path, {"train": ["a"], "val": ["b"]})
    value = json.loads(json.dumps(check_and_write(survey("mcubes", tmp_path)).to_json()))
    assert list(value) == [
        "schema_version", "dataset", "root", "manifest", "scenes", "splits", "published", "modalities", "stored",
        "classes", "pixels", "problems", "dropped", "strays", "offsets", "laws", "warnings",
        "sensors",
    ]  # fmt: skip
    assert value["manifest"] == str(tmp_path / "memorysam" / "mcubes")
    assert (value["schema_version"], value["scenes"], value["classes"]) == (1, 2, 20)


def test_labels_that_a_layout_calls_hidden_count_once_they_are_there(tmp_path: Path) -> None:
    folder = write_tree("muses", tmp_path / "MUSES")
    assert preparation.survey("muses", tmp_path).info.unlabeled == ("test",)
    frames = sorted((folder / "frame_camera" / "test").rglob("*.png"))
    label = next((folder / "gt_semantic" / "val").rglob("*.png")).read_bytes()
    for number, frame in enumerate(frames):
        inside = frame.relative_to(folder / "frame_camera")
        path = folder / "gt_semantic" / inside.with_name(frame.name.replace("frame_camera", "gt_labelTrainIds"))
        if number == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(label)
    prepared = preparation.check_and_write(preparation.survey("muses", tmp_path))
    assert prepared.manifest is None
    assert [(problem.kind, problem.count) for problem in prepared.report.problems] == [
        ("missing label", len(frames) - 1)
    ]
    assert "its split is not called unlabeled" in prepared.report.problems[0].first[0]


def test_an_archive_that_lies_there_unpacked_by_nobody_is_named_with_the_line_that_unpacks_it(tmp_path: Path) -> None:
    for name, line in (
        ("images.tar.gz", "images.tar.gz"),
        ("the_DELIVER.zip", "the_DELIVER.zip"),
        (".hidden.zip", None),
    ):
        (tmp_path / name).touch()
        with pytest.raises(DataNotFound, match="no DELIVER here") as found:
            survey("deliver", tmp_path)
        # images.tar.gz as long as it is alone; what is named as the data set is comes first, and nothing hidden
        wanted = line or "the_DELIVER.zip"
        assert str(found.value).endswith(f"to unpack {wanted}: memorysam prepare deliver {tmp_path / wanted}")
