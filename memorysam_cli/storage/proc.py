"""Words to the Linux kernel: files below ``/proc`` that store nothing, so that nothing can be lost in writing them."""

from __future__ import annotations

from pathlib import Path

_SELF = Path("/proc/self")


def tell(name: str, word: str) -> bool:
    """Write a word to ``/proc/self/<name>``.

    Returns:
        Whether the kernel took it; other systems have no such file.
    """
    try:
        (_SELF / name).write_text(word)
    except OSError:
        return False
    return True
