"""One batch of scenes under every failure of a benchmark, at a fraction of the cost of as many evaluations.

Each modality, and each corruption of it, is encoded once per batch and repeat; what two failures begin with alike runs
through the memory once (:mod:`memorysam_cli.model.sequences`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.loader import Batch, ScoredScene
from memorysam_cli.dataset import IGNORE, Modality
from memorysam_cli.engine.evaluation import metrics
from memorysam_cli.engine.evaluation.scoring import decide
from memorysam_cli.engine.evaluation.tally import ProtocolName
from memorysam_cli.engine.processes import wait_for_all
from memorysam_cli.engine.robustness.corruption import Draw, corrupt
from memorysam_cli.engine.robustness.sensor_sets import CLEAN, ZERO, Cell, Variant
from memorysam_cli.model.fusion import Output
from memorysam_cli.model.memory import EncodedFrame
from memorysam_cli.model.network import MemorySAM


class Bench:
    """Scores batches and keeps the counts.

    Args:
        model: in eval mode.
        plan: what the memory sees for each figure.
        modalities: in the order of the memory.
        classes: K.
        draws: one per repeat.
        protocol: in which frames and labels are seen.
        device: where the model is.
    """

    def __init__(
        self,
        model: MemorySAM,
        plan: Mapping[Cell, Sequence[Variant]],
        *,
        modalities: Sequence[Modality],
        classes: int,
        draws: Sequence[Draw],
        protocol: ProtocolName,
        device: torch.device | str,
    ) -> None:
        self.model, self.modalities, self.draws = model, modalities, draws
        self.protocol, self.device, self.classes = protocol, device, classes
        # With nothing missing all levels are one: it runs once, and counts for each.
        self.cells: dict[tuple[Variant, ...], list[int]] = {}
        for index, variants in enumerate(plan.values()):
            self.cells.setdefault(tuple(variants), []).append(index)
        self.confusions = torch.zeros(len(draws), len(plan), classes, classes, dtype=torch.int64)
        self.pixels = 0
        self._zeros: dict[tuple[int, ...], EncodedFrame] = {}

    def shape(self, scored: ScoredScene) -> tuple[int, ...]:
        """What must agree for scenes to share a forward pass."""
        return tuple(self._seen(scored).frames[0].shape)

    def score(self, together: Sequence[ScoredScene]) -> None:
        """Count every figure of one batch, in every repeat."""
        seen = [self._seen(scored) for scored in together]
        scenes = [scored.scene.id for scored in together]
        frames = [torch.cat(each) for each in zip(*(batch.frames for batch in seen), strict=True)]
        labels = [batch.label[0].to(self.device) for batch in seen if batch.label is not None]
        self.pixels += sum(int((label != IGNORE).sum()) for label in labels)
        clean = {(place, CLEAN): frame for place, frame in enumerate(self._encode(frames))}
        for repeat, draw in enumerate(self.draws):
            pool = clean | self._others(frames, scenes, draw)
            self._count_all(pool, labels, size=(frames[0].shape[-2], frames[0].shape[-1]), repeat=repeat)

    def counts(self, accelerator: Accelerator | None) -> Tensor:
        """(repeats, figures, K, K) int64, the sums over all processes."""
        confusions, pixels = self.confusions, self.pixels
        if accelerator is not None:
            flat = torch.cat([confusions.flatten(), torch.tensor([pixels])]).to(accelerator.device)
            wait_for_all(accelerator)  # one may have had the larger scenes
            flat = accelerator.reduce(flat, reduction="sum").cpu()
            confusions, pixels = flat[:-1].view_as(confusions), int(flat[-1])
        assert bool((confusions.sum((2, 3)) == pixels).all())  # each figure counts every pixel once
        return confusions

    def _seen(self, scored: ScoredScene) -> Batch:
        return scored.resized if self.protocol == "resized" else scored.whole

    def _encode(self, frames: Sequence[Tensor]) -> list[EncodedFrame]:
        return self.model.encode([frame.to(self.device, non_blocking=True) for frame in frames])

    def _others(self, frames: Sequence[Tensor], scenes: Sequence[str], draw: Draw) -> dict[Variant, EncodedFrame]:
        """All variants that the plan asks for beside the clean ones, encoded one level at a time."""
        wanted = sorted({variant for variants in self.cells for variant in variants if variant[1] != CLEAN})
        found: dict[Variant, EncodedFrame] = {}
        for level in dict.fromkeys(level for _, level in wanted):
            variants = [variant for variant in wanted if variant[1] == level]
            if level == ZERO:
                zero = self._zero(frames[0])
                found |= dict.fromkeys(variants, zero)
                continue
            spoilt = [
                corrupt(frames[place], self.modalities[place], scenes=scenes, level=level, draw=draw)
                for place, _ in variants
            ]
            found |= zip(variants, self._encode(spoilt), strict=True)
        return found

    def _zero(self, frame: Tensor) -> EncodedFrame:
        """An encoded frame of zeros for a batch like ``frame``; one of each size is encoded."""
        shape = tuple(frame.shape[1:])
        if shape not in self._zeros:
            self._zeros = {shape: self._encode([torch.zeros(1, *shape)])[0]}  # scenes of one size come in a row
        zero, batch = self._zeros[shape], frame.shape[0]
        return EncodedFrame(
            *(part.expand(batch, -1, -1, -1) for part in (zero.fine, zero.middle, zero.coarse, zero.position))
        )

    def _count_all(
        self, pool: dict[Variant, EncodedFrame], labels: Sequence[Tensor], *, size: tuple[int, int], repeat: int
    ) -> None:
        """Run every sequence of frames and add its counts to its figures."""
        wanted = [variants for variants in self.cells if repeat == 0 or _is_random(variants)]
        frames, places = _numbered(pool)
        for number, output in self.model.outputs(frames, [[places[v] for v in variants] for variants in wanted]):
            variants = wanted[number]
            repeats = [repeat] if _is_random(variants) else range(len(self.draws))
            counts = self._confusion(output, labels, size=size)
            for each in repeats:
                self.confusions[each, self.cells[variants]] += counts

    def _confusion(self, output: Output, labels: Sequence[Tensor], *, size: tuple[int, int]) -> Tensor:
        """(K, K) counts of one figure over the batch's scenes."""
        total = torch.zeros(self.classes, self.classes, dtype=torch.int64, device=self.device)
        for logits, label in zip(self.model.upsample(output, size=size), labels, strict=True):
            prediction = decide(logits, height=label.shape[0], width=label.shape[1])
            total += metrics.confusion(prediction, label, self.classes)
        return total.cpu()


def _is_random(variants: Sequence[Variant]) -> bool:
    """Whether another draw may change what the memory sees."""
    return any(level not in (CLEAN, ZERO) for _, level in variants)


def _numbered(pool: dict[Variant, EncodedFrame]) -> tuple[list[EncodedFrame], dict[Variant, int]]:
    """The frames, and the place of each variant; variants that are one frame have one place."""
    frames: list[EncodedFrame] = []
    places: dict[Variant, int] = {}
    for variant, frame in pool.items():
        known = next((place for place, other in enumerate(frames) if other is frame), None)
        if known is None:
            known = len(frames)
            frames.append(frame)
        places[variant] = known
    return frames, places
