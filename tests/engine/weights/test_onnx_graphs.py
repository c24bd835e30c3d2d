"""ONNX graphs of any batch and size, and with products in float16: what they compute is what PyTorch computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.encoders.hiera import SIZES, HieraEncoder
from memorysam_cli.engine.weights import portable
from memorysam_cli.engine.weights.onnx_graphs import AnyCells, halve, rounding, seven_sided
from memorysam_cli.engine.weights.portable import GraphShape, Traceable
from memorysam_cli.errors import CheckFailedError
from memorysam_cli.model import load

from ...commands.trained import save_weights

INFO = DatasetInfo(
    name="tiny", title="Tiny", classes=("road", "sky", "pole"), palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    modalities=(Modality(name="img", kind="rgb"), Modality(name="depth", kind="depth")),
)  # fmt: skip
SIZES_PX = [(32, 32), (64, 96), (128, 32), (160, 256), (288, 224)]
"""One window, several, windows that fit and windows that stick out (nano's cover 128 pixels), and rectangles."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights") / "best.safetensors", INFO)


@pytest.fixture(scope="module")
def opened(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> portable.PortableFile:
    """One export for all tests of this page; of one sensor, for tracing a second one takes half a minute more."""
    out = tmp_path_factory.mktemp("opened") / "model.onnx"
    return portable.export(weights, out, form="onnx", modalities=("img",), size=(96, 64), free=("batch", "size"))


def frames_of(batch: int, sensors: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, sensors, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@torch.inference_mode()
def expected_of(weights: Path, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at a quarter of the size, and the class of each pixel."""
    network = load(weights)
    output = network(list(frames.unbind(1)), sensors=range(frames.shape[1]))
    classes = network.upsample(output, size=(frames.shape[3], frames.shape[4])).argmax(1)
    return output.logits[:, : network.classes], classes


@pytest.mark.parametrize("size", SIZES_PX)
def test_what_depends_on_the_size_is_computed_as_in_the_network(size: tuple[int, int], weights: Path) -> None:
    """The function that is traced, run as it is: position embedding, windows, encodings, rotary tables."""
    network = load(weights)
    traceable = Traceable(network, (0, 1), AnyCells(network)).eval()
    frames = frames_of(2, 2, *size)
    with torch.inference_mode():
        logits, classes, _ = traceable(frames.view(seven_sided(frames.shape)))
    wanted, theirs = expected_of(weights, frames)
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert (classes.long() == theirs).float().mean() > 0.999


@pytest.mark.parametrize("size", [size for size in SIZES if size != "large"])
def test_published_encoders_can_be_of_any_size(size: str) -> None:
    """Where windows stick out, on the first and the last block of each stage; on a small map of random features."""
    torch.manual_seed(0)
    encoder = HieraEncoder(SIZES[size]).eval()
    cells = AnyCells.__new__(AnyCells)
    cells.encoder = encoder
    rows, columns = cells.example
    assert rows != columns and all(-(-length * 8 // side) > 1 for length in (rows, columns) for side in (8, 16))
    cells.now = type(cells.example)(3, 2)
    images = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        wanted = [level.order.join(level.tokens) for level in encoder.levels(images)]
        found = [level.order.join(level.tokens) for level in cells.levels(images)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "size"), [(1, (32, 32)), (3, (160, 32)), (2, (128, 256))])
def test_onnxruntime_runs_one_file_at_other_sizes_and_batches(
    batch: int, size: tuple[int, int], opened: portable.PortableFile, weights: Path
) -> None:
    session = onnxruntime.InferenceSession(opened.out, providers=["CPUExecutionProvider"])
    frames = frames_of(batch, opened.shape.modalities, *size)
    logits, classes, confidence = session.run(["logits", "classes", "confidence"], {"frames": frames.numpy()})
    wanted, theirs = expected_of(weights, frames)
    scale = float(wanted.abs().max())
    np.testing.assert_allclose(logits, wanted.numpy(), rtol=1e-4, atol=1e-5 * scale)
    assert classes.shape == confidence.shape == (batch, *size) and (classes == theirs.numpy()).mean() > 0.999


@pytest.mark.slow
def test_the_file_names_what_is_open_and_the_description_says_how_near_each_shape_came(
    opened: portable.PortableFile,
) -> None:
    sensors = opened.shape.modalities
    session = onnxruntime.InferenceSession(opened.out, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == "frames" and given.shape == ["batch", sensors, 3, "height", "width"]
    assert [each.shape for each in session.get_outputs()] == [
        ["batch", 3, "height/4", "width/4"], ["batch", "height", "width"], ["batch", "height", "width"],
    ]  # fmt: skip
    about = json.loads(opened.metadata.read_text())
    assert about["input"]["dynamic"] == ["batch", "size"] and about["input"]["multiple_of"] == 32
    assert [each["input"] for each in about["checked"]] == [
        [1, sensors, 3, 96, 64], [1, sensors, 3, 32, 32], [2, sensors, 3, 160, 96],
    ]  # fmt: skip
    assert all(each["relative"] < 1e-4 and each["agreement"] > 99.9 for each in about["checked"])
    operators = {node.op_type for node in onnx.load(opened.out).graph.node}
    assert not {each for each in operators if "Sequence" in each or each in {"Loop", "If", "Scan"}}


@pytest.mark.slow
def test_products_in_float16_come_near_and_halve_the_file(opened: portable.PortableFile, weights: Path) -> None:
    proto = onnx.load(opened.out)
    halve(proto)
    onnx.checker.check_model(proto)
    data = proto.SerializeToString()
    kinds = {each.name: each.data_type for each in proto.graph.initializer}
    products = [node for node in proto.graph.node if node.op_type in {"MatMul", "Gemm", "Conv", "ConvTranspose"}]
    assert len(products) > 20
    stored = {kinds[name] for node in products for name in node.input if name in kinds}
    assert stored == {TensorProto.FLOAT16} and len(data) < 0.75 * opened.out.stat().st_size
    for shape in opened.shape._replace(half=True).checked():
        found = portable.compare(load(weights), portable._reader(rounding(data), form="onnx"), shape)
        assert 1e-5 < found.relative < portable.HALF_TOLERANCE and found.agreement > 97


def test_what_a_product_is_given_is_rounded_and_nothing_else() -> None:
    """By hand: 1 + 2^-12 is 1 in float16, whose numbers near 1 are 2^-10 apart; so 3 · 1, plus 1 + 2^-12 as it is."""
    near = np.float32(1 + 2**-12)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "x"], ["z"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.float32([[3]]), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    halve(model)
    session = onnxruntime.InferenceSession(rounding(model.SerializeToString()), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.array([[near]])})
    assert found.dtype == np.float32 and found.item() == 3 + near


def test_a_weight_beyond_float16_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.float32([[70000]]), "w")],
    )  # fmt: skip
    with pytest.raises(CheckFailedError, match=r"the weights hold 7e\+04, more than float16 can"):
        halve(helper.make_model(graph))


def test_shapes_that_are_compared_are_those_that_are_open() -> None:
    shape = GraphShape(1, 2, 96, 64)
    assert shape.checked() == [shape]
    batches = shape._replace(free=("batch",))
    assert [each.frames for each in batches.checked()] == [(1, 2, 3, 96, 64), (2, 2, 3, 96, 64)]
    sizes = shape._replace(free=("size",))
    assert [each.frames for each in sizes.checked()] == [(1, 2, 3, 96, 64), (1, 2, 3, 32, 32), (1, 2, 3, 160, 96)]
