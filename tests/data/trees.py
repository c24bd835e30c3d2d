"""Tiny data sets that follow the nine published layouts to the letter: names, depths, dtypes, odd cases.

The paths are written out here, and are not taken from the declarations that they test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np

from memorysam_cli.storage import images

SCENES: Mapping[str, int] = {"train": 3, "val": 2, "test": 2}
"""Scenes per split; a layout without a split leaves it out."""
HEIGHT, WIDTH = 36, 44
VARIANTS: dict[str, tuple[str, ...]] = {
    "deliver": ("", "depth_raw"),
    "mcubes": ("", "8bit"),
    "mfnet": ("cmnext", "stitchfusion", "original"),
    "fmb": ("", "mm_sam_adapter"),
    "pst900": ("", "depth"),
    "nyu": ("cmnext", "stitchfusion", "dformer", "tokenfusion"),
    "kitti360": ("", "released"),
    "urbanlf": ("real", "syn", "real-81"),
    "muses": ("npz", "png"),
}
"""Data set → what ``variant`` may be; the first is the default. ``released``: without depth, events and LiDAR."""
CASES = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
"""For ``parametrize``."""


def write_tree(name: str, folder: Path, *, variant: str | None = None, scenes: Mapping[str, int] = SCENES) -> Path:
    """Write a data set of frames of 36 × 44 into ``folder``, which becomes the data set's own; returns it.

    Args:
        name: as in the catalog.
        folder: may exist.
        variant: of VARIANTS[name].
        scenes: per split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _WRITERS[name](folder, VARIANTS[name][0] if variant is None else variant, scenes)
    return folder


