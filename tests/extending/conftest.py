"""The code of docs/extending.md as files, small data, and a process to run commands in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from memorysam_cli import app
from tests.forks import LIMIT, Forks

PAGE = Path(__file__).parent.parent.parent / "docs" / "extending.md"
TINY = {
    "data.modalities": "[img,depth]",
    "data.image_size": 64,
    "data.workers": 0,
    "train.batch": 2,
    "train.max_steps": 2,
    "augment.scale": "[1,1]",
}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[[Sequence[Sequence[object]]], list[Ended]]


def blocks(language: str) -> list[str]:
    """The page's blocks of code, in its order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def tiny(**more: object) -> list[str]:
    """Overrides for a run of seconds."""
    changes = TINY | {key.replace("__", "."): value for key, value in more.items()}
    return [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with rendered scenes, prepared as DELIVER."""
    root = tmp_path_factory.mktemp("data")
    assert (
        app.run(["prepare", "synthetic", str(root), "--layout", "deliver", "--scenes", "10", "--size", "72", "-q"]) == 0
    )
    assert app.run(["prepare", "deliver", str(root), "-q"]) == 0
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files under the names that they give themselves."""
    folder = tmp_path_factory.mktemp("place")
    for block in [*blocks("python"), *blocks("yaml")]:
        if found := re.match(r"(?:\"\"\"|# )(\w+\.(?:py|yaml))", block):
            (folder / found[1]).write_text(block)
    return folder


def runner(server: Forks, place: Path, data: Path, folders: pytest.TempPathFactory) -> Run:
    """Runs commands in ``place``, in a process of their own, with a data root and no extension."""

    def call(jobs: Sequence[Sequence[object]]) -> list[Ended]:
        listed = folders.mktemp("jobs") / "jobs.json"
        listed.write_text(json.dumps([[str(word) for word in job] for job in jobs]))
        environment = os.environ | {"MEMORYSAM_DATA": str(data), "MEMORYSAM_EXTEND": ""}
        done = server.run(str(listed), str(place), environment)
        assert done.code == 0, done.said
        ended = [Ended(*each) for each in json.loads(listed.with_suffix(".answer").read_text())]
        assert not any("Traceback" in each.err for each in ended), ended
        return ended

    return call


@pytest.fixture(scope="module")
def run(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run commands where nothing heavy was imported, and where there are no data."""
    with Forks("tests.extending.driver:answer", "light", is_light=True) as server:
        yield runner(server, place, place / "nowhere", tmp_path_factory)


@pytest.fixture(scope="session")
def server() -> Iterator[Forks]:
    """A driver that has done the slow imports; one answer may take several trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LIMIT, "300")
        server = Forks("tests.extending.driver:answer")
    with server:
        yield server


@pytest.fixture(scope="module")
def warm(server: Forks, data: Path, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As :func:`run`, with data, in a process that need not import torch and its like first."""
    return runner(server, place, data, tmp_path_factory)
