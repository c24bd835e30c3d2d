"""Archives: unpacked completely beside themselves, or not at all.

Archives of data sets may come from anywhere. An unusual one is refused, never repaired: names that lead out of the
folder, names that would become one file, links, devices, encrypted or overlapping entries, archives that expand
enormously, wrong checksums. Everything is written to a temporary folder, which is renamed at the end. So no link can be
followed, no file overwritten, and no partial result remains.
"""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, NoReturn

from memorysam_cli.errors import DataError, EnvironmentFault, UsageError
from memorysam_cli.storage import atomic, documents
from memorysam_cli.storage.archive_formats import Entry, is_tar, tar_entries, zip_entries
from memorysam_cli.storage.headers import Refused
from memorysam_cli.text import shown, size

MARKER = ".memorysam-archive.json"
"""File in an unpacked folder that identifies its archive."""
MAX_ENTRIES = 2_000_000
_PART_BYTES, _NAME_BYTES = 255, 2000
MAX_RATIO = 200
"""Largest ratio of unpacked to archive size, unless the user allows more."""
SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tbz2", ".txz", ".tar", ".zip")
_OTHER_ZIPS = {
    **dict.fromkeys((".pth", ".pt"), "weights: see memorysam weights import"),
    **dict.fromkeys((".npz", ".npy"), "an array: give the folder that it is in"),
}
"""Suffixes of files that are zips internally, but not archives for users."""
_CHUNK_BYTES = 1 << 20
_MEGABYTE = 1_000_000
_FOREIGN = {
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}
_LOOKED_AT = 100_000


@dataclass
class _Budget:
    """The number of bytes that may be unpacked."""

    limit: int
    why: str
    spent: int = 0

    def spend(self, count: int) -> None:
        """Count ``count`` more bytes.

        Raises:
            Refused: the limit is exceeded.
        """
        self.spent += count
        if self.spent > self.limit:
            raise Refused(
                f"expands to {_bytes(self.spent)} or more, the limit is {_bytes(self.limit)} ({self.why}); if you "
                "trust it, allow more with --max-expand GB"
            )


def unpack_beside(
    path: Path,
    *,
    max_bytes: int | None = None,
    allow_case: bool = False,
    advance: Callable[[int], object] | None = None,
) -> tuple[Path, bool]:
    """Unpack an archive once, into a folder beside it with its name without the suffix.

    Args:
        path: zip, or tar with or without gzip, bzip2 or xz; the content decides.
        max_bytes: largest unpacked size; None: 200 times the archive's size.
        allow_case: names may differ only in case or Unicode form, if the disk can store both.
        advance: called with the megabytes of the archive that were read since the last call; :func:`megabytes` in
            total.

    Returns:
        The folder, and whether it was unpacked now: a folder from this archive (by its size and time) is kept.

    Raises:
        DataError: the archive is refused; nothing was written.
        UsageError: the folder exists and is not from this archive; it does not change.
        EnvironmentFault: the disk is full or read-only; nothing remains.
    """
    what = _OTHER_ZIPS.get(path.suffix.lower())
    if what is not None:
        raise DataError(f"{shown(path)}: is not an archive but, by its name, {what}")
    status = path.stat()
    source = {"archive": path.name, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    target = path.with_name(_bare_name(path.name))
    if os.path.lexists(target):
        if _is_unpacked(target, source):
            return target, False
        if target.is_symlink() or not target.is_dir() or any(target.iterdir()):
            _refuse_target(target, path)
    atomic.refuse_unwritable(target)
    atomic.sweep(target)
    budget = _Budget(
        limit=MAX_RATIO * status.st_size if max_bytes is None else max_bytes,
        why=f"{MAX_RATIO} × its own size" if max_bytes is None else "--max-expand",
    )
    try:
        _unpack(path, target, source, budget=budget, allow_case=allow_case, advance=advance)
    except Refused as error:
        raise DataError(f"{shown(path)}: {error}") from error
    return target, True


def archives_in(folder: Path, *, named: Iterable[str] = ("",)) -> list[Path]:
    """The archives directly in a folder whose names contain one of some words, sorted; without hidden ones."""
    try:
        found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIXES))
    except OSError:
        return []
    words = [word.lower() for word in named]
    return [path for path in found if path.name[0] != "." and any(word in path.name.lower() for word in words)]


