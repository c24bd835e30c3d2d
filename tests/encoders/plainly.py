"""The plain way of what the network has a fast way for: PyTorch's and SAM2's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_onednn() -> Iterator[None]:
    """Our Linear layers multiply as ``nn.Linear`` does."""
    with warnings.catch_warnings():
        # PyTorch sets a switch of Intel's GPUs along, and says that there is none.
        warnings.simplefilter("ignore", UserWarning)
        with torch.backends.mkldnn.flags(enabled=False):
            yield
