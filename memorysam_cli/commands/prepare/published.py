"""``memorysam prepare deliver`` and its siblings: check a published data set."""

from __future__ import annotations

from collections.abc import Callable

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin
from memorysam_cli.commands.prepare.outcome import Root, check_and_write


def command_of(name: str) -> Callable[..., None]:
    """The command that prepares a published data set."""

    def prepare(root: Root, json: Json = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
        from memorysam_cli.data import preparation
        from memorysam_cli.data.layout import DataNotFound
        from memorysam_cli.report import console

        begin(json=json, verbose=verbose, quiet=quiet)
        try:
            found = preparation.survey(name, root)
        except DataNotFound as fault:
            console.note(f"expected below {root}:\n{fault.expected_tree}")
            raise
        check_and_write(found, json=json)

    return prepare
