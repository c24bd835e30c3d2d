"""Export of the whole network as one file for other programs: torch-export and ONNX.

The network is traced as a graph of plain operators for a fixed batch, sensors and size, written, read back, and
compared with PyTorch. Our own network has branches that depend on the processor, in-place operations and complex
numbers. The graph has none of these, and computes the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from memorysam_cli import __version__
from memorysam_cli.encoders import products
from memorysam_cli.engine import surroundings
from memorysam_cli.engine.infer.decision import ONE_BYTE
from memorysam_cli.engine.infer.inference import choose_modalities
from memorysam_cli.engine.infer.views import sensors_of
from memorysam_cli.engine.weights.onnx_graphs import (
    CELL,
    AnyCells,
    Cells,
    Free,
    halve,
    open_input,
    rotated,
    rounding,
    seven_sided,
    traced,
)
from memorysam_cli.errors import CheckFailedError, UsageError
from memorysam_cli.model import Segmenter, WeightsCard, load, read_card
from memorysam_cli.model.backbone import RotaryAttention
from memorysam_cli.model.base_weights import base_shapes
from memorysam_cli.model.memory import EncodedFrame
from memorysam_cli.storage import atomic, documents, tensors
from memorysam_cli.text import shown

PortableFormat = Literal["torch-export", "onnx"]
INPUT = "frames"
OUTPUTS = ("logits", "classes", "confidence")
TOLERANCE = 1e-3
"""Relative to the largest logit: more than other orders of float32 sums cause, less than a wrong operator does."""
HALF_TOLERANCE = 0.05
"""The same for products in float16, whose steps are 5e-4 of a number's size, and add up from layer to layer."""
TRIALS = 3
"""Number of random inputs of the check. On one of them, a tiny difference may make the network choose another best
mask."""
OPSET = 20
"""Version of ONNX's operators: the oldest with GELU; onnxruntime supports it since 1.17."""
METADATA = "memorysam"
"""The key of the description in an ONNX file's metadata; ``memorysam.json`` among a .pt2's extra files."""
MOST_BYTES = 2_000_000_000
"""Largest size of an ONNX file."""
Run = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]
"""An exported network: from frames to :data:`OUTPUTS`."""


class GraphShape(NamedTuple):
    """The shape of a graph."""

    batch: int
    modalities: int
    height: int
    width: int
    sensors: tuple[int, ...] = ()
    """Its sensors, by their places among those of the weights; empty: all."""
    free: tuple[Free, ...] = ()
    """The dimensions that stay open."""
    half: bool = False
    """Whether products are in float16."""

    @property
    def tolerance(self) -> float:
        """The allowed difference from PyTorch."""
        return HALF_TOLERANCE if self.half else TOLERANCE

    def checked(self) -> list[GraphShape]:
        """The shapes in which an exported graph is compared: its own, and with open dimensions a smaller and a larger
        one."""
        found = [self]
        for sign in (-1, 1) if self.free else ():
            other = self._replace(batch=self.batch + (sign == 1)) if "batch" in self.free else self
            if "size" in self.free:
                height, width = (max(32, side + sign * step) for side, step in ((self.height, 64), (self.width, 32)))
                other = other._replace(height=height, width=width)
            found.append(other)
        return list(dict.fromkeys(found))

    @property
    def frames(self) -> tuple[int, int, int, int, int]:
        """Shape of the only input: (B, M, 3, H, W)."""
        return (self.batch, self.modalities, 3, self.height, self.width)


class Likeness(NamedTuple):
    """How close an exported network is to PyTorch: the median of :data:`TRIALS` random inputs."""

    relative: float
    """The next value, divided by the largest absolute logit."""
    difference: float
    """The largest absolute difference of the logits."""
    agreement: float
    """Percentage of the pixels with the same class."""
    is_silent: bool
    """Whether the object gate closed every frame, so that nothing was compared."""


@dataclass(frozen=True)
class PortableFile:
    """The result of an export."""

    out: Path
    metadata: Path
    sha256: str
    shape: GraphShape
    likeness: Likeness
    """The worst of :attr:`checked`."""
    checked: tuple[tuple[GraphShape, Likeness], ...] = ()
    """Each compared shape."""

    def to_json(self) -> list[dict[str, Any]]:
        """The compared shapes, and the differences."""
        keys = ("difference", "relative", "agreement")
        return [
            {"input": list(shape.frames)} | {key: getattr(likeness, key) for key in keys}
            for shape, likeness in self.checked
        ]


