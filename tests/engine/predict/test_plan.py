from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine.infer.inference import frame_sizes, notes_on_sizes
from memorysam_cli.engine.predict import job
from memorysam_cli.errors import UsageError
from memorysam_cli.storage import images

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


@pytest.mark.parametrize(
    ("frame", "tile", "words"),
    [
        ((64, 192), False, None),  # 3:1 is not beyond it
        ((192, 192), False, None),  # nor are 3 times the size
        ((64, 193), False, "64×193 px, far from square: shown .* at 64×224 px; --tile shows windows of 64×64 px"),
        ((640, 64), False, r"far from square: .* at 512×64 px, squeezed to 8 times its short side; --tile shows"),
        ((20, 100), False, r"at 64×320 px; cut it into pieces .*\(--tile acts from a short side of 64 px on\)"),
        ((20, 100), True, "cut it into pieces"),
        ((193, 386), False, "193×386 px, more than 3 times the 64 px .* at 64×128 px; --tile shows windows of 64×64"),
        ((193, 386), True, None),
        ((64, 640), True, None),
    ],
)
def test_frames_that_can_hardly_be_seen_are_named_with_what_is_done(
    frame: tuple[int, int], tile: bool, words: str | None
) -> None:
    notes = notes_on_sizes({"usual": (64, 96), "odd": frame}, size=64, tile=tile)
    assert len(notes) == (words is not None)
    if words is not None:
        assert notes[0].startswith("scene odd: ") and re.search(words, notes[0]), notes[0]


def test_sizes_are_of_the_frames_that_can_be_read(data: Manifest) -> None:
    found = frame_sizes(data.scenes, root=data.root, modalities=MODALITIES)
    assert found == {scene.id: images.shape(data.root / scene.files["img"][0])[:2] for scene in data.scenes}
    (data.root / data.scenes[0].files["img"][0]).write_bytes(b"no picture")
    left = frame_sizes(data.scenes, root=data.root, modalities=MODALITIES)
    assert left == {name: size for name, size in found.items() if name != data.scenes[0].id}


def test_plain_depth_for_a_network_that_knows_hha_is_doubted(data: Manifest) -> None:
    as_hha = (MODALITIES[0], MODALITIES[1].model_copy(update={"kind": "hha"}))
    (doubt,) = job.doubts(data.scenes, root=data.root, modalities=as_hha)
    assert doubt.startswith(f"{data.scenes[0].files['depth'][0]}: has one channel")
    assert job.doubts(data.scenes, root=data.root, modalities=MODALITIES) == []
    pictures = [replace(scene, files={"depth": scene.files["img"]}) for scene in data.scenes]
    assert job.doubts(pictures, root=data.root, modalities=as_hha) == []
    missing = [replace(scene, files={"depth": ("nowhere.png",)}) for scene in data.scenes]
    assert job.doubts(missing, root=data.root, modalities=as_hha) == []
