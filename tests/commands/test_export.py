"""``memorysam export``, and the ten lines of docs/export.md exactly as they are printed there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from memorysam_cli.data.transforms import to_tensor
from memorysam_cli.dataset import DatasetInfo, Modality
from memorysam_cli.encoders import products
from memorysam_cli.engine.weights import portable
from memorysam_cli.model import Segmenter, load

from .trained import Program, save_weights, stand_in

PAGE = Path(__file__).parent.parent.parent / "docs" / "export.md"
INFO = DatasetInfo(
    name="tiny",
    title="Tiny",
    classes=("road", "sky", "pole"),
    palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)),
    modalities=(Modality(name="img", kind="rgb", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    save_weights(folder / "best.safetensors", INFO, modalities=("img",))
    return folder


@pytest.fixture(scope="module")
def once() -> Iterator[None]:
    """A network of one size is traced and converted to ONNX once, and each test gets a copy."""
    trace, convert = portable.trace, torch.onnx.export
    traced: dict[tuple[int, ...], Any] = {}
    converted: dict[int, bytes] = {}

    def trace_once(network: Segmenter, shape: portable.GraphShape) -> Any:
        if shape.frames not in traced:
            traced[shape.frames] = trace(network, shape)
        return traced[shape.frames]

    def convert_once(program: Any, *arguments: Any, **options: Any) -> Any:
        if id(program) not in converted:
            converted[id(program)] = convert(program, *arguments, **options).model_proto.SerializeToString()
        return SimpleNamespace(model_proto=onnx.ModelProto.FromString(converted[id(program)]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "trace", trace_once)
        patch.setattr(torch.onnx, "export", convert_once)
        yield


@pytest.mark.usefixtures("once")
def test_the_ten_lines_of_the_page_segment_an_image_as_the_network_does(here: Path, memorysam: Program) -> None:
    ended = memorysam("export", "best.safetensors", "--format", "onnx", "--size", "64x96", "--out", "m.onnx", "--json")
    assert ended.code == 0, ended.err
    answer = ended.answer
    assert answer["input"] == [1, 1, 3, 64, 96] and answer["relative"] < 1e-4 and answer["agreement"] > 99.9
    assert answer["bytes"] == Path("m.onnx").stat().st_size and Path(answer["metadata"]).is_file()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 12
    image = np.random.Generator(np.random.PCG64(4)).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    cv2.imwrite("scene.png", image[..., ::-1])
    subprocess.run([sys.executable, "-c", code, "m.onnx", "classes.png", "scene.png"], check=True)
    found = cv2.imread("classes.png", cv2.IMREAD_UNCHANGED)
    with torch.inference_mode():
        expected = load("best.safetensors").logits([to_tensor(image, INFO.modalities[0])[None]]).argmax(1)[0]
    assert found.shape == (64, 96) and (found == expected.numpy()).mean() > 0.999
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    shapes = {each.name: tuple(each.shape) for each in session.get_outputs()}
    assert shapes == {"logits": (1, 3, 16, 24), "classes": (1, 64, 96), "confidence": (1, 64, 96)}
    frames = torch.rand(1, 1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        sure = load("best.safetensors").logits([frames[:, 0]]).softmax(1).amax(1)
    (confidence,) = session.run(["confidence"], {"frames": frames.numpy()})
    np.testing.assert_allclose(confidence, sure.numpy(), atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["memorysam"])
    beside = json.loads(Path("m.json").read_text())
    assert about | {"checked": answer["checked"]} == beside and about["format"] == "onnx"
    assert [each["input"] for each in answer["checked"]] == [[1, 1, 3, 64, 96]] and answer["dynamic"] == []


@pytest.mark.usefixtures("once")
def test_a_graph_for_torch_gives_logits_classes_and_confidence_of_the_network(here: Path, memorysam: Program) -> None:
    asked = ("export", "best.safetensors", "--format", "torch-export", "--size", "64x96", "--out", "m.pt2", "--json")
    ended = memorysam(*asked)
    assert ended.code == 0, ended.err
    assert 0 <= ended.answer["relative"] < 1e-5 and ended.answer["agreement"] == 100  # 0 on some processors
    assert products._onednn_types() == products.TYPES, "the fast products are back"
    extra = {"memorysam.json": ""}
    program = torch.export.load("m.pt2", extra_files=extra)
    checked = {"checked": ended.answer["checked"]}
    assert json.loads(extra["memorysam.json"]) | checked == json.loads(Path("m.json").read_text())
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    foreign = [name for name in operators if not name.startswith("aten.") and "getitem" not in name]
    assert len(operators) > 20 and not foreign
    frames = torch.rand(1, 1, 3, 64, 96, generator=torch.Generator().manual_seed(7))
    network = load("best.safetensors")
    with torch.inference_mode():
        logits, classes, confidence = program.module()(frames)
        expected, coarse = network.logits([frames[:, 0]]), network([frames[:, 0]]).logits
    torch.testing.assert_close(logits, coarse, rtol=1e-4, atol=1e-5)
    assert classes.dtype == torch.uint8 and classes.shape == (1, 64, 96)
    assert torch.equal(classes.long(), expected.argmax(1))
    torch.testing.assert_close(confidence, expected.softmax(1).amax(1), rtol=1e-4, atol=1e-5)


def test_the_answer_for_people_says_how_near_it_comes(
    here: Path, memorysam: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(path: Path, out: Path, **asked: object) -> portable.PortableFile:
        expected = {"form": "torch-export", "modalities": ["img"], "size": (96, 96), "batch": 2}
        assert asked == expected | {"free": (), "half": False}
        return stand_in(out, portable.GraphShape(2, 1, 96, 96))

    monkeypatch.setattr(portable, "export", made)
    ended = memorysam(
        "export", "best.safetensors", "--format", "torch-export", "-m", "img", "--size", "96", "--batch", 2
    )
    assert ended.code == 0
    assert "best.pt2 (torch-export, 0.0 MB, input 2x1x3x96x96" in ended.out
    assert "logits differ by 4e-06 at most (3e-07 of their size), 100.00 % of the pixels" in ended.out


@pytest.mark.usefixtures("once")
def test_half_precision_is_compared_with_float32_and_its_figures_are_told(here: Path, memorysam: Program) -> None:
    """In onnxruntime; the same graph that any batch and size is made of is that of test_onnx_graphs.py."""
    asked = ("export", "best.safetensors", "--format", "onnx", "--size", "64x96", "--half", "--out", "h.onnx", "--json")
    ended = memorysam(*asked)
    assert ended.code == 0, ended.err
    answer = ended.answer
    assert answer["half"] and 1e-5 < answer["relative"] < 0.05 and 90 < answer["agreement"] <= 100
    assert answer["checked"] == [
        {"input": [1, 1, 3, 64, 96]} | {key: answer[key] for key in ("difference", "relative", "agreement")}
    ]
    about = json.loads(Path("h.json").read_text())
    assert about["products"] == "float16" and about["checked"] == answer["checked"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--size", "65"), "--size 65: must be PX or HxW in multiples of 32"),
        (("--size", "64x"), "multiples of 32"),
        (("--size", "0"), "multiples of 32"),
        (("--size", "64×64"), "multiples of 32"),
        (("--out", "m.pt2"), "--out m.pt2: must end in .onnx"),
        (("--out", "there.onnx"), "--out there.onnx: exists already"),
        (("--out", "beside.onnx"), "--out beside.json: exists already"),
        (("--modalities", "lidar"), "lidar"),
        (("--format", "tflite"), "tflite"),
        (("--dynamic", "time"), "--dynamic time: 'time' cannot stay open; must be batch, size or batch,size"),
        (("--dynamic", "batch,"), "--dynamic"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    arguments: tuple[str, str], words: str, here: Path, memorysam: Program
) -> None:
    for name in ("there.onnx", "beside.json"):
        Path(name).write_text("mine")
    before = sorted(path.name for path in here.iterdir())
    ended = memorysam("export", "best.safetensors", "--format", "onnx", *arguments)
    assert ended.code == 2 and words in ended.err
    assert sorted(path.name for path in here.iterdir()) == before and Path("there.onnx").read_text() == "mine"


def test_what_is_no_weights_file_is_refused(here: Path, memorysam: Program) -> None:
    Path("x.safetensors").write_bytes(b"no")
    assert memorysam("export", "x.safetensors", "--format", "torch-export").code == 5
