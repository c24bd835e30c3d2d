"""Recomputing instead of keeping: a part of the network that forgets its activations until its gradient is wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Function = TypeVar("Function", bound=Callable[..., object])


def saving(is_on: bool, function: Function) -> Function:
    """A function that keeps its arguments alone and runs again in the backward pass, dropout drawn as before.

    Args:
        is_on: False, or gradients off, leaves the function as it is.
        function: without effects of its own; its tensors may be anywhere in its arguments and results.
    """
    if not is_on or not torch.is_grad_enabled():
        return function
    return partial(checkpoint, function, use_reentrant=False)  # type: ignore[return-value]
