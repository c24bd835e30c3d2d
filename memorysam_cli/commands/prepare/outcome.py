"""What every ``memorysam prepare`` ends with: check, write, and say what was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from memorysam_cli.data.manifest import Manifest
    from memorysam_cli.data.preparation import Prepared

Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="Folder of the data sets; the manifest goes to ROOT/memorysam/.")
]


def check_and_write(found: Manifest, *, json: bool) -> None:
    """Check, write, and say what was found; problems end with exit code 3."""
    from memorysam_cli.data import preparation
    from memorysam_cli.report import console

    with console.progress(len(found.scenes), "check") as bar:
        prepared = preparation.check_and_write(found, advance=bar.advance)
    _show(prepared)
    if json:
        console.answer(prepared.to_json())
    fault = prepared.fault()
    if fault is not None:
        raise fault


def _show(prepared: Prepared) -> None:
    """Problems and oddities on stderr; scenes and how often each class occurs on stdout."""
    from memorysam_cli.report import console

    report = prepared.report
    for problem in report.problems:
        console.warn(f"{problem.kind}: {problem.count}, the first {len(problem.first)}:")
        for line in problem.first:
            console.warn(f"  {line}")
    for line in report.warnings:
        console.warn(line)
    totals = {split: max(1, sum(counts)) for split, counts in report.pixels.items()}
    shares = [
        [f"{100 * counts[row] / totals[split]:.3f}" for split, counts in report.pixels.items()]
        for row in range(len(report.classes) + 1)
    ]
    console.table(
        ["class", *(f"{split} %" for split in totals)],
        [[name, *row] for name, row in zip((*report.classes, "(ignored)"), shares, strict=True)],
        title=f"{report.dataset}: share of the labelled pixels",
    )
    splits = ", ".join(f"{split} {count}" for split, count in report.splits.items())
    console.say(f"scenes      {sum(report.splits.values())} ({splits})")
    console.say(f"modalities  {', '.join(report.modalities)}")
    if prepared.manifest is not None:
        console.say(f"manifest    {prepared.manifest}")
