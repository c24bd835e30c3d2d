"""The ledger ``predictions.jsonl``: a line per scene, the sums over its lines, and which lines are still valid.

An earlier attempt is continued in whole groups of scenes: a group is repeated completely, because another batch could
change a last bit. A line of a ledger counts only if scenes, files and inputs confirm it; it can only save work. At the
end the ledgers of all parts are merged and checked against the files.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memorysam_cli.data.manifest import Scene
from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine.predict.files import (
    LEDGER,
    MASKS,
    SUCCESS,
    LedgerLine,
    SceneFiles,
    class_list,
    is_left_out,
    lines,
    remove,
    sweep,
)
from memorysam_cli.engine.predict.job import Job
from memorysam_cli.errors import DataError, EnvironmentFault, Laws, check_laws
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents
from memorysam_cli.text import counted

SCHEMA_VERSION = 1
SHOWN_FAILURES = 100
"""Number of left-out scenes in a report; the ledger has all."""
READ_AHEAD = 2**16
"""Bytes of a part's ledger that are in memory during the merge."""
_NOWHERE = -1


class Totals:
    """The sums over the lines of a ledger; their size does not depend on the number of scenes.

    Args:
        info: classes and palette.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self.done = self.failed = 0
        self.failures: list[dict[str, str]] = []
        """The first :data:`SHOWN_FAILURES` left-out scenes: ``id`` and ``error``."""
        self.pixels = np.zeros(len(info.classes), np.int64)
        self.unsure = 0
        """Pixels without a class."""
        self.area = 0
        """Pixels of all masks, computed from their sizes."""

    def add(self, line: LedgerLine) -> None:
        """Count one scene."""
        if line["status"] == "done":
            self.done += 1
            self.area += line["size"][0] * line["size"][1]
            for index, count in line["classes"].items():
                self.pixels[int(index)] += count
            self.unsure += line.get("unsure", 0)
            return
        self.failed += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append({"id": line["id"], "error": line["error"]})

    def laws(self) -> Laws:
        """The conservation laws of the lines, checked.

        Raises:
            LawBroken: a law does not hold.
        """
        left = "pixels of all classes" + " + unsure pixels" * bool(self.unsure)
        counted = int(self.pixels.sum()) + self.unsure
        return check_laws({f"{left} = pixels of all masks": (counted, self.area)})


def totals_of(ledgers: Iterable[Path], info: DatasetInfo) -> Totals:
    """The sums over the lines of our own ledgers; a missing ledger counts as empty.

    Args:
        ledgers: the files.
        info: classes and palette.
    """
    totals = Totals(info)
    for ledger in ledgers:
        for line in lines(ledger):
            totals.add(line)
    return totals


@dataclass(frozen=True)
class Inventory:
    """The scenes that are done, and the scenes that are left."""

    count: int
    """Scenes whose lines stay."""
    left: Sequence[Scene]
    """Scenes to do, in whole groups, in order."""
    is_a_beginning: bool
    """Whether all kept scenes come before all scenes that are left, so that appended lines are in order."""
    reasons: tuple[str, ...] = ()
    """Why existing lines do not count, in words."""


def survey(
    ledger: Path, job: Job, out: Path, scenes: Sequence[Scene], *, skip_bad: bool
) -> tuple[Inventory, NDArray[np.int64]]:
    """Find the lines of a ledger that are still valid; writes nothing.

    Args:
        ledger: may be missing, incomplete, or edited.
        job: the work.
        out: the output folder.
        scenes: the scenes of this ledger, in whole groups.
        skip_bad: keep the lines of scenes that still cannot be read; otherwise these scenes are left to do.

    Returns:
        The inventory, and (N,) int64: the offset of each scene's line in the file, -1 for scenes that are left.
    """
    files, offsets, doubts = job.files(out), np.full(len(scenes), _NOWHERE, np.int64), _Doubts()
    places = {scene.id: place for place, scene in enumerate(scenes)}
    failed: dict[int, LedgerLine] = {}
    for offset, text in _texts(ledger):
        line = _parsed(text)
        place = places.get(str(line.get("id")), _NOWHERE)
        if place == _NOWHERE:
            doubts.foreign += 1
            continue
        offsets[place] = offset  # of several lines the last one counts
        failed.pop(place, None)
        if is_left_out(line):
            failed[place] = line
        elif not files.is_done(scenes[place], line, may_be_gone=job.follows):
            offsets[place] = _NOWHERE
            doubts.stale += 1
    if not skip_bad:
        offsets[list(failed)] = _NOWHERE
    elif failed:
        for place, line in zip(failed, _read_again(job, out, [scenes[place] for place in failed]), strict=True):
            if line != failed[place]:
                offsets[place] = _NOWHERE
                doubts.retried += 1
    for start in range(0, len(scenes), job.stride):
        group = offsets[start : start + job.stride]
        if (group == _NOWHERE).any():
            group[:] = _NOWHERE
    kept = offsets != _NOWHERE
    left = scenes if not kept.any() else [scenes[place] for place in np.flatnonzero(~kept).tolist()]
    count = int(kept.sum())
    return Inventory(count, left, bool(kept[:count].all()), doubts.words()), offsets


def scenes_of(ledger: Path) -> list[Scene]:
    """The scenes of a ledger's lines, in its order, with their input files."""
    found: dict[str, Scene] = {}
    for line in lines(ledger):
        name, files = line.get("id"), line.get("inputs")
        if isinstance(name, str) and isinstance(files, dict):
            paths = {key: tuple(map(str, group)) for key, group in files.items() if isinstance(group, list)}
            found[name] = Scene(name, "", None, None, paths, None)
    return list(found.values())


