"""``memorysam prepare deliver`` and its siblings: unpack if need be, and check, a published data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin
from memorysam_cli.commands.prepare.outcome import DropIncomplete, HeadersOnly, MaxPixels, check_and_write, measuring
from memorysam_cli.errors import UsageError

Where = Annotated[
    Path,
    typer.Argument(
        metavar="ROOT", help="The data set's folder, one above it, or its archive (.zip, .tar, .tar.gz, .tar.xz)."
    ),
]
MaxExpand = Annotated[
    float | None,
    typer.Option("--max-expand", min=0, metavar="GB", help="Unpack up to this much (else 200 × the archive's size)."),
]
AllowCase = Annotated[
    bool, typer.Option("--allow-case", help="Unpack names that differ in case alone, where the disk can hold both.")
]
Measure = Annotated[bool, typer.Option("--measure", help="Store each modality's mean, deviation and range over train.")]


def command_of(name: str) -> Callable[..., None]:
    """The command that prepares a published data set."""

    def prepare(
        root: Where,
        drop_incomplete: DropIncomplete = False,
        headers_only: HeadersOnly = False,
        max_pixels: MaxPixels = None,
        max_expand: MaxExpand = None,
        allow_case: AllowCase = False,
        measure: Measure = False,
        json: Json = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
    ) -> None:
        begin(json=json, verbose=verbose, quiet=quiet)
        inside = None
        if root.is_file():
            inside = _unpacked(root, max_expand=max_expand, allow_case=allow_case)
            root = root.parent
        # After the archive: a bomb is refused at once and with little memory.
        from memorysam_cli.data import preparation
        from memorysam_cli.data.layout import DataNotFound
        from memorysam_cli.report import console

        try:
            found = preparation.survey(name, root, inside=inside)
        except DataNotFound as fault:
            console.note(f"expected below {inside or root}:\n{fault.expected_tree}")
            raise
        check_and_write(
            found,
            json=json,
            drop_incomplete=drop_incomplete,
            headers_only=headers_only,
            max_pixels=max_pixels,
            measure=measuring(max_pixels=max_pixels, normalise=False) if measure else None,
        )

    return prepare


def _unpacked(path: Path, *, max_expand: float | None, allow_case: bool) -> Path:
    """The folder beside an archive that holds what was in it; unpacks it if that was not done before."""
    from memorysam_cli.report import console
    from memorysam_cli.storage import archive

    if max_expand is not None and not math.isfinite(max_expand):
        raise UsageError(f"--max-expand {max_expand}: must be a number of gigabytes, such as 50")
    limit = None if max_expand is None else int(max_expand * 1e9)
    with console.progress(archive.megabytes(path), f"unpack {path.name}, MB") as bar:
        folder, is_new = archive.unpack_beside(path, max_bytes=limit, allow_case=allow_case, advance=bar.advance)
    console.note(f"{folder}: {'unpacked from' if is_new else 'is already unpacked from'} {path.name}")
    return folder
