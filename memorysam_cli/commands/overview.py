"""``memorysam`` alone: the five steps from files to masks, and the state of this folder.

Only names and a few small files are read, so that the answer is immediate in any folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memorysam_cli.commands.options import data_root
from memorysam_cli.errors import MemorySamError
from memorysam_cli.storage import documents
from memorysam_cli.text import command, counted

LOOKED_AT, SHOWN = 500, 5
"""Number of entries of a folder that are read, and number of those shown: the newest."""
MOST_BYTES = 2_000_000
"""Largest size of a document; a larger one is not ours."""
RECIPES = {"synthetic": "demo", "deliver": "deliver", "mcubes": "mcubes"}
"""The shipped recipe for a data set; every other one is trained by the recipe that names none."""
RUNS, MASKS, OURS = Path("runs"), Path("masks"), "memorysam"


@dataclass(frozen=True)
class Prepared:
    """A data set prepared below a data root."""

    name: str
    scenes: int | None
    """None if ``dataset.json`` cannot be read."""
    root: str


@dataclass(frozen=True)
class Trained:
    """A run below ``runs/``."""

    run: str
    miou: float | None
    """Best validation score in %; None if the run has not finished."""


def show(*, is_json: bool) -> None:
    """Print the steps, each with its state; with ``--json`` the same as one object."""
    from memorysam_cli.report import console

    prepared, trained = [each for place in data_roots() for each in data_sets(place)], list(runs())
    root = Path(prepared[0].root) if prepared else data_root()
    lines = steps(root, prepared)
    following = next_step(root, lines, prepared, trained)
    if is_json:
        found = {"prepared": [asdict(each) for each in prepared], "trained": [asdict(each) for each in trained]}
        console.answer({"schema_version": 1, "root": str(root), **found, "steps": lines, "next": following})
        return
    there = {"prepare": [_scenes(each) for each in prepared], "train": [_score(each) for each in trained]}
    for number, (name, line) in enumerate(lines.items(), 1):
        console.say(f"{number}  {name:<9} {line}")
        for words in _few(there.get(name, [])):
            console.say(f"{'':13}{words}")
    console.say("")
    console.say(f"next          {following}")
    console.say(f"all commands  {command('--help')}")


def steps(root: Path, prepared: list[Prepared]) -> dict[str, str]:
    """The command of each step."""
    return {
        "prepare": preparing(root, prepared),
        "check": command("check", root),
        "train": training(root, prepared),
        "evaluate": command("evaluate"),
        "predict": command("predict", root, "--out", MASKS),
    }


def training(root: Path, prepared: list[Prepared]) -> str:
    """The command to train on the first data set of a root."""
    here = [each.name for each in prepared if each.root == str(root)]
    recipe = RECIPES.get(here[0]) if here else None
    words = ["--recipe", recipe] if recipe else ["--set", f"data.dataset={here[0]}"] if len(here) > 1 else []
    return command("train", *words, "--data", root)


def preparing(root: Path, prepared: list[Prepared]) -> str:
    """The command to prepare: for the existing data, a published data set, its archive, or the user's own sensors."""
    from memorysam_cli.data import DATASETS, layout_of, published_below
    from memorysam_cli.data import manifest as manifests
    from memorysam_cli.data.layout import is_rendered
    from memorysam_cli.storage.archive import archives_in

    if prepared:
        return manifests.prepare_line(root, prepared[0].name)
    try:
        for place, layout in published_below(root):
            if not layout.is_plain and not is_rendered(place):
                return command("prepare", layout.name, root)
        for layout in map(layout_of, DATASETS):
            for archive in archives_in(root, named=(layout.name, layout.folder)):
                return command("prepare", layout.name, archive)
    except (MemorySamError, OSError):
        pass  # an unreadable folder: the command that reads it reports that
    return manifests.own_line(root)


def next_step(root: Path, lines: dict[str, str], prepared: list[Prepared], trained: list[Trained]) -> str:
    """The command of the next step to do."""
    finished = [each for each in trained if each.miou is not None]
    if not prepared and not finished:
        return lines["prepare"] if root.is_dir() else command("prepare", "synthetic", root)
    if not finished:
        return lines["train"]
    if not any((Path(each.run) / "evaluate").is_dir() for each in finished):
        return lines["evaluate"]
    if (MASKS / "_SUCCESS.json").is_file():
        return command("report")
    return lines["predict"] if prepared else command("predict", "--out", MASKS)  # of the data stored in the run


def data_roots() -> list[Path]:
    """Possible data roots: the data root, then the current folder and those in it, the newest first."""
    root, here = data_root(), Path()
    near = sorted([here, *_folders(here, holding=f"{OURS}/")], key=lambda place: _age(place / OURS))
    return [root, *(place for place in near if place.absolute() != root.absolute())]


def data_sets(root: Path) -> Iterator[Prepared]:
    """The data sets below a data root, by name."""
    for place in sorted(_folders(root / OURS, holding="dataset.json")):
        counts = _read(place / "dataset.json").get("counts")
        numbers = list(counts.values()) if isinstance(counts, dict) else []
        known = numbers and all(isinstance(each, int) and each >= 0 for each in numbers)
        yield Prepared(place.name, sum(numbers) if known else None, str(root))


def runs() -> Iterator[Trained]:
    """The runs below ``runs/``, the newest first."""
    for place in sorted(_folders(RUNS, holding="recipe.yaml"), key=lambda place: _age(place / "recipe.yaml")):
        miou = _read(place / "result.json").get("miou")
        yield Trained(str(place), float(miou) if isinstance(miou, int | float) else None)


def _folders(parent: Path, *, holding: str) -> list[Path]:
    """The folders below another one that contain a file (or another folder, if the name ends in ``/``).

    Links such as ``runs/latest`` are left out.
    """
    try:
        entries = list(itertools.islice(parent.iterdir(), LOOKED_AT))
    except (OSError, ValueError):
        return []
    return [place for place in entries if _holds(place, holding)]


def _holds(place: Path, name: str) -> bool:
    found = place / name
    try:
        return not place.is_symlink() and (found.is_dir() if name.endswith("/") else found.is_file())
    except OSError:  # such as a folder of another user
        return False


def _age(path: Path) -> float:
    """Sort key: smaller for later changes."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> dict[str, Any]:
    """One of our documents; empty if there is none."""
    try:
        found = documents.parse_json(documents.read_bytes(path, limit=MOST_BYTES), where=str(path))
    except (MemorySamError, OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _few(lines: list[str]) -> list[str]:
    """The first of some lines, and the number of the others."""
    left = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"and {left} more"] if left > 0 else [])]


def _scenes(each: Prepared) -> str:
    where = "" if Path(each.root) == data_root() else f", in {each.root}"
    return f"{each.name}: {'unreadable' if each.scenes is None else counted(each.scenes, 'scene')}{where}"


def _score(each: Trained) -> str:
    return f"{each.run}: {'not finished' if each.miou is None else f'val mIoU {each.miou:.2f}'}"