def take_up(ledger: Path, job: Job, out: Path, scenes: Sequence[Scene], *, skip_bad: bool) -> Inventory:
    """Make a ledger contain the lines that :func:`survey` keeps, in order, and nothing else; report the others.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    inventory, offsets = survey(ledger, job, out, scenes, skip_bad=skip_bad)
    for reason in inventory.reasons:
        console.warn(f"{ledger}: {reason}")
    _rewrite(ledger, offsets[offsets != _NOWHERE])
    return inventory


def put_in_order(ledger: Path, scenes: Sequence[Scene]) -> None:
    """Sort the lines of a complete ledger of ours by the order of the scenes."""
    places = {scene.id: place for place, scene in enumerate(scenes)}
    offsets = np.full(len(scenes), _NOWHERE, np.int64)
    for offset, text in _texts(ledger):
        offsets[places[_parsed(text)["id"]]] = offset
    _rewrite(ledger, offsets[offsets != _NOWHERE])


@dataclass
class _Doubts:
    foreign: int = 0
    stale: int = 0
    retried: int = 0

    def words(self) -> tuple[str, ...]:
        """Messages for the user, one sentence for each kind."""
        reasons = []
        if self.foreign:
            reasons.append(
                f"{counted(self.foreign, 'line', 'does')} not belong to this prediction, and will be dropped"
            )
        if self.stale:
            reasons.append(
                f"{counted(self.stale, 'scene', 'is')} done again: inputs have changed, files are gone, or lines were "
                "edited"
            )
        if self.retried:
            reasons.append(f"{counted(self.retried, 'scene', 'is')} tried again after being left out")
        return tuple(reasons)


def _read_again(job: Job, out: Path, scenes: Sequence[Scene]) -> Iterator[LedgerLine]:
    """The current lines of scenes that could not be read; None for scenes that can now be read."""
    files = job.files(out)
    from memorysam_cli.data.loader import unlabeled_scenes  # here, for it needs torch

    source = unlabeled_scenes(
        job.root, scenes=scenes, modalities=job.modalities, size=job.card.image_size, workers=0, tile=job.view.tile
    )  # fmt: skip
    for scene, result in zip(scenes, source, strict=True):
        yield files.left_out(scene, result) if isinstance(result, DataError) else {}


def _parsed(text: bytes) -> LedgerLine:
    """A line as we write them; an empty one for any other text."""
    try:
        line = json.loads(text)
        is_ours = isinstance(line, dict) and text == documents.to_json(line).encode() + b"\n"
    except (ValueError, RecursionError):
        return {}
    return line if is_ours else {}


def _texts(ledger: Path) -> Iterator[tuple[int, bytes]]:
    """Each whole line of a file with its offset; nothing for a missing file."""
    if not ledger.is_file():
        return
    offset = 0
    with atomic.faults(ledger), ledger.open("rb") as stream:
        for text in stream:
            if text.endswith(b"\n"):  # otherwise a kill left it incomplete
                yield offset, text
            offset += len(text)


def _at(ledger: Path, offsets: NDArray[np.int64]) -> Iterator[bytes]:
    """The lines at these offsets, in this order."""
    if not len(offsets):
        return
    with atomic.faults(ledger), ledger.open("rb") as stream:
        for offset in offsets.tolist():
            if stream.tell() != offset:
                stream.seek(offset)
            yield stream.readline()


def _rewrite(ledger: Path, offsets: NDArray[np.int64]) -> None:
    """Keep only the lines at these offsets, in this order; a file that is already so is not touched."""
    size = ledger.stat().st_size if ledger.is_file() else _NOWHERE
    if size == sum(map(len, _at(ledger, offsets))) and (np.diff(offsets) > 0).all():
        return
    atomic.write_pieces(ledger, _at(ledger, offsets))


@dataclass
class Trees:
    """The number of a job's files in the output trees, counted at the end."""

    present: int = 0
    """Existing files with names of the job's scenes."""
    named: int = 0
    """Files named in the ledger."""


