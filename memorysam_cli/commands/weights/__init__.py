"""``memorysam weights``: look at weights, verify them, take them in, hand them out."""

from __future__ import annotations

import typer

from memorysam_cli.commands.options import example
from memorysam_cli.commands.weights.exporting import export
from memorysam_cli.commands.weights.fetching import fetch
from memorysam_cli.commands.weights.importing import import_weights
from memorysam_cli.commands.weights.own import info, merge, verify
from memorysam_cli.commands.weights.push import push

app = typer.Typer(
    help="Show, verify, merge, import, export, fetch and push weights.",
    epilog=example("memorysam weights info runs/latest/checkpoints/best.safetensors"),
    no_args_is_help=True,
)

app.command(epilog=example("memorysam weights info runs/latest/checkpoints/best.safetensors"))(info)
app.command(epilog=example("memorysam weights verify best.safetensors || echo 'do not use'"))(verify)
app.command(epilog=example("memorysam weights merge best.safetensors --out full.safetensors"))(merge)
app.command("import", epilog=example("memorysam weights import RGBDEL_epoch95_65.38.pth --out rgbdel.safetensors"))(
    import_weights
)
app.command(epilog=example("memorysam weights export rgbdel.safetensors --format reference --out rgbdel.pth"))(export)
app.command(epilog=example("memorysam weights fetch sam2-hiera-base-plus"))(fetch)
app.command(epilog=example("memorysam weights push alice/memorysam-demo best.safetensors --private --yes"))(push)
