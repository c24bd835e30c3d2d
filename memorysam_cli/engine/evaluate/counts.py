"""Pixel counts in both evaluation protocols (METHOD §5), and the scores of all scenes or of a part of them.

A scene's pixels become a confusion matrix, and a matrix becomes scores. A tally adds up the scenes. An evaluation gives
the scores of the whole and of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import IGNORE
from memorysam_cli.engine.processes import wait_for_all
from memorysam_cli.errors import Laws, check_laws

AT_ONCE = 2**22
"""Number of pixels counted at once; each needs some 40 bytes."""
ProtocolName = Literal["resized", "native"]
PROTOCOLS: tuple[ProtocolName, ...] = ("resized", "native")
NORMAL = "normal"
"""The name in results, and optionally in a manifest, of a scene without a sensor failure."""
WORST = 10
"""Number of scenes that a report names."""


def confusion(prediction: Tensor, label: Tensor, classes: int) -> Tensor:
    """Count the pixels of each (truth, prediction) pair.

    Args:
        prediction: any shape, integers in 0..K-1.
        label: the same shape, integers in 0..K-1 or 255, which is ignored.
        classes: K.

    Returns:
        (K, K) int64 on the prediction's device; rows are the truth, columns the prediction.

    Raises:
        ValueError: shapes differ, or a value is outside its range.

    Source: METHOD §5. int64: float32 loses units above 2**24, which Road and Sky pass on DELIVER's val.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
    total = torch.zeros(classes * classes, dtype=torch.int64, device=prediction.device)
    parts = (torch.split(values.flatten(), AT_ONCE) for values in (prediction, label))
    for guesses, truths in zip(*parts, strict=True):
        counted = truths != IGNORE
        truth, guess = truths[counted].long(), guesses[counted].long()
        for name, values in (("label", truth), ("prediction", guess)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
                raise ValueError(f"{name}: values {int(values.min())}..{int(values.max())}, allowed 0..{classes - 1}")
        total += torch.bincount(truth * classes + guess, minlength=classes * classes)
    return total.reshape(classes, classes)


@dataclass(frozen=True, slots=True)
class Scores:
    """Per-class values and their means, all in % and not rounded.

    ``miou``, ``mf1`` and ``macc`` are means over all K classes; an empty class counts 0. Those with ``_present`` are
    means over the classes with ground truth (0 if there is none).
    """

    iou: tuple[float, ...]
    f1: tuple[float, ...]
    accuracy: tuple[float, ...]
    pixels: tuple[int, ...]
    """Ground-truth pixels per class."""
    miou: float
    mf1: float
    macc: float
    miou_present: float
    mf1_present: float
    macc_present: float

    def means(self) -> dict[str, float]:
        """All means by their names in reports."""
        return {
            "miou": self.miou, "macc": self.macc, "mf1": self.mf1, "miou_present": self.miou_present,
            "macc_present": self.macc_present, "mf1_present": self.mf1_present,
        }  # fmt: skip


def scores(matrix: Tensor) -> Scores:
    """IoU, F1 and accuracy (recall) of each class, and their means.

    Args:
        matrix: (K, K) int64 counts from :func:`confusion`.

    Returns:
        Percentages. A class with an empty union, or for accuracy one without ground truth, has 0.

    Source: METHOD §5; DATASETS §1.4 (the reference turns NaN into 0 before the mean over all classes).
    """
    counts = matrix.cpu().double()  # exact up to 2**53 pixels
    hits, truth, guessed = counts.diagonal(), counts.sum(1), counts.sum(0)
    iou = _percent(hits, truth + guessed - hits)
    f1 = _percent(2 * hits, truth + guessed)
    accuracy = _percent(hits, truth)
    present = truth > 0

    def mean_of_present(values: Tensor) -> float:
        return float(values[present].mean()) if present.any() else 0.0

    return Scores(
        iou=tuple(iou.tolist()),
        f1=tuple(f1.tolist()),
        accuracy=tuple(accuracy.tolist()),
        pixels=tuple(int(count) for count in truth.tolist()),
        miou=float(iou.mean()),
        mf1=float(f1.mean()),
        macc=float(accuracy.mean()),
        miou_present=mean_of_present(iou),
        mf1_present=mean_of_present(f1),
        macc_present=mean_of_present(accuracy),
    )


def _percent(part: Tensor, whole: Tensor) -> Tensor:
    """100 · part / whole, 0 if the whole is empty."""
    return torch.where(whole > 0, 100 * part / whole.clamp(min=1), 0.0)


def protocol_index(protocol: str) -> int:
    """The index of a protocol in the count tensors; ``ValueError`` for an unknown name."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol '{protocol}': known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS.index(protocol)


class Group(NamedTuple):
    """Scenes with the same split, condition and case."""

    split: str
    condition: str | None
    case: str | None


def group_of(scene: Scene) -> Group:
    """The group of a scene; empty names become None."""
    case = None if scene.case == NORMAL else scene.case or None
    return Group(scene.split, scene.condition or None, case)


class Tally:
    """Counts that are added up, as int64, because float32 loses units above 2**24.

    Args:
        scenes: all evaluated scenes, the same in every process.
        classes: K.
    """

    def __init__(self, scenes: Sequence[Scene], *, classes: int) -> None:
        self.groups = tuple(sorted({group_of(scene) for scene in scenes}, key=str))
        self.confusions = torch.zeros(len(PROTOCOLS), len(self.groups), classes, classes, dtype=torch.int64)
        self.per_scene = torch.zeros(len(PROTOCOLS), len(scenes), 3, classes, dtype=torch.int64)
        self.ignored = torch.zeros(len(PROTOCOLS), dtype=torch.int64)
        self.pixels = torch.zeros(len(PROTOCOLS), dtype=torch.int64)
        self.scored = torch.zeros(len(PROTOCOLS), dtype=torch.int64)
        self.classes = classes
        self._group_places = {group: index for index, group in enumerate(self.groups)}
        self._scene_places = {scene.id: index for index, scene in enumerate(scenes)}

    def add(
        self, protocol: ProtocolName, scene: Scene, *, prediction: Tensor, label: Tensor, pixels: int | None = None
    ) -> None:
        """Count one scene.

        Args:
            protocol: the protocol of this prediction.
            scene: one of the evaluated scenes.
            prediction: (H, W) class indices.
            label: (H, W).
            pixels: the expected number, from the header of the label file; None: the label's own number.
        """
        place = protocol_index(protocol)
        counted = confusion(prediction, label, self.classes).cpu()
        self.confusions[place, self._group_places[group_of(scene)]] += counted
        each = torch.stack([counted.diagonal(), counted.sum(1), counted.sum(0)])  # hits, truth, guessed: (3, K)
        self.per_scene[place, self._scene_places[scene.id]] += each
        self.ignored[place] += int((label == IGNORE).sum())
        self.pixels[place] += label.numel() if pixels is None else pixels
        self.scored[place] += 1

    def add_up(self, accelerator: Accelerator) -> None:
        """Sum over all processes."""
        wait_for_all(accelerator)  # another process may have had the larger scenes
        parts = [self.confusions, self.ignored, self.pixels, self.scored, self.per_scene]
        flat = torch.cat([part.flatten() for part in parts]).to(accelerator.device)
        summed = accelerator.reduce(flat, reduction="sum").cpu().split([part.numel() for part in parts])
        self.confusions, self.ignored, self.pixels, self.scored, self.per_scene = (
            whole.view_as(part) for whole, part in zip(summed, parts, strict=True)
        )

    def check(self) -> Laws:
        """Check that every scene was scored once, and every pixel of its label was counted in a matrix or as ignored.

        Raises:
            LawBroken: a scene or a pixel was lost, or counted twice.
        """
        sums: dict[str, tuple[int, int]] = {}
        for place, name in enumerate(PROTOCOLS):
            counted = int(self.confusions[place].sum())
            what = "height × width of the label files" if name == "native" else "pixels of the labels"
            sums |= {
                f"{name}: scenes asked = scored + left out": (self.per_scene.shape[1], int(self.scored[place])),
                f"{name}: {what} = confusion + ignored": (
                    int(self.pixels[place]),
                    counted + int(self.ignored[place]),
                ),
                f"{name}: confusion = pixels of the scenes": (counted, int(self.per_scene[place, :, 1].sum())),
            }
        return check_laws(sums)


class Subset(NamedTuple):
    """A subset of the scenes: those that match every field that is not None; a case may be :data:`NORMAL`."""

    split: str | None = None
    condition: str | None = None
    case: str | None = None

    def holds(self, group: Group) -> bool:
        """Whether a group of scenes belongs to this subset."""
        return (
            self.split in (None, group.split)
            and self.condition in (None, group.condition)
            and self.case in (None, group.case or NORMAL)
        )


@dataclass(frozen=True)
class SceneScore:
    """The scores of one scene, in %."""

    scene: Scene
    pixels: int
    """Number of labeled pixels."""
    accuracy: float
    """Share of labeled pixels with the right class; 0 if there are none."""
    miou_present: float
    """Mean IoU of the classes in the label; 0 if there are none."""
    iou: tuple[float | None, ...]
    """Per class; None if it is neither in the label nor in the prediction."""


@dataclass(frozen=True)
class Evaluation:
    """The counts of an evaluation, from which all scores are computed."""

    classes: tuple[str, ...]
    scenes: tuple[Scene, ...]
    groups: tuple[Group, ...]
    """Split, condition and case; every scene belongs to one group."""
    confusions: Tensor
    """(protocols, groups, K, K) int64, rows the truth."""
    per_scene: Tensor
    """(protocols, scenes, 3, K) int64 pixels: correctly predicted, in the label, predicted."""
    ignored: Tensor
    """(protocols,) int64: number of pixels with the label 255."""
    laws: Laws = field(default_factory=dict)
    """The checked laws: no scene and no pixel was lost or counted twice."""

    def confusion(
        self, protocol: str, *, split: str | None = None, condition: str | None = None, case: str | None = None
    ) -> Tensor:
        """The (K, K) int64 counts of a protocol, for all scenes or for one split, condition and case.

        Raises:
            ValueError: unknown protocol.
        """
        subset = Subset(split, condition, case)
        chosen = [index for index, group in enumerate(self.groups) if subset.holds(group)]
        return self.confusions[protocol_index(protocol), chosen].sum(0)

    def protocol(self, name: str) -> Scores:
        """The scores of all scenes in one protocol.

        Raises:
            ValueError: unknown protocol.
        """
        return scores(self.confusion(name))

    def splits(self, protocol: str) -> dict[str, Scores]:
        """The scores per split, in the order of the evaluation."""
        return {name: scores(self.confusion(protocol, split=name)) for name in self._splits()}

    def conditions(self, protocol: str) -> dict[str, Scores]:
        """The scores per weather or light, sorted by name; empty if the data set has none."""
        return {name: scores(self.confusion(protocol, condition=name)) for name in self._conditions()}

    def cases(self, protocol: str) -> dict[str, Scores]:
        """The scores per sensor failure, ``normal`` first; empty if no scene has one."""
        return {name: scores(self.confusion(protocol, case=name)) for name in self._cases()}

    def scene_scores(self, protocol: str) -> list[SceneScore]:
        """The scores of each scene, in the order of the evaluation.

        Raises:
            ValueError: unknown protocol.
        """
        counts = self.per_scene[protocol_index(protocol)].double()  # (scenes, 3, K); exact up to 2**53 pixels
        hits, truth, guessed = counts.unbind(1)
        union = truth + guessed - hits
        iou = (100 * hits / union.clamp(min=1)).tolist()
        is_known, is_present = (union > 0).tolist(), (truth > 0).tolist()
        right, scored = hits.sum(1).tolist(), truth.sum(1).tolist()
        each = []
        for index, scene in enumerate(self.scenes):
            values = tuple(value if known else None for value, known in zip(iou[index], is_known[index], strict=True))
            present = [value for value, there in zip(iou[index], is_present[index], strict=True) if there]
            mean = sum(present) / max(1, len(present))
            accuracy = 100 * right[index] / max(1, scored[index])
            each.append(SceneScore(scene, int(scored[index]), accuracy, mean, values))
        return each

    def subsets(self) -> Iterator[Subset]:
        """Every subset in a breakdown: the whole, each split, condition and case, and their products.

        A product that would repeat another subset (with one split, or without conditions or cases) is left out.
        """
        splits, conditions, cases = self._splits(), self._conditions(), self._cases()
        yield Subset()
        yield from (Subset(split=name) for name in splits)
        yield from (Subset(condition=name) for name in conditions)
        yield from (Subset(case=name) for name in cases)
        if conditions and cases:
            yield from (each for each in self._products((None,)) if self.count(each))
        if len(splits) > 1 and (conditions or cases):
            yield from (each for each in self._products(splits) if self.count(each))

    def count(self, subset: Subset) -> int:
        """The number of scenes in a subset."""
        return sum(subset.holds(group_of(scene)) for scene in self.scenes)

    def to_json(self) -> dict[str, Any]:
        """Both protocols with the keys of ``memorysam evaluate --json``; all scores in %."""
        return {name: self._protocol_to_json(name) for name in PROTOCOLS}

    def _protocol_to_json(self, protocol: ProtocolName) -> dict[str, Any]:
        whole = self.protocol(protocol)
        each = zip(self.classes, whole.iou, whole.f1, whole.accuracy, whole.pixels, strict=True)
        return {
            **whole.means(),
            "classes": [
                {"name": name, "iou": iou, "f1": f1, "accuracy": accuracy, "pixels": pixels}
                for name, iou, f1, accuracy, pixels in each
            ],
            "splits": {name: self._subset_to_json(protocol, Subset(split=name)) for name in self._splits()},
            "conditions": {name: self._subset_to_json(protocol, Subset(condition=name)) for name in self._conditions()},
            "cases": {name: self._subset_to_json(protocol, Subset(case=name)) for name in self._cases()},
            "condition_cases": self._product_to_json(protocol),
            "worst": self._worst_to_json(protocol),
            "pixels": {"scored": sum(whole.pixels), "ignored": int(self.ignored[protocol_index(protocol)])},
        }

    def _subset_to_json(self, protocol: ProtocolName, subset: Subset) -> dict[str, Any]:
        return {"scenes": self.count(subset), **scores(self.confusion(protocol, **subset._asdict())).means()}

    def _product_to_json(self, protocol: ProtocolName) -> dict[str, dict[str, Any]]:
        """Condition → case → scores, if there are both."""
        cells: dict[str, dict[str, Any]] = {}
        for subset in self._products((None,)):
            if subset.condition is not None and subset.case is not None and self.count(subset):
                cells.setdefault(subset.condition, {})[subset.case] = self._subset_to_json(protocol, subset)
        return cells

    def _worst_to_json(self, protocol: ProtocolName) -> list[dict[str, Any]]:
        """The scenes with the lowest mIoU of present classes, the worst first; without scenes that have no labeled
        pixel."""
        counted = [each for each in self.scene_scores(protocol) if each.pixels]
        return [
            {
                "scene": each.scene.id,
                "split": each.scene.split,
                "condition": each.scene.condition,
                "case": each.scene.case,
                "accuracy": each.accuracy,
                "miou_present": each.miou_present,
            }
            for each in sorted(counted, key=lambda one: one.miou_present)[:WORST]
        ]

    def _products(self, splits: tuple[str | None, ...]) -> Iterator[Subset]:
        """All combinations of the given splits with the conditions and cases; some may have no scene."""
        for split in splits:
            for condition in self._conditions() or (None,):
                yield from (Subset(split, condition, case) for case in self._cases() or (None,))

    def _splits(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(scene.split for scene in self.scenes))

    def _conditions(self) -> tuple[str, ...]:
        return tuple(sorted({group.condition for group in self.groups if group.condition is not None}))

    def _cases(self) -> tuple[str, ...]:
        """``normal`` first, then the failures by name; none if no scene has one."""
        failures = sorted({group.case for group in self.groups if group.case is not None})
        first = [NORMAL] if any(group.case is None for group in self.groups) else []
        return (*first, *failures) if failures else ()
