from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.dataset import Modality
from memorysam_cli.engine.infer.views import View
from memorysam_cli.errors import WeightsError
from memorysam_cli.model.weights import Segmenter

from ..stand_ins import MODALITIES, write_data
from .jobs import job_of


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    return write_data(tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"weights_sha256": "0" * 64}, "weights"),
        ({"modalities": MODALITIES[:1]}, "modalities"),
        ({"extras": ("color",)}, "pictures"),
        ({"view": View(missing="zero")}, "missing"),
        ({"view": View(scales=(1.0,))}, "tta"),
        ({"view": View(tile=True)}, "tile"),
        ({"batch": 3}, "--batch"),
        ({"precision": "bf16"}, "--precision"),
        ({"is_compiled": True}, "--compile"),
    ],
    ids=str,
)
def test_whatever_decides_a_byte_makes_another_job(data: Manifest, change: dict[str, Any], mark: str) -> None:
    job, other = job_of(data), job_of(data, **change)
    assert job.sha256 != other.sha256
    assert [name for name in job.marks if job.marks[name] != other.marks[name]] == [mark]


def test_other_scenes_names_files_or_order_make_another_job(data: Manifest) -> None:
    job, (first, *rest) = job_of(data), data.scenes
    others = (
        rest,
        (*rest, first),
        (replace(first, id="x"), *rest),
        (replace(first, files={"img": first.files["img"]}), *rest),
    )
    assert len({job.sha256, *(job_of(data, scenes=scenes).sha256 for scenes in others)}) == 5


def test_what_decides_nothing_makes_no_other_job(data: Manifest, tmp_path: Path) -> None:
    job = job_of(data)
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(job.weights.read_bytes())
    unlabeled = tuple(replace(scene, label=None, condition=None) for scene in data.scenes)
    assert job_of(data, weights=moved, root=tmp_path, source="x", scenes=unlabeled).sha256 == job.sha256


def test_large_frames_come_one_at_a_time(data: Manifest) -> None:
    assert job_of(data).stride == 2 and job_of(data, view=View(tile=True)).stride == 1


def test_weights_that_change_after_the_planning_are_refused(data: Manifest) -> None:
    job = job_of(data)
    job.load(torch.device("cpu"))
    with pytest.raises(WeightsError, match="has changed since this prediction began"):
        job_of(data, weights_sha256="0" * 64).load(torch.device("cpu"))


def test_compiling_is_the_networks(data: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Segmenter] = []

    def compile_blocks(network: Segmenter) -> None:
        compiled.append(network)

    monkeypatch.setattr(Segmenter, "compile_blocks", compile_blocks, raising=False)
    job_of(data).load(torch.device("cpu"))
    assert not compiled
    network = job_of(data, is_compiled=True).load(torch.device("cpu"))
    assert compiled == [network]


def test_facts_tell_what_was_computed_with_what(data: Manifest) -> None:
    extra = Modality(name="lidar", kind="rgb")
    facts = job_of(data, precision="bf16", modalities=(*MODALITIES, extra)).facts(["cpu", "H200"])
    assert (facts["device"], facts["precision"], facts["modalities"]) == ("cpu + H200", "bf16", ["img", "depth"])