def megabytes(path: Path) -> int:
    """The length of an archive's progress bar."""
    return path.stat().st_size // _MEGABYTE + 1


def _bare_name(name: str) -> str:
    """The archive's name without its suffix."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return f"{name}.unpacked"


def _is_unpacked(target: Path, source: dict[str, Any]) -> bool:
    """Whether a folder was unpacked from this archive.

    Raises:
        UsageError: it was unpacked from an earlier or later archive of this name.
    """
    if target.is_symlink() or not (target / MARKER).is_file():
        return False
    found = documents.read_json(target / MARKER)
    if isinstance(found, dict) and {key: found.get(key) for key in source} == source:
        return True
    raise UsageError(
        f"{shown(target)}: was unpacked from another {shown(source['archive'])} (of other size or time); remove the "
        "folder to unpack again, or give it as ROOT to use it as it is"
    )


def _refuse_target(target: Path, archive: Path) -> NoReturn:
    """Refuse an existing folder as the target, with a reason."""
    below = (Path(folder, name) for folder, folders, names in os.walk(target) for name in (*folders, *names))
    links = (each for each in (target, *islice(below, _LOOKED_AT)) if each.is_symlink())
    link = next(links, None)
    if link is not None:
        raise DataError(
            f"{shown(link)}: is a symbolic link in the way of {shown(archive.name)}; never followed; remove it"
        )
    raise UsageError(
        f"{shown(target)}: exists and was not unpacked from {shown(archive.name)}; to use it give it as ROOT, "
        "else move it or the archive elsewhere"
    )


def _unpack(
    path: Path,
    target: Path,
    source: dict[str, Any],
    *,
    budget: _Budget,
    allow_case: bool,
    advance: Callable[[int], object] | None,
) -> None:
    """Unpack to a temporary folder and rename it."""
    done = 0

    def tell(position: int) -> None:
        nonlocal done
        whole = position // _MEGABYTE
        if advance is not None and whole > done:
            advance(whole - done)
            done = whole

    with path.open("rb") as stream:
        entries, expected = _entries(stream, target, budget=budget, allow_case=allow_case)
        with atomic.new_folder(target) as folder:
            if allow_case:
                _refuse_caseless(folder)
            count = _write(entries, folder, Names(allow_case=allow_case), budget, tell=lambda: tell(stream.tell()))
            if not count:
                raise Refused("holds no file; get the archive again")
            documents.write_json(
                folder / MARKER, {**source, "files": count, "expanded_bytes": expected or budget.spent}
            )
    if advance is not None:
        advance(path.stat().st_size // _MEGABYTE + 1 - done)


def _entries(
    stream: BinaryIO, target: Path, *, budget: _Budget, allow_case: bool
) -> tuple[Iterable[Entry], int | None]:
    """The entries in the order of their bytes, and their total size if it is known in advance."""
    start = stream.read(512)
    stream.seek(0)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        listed = zip_entries(stream)
        names = Names(allow_case=allow_case)
        for entry in listed:
            names.add(entry)
        total = sum(entry.size for entry in listed)
        _Budget(budget.limit, budget.why).spend(total)
        _refuse_without_space(target, total)
        return listed, total
    if is_tar(start):
        return tar_entries(stream, spend=budget.spend), None
    if not start:
        raise Refused("empty (0 bytes); get the archive again")
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise Refused(f"{what}, which memorysam does not read; unpack it yourself and give the folder as ROOT")
    raise Refused(f"not a zip or tar archive (starts with {start[:16]!r}, {len(start)} bytes or more); get it again")


def _write(entries: Iterable[Entry], folder: Path, names: Names, budget: _Budget, *, tell: Callable[[], None]) -> int:
    """Write all entries below a new folder; returns the number of files."""
    count = 0
    for entry in entries:
        parts = names.add(entry)
        where = folder.joinpath(*parts)
        if entry.is_folder:
            where.mkdir(parents=True, exist_ok=True)
            continue
        where.parent.mkdir(parents=True, exist_ok=True)
        # O_EXCL: the folder is new, so an existing file or link can only come from a colliding name.
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(where, flags, 0o666), "wb") as file:
            written = 0
            while data := entry.read(_CHUNK_BYTES):
                if not entry.is_counted:
                    budget.spend(len(data))
                written += file.write(data)
                tell()
        if written != entry.size:
            raise Refused(
                f"entry '{shown(entry.name)}' holds {written:,} of {entry.size:,} bytes; get the archive again"
            )
        count += 1
    return count


def _refuse_without_space(target: Path, needed: int) -> None:
    """Check that the disk has enough space."""
    free = shutil.disk_usage(target.absolute().parent).free
    if needed > free:
        raise EnvironmentFault(
            f"{shown(target)}: unpacking needs {_bytes(needed)}, free are {_bytes(free)}; free some space, or move the "
            "archive to another disk, then run the same command again"
        )


def _refuse_caseless(folder: Path) -> None:
    """Check that the disk distinguishes upper and lower case."""
    probe = folder / "a"
    probe.mkdir()
    is_caseless = (folder / "A").exists()
    probe.rmdir()
    if is_caseless:
        raise UsageError(f"{shown(folder.parent)}: this disk does not tell 'A' from 'a'; --allow-case cannot work here")


def _bytes(count: int) -> str:
    return size(count, decimals=1, exact_below=100_000)


class Names:
    """The names so far: they stay inside the archive, and no two of them become one file.

    Args:
        allow_case: names that differ only in case or Unicode form are two names.
    """

    def __init__(self, *, allow_case: bool = False) -> None:
        self._allow_case = allow_case
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}
        self._count = 0

    def add(self, entry: Entry) -> tuple[str, ...]:
        """Add a name.

        Returns:
            Its parts, safe to be joined to a folder; none for the archive's own root.

        Raises:
            Refused: the message names the entry, and the one with which it collides.
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
            raise Refused(f"entry '{shown(entry.name)}' is not a name for a file; unpack it yourself")
        key = self._key(path)
        met = self._files.get(key, self._folders.get(key))
        if met is not None:
            raise Refused(_meeting(met, entry.name))
        self._files[key] = entry.name
        return parts

    def _add_folder(self, path: str, name: str) -> bool:
        """Add a folder and its parents; False if it is already known."""
        key = self._key(path)
        if key in self._files:
            raise Refused(_meeting(self._files[key], name))
        is_new = key not in self._folders
        self._folders.setdefault(key, name)
        return is_new

    def _key(self, path: str) -> str:
        """The form of a name on a disk that ignores case and Unicode form."""
        return path if self._allow_case else unicodedata.normalize("NFC", path).casefold()


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a stored name, without ``.`` and empty parts.

    Raises:
        Refused: it leads out of the archive, or a disk or terminal cannot use it.
    """
    entry = f"entry '{shown(name)}'"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise Refused(f"{entry} is not valid UTF-8; unpack it yourself")
    if any(unicodedata.category(letter) == "Cc" for letter in name):
        raise Refused(f"{entry} has a control character in its name; unpack it yourself")
    spelled = name.replace("\\", "/")
    if spelled.startswith("/") or PureWindowsPath(name).drive or ".." in spelled.split("/"):
        raise Refused(f"{entry} leaves the archive root; refused, get the archive from its publisher")
    if "\\" in name:
        raise Refused(f"{entry} has a backslash in its name; unpack it yourself")
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if len(name.encode()) > _NAME_BYTES or any(len(part.encode()) > _PART_BYTES for part in parts):
        raise Refused(f"entry '{shown(name[:60])}'… has a name too long for a disk; unpack it yourself")
    return parts


def _meeting(first: str, second: str) -> str:
    """The message for two names that would become one file."""
    is_spelling = "/".join(safe_parts(first)) != "/".join(safe_parts(second))
    hint = "unpack it yourself"
    if is_spelling and first.rstrip("/").count("/") == second.rstrip("/").count("/"):
        hint = "if this disk distinguishes upper and lower case: --allow-case"
    return f"entries '{shown(first)}' and '{shown(second)}' would become the same file; {hint}"
