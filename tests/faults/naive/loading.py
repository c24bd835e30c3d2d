"""Weights as most programs load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_anything(path: Path) -> Any:
    """As nearly all published code did until torch 2.6, and much of it does still."""
    return torch.load(path, map_location="cpu", weights_only=False)


def load_weights_only(path: Path) -> Any:
    """With the lock, and no other check."""
    return torch.load(path, map_location="cpu", weights_only=True)


def fill(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """As the upstream code and most forks of SAM 2 do."""
    own = model.state_dict()
    model.load_state_dict(
        {name: value for name, value in state.items() if own.get(name, value[..., :0]).shape == value.shape},
        strict=False,
    )
