"""Many sequences of encoded frames through SAM2's memory; what two sequences begin with alike is computed once.

What a frame sees of the past depends on the frames before it and on nothing else, so that sequences form a tree of
common beginnings. The 15 subsets of four modalities have 32 frames in all, but only 15 different beginnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from memorysam_cli.model.memory import Decoded, Frame, Memory, condition, decode, remember
from memorysam_cli.model.saver import saving


@dataclass(frozen=True)
class Step:
    """One frame of a sequence, and what the mask decoder said of it after the frames before."""

    frame: Frame
    decoded: Decoded


@dataclass(frozen=True)
class Tree:
    """Sequences as a tree.

    Attributes:
        sam: the network.
        pool: encoded frames, all of one batch size and grid.
        sequences: each lists places in ``pool`` in the order in which the memory sees them; none is empty.
        gate: whether the object score may close a frame (METHOD §1.5).
        dense_position: (1, C, h, w) the prompt encoder's position embedding for this grid.
        saver: whether the layers of the memory attention, the decoder and the memory encoder run again in the
            backward pass instead of keeping their activations.
    """

    sam: SAM2Base
    pool: Sequence[Frame]
    sequences: Sequence[Sequence[int]]
    gate: bool
    dense_position: Tensor
    saver: bool = False

    def walk(self) -> Iterator[tuple[int, list[Step]]]:
        """Each sequence's number with its steps, as soon as they are known; at most one branch is in memory."""
        yield from self._extend(range(len(self.sequences)), [], [])

    def _extend(
        self, members: Sequence[int], steps: list[Step], memories: list[Memory]
    ) -> Iterator[tuple[int, list[Step]]]:
        """Go on with sequences that have all begun with the same steps and are longer."""
        for together in self._by_next(members, depth=len(steps)):
            first = self.sequences[together[0]]
            frame = self.pool[first[len(steps)]]
            features = condition(self.sam, frame, memories, frames=len(first), saver=self.saver)
            decoded = saving(self.saver, decode)(
                self.sam, features, frame, dense_position=self.dense_position, gate=self.gate
            )  # fmt: skip
            step = Step(frame, decoded)
            reached = [*steps, step]
            longer = [number for number in together if len(self.sequences[number]) > len(reached)]
            for number in together:
                if number not in longer:
                    yield number, reached
            if longer:  # nothing reads a last frame's memory
                memory = saving(self.saver, remember)(self.sam, frame, decoded)
                yield from self._extend(longer, reached, [*memories, memory])

    def _by_next(self, members: Sequence[int], *, depth: int) -> list[list[int]]:
        """Sequences that share their next step, together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for number in members:
            sequence = self.sequences[number]
            # SAM 2.1 divides the pointers' distances by the number of frames to come; a first frame has no pointers.
            span = len(sequence) if depth and self.sam.add_tpos_enc_to_obj_ptrs else 0
            groups.setdefault((sequence[depth], min(span, self.sam.max_obj_ptrs_in_encoder)), []).append(number)
        return list(groups.values())
