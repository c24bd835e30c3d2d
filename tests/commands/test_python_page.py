"""docs/python.md: every block runs, without ROS and without a network."""

from __future__ import annotations

import io
import re
import sys
import types
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memorysam_cli import Predictor
from memorysam_cli.dataset import DatasetInfo, Modality

from ..engine.stand_ins import CLASSES, PALETTE
from .trained import save_weights

PAGE = (Path(__file__).parent.parent.parent / "docs" / "python.md").read_text(encoding="utf-8")
FIRST, ROS, SERVICE, CLIENT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
INFO = DatasetInfo(
    name="rig", title="Rig", classes=CLASSES, palette=PALETTE,
    modalities=(Modality(name="rgb", kind="rgb"), Modality(name="depth", kind="depth")),
)  # fmt: skip
RNG = np.random.Generator(np.random.PCG64(8))
RGB, DEPTH = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8), RNG.integers(0, 9000, (20, 30), dtype=np.uint16)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    save_weights(folder / "best.safetensors", INFO, modalities=("rgb", "depth"))
    return folder


@pytest.fixture
def expected(here: Path) -> Any:
    with Predictor("best.safetensors") as predictor:
        return predictor({"rgb": RGB, "depth": DEPTH})


def test_the_node_and_the_service_are_short() -> None:
    assert len(ROS.splitlines()) <= 40 and len(SERVICE.splitlines()) <= 30


def test_the_first_block(expected: Any) -> None:
    found: dict[str, Any] = {"rgb": RGB, "depth": DEPTH}
    exec(FIRST, found)
    np.testing.assert_array_equal(found["result"].classes, expected.classes)


class Node:
    """What the page needs of ``rclpy.node.Node``."""

    def __init__(self, name: str) -> None:
        self.sent: list[Any] = []
        self.errors: list[str] = []

    def declare_parameter(self, name: str, value: object) -> Any:
        return types.SimpleNamespace(value=value)

    def create_publisher(self, kind: type, topic: str, depth: int) -> Any:
        assert topic == "/segmentation"
        return types.SimpleNamespace(publish=self.sent.append)

    def get_logger(self) -> Any:
        return types.SimpleNamespace(error=self.errors.append)


class Synchronizer:
    def __init__(self, subscribers: list[Any], *, queue_size: int, slop: float) -> None:
        assert [each.topic for each in subscribers] == ["/camera/color", "/camera/depth"]

    def registerCallback(self, call: Any) -> None:
        self.call = call


def message(values: Any, encoding: str, *, padding: int = 0, is_bigendian: int = 0) -> Any:
    """A ``sensor_msgs/Image`` as drivers send it: rows of ``step`` bytes, in either byte order."""
    height, width = values.shape[:2]
    rows = values.astype(values.dtype.newbyteorder(">" if is_bigendian else "<")).reshape(height, -1).view(np.uint8)
    rows = np.pad(rows, [(0, 0), (0, padding)], constant_values=77)
    return types.SimpleNamespace(
        header="stamp", height=height, width=width, encoding=encoding, is_bigendian=is_bigendian, step=rows.shape[1],
        data=array("B", rows.tobytes()),
    )  # fmt: skip


def test_the_ros_node_publishes_a_class_map_for_a_pair_of_messages(
    expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rclpy = types.ModuleType("rclpy")
    node, sensor, messages = (types.ModuleType(name) for name in ("rclpy.node", "sensor_msgs", "sensor_msgs.msg"))
    filters: Any = types.ModuleType("message_filters")
    node.Node, messages.Image = Node, types.SimpleNamespace  # type: ignore[attr-defined]
    filters.Subscriber = lambda _node, _kind, topic: types.SimpleNamespace(topic=topic)
    filters.ApproximateTimeSynchronizer = Synchronizer
    for module in (rclpy, node, sensor, messages, filters):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    space: dict[str, Any] = {"__name__": "segment_node"}
    exec(ROS, space)
    made = space["Segmenter"]()
    for padding, is_bigendian in ((0, 0), (6, 1)):
        pair = (message(RGB, "rgb8", padding=padding), message(DEPTH, "16UC1", padding=2, is_bigendian=is_bigendian))
        made.pairs.call(*pair)
        sent = made.sent[-1]
        assert (sent.height, sent.width, sent.step, sent.encoding, sent.header) == (20, 30, 30, "mono8", "stamp")
        np.testing.assert_array_equal(np.frombuffer(sent.data, np.uint8).reshape(20, 30), expected.classes)
    assert len(made.sent) == 2 and not made.errors
    made.pairs.call(message(RGB, "bayer_rggb8"), message(DEPTH, "16UC1"))
    made.pairs.call(message(RGB, "rgb8"), message(DEPTH[:, :9], "16UC1"))
    assert len(made.sent) == 2 and made.errors[0] == "'bayer_rggb8'" and "sizes differ" in made.errors[1]


def test_the_service_answers_its_client(expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi", reason="FastAPI is not installed (pip install '.[dev]')")
    from fastapi.testclient import TestClient

    space: dict[str, Any] = {"__name__": "service", "__annotations__": {}}
    module = types.ModuleType("service")
    module.__dict__.update(space)
    exec(SERVICE, module.__dict__)
    client = TestClient(module.__dict__["app"])
    requests: Any = types.ModuleType("requests")
    requests.post = lambda url, data: client.post(url.removeprefix("http://localhost:8000"), content=data)
    monkeypatch.setitem(sys.modules, "requests", requests)
    found: dict[str, Any] = {"rgb": RGB, "depth": DEPTH}
    exec(CLIENT, found)
    np.testing.assert_array_equal(found["classes"], expected.classes)
    npy = io.BytesIO()
    np.save(npy, RGB)
    bad = io.BytesIO()
    np.savez(bad, rgbb=RGB)
    for body, words in (
        (b"no archive", "send an .npz"), (b"", "send an .npz"), (npy.getvalue(), "send an .npz"),
        (bad.getvalue(), "no modality 'rgbb'; did you mean 'rgb'?"),
    ):  # fmt: skip
        refused = client.post("/segment", content=body)
        assert refused.status_code == 422 and words in refused.json()["detail"]
