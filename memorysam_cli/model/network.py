"""MemorySAM: SAM2's video memory run across the modalities of one scene."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from memorysam_cli.model.backbone import set_grid
from memorysam_cli.model.hiera import Block, stages, whole
from memorysam_cli.model.linear import linear, use_fast_linears
from memorysam_cli.model.memory import GATED, Frame
from memorysam_cli.model.rotary import use_fast_rotary_attention
from memorysam_cli.model.sequences import Step, Tree
from memorysam_cli.model.windows import Layout


class Output(NamedTuple):
    """What one forward pass gives.

    Attributes:
        logits: (B, tokens, H/4, W/4) float32, sum of the open frames' class logits divided by M.
        gate_shift: (B, 1, 1, 1) float32, −1024 × the share of gated frames: the same for every class and pixel.
        features: (B, C/8, H/4, W/4) mean over frames of the stride-4 feature map, for the prototypes.
    """

    logits: Tensor
    gate_shift: Tensor
    features: Tensor


class MemorySAM(nn.Module):
    """The network: M aligned images in, class logits out.

    Args:
        sam: a SAM2 network from :func:`memorysam_cli.model.backbone.build_sam2`.
        classes: K, how many of the decoder's class tokens the data set uses (imported weights may have more).
        object_gate: whether SAM2's object score may silence a frame (METHOD §1.5).

    Source: MemorySAM (arXiv 2503.06700), METHOD §1.
    """

    def __init__(self, sam: SAM2Base, *, classes: int, object_gate: bool = True) -> None:
        super().__init__()
        use_fast_linears(sam)
        use_fast_rotary_attention(sam)
        self.sam = sam
        self.classes = classes
        self.object_gate = object_gate
        self.saver = False
        self._block: Block | None = None
        self._grid: tuple[int, int, torch.device] | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.sam.no_mem_embed.device
        return device

    def compile_blocks(self, *, mode: str | None = None) -> None:
        """Have ``torch.compile`` make one function of each kind of Hiera's blocks, at their first run.

        Frames are then encoded one modality at a time, so that what is compiled for a batch serves any number of
        modalities. A new batch or image size is compiled anew.

        Args:
            mode: of ``torch.compile``; "reduce-overhead", CUDA graphs, is unmeasured.
        """
        # Eight kinds of blocks (stages, changes of stage, global ones), each with and without gradients.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        self._block = torch.compile(whole, mode=mode)

    def forward(self, frames: Sequence[Tensor]) -> Output:
        """Run the memory across the frames.

        Args:
            frames: M tensors (B, 3, H, W), normalised, in the order of the recipe; H and W divisible by 32.

        Raises:
            ValueError: no frame, unequal shapes, or a size that is not divisible by 32.
        """
        _, output = next(self.outputs(self.encode(frames), [range(len(frames))]))
        return output

    def encode(self, frames: Sequence[Tensor]) -> list[Frame]:
        """Encode all frames at once; their encodings do not depend on each other.

        Args:
            frames: as in :meth:`forward`.

        Raises:
            ValueError: as in :meth:`forward`.
        """
        _check(frames)
        batch = frames[0].shape[0]
        calls = frames if self._block else [torch.cat(list(frames))]  # (M·B, 3, H, W)
        levels = zip(*(self._pyramid(call) for call in calls), strict=True)
        fine, middle, coarse = (
            list(itertools.chain.from_iterable(torch.split(part, batch) for part in level)) for level in levels
        )
        position = self.sam.image_encoder.neck.position_encoding(coarse[0][:1]).to(coarse[0].dtype)
        positions = [position.expand(batch, -1, -1, -1)] * len(frames)
        return [Frame(*parts) for parts in zip(fine, middle, coarse, positions, strict=True)]

    def outputs(self, pool: Sequence[Frame], sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, Output]]:
        """Run the memory across many sequences of encoded frames.

        Args:
            pool: frames as of :meth:`encode`, all of one batch size and image size.
            sequences: each lists places in ``pool`` in the order in which the memory sees them.

        Yields:
            A sequence's number and its output, equal to that of :meth:`forward` on its frames, in the order in which
            they come about. Common beginnings are computed once (with SAM 2.1, whose pointers know the number of
            frames, only between sequences of one length).

        Raises:
            ValueError: a sequence is empty.
        """
        if not all(sequences):
            raise ValueError("sequences: each needs at least one frame")
        grid = pool[0].coarse.shape[-2:]
        self._use_grid(*grid)
        # The gaussian matrix is a buffer that moves with the network; the embedding is a few thousand cosines.
        dense_position = self.sam.sam_prompt_encoder.pe_layer(grid).unsqueeze(0)
        tree = Tree(
            self.sam, pool, sequences, gate=self.object_gate, dense_position=dense_position, saver=self.saver
        )  # fmt: skip
        for number, steps in tree.walk():
            yield number, _average(steps)

    def logits(self, frames: Sequence[Tensor]) -> Tensor:
        """The class logits at the size of the frames.

        Args:
            frames: as in :meth:`forward`.

        Returns:
            (B, K, H, W) float32.
        """
        return self.upsample(self(frames), size=(frames[0].shape[-2], frames[0].shape[-1]))

    def upsample(self, output: Output, *, size: tuple[int, int]) -> Tensor:
        """Bring the logits of the data set's classes to pixels.

        Upsampling is linear and its weights sum to one, so averaging the modalities first equals the reference's M
        upsamplings at 1/M of the memory. Only open frames are averaged and the gate's constant is added last: mixed
        in earlier, −1024 would cost the class logits their low digits.

        Args:
            output: of :meth:`forward`.
            size: H and W.

        Returns:
            (B, K, H, W) float32.

        Source: METHOD §1.
        """
        logits = output.logits[:, : self.classes]  # imported weights may have more tokens than classes
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False) + output.gate_shift

    def _pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) -> features at stride 4, 8, 16, the first two already through ``conv_s0`` and ``conv_s1``.

        SAM2's neck, without its position encodings: those of stride 4 and 8, which nothing reads, would take a third
        of a gigabyte for four images of 1024 pixels. Its 1×1 convolutions are products of tokens; two in a row
        are one, whose 256 channels between never exist.
        """
        neck, decoder = self.sam.image_encoder.neck, self.sam.sam_mask_decoder
        convolutions: list[list[nn.Conv2d]] = [[level.conv] for level in reversed(neck.convs)]
        convolutions[0].append(decoder.conv_s0)
        convolutions[1].append(decoder.conv_s1)
        trunk = self.sam.image_encoder.trunk
        ends = stages(trunk, images, saver=self.saver, compiled=self._block)
        levels = zip(ends, convolutions, strict=True)
        fine, middle, coarse, top = (_map(tokens, layout, chain) for (tokens, layout), chain in levels)
        return fine, middle, coarse + F.interpolate(top.float(), scale_factor=2.0, mode=neck.fpn_interp_model)

    def _use_grid(self, height: int, width: int) -> None:
        """Keep SAM2's tables in step with the image size and the device."""
        grid = (height, width, self.device)
        if grid != self._grid:
            # SAM2 keeps the position encodings of every size it ever saw: gigabytes in a folder of mixed sizes.
            for encoding in (self.sam.image_encoder.neck.position_encoding, self.sam.memory_encoder.position_encoding):
                encoding.cache.clear()
            set_grid(self.sam, height, width)
            self._grid = grid


