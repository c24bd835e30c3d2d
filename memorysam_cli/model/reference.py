"""The upstream MemorySAM code's weight layout, translated to ours (METHOD §6).

The parity tests import the reference's weights through it; ``memorysam weights import`` will.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memorysam_cli.errors import WeightsError

ADAPTER = "default"
"""PEFT's name for the adapter."""


def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate a reference ``state_dict`` to the names and shapes of a network with LoRA on q and v.

    The reference adds its LoRA output, of width d_in, to q's first d_in channels and to v's last d_in channels. In
    a stage's first block q and v are twice as wide: B is padded there with zero rows, which is exact.

    Raises:
        WeightsError: the state has no LoRA in the reference's form.
    """
    translated: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block, is_projection, rest = name.partition(".attn.qkv.")
        if not is_projection:
            translated[name] = tensor
        elif rest.startswith("qkv."):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                base = "base_layer." if part in "qv" else ""
                translated[f"{block}.attn.qkv.{part}.{base}{rest.removeprefix('qkv.')}"] = piece
        elif rest in {f"linear_{side}_{part}.weight" for side in "ab" for part in "qv"}:
            side, part = rest[len("linear_")], rest[len("linear_a_")]
            rows = state[f"{block}.attn.qkv.qkv.weight"].shape[0] // 3
            translated[f"{block}.attn.qkv.{part}.lora_{side.upper()}.{ADAPTER}.weight"] = (
                tensor if side == "a" else pad_rows(tensor, rows, at_end=part == "q")
            )
        else:
            raise WeightsError(f"weights: unknown tensor {name}; a MemorySAM checkpoint has linear_a_q … linear_b_v")
    return translated


def pad_rows(matrix: Tensor, rows: int, *, at_end: bool) -> Tensor:
    """(n, r) -> (rows, r) with zero rows after (q) or before (v) the given ones."""
    zeros = matrix.new_zeros(rows - matrix.shape[0], matrix.shape[1])
    return torch.cat([matrix, zeros] if at_end else [zeros, matrix])
