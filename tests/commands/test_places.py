"""Places that let a command down: folders that go away, targets that cannot be written, what a kill has left there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from memorysam_cli.data import manifest as manifests
from memorysam_cli.engine.weights import portable
from memorysam_cli.model.network import MemorySAM
from memorysam_cli.storage import atomic, lock, tensors

from ..engine.stand_ins import Plan, write_data
from .trained import Program, save_weights

PLANS: tuple[Plan, ...] = tuple(
    (f"{split}/{n}", split, None, None, (40, 48)) for split in ("train", "val") for n in (0, 1)
)
DEAD = 2**22 + 1
"""Above the kernel's largest process number."""
WORKING = {
    "train": ["train", "-r", "small.yaml", "--device", "cpu", "--out", "out"],
    "evaluate": ["evaluate", "--data", "data", "--weights", "w.safetensors", "--workers", "0", "--out", "out"],
    "predict": ["predict", "data", "--weights", "w.safetensors", "--workers", "0", "--out", "out"],
}
WRITING = {
    "export": ["export", "w.safetensors", "--format", "torch-export", "--out", "out/x.pt2"],
    "card": ["card", "w.safetensors", "--out", "out/card.md"],
    "merge": ["weights", "merge", "w.safetensors", "--out", "out/merged.safetensors"],
    "import": ["weights", "import", "RGBD_epoch1_2.0.pth", "--out", "out/rgbd.safetensors"],
    "weights export": ["weights", "export", "w.safetensors", "--format", "merged", "--out", "out/x.pth"],
    "peft": ["weights", "export", "w.safetensors", "--format", "peft", "--out", "out/adapter"],
    "report": ["report", "run", "--out", "out/report.html"],
}
SWEEPING = {**WRITING, "recipes copy": ["recipes", "copy", "demo", "out/mine.yaml"]}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    manifest = write_data(folder / "data", PLANS)
    save_weights(folder / "w.safetensors", manifest.info)
    (folder / "small.yaml").write_text(
        "{name: small, data: {dataset: tiny, modalities: [img, depth], image_size: 32, workers: 0}, model: {backbone: "
        "nano, base_weights: random}, spmm: {variant: 'off', weight: 0}, optim: {lr: 0.001}, train: "
        "{epochs: 1, batch: 1}}"
    )
    (folder / "run").mkdir()
    (folder / "run/recipe.yaml").write_text("{}")
    (folder / "RGBD_epoch1_2.0.pth").write_bytes(b"x" * 100)
    return folder


@pytest.mark.parametrize("command", WORKING)
def test_an_out_folder_that_is_removed_meanwhile_ends_with_6_and_is_not_made_again(
    command: str, here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = MemorySAM.outputs

    def removing(*arguments: Any, **options: Any) -> Any:
        shutil.rmtree(here / "out", ignore_errors=True)
        return forward(*arguments, **options)

    monkeypatch.setattr(MemorySAM, "outputs", removing)
    ended = memorysam(*WORKING[command])
    assert ended.code == 6, ended.err
    line = ended.err.splitlines()[-1]
    assert line.startswith("memorysam: error [6]: out") and "run the same command again" in line
    assert not (here / "out").exists()


def full(monkeypatch: pytest.MonkeyPatch) -> str:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage._replace(free=0))
    return "No space left on device"


def read_only(monkeypatch: pytest.MonkeyPatch) -> str:
    access = os.access
    monkeypatch.setattr(atomic.os, "access", lambda path, mode, **_: not mode & os.W_OK and access(path, mode))
    return "permission denied"


def a_file(_: pytest.MonkeyPatch) -> str:
    Path("out").write_text("mine")
    return "is a file"


@pytest.mark.parametrize("way", [full, read_only, a_file])
@pytest.mark.parametrize("command", WRITING)
def test_a_target_that_cannot_be_written_is_refused_with_6_before_anything_is_read(
    command: str, way: Callable[[pytest.MonkeyPatch], str], here: Path, memorysam: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def never(*_: object, **__: object) -> NoReturn:
        pytest.fail("work began")

    monkeypatch.setattr(portable, "trace", never)
    monkeypatch.setattr(tensors, "read", never)
    words = way(monkeypatch)
    ended = memorysam(*WRITING[command])
    assert ended.code == 6, ended.err
    assert words in ended.err.splitlines()[-1] and "out" in ended.err


def test_a_network_that_is_larger_than_the_disk_is_not_traced(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of a LoRA is small; what is exported holds the base, too."""
    usage = shutil.disk_usage("/")
    source = (here / "w.safetensors").stat().st_size
    monkeypatch.setattr(portable, "trace", lambda *_: pytest.fail("traced"))
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage._replace(free=source))
    ended = memorysam(*WRITING["export"])
    assert ended.code == 6 and "No space left on device (needs" in ended.err


@pytest.mark.parametrize("command", ["card", "merge", "recipes copy"])
def test_what_a_killed_command_left_is_swept_by_the_next_one(command: str, here: Path, memorysam: Program) -> None:
    target = here / SWEEPING[command][-1]
    target.parent.mkdir()
    left = atomic._temporary(target)
    dead = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{DEAD}-"))
    dead.write_text("half")
    assert memorysam(*SWEEPING[command]).code == 0
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_of_two_that_render_the_same_scenes_at_once_one_ends_with_9(here: Path, memorysam: Program) -> None:
    command = ["prepare", "synthetic", "new", "--scenes", "2", "--size", "32", "-q"]
    with lock.hold(manifests.folder(here / "new", "synthetic")):
        ended = memorysam(*command)
    assert (ended.code, ended.err.count("\n")) == (9, 1) and "in use by" in ended.err
    assert not (here / "new/mini-deliver").exists()
