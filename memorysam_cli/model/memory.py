"""How frames go through SAM2's memory: condition on earlier frames, decode, remember; for one or many sequences.

Every modality is a *conditioning* frame of a video of one scene without prompts. Source: METHOD §1, SAM2's
``SAM2Base.track_step``. The arithmetic is SAM2's, without its assumption that images are square.

The memory of a frame depends only on the frames before it. Sequences therefore form a tree of common prefixes, each
computed once. The 15 subsets of four modalities have 32 frames in total, but only 15 different prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import NO_OBJ_SCORE, SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from torch import Tensor, nn

from memorysam_cli.encoders.base import saving
from memorysam_cli.model.backbone import STRIDE

GATED = float(NO_OBJ_SCORE)
"""Every class logit of a frame whose object score means that no object is there."""


@dataclass(frozen=True)
class EncodedFrame:
    """One encoded frame.

    Attributes:
        fine: (B, C/8, 4h, 4w) features at stride 4, already through the decoder's ``conv_s0``.
        middle: (B, C/4, 2h, 2w) features at stride 8, already through ``conv_s1``.
        coarse: (B, C, h, w) features at stride 16, not yet conditioned on memory.
        position: (B, C, h, w) sine position encoding of ``coarse``.
        sensor: the place of its sensor among the recipe's ``sensors``, also if others are missing.
    """

    fine: Tensor
    middle: Tensor
    coarse: Tensor
    position: Tensor
    sensor: int

    def expand(self, batch: int, *, sensor: int) -> EncodedFrame:
        """The frame of one scene repeated for ``batch`` scenes, without copies, for the given sensor."""
        fine, middle, coarse, position = (
            part.expand(batch, -1, -1, -1) for part in (self.fine, self.middle, self.coarse, self.position)
        )
        return EncodedFrame(fine, middle, coarse, position, sensor)


@dataclass(frozen=True)
class Memory:
    """What later frames see of this frame: (B, C_m, h, w) features with positions, and a (B, C) object pointer."""

    features: Tensor
    position: Tensor
    pointer: Tensor


@dataclass(frozen=True)
class Decoded:
    """The mask decoder's output for one frame.

    Attributes:
        logits: (B, K, 4h, 4w) class logits at stride 4, before the object gate.
        quality: (B, K) predicted IoU.
        tokens: (B, K, C) mask tokens.
        is_open: (B, 1) 1.0 if the object score lets the frame contribute, 0.0 if it is gated.
    """

    logits: Tensor
    quality: Tensor
    tokens: Tensor
    is_open: Tensor


class Notes(nn.Module):
    """Learned additions to a memory beyond the paper. All are zero at the start, so the start is the paper's network.

    Args:
        width: C_m, the memory's channels.
        sensors: M, to add an embedding of each sensor to the positions of its memories; 0: none. SAM 2 adds a temporal
            slot there, which all our frames share. An embedding on top of it equals a slot per sensor that starts as
            the shared one, without SAM 2's limit of seven.
        classes: K, to remember the probability of each class in each cell; 0: only the mask with the highest predicted
            IoU, whose head is not trained. Each class has a vector that is added to the memory's features, times the
            class's probability in the cell. That mask stays as well. The cost is negligible.
    """

    def __init__(self, width: int, *, sensors: int = 0, classes: int = 0) -> None:
        super().__init__()
        self.sensors = nn.Parameter(torch.zeros(sensors, width)) if sensors else None
        self.classes = nn.Parameter(torch.zeros(width, classes, 1, 1)) if classes else None

    def forward(self, memory: Memory, frame: EncodedFrame, decoded: Decoded) -> Memory:
        """A frame's memory with the additions."""
        features, position = memory.features, memory.position
        if self.classes is not None:
            # (B, K, 4h, 4w) -> (B, K, h, w): a cell's mean. A closed gate has no class.
            shares = F.avg_pool2d(decoded.logits[:, : self.classes.shape[1]].softmax(dim=1), kernel_size=4)
            noted = F.conv2d(shares * decoded.is_open[:, :, None, None], self.classes)  # (B, K, h, w) -> (B, C_m, h, w)
            features = features + noted.to(features.dtype)
        if self.sensors is not None:
            position = position + self.sensors[frame.sensor].view(1, -1, 1, 1)
        return Memory(features, position, memory.pointer)


