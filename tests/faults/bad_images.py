"""Rows 14 to 26: pictures and labels that must be right, refused, or left out by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from memorysam_cli.storage import images
from tests.commands.test_bad_data import ANIMATION, PICTURES, encoded, picture, png, saved, turned
from tests.faults.bad_archives import KEPT, SCENE, deliver
from tests.faults.bad_inputs import Arguments, Case, Place

PREDICT = ("predict", "photos", "--map", "img=rgb", "--workers", "0")
PREDICT_DATA = ("predict", "data", "--workers", "0", "--on-error", "skip")
ACCEPT = ("prepare", "manifest", "data", "tiny")
EVALUATE = ("evaluate", "--workers", "0")
TRAIN = ("train", "-r", "tiny.yaml", "--out", "runs/new")
RESULTS = ("masks", "runs/small/evaluate", "runs/new", "runs/latest", "runs/.begun", "data/memorysam")
RGB, LABEL = f"img/{SCENE}_rgb_front.png", f"semantic/{SCENE}_semantic_front.png"
WEIGHTS = ("runs/latest", "runs/small/recipe.yaml", "runs/small/checkpoints/best.safetensors")
PHOTO = "photos/kitchen/a/rgb.png"
OTHER = "masks/masks/cellar/a.png"
VALIDATED, TRAINED = "fog/val/a/000002", "rain/train/a/000001"
"""Scenes of the data set ``tiny``."""


def spoilt(spoil: Callable[[Path], object], *arguments: str) -> Callable[[Place], Arguments]:
    """A command on good data, after something happened to them."""

    def make(place: Place) -> Arguments:
        place.take("data", "photos", "tiny.yaml", *(("runs",) if "--resume" in arguments else WEIGHTS))
        spoil(place.here)
        return arguments

    return make


def put(name: str, data: bytes) -> Callable[[Path], object]:
    """Other bytes in a file's place."""
    return lambda folder: (folder / name).write_bytes(data)


def photo(name: str, data: bytes) -> Callable[[Path], object]:
    """Other bytes in a photo's place, of one of two scenes; the suffix is that of ``name``."""

    def spoil(here: Path) -> None:
        (here / PHOTO).unlink()
        (here / PHOTO).with_name(name).write_bytes(data)

    return spoil


def of_size(height: int, width: int) -> Callable[[Path], object]:
    """Both sensors of a scene."""

    def spoil(here: Path) -> None:
        images.write_png(here / PHOTO, np.ones((height, width, 3), np.uint8))
        images.write_png(here / "photos/kitchen/a/depth.png", np.ones((height, width), np.uint16))

    return spoil


def folder_for_picture(folder: Path) -> None:
    (folder / RGB).unlink()
    (folder / RGB).mkdir()


def stored(name: str, array: np.ndarray) -> Callable[[Path], object]:
    """Another array in a picture's place."""
    return lambda folder: images.write_png(folder / name, array)


def renamed(folder: Path) -> None:
    """A scene's files get a name of bytes that are no UTF-8."""
    for path in sorted(folder.rglob("MAP_1_point2/000050*")):
        path.rename(path.with_name(path.name.replace("000050", os.fsdecode(b"\xff50"))))


def all_ignored(here: Path) -> None:
    for path in (here / "data/tiny/label").rglob("*.png"):
        images.write_png(path, np.full_like(images.read(path), 255))


def one_ignored(here: Path) -> None:
    path = here / f"data/tiny/label/{TRAINED}.png"
    images.write_png(path, np.full_like(images.read(path), 255))


def wrong_value(here: Path) -> None:
    path = here / f"data/tiny/label/{VALIDATED}.png"
    label = images.read(path).reshape(97, 131)
    label[4, 5:7] = 4
    images.write_png(path, label)


def gone(name: str) -> Callable[[Path], object]:
    return lambda here: (here / name).unlink()


def named(name: str) -> Callable[[Path], object]:
    return lambda here: (here / "photos/kitchen/a").rename(here / "photos/kitchen" / name)


def same_in_five(here: Path) -> None:
    for condition in ("cloud", "fog", "night", "rain", "sun"):
        for kind in ("rgb", "depth"):
            target = here / "photos" / condition / "000001" / f"{kind}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((here / f"photos/kitchen/a/{kind}.png").read_bytes())


