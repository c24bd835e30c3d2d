"""Whether a data set can be used for training: files are complete, sizes match, dtypes and label ids are valid.

All files are decoded, because training would notice a wrong id or a damaged picture only after days. A check also draws
a scene of each condition with all its sensors, and how often each class occurs.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from memorysam_cli.data import decode
from memorysam_cli.data.decode import read_sample
from memorysam_cli.data.findings import CheckReport, Dropped, FileFacts, Oddities, Problem, Reader
from memorysam_cli.data.manifest import Manifest, Scene, count_splits, shared_ids, split_rank
from memorysam_cli.data.transforms import Sample, flip_refusal
from memorysam_cli.dataset import IGNORE, DatasetInfo, Modality
from memorysam_cli.errors import DataError, check_laws
from memorysam_cli.report import figures, pictures
from memorysam_cli.report.pictures import Panel
from memorysam_cli.storage import atomic, images
from memorysam_cli.text import counted, is_text, shown

THREADS = 16
"""Largest number of threads; decoding releases Python's lock."""

SceneFault = tuple[str, str]
"""Kind and message."""
SHEET, HISTOGRAM, OFFSETS = "sheet.png", "labels.png", "offsets.png"
ROWS = 12
"""Number of scenes on the sheet."""
TRIES = 5
"""Number of scenes of a condition that are tried until one can be read."""


def check(
    manifest: Manifest,
    *,
    drop_incomplete: bool = False,
    headers_only: bool = False,
    max_pixels: int | None = None,
    advance: Callable[[], object] | None = None,
) -> CheckReport:
    """Check every file of a data set; the results are cached beside the manifest.

    Args:
        manifest: written or not; its files may be missing.
        drop_incomplete: leave scenes with problems out of the figures, and list them.
        headers_only: read only the headers of the modalities' files. This takes seconds, but damaged pictures are not
            noticed and no value ranges are known. Labels are always decoded.
        max_pixels: larger pictures are refused from their headers; None: the default limit.
        advance: called after each scene.

    Returns:
        All problems and remarks; the order and wording do not depend on the number of threads.
    """
    info = manifest.info
    reader = Reader(manifest.root, info, headers_only=headers_only, max_pixels=max_pixels or images.pixel_limit())
    findings = _find(manifest.scenes, reader, advance=advance)
    faulty = [index for index, finding in enumerate(findings) if finding.faults]
    left_out = set(faulty) if drop_incomplete else set()
    kept = [index for index in range(len(findings)) if index not in left_out]
    scenes = tuple(manifest.scenes[index] for index in kept)
    odd = Oddities(info, max_pixels=images.pixel_limit())
    pixels = {split: np.zeros(len(info.classes) + 1, np.int64) for split in count_splits(scenes)}
    for index, scene in zip(kept, scenes, strict=True):
        odd.add(scene, findings[index].frames, findings[index].label)
        pixels[scene.split] += findings[index].pixels(len(info.classes))
    dropped = tuple(
        Dropped(manifest.scenes[index], tuple(message for _, message in findings[index].faults))
        for index in sorted(left_out)
    )
    return CheckReport(
        dataset=info.name,
        root=manifest.root.absolute(),
        scenes=scenes,
        modalities=tuple(modality.name for modality in info.modalities),
        classes=info.classes,
        problems=tuple(_problems(findings)),
        warnings=tuple(odd.lines()),
        remarks=(*odd.remarks(), *_resampling(info, [findings[index].resampled for index in kept])),
        pixels={split: tuple(int(count) for count in counts) for split, counts in pixels.items()},
        stored=odd.stored(),
        dropped=dropped,
        laws=check_laws(
            {
                "scenes found = accepted + left out": (len(manifest.scenes), len(scenes) + len(dropped)),
                "height × width of the labels = pixels of classes + ignored": (
                    sum(findings[index].label_pixels for index in kept),
                    sum(int(counts.sum()) for counts in pixels.values()),
                ),
            }
        ),
    )


