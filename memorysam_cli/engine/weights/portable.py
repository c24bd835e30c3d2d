"""Trained networks for other runtimes: one file that holds it all, checked against PyTorch before it is kept."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from memorysam_cli import __version__
from memorysam_cli.engine.infer.inference import choose_modalities
from memorysam_cli.engine.predict.deciding import ONE_BYTE
from memorysam_cli.engine.weights import tracing
from memorysam_cli.engine.weights.tracing import INPUT, OUTPUTS, Shape
from memorysam_cli.errors import CheckFailedError, UsageError
from memorysam_cli.model import Segmenter, load
from memorysam_cli.model.weights import WeightsCard, read_card
from memorysam_cli.storage import atomic, documents, tensors
from memorysam_cli.text import shown

Format = Literal["torch-export", "onnx"]
TOLERANCE = 1e-3
"""Of the logits' largest size: more than float32 sums in another order make, less than a wrong operator does."""
TRIALS = 3
"""Random inputs of the check. A network that picks its best mask may pick another one by a hair on one of them."""
OPSET = 20
"""Of ONNX: the oldest with GELU; onnxruntime has it since 1.17."""
METADATA = "memorysam"
"""The key of the description in an ONNX file's metadata; ``memorysam.json`` among a .pt2's extra files."""
MOST_BYTES = 2_000_000_000
"""What one ONNX file may hold."""

Run = Callable[[NDArray[np.float32]], Sequence[NDArray[Any]]]
"""A written network: frames to :data:`~memorysam_cli.engine.weights.tracing.OUTPUTS`."""


class Likeness(NamedTuple):
    """How near a written network comes to PyTorch: of :data:`TRIALS` random inputs, the one in the middle."""

    relative: float
    """The next, divided by the logits' largest size."""
    difference: float
    """The largest of the logits' absolute differences."""
    agreement: float
    """Per cent of the pixels that get the same class."""
    is_silent: bool
    """Whether the object gate closed every frame: nothing was compared."""


@dataclass(frozen=True)
class Portable:
    """What was written."""

    out: Path
    metadata: Path
    sha256: str
    shape: Shape
    likeness: Likeness


def export(
    path: Path,
    out: Path,
    *,
    form: Format,
    modalities: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    batch: int = 1,
) -> Portable:
    """Write a trained network, base and LoRA in one, for a fixed batch, sensors and size.

    Args:
        path: a weights file of ours.
        out: the file to write; its description comes beside it, as ``….json``.
        form: ``torch-export`` for :func:`torch.export.load`, ``onnx`` for onnxruntime and others.
        modalities: names, if not all of the weights'.
        size: height and width in pixels, divisible by 32; else the square of the weights' image size.
        batch: scenes at once.

    Raises:
        UsageError: a package is missing, or no such modality or size.
        WeightsError: the weights are refused.
        CheckFailedError: what was written computes something else than PyTorch; nothing is kept.
        EnvironmentFault: it cannot be written.
    """
    refuse_missing(form)
    card = read_card(path)
    chosen = choose_modalities(card.modalities, modalities)
    height, width = size or (card.image_size, card.image_size)
    if height % 32 or width % 32 or min(height, width) < 32:
        raise UsageError(f"--size {height}x{width}: height and width must be multiples of 32")
    shape = Shape(batch, len(chosen), height, width)
    digest = tensors.sha256(path)
    about = describe(card, [modality.name for modality in chosen], shape, form=form, digest=digest)
    with _quiet():
        data = _write(tracing.trace(load(path), shape), about, form=form)
        found = compare(load(path), _reader(data, form=form), shape)
        if found.is_silent:  # as a rule noise shows a network nothing: the same graph, but for its gate
            found = compare(_open(load(path)), _reader(_write_open(path, shape, about, form=form), form=form), shape)
    if not found.relative <= TOLERANCE:
        raise CheckFailedError(
            f"{shown(out)}: the written network differs from PyTorch by {found.difference:.3g} ({found.relative:.2g} "
            f"of the logits' size, allowed {TOLERANCE:g}); it was not kept; try --format torch-export, or another "
            "PyTorch or onnxruntime"
        )
    metadata = out.with_suffix(".json")
    atomic.write_bytes(out, data)
    documents.write_json(metadata, about)
    return Portable(out, metadata, tensors.sha256(out), shape, found)


