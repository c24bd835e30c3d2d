"""RELIABILITY §4, rows 1–26, as ``prepare`` meets them: the exit code, the message, and nothing lost."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from memorysam_cli.app import run
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.storage import images
from tests.data.trees import HEIGHT, WIDTH, write_tree
from tests.storage.hostile import HOSTILE, make_zip

RGB = "img/cloud/train/MAP_1_point2/000050_rgb_front.png"
LABEL = "semantic/cloud/train/MAP_1_point2/000050_semantic_front.png"
SCENE = "cloud/train/MAP_1_point2/000050"


def content(folder: Path) -> dict[str, object]:
    """All below a folder, but for what the check remembers."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if "memorysam" not in path.relative_to(folder).parts or path.name in {"scenes.jsonl", "dataset.json"}
    }


def prepare(capsys: pytest.CaptureFixture[str], root: Path, *options: str, name: str = "deliver") -> tuple[int, str]:
    """Exit code and stderr; whatever happens, nothing that was there is lost and no temporary stays."""
    before = content(root if root.is_dir() else root.parent)
    code = run(["prepare", name, str(root), *options])
    after = content(root if root.is_dir() else root.parent)
    assert {path: after.get(path) for path in before} == before
    assert not any(".tmp-" in path for path in after)
    if code == 3:
        assert after == before
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return code, err


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree("deliver", tmp_path / "DELIVER")


@pytest.mark.parametrize("what", HOSTILE)
def test_rows_1_to_9_a_hostile_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    name, make, message = HOSTILE[what]
    (tmp_path / name).write_bytes(make())
    code, err = prepare(capsys, tmp_path / name)
    assert code == 3 and message in err
    assert str(tmp_path / name) in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def zipped(tree: Path) -> Path:
    """The tree as the download that it would be."""
    path = tree.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(tree.rglob("*")):
            archive.write(file, str(file.relative_to(tree.parent)))
    shutil.rmtree(tree)
    return path


def test_a_download_is_prepared_beside_itself_and_once(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = zipped(tree)
    code, err = prepare(capsys, path)
    assert code == 0 and f"{tree}: unpacked from DELIVER.zip" in err
    manifest = manifests.read(tree.parent, "deliver")
    assert manifest.info.root == "DELIVER/DELIVER" and len(manifest.scenes) == 7
    code, err = prepare(capsys, path)
    assert code == 0 and f"{tree}: is already unpacked from DELIVER.zip" in err


def test_an_archive_of_something_else_says_what_was_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.zip").write_bytes(make_zip())
    assert run(["prepare", "deliver", str(tmp_path / "other.zip")]) == 3
    err = capsys.readouterr().err
    assert f"{tmp_path / 'other'}" in err and "├── " in err


def test_row_4_names_that_differ_in_case_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip({"A.png": b"1", "a.png": b"2"}))
    code, err = prepare(capsys, tmp_path / "x.zip")
    assert code == 3 and "--allow-case" in err
    assert run(["prepare", "deliver", str(tmp_path / "x.zip"), "--allow-case"]) == 3, "unpacked, but no DELIVER"
    assert sorted(path.name for path in (tmp_path / "x").glob("*.png")) == ["A.png", "a.png"]


def test_row_6_more_is_unpacked_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip({"zeros": bytes(2_000_000)}))
    code, err = prepare(capsys, tmp_path / "x.zip")
    assert code == 3 and "--max-expand GB" in err
    assert run(["prepare", "deliver", str(tmp_path / "x.zip"), "--max-expand", "0.002"]) == 3
    assert (tmp_path / "x" / "zeros").stat().st_size == 2_000_000


@pytest.mark.parametrize("limit", ["nan", "inf", "-1", "much"])
def test_an_impossible_limit_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip())
    assert prepare(capsys, tmp_path / "x.zip", "--max-expand", limit)[0] == 2
    assert not (tmp_path / "x").exists()


