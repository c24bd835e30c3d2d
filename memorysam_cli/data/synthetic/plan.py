"""Which scenes a data set has: splits, sequences, conditions and failures, before anything is drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from memorysam_cli.data.datasets.deliver import CASES, CONDITIONS

SHARES = {"val": 0.25, "test": 0.15}
"""Shares of the scenes; the rest is for training."""
MAPS = {"train": (1, 2, 3, 5, 6, 8), "val": (1, 2, 3, 5, 6, 8), "test": (7, 10, 1, 3)}
"""As in DELIVER, maps 7 and 10 are met in test alone."""
SEQUENCE_FRAMES = 3
SPLITS = ("train", "val", "test")
PURPOSES = ("world", "img", "scan", "lidar", "event", "polarisation", "nir", "overlap")
CASE_SHARE = 0.35


@dataclass(frozen=True, slots=True)
class PlannedScene:
    """One frame to be drawn."""

    split: str
    sequence: int
    """Number of the sequence within its split; it decides the world."""
    frame: int
    """Number of the frame within its sequence."""
    condition: str
    case: str | None
    map: int
    point: int


def generator(seed: int, scene: PlannedScene, purpose: str) -> np.random.Generator:
    """One scene's randomness for one purpose: it depends on nothing else, so the order of work does not matter.

    Args:
        seed: of the data set.
        scene: whose.
        purpose: one of :data:`PURPOSES`; ``world`` is the same for all frames of a sequence.
    """
    frame = 0 if purpose == "world" else scene.frame
    key = (SPLITS.index(scene.split), scene.sequence, frame, PURPOSES.index(purpose))
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))


def counts(scenes: int) -> dict[str, int]:
    """Scenes per split; every split has one as soon as there are three."""
    found = {split: max(round(share * scenes), int(scenes >= 3)) for split, share in SHARES.items()}
    return {"train": scenes - sum(found.values()), **found}


def plan(scenes: int) -> list[PlannedScene]:
    """All scenes of a data set, sequence by sequence.

    Args:
        scenes: how many over all splits, at least 1.

    Returns:
        ``scenes`` entries. Conditions take turns from sequence to sequence, about every third sequence has a
        failure, and sequences are short where there are few scenes, so that each split meets all it can.
    """
    points: Counter[int] = Counter()
    planned: list[PlannedScene] = []
    for split, count in counts(scenes).items():
        length = min(max(count // 15, 1), SEQUENCE_FRAMES)
        for sequence in range(-(-count // length)):
            number = MAPS[split][sequence % len(MAPS[split])]
            points[number] += 1
            planned += [
                PlannedScene(
                    split=split,
                    sequence=sequence,
                    frame=frame,
                    condition=CONDITIONS[sequence % len(CONDITIONS)],
                    case=_case(sequence),
                    map=number,
                    point=points[number],
                )
                for frame in range(min(length, count - sequence * length))
            ]
    return planned


def _case(sequence: int) -> str | None:
    """The failure of a sequence: none for about two thirds; over time, each one meets each condition."""
    before, after = int(sequence * CASE_SHARE), int((sequence + 1) * CASE_SHARE)
    return CASES[(before + before // len(CASES)) % len(CASES)] if after > before else None
