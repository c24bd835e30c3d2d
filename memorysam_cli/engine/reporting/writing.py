"""From folders to one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memorysam_cli.engine.reporting import comparison, evaluation, folders, prediction, training
from memorysam_cli.errors import UsageError
from memorysam_cli.report import console
from memorysam_cli.report.html import page
from memorysam_cli.storage import atomic
from memorysam_cli.text import megabytes

NAME = "report.html"
GATHER = {"training": training.gather, "evaluation": evaluation.gather, "prediction": prediction.gather}


@dataclass(frozen=True)
class Report:
    """A page that was written."""

    kind: str
    out: Path
    size: int
    """Bytes."""


def write(folder: Sequence[Path], *, out: Path | None = None) -> Report:
    """Write the report of a folder, or of two that are compared.

    Args:
        folder: one or two.
        out: the file; none for ``report.html`` in the folder, or ``report.html`` here for two.

    Raises:
        UsageError: no folder of ours, more than two, or ``out`` is a folder.
        DataError: a file is damaged, or was written by another version.
        EnvironmentFault: the page cannot be written.
    """
    if len(folder) > 2:
        raise UsageError(f"report: compares two folders at most, not {len(folder)}; give one or two")
    facts = GATHER[folders.kind(folder[0])](folder[0]) if len(folder) == 1 else comparison.gather(*folder)
    path = out or (folder[0] / NAME if len(folder) == 1 else Path(NAME))
    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder; give a file, such as {path / NAME}")
    text = page.render(facts["kind"], **facts)
    size = len(text.encode())
    if size > page.MOST_BYTES:
        console.warn(
            f"{path}: has {megabytes(size, decimals=0)}, for it has very many classes; mail and CI may refuse it"
        )
    atomic.write_text(path, text)
    return Report(facts["kind"], path, size)
