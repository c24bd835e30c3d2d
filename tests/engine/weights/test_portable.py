"""Exported networks compute what PyTorch computes, and what does not is never kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.encoders import products
from memorysam_cli.engine.weights import portable
from memorysam_cli.engine.weights.portable import GraphShape
from memorysam_cli.errors import CheckFailedError, UsageError
from memorysam_cli.model import load
from memorysam_cli.model import weights as weights_module

from ...commands.trained import save_weights

INFO = DatasetInfo(
    name="tiny",
    title="Tiny",
    classes=("road", "sky", "pole"),
    palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    modalities=(
        Modality(name="img", kind="rgb", mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2)),
        Modality(name="depth", kind="depth", scale=0.001, offset=-1.0),
    ),
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "best.safetensors", INFO)


@pytest.fixture(scope="module")
def traced(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> portable.PortableFile:
    """Of two sensors and two scenes; tests/commands/test_export.py has a graph of one, in the plain run, too."""
    out = tmp_path_factory.mktemp("traced") / "model.pt2"
    return portable.export(weights, out, form="torch-export", size=(32, 64), batch=2)


@pytest.mark.slow
def test_a_graph_gives_logits_classes_and_confidence_of_the_network(
    weights: Path, traced: portable.PortableFile, capfd: pytest.CaptureFixture[str]
) -> None:
    extra = {"memorysam.json": ""}
    program = torch.export.load(traced.out, extra_files=extra)
    frames = torch.rand(2, 2, 3, 32, 64, generator=torch.Generator().manual_seed(7))
    network = load(weights)
    with torch.inference_mode():
        logits, classes, confidence = program.module()(frames)
        expected = network.logits(list(frames.unbind(1)))
        coarse = network(list(frames.unbind(1))).logits
    torch.testing.assert_close(logits, coarse, rtol=1e-4, atol=1e-5)
    assert classes.dtype == torch.uint8 and classes.shape == (2, 32, 64)
    assert torch.equal(classes.long(), expected.argmax(1))
    torch.testing.assert_close(confidence, expected.softmax(1).amax(1), rtol=1e-4, atol=1e-5)
    checked = {"checked": traced.to_json()}
    assert json.loads(extra["memorysam.json"]) | checked == json.loads(traced.metadata.read_text())
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_graph_has_operators_of_pytorch_only(traced: portable.PortableFile) -> None:
    nodes = torch.export.load(traced.out).graph.nodes
    operators = {str(node.target) for node in nodes if node.op == "call_function"}
    foreign = [name for name in operators if not name.startswith("aten.") and "getitem" not in name]
    assert len(operators) > 20 and not foreign


def test_the_description_says_all_that_a_consumer_needs(weights: Path) -> None:
    shape = GraphShape(2, 2, 32, 64)
    about = portable.describe(load(weights).card, ["img", "depth"], shape, form="torch-export", digest="ab" * 32)
    assert about["input"] == {
        "name": "frames", "shape": [2, 2, 3, 32, 64], "dtype": "float32", "dynamic": [], "multiple_of": 32
    }  # fmt: skip
    assert [(one["name"], one["shape"]) for one in about["outputs"]] == [
        ("logits", [2, 3, 8, 16]), ("classes", [2, 32, 64]), ("confidence", [2, 32, 64]),
    ]  # fmt: skip
    assert about["classes"] == ["road", "sky", "pole"] and about["palette"][1] == [4, 5, 6]
    img, depth = about["modalities"]
    assert img["mean"] == [0.4, 0.5, 0.6] and img["scale"] is None
    assert depth["scale"] == 0.001 and depth["offset"] == -1 and depth["mean"] is None
    assert about["metric"]["miou"] == 12.5 and about["weights_sha256"] == "ab" * 32


@pytest.mark.slow
def test_the_difference_is_that_of_float32_sums(traced: portable.PortableFile) -> None:
    found = traced.likeness
    assert 0 <= found.relative < 1e-5 and found.agreement == 100 and not found.is_silent


@pytest.mark.slow
def test_the_fast_products_come_back_after_tracing(traced: portable.PortableFile) -> None:
    assert products._onednn_types() == products.TYPES


def test_what_computes_something_else_is_refused_and_not_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load(weights)

    def run(frames: Any) -> list[Any]:
        with torch.inference_mode():
            logits = network([torch.from_numpy(frames[:, 0])]).logits.numpy()
        return [logits * factor, np.zeros((1, 32, 32), np.uint8), None]

    monkeypatch.setattr(portable, "trace", lambda *_: None)
    monkeypatch.setattr(portable, "_write", lambda *_, form: b"made")
    monkeypatch.setattr(portable, "_reader", lambda *_, form: run)
    factor = 1.0001
    portable.export(weights, tmp_path / "near.pt2", form="torch-export", modalities=["img"], size=(32, 32))
    factor = 1.01
    with pytest.raises(CheckFailedError, match=r"differs from PyTorch by .* allowed 0.001\); it was not kept"):
        portable.export(weights, tmp_path / "m.pt2", form="torch-export", modalities=["img"], size=(32, 32))
    assert {path.name for path in tmp_path.iterdir()} == {"near.pt2", "near.json"}


def test_what_is_not_a_number_is_refused(weights: Path) -> None:
    shape = GraphShape(1, 1, 32, 32)
    nan = np.full((1, 3, 8, 8), np.nan, np.float32)
    zeros = np.zeros((1, 32, 32), np.uint8)
    assert not portable.compare(load(weights), lambda frames: [nan, zeros, zeros], shape).relative <= portable.TOLERANCE


def test_where_the_gate_silences_noise_the_open_graph_is_compared_and_the_gated_one_kept(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = weights_module.load

    def shut(path: Path) -> Any:
        network = real(path)
        network.object_gate = True
        head = network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1]
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(-9.0)
        return network

    def read(data: bytes, *, form: str) -> Any:
        network = shut(weights)
        network.object_gate = data == b"gated"

        def run(frames: Any) -> list[Any]:
            with torch.inference_mode():
                logits = network([torch.from_numpy(frames[:, 0])]).logits.numpy()
            return [logits * 1.0001, np.zeros((1, 32, 32), np.uint8), None]

        return run

    monkeypatch.setattr(portable, "load", shut)
    monkeypatch.setattr(portable, "trace", lambda network, _: network)
    monkeypatch.setattr(portable, "_write", lambda network, *_, form: b"gated" if network.object_gate else b"open")
    monkeypatch.setattr(portable, "_reader", read)
    silent = portable.compare(shut(weights), read(b"gated", form="onnx"), GraphShape(1, 1, 32, 32))
    assert silent.is_silent and silent.relative == 0, "noise alone would let anything pass"
    made = portable.export(weights, tmp_path / "m.pt2", form="torch-export", modalities=["img"], size=(32, 32))
    assert made.likeness.relative == pytest.approx(1e-4, rel=0.01) and not made.likeness.is_silent
    assert made.out.read_bytes() == b"gated"


@pytest.mark.parametrize("size", [(33, 32), (0, 32), (16, 16)])
def test_a_size_that_the_network_cannot_see_is_refused(size: tuple[int, int], weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiples of 32"):
        portable.export(weights, tmp_path / "m.pt2", form="torch-export", size=size)


def test_a_sensor_that_the_weights_lack_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lidar"):
        portable.export(weights, tmp_path / "m.pt2", form="torch-export", modalities=["lidar"])


def test_onnx_without_its_packages_says_what_to_install(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"--format onnx: onnx is not installed; pip install 'memorysam\[onnx\]'"):
        portable.export(weights, tmp_path / "m.onnx", form="onnx")


def test_more_than_255_classes_are_int32_in_the_description(weights: Path) -> None:
    card = load(weights).card
    many = INFO.model_copy(update={"classes": tuple(map(str, range(300))), "palette": ((0, 0, 0),) * 300})
    about = portable.describe(
        card.model_copy(update={"dataset": many}), ["img"], GraphShape(1, 1, 32, 32), form="onnx", digest=""
    )  # fmt: skip
    assert about["outputs"][1]["dtype"] == "int32"


@pytest.mark.parametrize("antialias", [None, True])
def test_the_description_says_how_images_shrink(weights: Path, antialias: bool | None) -> None:
    card = load(weights).card
    data = card.recipe.data.model_copy(update={"antialias": antialias})
    card = card.model_copy(update={"recipe": card.recipe.model_copy(update={"data": data})})
    about = portable.describe(card, ["img"], GraphShape(1, 1, 32, 32), form="onnx", digest="")
    assert about["modalities"][0]["antialias"] is bool(antialias)  # the card of the data set says no


def test_rotation_in_real_numbers_is_that_in_complex_ones() -> None:
    values = torch.randn(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    angles = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
    table = torch.polar(torch.ones_like(angles), angles)
    turned, again = portable.rotate_in_real_numbers(values, values, table)
    expected = torch.view_as_real(torch.view_as_complex(values.reshape(2, 1, 6, 4, 2)) * table).flatten(3)
    torch.testing.assert_close(turned, expected)
    torch.testing.assert_close(again, expected)