def export(
    path: Path,
    out: Path,
    *,
    form: PortableFormat,
    modalities: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    free: Sequence[Free] = (),
    half: bool = False,
) -> PortableFile:
    """Write a trained network, base and LoRA in one, for fixed sensors, batch and size, or for any batch and size.

    Args:
        path: a weights file of ours.
        out: the file to write; its description is written beside it, as ``….json``.
        form: ``torch-export`` for :func:`torch.export.load`, ``onnx`` for onnxruntime and others.
        modalities: names, if not all of the weights'.
        size: height and width in pixels, divisible by 32; else the square of the weights' image size.
        batch: number of scenes.
        free: which of ``batch`` and ``size`` stay open; the values above are then compared first.
        half: multiply in float16.

    Raises:
        UsageError: an encoder cannot be traced for any size, a package is missing, or an unknown modality or size.
        WeightsError: the weights are refused.
        CheckFailedError: the exported network differs from PyTorch; no file is kept.
        EnvironmentFault: it cannot be written.
    """
    if form == "onnx":
        surroundings.refuse_missing_extra("onnx", option="--format onnx")
    card = read_card(path)
    chosen = choose_modalities(card.modalities, modalities)
    height, width = size or (card.image_size, card.image_size)
    if height % 32 or width % 32 or min(height, width) < 32:
        raise UsageError(f"--size {height}x{width}: height and width must be multiples of 32")
    values = sum(math.prod(each) for each in base_shapes(card.base.backbone).values())
    atomic.refuse_unwritable(out.parent, needed_bytes=4 * values)  # float32, with a small reserve
    shape = GraphShape(batch, len(chosen), height, width, tuple(sensors_of(chosen, card.modalities)), tuple(free), half)
    digest = tensors.sha256(path)
    about = describe(card, [modality.name for modality in chosen], shape, form=form, digest=digest)
    with _quiet():
        data = _write(trace(load(path), shape), about, shape, form=form)
        found = _compared(load(path), _reader(rounding(data) if half else data, form=form), shape)
        if any(likeness.is_silent for likeness in found.values()):
            # On noise the gate is usually closed, so the gate is left open here; the graph is otherwise the same.
            opened = _write(trace(_open(load(path)), shape), about, shape, form=form)
            found = _compared(_open(load(path)), _reader(rounding(opened) if half else opened, form=form), shape)
    _refuse_unlike(found, out)
    made = PortableFile(
        out, out.with_suffix(".json"), hashlib.sha256(data).hexdigest(), shape,
        max(found.values(), key=lambda likeness: likeness.relative), tuple(found.items()),
    )  # fmt: skip
    atomic.write_bytes(out, data)
    documents.write_json(made.metadata, about | {"checked": made.to_json()})
    return made


def _refuse_unlike(found: Mapping[GraphShape, Likeness], out: Path) -> None:
    """Refuse an exported network that differs from PyTorch.

    Raises:
        CheckFailedError: the message has the difference and, if the size is open, the shape.
    """
    for shape, likeness in found.items():
        if not likeness.relative <= shape.tolerance:
            where = f" for input {'x'.join(map(str, shape.frames))}" if shape.free else ""
            remedy = (
                "leave --half out" if shape.half else "try --format torch-export, or another PyTorch or onnxruntime"
            )
            raise CheckFailedError(
                f"{shown(out)}: the written network differs from PyTorch by {likeness.difference:.3g}{where} "
                f"({likeness.relative:.2g} of the logits' size, allowed {shape.tolerance:g}); it was not kept; {remedy}"
            )


def _compared(network: Segmenter, run: Run, shape: GraphShape) -> dict[GraphShape, Likeness]:
    """As :func:`compare`, in all shapes."""
    return {each: compare(network, run, each) for each in shape.checked()}


