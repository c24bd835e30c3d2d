"""Whether a data set can be trained on: every file there, sizes equal, dtypes readable, label ids legal.

Labels are decoded, because a wrong id would only show on the GPU, days later; of the other files the headers are read.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memorysam_cli.data import decode
from memorysam_cli.data.manifest import Manifest, Scene, count_splits, refuse_shared_ids
from memorysam_cli.dataset import IGNORE, DatasetInfo, Modality
from memorysam_cli.errors import DataError
from memorysam_cli.storage import images
from memorysam_cli.storage.headers import Header

SHOWN = 10
"""Offenders of each kind that are named; the others are counted."""
THREADS = 8
"""At most; decoding leaves Python's lock."""


@dataclass(frozen=True)
class Problem:
    """One kind of fault."""

    kind: str
    count: int
    first: tuple[str, ...]
    """The first ten, each with the scene and the path."""


@dataclass(frozen=True)
class Report:
    """What a check found."""

    dataset: str
    root: Path
    splits: dict[str, int]
    """Scenes per split."""
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    problems: tuple[Problem, ...]
    """Empty if the data set can be used."""
    warnings: tuple[str, ...]
    pixels: dict[str, tuple[int, ...]]
    """Split → labelled pixels per class, and then the ignored ones."""

    def to_json(self) -> dict[str, Any]:
        """The facts under the keys that ``memorysam prepare --json`` documents."""
        return {
            "dataset": self.dataset,
            "root": str(self.root),
            "scenes": sum(self.splits.values()),
            "splits": self.splits,
            "modalities": list(self.modalities),
            "classes": len(self.classes),
            "pixels": {split: list(counts) for split, counts in self.pixels.items()},
            "problems": [
                {"kind": problem.kind, "count": problem.count, "first": list(problem.first)}
                for problem in self.problems
            ],
            "warnings": list(self.warnings),
        }


def check(manifest: Manifest, *, advance: Callable[[], object] | None = None) -> Report:
    """Look at every file of a data set.

    Args:
        manifest: written or not; its files may be missing.
        advance: called after each scene.

    Returns:
        All that is wrong or odd; the order and wording do not depend on the number of threads.
    """
    faults: dict[str, list[str]] = defaultdict(list)
    stored: dict[str, Counter[str]] = defaultdict(Counter)
    pixels = {split: np.zeros(len(manifest.info.classes) + 1, np.int64) for split in count_splits(manifest.scenes)}
    try:
        refuse_shared_ids(manifest.scenes)
    except DataError as fault:
        faults["name"].append(str(fault))
    for scene, finding in zip(manifest.scenes, _findings(manifest), strict=True):
        for kind, message in finding.faults:
            faults[kind].append(message)
        for name, description in finding.stored.items():
            stored[name][description] += 1
        pixels[scene.split] += finding.pixels
        if advance is not None:
            advance()
    return Report(
        dataset=manifest.info.name,
        root=manifest.root.absolute(),
        splits=count_splits(manifest.scenes),
        modalities=tuple(modality.name for modality in manifest.info.modalities),
        classes=manifest.info.classes,
        problems=tuple(
            Problem(kind, len(messages), tuple(messages[:SHOWN])) for kind, messages in sorted(faults.items())
        ),
        warnings=tuple(_oddities(stored)),
        pixels={split: tuple(int(count) for count in counts) for split, counts in pixels.items()},
    )


@dataclass
class _Finding:
    """What one scene's files say."""

    faults: list[tuple[str, str]] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)
    """Modality → dtype and channels."""
    pixels: Any = 0


def _findings(manifest: Manifest) -> Iterator[_Finding]:
    """Look at all scenes with several threads; in order."""
    executor = ThreadPoolExecutor(max_workers=min(THREADS, os.cpu_count() or 1))
    try:
        yield from executor.map(lambda scene: _look(scene, root=manifest.root, info=manifest.info), manifest.scenes)
    finally:
        executor.shutdown(cancel_futures=True)


def _look(scene: Scene, *, root: Path, info: DatasetInfo) -> _Finding:
    """Check one scene."""
    finding = _Finding()
    sizes: list[tuple[str, str, tuple[int, int]]] = []  # what, kind, (height, width)
    for modality in info.modalities:
        for path in scene.files[modality.name]:
            header = _header(root / path, modality, scene=scene, finding=finding, shown=path)
            if header is not None:
                sizes.append((modality.name, modality.kind, (header.height, header.width)))
    label = _label(scene, root=root, info=info, finding=finding)
    if label is not None:
        sizes.append(("label", "label", label.shape))
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
        finding.pixels = np.append(counts[: len(info.classes)], counts[IGNORE])
    sharp = [size for _, kind, size in sizes if kind != "event"]
    if sharp and not all(decode.fits(*size, kind=kind, frame=sharp[0]) for _, kind, size in sizes):
        listed = ", ".join(f"{name} {height}×{width}" for name, _, (height, width) in sizes)
        finding.faults.append(("size", f"{scene.id}: sizes differ ({listed})"))
    return finding


def _header(path: Path, modality: Modality, *, scene: Scene, finding: _Finding, shown: str) -> Header | None:
    """A frame's header, if the frame can be used."""
    if not path.is_file():
        finding.faults.append(("missing file", f"{scene.id}: has no '{modality.name}' (looked for {shown})"))
        return None
    try:
        header = images.header(path)
    except DataError as fault:
        finding.faults.append(("unreadable", str(fault)))
        return None
    channels = (1,) if len(scene.files[modality.name]) > 1 else (1, 3, 4)
    if header.channels not in channels or not header.dtype.startswith(("uint8", "uint16", "float")):
        finding.faults.append(("dtype", f"{shown}: holds {header.channels} channel(s) of {header.dtype}"))
        return None
    finding.stored[modality.name] = f"{header.dtype} in {header.channels} channel(s)"
    return header


def _label(scene: Scene, *, root: Path, info: DatasetInfo, finding: _Finding) -> Any:
    """The label's classes, if they are legal."""
    if scene.label is None or not (root / scene.label).is_file():
        finding.faults.append(("missing file", f"{scene.id}: has no label (looked for {scene.label})"))
        return None
    try:
        return decode.read_label(root / scene.label, info.label, len(info.classes))
    except DataError as fault:
        finding.faults.append(("label", str(fault)))
        return None


def _oddities(stored: dict[str, Counter[str]]) -> Iterator[str]:
    """What is readable and yet worth a word."""
    for name, forms in stored.items():
        if len(forms) > 1:
            counts = ", ".join(f"{count} of {form}" for form, count in forms.most_common())
            yield f"'{name}' is stored in several ways ({counts}); each is scaled by its own dtype"
        elif any(form.endswith("in 4 channel(s)") for form in forms):
            yield f"'{name}' has an alpha channel, which is dropped"
