"""Block C: the power goes at any moment, and what was not synced is there, or not, in every combination."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memorysam_cli.engine.train import checkpoints
from memorysam_cli.storage import documents
from tests.faults import jobs_checkpoint, strace
from tests.faults.conftest import Figures
from tests.faults.jobs_writing import FILES, NEW, OLD
from tests.faults.power import Recording, Tree
from tests.faults.scale import amount

OLD_LINES = b'{"id": "1"}\n{"id": "2"}\n'


@pytest.fixture(autouse=True)
def traceable() -> None:
    strace.require()


def file_state(tree: Tree, _folder: Path) -> str:
    found = tree.get("x", b"")
    return {OLD: "old", NEW: "new"}.get(found, f"torn: {len(found)} bytes")


def folder_state(tree: Tree, _folder: Path) -> str:
    found = {name.removeprefix("x/"): content for name, content in tree.items() if name.startswith("x/")}
    return {0: "old"}.get(len(found), "new" if found == FILES else f"torn: {sorted(found)}")


def ledger_state(tree: Tree, folder: Path) -> str:
    (folder / "seen").write_bytes(tree.get("x", b""))
    try:
        found = tuple(line["id"] for line in documents.read_json_lines(folder / "seen"))
    except Exception as fault:
        return f"torn: {fault}"
    return {("1", "2"): "old", ("1", "2", "new"): "new"}.get(found, f"torn: {found}")


SCENARIOS: dict[str, tuple[Tree, Callable[[Tree, Path], str]]] = {
    "atomic_file": ({"x": OLD}, file_state),
    "atomic_pieces": ({"x": OLD}, file_state),
    "atomic_folder": ({}, folder_state),
    "ledger_line": ({"x": OLD_LINES}, ledger_state),
    "naive_file": ({"x": OLD}, file_state),
    "naive_replaced": ({"x": OLD}, file_state),
    "naive_folder": ({}, folder_state),
}


def losses(name: str, base: Path, rng: random.Random) -> tuple[int, set[str]]:
    """How many states were looked at, and what is wrong with which."""
    before, state = SCENARIOS[name]
    folder = base / "f"
    folder.mkdir()
    for path, content in before.items():
        (folder / path).write_bytes(content)
    recording = Recording(
        strace.record(["tests.faults.jobs_writing", name, str(folder)], base / "log"), folder, before
    )  # fmt: skip
    whole = len(recording.moments)
    tried, wrong = 0, set()
    for moment, tree in recording.states(rng):
        tried += 1
        found = state(tree, base)
        if found not in {"old", "new"} or (moment == whole and found != "new"):
            wrong.add(f"at moment {moment} of {whole}: {found}")
    return tried, wrong


@pytest.mark.parametrize("name", [name for name in SCENARIOS if not name.startswith("naive")])
def test_a_power_loss_leaves_the_old_or_the_new_and_never_loses_what_was_said_to_be_saved(
    name: str, tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    tried, wrong = losses(name, tmp_path, rng)
    figures("C", states=tried, lost=len(wrong))
    assert tried > 3 and wrong == set()


def test_a_power_loss_while_a_checkpoint_is_saved_and_an_older_one_removed_costs_neither(
    tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    folder, seen = tmp_path / "f", tmp_path / "seen"
    for step in jobs_checkpoint.BEFORE:
        jobs_checkpoint.save(folder, step)
    before = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    log = strace.record(["tests.faults.jobs_checkpoint", str(folder)], tmp_path / "log")
    recording = Recording(log, folder, before)
    assert len(recording.moments) > 20
    tried, newest = 0, set()
    for moment, tree in recording.states(rng, most=amount(40, soak=400, few=10)):
        tried += 1
        shutil.rmtree(seen, ignore_errors=True)
        for path, content in tree.items():
            (seen / path).parent.mkdir(parents=True, exist_ok=True)
            (seen / path).write_bytes(content)
        found, _ = checkpoints.newest_valid(seen)
        assert found is not None, f"at moment {moment}: none of {sorted(tree)} is valid"
        step = checkpoints.read(found).position.step
        newest.add(step)
        assert step >= jobs_checkpoint.BEFORE[-1]
        assert moment < len(recording.moments) or step == jobs_checkpoint.AFTER
    figures("C", checkpoint_states=tried, lost=0)
    assert newest == {2, 3} and tried > 100


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("naive")])
def test_a_writer_that_does_not_sync_is_caught(name: str, tmp_path: Path, rng: random.Random, figures: Figures) -> None:
    tried, wrong = losses(name, tmp_path, rng)
    figures("C", naive_states=tried, naive_lost=len(wrong))
    assert wrong