def finish(
    out: Path, totals: Totals, trees: Trees, facts: dict[str, Any], *, scenes: int, extras: tuple[str, ...]
) -> dict[str, Any]:
    """Write ``_SUCCESS.json``, after checking that every scene is done, with its files, or listed as left out.

    Args:
        out: the prediction folder; its ledger is synced.
        totals: of its ledger.
        trees: the counted files.
        facts: the settings of the computation.
        scenes: the number of scenes.
        extras: the extra outputs besides the masks.

    Returns:
        Its content, which is also that of ``memorysam predict --json``: ``schema_version``, ``facts``, ``scenes`` =
        ``done`` + ``failed``, ``failures`` (``id`` and ``error`` of the first ones), ``classes`` (with predicted
        ``pixels``), ``laws``, and the paths ``out``, ``trees``, ``ledger``, ``success``.

    Raises:
        DataError: no scene could be read.
        LawBroken: a sum is wrong.
    """
    checked = check_laws(
        {
            "scenes = done + failed": (scenes, totals.done + totals.failed),
            "files in the trees = files named by the ledger": (trees.present, trees.named),
        }
    )
    if not totals.done:
        raise DataError(f"no scene of {scenes} could be read; the first: {totals.failures[0]['error']}")
    report = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        **counts(totals),
        "laws": {**checked, **totals.laws()},
        "out": str(out),
        "trees": {tree: str(out / tree) for tree in (MASKS, *extras)},
        "ledger": str(out / LEDGER),
        "success": str(out / SUCCESS),
    }
    documents.write_json(out / SUCCESS, report)
    return report


def counts(totals: Totals) -> dict[str, Any]:
    """The keys ``scenes``, ``done``, ``failed``, ``failures``, ``classes`` and ``unsure_pixels`` of a report."""
    counted = zip(class_list(totals.info), totals.pixels.tolist(), strict=True)
    return {
        "scenes": totals.done + totals.failed,
        "done": totals.done,
        "failed": totals.failed,
        "failures": totals.failures,
        "classes": [{**each, "pixels": count} for each, count in counted],
        "unsure_pixels": totals.unsure,
    }


