"""The options of ``memorysam train`` that are short for ``--set train.…=…``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from memorysam_cli.errors import UsageError

AUTO = "auto"

Batch = Annotated[
    str | None, typer.Option("--batch", metavar="N|auto", help="Scenes at once; auto: what fits, by memorysam plan.")
]
Accumulate = Annotated[
    int | None, typer.Option("--accumulate", min=1, metavar="N", help="Batches that make one update.")
]
Precision = Annotated[Literal["fp32", "tf32", "bf16", "fp16"] | None, typer.Option(help="In which training computes.")]
Saver = Annotated[Literal["auto", "on", "off"] | None, typer.Option(help="Less memory, more time, the same numbers.")]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Compile the encoder: faster after a slow start.")
]


def changes(
    *, batch: str | None, accumulate: int | None, precision: str | None, saver: str | None, compile: bool | None
) -> list[str]:
    """What they ask for, as ``--set`` takes it; ``--batch auto`` asks for nothing yet.

    Raises:
        UsageError: a batch that is neither a number nor ``auto``.
    """
    if batch is not None and batch != AUTO and not (batch.isascii() and batch.isdecimal()):
        raise UsageError(f"--batch {batch}: must be a number of scenes, or auto")
    short = {
        "batch": None if batch == AUTO else batch, "accumulate": accumulate, "precision": precision, "saver": saver,
        "compile": None if compile is None else str(compile).lower(),
    }  # fmt: skip
    return [f"train.{key}={value}" for key, value in short.items() if value is not None]
