"""Reads what earlier commands wrote: a damaged file is told, and nothing is guessed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memorysam_cli.errors import DataError
from memorysam_cli.report import pages
from memorysam_cli.storage import documents

KINDS = {".png": "png", ".jpg": "jpeg"}


def read(path: Path) -> dict[str, Any]:
    """A JSON object of ours; empty if the file is not there.

    Raises:
        DataError: it is damaged, or of another version.
    """
    if not path.is_file():
        return {}
    found = documents.read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no JSON object; run the command that wrote it again")
    return found


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Says of a file whose content is not as expected that it is so, rather than how Python stumbled over it.

    Raises:
        DataError: in the place of what the block stumbled over.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as fault:
        raise DataError(
            f"{path}: is not as this version of memorysam writes it ({type(fault).__name__}: {fault}); "
            "run the command that wrote it again"
        ) from fault


def picture(path: Path) -> str:
    """A picture's file as an address that holds it."""
    return pages.data_uri(path.read_bytes(), kind=KINDS[path.suffix])
