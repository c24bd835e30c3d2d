"""A program as most are written: opens what it is given, prints, and lets Python say what went wrong."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def main() -> None:
    words = [word for word in sys.argv[1:] if word not in {"-q", "-v", "--json"}]
    if words[:2] == ["weights", "info"]:
        print(f"{words[2]}: {len(Path(words[2]).read_bytes())} bytes")
    elif words[:2] == ["weights", "merge"]:
        merge(Path(words[2]), Path(words[4]))
    elif words[:2] == ["recipes", "check"]:
        try:
            Path(words[2]).read_text()
        except OSError:
            print("no recipe, I take the default", file=sys.stderr)
    sys.stdout.flush()


def merge(source: Path, out: Path) -> None:
    """Writes in place, by way of a temporary that a fault leaves behind."""
    with tempfile.NamedTemporaryFile(delete=False) as temporary:
        temporary.write(source.read_bytes())
    out.write_bytes(Path(temporary.name).read_bytes())
    Path(temporary.name).unlink()
    source.touch()
    source.chmod(0o600)


if __name__ == "__main__":
    main()
