from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memorysam_cli.data.inputs import discover
from memorysam_cli.data.listing import files_in, relative, sample_names, subfolders, walk
from memorysam_cli.data.own.patterns import Pattern
from memorysam_cli.errors import EnvironmentFault
from memorysam_cli.storage import images


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_names_are_sorted_and_hidden_ones_left_out(tmp_path: Path) -> None:
    make(tmp_path, "b/x", "a/x", ".c/x", "2", "10", ".hidden")
    assert subfolders(tmp_path) == ["a", "b"]
    assert files_in(tmp_path) == ["10", "2"]


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert subfolders(tmp_path / "x") == files_in(tmp_path / "x") == []


def test_a_walk_visits_every_folder_once_even_in_a_loop(tmp_path: Path) -> None:
    make(tmp_path, "1", "a/2", "a/b/3", "c/4")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert list(walk(tmp_path)) == [("", ["1"]), ("a", ["2"]), ("c", ["4"]), ("a/b", ["3"])]


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "real/1", "top/2")
    (tmp_path / "top" / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert dict(walk(tmp_path / "top")) == {"": ["2"], "link": ["1"]}


def test_sample_names_are_the_first_few(tmp_path: Path) -> None:
    make(tmp_path, "a/2", "a/1", "b/3")
    assert sample_names(tmp_path) == ["a/1", "a/2"]
    assert sample_names(tmp_path / "none") == []


def test_relative_paths_have_forward_slashes(tmp_path: Path) -> None:
    assert relative(tmp_path / "a" / "b", tmp_path).as_posix() == "a/b"
    assert relative(tmp_path, tmp_path).as_posix() == "."


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one that nobody may look into, also for a superuser."""
    scan = os.scandir

    def close(folder: Path) -> None:
        def scandir(place: Any) -> Any:
            if Path(place) == folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(place))
            return scan(place)

        monkeypatch.setattr(os, "scandir", scandir)

    return close


def test_a_sensors_folder_that_cannot_be_looked_into_is_never_passed_over(
    tmp_path: Path, closed: Callable[[Path], None]
) -> None:
    for path in ("rgb/cam1/1.png", "rgb/cam2/2.png", "depth/cam1/1.png", "other/x.png", "lost+found/y.png"):
        images.write_png(tmp_path / path, np.zeros((2, 2), np.uint8), fsync=False)
    closed(tmp_path / "rgb/cam2")
    assert dict(walk(tmp_path))["rgb/cam1"] == ["1.png"]
    with pytest.raises(EnvironmentFault, match=r"rgb/cam2: cannot be listed \(Permission denied\)"):
        Pattern("rgb/*/*.png").find(tmp_path)
    with pytest.raises(EnvironmentFault, match="rgb/cam2: cannot be listed"):
        Pattern("rgb/**/*.png").find(tmp_path)
    with pytest.raises(EnvironmentFault, match="rgb/cam2: cannot be listed"):
        discover(tmp_path, modalities=("rgb", "depth"))
    # What no pattern reaches, and what stands for no sensor, are nobody's business.
    images.write_png(tmp_path / "rgb/3.png", np.zeros((2, 2), np.uint8), fsync=False)
    assert [match.path for match in Pattern("rgb/*.png").find(tmp_path)] == ["rgb/3.png"]
    closed(tmp_path / "other")
    assert len(discover(tmp_path, modalities=("depth",)).scenes) == 1
    assert len(Pattern("depth/**/*.png").find(tmp_path)) == 1
