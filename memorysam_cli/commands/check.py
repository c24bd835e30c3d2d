"""``memorysam check``: check a data set before training on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memorysam_cli.commands import options
from memorysam_cli.commands.prepare_options import HeadersOnly, MaxPixels
from memorysam_cli.errors import DataError

if TYPE_CHECKING:
    from memorysam_cli.data.findings import CheckReport

SCHEMA_VERSION = 1
EXAMPLES = [
    ("check ./data", "all files of what is prepared there, and a sheet of scenes"),
    ("check ./DELIVER --dataset deliver", "before it is prepared"),
    ("check ./data --headers-only --json", "in seconds, for a script"),
]


def check(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A data root, or the folder of a manifest or of a published data set.",
            callback=options.must_exist(DataError),
        ),
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset", metavar="NAME", help="Which data set, if DATA holds several.", autocompletion=options.data_sets
        ),
    ] = None,
    out: Annotated[Path | None, options.out_or("check-<data set>/")] = None,
    headers_only: HeadersOnly = False,
    max_pixels: MaxPixels = None,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Check every file of a data set and draw sample sheets.

    Checks sizes, types, damaged files, label ids, mismatched pairs and overlapping splits. Reports all problems, the
    first ten of each kind by name. Writes sheet.png (a scene of each condition with all its sensors), labels.png (how
    often each class occurs) and report.json into ./check-<data set>/ or --out, but no manifest. Exit code 3: there are
    problems.
    """
    options.begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.commands import prepare_report
    from memorysam_cli.data import preparation
    from memorysam_cli.data.check import draw
    from memorysam_cli.data.own.sensors import notes_on_bands
    from memorysam_cli.report import console
    from memorysam_cli.storage import atomic, documents

    found = preparation.find_target(data, dataset=dataset)
    folder = out or Path(f"check-{found.info.name}")
    atomic.refuse_unwritable(folder)
    with console.progress(len(found.scenes), "check") as bar:
        report = preparation.examine(found, headers_only=headers_only, max_pixels=max_pixels, advance=bar.advance)
    report = replace(report, notes=tuple(notes_on_bands(found)))
    for line in report.notes:
        console.note(line)
    drawn = draw(found, report, folder)
    files = {"report": folder / "report.json", **{path.stem: path for path in drawn}}
    facts = {
        "schema_version": SCHEMA_VERSION,
        **report.to_json(),
        "files": {key: str(path) for key, path in files.items()},
    }
    documents.write_json(files["report"], facts)
    prepare_report.show(report)
    console.say(f"pictures    {', '.join(map(str, drawn)) or 'none: no scene can be read'}")
    if json:
        console.answer(facts)
    _refuse_problems(report, data=data, listed=files["report"])


def _refuse_problems(report: CheckReport, *, data: Path, listed: Path) -> None:
    """End with exit code 3 if there is any problem, with their number and the first one."""
    if report.problems:
        counted = ", ".join(f"{problem.count} × {problem.kind}" for problem in report.problems)
        raise DataError(
            f"{data}: data set '{report.dataset}' has problems ({counted}), first {report.problems[0].first[0]}; fix "
            f"the files, or leave such scenes out when preparing (--drop-incomplete); {listed} lists them"
        )