@dataclass
class _SceneFindings:
    """The results for one scene's files."""

    faults: list[SceneFault] = field(default_factory=list)
    frames: dict[str, FileFacts] = field(default_factory=dict)
    """For each modality the form of its first file, and the range over all its files."""
    label: FileFacts | None = None
    resampled: dict[str, tuple[decode.Size, decode.Size]] = field(default_factory=dict)
    """Modality → its size and the frame's, if they differ."""

    @property
    def label_pixels(self) -> int:
        """Number of pixels of the label, from its file's header."""
        return 0 if self.label is None else self.label.height * self.label.width

    def pixels(self, classes: int) -> Any:
        """Labeled pixels per class, and then the ignored ones: (K + 1,) int64."""
        counts = np.zeros(classes + 1, np.int64)
        for value, count in (self.label.pixels if self.label else {}).items():
            counts[classes if value == IGNORE else value] = count
        return counts


def _find(scenes: Sequence[Scene], reader: Reader, *, advance: Callable[[], object] | None) -> list[_SceneFindings]:
    """Check all scenes, alone and against each other; the cache is saved even after an error."""
    findings: list[_SceneFindings] = []
    try:
        for finding in _look_at_all(scenes, reader):
            findings.append(finding)
            if advance is not None:
                advance()
    finally:
        reader.save(is_complete=len(findings) == len(scenes))
    for index, error in _between_scenes(scenes):
        findings[index].faults.append(error)
    return findings


def _look_at_all(scenes: Sequence[Scene], reader: Reader) -> Iterator[_SceneFindings]:
    """Check all scenes with several threads; in order."""
    executor = ThreadPoolExecutor(max_workers=min(THREADS, os.cpu_count() or 1))
    try:
        yield from executor.map(lambda scene: _look(scene, reader), scenes)
    finally:
        executor.shutdown(cancel_futures=True)


def _look(scene: Scene, reader: Reader) -> _SceneFindings:
    """Check one scene."""
    finding = _SceneFindings()
    odd_names = [name for name in _written_names(scene) if not is_text(name)]
    if odd_names:
        finding.faults.append(("name", f"{shown(scene.id)}: '{shown(odd_names[0])}' is not valid UTF-8; rename it"))
        return finding
    sizes: dict[str, tuple[int, int]] = {}
    for modality in reader.info.modalities:
        paths = scene.files.get(modality.name, ())
        absent: list[str] = []
        found = [_frame(path, modality, reader, finding, absent, files=len(paths)) for path in paths]
        if absent or not paths:
            looked = f"has no '{modality.name}' (looked for {' and '.join(map(shown, absent))})"
            what = looked if paths else f"names no '{modality.name}'"
            finding.faults.append((f"missing {modality.name}", f"{shown(scene.id)}: {what}"))
        facts = [each for each in found if each is not None]
        if facts:
            sizes[modality.name] = facts[0].height, facts[0].width
        if facts and len(facts) == len(found):
            _combine(scene, modality, facts, finding)
    finding.label = _label(scene, reader, finding)
    _check_sizes(scene, sizes, reader.info, finding)
    return finding


def _check_sizes(
    scene: Scene, sizes: Mapping[str, tuple[int, int]], info: DatasetInfo, finding: _SceneFindings
) -> None:
    """Check that the sensors match each other, and the label one of them; record which will be resampled."""
    label = None if finding.label is None else (finding.label.height, finding.label.width)
    kinds = {modality.name: modality.kind for modality in info.modalities}
    if not sizes:
        return
    frame = decode.frame_size(sizes, kinds=kinds, label=label)
    sharp = [size for name, size in sizes.items() if kinds[name] != "event"]
    if frame is None or (label is not None and sharp and label not in sharp):
        finding.faults.append(("size", f"{shown(scene.id)}: {decode.sizes_differ(sizes, label=label)}"))
    else:
        finding.resampled = {name: (size, frame) for name, size in sizes.items() if size != frame}


def _resampling(info: DatasetInfo, scenes: Sequence[Mapping[str, tuple[decode.Size, decode.Size]]]) -> Iterator[str]:
    """A line for each sensor whose resolution differs from the frame's."""
    for modality in info.modalities:
        found = [sizes[modality.name] for sizes in scenes if modality.name in sizes]
        if found:
            yield f"{decode.resampling(modality, *found[0])}, in {len(found)} of {counted(len(scenes), 'scene')}"


def _frame(
    path: str, modality: Modality, reader: Reader, finding: _SceneFindings, absent: list[str], *, files: int
) -> FileFacts | None:
    """The facts of one file of a modality, if it can be used; a missing one is added to ``absent``."""
    try:
        facts = reader.frame(path, modality)
    except FileNotFoundError:
        absent.append(path)
        return None
    except DataError as error:
        finding.faults.append(("unreadable", str(error)))
        return None
    reason = _misfit(facts, modality, files=files)
    if reason:
        finding.faults.append(("dtype", f"{shown(path)}: {reason}"))
        return None
    return facts


