"""One prediction of all its parts: the ledger in the scenes' order, and proof that the files are what it says."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memorysam_cli.data.manifest import Scene
from memorysam_cli.engine.prediction import folder, parts
from memorysam_cli.engine.prediction.folder import LEDGER, PARTS, Line, remove
from memorysam_cli.engine.prediction.job import Job
from memorysam_cli.engine.prediction.ledger import Totals, Trees, finish
from memorysam_cli.engine.prediction.scene_files import SceneFiles, is_left_out
from memorysam_cli.engine.prediction.shares import Share
from memorysam_cli.errors import DataError, EnvironmentFault
from memorysam_cli.storage import atomic

READ_AHEAD = 2**16
"""Bytes of a part's ledger that are held while it is merged."""


def merge(out: Path, job: Job, *, count: int, is_alone: bool = False) -> dict[str, Any] | int:
    """Make one prediction of the parts, if all of them are done; a kill at any moment costs only to merge again.

    Args:
        out: the output folder.
        job: of all parts.
        count: how many parts there are.
        is_alone: the caller holds the folder's lock.

    Returns:
        The content of ``_SUCCESS.json``, whoever wrote it; or how many parts are missing still.

    Raises:
        DataError: a part's ledger is damaged, or no scene of any part could be read.
        EnvironmentFault: a file that the ledger names is gone.
    """
    with contextlib.nullcontext() if is_alone else parts.turn(out):
        complete = parts.complete(out, job)
        if complete is None:
            parts.refuse_other(out, job, Share(0, count))
            shares = [Share(index, count) for index in range(count)]
            missing = sum(not (out / PARTS / share.name / parts.DONE).is_file() for share in shares)
            if missing:
                return missing
            complete = _merged(out, job, shares)
        parts.remove(out)
        return complete


def _merged(out: Path, job: Job, shares: list[Share]) -> dict[str, Any]:
    """Merge the ledgers in the order of the scenes, see that the files are there, and write ``_SUCCESS.json``."""
    folder.sweep(out)
    totals, trees = Totals(job.card.dataset), Trees()
    atomic.write_pieces(out / LEDGER, _lines(out, job, shares, totals, trees))
    devices = dict.fromkeys(device for share in shares for device in parts.devices_of(out, share))
    return finish(out, totals, trees, job.facts(devices), scenes=len(job.scenes), extras=job.extras)


def _lines(out: Path, job: Job, shares: list[Share], totals: Totals, trees: Trees) -> Iterator[bytes]:
    """The lines of all parts' ledgers as they are, in the order of the scenes; each is counted, and its files are.

    Raises:
        DataError: a line is not where it should be.
        EnvironmentFault: a file that a line names is gone.
    """
    files = job.files(out)
    ledgers = [_Ledger(out / PARTS / share.name / LEDGER) for share in shares]
    for start in range(0, len(job.scenes), job.stride):
        index = start // job.stride % len(shares)
        again = "run the same command again" + (f" for that shard: --shard {index}/{len(shares)}" * (len(shares) > 1))
        for scene in job.scenes[start : start + job.stride]:
            text = ledgers[index].next_line()
            line = _line_of(scene, text, files)
            if line is None:
                raise DataError(
                    f"{ledgers[index].path}: is damaged: it has no line for scene {scene.id!r} where one should be; "
                    f"{again}"
                )
            totals.add(line)
            named = list(files.paths(scene).values()) if line["status"] == "done" else []
            if not named:  # a kill may have left files of a scene that could not be read in the end
                remove(out, files.paths(scene))
            present = files.present(scene)
            for path in named:
                if path not in present:
                    raise EnvironmentFault(f"{out / path}: is gone since it was written; {again}")
            trees.named += len(named)
            trees.found += len(present)
            yield text


def _line_of(scene: Scene, text: bytes, files: SceneFiles) -> Line | None:
    """A scene's line, if the text is one."""
    with contextlib.suppress(ValueError, RecursionError):
        line = json.loads(text)
        if isinstance(line, dict) and line.get("id") == scene.id and (is_left_out(line) or files.fits(scene, line)):
            return line
    return None


class _Ledger:
    """A ledger that is read piece by piece: thousands of them cannot all be open."""

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