def describe(
    card: WeightsCard, modalities: Sequence[str], shape: GraphShape, *, form: PortableFormat, digest: str
) -> dict[str, Any]:
    """All that a user of only this file needs; docs/export.md explains the keys.

    Args:
        card: of the weights.
        modalities: of the input, in their order.
        shape: of the input.
        form: of the file.
        digest: SHA-256 of the weights file.
    """
    batch, height, width = shape.batch, shape.height, shape.width
    keys = ("name", "kind", "channels", "scale", "offset", "mean", "std", "nodata", "interpolation", "antialias")
    known = {modality.name: modality for modality in card.modalities}
    sensors = [known[name].model_dump(mode="json") for name in modalities]
    small = [batch, len(card.dataset.classes), height // 4, width // 4]
    kind = "uint8" if len(card.dataset.classes) <= ONE_BYTE else "int32"
    shapes = {"logits": (small, "float32"), "classes": ([batch, height, width], kind),
              "confidence": ([batch, height, width], "float32")}  # fmt: skip
    return {
        "schema_version": 1,
        "format": form,
        "input": {
            "name": INPUT,
            "shape": list(shape.frames),
            "dtype": "float32",
            "dynamic": list(shape.free),
            "multiple_of": CELL,
        },
        "products": "float16" if shape.half else "float32",
        "outputs": [{"name": name, "shape": shapes[name][0], "dtype": shapes[name][1]} for name in OUTPUTS],
        "modalities": [{key: sensor[key] for key in keys} for sensor in sensors],
        "classes": list(card.dataset.classes),
        "palette": [list(color) for color in card.dataset.palette],
        "dataset": card.dataset.name,
        "recipe": card.recipe.name,
        "backbone": card.recipe.model.backbone,
        "metric": None if card.metric is None else card.metric.model_dump(mode="json"),
        "weights_sha256": digest,
        "versions": {"memorysam": __version__, "torch": torch.__version__},
    }


def trace(network: Segmenter, shape: GraphShape) -> torch.export.ExportedProgram:
    """The graph of a network; see :class:`Traceable` for inputs and outputs.

    Args:
        network: loaded for use; it is changed and not usable for anything else afterwards.
        shape: of the graph; height and width divisible by 32.
    """
    if shape.free:
        return _trace_open(network, shape)
    traceable, example = Traceable(network, shape.sensors).eval(), torch.zeros(shape.frames)
    with _plain_products():
        # The first run creates the tables of this size. It drops SAM2's position encodings, which the second run
        # creates again. The graph then has both as constants.
        for _ in range(2):
            traceable(example)
        program = torch.export.export(traceable, (example,), strict=False)
        # Without the switches of autocast and gradients, which have no meaning in a forward graph.
        plain: torch.export.ExportedProgram = program.run_decompositions({})
        return plain


def _trace_open(network: Segmenter, shape: GraphShape) -> torch.export.ExportedProgram:
    """As :func:`trace`, for open batch or size: with a shape of its own choice, for which nothing is computed."""
    cells = AnyCells(network)
    rows, columns = cells.example if "size" in shape.free else (shape.height // CELL, shape.width // CELL)
    batch = 3 if "batch" in shape.free else shape.batch
    traceable = Traceable(network, shape.sensors, cells).eval()
    sides = seven_sided((batch, shape.modalities, 3, rows * CELL, columns * CELL))
    with _plain_products():
        return traced(traceable, torch.zeros(sides), shape.free)


class Traceable(nn.Module):
    """A network as a function of one tensor.

    Args:
        network: loaded for use (LoRA merged, eval mode, on the CPU); it is changed and not usable for anything else
            afterwards.
        sensors: which of its sensors the frames belong to; empty: all.
        cells: for a network of any size; frames are then those of :func:`seven_sided`.
    """

    def __init__(self, network: Segmenter, sensors: Sequence[int], cells: AnyCells | None = None) -> None:
        super().__init__()
        self.cells = cells
        network.use_plain_encoder()
        for module in network.modules():
            if isinstance(module, RotaryAttention):
                module.rotate = rotate_in_real_numbers
        self.network = network
        self.sensors = tuple(sensors) or tuple(range(len(network.card.modalities)))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment.

        Args:
            frames: (B, M, 3, H, W) float32, normalized.

        Returns:
            ``logits`` (B, K, H/4, W/4) float32; ``classes`` (B, H, W) uint8, or int32 for more than 255 classes;
            ``confidence`` (B, H, W) float32, the probability of that class.
        """
        network, batch = self.network, frames.shape[0]
        if self.cells is not None:
            self.cells.now = Cells(frames.shape[3], frames.shape[5])
            sides = (CELL * length for length in self.cells.now)
            frames = frames.reshape(*frames.shape[:3], *sides)
        joined, sensors = network.projection(frames.unbind(1), self.sensors)
        # M × (B, 3, H, W) -> (M·B, 3, H, W): all frames in one call, frame after frame.
        together = network.encode_joined([torch.cat(joined)], sensors[:1])[0]
        parts = (
            [torch.unflatten(part, 0, (len(joined), batch))[place] for place in range(len(joined))]
            for part in (together.fine, together.middle, together.coarse, together.position)
        )
        pool = [EncodedFrame(*each) for each in zip(*parts, sensors, strict=True)]
        _, output = next(network.outputs(pool, [range(len(pool))]))
        # The gate's shift is one number for every class and pixel: it changes neither class nor probability.
        logits = output.logits[:, : network.classes]
        size = (frames.shape[-2], frames.shape[-1])
        pixels = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        classes = pixels.argmax(dim=1).to(torch.uint8 if network.classes <= ONE_BYTE else torch.int32)
        return logits, classes, pixels.softmax(dim=1).amax(dim=1)


def rotate_in_real_numbers(
    query: Tensor, key: Tensor, freqs_cis: Tensor, repeat_freqs_k: bool = False
) -> tuple[Tensor, Tensor]:
    """SAM2's ``apply_rotary_enc`` in real numbers, because other runtimes have no complex ones."""
    table = torch.view_as_real(freqs_cis)  # (L', d/2, 2); a constant of the graph
    cosine, sine = table[..., 0].contiguous(), table[..., 1].contiguous()
    turns = key.shape[2] // query.shape[2] if repeat_freqs_k else 1
    return rotated(query, cosine, sine), rotated(key, cosine.repeat(turns, 1), sine.repeat(turns, 1))


@contextlib.contextmanager
def _plain_products() -> Iterator[None]:
    """Use PyTorch's own products, and attention as in training, because other runtimes do not have oneDNN's
    operators."""
    before, products.TYPES = products.TYPES, ()
    try:
        with torch.enable_grad():
            yield
    finally:
        products.TYPES = before


def _write(
    program: torch.export.ExportedProgram, about: dict[str, Any], shape: GraphShape, *, form: PortableFormat
) -> bytes:
    """The file's content."""
    text = documents.to_json(about)
    if form == "torch-export":
        stream = io.BytesIO()
        torch.export.save(program, stream, extra_files={f"{METADATA}.json": text})
        return stream.getvalue()
    converted = torch.onnx.export(
        program, (), input_names=[INPUT], output_names=list(OUTPUTS), opset_version=OPSET, dynamo=True, verbose=False
    )
    assert converted is not None
    proto = converted.model_proto
    if shape.free:
        open_input(proto, INPUT, OUTPUTS, modalities=shape.modalities, free=shape.free)
    if shape.half:
        halve(proto)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, text
    size = proto.ByteSize()
    if size > MOST_BYTES:
        raise UsageError(f"--format onnx: {size} bytes are more than a file may hold; use --format torch-export")
    data: bytes = proto.SerializeToString()
    return data


def _reader(data: bytes, *, form: PortableFormat) -> Run:
    """The exported network in its own runtime."""
    if form == "torch-export":
        module = torch.export.load(io.BytesIO(data)).module()

        def run(frames: NDArray[np.float32]) -> Sequence[NDArray[Any]]:
            with torch.inference_mode():
                return [part.numpy() for part in module(torch.from_numpy(frames))]

        return run
    onnxruntime: Any = importlib.import_module("onnxruntime")  # has no types
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda frames: session.run(list(OUTPUTS), {INPUT: frames})


def compare(network: Segmenter, run: Run, shape: GraphShape) -> Likeness:
    """Compute random scenes with a network as ``memorysam predict`` does, and with the exported one."""
    trials = []
    for seed in range(TRIALS):
        frames = torch.randn(shape.frames, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            output = network(list(frames.unbind(1)), sensors=shape.sensors or None)
            expected = output.logits[:, : network.classes]
            classes = network.upsample(output, size=(shape.height, shape.width)).argmax(dim=1)
        logits, mask, _ = run(frames.numpy())
        difference = float(np.abs(logits - expected.numpy()).max())
        size, same = float(expected.abs().max()), 100 * float((mask == classes.numpy()).mean())
        trials.append(Likeness(difference / max(size, 1e-6), difference, same, is_silent=size == 0))
    # Closed gates would agree with everything, so the check would mean nothing.
    compared = sorted(one for one in trials if not one.is_silent) or trials
    return compared[len(compared) // 2]


def _open(network: Segmenter) -> Segmenter:
    """A network whose object gate is always open."""
    network.object_gate = False
    return network


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' internal messages from stdout and stderr."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
