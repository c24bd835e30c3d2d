from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.predict import job
from memorysam_cli.errors import UsageError

from ..stand_ins import MODALITIES, write_data


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path / "data")


def test_aliases_are_read_and_wrong_ones_refused_with_the_right_one() -> None:
    known = ["img", "depth"]
    assert job.read_aliases(None, known) == {}
    assert job.read_aliases(["img=rgb", "depth = d"], known) == {"img": "rgb", "depth": "d"}
    for text, words in {
        "img": "must be MODALITY=NAME, for example img=rgb",
        "img=": "must be MODALITY=NAME",
        "rgb=img": r"did you mean --map img=rgb\?",
        "dept=d": r"did you mean 'depth'\?",
    }.items():
        with pytest.raises(UsageError, match=words):
            job.read_aliases([text], known)
    with pytest.raises(UsageError, match="'img' is mapped to 'a' already"):
        job.read_aliases(["img=a", "img=b"], known)
    assert job.read_aliases(["img=depth", "depth=img"], known) == {"img": "depth", "depth": "img"}
    for texts in (["img=depth"], ["img=d", "depth=D"]):  # one file cannot be two sensors
        with pytest.raises(UsageError, match="would be both 'img' and 'depth'"):
            job.read_aliases(texts, known)


def test_plain_depth_for_a_network_that_knows_hha_is_doubted(data: Manifest) -> None:
    as_hha = (MODALITIES[0], MODALITIES[1].model_copy(update={"kind": "hha"}))
    (doubt,) = job.doubts(data.scenes, root=data.root, modalities=as_hha)
    assert doubt.startswith(f"{data.scenes[0].files['depth'][0]}: has one channel")
    assert job.doubts(data.scenes, root=data.root, modalities=MODALITIES) == []
    pictures = [replace(scene, files={"depth": scene.files["img"]}) for scene in data.scenes]
    assert job.doubts(pictures, root=data.root, modalities=as_hha) == []
    missing = [replace(scene, files={"depth": ("nowhere.png",)}) for scene in data.scenes]
    assert job.doubts(missing, root=data.root, modalities=as_hha) == []