def _map(tokens: Tensor, layout: Layout, chain: Sequence[nn.Conv2d]) -> Tensor:
    """One or two 1×1 convolutions on the tokens of frames: (T, C) -> (N, C', h, w)."""
    weight, bias = chain[0].weight.flatten(1), chain[0].bias
    with torch.autocast(tokens.device.type, enabled=False):  # weights are multiplied once, in their own type
        for layer in chain[1:]:
            outer = layer.weight.flatten(1)
            weight, bias = outer @ weight, F.linear(bias, outer, layer.bias)  # type: ignore[arg-type]
    return layout.join(linear(tokens, weight, bias)).permute(0, 3, 1, 2).contiguous()


def _average(steps: Sequence[Step]) -> Output:
    """The mean over a sequence's frames."""
    gates = [step.decoded.is_open[:, :, None, None] for step in steps]  # (B, 1) -> (B, 1, 1, 1)
    logits = [torch.where(gate > 0, step.decoded.logits, 0.0) for gate, step in zip(gates, steps, strict=True)]
    return Output(
        logits=torch.stack(logits).mean(dim=0),  # (M, B, tokens, h, w) -> (B, tokens, h, w)
        gate_shift=GATED * (1 - torch.stack(gates).mean(dim=0)),
        features=torch.stack([step.frame.fine for step in steps]).mean(dim=0),
    )


def _check(frames: Sequence[Tensor]) -> None:
    """Refuse frames that the network would silently misread."""
    if not frames:
        raise ValueError("frames: needs at least one modality")
    shape = frames[0].shape
    for index, frame in enumerate(frames):
        if frame.ndim != 4 or frame.shape[1] != 3:
            raise ValueError(f"frames[{index}]: shape {tuple(frame.shape)}; needs (B, 3, H, W)")
        if frame.shape != shape:
            raise ValueError(f"frames[{index}]: shape {tuple(frame.shape)} differs from frames[0]'s {tuple(shape)}")
    if shape[-2] % 32 or shape[-1] % 32:
        raise ValueError(f"frames: {shape[-2]}×{shape[-1]} pixels; height and width must be divisible by 32")
