"""docs/deliver.md and docs/robustness.md: every command works as written, on small data, with a toy backbone."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from memorysam_cli.data import DATASETS, layout_of

from ..data.trees import write_tree
from .trained import Program

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE, ROBUSTNESS = ((DOCS / name).read_text(encoding="utf-8") for name in ("deliver.md", "robustness.md"))
TINY = ["model.backbone=nano", "data.image_size=32", "data.workers=0", "train.batch=2", "train.max_steps=1"]
QUICK = {"train": [word for change in TINY for word in ("--set", change)], "evaluate": ["--workers", "0"]}
COSTLY = {"--robustness", "--tta", "--tile"}
TWO = {"deliver": "img,depth", "mcubes": "image,aolp"}
"""Sensors that are enough where every set of them, or every view of a scene, is looked at."""
SCENES = {"train": 4, "val": 1, "test": 1}


def test_every_command_of_the_page_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEMORYSAM_DATA", raising=False)
    memorysam = Program(capsys)
    data = tmp_path / "data"
    write_tree("deliver", data / "DELIVER", scenes=SCENES)
    write_tree("mcubes", data / "multimodal_dataset", scenes=SCENES)
    commands, failures = commands_of(PAGE), commands_of(ROBUSTNESS)
    assert {command[0] for command in commands} == {"prepare", "train", "evaluate", "predict"} and len(commands) >= 14
    assert {command[2] for command in failures} == {"any", "emm", "rmm", "nm"}
    recipe = ""
    for command in [*commands, *failures]:
        recipe = command[2] if command[:2] == ["train", "--recipe"] else recipe
        fewer = ["--modalities", TWO[recipe]] if COSTLY.intersection(command) else []
        if command[-1].endswith(".zip"):  # the archive is there instead of the folder
            pack(data / "DELIVER", command)
        ended = memorysam(*command, *QUICK.get(command[0], []), *fewer)
        assert ended.code == 0, f"memorysam {shlex.join(command)}: {ended.err}"
    assert len(list((tmp_path / "masks").rglob("masks/*/test/*/*.png"))) == SCENES["test"]
    run = next((tmp_path / "runs").glob("deliver-*"))
    assert len(list((tmp_path / "runs").glob("deliver-*"))) == 1, "--resume auto continues, and starts no second run"
    told = set(re.findall(r"`(\w+\.(?:json|csv))`", PAGE.split("## Score")[1].split("## Segment")[0]))
    assert told == {"metrics.json", "breakdown.csv", "scenes.csv"}
    assert not [name for name in told if not (run / "evaluate" / "val" / name).is_file()]


def test_data_that_cannot_be_written_to_is_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree("deliver", tmp_path / "elsewhere" / "DELIVER", scenes=SCENES)
    (tmp_path / "data").mkdir()
    assert "`ln -s /where/it/is/DELIVER ./data/DELIVER`" in PAGE
    (tmp_path / "data" / "DELIVER").symlink_to(tmp_path / "elsewhere" / "DELIVER")
    assert Program(capsys)("prepare", "deliver", "./data").code == 0
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["DELIVER"]


def test_the_page_has_every_published_data_set_and_its_counts() -> None:
    table = re.findall(r"^\| `(\w+)` \|", PAGE.split("## The other data sets")[1], re.MULTILINE)
    assert {"deliver", "mcubes", *table} == set(DATASETS)
    assert all(str(count) in PAGE for count in layout_of("deliver").published_counts.values())


def commands_of(page: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [shlex.split(line, comments=True)[1:] for block in blocks for line in block.splitlines()]


def pack(folder: Path, command: Sequence[str]) -> None:
    """Put the archive that a command names in place of the folder."""
    shutil.make_archive(command[-1].removesuffix(".zip"), "zip", folder.parent, folder.name)
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent / "memorysam")
