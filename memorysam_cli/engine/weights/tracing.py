"""The network as one graph of plain operators, which other runtimes can hold: a fixed batch, sensors and size.

Our own network takes forks that depend on the processor, works in place and multiplies complex numbers. What is traced
here has none of that, and computes the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memorysam_cli.encoders import products
from memorysam_cli.engine.predict.deciding import ONE_BYTE
from memorysam_cli.model import Segmenter
from memorysam_cli.model.backbone import RotaryAttention
from memorysam_cli.model.memory import EncodedFrame

INPUT = "frames"
OUTPUTS = ("logits", "classes", "confidence")


class Shape(NamedTuple):
    """What the graph is made for."""

    batch: int
    modalities: int
    height: int
    width: int

    @property
    def frames(self) -> tuple[int, int, int, int, int]:
        """Of the one input: (B, M, 3, H, W)."""
        return (self.batch, self.modalities, 3, self.height, self.width)


class Traceable(nn.Module):
    """A network as a function of one tensor.

    Args:
        network: loaded for use (LoRA merged, eval mode, on the CPU); it is changed and of no other use afterwards.
    """

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        network.use_plain_encoder()
        for module in network.modules():
            if isinstance(module, RotaryAttention):
                module.rotate = rotate_in_real_numbers
        self.network = network

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment.

        Args:
            frames: (B, M, 3, H, W) float32, normalised.

        Returns:
            ``logits`` (B, K, H/4, W/4) float32; ``classes`` (B, H, W) uint8, or int32 where there are more than 255
            classes; ``confidence`` (B, H, W) float32, the probability of that class.
        """
        network, (batch, modalities) = self.network, frames.shape[:2]
        # (B, M, 3, H, W) -> (M·B, 3, H, W): all frames in one call, frame after frame.
        together = network.encode([frames.transpose(0, 1).flatten(0, 1)])[0]
        parts = (
            torch.split(part, batch) for part in (together.fine, together.middle, together.coarse, together.position)
        )
        pool = [EncodedFrame(*each) for each in zip(*parts, strict=True)]
        _, output = next(network.outputs(pool, [range(modalities)]))
        # The gate's shift is one number for every class and pixel: it changes neither class nor probability.
        logits = output.logits[:, : network.classes]
        size = (frames.shape[-2], frames.shape[-1])
        pixels = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        classes = pixels.argmax(dim=1).to(torch.uint8 if network.classes <= ONE_BYTE else torch.int32)
        return logits, classes, pixels.softmax(dim=1).amax(dim=1)


def rotate_in_real_numbers(
    query: Tensor, key: Tensor, freqs_cis: Tensor, repeat_freqs_k: bool = False
) -> tuple[Tensor, Tensor]:
    """SAM2's ``apply_rotary_enc`` in real numbers: other runtimes have no complex ones."""
    table = torch.view_as_real(freqs_cis)  # (L', d/2, 2); a constant of the graph
    cosine, sine = table[..., 0].contiguous(), table[..., 1].contiguous()
    turns = key.shape[2] // query.shape[2] if repeat_freqs_k else 1
    return _turned(query, cosine, sine), _turned(key, cosine.repeat(turns, 1), sine.repeat(turns, 1))


def _turned(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs of channels: (B, heads, L, d) by (L, d/2)."""
    real, imaginary = values.reshape(*values.shape[:-1], -1, 2).unbind(dim=-1)
    turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
    return turned.flatten(-2)


def trace(network: Segmenter, shape: Shape) -> torch.export.ExportedProgram:
    """The graph of a network; see :class:`Traceable` for what goes in and comes out.

    Args:
        network: loaded for use; changed, and of no other use afterwards.
        shape: of the graph; height and width divisible by 32.
    """
    traceable, example = Traceable(network).eval(), torch.zeros(shape.frames)
    with _plain_products():
        # The first run makes the tables of this size, the second one SAM2's position encodings, which the making of
        # the tables forgets; the graph then has both as constants.
        for _ in range(2):
            traceable(example)
        program = torch.export.export(traceable, (example,), strict=False)
        # Without what switches autocast and gradients, which mean nothing in a graph that only runs forwards.
        plain: torch.export.ExportedProgram = program.run_decompositions({})
        return plain


@contextlib.contextmanager
def _plain_products() -> Iterator[None]:
    """Every product as PyTorch's own, and attention as in training: oneDNN's operators are no other runtime's."""
    before, products.TYPES = products.TYPES, ()
    try:
        with torch.enable_grad():
            yield
    finally:
        products.TYPES = before
