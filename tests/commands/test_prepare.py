from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.app import run
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.datasets.deliver import DELIVER
from memorysam_cli.data.findings import Reader
from memorysam_cli.storage import images
from tests.data.trees import CASES, HEIGHT, WIDTH, write_tree

SMALL = ["--scenes", "3", "--size", "32"]


@pytest.fixture
def deliver(tmp_path: Path) -> Path:
    """Two scenes in DELIVER's layout."""
    for place in ("sun/train/MAP_1_point1", "fog/val/MAP_1_point2"):
        for kind in ("img/{}/000050_rgb", "hha/{}/000050_depth", "event/{}/000050_event", "lidar/{}/000050_lidar"):
            images.write_png(tmp_path / "D" / f"{kind.format(place)}_front.png", np.zeros((4, 4, 3), np.uint8))
        images.write_png(tmp_path / f"D/semantic/{place}/000050_semantic_front.png", np.ones((4, 4), np.uint8))
    return tmp_path


def test_synthetic_prepares_what_it_renders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", "synthetic", str(tmp_path / "data"), *SMALL, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["schema_version"], value["dataset"], value["scenes"]) == (1, "synthetic", 3)
    assert value["manifest"] == str(tmp_path / "data" / "memorysam" / "synthetic")
    assert len(manifests.read(tmp_path / "data", "synthetic").scenes) == 3


def test_a_second_run_says_that_it_keeps_the_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", "synthetic", str(tmp_path), *SMALL]) == 0
    capsys.readouterr()
    assert run(["prepare", "synthetic", str(tmp_path), *SMALL]) == 0
    assert "exist already; kept" in capsys.readouterr().err


def test_a_foreign_folder_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mini-deliver").mkdir()
    assert run(["prepare", "synthetic", str(tmp_path), *SMALL]) == 2
    assert "was not made by 'prepare synthetic'" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--scenes", "0"], ["--size", "31"], ["--seed", "-1"], ["--layout", "kitti"]])
def test_impossible_options_end_with_2(tmp_path: Path, wrong: list[str]) -> None:
    assert run(["prepare", "synthetic", str(tmp_path / "data"), *wrong]) == 2
    assert not (tmp_path / "data").exists()


def test_a_good_data_set_is_shown_with_its_classes(deliver: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", "deliver", str(deliver)]) == 0
    out, err = capsys.readouterr()
    assert "scenes      2 (train 1, val 1)" in out
    assert "modalities  img, depth, event, lidar" in out
    assert f"manifest    {deliver}/memorysam/deliver" in out
    assert next(line for line in out.splitlines() if line.startswith("Building")).split()[1:] == ["100.000", "100.000"]
    assert "train: 1 of the 3983 published scenes" in err


def test_problems_are_listed_and_end_with_3(deliver: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = deliver / "D/event/sun/train/MAP_1_point1/000050_event_front.png"
    missing.unlink()
    assert run(["prepare", "deliver", str(deliver), "--json"]) == 3
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert value["manifest"] is None
    assert value["problems"] == [
        {
            "kind": "missing event",
            "count": 1,
            "first": [f"sun/train/MAP_1_point1/000050: has no 'event' (looked for {missing.relative_to(deliver)})"],
        }
    ]
    assert "no manifest was written" in err and "--drop-incomplete" in err
    assert [path.name for path in (deliver / "memorysam" / "deliver").iterdir()] == ["checked.jsonl"]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_every_published_layout_is_prepared_and_the_second_run_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, variant: str
) -> None:
    write_tree(name, tmp_path / "data", variant=variant)
    assert run(["prepare", name, str(tmp_path), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["scenes"] == len(manifests.read(tmp_path, name).scenes) > 0
    assert set(first["stored"]) == set(first["modalities"])
    assert all(form["low"] < form["high"] for forms in first["stored"].values() for form in forms)
    labeled = sum(scene.label is not None for scene in manifests.read(tmp_path, name).scenes)
    assert sum(map(sum, first["pixels"].values())) == labeled * HEIGHT * WIDTH, "every pixel is counted once"
    monkeypatch.setattr(Reader, "_read", None)  # of a few training scenes, value ranges are drawn each time
    assert run(["prepare", name, str(tmp_path), "--json"]) == 0, "nothing is checked again"
    assert json.loads(capsys.readouterr().out) == first


def test_scenes_and_files_are_shown_in_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tree("mcubes", tmp_path / "data")
    (folder / "polL_dolp" / "extra.npy").write_bytes(b"x")
    assert run(["prepare", "mcubes", str(tmp_path), "-v"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    assert ["train", "3", "302"] in rows and ["test", "2", "102"] in rows
    assert ["split", "scenes", "published"] in rows, "a column of zeros: nothing was left out"
    assert next(row[:4] for row in rows if row[:2] == ["nir", "uint16"]) == ["nir", "uint16", "1", "7"]
    assert "1 file belongs to no scene (1 .npy), such as polL_dolp/extra.npy" in err
    assert "belongs to no scene: polL_dolp/extra.npy" in err


def test_a_data_set_without_labels_shows_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree("muses", tmp_path, scenes={"test": 2})
    assert run(["prepare", "muses", str(tmp_path)]) == 0
    assert "share of the labeled pixels" not in capsys.readouterr().out


def test_measured_statistics_are_stored_and_the_normalization_stays(tmp_path: Path) -> None:
    write_tree("mcubes", tmp_path / "data")
    assert run(["prepare", "mcubes", str(tmp_path)]) == 0
    before = manifests.read(tmp_path, "mcubes").info
    assert run(["prepare", "mcubes", str(tmp_path), "--measure"]) == 0
    after = manifests.read(tmp_path, "mcubes").info
    assert after.modalities == before.modalities
    assert set(after.statistics) == {modality.name for modality in after.modalities}
    assert after.statistics["image"].split == "train" and after.statistics["image"].scenes == 3


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("deliver", "jamycheung.github.io/DELIVER.html (12.2 GB)"),
        ("mcubes", "multimodal-material-segmentation (9.27 GB)"),
    ],
)
def test_without_the_data_the_page_the_size_and_the_tree_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, published: str
) -> None:
    assert run(["prepare", name, str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert published in err
    assert "├── " in err


def test_two_data_sets_end_with_3_naming_both(deliver: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (deliver / "E" / "img" / "sun").mkdir(parents=True)
    (deliver / "E" / "hha").mkdir()
    assert run(["prepare", "deliver", str(deliver)]) == 3
    assert f"{deliver}/D and {deliver}/E" in capsys.readouterr().err


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys, memorysam_cli.commands.prepare\n"
        "print([name for name in ('torch', 'cv2', 'numpy', 'peft', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_cataloged_data_set_has_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prepare", "--help"]) == 0
    out = capsys.readouterr().out
    assert "synthetic" in out and DELIVER.name in out and "mcubes" in out


def test_a_root_that_others_would_not_find_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMORYSAM_DATA", raising=False)
    write_tree("muses", tmp_path / "data" / "my muses", scenes={"test": 2})
    assert run(["prepare", "muses", "data/my muses"]) == 0
    assert "find it with --data 'data/my muses'" in capsys.readouterr().err
    assert run(["prepare", "muses", "data"]) == 0
    assert "find it with" not in capsys.readouterr().err
