"""Which packages a command line imports: that is the time of its start, on any machine.

Seconds would be those of one machine, and of what else it does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

RUN = """
import sys
from pathlib import Path
from memorysam_cli import app
lines = Path(sys.argv[1])
codes = [app.run(line.split()) for line in lines.read_text().splitlines()]
lines.write_text("\\n".join([*map(str, codes), *sys.modules]))
"""


class Ran(NamedTuple):
    """How command lines ended."""

    codes: list[int]
    stderr: str
    packages: set[str]
    """What was imported of all that memorysam depends on, extras included."""


def run(lines: Sequence[str], folder: Path) -> Ran:
    """Run command lines, without ``memorysam``, one after the other in one new process."""
    path = folder / "lines"
    path.write_text("\n".join(lines))
    done = subprocess.run([sys.executable, "-c", RUN, path], capture_output=True, text=True, check=True)
    said = path.read_text().splitlines()
    modules = {name.partition(".")[0] for name in said[len(lines) :]}
    owners = metadata.packages_distributions()
    packages = {canonical(each) for module in modules for each in owners.get(module, [])}
    needed = {canonical(re.split(r"[^\w.-]", line)[0]) for line in metadata.requires("memorysam") or ()}
    return Ran([int(code) for code in said[: len(lines)]], done.stderr, packages & needed)


def canonical(name: str) -> str:
    """A package's name as the package index compares it."""
    return re.sub("[-_.]+", "-", name).lower()
