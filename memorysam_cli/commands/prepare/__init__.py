"""``memorysam prepare``: render or check a data set, and write the manifest that all other commands read."""

from __future__ import annotations

import typer

from memorysam_cli.commands.prepare import hha, own
from memorysam_cli.commands.prepare.published import command_of
from memorysam_cli.commands.prepare.synthetic import synthetic
from memorysam_cli.data import DATASETS

app = typer.Typer(
    help="Render or check a data set and write its manifest, which all other commands read.",
    epilog="Example: memorysam prepare synthetic ./data",
    no_args_is_help=True,
)

app.command(epilog="Example: memorysam prepare synthetic ./data --scenes 60 --size 128")(synthetic)
for _name in DATASETS:
    app.command(
        _name,
        help=f"Check an unpacked {_name} data set (in ROOT or below) and write its manifest.",
        epilog=f"Example: memorysam prepare {_name} ./data",
    )(command_of(_name))
app.command(epilog=f"Example: {own.FOLDER_EXAMPLE}")(own.folder)
app.command(epilog=f"Example: {own.MANIFEST_EXAMPLE}")(own.manifest)
app.command(epilog=f"Example: {hha.EXAMPLE}")(hha.hha)
