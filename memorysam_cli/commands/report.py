"""``memorysam report``: an HTML page of a run, an evaluation or a prediction, or a comparison of two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import UsageError

SCHEMA_VERSION = 1
EXAMPLES = [
    ("report --open", "runs/latest, in the browser"),
    ("report runs/latest/evaluate/val --out val.html", "an evaluation, as an artifact"),
    ("report runs/a runs/b", "two runs, class by class"),
    ("report ./masks", "a prediction"),
]


def report(
    folder: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of a run, an evaluation or a prediction; two folders are compared.",
            autocompletion=options.runs,
            callback=options.must_exist(UsageError),
        ),
    ] = None,
    out: Annotated[Path | None, options.out_or("report.html in the folder")] = None,
    is_opened: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a self-contained HTML report.

    For a training run: curves, pictures, recipe changes. For an evaluation: classes, confusion matrix, conditions,
    sensors, worst and best scenes. For predictions: scenes, class shares, what was left out. For two runs or
    evaluations: a comparison class by class. Without a folder: runs/latest. The file is report.html there, or --out.
    """
    options.begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.engine.reporting import folders
    from memorysam_cli.engine.reporting.run_pages import write
    from memorysam_cli.report import console

    written = write(folder or [folders.latest()], out=out)
    if json:
        answer = {"kind": written.kind, "out": str(written.out), "bytes": written.size}
        console.answer({"schema_version": SCHEMA_VERSION, **answer})
    console.say(str(written.out))
    if is_opened:
        import webbrowser

        if not webbrowser.open(written.out.resolve().as_uri()):
            console.warn("--open: no browser was found; open the file yourself")
