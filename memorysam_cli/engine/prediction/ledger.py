"""The ledger ``predictions.jsonl``: a line per scene, in the order of the scenes, and what the lines add up to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from memorysam_cli.dataset import DatasetInfo
from memorysam_cli.engine.prediction.folder import LEDGER, MASKS, SUCCESS, Line, class_list
from memorysam_cli.errors import DataError
from memorysam_cli.report import console
from memorysam_cli.storage import atomic, documents

SCHEMA_VERSION = 1
SHOWN_FAILURES = 100
"""Left-out scenes that a report lists; the ledger has them all."""


class Totals:
    """What the lines of a ledger add up to; as large for a million scenes as for one.

    Args:
        info: classes and palette.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
        self.done = self.failed = 0
        self.failures: list[dict[str, str]] = []
        """The first :data:`SHOWN_FAILURES` scenes that were left out: ``id`` and ``error``."""
        self.pixels = np.zeros(len(info.classes), np.int64)

    def add(self, line: Line) -> None:
        """Count one scene."""
        if line["status"] == "done":
            self.done += 1
            for index, count in line["classes"].items():
                self.pixels[int(index)] += count
            return
        self.failed += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append({"id": line["id"], "error": line["error"]})

    @classmethod
    def of(cls, info: DatasetInfo, several: Iterable[Totals]) -> Totals:
        """The totals of several ledgers."""
        whole = cls(info)
        for each in several:
            whole.done += each.done
            whole.failed += each.failed
            whole.failures = [*whole.failures, *each.failures][:SHOWN_FAILURES]
            whole.pixels += each.pixels
        return whole


class Ledger:
    """A ledger that is being written, with its totals; one writer at a time.

    Args:
        path: of the file; it is begun anew.
        info: classes and palette.
    """

    def __init__(self, path: Path, info: DatasetInfo) -> None:
        self.path = path
        self.totals = Totals(info)
        atomic.write_text(path, "")  # from now on the folder is known as ours, whatever happens

    def append(self, line: Line) -> None:
        """Add the line of a scene whose files are written.

        Raises:
            EnvironmentFault: it cannot be written.
        """
        documents.append_json_line(self.path, line)
        self.totals.add(line)


def finish(out: Path, totals: Totals, facts: dict[str, Any], *, scenes: int, extras: tuple[str, ...]) -> dict[str, Any]:
    """Write ``_SUCCESS.json``, once every scene is either done or listed as left out.

    Args:
        out: the folder of the predictions.
        totals: of its ledger.
        facts: what was computed with what.
        scenes: how many there were.
        extras: the trees beside the masks.

    Returns:
        Its content, and that of ``memorysam predict --json``: ``schema_version``, ``facts``, ``scenes`` = ``done``
        + ``failed``, ``failures`` (the first ones' ``id`` and ``error``), ``classes`` (with predicted ``pixels``), and
        the paths ``out``, ``trees``, ``ledger``, ``success``.

    Raises:
        DataError: no scene could be read.
    """
    assert totals.done + totals.failed == scenes
    if not totals.done:
        raise DataError(f"none of {scenes} scenes could be read; the first: {totals.failures[0]['error']}")
    report = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        **counts(totals),
        "out": str(out),
        "trees": {tree: str(out / tree) for tree in (MASKS, *extras)},
        "ledger": str(out / LEDGER),
        "success": str(out / SUCCESS),
    }
    atomic.sync(out / LEDGER)  # no success without the lines that it counts, be it after a power loss
    documents.write_json(out / SUCCESS, report)
    return report


def counts(totals: Totals) -> dict[str, Any]:
    """The keys ``scenes``, ``done``, ``failed``, ``failures`` and ``classes`` of a report."""
    counted = zip(class_list(totals.info), totals.pixels.tolist(), strict=True)
    return {
        "scenes": totals.done + totals.failed,
        "done": totals.done,
        "failed": totals.failed,
        "failures": totals.failures,
        "classes": [{**each, "pixels": count} for each, count in counted],
    }


def show(report: dict[str, Any]) -> None:
    """Say on stdout what was done and where it is."""
    console.say(f"{report['done']} of {report['scenes']} scenes, {', '.join(report['modalities'])}")
    for name, tree in report["trees"].items():
        console.say(f"{name:<10}  {tree}")
    console.say(f"{'list':<10}  {report['ledger']}")
    if report.get("parts_missing"):
        console.say(f"{'missing':<10}  {report['parts_missing']} of {report['parts']} parts; the last one merges all")
