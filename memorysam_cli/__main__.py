"""``python -m memorysam_cli``: the same as ``memorysam``."""

from __future__ import annotations

from memorysam_cli.app import main

if __name__ == "__main__":
    main()
