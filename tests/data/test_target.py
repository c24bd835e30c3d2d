from __future__ import annotations

from pathlib import Path

import pytest

from memorysam_cli.data import preparation
from memorysam_cli.errors import DataError, UsageError

from ..engine.stand_ins import write_data
from .trees import VARIANTS, write_tree


def test_the_only_prepared_data_set_is_meant(tmp_path: Path) -> None:
    write_data(tmp_path)
    assert preparation.find_target(tmp_path).info.name == "tiny"


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_published_one_is_known_by_its_files(tmp_path: Path, name: str) -> None:
    write_tree(name, tmp_path / name)
    found = preparation.find_target(tmp_path)
    assert found.info.name == name and found.scenes
    assert not (tmp_path / "memorysam").exists()


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        preparation.find_target(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no prepared data set and none that is known .*prepare folder"):
        preparation.find_target(tmp_path)
    with pytest.raises(DataError, match="did you mean 'deliver'"):
        preparation.find_target(tmp_path, dataset="deliwer")


def test_of_several_one_must_be_named(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "memorysam" / "tiny").rename(tmp_path / "memorysam" / "other")
    write_data(tmp_path)
    line = f"memorysam check {tmp_path} --dataset other"
    with pytest.raises(UsageError, match=rf"2 data sets are prepared there; type: {line} \(or --dataset tiny\)"):
        preparation.find_target(tmp_path)
    assert preparation.find_target(tmp_path, dataset="tiny").info.name == "tiny"


def test_the_folder_that_prepare_prints_names_its_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_data(tmp_path).root
    place = root / "memorysam" / "tiny"
    assert preparation.find_target(place) == preparation.find_target(root, dataset="tiny")
    with pytest.raises(DataError, match="no data set 'other' is prepared there"):
        preparation.find_target(place, dataset="other")
    monkeypatch.chdir(place)
    assert preparation.find_target(Path()).root == root
