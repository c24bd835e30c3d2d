"""Scenes as files, and shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memorysam_cli.data.loader import training_batches
from memorysam_cli.engine.measure import input_speed
from memorysam_cli.engine.measure.workload import Workload
from memorysam_cli.errors import EnvironmentFault, UsageError

SIX = tuple(f"sensor-{number}" for number in range(1, 7))


def test_a_few_scenes_are_listed_often_and_read_under_as_many_names_as_asked(tmp_path: Path) -> None:
    manifest = input_speed.write_scenes(tmp_path, names=SIX, size=64, scenes=9)
    assert len({scene.id for scene in manifest.scenes}) == len(manifest.of_split("train")) == 9
    first = manifest.scenes[0].files
    assert tuple(first) == SIX and first["sensor-1"] == first["sensor-5"] != first["sensor-2"]
    assert manifest.info.modality("sensor-6").kind == "hha"  # as the second of the rendered sensors
    assert manifest.scenes[4].files == first
    every = sum((tmp_path / path).stat().st_size for group in first.values() for path in group)
    assert input_speed.bytes_per_scene(manifest) > every / 2


def test_what_is_read_suits_the_network(tmp_path: Path) -> None:
    asked = Workload(backbone="nano", modalities=6, size=64, batch=2)
    recipe = asked.recipe()
    manifest = input_speed.write_scenes(tmp_path, names=recipe.data.modalities, size=64, scenes=2)
    alone = recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": 0})})
    (batch,) = training_batches(manifest, scenes=manifest.scenes, recipe=alone, epoch=0)
    assert [frame.shape for frame in batch.frames] == [(2, 3, 64, 64)] * 6
    assert batch.label is not None and int(batch.label[batch.label != 255].max()) < asked.classes


def test_shares_by_hand() -> None:
    found = input_speed._compared([1.0, 9.0, 3.0], 4.0, batch=2, workers=1)
    assert found == {
        "model_scenes_per_second": pytest.approx(2 / 3),
        "scenes_per_second": 0.5,
        "share_percent": 75.0,
        "workers": 1,
    }


def test_a_precision_that_the_device_lacks_is_refused_before_anything_is_rendered() -> None:
    with pytest.raises(UsageError, match="tf32 needs an NVIDIA GPU"):
        input_speed.measure(Workload(backbone="nano", precision="tf32"), torch.device("cpu"), repeats=1)


def test_a_lack_of_memory_names_the_options_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(input_speed, "write_scenes", render)
    with pytest.raises(EnvironmentFault, match="try --saver on, --precision bf16, a smaller --batch"):
        input_speed.measure(Workload(backbone="nano", size=64), torch.device("cpu"), repeats=1)
