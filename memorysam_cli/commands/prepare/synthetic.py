"""``memorysam prepare synthetic``: render a data set."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin
from memorysam_cli.commands.prepare.outcome import Root, check_and_write


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
    """Render street scenes in DELIVER's (or MCubeS') own layout.

    They are prepared as the data set 'synthetic'.
    """
    from memorysam_cli.data import preparation
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    with console.progress(scenes, "render") as bar:
        is_new = preparation.render_synthetic(
            root, layout=layout, scenes=scenes, size=size, seed=seed, advance=bar.advance
        )
    if not is_new:
        console.note(f"{preparation.synthetic_folder(root, layout=layout)}: these scenes are there already; kept")
    check_and_write(preparation.survey_synthetic(root, layout=layout), json=json)
