"""From facts to one HTML file that needs nothing else: style, script, data and pictures are inside.

The page's policy forbids it any network and any script but its own, whose sum stands in its head; what comes from
files (names of scenes, classes, recipes) is escaped by Jinja2.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from memorysam_cli import __version__

FOLDER = Path(__file__).parent
MOST_BYTES = 10_000_000
"""Of a report: what mail and CI artefacts still take."""


def render(template: str, **facts: Any) -> str:
    """Fill a template.

    Args:
        template: the name of one of this package's, without its suffix.
        facts: what it shows; a name that is missing is an error.
    """
    style, script = (_embedded(name) for name in ("style.css", "script.js"))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src {_sum(style)}",
            f"script-src {_sum(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    page = _environment().get_template(f"{template}.html.j2")
    return page.render(**facts, style=Markup(style), script=Markup(script), policy=policy, version=__version__)


def data_uri(data: bytes, *, kind: str) -> str:
    """Bytes as an address that holds them.

    Args:
        data: of a picture.
        kind: ``png`` or ``jpeg``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{value:.2f}"
    environment.filters["breakable"] = _breakable
    environment.filters["layers"] = _layers
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment


def _breakable(name: str) -> Markup:
    """A path that may go on in the next line after each of its parts."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[/_+])", name))


def _layers(scenes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What any of a gallery's scenes shows: a scene may lack a sensor that others have."""
    found: dict[str, Mapping[str, Any]] = {}
    for scene in sorted(scenes, key=lambda scene: -len(scene["layers"])):
        for layer in scene["layers"]:
            found.setdefault(layer["key"], layer)
    return list(found.values())


def _embedded(name: str) -> str:
    """A file of ours, as it will stand between its tags."""
    return (FOLDER / name).read_text(encoding="utf-8")


def _sum(text: str) -> str:
    """A Content-Security-Policy source that allows exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
