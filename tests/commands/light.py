"""What tries a command line in a process that has loaded nothing heavy, and tells what it has loaded since."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from memorysam_cli import app

HEAVY = ("torch", "peft", "accelerate", "sam2", "matplotlib")
LOADED = "loaded: "


def attempt(folder: str, words: Sequence[str]) -> int:
    """Run a command line in a folder; on the last line of stderr stands what of :data:`HEAVY` is there now."""
    os.chdir(folder)
    os.environ.pop("MEMORYSAM_DATA", None)
    code = app.run(words)
    print(LOADED + " ".join(name for name in HEAVY if name in sys.modules), file=sys.stderr)
    return code
