"""The upstream MemorySAM code's weight layout, to ours and back (METHOD §6).

There every name begins with ``sam.``, a block's projection is ``attn.qkv.qkv`` and its LoRA
``attn.qkv.linear_{a,b}_{q,v}``. There LoRA's output has width d_in: it is added to q's first d_in channels and to
v's last d_in channels. In a stage's first block q and v are twice as wide; ours adapts all of them, so B is padded
there with zero rows, which is exact, and may be cut again only while those rows are zero.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from memorysam_cli.errors import WeightsError
from memorysam_cli.model.backbone import build_sam2

ADAPTER = "default"
"""PEFT's name for the adapter."""
_QKV = ".attn.qkv."
_LORA = re.compile(r"linear_(?P<side>[ab])_(?P<part>[qv])\.weight")


def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate a reference ``state_dict`` to the names and shapes of a network with LoRA on q and v.

    Raises:
        WeightsError: the state has no LoRA in the reference's form.
    """
    translated: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block, is_projection, rest = name.partition(_QKV)
        if not is_projection:
            translated[name] = tensor
        elif rest.startswith("qkv."):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                base = "base_layer." if part in "qv" else ""
                translated[f"{block}{_QKV}{part}.{base}{rest.removeprefix('qkv.')}"] = piece
        elif lora := _LORA.fullmatch(rest):
            rows = state[f"{block}{_QKV}qkv.weight"].shape[0] // 3
            translated[_lora_name(block, lora["part"], lora["side"])] = (
                tensor if lora["side"] == "a" else pad_rows(tensor, rows, at_end=lora["part"] == "q")
            )
        else:
            raise WeightsError(f"weights: unknown tensor {name}; a MemorySAM checkpoint has linear_a_q … linear_b_v")
    return translated


def to_reference(state: dict[str, Tensor], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Translate the ``state_dict`` of a network with LoRA on q and v to the reference's names and shapes.

    The inverse of :func:`from_reference`, exactly.

    Args:
        state: of a network whose LoRA is not merged.
        scale: LoRA's alpha / rank; the reference has none, so B is multiplied with it.

    Raises:
        WeightsError: LoRA adapts channels that the reference's cannot reach; names the blocks.
    """
    translated: dict[str, Tensor] = {}
    too_wide = set()
    for name, tensor in state.items():
        block, is_projection, rest = name.partition(_QKV)
        if not is_projection:
            translated[name] = tensor
        elif ".lora_A." in rest:
            translated[f"{block}{_QKV}linear_a_{rest[0]}.weight"] = tensor
        elif ".lora_B." in rest:
            width = state[_lora_name(block, rest[0], "a")].shape[1]
            kept, cut = _cut_rows(tensor, width, at_end=rest[0] == "q")
            if bool(cut.any()):
                too_wide.add(block.rpartition(".")[2])
            translated[f"{block}{_QKV}linear_b_{rest[0]}.weight"] = kept if scale == 1 else kept * scale
        elif rest.startswith("k."):
            kind = rest.removeprefix("k.")
            pieces = (f"q.base_layer.{kind}", f"k.{kind}", f"v.base_layer.{kind}")
            translated[f"{block}{_QKV}qkv.{kind}"] = torch.cat([state[f"{block}{_QKV}{piece}"] for piece in pieces])
    if too_wide:
        raise WeightsError(
            f"LoRA adapts all of q and v in the transition blocks ({', '.join(sorted(too_wide, key=int))}); the "
            "upstream layout has room for half of them there; use --format merged"
        )
    return translated


def reference_shapes(backbone: str, *, tokens: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor that a reference checkpoint has."""
    with torch.device("meta"), _RealNumbers():
        plain = build_sam2(backbone, tokens=tokens).state_dict()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in plain.items():
        block, is_projection, rest = f"sam.{name}".partition(_QKV)
        if not is_projection:
            shapes[block] = tuple(tensor.shape)
            continue
        shapes[f"{block}{_QKV}qkv.{rest}"] = tuple(tensor.shape)
        if rest == "weight":
            width = tensor.shape[1]
            for part in "qv":
                shapes[f"{block}{_QKV}linear_a_{part}.weight"] = (rank, width)
                shapes[f"{block}{_QKV}linear_b_{part}.weight"] = (width, rank)
    return shapes


def pad_rows(matrix: Tensor, rows: int, *, at_end: bool) -> Tensor:
    """(n, r) -> (rows, r) with zero rows after (q) or before (v) the given ones."""
    zeros = matrix.new_zeros(rows - matrix.shape[0], matrix.shape[1])
    return torch.cat([matrix, zeros] if at_end else [zeros, matrix])


def _cut_rows(matrix: Tensor, rows: int, *, at_end: bool) -> tuple[Tensor, Tensor]:
    """(n, r) -> (rows, r) and (n - rows, r): what :func:`pad_rows` was given, and what it added."""
    if at_end:
        return matrix[:rows], matrix[rows:]
    return matrix[matrix.shape[0] - rows :], matrix[: matrix.shape[0] - rows]


def _lora_name(block: str, part: str, side: str) -> str:
    return f"{block}{_QKV}{part}.lora_{side.upper()}.{ADAPTER}.weight"


class _RealNumbers(TorchFunctionMode):
    """Hiera reads its drop-path rates off a ``linspace``, which a tensor without content cannot give."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the one call on the CPU."""
        options = dict(kwargs or {})
        return func(*args, **(options | {"device": "cpu"} if func is torch.linspace else options))