def _misfit(facts: FileFacts, modality: Modality, *, files: int) -> str | None:
    """Why a file of this form cannot become the modality's frame; None if it can; as ``decode.read_modality``."""
    holds = f"holds {counted(facts.channels, 'channel')} of {facts.dtype}"
    if facts.dtype not in ("uint8", "uint16", "int16", "float16", "float32", "float64"):
        return f"{holds}; {decode.ALLOWED}"
    if facts.low is not None and facts.high is not None and max(-facts.low, facts.high) > decode.LARGEST:
        return f"holds values from {facts.low:.2g} to {facts.high:.2g}, too large for the network; rescale them"
    if files > (2 if modality.kind == "angle" else 1):
        wanted = "two" if modality.kind == "angle" else "one"
        return f"is one of {counted(files, 'file')}; '{modality.name}' takes {wanted}"
    turned = flip_refusal(np.dtype(facts.dtype), modality)
    if turned:
        return turned
    if files > 1:
        return None if facts.channels == 1 else f"{holds}; the sine or cosine of an angle has one"
    if modality.bands is not None:  # looked up when the file was read
        return None
    if modality.channels is not None:
        return None if max(modality.channels) < facts.channels else f"{holds}; channels {modality.channels} are needed"
    if facts.channels not in (1, 3, 4):
        return decode.undeclared((facts.height, facts.width, facts.channels), modality)
    if modality.kind == "angle" and facts.channels == 1:
        return "one plane is not an angle; its sine and its cosine are needed"
    return None


def _combine(scene: Scene, modality: Modality, facts: Sequence[FileFacts], finding: _SceneFindings) -> None:
    """Merge the facts of a modality's files."""
    first = max(facts, key=lambda each: each.invalid)
    if len({each.dtype for each in facts}) > 1:
        listed = " and ".join(each.dtype for each in facts)
        finding.faults.append(
            ("dtype", f"{shown(scene.id)}: '{modality.name}' is stored as {listed}; use one type for all its files")
        )
        return
    if len({(each.height, each.width) for each in facts}) > 1:
        listed = " and ".join(f"{each.height}×{each.width}" for each in facts)
        finding.faults.append(
            ("size", f"{shown(scene.id)}: '{modality.name}' is {listed}; use one size for all its files")
        )
        return
    lows = [each.low for each in facts if each.low is not None]
    highs = [each.high for each in facts if each.high is not None]
    ends = {"low": min(lows), "high": max(highs)} if lows and highs else {}
    finding.frames[modality.name] = first.model_copy(update=ends)


def _label(scene: Scene, reader: Reader, finding: _SceneFindings) -> FileFacts | None:
    """The facts of the label, if its classes are valid."""
    if scene.label is None and scene.split in reader.info.unlabeled:
        return None
    try:
        if scene.label is None:
            raise FileNotFoundError
        return reader.label(scene.label)
    except FileNotFoundError:
        why = "its split is not called unlabeled" if scene.label is None else f"looked for {shown(scene.label)}"
        finding.faults.append(("missing label", f"{shown(scene.id)}: has no label ({why})"))
    except DataError as error:
        finding.faults.append(("label", str(error)))
    return None


def _between_scenes(scenes: Sequence[Scene]) -> Iterator[tuple[int, SceneFault]]:
    """Problems of two scenes together: names that collide, and files in two splits."""
    for first, second in shared_ids(scenes):
        one, other = scenes[first], scenes[second]
        if one.id != other.id:
            message = (
                f"scenes '{shown(one.id)}' and '{shown(other.id)}' would share one output file; rename one (case and "
                "file suffix alone do not tell two scenes apart)"
            )
            yield second, ("name", message)
        elif one.split == other.split:
            yield second, ("name", f"scene '{shown(one.id)}' is listed twice in {one.split}; remove one of the lines")
        else:
            message = f"scene '{shown(one.id)}' is in {one.split} and in {other.split}; keep it in one of them"
            yield second, ("two splits", message)
    owners: dict[str, int] = {}
    for index, scene in enumerate(scenes):
        for path in scene.paths:
            owner = scenes[owners.setdefault(path, index)]
            if owner.split != scene.split and owner.id != scene.id:
                message = (
                    f"{shown(path)}: is in {owner.split} ({shown(owner.id)}) and in {scene.split} ({shown(scene.id)})"
                )
                yield index, ("two splits", message)
                break


