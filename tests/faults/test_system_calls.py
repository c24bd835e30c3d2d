"""Block B: every system call of our writers killed, failing, or lying; SQLite's way, to the last call."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memorysam_cli.storage import atomic, documents
from tests.faults import jobs_writing, strace
from tests.faults.conftest import Figures
from tests.faults.jobs_writing import FILES, JOBS, NEW, OLD
from tests.faults.scale import SLOW, SOAK

ALL = SLOW or SOAK
Drawn = Callable[[list[str]], list[str]]
OLD_LINES = b'{"id": "1"}\n{"id": "2"}\n'


def old_file(folder: Path) -> None:
    (folder / "x").write_bytes(OLD)


def old_ledger(folder: Path) -> None:
    (folder / "x").write_bytes(OLD_LINES)


def nothing(folder: Path) -> None:
    """There was none."""


def file_state(folder: Path) -> str:
    content = (folder / "x").read_bytes() if (folder / "x").exists() else b""
    return {OLD: "old", NEW: "new"}.get(content, f"torn: {len(content)} bytes")


def folder_state(folder: Path) -> str:
    if not (folder / "x").exists():
        return "old"
    found = {path.name: path.read_bytes() for path in (folder / "x").iterdir()}
    return "new" if found == FILES else f"torn: {sorted(found)}"


def ledger_state(folder: Path) -> str:
    """As its readers see it: a torn last line does not count."""
    try:
        found = [line["id"] for line in documents.read_json_lines(folder / "x")]
    except Exception as fault:
        return f"torn: {fault}"
    return {("1", "2"): "old", ("1", "2", "new"): "new"}.get(tuple(found), f"torn: {found}")


def strict_ledger_state(folder: Path) -> str:
    """As most programs see it: every line must be JSON."""
    try:
        found = [json.loads(line)["id"] for line in (folder / "x").read_text().splitlines()]
    except (ValueError, OSError) as fault:
        return f"torn: {fault}"
    return {("1", "2"): "old", ("1", "2", "new"): "new"}.get(tuple(found), f"torn: {found}")


SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[[Path], str]]] = {
    "atomic_file": (old_file, file_state),
    "atomic_pieces": (old_file, file_state),
    "atomic_folder": (nothing, folder_state),
    "ledger_line": (old_ledger, ledger_state),
    "naive_file": (old_file, file_state),
    "naive_folder": (nothing, folder_state),
    "naive_line": (old_ledger, strict_ledger_state),
}


def swept(name: str, base: Path, drawn: Drawn, *, until_harmed: bool = False) -> tuple[int, list[str]]:
    """How many faults were tried, and which of them lost or tore something; ``until_harmed``: until one has."""
    prepare, state = SCENARIOS[name]
    folder, log = base / "f", base / "log"

    def anew() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        prepare(folder)

    job = ["tests.faults.jobs_writing", name, str(folder)]
    anew()
    paths = strace.paths_of(job, folder, log)
    assert state(folder) == "new" and str(folder / "x") in paths
    tried, harmed = 0, []
    for outcome in strace.sweep(job, paths, log, anew=anew, drawn=drawn):
        tried += 1
        harmed += [f"{outcome.fault}: {words}" for words in _harm(name, folder, state(folder), outcome.code)]
        if harmed and until_harmed:
            break
    return tried, harmed


def _harm(name: str, folder: Path, found: str, code: int) -> list[str]:
    """What a fault did that it must not do, and whether the same job fixes it."""
    harm = []
    if found not in {"old", "new"}:
        harm.append(found)
    if code == 0 and found != "new":
        harm.append(f"said to be saved, and is {found}")
    if code not in {0, 6, -9, 137}:
        harm.append(f"exit code {code}")
    if name.startswith("naive"):
        return harm
    atomic.sweep(folder / "x")
    JOBS[name](folder) if not (name == "atomic_folder" and found == "new") else None
    after = SCENARIOS[name][1](folder)
    if after != "new" and not (name == "ledger_line" and found == "new"):
        harm.append(f"the same job again leaves {after}")
    left = [path.name for path in folder.iterdir() if path.name != "x"]
    return harm + ([f"left behind: {left}"] if left else [])


def every(faults: list[str]) -> list[str]:
    """All that can happen to a call."""
    return faults


OURS = [name for name in SCENARIOS if not name.startswith("naive")]
NAIVE = [name for name in SCENARIOS if name.startswith("naive")]


@pytest.fixture(autouse=True)
def traceable() -> None:
    strace.require()


@pytest.mark.parametrize("name", OURS)
def test_no_fault_in_any_system_call_tears_a_file_or_is_kept_secret(
    name: str, tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    """Each call is killed, fails and lies in turn; in plain runs one of these, which the seed draws."""
    tried, harmed = swept(name, tmp_path, every if ALL else lambda faults: rng.sample(faults, 1))
    figures("B", faults=tried, torn=len(harmed))
    assert tried > (15 if ALL else 5) and harmed == []


@pytest.mark.parametrize("name", NAIVE)
def test_a_naive_writer_is_caught(name: str, tmp_path: Path, figures: Figures) -> None:
    tried, harmed = swept(name, tmp_path, every, until_harmed=not ALL)
    figures("B", naive_faults=tried, naive_torn=len(harmed))
    assert harmed


def test_each_job_is_swept() -> None:
    assert set(SCENARIOS) | {"naive_replaced"} == set(jobs_writing.JOBS)
