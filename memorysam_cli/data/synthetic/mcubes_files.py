"""MCubeS' folders and file names."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from memorysam_cli.data.synthetic.plan import PlannedScene
from memorysam_cli.data.synthetic.scene import mcubes_pictures
from memorysam_cli.storage import atomic, images

FOLDER = "multimodal_dataset"
ARRAYS = ("polL_aolp_sin", "polL_aolp_cos", "polL_dolp")
"""Folders of ``.npy`` files; the others hold PNG."""


def write(root: Path, scene: PlannedScene, *, size: int, seed: int) -> None:
    """Render one scene and write its nine files below ``root/multimodal_dataset``.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    for folder, picture in mcubes_pictures(scene, size=size, seed=seed).items():
        path = root / FOLDER / folder / name_of(scene)
        # A power loss is mended by rendering again: no syncing of masses of small files.
        if folder in ARRAYS:
            buffer = io.BytesIO()
            np.save(buffer, picture, allow_pickle=False)
            atomic.write_bytes(path.with_suffix(".npy"), buffer.getvalue(), fsync=False)
        else:
            images.write_png(path.with_suffix(".png"), picture, fsync=False)


def name_of(scene: PlannedScene) -> str:
    """The scene's name in the manner of ``outscene1208_2_0000000150``."""
    return f"outscene{scene.map:02d}{scene.point:02d}_1_{(scene.frame + 1) * 50:010d}"


def write_lists(root: Path, scenes: Sequence[PlannedScene]) -> None:
    """Write ``list_folder/{all,train,val,test}.txt``: one name per line.

    Raises:
        EnvironmentFault: a file cannot be written.
    """
    for split in ("all", "train", "val", "test"):
        names = [name_of(scene) for scene in scenes if split in ("all", scene.split)]
        atomic.write_text(root / FOLDER / "list_folder" / f"{split}.txt", "".join(f"{name}\n" for name in names))
