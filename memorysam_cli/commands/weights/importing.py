"""``memorysam weights import``: the authors' weights, made usable here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import UsageError

SCHEMA_VERSION = 1


def import_weights(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .pth of the upstream MemorySAM code, or its .safetensors.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .safetensors file to write.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", metavar="NAME|FILE", help="How they were trained (else by the file's name)."),
    ] = None,
    modalities: Annotated[
        str | None,
        typer.Option("--modalities", "-m", metavar="A,B", help="In the order of the training (else by the name)."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", metavar="ROOT", help="Take classes and sensors as prepared there."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Make the authors' weights into a file that all commands take.

    Backbone, LoRA rank and class tokens are read off the tensors, modalities and result off the file's name
    (RGBDEL_epoch95_65.38.pth). What neither says is asked for.
    """
    options.begin(json=json, verbose=verbose, quiet=quiet)
    names = options.names(modalities)
    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}: must end in .safetensors")
    options.refuse_taken(out, source=file, overwrite=overwrite)
    from memorysam_cli.engine.weights.importing import import_reference
    from memorysam_cli.report import console

    found = import_reference(file, out, recipe=recipe, modalities=names, root=data)
    card, model = found.card, found.card.recipe.model
    for line in found.notes:
        console.note(line)
    if json:
        console.answer(
            {
                "schema_version": SCHEMA_VERSION,
                "file": str(file),
                "out": str(out),
                "sha256": found.sha256,
                "tensors": found.tensors,
                "recipe": card.recipe.name,
                "dataset": card.dataset.name,
                "classes": len(card.dataset.classes),
                "modalities": [modality.name for modality in card.modalities],
                "backbone": model.backbone,
                "lora_rank": model.lora.rank,
                "tokens": card.tokens,
                "metric": card.metric.model_dump(mode="json") if card.metric else None,
                "notes": list(found.notes),
            }
        )
        return
    metric = card.metric
    result = f", mIoU {metric.miou:.2f} on {metric.split} (epoch {metric.epoch})" if metric else ""
    names_in_order = ", ".join(modality.name for modality in card.modalities)
    console.say(
        f"{card.dataset.title} ({len(card.dataset.classes)} classes), {names_in_order}; {model.backbone}{result}"
    )
    console.say(f"{out} ({out.stat().st_size / 1e6:.1f} MB, all {found.tensors} tensors, SHA-256 {found.sha256})")
