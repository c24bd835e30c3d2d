from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memorysam_cli.data import preparation
from memorysam_cli.engine.measure import count
from memorysam_cli.recipe import Recipe

from .trained import Program


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with 20 scenes of mini-DELIVER, prepared as ``synthetic``; to be copied."""
    root = tmp_path_factory.mktemp("rendered")
    preparation.render_synthetic(root, layout="deliver", scenes=20, size=72, seed=0)
    preparation.check_and_write(preparation.survey_synthetic(root, layout="deliver"))
    return root


@pytest.fixture
def here(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the module's ``template`` folder, in which the program runs."""
    shutil.copytree(template, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def memorysam(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.fixture
def counted_once(counts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the same recipe takes is counted once for a module: a plan is a dozen counts, of a second each."""

    def once(name: str) -> Callable[..., Any]:
        honest = getattr(count, name)

        def known(recipe: Recipe, **options: Any) -> Any:
            told = {"train": {"precision"}} if name == "training_flops" else {}  # which it does not look at
            key = f"{name} {recipe.model_dump_json(exclude=told)} {options}"
            if key not in counts:
                counts[key] = honest(recipe, **options)
            return counts[key]

        return known

    for name in ("training", "validation", "prediction", "training_flops"):
        monkeypatch.setattr(count, name, once(name))


@pytest.fixture(scope="module")
def counts() -> dict[str, Any]:
    return {}
