"""ONNX graphs for any batch and size, and in half precision.

Everything that depends on the size is computed in the graph: SAM 2's position encodings and rotary tables, the
interpolated position embedding, and the number of windows that cover an image. Sizes are multiples of 32. The tracer
handles products best, so the input is divided into cells of 32 pixels, and the numbers of rows and columns of cells are
the free dimensions.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memorysam_cli.encoders.base import Level
from memorysam_cli.encoders.hiera import HieraEncoder
from memorysam_cli.errors import CheckFailedError, UsageError
from memorysam_cli.model.backbone import RotaryAttention
from memorysam_cli.model.network import MemorySAM

Free = Literal["batch", "size"]
"""The open dimensions of a graph."""
CELL = 32
"""Side of a cell in pixels: every size is a multiple of it."""
HALVED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that multiply in float16; their inputs and outputs are rounded to it."""
_IN_HALF = "_in_half"
_THETA = 10000.0


def seven_sided(shape: Sequence[int]) -> tuple[int, ...]:
    """(B, M, 3, H, W) as (B, M, 3, H/32, 32, W/32, 32)."""
    batch, sensors, colors, height, width = shape
    return (batch, sensors, colors, height // CELL, CELL, width // CELL, CELL)


class Cells(NamedTuple):
    """The number of cells of an image."""

    rows: int
    columns: int


class AnyCells:
    """Makes a network compute all that depends on the size from :attr:`now`, in place.

    Args:
        network: loaded for use, with plain operators; not usable for anything else afterwards.

    Raises:
        UsageError: its encoder is not one of SAM 2's.
    """

    now: Cells

    def __init__(self, network: MemorySAM) -> None:
        encoder = network.encoder
        if not isinstance(encoder, HieraEncoder):
            raise UsageError(
                f"--dynamic: the encoder {type(encoder).__name__} is traced for one size only; leave --dynamic out"
            )
        self.encoder: Any = encoder  # sam2 has no types
        change: dict[str, Any] = {"levels": self.levels}
        encoder.__dict__.update(change)
        network.__dict__["_use_grid"] = lambda *_: None
        for module in (network.sam.image_encoder.neck.position_encoding, network.sam.memory_encoder.position_encoding):
            module.__dict__["forward"] = _sine_of(module)
        for attention in network.modules():
            if isinstance(attention, RotaryAttention):
                attention.__dict__["turn"] = self._turn_of(attention)

    @property
    def example(self) -> Cells:
        """Cells for tracing a graph: no two free numbers are equal by chance, and there are several windows."""
        units = (8 >> number for number in range(4))
        longest = max(side // math.gcd(unit, side) for unit, side in zip(units, self._sides(), strict=True))
        return Cells(2 * longest + 1, 3 * longest + 1)

    def _sides(self) -> list[int]:
        """Sides of the windows of each stage, in features."""
        ends = [0, *(end + 1 for end in self.encoder.stage_ends)]
        blocks = self.encoder.blocks
        return [max(blocks[number].window_size for number in range(*pair)) for pair in itertools.pairwise(ends)]

    def levels(self, images: Tensor, **_: Any) -> Iterator[Level]:
        """As ``Encoder.levels``, in SAM 2's own way: windows at the edge are padded."""
        encoder, unit = self.encoder, 8  # features of a cell's side
        convolution = encoder.patch_embed.proj
        # With whole cells, a 7×7 kernel of stride 4 crosses only the left and the upper edge.
        features = F.conv2d(F.pad(images, (3, 0, 3, 0)), convolution.weight, convolution.bias, stride=4)
        features = features.permute(0, 2, 3, 1) + self._position(unit)
        for number, block in enumerate(encoder.blocks):
            features, unit = self._block(block, features, unit=unit)
            if number in encoder.stage_ends:
                batch, height, width, channels = features.shape
                yield Level(features.reshape(-1, channels), _Whole(batch, height, width))  # type: ignore[arg-type]

    def _position(self, unit: int) -> Tensor:
        """(1, h, w, C) the position embedding, interpolated, and that of the windows, repeated."""
        encoder, (rows, columns) = self.encoder, self.now
        whole = F.interpolate(encoder.pos_embed, size=(unit * rows, unit * columns), mode="bicubic")
        window: Tensor = encoder.pos_embed_window
        tiles = window.repeat(1, 1, rows * (unit // window.shape[2]), columns * (unit // window.shape[3]))
        return (whole + tiles).permute(0, 2, 3, 1)

    def _block(self, block: Any, features: Tensor, *, unit: int) -> tuple[Tensor, int]:
        """A block on (B, h, w, C) with ``unit`` features per side of a cell; returns also the new number."""
        (rows, columns), side, batch = self.now, block.window_size, features.shape[0]
        shortcut, normed = features, block.norm1(features)
        if block.dim != block.dim_out:
            shortcut = _pooled(block.proj(normed), block)
        if not side:
            mixed = _attended(block, normed)
            height, width = unit * rows, unit * columns
        else:
            count = [_covering(length, unit=unit, side=side) for length in (rows, columns)]
            height, width = (number * side for number in count)
            if unit % side:  # a window may cross the edge
                normed = F.pad(normed, (0, 0, 0, side, 0, side))[:, :height, :width]
            cut = normed.reshape(batch, count[0], side, count[1], side, block.dim).transpose(2, 3)
            mixed = _attended(block, cut.reshape(batch * count[0] * count[1], side, side, block.dim))
            side = side // 2 if block.q_stride else side
            mixed = mixed.view(batch, *count, side, side, block.dim_out).transpose(2, 3)
            mixed = mixed.reshape(batch, count[0] * side, count[1] * side, block.dim_out)
        unit = unit // 2 if block.q_stride else unit
        if side and unit % side:
            mixed = mixed[:, : unit * rows, : unit * columns]
        features = shortcut + mixed
        return features + block.mlp(block.norm2(features)), unit

    def _turn_of(self, attention: RotaryAttention) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]:
        """:meth:`RotaryAttention.turn` with a table computed for the size."""
        width = attention.internal_dim // attention.num_heads

        def turn(query: Tensor, key: Tensor, unplaced: int) -> tuple[Tensor, Tensor]:
            angles = self._angles(width)
            cosine, sine = angles.cos(), angles.sin()
            end = key.shape[2] - unplaced
            # (B, heads, n·L', d) -> (B, heads, n, L', d): the keys of n memories, all with the same positions
            placed = key[:, :, :end].reshape(*key.shape[:2], -1, query.shape[2], key.shape[3])
            turned = rotated(placed, cosine, sine).reshape(*key.shape[:2], end, key.shape[3])
            whole = torch.cat([turned, key[:, :, end:]], dim=2) if unplaced else turned
            return rotated(query, cosine, sine), whole

        return turn

    def _angles(self, width: int) -> Tensor:
        """(L, d/2) rotation angles of a feature's pairs of channels: half by its column, half by its row."""
        rows, columns = (2 * length for length in self.now)  # features at stride 16
        quarter = width // 4
        pace = _THETA ** (-torch.arange(quarter, dtype=torch.float32) * 4 / width)
        across, down = (torch.arange(count).float()[:, None] * pace for count in (columns, rows))
        both = (across[None].expand(rows, columns, quarter), down[:, None].expand(rows, columns, quarter))
        return torch.cat(both, dim=-1).reshape(rows * columns, 2 * quarter)


class _Whole(NamedTuple):
    """Tokens in the order of their image, like ``TokenOrder``, with numbers that the tracer may leave open."""

    frames: int
    height: int
    width: int

    def join(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (N, h, w, C)."""
        return tokens.view(self.frames, self.height, self.width, tokens.shape[-1])


def _covering(length: int, *, unit: int, side: int) -> int:
    """The number of windows that cover cells of ``unit`` features."""
    share = math.gcd(unit, side)
    return (unit // share * length + side // share - 1) // (side // share)


def _pooled(features: Tensor, block: Any) -> Tensor:
    """(B, h, w, C) -> (B, h/2, w/2, C), if the block pools."""
    if not block.q_stride:
        return features
    pooled: Tensor = block.pool(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return pooled


def _attended(block: Any, windows: Tensor) -> Tensor:
    """Attention within each of (n, h, w, C)."""
    heads, width = block.attn.num_heads, block.dim_out
    fused = block.attn.qkv(windows)
    parts = [fused[..., number * width : (number + 1) * width] for number in range(3)]
    parts[0] = _pooled(parts[0], block)
    count, height, wide, _ = parts[0].shape
    split = [part.reshape(count, -1, heads, width // heads).transpose(1, 2) for part in parts]
    mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(count, height, wide, width)
    projected: Tensor = block.attn.proj(mixed)
    return projected


def _sine_of(encoding: Any) -> Callable[[Tensor], Tensor]:
    """SAM 2's ``PositionEmbeddingSine``, normalized, without its cache of sizes."""

    def forward(features: Tensor) -> Tensor:
        half, (height, width) = encoding.num_pos_feats, features.shape[-2:]
        pace = encoding.temperature ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half)

        def along(length: int) -> Tensor:
            place = torch.arange(1, length + 1, dtype=torch.float32) / (length + 1e-6) * encoding.scale
            angles = place[:, None] / pace
            return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=2).flatten(1)

        down, across = along(height)[:, None], along(width)[None]
        both = [part.expand(height, width, half) for part in (down, across)]
        return torch.cat(both, dim=2).permute(2, 0, 1)[None].expand(features.shape[0], -1, -1, -1)

    return forward


def rotated(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs of channels: (…, L, d) by (L, d/2)."""
    real, imaginary = values.reshape(*values.shape[:-1], -1, 2).unbind(dim=-1)
    turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
    return turned.flatten(-2)


def traced(module: torch.nn.Module, example: Tensor, free: Sequence[Free]) -> torch.export.ExportedProgram:
    """The graph of a module of one (B, M, 3, H/32, 32, W/32, 32) tensor.

    Raises:
        CheckFailedError: PyTorch's tracer has fixed a dimension that should be free.
    """
    open_ = torch.export.Dim.AUTO
    places = {0: open_} if "batch" in free else {}
    places |= {3: open_, 5: open_} if "size" in free else {}
    program = torch.export.export(
        module, (example,), strict=False, dynamic_shapes=(places,), prefer_deferred_runtime_asserts_over_guards=True
    )
    (found,) = (
        node.meta["val"].shape for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    )
    if fixed := [place for place in places if isinstance(found[place], int)]:
        raise CheckFailedError(f"--dynamic: this PyTorch fixes dimensions {fixed} of the graph; leave --dynamic out")
    return program


def open_input(proto: Any, name: str, outputs: Sequence[str], *, modalities: int, free: Sequence[Free]) -> None:
    """Make a graph for seven-dimensional frames accept plain ones, in place, and name the free dimensions."""
    helper: Any = importlib.import_module("onnx.helper")
    graph, inner = proto.graph, f"{name}_in_cells"
    for node in graph.node:
        for place, used in enumerate(node.input):
            if used == name:
                node.input[place] = inner
    known = {"fixed": [modalities, 3], "cell": [CELL], "batch": [0], "height": [3], "width": [4]}
    graph.initializer.extend([_constant(helper, f"{inner}_{key}", value) for key, value in known.items()])
    parts = {"batch": f"{inner}_b", "height": f"{inner}_h", "width": f"{inner}_w"}
    nodes = [helper.make_node("Shape", [name], [f"{inner}_shape"])]
    for key, part in parts.items():
        taken = part if key == "batch" else f"{part}_px"
        nodes.append(helper.make_node("Gather", [f"{inner}_shape", f"{inner}_{key}"], [taken]))
        if key != "batch":
            nodes.append(helper.make_node("Div", [taken, f"{inner}_cell"], [part]))
    whole = [parts["batch"], f"{inner}_fixed", parts["height"], f"{inner}_cell", parts["width"], f"{inner}_cell"]
    nodes.append(helper.make_node("Concat", whole, [f"{inner}_target"], axis=0))
    nodes.append(helper.make_node("Reshape", [name, f"{inner}_target"], [inner]))
    for place, node in enumerate(nodes):
        graph.node.insert(place, node)
    del graph.value_info[:]  # they have other names for the sizes
    _name_sides(graph, name, outputs, free)


def _name_sides(graph: Any, name: str, outputs: Sequence[str], free: Sequence[Free]) -> None:
    """Set the input's shape to that of plain frames, and name the free dimensions of inputs and outputs."""
    (given,) = (each for each in graph.input if each.name == name)
    old = [each.dim_value for each in given.type.tensor_type.shape.dim]
    del given.type.tensor_type.shape.dim[:]
    sides: list[str | int] = ["batch", old[1], old[2], "height", "width"]
    if "batch" not in free:
        sides[0] = old[0]
    if "size" not in free:
        sides[3:] = [old[3] * CELL, old[5] * CELL]
    for side in sides:
        _set(given.type.tensor_type.shape.dim.add(), side)
    for output, scale in zip((each for each in graph.output if each.name in outputs), (4, 1, 1), strict=True):
        dims = output.type.tensor_type.shape.dim
        for place, side in ((0, sides[0]), (len(dims) - 2, sides[3]), (len(dims) - 1, sides[4])):
            if isinstance(side, str):
                _set(dims[place], side if place == 0 or scale == 1 else f"{side}/{scale}")


def _set(dim: Any, side: str | int) -> None:
    """Name a side, or fix it."""
    dim.Clear()
    if isinstance(side, str):
        dim.dim_param = side
    else:
        dim.dim_value = side


def _constant(helper: Any, name: str, value: list[int]) -> Any:
    """A tensor of integers."""
    return helper.make_tensor(name, 7, [len(value)], value)  # 7: int64


def halve(proto: Any) -> None:
    """Compute every product of a graph in float16, in place; other operators stay in float32.

    Weights of products are stored in float16. Other inputs are cast to float16 and the results back, as in
    ``--precision fp16``. Casts between two consecutive products cost almost nothing.

    Raises:
        CheckFailedError: a weight is too large for float16.
    """
    onnx: Any = importlib.import_module("onnx")
    numbers, helper = onnx.numpy_helper, onnx.helper
    weights = {each.name: each for each in proto.graph.initializer if each.data_type == onnx.TensorProto.FLOAT}
    half: dict[str, str] = {}
    used_in_full: set[str] = set()
    nodes: list[Any] = []
    for node in proto.graph.node:
        if node.op_type not in HALVED:
            used_in_full.update(node.input)
            nodes.append(node)
            continue
        for place, given in enumerate(node.input):
            if given and given not in half:
                half[given] = f"{given}_half"
                if given not in weights:
                    nodes.append(helper.make_node("Cast", [given], [half[given]], to=onnx.TensorProto.FLOAT16))
            if given:
                node.input[place] = half[given]
        (result,) = node.output
        node.output[0] = f"{result}{_IN_HALF}"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [result], to=onnx.TensorProto.FLOAT)]
    used_in_full.update(each.name for each in proto.graph.output)
    kept = [each for each in proto.graph.initializer if each.name not in half or each.name in used_in_full]
    for name in half.keys() & weights.keys():
        values = numbers.to_array(weights[name])
        if float(np.abs(values).max(initial=0)) > float(np.finfo(np.float16).max):
            raise CheckFailedError(
                f"--half: the weights hold {np.abs(values).max():.3g}, more than float16 can; leave it out"
            )
        kept.append(numbers.from_array(values.astype(np.float16), half[name]))
    del proto.graph.node[:], proto.graph.initializer[:], proto.graph.value_info[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(kept)


def rounding(data: bytes) -> bytes:
    """A halved graph for a runtime without float16 products (onnxruntime on a CPU), which would drop double casts.

    Such a runtime computes in float32 with float16 weights, so it would seem more exact. An operator between the casts
    keeps them, so that all inputs and outputs of a float16 product are rounded.
    """
    onnx: Any = importlib.import_module("onnx")
    proto = onnx.load_from_string(data)
    nodes: list[Any] = []
    for node in proto.graph.node:
        kind = node.attribute[0].i if node.op_type == "Cast" else None
        if kind == onnx.TensorProto.FLOAT16:
            (result,) = node.output
            node.output[0] = f"{result}_cast"
            nodes += [node, onnx.helper.make_node("Concat", [node.output[0]], [result], axis=0)]
        elif kind == onnx.TensorProto.FLOAT and node.input[0].endswith(_IN_HALF):
            (given,) = node.input
            node.input[0] = f"{given}_kept"
            nodes += [onnx.helper.make_node("Concat", [given], [node.input[0]], axis=0), node]
        else:
            nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    kept: bytes = proto.SerializeToString()
    return kept
