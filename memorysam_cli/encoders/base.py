"""The interface of an image encoder, and of an entry that a recipe's ``model.backbone`` names.

For your own encoder, write a subclass of :class:`Encoder` with a ``forward``, and register a :class:`Backbone` under a
name (docs/extending.md). :func:`saving` is the memory saver: a part of the network drops its activations and computes
them again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memorysam_cli.encoders.windows import TokenOrder
from memorysam_cli.errors import UsageError

STRIDES = (4, 8, 16, 32)
"""Image pixels per feature cell, for each level."""


class Level(NamedTuple):
    """The features of some frames at one stride."""

    tokens: Tensor
    """(T, C) tokens."""
    order: TokenOrder
    """The order of the tokens: which cell of which frame each token is."""


class Encoder(nn.Module):
    """An image encoder with four levels of features.

    A subclass defines ``channels`` and ``forward``: from (N, 3, H, W) normalized images, H and W divisible by 32, to
    four maps (N, C, H/s, W/s) at the strides 4, 8, 16 and 32. It must have no running statistics (no BatchNorm),
    because weights files and checkpoints store only trained values, and an update may run an image twice.
    """

    channels: Sequence[int]
    """C of the four levels, from stride 4 to stride 32."""
    lora_targets: Mapping[str, str] = {}
    """Names for ``model.lora.targets``, each with a pattern of the full names of its Linear or Conv2d layers."""
    frozen: tuple[str, ...] = ()
    """Prefixes of parameters that are never trained, not even with ``model.encoder: full``."""

    def levels(self, images: Tensor, *, saver: bool = False, unit: Callable[..., Any] | None = None) -> Iterator[Level]:
        """The features, level by level, from stride 4 to stride 32.

        Args:
            images: (N, 3, H, W).
            saver: whether to compute activations again in the backward pass.
            unit: :meth:`unit`, compiled by ``torch.compile``.

        Yields:
            Each level, to be used before the next one is requested.

        Raises:
            UsageError: the result of ``forward`` is not four maps of the declared sizes.
        """
        maps = saving(saver, unit or self.unit())(self, images)
        height, width = images.shape[-2:]
        wanted = [
            (images.shape[0], channels, height // stride, width // stride)
            for channels, stride in zip(self.channels, STRIDES, strict=True)
        ]
        found = [tuple(each.shape) for each in maps]
        if found != wanted:
            raise UsageError(f"encoder {type(self).__name__}: its forward gives maps of {found}, not of {wanted}")
        for each in maps:
            order = TokenOrder(each.shape[0], each.shape[2], each.shape[3], side=0)
            yield Level(order.cut(each.permute(0, 2, 3, 1)), order)  # (N, C, h, w) -> (T, C)

    def unit(self) -> Callable[..., Any]:
        """The function that ``train.compile`` compiles and an export traces. It has no branch and no in-place
        operation."""
        return _run

    def lora_pattern(self, targets: Sequence[str]) -> str:
        """A regular expression for PEFT: the full names of the layers that LoRA adapts."""
        return "|".join(f"(?:{self.lora_targets[target]})" for target in targets)

    def split_for_lora(self) -> None:
        """Change the layers to the form that LoRA adapts, in place; the result of ``forward`` does not change."""

    def join_after_lora(self) -> None:
        """Undo :meth:`split_for_lora`, in place, after LoRA was merged into the weights."""


@dataclass(frozen=True)
class Head:
    """The dimensions of the network after the encoder: SAM 2's neck, memory and mask decoder."""

    width: int = 256
    """Channels of the neck, the memory attention and the mask decoder."""
    memory_width: int = 64
    memory_layers: int = 4
    memory_mlp: int = 2048
    decoder_mlp: int = 2048
    iou_hidden: int = 256
    is_sam21: bool = False
    """Whether it has the additions of SAM 2.1: object pointers that know their distance, an embedding of empty
    frames."""


SMALL_HEAD = Head(width=128, memory_width=32, memory_layers=1, memory_mlp=256, decoder_mlp=256, iou_hidden=64)
"""The head of ``nano``, for trials on a CPU."""
SMALLER_HEAD = replace(SMALL_HEAD, width=64, memory_width=16)
"""The head of ``nano-1``, an earlier version of nano."""


@dataclass(frozen=True)
class Published:
    """One file on the Hugging Face Hub, of a whole SAM 2 network with this encoder."""

    repository: str
    filename: str
    sha256: str


@dataclass(frozen=True)
class Backbone:
    """An entry of ``model.backbone``.

    Attributes:
        build: creates the encoder with its initial values, from PyTorch's random numbers or from a file of yours.
        head: the dimensions of the network after the encoder.
        published: its base weights; None if there are none, and ``model.base_weights`` must be ``random`` or a file.
        packaged: the file in this package that replaces published weights.
    """

    build: Callable[[], Encoder]
    head: Head = Head()
    published: Published | None = None
    packaged: Path | None = None

    def encoder(self) -> Encoder:
        """Build the encoder, and refuse one that the program could not train or store.

        Raises:
            UsageError: it is not an :class:`Encoder`, does not have four levels, or has running statistics.
        """
        built = self.build()
        if not isinstance(built, Encoder):
            raise UsageError(
                f"encoder {type(built).__name__}: is not a subclass of memorysam_cli.encoders.base.Encoder"
            )
        name = type(built).__name__
        if len(built.channels) != len(STRIDES):
            raise UsageError(f"encoder {name}: has channels for {len(built.channels)} levels, not {len(STRIDES)}")
        for path, module in built.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
                raise UsageError(
                    f"encoder {name}: {path} is a {type(module).__name__} that keeps running statistics, which "
                    "weights files do not hold; use GroupNorm or LayerNorm"
                )
        return built


def _run(encoder: Encoder, images: Tensor) -> Sequence[Tensor]:
    """The four maps of an encoder."""
    maps: Sequence[Tensor] = encoder(images)
    return maps


Function = TypeVar("Function", bound=Callable[..., object])


def saving(is_on: bool, function: Function) -> Function:
    """A function that stores only its arguments and runs again in the backward pass, with the same dropout.

    Args:
        is_on: if False, or without gradients, the function is unchanged.
        function: without side effects; its tensors may be anywhere in its arguments and results.
    """
    if not is_on or not torch.is_grad_enabled():
        return function

    def again(*args: object, **options: object) -> object:
        # checkpoint finds the device of the random state only from its own positional arguments.
        return checkpoint(lambda args, options: function(*args, **options), args, options, use_reentrant=False)

    return again  # type: ignore[return-value]
