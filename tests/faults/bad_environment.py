"""Rows 37, 38 and 43: a machine, or numbers, that let the program down. Rows 39 to 42 need company and are tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.bad_images import EVALUATE, PREDICT, RESULTS, TRAIN, spoilt
from tests.faults.bad_inputs import Arguments, Case, Place
from tests.faults.bad_weights import RESUME, RUN
from tests.storage.hostile import make_zip

PICTURES = (*PREDICT, "--overlay", "--color")


def large_archive(place: Place) -> Arguments:
    place.write("x.zip", make_zip({"a/small.txt": b"1", "b/large.bin": bytes(range(256)) * 400}))
    return ["prepare", "deliver", "x.zip"]


def nothing(here: Path) -> None:
    """All is well with the files."""


def one_step_short(here: Path) -> None:
    """The run has its last update still to do."""
    import shutil

    shutil.rmtree(max((here / "runs/small/checkpoints").glob("step-*")))


def in_the_way(here: Path) -> None:
    (here / "file").write_text("mine")


def into(row: int, name: str, out: str, *words: str) -> list[Case]:
    """Each command that has an output folder, sent to one that cannot be."""
    commands = {"predict": PREDICT, "evaluate": EVALUATE, "train": TRAIN[:-2]}
    return [
        Case(row, f"{name}, {command}", spoilt(in_the_way, *arguments, "--out", out), 6, words=words)
        for command, arguments in commands.items()
    ]


def full(name: str, make: Callable[[Place], Arguments], limit: int, *words: str, outputs: tuple[str, ...] = ()) -> Case:
    """A disk that has no room for one of the files."""
    return Case(37, f"disk full, {name}", make, 6, words=words, outputs=outputs, file_limit=limit)


LONG = "a/" * 2100
CASES = [
    full("unzip", large_archive, 50_000, "x: cannot write", "free"),
    full("predict", spoilt(nothing, *PICTURES), 4_000, "masks/", "cannot write", "needs", "free", outputs=RESULTS),
    full("train", spoilt(one_step_short, *RESUME), 400_000, "runs/small/", "cannot write", "needs", outputs=RUN),
    Case(38, "parent is a file, prepare", spoilt(in_the_way, "prepare", "synthetic", "file/below"), 6, words=("file",)),
    *into(38, "parent is a file", "file/below", "file"),
    *into(38, "path too long", LONG, "File name too long"),
    *into(38, "no such file system", "/proc/memorysam", "/proc/memorysam"),
    Case(43, "learning rate of 1e30", spoilt(nothing, *TRAIN, "--set", "optim.lr=1e30"), 8,
         words=("step 2", "loss ", "gradient norm nan", "lr ", "rain/train/", "the weights of step 1"), outputs=RUN,
         recorded="runs/new"),
]  # fmt: skip
