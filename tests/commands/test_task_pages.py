"""README.md, docs/train.md, evaluate.md and predict.md: every command works as written, one after the other."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from memorysam_cli import app
from memorysam_cli.data import manifest
from memorysam_cli.engine import run_folder
from memorysam_cli.storage import images

from ..test_docs import ROOT, commands_of
from .trained import Program, save_weights

SENSORS = ("img", "depth")
TINY = [
    "model.backbone=nano", "data.image_size=32", "data.workers=0", "train.batch=2", "train.max_steps=1",
]  # fmt: skip
RENDERED = ["--scenes", "20", "--size", "40"]


def quick(words: list[str]) -> list[str]:
    """A command as it is written, and behind it what makes it small."""
    if words[:2] == ["prepare", "synthetic"]:
        return [*words, *RENDERED]
    if words[0] in {"train", "plan"}:
        changes = [change for change in TINY if "--size" not in words or "image_size" not in change]
        changes += ["data.modalities=[img]"] if words[0] == "plan" else []
        return [*words, *(word for change in changes for word in ("--set", change))]
    own = {"evaluate": ["--workers", "0", "--gallery", "0"], "predict": ["--workers", "0", "--limit", "2"]}
    return [*words, *own.get(words[0], [])]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered scenes, a scene with names of its own, a recording of two sensors, and a run with its best weights."""
    folder = tmp_path_factory.mktemp("template")
    assert app.run(["prepare", "synthetic", str(folder / "data"), *RENDERED]) == 0
    data = manifest.read(folder / "data", "synthetic")
    save_weights(folder / "runs/small-1/checkpoints/best.safetensors", data.info, modalities=SENSORS)
    (folder / "runs/small-1" / run_folder.RECIPE).write_text("{}")
    (folder / "runs/latest").symlink_to("small-1")
    (folder / "living_room").mkdir()
    for name, called in (("img", "rgb"), ("depth", "depth")):
        shutil.copy(data.root / data.scenes[0].files[name][0], folder / f"living_room/{called}.png")
    for number in range(12):
        label = np.random.Generator(np.random.PCG64(number)).integers(0, 3, (40, 48), dtype=np.uint8)
        place = folder / "recording"
        images.write_png(place / f"rgb/{number:03}.png", np.repeat(label[..., None] * 80, 3, axis=2), fsync=False)
        images.write_png(place / f"depth/{number:03}.png", label.astype(np.uint16) * 900 + 400, fsync=False)
        images.write_png(place / f"masks/{number:03}.png", label, fsync=False)
    return folder


@pytest.mark.parametrize(("page", "count"), [("README.md", 7), ("train.md", 7), ("evaluate.md", 5), ("predict.md", 5)])
def test_every_command_of_the_page_works_as_written(page: str, count: int, here: Path, memorysam: Program) -> None:
    commands = commands_of(ROOT / page if page == "README.md" else ROOT / "docs" / page)
    assert len(commands) == count
    for words in commands:
        ended = memorysam(*quick(words))
        # Weights that were never trained miss whatever --min-miou asks for.
        assert ended.code == (10 if "--min-miou" in words else 0), f"memorysam {shlex.join(words)}: {ended.err}"