class _Source:
    """Random pictures; the same in every run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.Generator(np.random.PCG64(3))

    def picture(self, path: str, *, channels: int = 3, dtype: type = np.uint8, shrink: int = 1) -> None:
        shape = (HEIGHT // shrink, WIDTH // shrink, channels)[: 2 if channels == 1 else 3]
        self.write(path, self.rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype))

    def label(self, path: str, values: range | list[int], *, channels: int = 1) -> None:
        plane = self.rng.choice(np.array(list(values), np.uint8), (HEIGHT, WIDTH))
        rest = [np.full_like(plane, value) for value in (0, 0, 255)]
        self.write(path, plane if channels == 1 else np.stack([plane, *rest], axis=-1))

    def array(self, path: str, low: float, high: float, *, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> None:
        self.write(path, (low + (high - low) * self.rng.random(shape)).astype(np.float32))

    def write(self, path: str, array: np.ndarray) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".jpg"):
            smooth = cv2.GaussianBlur(array, (5, 5), 2)
            target.write_bytes(cv2.imencode(".jpg", smooth)[1].tobytes())
        elif path.endswith(".npy"):
            np.save(target, array)
        elif path.endswith(".npz"):
            np.savez_compressed(target, array)  # the one entry is called arr_0, as in MUSES
        else:
            images.write_png(target, array, fsync=False)

    def lines(self, path: str, lines: list[str]) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{line}\n" for line in lines))


def _numbered(scenes: Mapping[str, int], *splits: str) -> Iterator[tuple[str, int]]:
    """(split, a number that counts through all splits)."""
    pairs = [split for split in splits for _ in range(scenes.get(split, 0))]
    yield from zip(pairs, range(1, len(pairs) + 1), strict=True)


def _deliver(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source = _Source(folder)
    conditions = ("cloud", "fog", "night", "rain", "sun")
    cases = ("", "_motionblur", "_overexposure", "_underexposure", "_lidarjitter", "_eventlowres")
    for split, number in _numbered(scenes, "train", "val", "test"):
        # Frames are numbered alike in every sequence: flattened, they would meet.
        case = cases[(number - 1) % 6]
        place = f"{conditions[(number - 1) % 5]}/{split}/MAP_{(number + 1) // 2}_point{number % 3 + 1}{case}"
        source.picture(f"img/{place}/000050_rgb_front.png")
        source.picture(f"hha/{place}/000050_depth_front.png")
        source.picture(f"event/{place}/000050_event_front.png", shrink=2 if case == "_eventlowres" else 1)
        source.picture(f"lidar/{place}/000050_lidar_front.png")
        source.label(f"semantic/{place}/000050_semantic_front.png", [*range(26), 255], channels=4)
        if variant == "depth_raw":
            source.picture(f"depth/{place}/000050_depth_front.png")
    (folder / "img" / ".DS_Store").write_bytes(b"\0")


def _mcubes(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source, names = _Source(folder), {"train": [], "val": [], "test": []}
    depth = np.uint8 if variant == "8bit" else np.uint16
    for split, number in _numbered(scenes, "train", "val", "test"):
        name = f"outscene12{number:02d}_{number % 3}_0000000150"
        names[split].append(name)
        source.picture(f"polL_color/{name}.png", dtype=depth)
        angle = 2 * np.pi * source.rng.random((HEIGHT, WIDTH))
        source.write(f"polL_aolp_sin/{name}.npy", np.sin(angle))
        source.write(f"polL_aolp_cos/{name}.npy", np.cos(angle))
        source.write(f"polL_dolp/{name}.npy", source.rng.random((HEIGHT, WIDTH)))
        source.picture(f"NIR_warped/{name}.png", channels=1, dtype=depth)
        source.label(f"NIR_warped_mask/{name}.png", [0, 255])
        source.label(f"GT/{name}.png", [*range(20), 255])
        source.label(f"SS/{name}.png", range(19))
        source.label(f"SSGT4MS/{name}.png", range(19))
    for split, listed in {"all": [*names["train"], *names["val"], *names["test"]], **names}.items():
        source.lines(f"list_folder/{split}.txt", listed)


def _mfnet(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source, names = _Source(folder), {"train": [], "val": [], "test": []}
    for split, number in _numbered(scenes, "train", "val", "test"):
        name = f"{number:05d}{'DN'[number % 2]}"
        names[split].append(name)
        if variant == "original":
            source.picture(f"images/{name}.png", channels=4)
        elif variant == "stitchfusion":
            source.picture(f"img/{name}.png")
            source.picture(f"ther/{name}.png", channels=1)
        else:
            source.picture(f"rgb/{name}.jpg")
            source.picture(f"ther/{name}.jpg", channels=1)
        source.label(f"labels/{name}.png", range(9))
    for split, listed in names.items():
        source.lines(f"{split}.txt", listed)


def _fmb(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source = _Source(folder)
    splits = ("train", "val", "test") if variant == "mm_sam_adapter" else ("train", "test")
    for split, number in _numbered(scenes, *splits):
        source.picture(f"{split}/Visible/{number:05d}.png")
        source.picture(f"{split}/Infrared/{number:05d}.png")
        source.label(f"{split}/Label/{number:05d}.png", range(15))
        source.picture(f"{split}/color/{number:05d}.png")


def _pst900(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source = _Source(folder)
    for split, number in _numbered(scenes, "train", "test"):
        name = f"{number}_bag21_rect_rgb_frame{number:010d}"
        source.picture(f"{split}/rgb/{name}.png")
        source.picture(f"{split}/thermal/{name}.png", channels=1)
        source.label(f"{split}/labels/{name}.png", range(5))
        if variant == "depth":
            source.picture(f"{split}/depth/{name}.png", channels=1, dtype=np.uint16)


def _nyu(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source, lines = _Source(folder), {"train": [], "test": []}
    for split, number in _numbered(scenes, "train", "test"):
        if variant == "tokenfusion":
            color, hha, depth, label = f"rgb/{number}.png", "", f"depth/{number}.png", f"masks/{number}.png"
            lines[split].append(f"{color}\t{label}\t{depth}")
        else:
            suffix = "png" if variant == "stitchfusion" else "jpg"
            color, hha, depth = f"RGB/{number}.jpg", f"HHA/{number}.{suffix}", ""
            label = f"Labels/{number}.png" if variant == "stitchfusion" else f"Label/{number}.png"
            if variant == "dformer":
                depth = f"Depth/{number}.png"
            lines[split].append(f"{color} {label}" if variant == "dformer" else f"{number}")
        source.picture(color)
        source.label(label, range(41))
        if hha:
            source.picture(hha)
        if depth:
            source.picture(depth, channels=1)
    last = "val" if variant == "tokenfusion" else "test"
    source.lines("train.txt", lines["train"])
    source.lines(f"{last}.txt", lines["test"])


def _kitti360(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source, lines = _Source(folder), {"train": [], "val": []}
    for split, number in _numbered(scenes, "train", "val"):
        # Frame 0000000000 is in every drive.
        drive, frame = f"2013_05_28_drive_{number:04d}_sync", f"{0:010d}"
        place = f"{drive}/image_00/data_rect/{frame}"
        label = f"data_2d_semantics/train/{drive}/image_00/semantic/{frame}.png"
        source.picture(f"data_2d_raw/{place}.png")
        source.label(label, [*range(45), 255])
        if variant != "released":
            source.picture(f"data_2d_hha/{place}.png")
            source.picture(f"data_2d_lidar/{place}_color.png")
            source.picture(f"data_2d_event/{drive}/{frame}_event_image.png")
        lines[split].append(f"data_2d_raw/{place}.png {label}")
    for split, listed in lines.items():
        source.lines(f"{split}.txt", listed)


def _urbanlf(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source = _Source(folder)
    side = range(1, 10)
    views = [f"{row}_{column}" for row in (side if variant == "real-81" else [5]) for column in side]
    palette = [  # bike, building, fence, others, person, pole, road
        (168, 198, 168), (198, 0, 0), (202, 154, 198), (0, 0, 0), (100, 198, 198), (198, 100, 0), (52, 42, 198),
    ]  # fmt: skip
    for split, number in _numbered(scenes, "train", "val", "test"):
        place = f"{split}/Image{number}"
        for view in views:
            source.picture(f"{place}/{view}.png")
        if variant == "syn":
            raw = source.rng.choice(np.array([*range(15), 255], np.uint8), (HEIGHT, WIDTH))
            source.write(f"{place}/5_5_label.npy", raw)
        else:
            colors = np.array([*palette, (1, 2, 3)], np.uint8)  # the last is not a class
            source.write(f"{place}/label.png", colors[source.rng.integers(0, len(colors), (HEIGHT, WIDTH))])


def _muses(folder: Path, variant: str, scenes: Mapping[str, int]) -> None:
    source = _Source(folder)
    ranges = {"lidar": (-10.0, 60.0), "radar": (0.0, 80.0), "event_camera": (0.0, 5.0)}
    for split, number in _numbered(scenes, "train", "val", "test"):
        weather, time = ("clear", "fog", "rain", "snow")[number % 4], ("day", "night")[number % 2]
        inside = f"{split}/{weather}/{time}/REC{number:04d}_frame_{number * 7:06d}"
        source.picture(f"frame_camera/{inside}_frame_camera.png")
        for sensor, (low, high) in ranges.items():
            path = f"projected_to_rgb/{sensor}/{inside}_{sensor}"
            if variant == "png" and sensor != "event_camera":
                values = low + (high - low) * source.rng.random((HEIGHT, WIDTH, 3))
                source.write(f"{path}.png", np.rint((values + 100) * 150).astype(np.uint16))
            else:
                source.array(f"{path}.npz", low, high, shape=(HEIGHT, WIDTH, 3))
        raw = folder / f"lidar/{inside}_lidar.bin"
        raw.parent.mkdir(parents=True, exist_ok=True)
        raw.write_bytes(b"\0" * 24)
        if split != "test":  # hidden; there is a server for them
            source.label(f"gt_semantic/{inside}_gt_labelTrainIds.png", [*range(19), 255])
    (folder / "meta.json").write_text(json.dumps({}))


_WRITERS: dict[str, Callable[[Path, str, Mapping[str, int]], None]] = {
    "deliver": _deliver,
    "mcubes": _mcubes,
    "mfnet": _mfnet,
    "fmb": _fmb,
    "pst900": _pst900,
    "nyu": _nyu,
    "kitti360": _kitti360,
    "urbanlf": _urbanlf,
    "muses": _muses,
}
