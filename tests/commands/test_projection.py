"""A sensor of six bands by a learned projection: from ``prepare folder`` to every command that uses the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from memorysam_cli import Predictor, app
from memorysam_cli.model import load
from memorysam_cli.model.network import Projection

from ..data.own_sensors import write_sensors
from .trained import Program, traced_by

TINY = ("model.backbone=nano", "data.image_size=32", "data.workers=0", "train.batch=2", "train.max_steps=2")
LEARN = ("model.projection=[ms]", "optim.lr=0.01", "robust.subset.weight=1", "robust.subset.weak=[ms]")
WEIGHTS = "run/checkpoints/best.safetensors"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for two updates; the sensor has the frames ms-1 (bands 0, 1, 2) and ms-2 (3, 4, 5)."""
    folder = tmp_path_factory.mktemp("template")
    data = write_sensors(folder / "data", scenes=8)
    prepare = ["prepare", "folder", str(data), "--name", "rig", "--classes", str(data / "classes.txt")]
    prepare += ["--modality", "rgb=images/**/*.jpg", "--modality", "ms=ms/**/*.npy", "--channels", "ms=0-5"]
    assert app.run([*prepare, "--labels", "masks/**/*.png", "--split", "0.5/0.5"]) == 0
    changes = [word for change in (*TINY, *LEARN) for word in ("--set", change)]
    assert app.run(["train", "--data", str(data), "--out", str(folder / "run"), *changes]) == 0
    return folder


def test_it_was_trained_and_the_card_knows(here: Path, memorysam: Program) -> None:
    network = load(WEIGHTS)
    (weight,) = network.projection.parameters()
    (begun,) = Projection({"rgb": (0,), "ms": (1, 2)}).parameters()
    assert weight.shape == (3, 6) and not torch.equal(weight, begun)
    assert network.card.recipe.sensors == {"rgb": ("rgb",), "ms": ("ms-1", "ms-2")}
    ended = memorysam("weights", "verify", WEIGHTS, "--json")
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("sensors", [{"rgb", "ms"}, {"ms"}])
def test_predict_and_the_predictor_use_it_by_themselves(sensors: set[str], here: Path, memorysam: Program) -> None:
    """The raw array under the sensor's own name is enough."""
    name = "cam0/0000"
    given = {
        "rgb": cv2.imread(f"data/images/{name}.jpg")[..., ::-1].copy(),
        "ms": np.load(f"data/ms/{name}.npy"),
    }  # fmt: skip
    some = () if len(sensors) == 2 else ("--modalities", "ms")
    ended = memorysam("predict", "data", "--weights", WEIGHTS, "--out", "masks", "--workers", 0, *some)
    assert ended.code == 0, ended.err
    with Predictor(WEIGHTS) as predictor:
        found = predictor({sensor: given[sensor] for sensor in sensors})
        (mask,) = Path("masks").rglob(f"{name}.png")
        np.testing.assert_array_equal(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED), found.classes)
        changed = given | {"ms": given["ms"] * np.float32([1, 1, 1, 1, 1, 9])}  # the last band counts, too
        other = predictor({sensor: changed[sensor] for sensor in sensors})
    assert not np.array_equal(found.confidence, other.confidence)


def test_a_failing_sensor_fails_with_all_its_frames(here: Path, memorysam: Program) -> None:
    options = ("--weights", WEIGHTS, "--split", "val", "--data", "data", "--workers", 0, "--json")
    ended = memorysam("evaluate", *options, "--robustness", "any")
    assert ended.code == 0, ended.err
    sets = ended.answer["levels"][0]["sets"]
    assert [each["available"] for each in sets] == [["rgb", "ms"], ["ms"], ["rgb"]]
    alone = memorysam("evaluate", *options, "--modalities", "ms", "--out", "alone")
    assert alone.code == 0, alone.err
    assert sets[1]["miou"] == pytest.approx(alone.answer["miou"], abs=0.05)
    noisy = memorysam("evaluate", *options, "--robustness", "rmm", "--out", "noisy")
    assert noisy.code == 0, noisy.err


EXPORT = ("export", WEIGHTS, "--format", "torch-export", "--size", "32", "--out", "m.pt2", "--json")


@pytest.mark.slow  # tracing takes a quarter of a minute
def test_an_export_has_it(here: Path, memorysam: Program) -> None:
    ended = memorysam(*EXPORT)
    assert ended.code == 0, ended.err  # compared with PyTorch by the command itself
    assert ended.answer["input"] == [1, 3, 3, 32, 32] and ended.answer["relative"] < 1e-4


def test_what_an_export_traces_has_it(here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a traced graph computes the same is the promise of test_portable.py."""
    torch.testing.assert_close(*traced_by(memorysam, EXPORT, monkeypatch), rtol=1e-4, atol=1e-4)


def test_merged_weights_have_it_and_plain_sam2_is_refused(here: Path, memorysam: Program) -> None:
    ended = memorysam("weights", "merge", WEIGHTS, "--out", "m.safetensors")
    assert ended.code == 0, ended.err
    frames = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    logits: Callable[[str], torch.Tensor] = lambda path: load(path).logits(frames)  # noqa: E731
    torch.testing.assert_close(logits("m.safetensors"), logits(WEIGHTS), rtol=0, atol=0)
    for form in ("merged", "reference"):
        ended = memorysam("weights", "export", WEIGHTS, "--format", form, "--out", f"{form}.safetensors")
        assert ended.code == 5 and "was trained with model.projection" in ended.err
        assert not Path(f"{form}.safetensors").exists()


def test_a_sensor_without_frames_to_join_is_refused_in_one_line(here: Path, memorysam: Program) -> None:
    ended = memorysam("train", "--data", "data", "--out", "other", "--set", "model.projection=[rgb]")
    assert ended.code == 2 and ended.err.count("\n") == 1 and "'rgb' is a single frame" in ended.err
    assert not Path("other").exists()
