"""What a launcher that always ends with 1 does not tell is in ``exit.json``."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.engine.run_folder import RunFolder
from memorysam_cli.engine.train.endings import Ending
from memorysam_cli.errors import DataError, DivergedError, FolderInUseError, Stopped, UsageError
from memorysam_cli.storage import atomic, documents, lock

FAULTS: dict[str, tuple[BaseException, int]] = {
    "a fault": (DivergedError("loss nan"), 8),
    "a signal": (Stopped("saved", exit_code=143), 143),
    "Ctrl-C": (KeyboardInterrupt(), 130),
    "a signal before anything is saved": (SystemExit("terminated (SIGTERM)"), 143),
    "a full disk": (OSError(errno.ENOSPC, "No space left on device"), 6),
    "a bug": (ValueError("what?"), 1),
}


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun does it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")


def train(out: Path, fault: BaseException | None, *, begins: bool = True) -> dict[str, Any] | None:
    """A command that ends so; what its exit.json says."""
    ending, run = Ending(), RunFolder(out)
    with pytest.raises(type(fault)) if fault is not None else ending.of_command(None), ending.of_command(out):
        if not begins and fault is not None:
            raise fault
        with ending.of_run(run):
            assert not run.exit.exists(), "a process that is killed leaves none"
            if fault is not None:
                raise fault
    found: dict[str, Any] | None = documents.read_json(run.exit) if run.exit.exists() else None
    return found


@pytest.mark.parametrize("kind", FAULTS)
def test_every_end_is_told_with_its_exit_code(kind: str, tmp_path: Path) -> None:
    fault, code = FAULTS[kind]
    assert train(tmp_path, DataError("before"))  # what an earlier process left
    found = train(tmp_path, fault)
    assert found is not None and found["code"] == code and found["message"] and found["meaning"]


def test_a_good_end_is_told_too(tmp_path: Path) -> None:
    found = train(tmp_path, None)
    assert found is not None and (found["code"], found["message"]) == (0, "")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_it_is_told_by_the_first_process_of_a_launcher_only(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name) if name == "WORLD_SIZE" else monkeypatch.setenv(name, "1")
    assert train(tmp_path, DataError("bad")) is None


def test_what_ends_before_the_folder_is_held_is_told_only_where_a_run_is(tmp_path: Path) -> None:
    assert train(tmp_path / "new", UsageError("which?"), begins=False) is None and not (tmp_path / "new").exists()
    atomic.write_text(tmp_path / "recipe.yaml", "name: x\n")
    found = train(tmp_path, UsageError("which?"), begins=False)
    assert found is not None and found["code"] == 2
    (tmp_path / "exit.json").unlink()
    with lock.hold(tmp_path):  # by another run
        assert train(tmp_path, UsageError("which?"), begins=False) is None
        assert train(tmp_path, FolderInUseError("in use"), begins=False) is None