def refuse_missing(form: Format) -> None:
    """Refuse ONNX without its packages.

    Raises:
        UsageError: says what to install.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if form == "onnx" and missing:
        raise UsageError(f"--format onnx: needs {', '.join(missing)}; pip install 'memorysam[onnx]'")


def describe(
    card: WeightsCard, modalities: Sequence[str], shape: Shape, *, form: Format, digest: str
) -> dict[str, Any]:
    """All that somebody needs who has the file alone; docs/export.md explains the keys.

    Args:
        card: of the weights.
        modalities: that are the input's, in their order.
        shape: of the input.
        form: of the file.
        digest: SHA-256 of the weights file.
    """
    batch, _, height, width = shape
    keys = ("name", "kind", "channels", "scale", "offset", "mean", "std", "interpolation")
    sensors = [card.dataset.modality(name).model_dump(mode="json") for name in modalities]
    small = [batch, len(card.dataset.classes), height // 4, width // 4]
    kind = "uint8" if len(card.dataset.classes) <= ONE_BYTE else "int32"
    shapes = {"logits": (small, "float32"), "classes": ([batch, height, width], kind),
              "confidence": ([batch, height, width], "float32")}  # fmt: skip
    return {
        "schema_version": 1,
        "format": form,
        "input": {"name": INPUT, "shape": list(shape.frames), "dtype": "float32"},
        "outputs": [{"name": name, "shape": shapes[name][0], "dtype": shapes[name][1]} for name in OUTPUTS],
        "modalities": [{key: sensor[key] for key in keys} for sensor in sensors],
        "classes": list(card.dataset.classes),
        "palette": [list(colour) for colour in card.dataset.palette],
        "dataset": card.dataset.name,
        "recipe": card.recipe.name,
        "backbone": card.recipe.model.backbone,
        "metric": None if card.metric is None else card.metric.model_dump(mode="json"),
        "weights_sha256": digest,
        "versions": {"memorysam": __version__, "torch": torch.__version__},
    }


def compare(network: Segmenter, run: Run, shape: Shape) -> Likeness:
    """Compute random scenes with a network as ``memorysam predict`` does, and with what was written."""
    found = []
    for seed in range(TRIALS):
        frames = torch.randn(shape.frames, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            output = network(list(frames.unbind(1)))
            expected = output.logits[:, : network.classes]
            classes = network.upsample(output, size=(shape.height, shape.width)).argmax(dim=1)
        logits, mask, _ = run(frames.numpy())
        difference = float(np.abs(logits - expected.numpy()).max())
        size, same = float(expected.abs().max()), 100 * float((mask == classes.numpy()).mean())
        found.append(Likeness(difference / max(size, 1e-6), difference, same, is_silent=size == 0))
    # What is silent agrees with everything, and says nothing.
    heard = sorted(one for one in found if not one.is_silent) or found
    return heard[len(heard) // 2]


def _open(network: Segmenter) -> Segmenter:
    """A network whose object gate lets every frame speak."""
    network.object_gate = False
    return network


def _write_open(path: Path, shape: Shape, about: dict[str, Any], *, form: Format) -> bytes:
    return _write(tracing.trace(_open(load(path)), shape), about, form=form)


def _write(program: torch.export.ExportedProgram, about: dict[str, Any], *, form: Format) -> bytes:
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
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, text
    size = proto.ByteSize()
    if size > MOST_BYTES:
        raise UsageError(f"--format onnx: {size} bytes are more than a file may hold; use --format torch-export")
    data: bytes = proto.SerializeToString()
    return data


def _reader(data: bytes, *, form: Format) -> Run:
    """What was written, read by the runtime that it is for."""
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' talk of their own inner life from stdout and stderr."""
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
