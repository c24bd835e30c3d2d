"""``memorysam convert``: what goes out to a tool comes back bit for bit; what strangers wrote is right or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from memorysam_cli.data.own import mask_formats
from memorysam_cli.data.own.annotated import Request, to_brush
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images

from .trained import Program

NAMES = ["road", 'a <b> & "c"', "sky", "never seen"]
COLORS = [[128, 64, 128], [0, 0, 0], [70, 130, 180], [1, 2, 3]]
TOOLS = sorted(set(mask_formats.FORMATS) - {"masks"})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def maps() -> dict[str, Any]:
    """Class maps with ignored pixels; one is of one class, one has none at all."""
    drawn = np.random.default_rng(5)
    noise = np.array([0, 1, 2, 255], np.uint8)[drawn.integers(0, 4, (9, 14))]
    return {
        "day/000": noise,
        "day/001": np.kron(noise[:3, :5], np.ones((40, 60), np.uint8)),
        "night/000": np.full((4, 3), 2, np.uint8),
        "night/001": np.full((5, 6), 255, np.uint8),
    }


def write_masks(place: str, found: dict[str, Any], *, names: list[str] = NAMES, colors: Any = COLORS) -> None:
    for name, values in found.items():
        images.write_png(Path(place, "masks", f"{name}.png"), values)
    entries = [{"id": n, "name": name, "color": colors[n]} for n, name in enumerate(names)]
    Path(place, "classes.json").write_text(json.dumps(entries))


def read_masks(place: str) -> dict[str, Any]:
    top = Path(place, "masks")
    return {p.relative_to(top).with_suffix("").as_posix(): images.read(p) for p in sorted(top.rglob("*.png"))}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.uint8 and found[name].tolist() == values.tolist(), name


def out_of(form: str) -> str:
    return "there.json" if mask_formats.FORMATS[form].is_file else "there"


@pytest.mark.parametrize("names", [NAMES, ["road", "background", "sky", "x"]], ids=["plain", "a class background"])
@pytest.mark.parametrize("form", TOOLS)
def test_masks_come_back_from_every_tool_bit_for_bit(memorysam: Program, form: str, names: list[str]) -> None:
    write_masks("here", maps(), names=names)
    there = memorysam("convert", "here", "--to", form, "--out", out_of(form), "--json")
    assert there.code == 0, there.err
    back = memorysam("convert", out_of(form), "--to", "masks", "--out", "back", "--json")
    assert back.code == 0, back.err
    answer = json.loads(back.out)
    assert answer["from"] == form, "told by its files"
    assert_same(read_masks("back"), maps())
    assert [entry["name"] for entry in json.loads(Path("back/classes.json").read_text())] == names == answer["classes"]
    unknown = sum(int((values == 255).sum()) for values in maps().values())
    total = sum(values.size for values in maps().values())
    assert answer["pixels"] == {"known": total - unknown, "unknown": unknown, "overlapping": 0}
    if form in ("coco", "label-studio"):
        colors = [entry["color"] for entry in json.loads(Path("back/classes.json").read_text())]
        assert colors == COLORS


@pytest.mark.parametrize("form", TOOLS)
def test_nothing_that_exists_is_replaced_and_a_failure_leaves_nothing(memorysam: Program, form: str) -> None:
    write_masks("here", maps())
    there = Path(out_of(form))
    there.write_text("mine")
    ended = memorysam("convert", "here", "--to", form, "--out", there)
    assert ended.code == 2 and "exists already" in ended.err and there.read_text() == "mine"
    there.unlink()
    images.write_png(Path("here/masks/z.png"), np.full((2, 2), 9, np.uint8))  # read last, and no class
    ended = memorysam("convert", "here", "--to", form, "--out", there)
    assert ended.code == 3 and "z.png" in ended.err and len(ended.err.splitlines()) == 1
    assert sorted(p.name for p in Path().iterdir()) == ["here"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0.11 and NumPy 2
def test_pycocotools_reads_what_is_written(memorysam: Program, capsys: pytest.CaptureFixture[str]) -> None:
    write_masks("here", maps())
    assert memorysam("convert", "here", "--to", "coco", "--out", "there.json").code == 0
    found = COCO("there.json")
    capsys.readouterr()
    assert [found.cats[number]["name"] for number in (1, 2, 3, 4)] == NAMES
    for entry in found.imgs.values():
        expected = maps()[entry["file_name"].removesuffix(".png")]
        again = np.full(expected.shape, 255, np.uint8)
        for annotation in found.imgToAnns[entry["id"]]:
            mask = found.annToMask(annotation)
            rows, columns = np.nonzero(mask)
            assert annotation["area"] == mask.sum()
            x, y, width, height = annotation["bbox"]
            assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
            again[mask == 1] = annotation["category_id"] - 1
        assert (again == expected).all()


def test_a_prediction_goes_by_its_photos_names(memorysam: Program) -> None:
    write_masks("here", {"7": np.zeros((2, 2), np.uint8)})
    line = {
        "id": "7",
        "status": "done",
        "mask": "masks/7.png",
        "inputs": {"depth": ["d/7.npy"], "img": ["rgb/7_a.jpg"]},
    }
    Path("here/predictions.jsonl").write_text(json.dumps(line) + "\n")
    assert memorysam("convert", "here", "--to", "coco", "--out", "a.json").code == 0
    assert json.loads(Path("a.json").read_text())["images"][0]["file_name"] == "rgb/7_a.jpg"
    assert memorysam("convert", "here", "--to", "cvat", "--out", "c").code == 0
    assert Path("c/ImageSets/Segmentation/default.txt").read_text() == "rgb/7_a\n"
    assert images.read(Path("c/SegmentationClass/rgb/7_a.png")).tolist() == [[COLORS[0]] * 2] * 2


def test_the_masks_of_a_prediction_are_the_prediction(memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    write_masks("here", maps())
    assert memorysam("convert", "here", "--to", "coco", "--out", "whole.json").code == 0
    ended = memorysam("convert", "here/masks", "--to", "coco", "--out", "inner.json")
    assert ended.code == 0, ended.err
    monkeypatch.chdir("here/masks")
    assert memorysam("convert", ".", "--to", "coco", "--out", "../../dot.json").code == 0
    assert Path("../../inner.json").read_bytes() == Path("../../whole.json").read_bytes()
    assert Path("../../dot.json").read_bytes() == Path("../../whole.json").read_bytes()
    Path("../classes.json").unlink()
    ended = memorysam("convert", ".", "--to", "coco", "--out", "../../none.json")
    assert ended.code == 2 and "give --classes FILE" in ended.err


def test_pictures_are_found_by_their_names_and_copied_for_fiftyone(memorysam: Program) -> None:
    write_masks("here", maps())
    for name in maps():
        images.write_png(Path("photos", f"{name}.PNG"), np.zeros((2, 2, 3), np.uint8))
    ended = memorysam("convert", "here", "--to", "fiftyone", "--out", "f", "--images", "photos")
    assert ended.code == 0, ended.err
    assert Path("f/data/day/000.PNG").read_bytes() == Path("photos/day/000.PNG").read_bytes()
    assert json.loads(Path("f/mask_targets.json").read_text()) == {str(n): name for n, name in enumerate(NAMES, 1)}
    # 0 is what FiftyOne does not show: classes are counted from 1.
    assert images.read(Path("f/labels/night/000.png")).tolist() == [[3] * 3] * 4
    Path("photos/night/001.PNG").unlink()
    ended = memorysam("convert", "here", "--to", "fiftyone", "--out", "g", "--images", "photos")
    assert ended.code == 3 and "has no picture of 1 of 4 masks (night/001)" in ended.err


def coco(images_: list[Any], annotations: list[Any], categories: list[Any]) -> str:
    Path("a.json").write_text(json.dumps({"images": images_, "annotations": annotations, "categories": categories}))
    return "a.json"


CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "road"}]
IMAGE = {"id": 1, "file_name": "x.jpg", "height": 4, "width": 4}


def whole(category: int, *, rows: int, image: int = 1) -> dict[str, Any]:
    """A polygon over the first rows of a picture of four columns."""
    return {
        "id": category,
        "image_id": image,
        "category_id": category,
        "segmentation": [[0, 0, 4, 0, 4, rows, 0, rows]],
    }


def test_classes_go_by_the_order_of_ids_and_later_annotations_cover_earlier_ones(memorysam: Program) -> None:
    box = {"id": 9, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}
    place = coco([IMAGE], [whole(7, rows=2), box, whole(3, rows=1)], CATEGORIES)
    ended = memorysam("convert", place, "--to", "masks", "--out", "m", "--json")
    assert ended.code == 0, ended.err
    # road (3) is class 0, car (7) class 1; road comes last and wins the first row; two rows are nobody's.
    assert read_masks("m")["x"].tolist() == [[0] * 4, [1] * 4, [255] * 4, [255] * 4]
    answer = json.loads(ended.out)
    assert answer["classes"] == ["road", "car"] and answer["pixels"] == {"known": 8, "unknown": 8, "overlapping": 4}
    said = "\n".join(answer["warnings"])
    assert (
        "1 annotation (whole or in part) without an area" in said
        and "4 pixels are in annotations of two" in said
        and "50 % of the" in said
    )


def test_classes_and_background_as_the_user_has_them(memorysam: Program) -> None:
    Path("c.txt").write_text("car\nroad\nvoid\n")
    place = coco([IMAGE], [whole(7, rows=2)], CATEGORIES)
    for background, value in (("void", 2), ("ground", 3)):
        more = ["--classes", "c.txt", "--background", background]
        assert memorysam("convert", place, "--to", "masks", "--out", background, *more).code == 0
        assert read_masks(background)["x"].tolist() == [[0] * 4] * 2 + [[value] * 4] * 2
    assert [entry["name"] for entry in json.loads(Path("ground/classes.json").read_text())][-1] == "ground"
    Path("c.txt").write_text("road\n")
    ended = memorysam("convert", place, "--to", "masks", "--out", "m", "--classes", "c.txt")
    assert ended.code == 3 and "the class 'car' is none of those listed" in ended.err


def test_panoptic_segments_become_classes(memorysam: Program) -> None:
    # Segment 256 is green 1, segment 1 red 1; nothing is 0.
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0], picture[0, 1] = (0, 1, 0), (1, 0, 0)
    images.write_png(Path("a/x.png"), picture)
    segments = [{"id": 256, "category_id": 7}, {"id": 1, "category_id": 3}]
    annotation = {"image_id": 1, "file_name": "x.png", "segments_info": segments}
    size = {"id": 1, "file_name": "x.jpg", "height": 2, "width": 2}
    place = coco([size, {**size, "id": 2, "file_name": "y.jpg"}], [annotation], CATEGORIES)
    ended = memorysam("convert", place, "--to", "masks", "--out", "m", "--json")
    assert ended.code == 0, ended.err
    assert read_masks("m")["x"].tolist() == [[1, 0], [255, 255]] and json.loads(ended.out)["left_out"] == ["y.jpg"]
    for change, reason in (
        ({"file_name": "../x.png"}, "leads out of"),
        ({"segments_info": segments[:1]}, "the color 1,0,0 is not a segment"),
        ({"segments_info": [{"id": 0, "category_id": 7}]}, "segment 0 occurs twice, or is not a color"),
        ({"segments_info": 3}, "'segments_info' must be a list"),
    ):
        place = coco([size], [{**annotation, **change}], CATEGORIES)
        refuse(place, reason)
    refuse(coco([{**size, "height": 3}], [annotation], CATEGORIES), "export both again")
    refuse(coco([size], [annotation, annotation], CATEGORIES), "another annotation is of the same image")


def refuse(place: str | Path, reason: str) -> None:
    """As the command does it, which takes ten times as long: a DataError is one line and exit code 3."""
    source, request = Path(place), Request()
    with pytest.raises(DataError) as refused:
        form = mask_formats.recognize(source)
        mask_formats.write(
            mask_formats.read(source, form, request), "masks", Path("refused"), request, advance=lambda: None
        )
    assert reason in str(refused.value) and len(str(refused.value).splitlines()) == 1, refused.value
    assert not Path("refused").exists() and not list(Path().glob(".refused*"))


HOSTILE_COCO: dict[str, tuple[Callable[[], str], str]] = {
    "an id twice": (lambda: coco([IMAGE, {**IMAGE, "file_name": "y.jpg"}], [], CATEGORIES), "has the id 1 already"),
    "a name twice": (lambda: coco([IMAGE, {**IMAGE, "id": 2}], [], CATEGORIES), "would share an output file"),
    "one but for case": (
        lambda: coco([IMAGE, {**IMAGE, "id": 2, "file_name": "X.png"}], [], CATEGORIES), "would share an output file"
    ),
    "a way out": (lambda: coco([{**IMAGE, "file_name": "../../x.jpg"}], [], CATEGORIES), "is not a name for a picture"),
    "a root": (lambda: coco([{**IMAGE, "file_name": "/etc/x.jpg"}], [], CATEGORIES), "is not a name for a picture"),
    "two lines": (lambda: coco([{**IMAGE, "file_name": "a\nb.jpg"}], [], CATEGORIES), "is not a name for a picture"),
    "no name": (lambda: coco([{**IMAGE, "file_name": ".jpg"}], [], CATEGORIES), "is not a name for a picture"),
    "huge": (lambda: coco([{**IMAGE, "height": 10**9, "width": 10**9}], [], CATEGORIES), "are allowed"),
    "no height": (lambda: coco([{**IMAGE, "height": 0}], [], CATEGORIES), "are allowed"),
    "a fraction": (lambda: coco([{**IMAGE, "height": 4.5}], [], CATEGORIES), "'height' must be a whole number"),
    "truth": (lambda: coco([{**IMAGE, "id": True}], [], CATEGORIES), "'id' must be a whole number or a text"),
    "no picture": (lambda: coco([], [], CATEGORIES), "none of its 0 pictures"),
    "of nobody": (lambda: coco([IMAGE], [whole(7, rows=1, image=2)], CATEGORIES), "no image has the id 2"),
    "no class": (lambda: coco([IMAGE], [whole(8, rows=1)], CATEGORIES), "no category has the id 8 (known: 3, 7)"),
    "no classes": (lambda: coco([IMAGE], [], []), "0 classes; from 1 to 255"),
    "256 classes": (lambda: coco([IMAGE], [], [{"id": n, "name": f"c{n}"} for n in range(256)]), "256 classes; from 1"),
    "a class twice": (lambda: coco([IMAGE], [], [CATEGORIES[0], {"id": 1, "name": "car"}]), "two classes are named"),
    "a class's id twice": (lambda: coco([IMAGE], [], [CATEGORIES[0], {"id": 7, "name": "b"}]), "has the id 7 already"),
    "annotations of text": (lambda: coco([IMAGE], ["x"], CATEGORIES), "'image_id' must be"),
    "pictures of text": (lambda: coco(["x"], [], CATEGORIES), "'id' must be a whole number or a text"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_COCO)
def test_hostile_files_of_coco_get_one_line(case: str) -> None:
    make, reason = HOSTILE_COCO[case]
    refuse(make(), reason)


def tasks(*entries: Any) -> str:
    Path("t.json").write_text(json.dumps(entries))
    return "t.json"


def result(label: str, mask: Any, **changes: Any) -> dict[str, Any]:
    value = {"format": "rle", "rle": to_brush(np.array(mask, np.bool_)), "brushlabels": [label]}
    return {"type": "brushlabels", "original_width": 2, "original_height": 2, "value": value, **changes}


def task(*results: Any, image: str = "/data/upload/12/0a1b2c3d-000001.png") -> dict[str, Any]:
    return {"data": {"image": image}, "annotations": [{"result": list(results)}]}


ALL, TOP = [[1, 1], [1, 1]], [[1, 1], [0, 0]]
UPLOADED = {"image": "/data/upload/12/0a1b2c3d-000001.png"}


def test_the_last_annotation_of_a_task_counts_and_canceled_ones_do_not(memorysam: Program) -> None:
    square = {"type": "rectanglelabels", "value": {"rectanglelabels": ["car"]}}
    half = {"type": "polygonlabels", "original_width": 2, "original_height": 2,
            "value": {"points": [[0, 0], [100, 0], [100, 50], [0, 50]], "polygonlabels": ["road"]}}  # fmt: skip
    place = tasks(
        {"data": UPLOADED, "annotations": [
            {"result": [result("sky", ALL)]}, {"result": [result("car", ALL), half, square]},
            {"result": [result("sky", ALL)], "was_cancelled": True},
        ]},
        {"data": {"image": "/data/local-files/?d=a%20b/2.png"}, "annotations": [],
         "predictions": [{"result": [result("car", TOP)]}]},
        {"data": {"image": "s3://bucket/c/3.png"}, "annotations": []},
    )  # fmt: skip
    ended = memorysam("convert", place, "--to", "masks", "--out", "m", "--json")
    assert ended.code == 0, ended.err
    answer = json.loads(ended.out)
    assert answer["classes"] == ["car", "road"] and answer["left_out"] == ["c/3.png"], "by name: there is no interface"
    assert_same(read_masks("m"), {
        "000001": np.array([[1, 1], [0, 0]], np.uint8), "a b/2": np.array([[0, 0], [255, 255]], np.uint8),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (3, "'data' must be an object"),
        ({"data": {}}, "its data names no picture"),
        ({"data": {"image": "http://[x/1.png"}}, "is not an address"),
        (task(result("a", ALL), image="/data/local-files/?d=../../x.png"), "is not a name"),
        ({"data": UPLOADED, "annotations": 3}, "must be a list of objects"),
        ({"data": UPLOADED, "annotations": [{"result": 3}]}, "'result' must be a list"),
        (task(result("a", ALL, original_width=3)), "is not a brush of 2 x 3"),
        (task(result("a", ALL), result("a", ALL, original_width=3)), "two sizes"),
        (task(result("a", ALL, original_width=10**9)), "are allowed"),
        (task(result("a", ALL, image_rotation=90)), "was turned"),
        (task(result("a", ALL, value={"brushlabels": ["a", "b"]})), "one label"),
        (task(result("a", ALL, value={"brushlabels": ["a"]})), "'rle' must be a list"),
    ],
)  # fmt: skip
def test_hostile_tasks_get_one_line(entry: Any, reason: str) -> None:
    refuse(tasks(entry), reason)


def test_labels_of_cvat_are_read_by_their_colors(memorysam: Program) -> None:
    Path("c/SegmentationClass").mkdir(parents=True)
    Path("c/ImageSets/Segmentation").mkdir(parents=True)
    Path("c/ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    Path("c/labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:10,20,30:x,y:\n")
    images.write_png(Path("c/SegmentationClass/a.png"), np.array([[[0, 0, 0], [10, 20, 30]]], np.uint8))
    ended = memorysam("convert", "c", "--to", "masks", "--out", "m", "--json")
    assert ended.code == 0 and json.loads(ended.out)["left_out"] == ["b"], ended.err
    assert read_masks("m")["a"].tolist() == [[255, 0]]
    assert memorysam("convert", "c", "--to", "masks", "--out", "n", "--background", "background").code == 0
    assert read_masks("n")["a"].tolist() == [[1, 0]]
    images.write_png(Path("c/SegmentationClass/a.png"), np.array([[0, 1]], np.uint8))  # one channel: the list's numbers
    assert memorysam("convert", "c", "--to", "masks", "--out", "o").code == 0
    assert read_masks("o")["a"].tolist() == [[255, 0]]
    for values, reason in (([[0, 2]], "a.png"), ([[[1, 1, 1]]], "the color 1,1,1 is not a label")):
        images.write_png(Path("c/SegmentationClass/a.png"), np.array(values, np.uint8))
        refuse("c", reason)
    for text, reason in (
        ("car:1,2::", "labelmap.txt:1: must be name:red,green,blue"),
        ("car:1,2,300::", "labelmap.txt:1: must be name:red,green,blue"),
        ("car:1,2,3::\nroad:1,2,3::", "labelmap.txt:2: another label"),
        ("background:0,0,0::", "0 classes"),
    ):
        Path("c/labelmap.txt").write_text(text)
        refuse("c", reason)


def test_targets_of_fiftyone_are_values_and_names(memorysam: Program) -> None:
    images.write_png(Path("f/labels/a.png"), np.array([[0, 5, 9]], np.uint8))
    Path("f/mask_targets.json").write_text('{"9": "road", "5": "car"}')
    assert memorysam("convert", "f", "--to", "masks", "--out", "m").code == 0
    assert read_masks("m")["a"].tolist() == [[255, 0, 1]], "by their values' order; 0 is nothing"
    for text, reason in (
        ('{"5": "car"}', "a.png"),
        ('{"x": "car"}', "must be a value and its class"),
        ("[]", "f/mask"),
    ):
        Path("f/mask_targets.json").write_text(text)
        refuse("f", reason)
    Path("f/mask_targets.json").unlink()
    Path("c.txt").write_text("5: car\n9: road\n")
    assert (
        memorysam("convert", "f", "--from", "fiftyone", "--classes", "c.txt", "--to", "masks", "--out", "n").code == 0
    )
    assert read_masks("n")["a"].tolist() == [[255, 0, 1]]


@pytest.mark.parametrize(
    ("words", "reason", "code"),
    [
        (["here", "--to", "coco", "--out", "x"], "must end in .json", 2),
        (["here", "--to", "cvat", "--out", "x.json"], "must be a folder", 2),
        (["here", "--to", "cvat", "--out", "x", "--prefix", "s3://"], "is for --to label-studio", 2),
        (["nosuch", "--to", "cvat", "--out", "x"], "nosuch: does not exist", 3),
        (["a.zip", "--to", "masks", "--out", "x"], "unpack it first", 2),
        (["empty", "--to", "masks", "--out", "x"], "give --classes FILE", 2),
        (["here", "--to", "cvat", "--out", "x", "--from", "coco"], "not a file", 3),
        (["here", "--to", "coco", "--out", "x.json", "--classes", "nosuch"], "--classes nosuch: does not exist", 2),
        (["here", "--to", "masks", "--out", "x", "--classes", "odd.json"], "must be a list of objects", 2),
    ],
)
def test_wrong_lines_say_what_is_wrong(memorysam: Program, words: list[str], reason: str, code: int) -> None:
    write_masks("here", {"a": np.zeros((2, 2), np.uint8)})
    Path("a.zip").write_bytes(b"PK\x03\x04")
    Path("empty").mkdir()
    Path("odd.json").write_text('[{"id": 0, "name": "x", "color": [1, 2]}]')
    ended = memorysam("convert", *words)
    assert ended.code == code and reason in ended.err and len(ended.err.splitlines()) == 1, ended.err
    assert not Path("x").exists() and not Path("x.json").exists()


def test_prepare_folder_takes_what_comes_out(memorysam: Program) -> None:
    pictures = [{**IMAGE, "id": n, "file_name": f"{n}.png"} for n in range(6)]
    place = coco(pictures, [whole(7, rows=2, image=n) for n in range(6)], CATEGORIES)
    for n in range(6):
        images.write_png(Path("data/rgb", f"{n}.png"), np.full((4, 4, 3), 40 * n, np.uint8))
    assert memorysam("convert", place, "--to", "masks", "--out", "data/labels", "--background", "else").code == 0
    ended = memorysam(
        "prepare", "folder", "data", "-m", "rgb=rgb/*.png", "--labels", "labels/masks/*.png", "--classes",
        "data/labels/classes.json", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    pixels = [sum(column) for column in zip(*json.loads(ended.out)["pixels"].values(), strict=True)]
    assert pixels == [0, 48, 48, 0], "road nowhere, six cars of 8 pixels, the rest, nothing ignored"
