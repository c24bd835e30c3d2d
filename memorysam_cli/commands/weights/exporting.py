"""``memorysam weights export``: weights for other people's code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin, refuse_taken
from memorysam_cli.errors import UsageError

SCHEMA_VERSION = 1
SUFFIXES = (".safetensors", ".pth", ".pt")
"""Of the containers that are written."""


def export(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .safetensors file written by memorysam.")],
    form: Annotated[
        Literal["reference", "peft", "merged"],
        typer.Option("--format", help="The upstream code's layout, the LoRA alone, or plain sam2's names."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="A .pth, .pt or .safetensors; a folder for peft.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it is a file that exists.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write weights in a layout that other code reads.

    reference: the upstream MemorySAM code's state dict, to check results with it. peft: the LoRA alone, as an
    adapter folder. merged: a state dict of plain sam2 with LoRA folded in and the decoder's class tokens.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    _check(out, source=file, is_folder=form == "peft", overwrite=overwrite)
    from memorysam_cli.engine.weights import exporting
    from memorysam_cli.report import console

    found = exporting.export(file, out, form=form)
    for line in found.notes:
        console.note(line)
    if json:
        facts = {"file": str(file), "out": str(out), "format": form, "tensors": found.tensors, "sha256": found.sha256}
        console.answer({"schema_version": SCHEMA_VERSION, **facts})
    else:
        console.say(f"{out} ({form}, {found.tensors} tensors, SHA-256 {found.sha256})")


def _check(out: Path, *, source: Path, is_folder: bool, overwrite: bool) -> None:
    """Refuse a target before anything is read."""
    if is_folder:
        if out.suffix in SUFFIXES:
            raise UsageError(f"--out {out}: a PEFT adapter is a folder; give a name without {out.suffix}")
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise UsageError(f"--out {out}: exists already; give another folder")
        return
    if out.suffix not in SUFFIXES:
        raise UsageError(f"--out {out}: must end in {', '.join(SUFFIXES)}, which says how it is written")
    refuse_taken(out, source=source, overwrite=overwrite)
