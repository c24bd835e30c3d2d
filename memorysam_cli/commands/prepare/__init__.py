"""``memorysam prepare``: render or check a data set, and write the manifest that all other commands read."""

from __future__ import annotations

import typer

from memorysam_cli.commands.prepare import hha, own
from memorysam_cli.commands.prepare.published import command_of
from memorysam_cli.commands.prepare.synthetic import synthetic
from memorysam_cli.data import DATASETS

app = typer.Typer(
    help="Render or check a data set and write its manifest. All other commands read that, and look for no files.",
    no_args_is_help=True,
)

app.command()(synthetic)
for _name in DATASETS:
    app.command(
        _name,
        help=f"Check the published data set {_name}, unpacked or an archive. Writes the manifest that all others read.",
    )(command_of(_name))
app.command()(own.folder)
app.command()(own.manifest)
app.command()(hha.hha)
