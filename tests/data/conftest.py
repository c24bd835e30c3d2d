"""Small data sets, written by hand in their real layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data.datasets.deliver import DELIVER
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.recipe import Recipe
from memorysam_cli.storage import images

DeliverWriter = Callable[..., Path]


def write_deliver(folder: Path, scenes: Sequence[str], *, height: int = 6, width: int = 8) -> Path:
    """DELIVER files for ids such as ``cloud/train/MAP_1_point1/000050``; every scene has its own colors."""
    for number, scene in enumerate(scenes):
        rng = np.random.Generator(np.random.PCG64(number))
        for place, suffix in (("img", "rgb"), ("hha", "depth"), ("event", "event"), ("lidar", "lidar")):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            images.write_png(folder / f"{place}/{scene}_{suffix}_front.png", pixels, fsync=False)
        label = np.zeros((height, width, 4), np.uint8)
        label[..., 0] = rng.integers(0, 26, (height, width))
        label[..., 3] = 255
        images.write_png(folder / f"semantic/{scene}_semantic_front.png", label, fsync=False)
    return folder


def write_mcubes(folder: Path, splits: dict[str, Sequence[str]], *, height: int = 8, width: int = 12) -> Path:
    """MCubeS files and lists for the given names."""
    rng = np.random.Generator(np.random.PCG64(5))
    for name in [name for names in splits.values() for name in names]:
        for place in ("polL_color", "NIR_warped"):
            shape = (height, width, 3) if place == "polL_color" else (height, width)
            images.write_png(
                folder / place / f"{name}.png", rng.integers(0, 65536, shape, dtype=np.uint16), fsync=False
            )
        images.write_png(
            folder / "GT" / f"{name}.png", rng.integers(0, 20, (height, width), dtype=np.uint8), fsync=False
        )
        for place in ("polL_aolp_sin", "polL_aolp_cos", "polL_dolp"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            np.save(folder / place / f"{name}.npy", rng.random((height, width)) * 2 - 1)
    (folder / "list_folder").mkdir(parents=True, exist_ok=True)
    for split, names in splits.items():
        (folder / "list_folder" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


SCENES = (
    "cloud/train/MAP_1_point1/000050",
    "fog/train/MAP_1_point2_lidarjitter/000050",
    "night/train/MAP_1_point1/000050",
    "rain/train/MAP_1_point3/000060",
    "sun/train/MAP_2_point1/000070",
    "cloud/train/MAP_2_point1/000070",
    "fog/train/MAP_2_point1/000070",
    "rain/val/MAP_3_point1/000050",
    "sun/val/MAP_3_point2_motionblur/000050",
)


@pytest.fixture
def prepared(tmp_path: Path) -> Manifest:
    """Seven training and two validation scenes of a hand-made DELIVER, prepared."""
    folder = write_deliver(tmp_path / "DELIVER", SCENES)
    info = DELIVER.info(folder).model_copy(update={"root": "DELIVER"})
    return manifests.write(tmp_path, info, DELIVER.scenes(folder, tmp_path))


@pytest.fixture
def small_recipe() -> Recipe:
    """A recipe for the hand-made DELIVER: crops of 32 px, batches of 2, no worker process."""
    return recipes.parse(
        {
            "name": "small",
            "data": {"dataset": "deliver", "modalities": ["img", "depth"], "image_size": 32, "workers": 0},
            "model": {"backbone": "nano"},
            "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4},
            "train": {"epochs": 1, "batch": 2, "seed": 11},
        },
        where="test",
    )