def merge(out: Path, job: Job, ledgers: Sequence[Path], *, devices: Iterable[str]) -> None:
    """Merge all parts into one prediction: one ledger in the scenes' order, and ``_SUCCESS.json``.

    Args:
        out: the output folder, locked by the caller.
        job: of all parts.
        ledgers: of the parts, all of which are done.
        devices: the devices that took part, each once.

    Raises:
        DataError: a part's ledger is damaged, or no scene of any part could be read.
        EnvironmentFault: a file named in a ledger is missing.
    """
    sweep(out)
    totals, trees = Totals(job.card.dataset), Trees()
    atomic.write_pieces(out / LEDGER, _merged_lines(out, job, ledgers, totals, trees))
    finish(out, totals, trees, job.facts(devices), scenes=len(job.scenes), extras=job.extras)


def _merged_lines(out: Path, job: Job, ledgers: Sequence[Path], totals: Totals, trees: Trees) -> Iterator[bytes]:
    """The lines of all parts' ledgers, unchanged, in the order of the scenes; lines and files are counted.

    Raises:
        DataError: a line is not in its place.
        EnvironmentFault: a file named in a line is missing.
    """
    scene_files = job.files(out)
    readers = [_LedgerReader(path) for path in ledgers]
    for start in range(0, len(job.scenes), job.stride):
        index = start // job.stride % len(ledgers)
        again = "run the same command again" + (f" for that shard: --shard {index}/{len(ledgers)}" * (len(ledgers) > 1))
        for scene in job.scenes[start : start + job.stride]:
            text = readers[index].next_line()
            line = _line_of(scene, text, scene_files)
            if line is None:
                raise DataError(
                    f"{readers[index].path}: is damaged: it has no line for scene {scene.id!r} where one should be; "
                    f"{again}"
                )
            totals.add(line)
            named = list(scene_files.paths(scene).values()) if line["status"] == "done" else []
            if not named:  # a kill may have left files of a scene that finally could not be read
                remove(out, scene_files.paths(scene))
            present = scene_files.present(scene)
            for path in named:
                if path not in present:
                    raise EnvironmentFault(f"{out / path}: is gone since it was written; {again}")
            trees.named += len(named)
            trees.present += len(present)
            yield text


def _line_of(scene: Scene, text: bytes, scene_files: SceneFiles) -> LedgerLine | None:
    """A scene's line, if the text is one."""
    with contextlib.suppress(ValueError, RecursionError):
        line: LedgerLine = json.loads(text)
        is_of_scene = isinstance(line, dict) and line.get("id") == scene.id
        if is_of_scene and (is_left_out(line) or scene_files.fits(scene, line)):
            return line
    return None


class _LedgerReader:
    """Reads a ledger piece by piece, because thousands of them cannot all be open."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, 0
        self._lines: deque[bytes] = deque()

    def next_line(self) -> bytes:
        """The next line with its newline; empty at the end."""
        if not self._lines and self.path.is_file():
            with atomic.faults(self.path), self.path.open("rb") as stream:
                stream.seek(self._offset)
                self._lines.extend(stream.readlines(READ_AHEAD))
            self._offset += sum(map(len, self._lines))
        return self._lines.popleft() if self._lines else b""


def show(report: dict[str, Any]) -> None:
    """Print the result and where it is."""
    console.say(f"{report['done']} of {counted(report['scenes'], 'scene')}, {', '.join(report['modalities'])}")
    for name, tree in report["trees"].items():
        console.say(f"{name:<10}  {tree}")
    console.say(f"{'list':<10}  {report['ledger']}")
    if report.get("parts_missing"):
        console.say(
            f"{'missing':<10}  {report['parts_missing']} of {counted(report['parts'], 'part')}; the last one merges all"
        )
