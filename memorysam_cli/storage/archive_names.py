"""Which names an archive may hold: those that stay inside, and that no two of become one file."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PureWindowsPath

from memorysam_cli.storage.headers import Refused
from memorysam_cli.text import shown

MARKER = ".memorysam-archive.json"
"""Lies in a folder that we unpacked; says from what."""
MAX_ENTRIES = 2_000_000
_PART_BYTES, _NAME_BYTES = 255, 2000


@dataclass(frozen=True)
class Entry:
    """One file or folder of an archive."""

    name: str
    """As stored."""
    is_folder: bool
    size: int
    """Bytes that it promises."""
    read: Callable[[int], bytes]
    """The next bytes, at most so many; none at the end. Raises ``Refused`` if it is damaged."""
    is_counted: bool = False
    """Its bytes are counted where they are read."""


class Names:
    """The names seen so far.

    Args:
        allow_case: names that differ in case or Unicode form alone are two names.
    """

    def __init__(self, *, allow_case: bool = False) -> None:
        self._allow_case = allow_case
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        self._count = 0

    def add(self, entry: Entry) -> tuple[str, ...]:
        """Take in a name.

        Returns:
            Its parts, safe to be joined to a folder; none for the archive's own root.

        Raises:
            Refused: names the entry, and the one it meets.
        """
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise Refused(f"holds more than {MAX_ENTRIES:,} entries; unpack it yourself")
        parts = safe_parts(entry.name)
        for end in range(len(parts) - 1, 0, -1):
            if not self._add_folder("/".join(parts[:end]), entry.name):
                break
        path = "/".join(parts)
        if entry.is_folder:
            if path:
                self._add_folder(path, entry.name)
            return parts
        if not path or path.casefold() == MARKER:
            raise Refused(f"entry '{shown(entry.name)}' is no name for a file; unpack it yourself")
        key = self._key(path)
        met = self._files.get(key, self._folders.get(key))
        if met is not None:
            raise Refused(_meeting(met, entry.name))
        self._files[key] = entry.name
        return parts

    def _add_folder(self, path: str, name: str) -> bool:
        """Note a folder; False if it is known, and so are those above it."""
        key = self._key(path)
        if key in self._files:
            raise Refused(_meeting(self._files[key], name))
        is_new = key not in self._folders
        self._folders.setdefault(key, name)
        return is_new

    def _key(self, path: str) -> str:
        """What a disk that ignores case and Unicode form tells apart."""
        return path if self._allow_case else unicodedata.normalize("NFC", path).casefold()


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a stored name; ``.`` and empty parts stand for nothing.

    Raises:
        Refused: it leads out of the archive, or no disk or terminal could bear it.
    """
    said = f"entry '{shown(name)}'"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise Refused(f"{said} is not valid UTF-8; unpack it yourself")
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise Refused(f"{said} has a control character in its name; unpack it yourself")
    spelled = name.replace("\\", "/")
    if spelled.startswith("/") or PureWindowsPath(name).drive or ".." in spelled.split("/"):
        raise Refused(f"{said} leaves the archive root; refused, get the archive from its publisher")
    if "\\" in name:
        raise Refused(f"{said} has a backslash in its name; unpack it yourself")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if len(name.encode()) > _NAME_BYTES or any(len(part.encode()) > _PART_BYTES for part in parts):
        raise Refused(f"entry '{shown(name[:60])}'… has a name too long for a disk; unpack it yourself")
    return parts


def _meeting(first: str, second: str) -> str:
    """The message on two names that would become one."""
    is_spelling = "/".join(safe_parts(first)) != "/".join(safe_parts(second))
    hint = "unpack it yourself"
    if is_spelling and first.rstrip("/").count("/") == second.rstrip("/").count("/"):
        hint = "if this disk tells upper from lower case: --allow-case"
    return f"entries '{shown(first)}' and '{shown(second)}' would become the same file; {hint}"
