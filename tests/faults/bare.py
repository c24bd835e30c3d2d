"""For servers whose tests look at no network and no figure: both cost more than all that the faults are about."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from memorysam_cli.encoders.base import SMALL_HEAD, Backbone
from memorysam_cli.encoders.hiera import HieraEncoder, Size
from memorysam_cli.engine.train import loop
from memorysam_cli.engine.train.validation import Validation
from memorysam_cli.registry import ENCODERS

LEAST = Backbone(
    partial(HieraEncoder, Size(8, 1, (1, 1, 1, 1), (3,), windows=(8, 4, 8, 4))),
    replace(SMALL_HEAD, width=32, memory_width=8, memory_mlp=16, decoder_mlp=16, iou_hidden=16),
)
"""All parts that nano has, and a tenth of its numbers, which every checkpoint hashes, writes and reads back."""


def use_least() -> None:
    """Take it for nano in this process."""
    ENCODERS._known["nano"] = LEAST


def draw_nothing(*, unless: bool = False) -> None:
    """From now on training draws no figure in this process and its forks."""
    if unless:
        return
    Validation.draw = lambda *_, **__: None  # type: ignore[method-assign]
    loop.draw_first_batch = lambda *_: None
