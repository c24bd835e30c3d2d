"""Rows 1 to 13: archives and folders that ``prepare`` must refuse, each a line of the table."""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.bad_inputs import Arguments, Case, Place
from tests.storage.hostile import HOSTILE, make_zip

SCENE = "cloud/train/MAP_1_point2/000050"
ROWS = {
    1: ("parent", "parent inside", "tar parent"),
    2: ("absolute", "drive", "backslash parent", "tar absolute"),
    3: ("same file", "double slash", "tar same"),
    4: ("case", "unicode form", "tar case"),
    5: ("symlink", "tar symlink", "tar hard link"),
    6: ("bomb", "overlap", "declared", "tar bomb", "tar pax bomb"),
    7: ("CRC", "tar header"),
    8: ("web page", "truncated", "empty file", "7z", "gzip truncated"),
    9: ("encrypted",),
}
"""Row of the table → keys of :data:`~tests.storage.hostile.HOSTILE`; the first is run as a process of its own."""


def hostile(key: str) -> Case:
    """One archive of the collection, which is all that the folder holds."""
    name, content, message = HOSTILE[key]

    def make(place: Place) -> Arguments:
        place.write(name, content())
        return ["prepare", "deliver", name]

    row = next(row for row, keys in ROWS.items() if key in keys)
    return Case(row, key, make, 3, words=(f"{name}: ", message))


def twins(place: Place) -> Arguments:
    """Two entries of exactly one name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, on what we mean to do
        place.write("x.zip", make_zip([("a/x.png", b"1"), ("a/x.png", b"2")]))
    return ["prepare", "deliver", "x.zip"]


def through_a_link(place: Place) -> Arguments:
    """The folder that the archive would go to is a link to what somebody needs."""
    place.write("precious/kept.txt", "mine")
    place.write("x.zip", make_zip({"kept.txt": b"theirs", "new.txt": b"theirs"}))
    (place.here / "x").symlink_to("precious", target_is_directory=True)
    return ["prepare", "deliver", "x.zip"]


def deliver(spoil: Callable[[Path], object], *options: str) -> Callable[[Place], Arguments]:
    """DELIVER's folder, after something happened to it."""

    def make(place: Place) -> Arguments:
        place.take("DELIVER")
        spoil(place.here / "DELIVER")
        return ["prepare", "deliver", "DELIVER", *options]

    return make


def incomplete(folder: Path) -> None:
    files = {kind: sorted((folder / kind).rglob("*.png")) for kind in ("img", "event", "semantic")}
    for path in (*files["event"][:3], files["img"][4], files["semantic"][5]):
        path.unlink()


def of_other_size(folder: Path) -> None:
    import numpy as np

    from memorysam_cli.storage import images

    path = folder / f"hha/{SCENE}_depth_front.png"
    images.write_png(path, np.ones((20, 30), np.uint8))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def of_something_else(folder: Path) -> None:
    empty(folder)
    (folder / "holidays").mkdir()
    (folder / "holidays" / "beach.png").write_bytes(b"x")


def foreign_target(place: Place) -> Arguments:
    place.take("DELIVER")
    with zipfile.ZipFile(place.here / "DELIVER.zip", "w") as archive:
        for path in sorted((place.here / "DELIVER").rglob("*.png")):
            archive.write(path, str(path.relative_to(place.here)))
    shutil.rmtree(place.here / "DELIVER")
    place.write("DELIVER/mine.txt", "mine")
    return ["prepare", "deliver", "DELIVER.zip"]


def foreign_out(*arguments: str) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        place.take("data", "photos", "tiny.yaml", "runs/latest", "runs/small/checkpoints/best.safetensors")
        place.write("mine/thesis.tex", "years of work")
        return [*arguments, "--out", "mine"]

    return make


COUNTS = ("missing event (3):", "missing img (1):", "missing label (1):")
KEPT = ("DELIVER/memorysam",)
"""What ``prepare`` writes, or remembers of its reading."""

CASES = [
    *(hostile(key) for keys in ROWS.values() for key in keys),
    Case(3, "one name twice", twins, 3, words=("'a/x.png'", "would become the same file")),
    Case(5, "target is a link", through_a_link, 3, words=("x: ", "symbolic link", "x.zip", "never followed")),
    Case(
        10, "incomplete", deliver(incomplete), 3, said=COUNTS, outputs=KEPT, words=("--drop-incomplete",), answers=True
    ),
    Case(
        10, "incomplete, left out", deliver(incomplete, "--drop-incomplete", "--json"), 4, said=COUNTS, outputs=KEPT,
        words=("dropped.jsonl",), answers=True,
    ),
    Case(
        11, "sizes differ", deliver(of_other_size), 3, said=(f"{SCENE}: sizes differ (img 36×44, depth 20×30,",),
        outputs=KEPT, answers=True,
    ),
    Case(12, "no scene", deliver(of_something_else), 3, words=("holidays/beach.png", "_rgb_front.png")),
    Case(12, "empty", deliver(empty), 3, words=("DELIVER", "_rgb_front.png")),
    Case(13, "foreign target", foreign_target, 2, words=("DELIVER: exists and was not unpacked from DELIVER.zip",)),
    Case(13, "foreign masks", foreign_out("predict", "photos", "--map", "img=rgb"), 2, words=("mine", "--overwrite")),
    Case(13, "foreign run", foreign_out("train", "-r", "tiny.yaml"), 2, words=("--out mine", "another folder")),
]  # fmt: skip