def two_cases(here: Path) -> None:
    """Two scenes whose masks a disk that ignores case would put into one file."""
    (here / "photos/kitchen/A").mkdir()
    for kind in ("rgb", "depth"):
        (here / f"photos/kitchen/A/{kind}.png").write_bytes((here / f"photos/kitchen/a/{kind}.png").read_bytes())


NOISE = np.random.Generator(np.random.PCG64(5)).integers(0, 256, (41, 57, 3), dtype=np.uint8)
JPEG = encoded(".jpg", NOISE)
CUT = JPEG[: len(JPEG) * 6 // 10]
TRUNCATED = ("truncated JPEG", f"{len(CUT):,} bytes")
HUGE = ("3,600 Mpx", "100 Mpx", "cut it")
NAN = saved(np.where(np.arange(41 * 57).reshape(41, 57) == 60, np.nan, 1.0).astype(np.float32))

HOLES = saved(np.where(np.arange(36 * 44).reshape(36, 44) == 60, np.nan, 1.0).astype(np.float32))
"""A picture of the size of DELIVER's small ones, with one pixel that is not a number."""


def depth(data: bytes) -> Callable[[Path], object]:
    """A depth array in place of the kitchen's depth image."""

    def spoil(here: Path) -> None:
        (here / "photos/kitchen/a/depth.png").unlink()
        (here / "photos/kitchen/a/depth.npy").write_bytes(data)

    return spoil


def prepared(row: int, name: str, spoil: Callable[[Path], object], *said: str, code: int = 3) -> Case:
    """``prepare`` on a folder that something happened to; it answers with what it found, good or bad."""
    return Case(row, f"{name}, prepare", deliver(spoil), code, said=said, outputs=KEPT, answers=True)


def predicted(row: int, name: str, spoil: Callable[[Path], object], *words: str, where: str) -> list[Case]:
    """A scene that ends the prediction, and the same one left out while the other scene is done."""
    stopped = spoilt(spoil, *PREDICT)
    skipped = spoilt(spoil, *PREDICT, "--on-error", "skip")
    left_out = ("1 of 2 scenes were left out", "predictions.jsonl")
    return [
        Case(
            row, f"{name}, predict", stopped, 3, (where, *words, "--on-error skip"), outputs=RESULTS, recorded="masks"
        ),
        Case(row, f"{name}, skip", skipped, 4, left_out, outputs=RESULTS, answers=True),
    ]


def evaluated(row: int, name: str, spoil: Callable[[Path], object], *words: str, code: int = 3) -> Case:
    """``evaluate`` on a data set that was good when it was prepared."""
    make = spoilt(spoil, *EVALUATE)
    return Case(row, f"{name}, evaluate", make, code, words, outputs=RESULTS, answers=code == 0)


def trained(row: int, name: str, spoil: Callable[[Path], object], *words: str) -> Case:
    """``train`` on a data set that was good when it was prepared."""
    make = spoilt(spoil, *TRAIN)
    return Case(row, f"{name}, train", make, 3, words, outputs=RESULTS, recorded="runs/new")


def works(row: int, name: str, spoil: Callable[[Path], object], *arguments: str) -> Case:
    """What looks odd, and is not bad."""
    return Case(row, f"{name}, {arguments[0]}", spoilt(spoil, *arguments), 0, outputs=RESULTS, answers=True)


CUT_PNG = encoded(".png", NOISE)[:-30]
SMALL_LABEL, WIDE = np.ones((36, 43), np.uint8), np.ones((97, 130), np.uint8)
LEGAL = "label value 300 in 1,584 pixels, first at (row 0, column 0); legal are 1..25"
CASES = [
    prepared(14, "cut JPEG", put(RGB, CUT), RGB, *TRUNCATED),
    *predicted(14, "cut JPEG", photo("rgb.jpg", CUT), *TRUNCATED, where="kitchen/a/rgb.jpg"),
    evaluated(14, "cut PNG", put(f"data/tiny/img/{VALIDATED}.png", CUT_PNG), VALIDATED, "truncated PNG"),
    trained(14, "cut PNG", put(f"data/tiny/img/{TRAINED}.png", CUT_PNG), TRAINED, "truncated PNG"),
    prepared(15, "empty", put(RGB, b""), RGB, "empty (0 bytes)"),
    prepared(15, "a folder", folder_for_picture, RGB),
    *predicted(15, "text", photo("rgb.png", b"no image"), "not PNG, JPEG, TIFF, BMP", where="kitchen/a/rgb.png"),
    prepared(16, "huge", put(RGB, png(60000, 60000)), RGB, *HUGE[:2]),
    *predicted(16, "huge", photo("rgb.png", png(60000, 60000)), *HUGE, where="kitchen/a/rgb.png"),
    prepared(17, "no pixels", put(RGB, png(0, 10)), RGB, "has no pixels"),
    works(17, "one pixel", of_size(1, 1), *PREDICT),
    works(17, "one row", of_size(1, 5000), *PREDICT),
    prepared(18, "CMYK", put(RGB, picture("CMYK", "JPEG")), RGB, "a CMYK JPEG"),
    *predicted(18, "animated", photo("rgb.png", png(41, 57, extra=ANIMATION)), "an animated PNG", where="rgb.png"),
    prepared(18, "grey and turned", put(RGB, picture("L", "JPEG", exif=turned())), "EXIF rotation", code=0),
    prepared(18, "with alpha", put(RGB, picture("RGBA", "PNG")), "4 channels", code=0),
    prepared(19, "300", put(LABEL, saved(np.full((36, 44), 300, np.int32))), f"{LABEL}: {LEGAL}"),
    evaluated(19, "the number of classes", wrong_value, VALIDATED, "value 4 in 2 pixels", "(row 4, column 5)", "0..3"),
    prepared(20, "color", put(LABEL, encoded(".png", cv2.resize(NOISE, (44, 36)))), LABEL, "one channel, lossless"),
    evaluated(20, "JPEG", put(f"data/tiny/label/{VALIDATED}.png", encoded(".jpg", NOISE[..., 0])), "lossless"),
    prepared(21, "all ignored", stored(LABEL, np.zeros((36, 44), np.uint8)), f"{LABEL} has no class at all", code=0),
    works(21, "all ignored", all_ignored, *EVALUATE, "--json"),
    Case(21, "all ignored, train", spoilt(all_ignored, *TRAIN), 3, ("no labeled pixel in 'train'",), outputs=RESULTS),
    works(21, "one ignored", one_ignored, *TRAIN, "--set", "train.epochs=1"),
    prepared(22, "label of another size", stored(LABEL, SMALL_LABEL), f"{SCENE}: sizes differ", "label 36×43"),
    evaluated(22, "label of another size", stored(f"data/tiny/label/{VALIDATED}.png", WIDE), "97", "130", "131"),
    trained(22, "label of another size", stored(f"data/tiny/label/{TRAINED}.png", SMALL_LABEL), TRAINED, "36", "43"),
    prepared(23, "NaN", put(RGB, HOLES), "'img': 1 of ", "are no measurement (NaN, infinity)", code=0),
    works(23, "NaN", depth(NAN), *PREDICT),
    *predicted(23, "objects", depth(PICTURES["23 objects"][0]), "contains Python objects", where="kitchen/a/depth.npy"),
    Case(
        24, "vanished, prepare", spoilt(gone(f"data/tiny/depth/{VALIDATED}.png"), *ACCEPT), 3,
        said=(f"depth/{VALIDATED}.png",), outputs=RESULTS, answers=True,
    ),
    evaluated(24, "vanished", gone(f"data/tiny/depth/{VALIDATED}.png"), f"depth/{VALIDATED}.png"),
    Case(
        24, "vanished, predict", spoilt(gone(f"data/tiny/depth/{VALIDATED}.png"), *PREDICT_DATA), 4,
        words=("1 of 7 scenes",), outputs=RESULTS, answers=True,
    ),
    prepared(25, "bytes that are no text", renamed, "\\udcff", "is not valid UTF-8"),
    works(25, "newline and shell", named("a b\n$(touch evil) ä"), *PREDICT),
    works(25, "250 bytes", named("n" * 250), *PREDICT),
    Case(
        26, "names that case tells apart, prepare",
        spoilt(two_cases, "prepare", "folder", "photos", "--modality", "img=**/rgb.png", "--kind", "img=rgb"), 3,
        words=("'kitchen/A' and 'kitchen/a'",), outputs=("photos/memorysam",), answers=True,
    ),
    Case(
        26, "names that case tells apart", spoilt(two_cases, *PREDICT), 3, words=("'kitchen/A' and 'kitchen/a'",)
    ),
    works(26, "one name in five folders", same_in_five, *PREDICT),
]  # fmt: skip
