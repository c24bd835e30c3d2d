"""``memorysam weights info | verify | merge``: look at weights, verify them, make them self-contained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin, refuse_taken

SCHEMA_VERSION = 1

File = Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file written by memorysam.")]


def info(file: File, json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Show what a weights file says of itself.

    Classes, modalities, base, recipe and result.
    """
    from memorysam_cli.model.weights import read_card
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    card = read_card(file)
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), **card.model_dump(mode="json")})
        return
    metric = card.metric
    base = f"{card.base.source} (SHA-256 {card.base.sha256[:12]}…)" if card.kind == "trained" else "inside this file"
    if card.base.source.startswith("import:"):
        base += f", imported from {card.base.source.removeprefix('import:')} (SHA-256 {card.base.sha256[:12]}…)"
    when = "" if metric is None else f"epoch {metric.epoch}" if metric.step is None else f"step {metric.step}"
    result = f"mIoU {metric.miou:.2f} on {metric.split} ({metric.protocol}), {when}" if metric else "–"
    rows = {
        "file": f"{file} ({file.stat().st_size / 1e6:.1f} MB, {card.kind})",
        "recipe": card.recipe.name,
        "data set": f"{card.dataset.title} ({len(card.dataset.classes)} classes)",
        "modalities": ", ".join(modality.name for modality in card.modalities),
        "backbone": card.recipe.model.backbone,
        "base": base,
        "image size": f"{card.image_size} px",
        "result": result,
        "made with": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
    }
    for name, value in rows.items():
        console.say(f"{name:<10}  {value}")


def verify(file: File, json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Check that weights are whole, finite and fit their base.

    Computes one scene with them, too. Exit code 10 if anything is wrong.
    """
    from memorysam_cli.engine.weights.verification import verify_weights
    from memorysam_cli.errors import CheckFailedError, WeightsError
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    try:
        found = verify_weights(file)
    except WeightsError as fault:
        if json:
            console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), "ok": False, "reason": str(fault)})
        raise CheckFailedError(str(fault)) from None
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), "ok": True, **found})
    else:
        console.say(f"ok: {found['tensors']} tensors on base {found['base']}, SHA-256 {found['sha256']}")


def merge(
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The self-contained file to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Fold LoRA into the base: one file that needs no base weights."""
    from memorysam_cli.model.weights import load, save_merged
    from memorysam_cli.report import console

    begin(json=json, verbose=verbose, quiet=quiet)
    refuse_taken(out, source=file, overwrite=overwrite)
    digest = save_merged(load(file), out)
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "file": str(file), "out": str(out), "sha256": digest})
    else:
        console.say(f"{out} ({out.stat().st_size / 1e6:.1f} MB, SHA-256 {digest})")
