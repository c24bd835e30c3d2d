"""``memorysam weights push``: weights with their model card to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memorysam_cli.commands.card import License
from memorysam_cli.commands.options import Json, Quiet, Verbose, begin

SCHEMA_VERSION = 1


def push(
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the Hub; made if it is not there.")],
    file: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A .safetensors file written by memorysam.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send it; without it, only say what would be sent.")] = False,
    private: Annotated[bool, typer.Option("--private", help="A repository that is made is private.")] = False,
    license: License = "apache-2.0",
    with_card: Annotated[
        bool, typer.Option("--card/--no-card", help="Send a README.md as `memorysam card` writes it.")
    ] = True,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Replace a README.md that is there and differs.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Send weights and their model card to the Hugging Face Hub.

    The recipe goes along, in one commit or not at all. Without --yes it only says what would be sent and sends nothing,
    for what is public once is public. HF_TOKEN (or `hf auth login`), HF_ENDPOINT and HF_HUB_OFFLINE are honoured. A
    README.md that is there and differs is never replaced unasked.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.storage import hub

    hub.refuse_name(repo)
    from memorysam_cli.engine.weights import publishing
    from memorysam_cli.report import console

    upload = publishing.plan(
        repo, file, license=license, with_card=with_card, private=private, replaces_card=replace_card
    )  # fmt: skip
    sizes = publishing.sizes(upload)
    for name, size in sizes.items():
        console.say(f"{name}  {size / 1e6:.2f} MB")
    url = hub.send(upload, show_progress=not quiet) if yes else None
    if json:
        files = [{"name": name, "bytes": size} for name, size in sizes.items()]
        console.answer(
            {"schema_version": SCHEMA_VERSION, "repo": repo, "file": str(file), "files": files, "sent": yes, "url": url}
        )
    kind = "a private repository" if private else "a public repository, unless it is there and private"
    console.say(f"sent: {url}" if yes else f"not sent; add --yes to send these to {repo} ({kind})")
