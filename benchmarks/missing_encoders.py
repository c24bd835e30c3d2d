"""``nano-per-sensor``, an encoder of missing.yaml: nano with a LoRA of its own for each of the four sensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from memorysam_cli.encoders.base import SMALL_HEAD, Backbone, Level
from memorysam_cli.encoders.hiera import NANO_FILE, SIZES, HieraEncoder
from memorysam_cli.encoders.windows import TokenOrder
from memorysam_cli.registry import ENCODERS

SENSORS = 4


class PerSensor(HieraEncoder):
    """Hiera once for each sensor: the base weights are the same, LoRA differs.

    An encoder does not hear which sensor an image is of. It takes N = 4·B images as those of four sensors in the
    recipe's order, as training and ``evaluate --robustness`` give them, and a single image, which replaces a sensor by
    zeros there, as one of the first sensor. It is therefore of no use for predictions without a sensor.
    """

    def __init__(self) -> None:
        super().__init__(SIZES["nano"])
        self.others = nn.ModuleList()
        """Of the sensors after the first one; none until there is LoRA."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Without the copies of base weights: the sensors' base weights are the same."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name in [name for name in state if "others." in name and ".lora_" not in name]:
            del state[name]
        return state

    def split_for_lora(self) -> None:
        """Also copy the base weights, which are there by now, for the other sensors."""
        others = [copy.deepcopy(self) for _ in range(SENSORS - 1)]
        super().split_for_lora()
        for other in others:
            HieraEncoder.split_for_lora(other)
        self.others.extend(others)

    def join_after_lora(self) -> None:
        """For every sensor."""
        super().join_after_lora()
        for other in self.others:
            HieraEncoder.join_after_lora(other)

    def levels(self, images: Tensor, *, saver: bool = False, unit: Callable[..., Any] | None = None) -> Iterator[Level]:
        """As :meth:`Encoder.levels`.

        Raises:
            ValueError: the images are not of four sensors.
        """
        if len(images) % SENSORS and len(images) != 1:
            raise ValueError(f"images: {len(images)}; needs a multiple of {SENSORS}, or one")
        encoders = [self, *self.others] if len(images) > 1 else [self]
        parts = [
            HieraEncoder.levels(encoder, part, saver=saver, unit=unit)
            for encoder, part in zip(encoders, images.chunk(len(encoders)), strict=True)
        ]
        for levels in zip(*parts, strict=True):
            cells = torch.cat([level.order.join(level.tokens) for level in levels])  # (N, h, w, C)
            order = TokenOrder(*cells.shape[:3], side=0)
            yield Level(order.cut(cells), order)


ENCODERS.register("nano-per-sensor", Backbone(PerSensor, SMALL_HEAD, packaged=NANO_FILE))
