from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .trained import Program


@pytest.fixture
def here(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the module's ``template`` folder, in which the program runs."""
    shutil.copytree(template, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def memorysam(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)