def _problems(findings: Sequence[_SceneFindings]) -> Iterator[Problem]:
    """The problems by kind, each with its first occurrences."""
    faults: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        for kind, message in finding.faults:
            faults[kind].append(message)
    return (Problem.of(kind, messages) for kind, messages in sorted(faults.items()))


def _written_names(scene: Scene) -> list[str]:
    """All text of a scene that is written to the manifest."""
    return [scene.id, *scene.paths]


def draw(manifest: Manifest, report: CheckReport, folder: Path) -> list[Path]:
    """Write the sheet of scenes, the histogram of classes where there are labels, and that of offsets in time.

    Args:
        manifest: all scenes.
        report: the result of their check.
        folder: the output folder.

    Returns:
        The files; there is no sheet if no scene can be read.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    written = [folder / SHEET] if draw_sheet(manifest, folder / SHEET) else []
    shares = {split: _shares(counts) for split, counts in report.pixels.items() if sum(counts[:-1])}
    if shares:
        title = f"{report.dataset}: share of the labeled pixels"
        atomic.write_bytes(folder / HISTOGRAM, figures.class_histogram(shares, classes=report.classes, title=title))
        written.append(folder / HISTOGRAM)
    if report.offsets:
        apart = {name: [each / 1e6 for each in found] for name, found in report.offsets.items()}
        title = f"{report.dataset}: ms behind '{report.modalities[0]}'"
        atomic.write_bytes(folder / OFFSETS, figures.offsets_histogram(apart, title=title))
        written.append(folder / OFFSETS)
    return written


def draw_sheet(manifest: Manifest, path: Path) -> bool:
    """Write only the sheet of scenes; False if none can be read.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    rows, masks, captions = [], [], []
    for caption, sample in _samples(manifest):
        row = [Panel(name, pictures.as_picture(frame)) for name, frame in sample.frames.items()]
        if sample.label is not None:
            row.append(Panel("label", pictures.paint(sample.label, manifest.info.palette)))
            masks.append(sample.label)
        rows.append(row)
        captions.append(caption)
    if rows:
        entries = pictures.legend(masks, classes=manifest.info.classes, palette=manifest.info.palette)
        images.write_png(path, pictures.sheet(rows, entries, captions=captions))
    return bool(rows)


def sheet_groups(scenes: Sequence[Scene]) -> dict[str, list[Scene]]:
    """Scenes by condition and failure; by split if there is neither.

    Returns:
        At most :data:`ROWS` groups, the largest ones; in the order of their middle scenes' splits, then by name.
    """
    found: dict[str, list[Scene]] = {}
    for scene in scenes:
        name = " ".join(word for word in (scene.condition, scene.case) if word) or scene.split
        found.setdefault(name, []).append(scene)
    kept = sorted(found, key=lambda name: -len(found[name]))[:ROWS]
    return {
        name: found[name] for name in sorted(kept, key=lambda name: (split_rank(_middle(found[name])[0].split), name))
    }


def _middle(scenes: Sequence[Scene]) -> Sequence[Scene]:
    """The scenes from the middle one on, because the first frames of a drive often show a standing car."""
    half = len(scenes) // 2
    return [*scenes[half:], *scenes[:half]]


def _samples(manifest: Manifest) -> Iterator[tuple[str, Sample]]:
    """A caption, and a readable scene of each group; unreadable ones are in the check's report."""
    info = manifest.info
    for name, scenes in sheet_groups(manifest.scenes).items():
        for scene in _middle(scenes)[:TRIES]:
            try:
                modalities = [modality for modality in info.modalities if modality.name in scene.files]
                labels = None if scene.label is None else info
                sample = read_sample(manifest.root, scene, modalities=modalities, labels=labels)
                yield "   ".join(dict.fromkeys((scene.split, name, scene.id))), sample
                break
            except (DataError, OSError):
                continue


def _shares(counts: Sequence[int]) -> list[float]:
    """Percentages of the classes; the last count is of ignored pixels."""
    total = sum(counts[:-1])
    return [100 * count / total for count in counts[:-1]]
