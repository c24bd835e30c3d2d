"""The commands on a disk that fills up, or that must not be written; each in a child with mounts of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memorysam_cli import app
from memorysam_cli.engine.train import checkpoints, start
from memorysam_cli.storage import documents, images
from tests import sketches
from tests.faults import bare, disks
from tests.faults.naive import saving

SETS = (
    "model.backbone=nano", "model.base_weights=random", "data.image_size=32", "data.workers=0", "train.batch=2",
    "train.max_steps=2", "train.checkpoint_minutes=1e-9",
)  # fmt: skip
KEPT = "a file of the user's"
LARGE = 1 << 30
NO_LIMIT = -1


@dataclass(frozen=True)
class Command:
    """A command that writes into the folder ``disk``, and what its result is, whatever the time of the day."""

    line: Callable[[Path], list[str]]
    """Its words, for the base folder."""
    result: Callable[[Path], Any]
    """What of its output counts, from the disk."""
    refusals: Callable[[Path], list[str]] = lambda _disk: []
    """What must not be there after a full disk."""


def training(base: Path) -> list[str]:
    sets = [word for change in SETS for word in ("--set", change)]
    out = str(base / "disk" / "run")
    return ["train", "-r", "demo", "--data", str(base / "data"), "--out", out, "--resume", "auto", *sets]


def broken_checkpoints(disk: Path) -> list[str]:
    folder = disk / "run" / "checkpoints"
    return [str(path) for path in folder.glob("step-????????") if not checkpoints.is_valid(path)]


def broken_masks(disk: Path) -> list[str]:
    """Masks that cannot be read, and lines without their mask."""
    ledgers = [disk / "out" / name for name in ("predictions.jsonl", ".parts/0-of-1/predictions.jsonl")]
    lines = [line for ledger in ledgers if ledger.is_file() for line in documents.read_json_lines(ledger)]
    wanted = [disk / "out" / line["mask"] for line in lines if line["status"] == "done"]
    for path in sorted((disk / "out" / "masks").rglob("[!.]*.png")):
        images.read(path)
    return [str(path) for path in wanted if not path.is_file()]


def digests(disk: Path, pattern: str) -> dict[str, str]:
    found = sorted(path for path in disk.rglob(pattern) if path.is_file())
    return {str(path.relative_to(disk)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def scores(disk: Path) -> Any:
    found = [documents.read_json(path) for path in sorted((disk / "out").rglob("*.json"))]
    return [{key: each.get(key) for key in ("miou", "classes", "protocols")} for each in found]


COMMANDS = {
    "synthetic": Command(
        lambda base: ["prepare", "synthetic", str(base / "disk" / "root"), "--scenes", "5", "--size", "64"],
        lambda disk: digests(disk, "*.png"),
    ),
    "train": Command(training, lambda disk: digests(disk, "best.safetensors"), broken_checkpoints),
    "evaluate": Command(
        lambda base: [
            "evaluate", "-w", str(base / "w.safetensors"), "--data", str(base / "data"), "--out",
            str(base / "disk" / "out"), "--workers", "0",
        ],
        scores,
    ),
    "predict": Command(
        lambda base: [
            "predict", str(base / "data" / "mini-deliver"), "-w", str(base / "w.safetensors"), "--out",
            str(base / "disk" / "out"), "--workers", "0", "--color",
        ],
        lambda disk: digests(disk, "*.png"),
        broken_masks,
    ),
    "merge": Command(
        lambda base: ["weights", "merge", str(base / "w.safetensors"), "--out", str(base / "disk" / "m.safetensors")],
        lambda disk: digests(disk, "*.safetensors"),
    ),
}  # fmt: skip


def warm(base: str) -> None:
    """Data, weights, and every import; once, before any fork."""
    torch.set_num_threads(1)
    sketches.use()
    bare.use_least()
    place = Path(base)
    data = ["prepare", "synthetic", str(place / "data"), "--scenes", "6", "--size", "72"]
    assert app.run(data) == 0
    (place / "disk").mkdir()
    assert app.run([*training(place), "--set", "train.max_steps=1"]) == 0
    (place / "disk" / "run" / "checkpoints" / "best.safetensors").rename(place / "w.safetensors")
    os.rename(place / "disk", place / "first")  # noqa: PTH104  (a namespace may mount over the new one)
    (place / "disk").mkdir()


def run(base: str, name: str, size: int | None) -> int:
    """:func:`fill`, or without a size :func:`refuse`; ``naive`` is not a command of ours."""
    if name == "naive":
        return naive(base, is_read_only=size is None)
    return refuse(base, name) if size is None else fill(base, name, size)


def fill(base: str, name: str, size: int) -> int:
    """Run a command on a disk of ``size`` bytes, then again on a large one; what was seen goes to ``seen.json``."""
    place, command = Path(base), COMMANDS[name]
    disk = place / "disk"
    is_small = size != NO_LIMIT and disks.may_mount()
    if is_small:
        disks.make_small(disk, size)
    (disk / "kept.txt").write_text(KEPT)
    if size != NO_LIMIT and not is_small:
        disks.limit_files(max(1, size // 4))
    before = start.refuse_full_disk
    if size % 2:  # every other time the training is let begin without room, and meets the end of the disk on its way
        start.refuse_full_disk = _no_question
    seen: dict[str, Any] = {"first": app.run(command.line(place)), "mounted": is_small}
    # What is looked at is read before there is room again.
    seen["kept"] = (disk / "kept.txt").read_text() == KEPT
    seen["left"] = [str(path) for path in disk.rglob(".*.tmp-*")]
    seen["broken"] = command.refusals(disk)
    seen["claims"] = [str(path) for path in disk.rglob("_SUCCESS.json")]
    start.refuse_full_disk = before
    disks.make_larger(disk, LARGE) if is_small else disks.lift_limit()
    again = seen["first"] != 0 or name == "train"
    print("-- again --", file=sys.stderr, flush=True)
    seen["second"] = app.run(command.line(place)) if again else 0
    seen["result"] = command.result(disk)
    seen["bytes"] = sum(path.stat().st_size for path in disk.rglob("*") if path.is_file())
    (place / "seen.json").write_text(json.dumps(seen))
    if not is_small:
        os.system(f"rm -rf '{disk}' && mkdir '{disk}'")
    return 0


def refuse(base: str, name: str) -> int:
    """Run a command on a disk that must not be written."""
    place, command = Path(base), COMMANDS[name]
    disk = place / "disk"
    (disk / "kept.txt").write_text(KEPT)
    if disks.may_mount():
        disks.make_read_only(disk)
    else:
        disk.chmod(0o555)
        disks.become_nobody()
    return app.run(command.line(place))


def naive(base: str, *, is_read_only: bool) -> int:
    """A program that writes masks and weights as most do: its exit code, and what is left, on stderr."""
    disk = Path(base) / "disk"
    mask, weights = disk / "mask.png", disk / "weights.pth"
    old = np.full((64, 64), 7, np.uint8)
    mounted = disks.may_mount()
    if mounted and not is_read_only:
        disks.make_small(disk, 16 * 4096)
    saving.write_mask(mask, old)
    saving.write_weights(weights, torch.zeros(10))
    if is_read_only:
        disks.make_read_only(disk) if mounted else (disk.chmod(0o555), disks.become_nobody())
    elif mounted:
        (disk / "filler").write_bytes(bytes(disk_free(disk)))
    else:
        disks.limit_files(1000)
    rng = np.random.Generator(np.random.PCG64(0))
    code = 0
    try:
        saving.write_mask(mask, rng.integers(0, 255, (256, 256), np.uint8))
        saving.write_weights(weights, torch.zeros(100_000))
    except OSError:
        code = 6
    except Exception:
        code = 1
    kept = _holds(lambda: np.array_equal(images.read(mask), old))
    kept_weights = _holds(lambda: len(torch.load(weights)) == 10)
    report = json.dumps({"kept": kept, "kept_weights": kept_weights, "code": code})
    print(report, file=sys.stderr)
    return 0


def _no_question(*_arguments: object, **_named: object) -> None:
    """In the place of the question whether there is room."""


def disk_free(folder: Path) -> int:
    """Bytes that a file can still take."""
    return shutil.disk_usage(folder).free


def _holds(claim: Callable[[], bool]) -> bool:
    """A claim that cannot be looked at does not hold."""
    try:
        return claim()
    except Exception:
        return False
