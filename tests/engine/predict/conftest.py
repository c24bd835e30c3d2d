from __future__ import annotations

from pathlib import Path

import pytest

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.predict.job import Job

from ..stand_ins import Brightness, write_data
from .jobs import job_of


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path / "data")


@pytest.fixture
def job(data: Manifest) -> Job:
    return job_of(data)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative, so that reports of runs in different folders can be equal."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Path("out")


@pytest.fixture
def light_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the job's own, for tests of folders; the same bytes with a real one: test_ways."""
    monkeypatch.setattr(Job, "load", lambda job, device: Brightness(len(job.card.dataset.classes)).to(device))