def condition(
    sam: SAM2Base, frame: EncodedFrame, memories: Sequence[Memory], *, frames: int, saver: bool = False
) -> Tensor:
    """Fuse a frame's features with the memories of all earlier frames.

    Args:
        memories: memories of the frames before this one, in order; empty for the first.
        frames: M, the number of frames of the scene (:func:`frame_count`); it scales SAM 2.1's pointer positions.
        saver: whether each layer of the memory attention runs again in the backward pass.

    Returns:
        (B, C, h, w).
    """
    if not memories:
        no_memory: Tensor = sam.no_mem_embed.reshape(1, -1, 1, 1)
        return frame.coarse + no_memory
    # All are conditioning frames, so all get the temporal embedding of t_pos 0.
    time = sam.maskmem_tpos_enc[sam.num_maskmem - 1]
    tokens = [_sequence(memory.features) for memory in memories]
    positions = [_sequence(memory.position) + time for memory in memories]
    pointers, pointer_positions = _pointers(sam, memories, frames=frames)
    attention = sam.memory_attention
    conditioned = _sequence(frame.coarse) + 0.1 * _sequence(frame.position)
    conditioned, memory, position, own = (
        part.transpose(0, 1)  # (L, B, C) -> (B, L, C)
        for part in (conditioned, torch.cat([*tokens, pointers]), torch.cat([*positions, pointer_positions]),
                     _sequence(frame.position))
    )  # fmt: skip
    for layer in attention.layers:
        conditioned = saving(saver, layer)(
            tgt=conditioned, memory=memory, pos=position, query_pos=own, num_k_exclude_rope=pointers.shape[0]
        )
    normed: Tensor = attention.norm(conditioned)
    return normed.transpose(1, 2).reshape(frame.coarse.shape)  # (B, L, C) -> (B, C, h, w)


def decode(sam: SAM2Base, features: Tensor, frame: EncodedFrame, *, dense_position: Tensor, gate: bool) -> Decoded:
    """Run the mask decoder without a prompt.

    Args:
        features: (B, C, h, w) conditioned features.
        dense_position: (1, C, h, w) the prompt encoder's position embedding for this grid.
        gate: whether the object score may close a frame (METHOD §1.5).
    """
    batch, channels, height, width = features.shape
    prompt = sam.sam_prompt_encoder
    # SAM2 pads its empty point by another: two equal not-a-point tokens.
    sparse = prompt.not_a_point_embed.weight.expand(batch, 2, channels)
    dense = prompt.no_mask_embed.weight.reshape(1, channels, 1, 1).expand(batch, channels, height, width)
    logits, quality, tokens, score = sam.sam_mask_decoder.predict_masks(
        image_embeddings=features,
        image_pe=dense_position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=[frame.fine, frame.middle],
    )
    is_open = (score > 0).float() if gate else torch.ones_like(score, dtype=torch.float32)
    # Token 0 is SAM2's single-mask token; it attends but gives no class.
    return Decoded(logits[:, 1:].float(), quality[:, 1:], tokens[:, 1:], is_open)


def remember(sam: SAM2Base, frame: EncodedFrame, decoded: Decoded, notes: Notes) -> Memory:
    """Encode a frame with its best mask as a memory for later frames, with the additions of :class:`Notes`."""
    best = decoded.quality.argmax(dim=-1)  # (B, K) -> (B,)
    sample = torch.arange(best.shape[0], device=best.device)
    mask = decoded.logits[sample, best].unsqueeze(1)  # (B, K, 4h, 4w) -> (B, 1, 4h, 4w)
    mask = torch.where(decoded.is_open[:, :, None, None] > 0, mask, GATED)
    pixels = (frame.coarse.shape[-2] * STRIDE, frame.coarse.shape[-1] * STRIDE)
    mask = F.interpolate(mask, size=pixels, mode="bilinear", align_corners=False)
    mask = mask.sigmoid() * sam.sigmoid_scale_for_mem_enc + sam.sigmoid_bias_for_mem_enc
    encoded = sam.memory_encoder(frame.coarse, mask, skip_mask_sigmoid=True)
    features, closed = encoded["vision_features"], 1 - decoded.is_open
    if sam.no_obj_embed_spatial is not None:
        features = features + (closed @ sam.no_obj_embed_spatial)[:, :, None, None]
    pointer = decoded.is_open * sam.obj_ptr_proj(decoded.tokens[sample, best]) + closed * sam.no_obj_ptr
    memory: Memory = notes(Memory(features, encoded["vision_pos_enc"][0], pointer), frame, decoded)
    return memory


