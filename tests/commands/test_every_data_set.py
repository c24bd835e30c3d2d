"""Every published layout goes the whole way: prepare → train → evaluate → predict, with no word about its insides."""

from __future__ import annotations

from pathlib import Path

import pytest

from memorysam_cli.data import DATASETS
from memorysam_cli.storage import images

from ..data.trees import CASES, VARIANTS, write_tree
from .trained import Program

SMALL = (
    *("--set", "model.backbone=nano", "--set", "model.base_weights=random", "--set", "data.image_size=32"),
    *("--set", "train.batch=2", "--set", "train.epochs=1", "--set", "train.max_steps=1", "--set", "data.workers=0"),
)
TELLING = {"muses", "nyu"}
"""Arrays of numbers; one split of its own. That each layout is prepared, tests/data/ holds; that MCubeS, selected on
test, goes the whole way, test_deliver_page.py."""
EVERY_CASE = [
    pytest.param(
        name,
        variant,
        id=f"{name}-{variant}",
        marks=[] if name in TELLING and variant == VARIANTS[name][0] else pytest.mark.slow,
    )
    for name, variant in CASES
    if variant != "real-81"  # 81 views take a minute; tests/data/ surveys them
]


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


@pytest.mark.parametrize(("name", "variant"), EVERY_CASE)
def test_the_whole_way(
    name: str, variant: str, tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree(name, tmp_path / "data" / "download" / "inside", variant=variant)

    prepared = program("prepare", name, "data", "--json")
    assert prepared.code == 0, prepared.err
    splits = prepared.answer["splits"]
    selection = "val" if splits.get("val") else "test"

    trained = program("train", *SMALL, "--set", f"data.selection_split={selection}", "--json")
    assert trained.code == 0, trained.err
    assert f"data set {name}" in trained.err

    evaluated = program("evaluate", "--split", selection, "--workers", 0, "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.answer["scenes"] == splits[selection]
    assert evaluated.answer["miou"] == trained.answer["miou"]
    for protocol in evaluated.answer["protocols"].values():
        assert protocol["pixels"]["scored"] > 0

    predicted = program("predict", "data", "--out", "masks", "--workers", 0, "--json")
    assert predicted.code == 0, predicted.err
    assert predicted.answer["done"] == sum(splits.values())
    masks = sorted(Path("masks/masks").rglob("*.png"))
    assert len(masks) == sum(splits.values())
    assert int(images.read(masks[0]).max()) < prepared.answer["classes"]


def test_no_data_set_is_left_out() -> None:
    assert set(VARIANTS) == set(DATASETS)
    assert len(DATASETS) == 9


PLAIN = {"pst900", "fmb", "nyu"}
"""Whose folders are called as anyone's may be: these are proposed all the same, with a line."""


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("inside", ["", "download"])
def test_prepare_folder_of_a_published_tree_names_its_own_command(
    name: str, inside: str, tmp_path: Path, program: Program
) -> None:
    write_tree(name, tmp_path / "data" / inside, variant=VARIANTS[name][0])
    ended = program("prepare", "folder", tmp_path / "data")
    assert f"memorysam prepare {name} {tmp_path / 'data'}" in ended.err
    assert ended.code in ((2, 3) if name in PLAIN else (2,))
    if name not in PLAIN:
        assert "Proposal" not in ended.out + ended.err and len(ended.err.splitlines()) == 1
    assert not list((tmp_path / "data").glob("memorysam/*/dataset.json"))
