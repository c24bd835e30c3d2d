"""A rendered data set small enough to train on in a second."""

from __future__ import annotations

import pytest

from memorysam_cli import recipe as recipes
from memorysam_cli.data import manifest as manifests
from memorysam_cli.data import preparation
from memorysam_cli.data.manifest import Manifest
from memorysam_cli.recipe import Recipe


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """20 scenes of 72 pixels as the data set ``synthetic``."""
    root = tmp_path_factory.mktemp("rendered")
    preparation.render_synthetic(root, layout="deliver", scenes=20, size=72, seed=0)
    prepared = preparation.check_and_write(preparation.survey_synthetic(root, layout="deliver"))
    assert prepared.fault() is None
    return manifests.read(root, "synthetic")


@pytest.fixture(scope="session")
def small() -> Recipe:
    """Nano from random weights, four updates in two epochs, with checkpoints at steps 0, 3 and 4."""
    return recipes.parse(
        {
            "name": "small",
            "data": {"dataset": "synthetic", "modalities": ["img", "depth"], "image_size": 32, "workers": 0},
            "model": {"backbone": "nano", "base_weights": "random", "object_gate": False},
            "spmm": {"variant": "paper", "weight": 1.0},
            "optim": {"lr": 1e-3, "warmup_epochs": 1},
            "train": {"epochs": 2, "batch": 5, "seed": 5, "checkpoint_steps": 3},
        },
        where="small",
    )
