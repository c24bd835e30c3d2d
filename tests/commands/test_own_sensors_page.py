"""docs/own-sensors.md: every command works as written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli.storage import images

from ..data.own_sensors import HEIGHT, WIDTH, save, write
from .trained import Program

PAGE = (Path(__file__).parent.parent.parent / "docs" / "own-sensors.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line)[1:] for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
TINY = ["model.backbone=nano", "data.image_size=32", "data.workers=0", "train.batch=2", "train.max_steps=1"]
QUICK = {"train": [word for change in TINY for word in ("--set", change)], "evaluate": ["--workers", "0"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder that the page draws."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "classes.txt").write_text("road\nsky\ncar\n")
    for number in range(1, 13):
        rng = np.random.Generator(np.random.PCG64(number))
        label = rng.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
        name = f"{number:04}"
        write(root / f"images/{name}.jpg", np.repeat(label[..., None] * 100, 3, axis=2))
        images.write_png(root / f"depth/{name}.png", label.astype(np.uint16) * 800 + 900, fsync=False)
        write(root / f"ir/{name}.tiff", label.astype(np.float32) / 3)
        save(root / f"ms/{name}.npy", rng.random((HEIGHT, WIDTH, 6), dtype=np.float32))
        save(root / f"aolp/sin/{name}.npy", np.sin(label.astype(np.float32)))
        save(root / f"aolp/cos/{name}.npy", np.cos(label.astype(np.float32)))
        images.write_png(root / f"masks/{name}.png", label, fsync=False)
    for sensor in ("images", "depth", "masks"):
        shutil.copytree(root / sensor, tmp_path / "rig" / sensor)
    for sensor in ("images", "depth"):
        shutil.copytree(root / sensor, tmp_path / "rig2" / sensor)
    for number in range(3):
        for sensor, late in (("rgb", 0), ("ir", 5)):
            write(tmp_path / f"drive/{sensor}/{17e8 + number + late / 1000:.3f}.png", np.zeros((8, 8, 3), np.uint8))
    return root


def test_every_command_of_the_page_works_as_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    memorysam = Program(capsys)
    assert len(COMMANDS) >= 9 and {command[0] for command in COMMANDS} == {"prepare", "train", "evaluate", "predict"}
    for command in COMMANDS:
        ended = memorysam(*command, *QUICK.get(command[0], []))
        assert ended.code == 0, f"memorysam {shlex.join(command)}: {ended.err}"
    assert len(list((tmp_path / "masks/masks").glob("*.png"))) == 12
    for mask in (tmp_path / "masks/masks").glob("*.png"):  # the same pictures as a new recording
        assert (tmp_path / "masks2/masks" / mask.name).read_bytes() == mask.read_bytes()
    assert len(list((data / "hha").glob("*.png"))) == 12
