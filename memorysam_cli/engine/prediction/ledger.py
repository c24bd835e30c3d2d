"""The ledger ``predictions.jsonl``: a line per scene, in the order of the scenes, and what the lines add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from memorysam_cli import laws
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
        self.area = 0
        """Pixels of all masks, from their sizes."""

    def add(self, line: Line) -> None:
        """Count one scene."""
        if line["status"] == "done":
            self.done += 1
            self.area += line["size"][0] * line["size"][1]
            for index, count in line["classes"].items():
                self.pixels[int(index)] += count
            return
        self.failed += 1
        if len(self.failures) < SHOWN_FAILURES:
            self.failures.append({"id": line["id"], "error": line["error"]})

    def laws(self) -> laws.Report:
        """What must hold of any lines, checked.

        Raises:
            LawBroken: it does not.
        """
        return laws.check({"pixels of all classes = pixels of all masks": (int(self.pixels.sum()), self.area)})

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` makes the same totals of."""
        counted = {"done": self.done, "failed": self.failed, "failures": self.failures, "area": self.area}
        return {**counted, "pixels": self.pixels.tolist()}

    @classmethod
    def from_json(cls, info: DatasetInfo, told: dict[str, Any]) -> Totals:
        """The totals of another process."""
        found = cls(info)
        found.done, found.failed, found.failures = told["done"], told["failed"], told["failures"]
        found.area, found.pixels = told["area"], np.array(told["pixels"], np.int64)
        return found

    @classmethod
    def of(cls, info: DatasetInfo, several: Iterable[Totals]) -> Totals:
        """The totals of several ledgers."""
        whole = cls(info)
        for each in several:
            whole.done += each.done
            whole.failed += each.failed
            whole.failures = [*whole.failures, *each.failures][:SHOWN_FAILURES]
            whole.pixels += each.pixels
            whole.area += each.area
        return whole


class Ledger:
    """A ledger that is being written, with its totals; one writer at a time.

    Args:
        path: of the file.
        info: classes and palette.
        kept: what the lines that are there add up to, which stay; none: the file is begun anew.
    """

    def __init__(self, path: Path, info: DatasetInfo, *, kept: Totals | None = None) -> None:
        self.path = path
        self.totals = kept or Totals(info)
        if kept is None:
            atomic.write_text(path, "")  # from now on the folder is known as ours, whatever happens

    def append(self, line: Line) -> None:
        """Add the line of a scene whose files are written.

        Raises:
            EnvironmentFault: it cannot be written.
        """
        documents.append_json_line(self.path, line)
        self.totals.add(line)


@dataclass
class Trees:
    """What the trees hold of a job's files, counted at its end."""

    found: int = 0
    """Files that are there under names that the job's scenes have."""
    named: int = 0
    """Files that the ledger names."""


def finish(
    out: Path, totals: Totals, trees: Trees, facts: dict[str, Any], *, scenes: int, extras: tuple[str, ...]
) -> dict[str, Any]:
    """Write ``_SUCCESS.json``, once every scene is either done, with its files there, or listed as left out.

    Args:
        out: the folder of the predictions; its ledger is durable.
        totals: of its ledger.
        trees: the files, counted.
        facts: what was computed with what.
        scenes: how many there were.
        extras: the trees beside the masks.

    Returns:
        Its content, and that of ``memorysam predict --json``: ``schema_version``, ``facts``, ``scenes`` = ``done``
        + ``failed``, ``failures`` (the first ones' ``id`` and ``error``), ``classes`` (with predicted ``pixels``),
        ``laws``, and the paths ``out``, ``trees``, ``ledger``, ``success``.

    Raises:
        DataError: no scene could be read.
        LawBroken: what came in is not what went out.
    """
    checked = laws.check(
        {
            "scenes = done + failed": (scenes, totals.done + totals.failed),
            "files in the trees = files named by the ledger": (trees.found, trees.named),
        }
    )
    if not totals.done:
        raise DataError(f"none of {scenes} scenes could be read; the first: {totals.failures[0]['error']}")
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
