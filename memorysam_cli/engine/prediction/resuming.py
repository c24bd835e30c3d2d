"""What of an earlier attempt still holds: its ledger's lines, in whole groups of scenes, put in the scenes' order.

A group is done again as a whole, for other company could change a last bit of its scenes' results. Of a ledger only
that is believed which the scenes, the files and the inputs bear out; a line is at most a reason to do nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memorysam_cli.data.loader import unlabelled_scenes
from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine.prediction.folder import Line
from memorysam_cli.engine.prediction.job import Job
from memorysam_cli.engine.prediction.ledger import Totals
from memorysam_cli.engine.prediction.scene_files import is_left_out
from memorysam_cli.errors import DataError
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents

NOWHERE = -1


@dataclass(frozen=True)
class Kept:
    """What need not be done again."""

    totals: Totals
    """Of the lines that stay."""
    left: Sequence[Scene]
    """What is to be done, in whole groups, in order."""
    is_a_beginning: bool
    """No scene that is kept comes after one that is left: the ledger stays in order as it grows."""
    reasons: tuple[str, ...] = ()
    """Why lines that were there do not count, in words."""

    @property
    def count(self) -> int:
        """Scenes that are kept."""
        return self.totals.done + self.totals.failed


def survey(
    ledger: Path, job: Job, out: Path, scenes: Sequence[Scene], *, skip_bad: bool
) -> tuple[Kept, NDArray[np.int64]]:
    """See which lines of a ledger still hold; writes nothing.

    Args:
        ledger: may be missing, torn, or edited by anybody.
        job: what is to be done.
        out: the output folder.
        scenes: those that the ledger is about, in whole groups.
        skip_bad: keep the lines of scenes that still cannot be read; otherwise such scenes are left.

    Returns:
        What is kept, and (N,) int64: where in the file the line of each scene begins, -1 for scenes that are left.
    """
    files, offsets, doubts = job.files(out), np.full(len(scenes), NOWHERE, np.int64), _Doubts()
    places = {scene.id: place for place, scene in enumerate(scenes)}
    failed: dict[int, Line] = {}
    for offset, text in _texts(ledger):
        line = _read(text)
        place = places.get(str(line.get("id")), NOWHERE)
        if place == NOWHERE:
            doubts.foreign += 1
            continue
        offsets[place] = offset  # of several lines the last one counts
        failed.pop(place, None)
        if is_left_out(line):
            failed[place] = line
        elif not files.is_done(scenes[place], line):
            offsets[place] = NOWHERE
            doubts.stale += 1
    if not skip_bad:
        offsets[list(failed)] = NOWHERE
    elif failed:
        for place, line in zip(failed, _again(job, out, [scenes[place] for place in failed]), strict=True):
            if line != failed[place]:
                offsets[place] = NOWHERE
                doubts.mended += 1
    for start in range(0, len(scenes), job.stride):
        group = offsets[start : start + job.stride]
        if (group == NOWHERE).any():
            group[:] = NOWHERE
    kept = offsets != NOWHERE
    left = scenes if not kept.any() else [scenes[place] for place in np.flatnonzero(~kept).tolist()]
    totals = Totals(job.card.dataset)
    for text in _at(ledger, offsets[kept]):
        totals.add(json.loads(text))
    is_a_beginning = bool(kept[: int(kept.sum())].all())
    return Kept(totals, left, is_a_beginning, doubts.words()), offsets


def take_up(ledger: Path, job: Job, out: Path, scenes: Sequence[Scene], *, skip_bad: bool) -> Kept:
    """Make a ledger hold the lines that :func:`survey` keeps, in order, and nothing else; says what is not kept.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    kept, offsets = survey(ledger, job, out, scenes, skip_bad=skip_bad)
    for reason in kept.reasons:
        console.warn(f"{ledger}: {reason}")
    _rewrite(ledger, offsets[offsets != NOWHERE])
    return kept


def put_in_order(ledger: Path, scenes: Sequence[Scene]) -> None:
    """Bring the lines of a complete ledger of ours into the order of the scenes."""
    places = {scene.id: place for place, scene in enumerate(scenes)}
    offsets = np.full(len(scenes), NOWHERE, np.int64)
    for offset, text in _texts(ledger):
        offsets[places[_read(text)["id"]]] = offset
    _rewrite(ledger, offsets[offsets != NOWHERE])


@dataclass
class _Doubts:
    foreign: int = 0
    stale: int = 0
    mended: int = 0

    def words(self) -> tuple[str, ...]:
        """What a user should know of, one sentence for each kind."""
        found = []
        if self.foreign:
            found.append(f"{self.foreign:,} lines are none of this prediction's, and are dropped")
        if self.stale:
            found.append(
                f"{self.stale:,} scenes whose inputs have changed, whose files are gone or whose lines were edited are "
                "done again"
            )
        if self.mended:
            found.append(f"{self.mended:,} scenes that were left out are tried again")
        return tuple(found)


def _again(job: Job, out: Path, scenes: Sequence[Scene]) -> Iterator[Line]:
    """What their lines would say now of scenes that could not be read; of those that can be, nothing."""
    files = job.files(out)
    source = unlabelled_scenes(
        job.root, scenes=scenes, modalities=job.modalities, size=job.card.image_size, workers=0, tile=job.view.tile
    )  # fmt: skip
    for scene, found in zip(scenes, source, strict=True):
        yield files.left_out(scene, found) if isinstance(found, DataError) else {}


def _read(text: bytes) -> Line:
    """A line as we write them, else one that says nothing."""
    try:
        line = json.loads(text)
        is_ours = isinstance(line, dict) and text == documents.to_json(line).encode() + b"\n"
    except (ValueError, RecursionError):
        return {}
    return line if is_ours else {}


def _texts(ledger: Path) -> Iterator[tuple[int, bytes]]:
    """Each whole line of a file and where it begins; of a file that is missing nothing."""
    if not ledger.is_file():
        return
    offset = 0
    with atomic.faults(ledger), ledger.open("rb") as stream:
        for text in stream:
            if text.endswith(b"\n"):  # else a kill has torn it
                yield offset, text
            offset += len(text)


def _at(ledger: Path, offsets: NDArray[np.int64]) -> Iterator[bytes]:
    """The lines that begin there, in this order."""
    if not len(offsets):
        return
    with atomic.faults(ledger), ledger.open("rb") as stream:
        for offset in offsets.tolist():
            if stream.tell() != offset:
                stream.seek(offset)
            yield stream.readline()


def _rewrite(ledger: Path, offsets: NDArray[np.int64]) -> None:
    """Let only the lines that begin there stay, in this order; a file that is so already is not touched."""
    size = ledger.stat().st_size if ledger.is_file() else NOWHERE
    if size == sum(map(len, _at(ledger, offsets))) and (np.diff(offsets) > 0).all():
        return
    atomic.write_pieces(ledger, _at(ledger, offsets))
