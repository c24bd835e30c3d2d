"""``memorysam card``: the model card of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, WeightsFile, begin, out_or, refuse_taken
from memorysam_cli.text import counted

SCHEMA_VERSION = 1

License = Annotated[
    str,
    typer.Option("--license", metavar="ID", help="License as the Hub names it, such as apache-2.0 or cc-by-nc-4.0."),
]
EXAMPLES = [
    ("card runs/latest/checkpoints/best.safetensors", "read it"),
    ("card runs/latest/checkpoints/best.safetensors --out README.md", "for the Hub"),
]


def card(
    file: WeightsFile,
    out: Annotated[Path | None, out_or("it is printed")] = None,
    license: License = "apache-2.0",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it exists.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a Hugging Face model card for weights.

    Sensors, classes with their colors, scores, recipe, provenance and how to use them, with the front matter that the
    Hub reads. Scores come from `memorysam evaluate` if its results are in the run, else from validation. Paths
    of this machine are left out. Without --out the card is printed.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    if out is not None:
        refuse_taken(out, source=file, overwrite=overwrite)
    from memorysam_cli.engine.weights import model_card as cards
    from memorysam_cli.report import console
    from memorysam_cli.storage import atomic

    facts = cards.gather(file)
    text = cards.render(facts, license=license)
    if out is not None:
        atomic.write_text(out, text)
    if json:
        console.answer(
            {
                "schema_version": SCHEMA_VERSION, "file": str(file), "out": None if out is None else str(out),
                "sha256": facts.digest, "evaluations": len(facts.evaluations), "card": text,
            }
        )  # fmt: skip
    if out is None:
        console.show_document(text.rstrip("\n"))
    else:
        console.say(f"{out} ({counted(len(text.splitlines()), 'line')})")