def _pointers(sam: SAM2Base, memories: Sequence[Memory], *, frames: int) -> tuple[Tensor, Tensor]:
    """The object pointers as memory tokens and their positions, both (n·C/C_m, B, C_m)."""
    pointers = torch.stack([memory.pointer for memory in memories])  # (n, B, C)
    count, batch, channels = pointers.shape
    pieces = channels // sam.mem_dim
    positions = pointers.new_zeros(count, batch, sam.mem_dim)
    if sam.add_tpos_enc_to_obj_ptrs:
        distance = torch.arange(count, 0, -1, device=pointers.device)
        longest = min(frames, sam.max_obj_ptrs_in_encoder) - 1
        waves = sam.obj_ptr_tpos_proj(get_1d_sine_pe(distance / longest, dim=channels))
        positions = waves.unsqueeze(1).expand(-1, batch, -1)
    # (n, B, C) -> (n, B, pieces, C_m) -> (n·pieces, B, C_m)
    tokens = pointers.reshape(count, batch, pieces, sam.mem_dim).transpose(1, 2).flatten(0, 1)
    return tokens, positions.repeat_interleave(pieces, dim=0)


def _sequence(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (L, B, C), the layout of SAM2's memory attention."""
    return features.flatten(2).permute(2, 0, 1)


class Look(NamedTuple):
    """One look: a frame is conditioned on memories of earlier looks, decoded, and remembered if a later look needs
    it."""

    frame: int
    """The frame's place among the encoded frames."""
    sees: tuple[int, ...]
    """The earlier looks whose memories it sees, numbered from 0, in the order of the memory."""


def in_turn(places: Sequence[int]) -> list[Look]:
    """Each frame once, conditioned on all frames before it, as in the paper."""
    return [Look(place, tuple(range(number))) for number, place in enumerate(places)]


def frame_count(looks: Sequence[Look]) -> int:
    """The number of frames for SAM 2.1's pointers: that of the frames looked at, and at least that of any look's
    view."""
    return max(len({look.frame for look in looks}), *(len(look.sees) + 1 for look in looks))


@dataclass(frozen=True)
class Step:
    """A look of a sequence, and the mask decoder's output for its frame."""

    frame: EncodedFrame
    decoded: Decoded


@dataclass(frozen=True)
class Tree:
    """Sequences as a tree.

    Attributes:
        sam: the network.
        notes: additions to the memories.
        pool: encoded frames, all of one batch size and grid.
        sequences: each lists looks at frames of ``pool`` in their order; none is empty.
        gate: whether the object score may close a frame (METHOD §1.5).
        dense_position: (1, C, h, w) the prompt encoder's position embedding for this grid.
        saver: whether the layers of the memory attention, the decoder and the memory encoder run again in the backward
            pass instead of storing their activations.
    """

    sam: SAM2Base
    notes: Notes
    pool: Sequence[EncodedFrame]
    sequences: Sequence[Sequence[Look]]
    gate: bool
    dense_position: Tensor
    saver: bool = False

    def walk(self) -> Iterator[tuple[int, list[Step]]]:
        """Each sequence's number with its steps, as soon as they are known; at most one branch is in memory."""
        yield from self._extend(range(len(self.sequences)), [], [])

    def _extend(
        self, members: Sequence[int], steps: list[Step], memories: list[Memory | None]
    ) -> Iterator[tuple[int, list[Step]]]:
        """Continue sequences that begin with the same steps and are longer."""
        for together in self._by_next(members, depth=len(steps)):
            first = self.sequences[together[0]]
            look = first[len(steps)]
            frame = self.pool[look.frame]
            seen = [memory for memory in (memories[number] for number in look.sees) if memory is not None]
            features = condition(self.sam, frame, seen, frames=frame_count(first), saver=self.saver)
            decoded = saving(self.saver, decode)(
                self.sam, features, frame, dense_position=self.dense_position, gate=self.gate
            )  # fmt: skip
            step = Step(frame, decoded)
            reached = [*steps, step]
            longer = [number for number in together if len(self.sequences[number]) > len(reached)]
            for number in together:
                if number not in longer:
                    yield number, reached
            if longer:
                memory = None
                if any(len(steps) in later.sees for number in longer for later in self.sequences[number]):
                    memory = saving(self.saver, remember)(self.sam, frame, decoded, self.notes)
                yield from self._extend(longer, reached, [*memories, memory])

    def _by_next(self, members: Sequence[int], *, depth: int) -> list[list[int]]:
        """Sequences grouped by their next step."""
        groups: dict[tuple[Look, int], list[int]] = {}
        for number in members:
            sequence = self.sequences[number]
            look = sequence[depth]
            # SAM 2.1 divides the pointers' distances by the number of frames to come; a first frame has no pointers.
            span = frame_count(sequence) if look.sees and self.sam.add_tpos_enc_to_obj_ptrs else 0
            groups.setdefault((look, min(span, self.sam.max_obj_ptrs_in_encoder)), []).append(number)
        return list(groups.values())
