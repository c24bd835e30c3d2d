"""``memorysam prepare``: render or check a data set, and write the manifest that all other commands read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin
from memorysam_cli.data import DATASETS

if TYPE_CHECKING:
    from memorysam_cli.data.manifest import Manifest
    from memorysam_cli.data.preparation import Prepared

app = typer.Typer(
    help="Render or check a data set and write its manifest, which all other commands read.",
    epilog="Example: memorysam prepare synthetic ./data",
    no_args_is_help=True,
)

Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="Folder of the data sets; the manifest goes to ROOT/memorysam/.")
]


@app.command(epilog="Example: memorysam prepare synthetic ./data --scenes 60 --size 128")
def synthetic(
    root: Root,
    scenes: Annotated[int, typer.Option("--scenes", min=1, metavar="N", help="How many scenes in all.")] = 240,
    size: Annotated[int, typer.Option("--size", min=32, metavar="PX", help="Height of the pictures.")] = 160,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Another seed, other worlds.")] = 0,
    layout: Annotated[Literal["deliver", "mcubes"], typer.Option(help="Whose folders and files to write.")] = "deliver",
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Render street scenes in DELIVER's (or MCubeS') own layout and prepare them as the data set 'synthetic'."""
    from memorysam_cli.data import preparation
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    with console.progress(scenes, "render") as bar:
        is_new = preparation.render_synthetic(
            root, layout=layout, scenes=scenes, size=size, seed=seed, advance=bar.advance
        )
    if not is_new:
        console.note(f"{preparation.synthetic_folder(root, layout=layout)}: these scenes are there already; kept")
    _check_and_write(preparation.survey_synthetic(root, layout=layout), json=json)


def _published(name: str) -> Callable[..., None]:
    """The command that prepares a published data set."""

    def prepare(root: Root, json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
        from memorysam_cli.data import preparation
        from memorysam_cli.data.layout import DataNotFound
        from memorysam_cli.report import console

        begin(json=json, verbose=verbose, quiet=quiet)
        try:
            found = preparation.survey(name, root)
        except DataNotFound as fault:
            console.note(f"expected below {root}:\n{fault.expected_tree}")
            raise
        _check_and_write(found, json=json)

    return prepare


for _name in DATASETS:
    app.command(
        _name,
        help=f"Check an unpacked {_name} data set (in ROOT or below) and write its manifest.",
        epilog=f"Example: memorysam prepare {_name} ./data",
    )(_published(_name))


def _check_and_write(found: Manifest, *, json: bool) -> None:
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
