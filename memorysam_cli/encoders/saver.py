"""Recomputing instead of keeping: a part of the network that forgets its activations until its gradient is wanted."""

from __future__ import annotations

from collections.abc import Callable
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

    def again(*args: object, **options: object) -> object:
        # Among its own positional arguments alone checkpoint looks for the device whose random state it keeps.
        return checkpoint(lambda args, options: function(*args, **options), args, options, use_reentrant=False)

    return again  # type: ignore[return-value]
