"""``memorysam weights``: look at weights, verify them, take them in, hand them out."""

from __future__ import annotations

import typer

from memorysam_cli.commands.weights.exporting import export
from memorysam_cli.commands.weights.fetching import fetch
from memorysam_cli.commands.weights.importing import import_weights
from memorysam_cli.commands.weights.own import info, merge, verify
from memorysam_cli.commands.weights.push import push

app = typer.Typer(help="Show, verify, merge, import, export, fetch and push weights.", no_args_is_help=True)

app.command()(info)
app.command()(verify)
app.command()(merge)
app.command("import")(import_weights)
app.command()(export)
app.command()(fetch)
app.command()(push)
