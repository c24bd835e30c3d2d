"""Conversion between the authors' weight layout and ours (METHOD §6), and which network a checkpoint belongs to.

In the authors' layout every name begins with ``sam.``. A block's projection is ``attn.qkv.qkv`` and its LoRA
``attn.qkv.linear_{a,b}_{q,v}``. LoRA's output has width d_in there: it is added to q's first d_in channels and to v's
last d_in channels. In a stage's first block q and v are twice as wide. Our LoRA adapts all their channels, so B is
padded with zero rows, which is exact. Converting back is possible only while those rows are zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from memorysam_cli.errors import WeightsError
from memorysam_cli.model.base_weights import Shapes, difference, few_names, fitting, plain_shapes, shapes_of
from memorysam_cli.model.lora import ADAPTER
from memorysam_cli.recipe import BACKBONES
from memorysam_cli.text import shown, typed

_QKV = ".attn.qkv."
_TOKENS = "sam.sam_mask_decoder.mask_tokens.weight"
_LORA_A = ".attn.qkv.linear_a_q.weight"
_PARALLEL = "module."
"""Prefix that ``DistributedDataParallel`` adds to every name."""
_LORA = re.compile(r"linear_(?P<side>[ab])_(?P<part>[qv])\.weight")


def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a reference ``state_dict`` to the names and shapes of a network with LoRA on q and v.

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
    """Convert the ``state_dict`` of a network with LoRA on q and v to the reference's names and shapes.

    The exact inverse of :func:`from_reference`.

    Args:
        state: of a network whose LoRA is not merged.
        scale: LoRA's alpha / rank; the reference has none, so B is multiplied by it.

    Raises:
        WeightsError: LoRA adapts channels that the reference's LoRA cannot; the message names the blocks.
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
    """Name → shape of every tensor in a reference checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in plain_shapes(backbone, tokens=tokens).items():
        block, is_projection, rest = f"sam.{name}".partition(_QKV)
        if not is_projection:
            shapes[block] = shape
            continue
        shapes[f"{block}{_QKV}qkv.{rest}"] = shape
        if rest == "weight":
            width = shape[1]
            for part in "qv":
                shapes[f"{block}{_QKV}linear_a_{part}.weight"] = (rank, width)
                shapes[f"{block}{_QKV}linear_b_{part}.weight"] = (width, rank)
    return shapes


def pad_rows(matrix: Tensor, rows: int, *, at_end: bool) -> Tensor:
    """(n, r) -> (rows, r) with zero rows after (q) or before (v) the given ones."""
    zeros = matrix.new_zeros(rows - matrix.shape[0], matrix.shape[1])
    return torch.cat([matrix, zeros] if at_end else [zeros, matrix])


def _cut_rows(matrix: Tensor, rows: int, *, at_end: bool) -> tuple[Tensor, Tensor]:
    """(n, r) -> (rows, r) and (n - rows, r): the argument of :func:`pad_rows`, and the rows that it added."""
    if at_end:
        return matrix[:rows], matrix[rows:]
    return matrix[matrix.shape[0] - rows :], matrix[: matrix.shape[0] - rows]


def _lora_name(block: str, part: str, side: str) -> str:
    return f"{block}{_QKV}{part}.lora_{side.upper()}.{ADAPTER}.weight"


@dataclass(frozen=True)
class Identity:
    """What the tensors of a checkpoint show about its network."""

    backbone: str
    """One of ``memorysam_cli.recipe.BACKBONES``."""
    rank: int
    """The rank of its LoRA."""
    tokens: int
    """The number of its decoder's class tokens."""


def unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefix of data-parallel training."""
    if all(name.startswith(_PARALLEL) for name in state):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in state.items()}
    return state


def identify(state: dict[str, Tensor], *, where: str) -> Identity:
    """Find the network of a reference ``state_dict``, checking every tensor.

    Args:
        state: with the names of the authors' code, without a ``module.`` prefix.
        where: the file, for messages.

    Raises:
        WeightsError: tensors are missing, unexpected, of another shape or not floating point (the message names the
            first of each, and the backbone that fits best), or it is not a MemorySAM checkpoint.
    """
    given = shapes_of(state)
    _refuse_other_models(given, where=where)
    tokens, rank = _tokens(given), _rank(given)
    candidates = {name: reference_shapes(name, tokens=tokens, rank=rank) for name in BACKBONES}
    backbone = max(candidates, key=lambda name: _agreement(given, candidates[name]))
    wanted = candidates[backbone]
    if found := difference(given, wanted):
        raise WeightsError(
            f"{where}: {fitting(given, wanted)} of the {len(wanted)} tensors of MemorySAM on {backbone}, which "
            f"it resembles most, fit; {found}; give the state_dict of the whole model"
        )
    numbers = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if numbers:
        raise WeightsError(
            f"{where}: {few_names(numbers)} hold whole numbers, not weights; export the state_dict again"
        )
    return Identity(backbone=backbone, rank=rank, tokens=tokens)


def _refuse_other_models(given: Shapes, *, where: str) -> None:
    """Name the kind of file in the message if it is another known model."""
    if any(name.startswith("sam.image_encoder.") for name in given):
        return
    example = f"for example '{shown(next(iter(given))[:80])}'"
    if not any(name.startswith("image_encoder.trunk.") for name in given):
        raise WeightsError(
            f"{where}: none of its {len(given)} tensors belongs to a MemorySAM checkpoint ({example}); "
            "its names begin with 'sam.image_encoder.'"
        )
    if any(_LORA_A in name for name in given):
        raise WeightsError(
            f"{where}: its names lack the prefix 'sam.' ({example}); save the state_dict of the whole model"
        )
    raise WeightsError(
        f"{where}: these are SAM 2's own weights, without MemorySAM's LoRA; give them to training: "
        f"--set {typed(f'model.base_weights={where}')}"
    )


def _tokens(given: Shapes) -> int:
    """The number of class tokens; SAM2's own first token is one more. If there are none, that of the released
    weights."""
    shape = given.get(_TOKENS, ())
    return max(shape[0] - 1, 1) if len(shape) == 2 else 25


def _rank(given: Shapes) -> int:
    """The rank of the first block with LoRA. If there is none, that of the released weights."""
    found = [shape[0] for name, shape in given.items() if name.endswith(_LORA_A) and len(shape) == 2]
    return max(found[0], 1) if found else 4


def _agreement(given: Shapes, wanted: Shapes) -> tuple[int, int]:
    """The number of tensors that fit, then (negative) the number left over."""
    return fitting(given, wanted), -len(wanted.keys() ^ given.keys())
