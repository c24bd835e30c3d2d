"""``memorysam weights fetch``: SAM 2's own weights, ahead of time."""

from __future__ import annotations

from typing import Annotated

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin
from memorysam_cli.errors import UsageError, did_you_mean

SCHEMA_VERSION = 1


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Backbones, such as sam2-hiera-base-plus.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are published.")] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Fetch SAM 2's published weights and check their SHA-256.

    They go to the Hugging Face cache; train does it by itself. HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    What is in the cache is checked, not fetched again. A server from which nothing comes for 45 seconds is given up.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.recipe import BACKBONES
    from memorysam_cli.report import console

    published = [name for name in BACKBONES if name != "nano"]
    if bool(names) == every:
        raise UsageError(f"weights fetch: give names or --all{did_you_mean('', published)}")
    for name in names or ():
        if name == "nano":
            raise UsageError("nano: its weights come with memorysam; there is nothing to fetch")
        if name not in published:
            raise UsageError(f"{name}: is no published backbone{did_you_mean(name, published)}")
    from memorysam_cli.encoders.hiera import PUBLISHED
    from memorysam_cli.storage import hub

    files = []
    for name in published if every else dict.fromkeys(names or ()):
        wanted = PUBLISHED[name]
        path = hub.fetch(wanted.repository, wanted.filename, sha256=wanted.sha256, show_progress=not quiet)
        console.say(f"{name}  {path}  SHA-256 {wanted.sha256}")
        files.append({"name": name, "repository": wanted.repository, "path": str(path), "sha256": wanted.sha256})
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, "files": files})