def test_row_10_missing_files_of_each_kind(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: sorted((tree / kind).rglob("*.png")) for kind in ("img", "event", "semantic")}
    for path in (*files["event"][:3], files["img"][4], files["semantic"][5]):
        path.unlink()
    code, err = prepare(capsys, tree)
    assert code == 3
    for line in ("missing event (3):", "missing img (1):", "missing label (1):"):
        assert f"memorysam: warning: {line}" in err
    for path in (*files["event"][:3], files["img"][4], files["semantic"][5]):
        assert f"(looked for {path.relative_to(tree)})" in err
    assert not (tree / "memorysam" / "deliver" / "dataset.json").exists()
    code, err = prepare(capsys, tree, "--drop-incomplete")
    assert code == 4 and "missing event (3):" in err
    dropped = (tree / "memorysam" / "deliver" / "dropped.jsonl").read_text().splitlines()
    assert len(dropped) + len(manifests.read(tree, "deliver").scenes) == 7
    assert len(dropped) == 5


def test_row_11_and_22_sizes_that_differ(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images.write_png(tree / LABEL, np.ones((HEIGHT, WIDTH - 1), np.uint8))
    images.write_png(tree / RGB.replace("img", "hha").replace("rgb", "depth"), np.ones((HEIGHT + 2, WIDTH), np.uint8))
    code, err = prepare(capsys, tree)
    assert code == 3
    assert f"{SCENE}: sizes differ (img 36×44, depth 38×44, event 36×44, lidar 36×44, label 36×43)" in err


def test_row_12_an_empty_folder_and_one_without_a_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(capsys, tmp_path)[0] == 3
    for place in ("img/sun/notes.txt", "hha/readme.txt", "event/a.txt", "lidar/a.txt", "semantic/a.txt"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text("x")
    code, err = prepare(capsys, tmp_path)
    assert code == 3
    assert "event/a.txt" in err and "hha/readme.txt" in err and "_rgb_front.png" in err


def test_row_13_a_foreign_folder_in_the_way(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = zipped(tree)
    tree.mkdir()
    (tree / "mine.txt").write_text("mine")
    before = content(tree.parent)
    code, err = prepare(capsys, path)
    assert code == 2 and f"{tree}: exists and was not unpacked from DELIVER.zip" in err
    assert content(tree.parent) == before


def encoded(suffix: str, array: np.ndarray) -> bytes:
    return cv2.imencode(suffix, array)[1].tobytes()


def png(height: int, width: int, *, depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    """A PNG whose header claims anything."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def saved(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def picture(mode: str, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (WIDTH, HEIGHT), 1 if mode in {"L", "P"} else (9,) * len(mode)).save(stream, form, **options)
    return stream.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


NOISE = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
JPEG = encoded(".jpg", NOISE)
ANIMATION = struct.pack(">I", 8) + b"acTL" + bytes(8) + struct.pack(">I", zlib.crc32(b"acTL" + bytes(8)))
PICTURES: dict[str, tuple[bytes, str]] = {
    "14 cut JPEG": (JPEG[: len(JPEG) * 6 // 10], f"truncated JPEG: it ends after {len(JPEG) * 6 // 10:,}"),
    "14 cut PNG": (encoded(".png", NOISE)[:-30], "truncated PNG"),
    "14 cut TIFF": (encoded(".tif", NOISE)[:300], "truncated"),
    "15 empty": (b"", "empty (0 bytes)"),
    "15 text": (b"this is not an image", "not PNG, JPEG, TIFF, BMP, WebP or NumPy (starts with b'this is not an i'"),
    "16 huge": (png(60000, 60000), "60000 x 60000 = 3,600 Mpx is more than the 100 Mpx allowed"),
    "17 no pixels": (png(0, 10), "has no pixels"),
    "18 CMYK": (picture("CMYK", "JPEG"), "a CMYK JPEG"),
    "18 animated": (png(HEIGHT, WIDTH, extra=ANIMATION), "an animated PNG"),
    "18 32-bit": (saved(np.zeros((HEIGHT, WIDTH), np.int32)), "holds 1 channel of int32"),
    "18 two channels": (saved(np.zeros((HEIGHT, WIDTH, 2), np.uint8)), "has 2 channels"),
    "23 beyond float32": (saved(np.full((HEIGHT, WIDTH), 1e300)), "holds values from 1e+300 to 1e+300, too large"),
    "23 objects": (saved(np.array([[{}]], object), allow_pickle=True), "contains Python objects"),
}


@pytest.mark.parametrize("what", PICTURES)
def test_rows_14_to_23_a_picture_that_cannot_be_used(tree: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    data, message = PICTURES[what]
    (tree / RGB).write_bytes(data)
    code, err = prepare(capsys, tree)
    assert code == 3
    line = next(line for line in err.splitlines() if line.startswith("memorysam: warning:   "))
    assert line.startswith(f"memorysam: warning:   {RGB}: ") and message in line
    assert err.splitlines()[-1].startswith("memorysam: error [3]: ")
    code, err = prepare(capsys, tree, "--drop-incomplete")
    assert code == 4 and message in err
    (dropped,) = (tree / "memorysam" / "deliver" / "dropped.jsonl").read_text().splitlines()
    assert json.loads(dropped)["scene"] == SCENE
    assert len(manifests.read(tree, "deliver").scenes) == 6


@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (np.inf, HEIGHT * WIDTH)])
def test_row_23_what_is_not_finite_is_counted(
    tree: Path, capsys: pytest.CaptureFixture[str], value: float, count: int
) -> None:
    array = np.where(np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) < count, value, 1.0)
    (tree / RGB).write_bytes(saved(array))
    code, err = prepare(capsys, tree)
    assert code == 0
    assert f"'img': {count:,} of {7 * HEIGHT * WIDTH:,} pixels" in err and "are no measurement (NaN, infinity)" in err
    assert (f"{RGB} has no valid pixel at all" in err) == (count == HEIGHT * WIDTH)


def test_row_15_a_folder_that_is_called_like_a_picture(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / RGB).unlink()
    (tree / RGB).mkdir()
    code, err = prepare(capsys, tree)
    assert code == 3 and RGB in err


def test_row_16_larger_pictures_on_request(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = prepare(capsys, tree, "--max-pixels", "1000")
    assert code == 3 and "--max-pixels" in err
    assert prepare(capsys, tree, "--max-pixels", "2000")[0] == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000)])
def test_row_17_odd_sizes_work(tree: Path, capsys: pytest.CaptureFixture[str], height: int, width: int) -> None:
    for path in (*tree.rglob("*_rgb_*"), *tree.rglob("*_depth_*"), *tree.rglob("*_event_*"), *tree.rglob("*_lidar_*")):
        images.write_png(path, np.ones((height, width, 3), np.uint8))
    for path in tree.rglob("*_semantic_*"):
        images.write_png(path, np.ones((height, width), np.uint8))
    assert prepare(capsys, tree)[0] == 0


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (picture("L", "PNG"), "'img' is stored in several ways (6 of uint8 in 3 channels, 1 of uint8 in 1 "),
        (picture("RGBA", "PNG"), "1 of uint8 in 4 channels"),
        (picture("P", "PNG"), ""),
        (encoded(".png", NOISE.astype(np.uint16) * 257), "1 of uint16 in 3 channels"),
        (picture("RGB", "JPEG", exif=turned()), f"{RGB} has an EXIF rotation, which is ignored"),
    ],
    ids=["grey", "RGBA", "palette", "16 bit", "EXIF"],
)  # fmt: skip
def test_row_18_odd_pictures_work_and_are_noted(
    tree: Path, capsys: pytest.CaptureFixture[str], data: bytes, note: str
) -> None:
    (tree / RGB).write_bytes(data)
    code, err = prepare(capsys, tree)
    assert code == 0 and note in err


def label(value: int, dtype: type = np.uint8) -> np.ndarray:
    array = np.ones((HEIGHT, WIDTH), dtype)
    array[4, 5:7] = value
    return array


@pytest.mark.parametrize("value", [26, 254, -1, 300])
def test_row_19_a_label_value_that_is_no_class(tree: Path, capsys: pytest.CaptureFixture[str], value: int) -> None:
    data = encoded(".png", label(value)) if 0 <= value < 256 else saved(label(value, np.int32))
    (tree / LABEL).write_bytes(data)
    code, err = prepare(capsys, tree)
    assert code == 3
    assert f"{LABEL}: label value {value} in 2 pixels, first at (row 4, column 5); legal are 1..25, and " in err


@pytest.mark.parametrize(
    "data",
    [encoded(".png", NOISE), encoded(".jpg", NOISE[:, :, 0])],
    ids=["color", "JPEG"],
)
def test_row_20_a_label_in_color_or_with_losses(tree: Path, capsys: pytest.CaptureFixture[str], data: bytes) -> None:
    (tree / LABEL).write_bytes(data)
    code, err = prepare(capsys, tree)
    assert code == 3 and f"{LABEL}: is " in err
    assert "labels must be class numbers in one channel, lossless (PNG)" in err


def test_row_21_a_label_without_any_class(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images.write_png(tree / LABEL, np.zeros((HEIGHT, WIDTH), np.uint8))
    code, err = prepare(capsys, tree)
    assert code == 0 and f"{LABEL} has no class at all" in err


def test_row_24_a_file_that_vanishes(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    survey: Callable[..., manifests.Manifest] = preparation.survey

    def then_vanish(*arguments: object, **options: object) -> manifests.Manifest:
        found = survey(*arguments, **options)
        (tree / RGB).unlink()
        return found

    monkeypatch.setattr(preparation, "survey", then_vanish)
    assert run(["prepare", "deliver", str(tree)]) == 3
    assert f"{SCENE}: has no 'img' (looked for {RGB})" in capsys.readouterr().err


@pytest.mark.parametrize(
    "frame", ["00 50", "$(x)", "a\nb", "é", "n" * 230, os.fsdecode(b"\xff50")],
    ids=["space", "shell", "newline", "accent", "long", "bytes"],
)  # fmt: skip
def test_row_25_odd_names_work_or_are_refused_escaped(
    tree: Path, capsys: pytest.CaptureFixture[str], frame: str
) -> None:
    for path in sorted(tree.rglob("MAP_1_point2/000050*")):
        path.rename(path.with_name(path.name.replace("000050", frame)))
    code, err = prepare(capsys, tree)
    assert code == (3 if "\udcff" in frame else 0)
    if code == 0:
        ids = {scene.id for scene in manifests.read(tree, "deliver").scenes}
        assert any(name.endswith(f"/{frame}") for name in ids) and len(ids) == 7
        lines = (tree / "memorysam" / "deliver" / "scenes.jsonl").read_text().splitlines()
        assert len(lines) == 7
    else:
        assert "\\udcff" in err and "is not valid UTF-8" in err


def test_row_26_one_name_in_every_folder_is_a_scene_each(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(capsys, tree)[0] == 0
    ids = [scene.id for scene in manifests.read(tree, "deliver").scenes]
    assert len(ids) == len(set(ids)) == 7
    assert {name.rpartition("/")[2] for name in ids} == {"000050"}


def test_an_output_that_cannot_be_written_is_told_first(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "memorysam").write_text("a file in the way")
    code, err = prepare(capsys, tree)
    assert code == 6 and f"{tree}/memorysam" in err


def test_row_6_a_bomb_is_refused_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(make_zip({"zeros": bytes(20_000_000)}))
    script = (
        "import sys; from memorysam_cli.app import run; "
        "code = run(['prepare', 'deliver', sys.argv[1]]); "
        "print(code, sorted({'torch', 'cv2', 'numpy'} & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.zip")], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "3 []"


def test_row_12_what_was_seen_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"x")
    code, err = prepare(capsys, tmp_path)
    assert code == 3 and "(saw pictures/a.png; looked for img/<condition>/" in err


def test_row_16_a_label_keeps_to_the_limit_too(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / LABEL).write_bytes(png(60000, 60000, color=0))
    code, err = prepare(capsys, tree)
    assert code == 3 and f"{LABEL}: 60000 x 60000 = 3,600 Mpx is more than the 100 Mpx allowed" in err
    code, err = prepare(capsys, tree, "--max-pixels", "1583")
    assert code == 3 and "36 x 44 = 0.001584 Mpx is more than the 0.001583 Mpx allowed" in err


def test_a_manifest_edited_by_hand_is_kept_when_it_is_replaced(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tree / "memorysam" / "deliver"
    assert run(["prepare", "deliver", str(tree)]) == 0
    edited = (place / "dataset.json").read_text().replace('"bilinear"', '"nearest"', 1)
    (place / "dataset.json").write_text(edited)
    assert run(["prepare", "manifest", str(tree), "deliver"]) == 0
    assert sorted(path.name for path in place.iterdir()) == ["checked.jsonl", "dataset.json", "scenes.jsonl"]
    capsys.readouterr()
    assert run(["prepare", "deliver", str(tree), "--json"]) == 0
    said = capsys.readouterr()
    line = f"{place}/dataset.json: modalities.img.interpolation had other values before; the earlier one is kept as"
    assert any(text.startswith(line) for text in json.loads(said.out)["warnings"]) and line in said.err
    assert json.loads((place / "dataset.json.bak").read_text())["modalities"][0]["interpolation"] == "nearest"
