"""The content of a tar or zip archive, checked before anything is unpacked: plain files and folders, nothing else.

A tar (POSIX ustar, pax and GNU headers; with gzip, bzip2 or xz around it) is read from start to end by our own code,
because Python's reader follows links and allocates any length that a header claims. For a zip, the directory is read
and compared with the entries at the places that it names.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from memorysam_cli.storage.headers import Refused
from memorysam_cli.text import shown

_AGAIN = "get the archive again"
_YOURSELF = "unpack it yourself and give the folder as ROOT"
_BLOCK = 512
_MAX_EXTRA_BYTES = 1_000_000
"""Kinds of headers that precede another one."""
_MAX_DIGITS = 18
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_LINKS = {b"1": "a hard link", b"2": "a symbolic link"}
_FILES = {b"0", b"\0", b"7"}
_FOLDER, _PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK = b"5", b"x", b"g", b"L", b"K"

_ENCRYPTED = 0x1 | 0x40 | 0x2000
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
_MAX_DIRECTORY_BYTES = 300_000_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass(frozen=True)
class Entry:
    """A file or folder of an archive."""

    name: str
    """As stored."""
    is_folder: bool
    size: int
    """Its declared number of bytes."""
    read: Callable[[int], bytes]
    """The next bytes, at most this number; none at the end. Raises ``Refused`` if it is damaged."""
    is_counted: bool = False
    """Whether its bytes are counted when they are read."""


def is_tar(start: bytes) -> bool:
    """Whether a file with this start is a tar, compressed or not (the content of gzip, bzip2 or xz is unknown)."""
    return start.startswith((_GZIP, _BZIP2, _XZ)) or (len(start) >= _BLOCK and _has_checksum(start[:_BLOCK]))


def tar_entries(stream: BinaryIO, *, spend: Callable[[int], None]) -> Iterator[Entry]:
    """The entries, one after the other; each must be read before the next is requested, and the rest of it is skipped.

    Args:
        stream: at its start.
        spend: called with the number of decompressed bytes; raises ``Refused`` if they are too many.

    Raises:
        Refused: truncated, damaged, with links, devices or holes.
    """
    yield from _TarReader(_decompressed(stream), spend).entries()


def _decompressed(stream: BinaryIO) -> BinaryIO:
    """The decompressed tar."""
    start = stream.read(len(_XZ))
    stream.seek(0)
    if start.startswith(_GZIP):
        return cast("BinaryIO", gzip.GzipFile(fileobj=stream))
    if start.startswith(_BZIP2):
        return cast("BinaryIO", bz2.BZ2File(stream))
    return cast("BinaryIO", lzma.LZMAFile(stream)) if start.startswith(_XZ) else stream


class _TarReader:
    """Reads a tar forwards."""

    def __init__(self, tar: BinaryIO, spend: Callable[[int], None]) -> None:
        self._tar, self._spend = tar, spend
        self._left = self._padding = 0
        self._last = ""

    def entries(self) -> Iterator[Entry]:
        is_first = True
        extra: dict[str, str] = {}
        while (header := self._exactly(_BLOCK)) != bytes(_BLOCK):
            if not _has_checksum(header):
                what = "no tar inside" if is_first else f"damaged tar after '{shown(self._last)}'"
                raise Refused(f"{what}; {_AGAIN}")
            is_first = False
            kind, size = header[156:157], _number(header[124:136])
            if kind in (_PAX, _PAX_FOR_ALL, _LONG_NAME, _LONG_LINK):
                found = _extra(kind, self._content(size))
                if kind == _PAX_FOR_ALL and found.keys() & {"path", "size"}:
                    raise Refused(f"a tar with one name or size for all entries; {_YOURSELF}")
                extra |= found if kind in (_PAX, _LONG_NAME) else {}
                continue
            yield self._entry(header, kind, size, extra)
            extra = {}
            self._skip()
        while self._read(1 << 20):  # to the end, where the compression keeps its checksum
            pass

    def _entry(self, header: bytes, kind: bytes, size: int, extra: dict[str, str]) -> Entry:
        """A file or folder, from its header and the extra headers before it."""
        name = extra.get("path", _name(header))
        entry = f"entry '{shown(name)}'"
        if kind in _LINKS:
            raise Refused(f"{entry} is {_LINKS[kind]}; never followed; {_YOURSELF}")
        if kind not in {_FOLDER, *_FILES}:
            raise Refused(f"{entry} is a device or another special file (type {kind!r}); {_YOURSELF}")
        if any(key.startswith("GNU.sparse") for key in extra):
            raise Refused(f"{entry} is a file with holes; {_YOURSELF}")
        if "size" in extra:
            if not (extra["size"].isascii() and extra["size"].isdigit() and len(extra["size"]) <= _MAX_DIGITS):
                raise Refused(f"{entry} has no size that makes sense; {_AGAIN}")
            size = int(extra["size"])
        is_folder = kind == _FOLDER or name.endswith("/")
        self._left, self._padding, self._last = size, -size % _BLOCK, name
        return Entry(name, is_folder, 0 if is_folder else size, self._next, is_counted=True)

    def _next(self, count: int) -> bytes:
        """The next bytes of the current entry."""
        if not self._left:
            return b""
        data = self._read(min(count, self._left))
        if not data:
            raise Refused(f"truncated tar: it ends inside entry '{shown(self._last)}'; {_AGAIN}")
        self._left -= len(data)
        return data

    def _skip(self) -> None:
        """Go to the next header."""
        while self._next(1 << 20):
            pass
        self._exactly(self._padding)

    def _content(self, size: int) -> bytes:
        """The content of an extra header."""
        if size > _MAX_EXTRA_BYTES:
            raise Refused(f"damaged tar: {size:,} bytes of header after '{shown(self._last)}'; {_AGAIN}")
        data = self._exactly(size)
        self._exactly(-size % _BLOCK)
        return data

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._read(count - len(data))
            if not piece:
                raise Refused(f"truncated tar: it ends after '{shown(self._last)}', without an end mark; {_AGAIN}")
            data += piece
        return data

    def _read(self, count: int) -> bytes:
        """At most ``count`` bytes of the tar."""
        try:
            data = self._tar.read(count)
        except (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise Refused(f"truncated or damaged after entry '{shown(self._last)}' ({error}); {_AGAIN}") from error
        self._spend(len(data))
        return data


def _has_checksum(header: bytes) -> bool:
    """Whether a header's checksum is right: the sum of its bytes, with its own field taken as spaces."""
    try:
        return sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) == _number(header[148:156])
    except Refused:
        return False


def _number(text: bytes) -> int:
    """Octal text, or GNU's big-endian bytes after a first bit of 1."""
    if text[0] & 0x80:
        return int.from_bytes(bytes([text[0] & 0x7F]) + text[1:], "big")
    digits = text.strip(b" \0")
    if not all(digit in b"01234567" for digit in digits):
        raise Refused(f"damaged tar: {text!r} is not a number; {_AGAIN}")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    """A name from a header."""
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _extra(kind: bytes, content: bytes) -> dict[str, str]:
    """The values of an extra header for the next entry."""
    if kind in (_LONG_NAME, _LONG_LINK):
        return {"path": content.split(b"\0")[0].decode("utf-8", "surrogateescape")}
    found: dict[str, str] = {}
    while content:
        length, _, _ = content.partition(b" ")
        if not (length.isdigit() and len(length) <= _MAX_DIGITS and len(length) < int(length) <= len(content)):
            raise Refused(f"damaged tar: a pax header makes no sense; {_AGAIN}")
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return found


def zip_entries(stream: BinaryIO) -> list[Entry]:
    """The entries in the order of their bytes.

    Args:
        stream: seekable; stays open while the entries are read.

    Raises:
        Refused: truncated, damaged, encrypted, of an unknown method, with links or devices, or with entries that
            share bytes.
    """
    count = _zip_count(stream)
    with _zip_faults("its directory"):
        archive = zipfile.ZipFile(stream)
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    # No checksum covers the directory: a wrong length in it can swallow entries.
    if count not in {len(infos), len(infos) % 65536}:
        raise Refused(f"its directory lists {len(infos)} entries, of {count}; {_AGAIN}")
    for info in infos:
        _refuse_odd_entry(info)
    _refuse_overlap(stream, infos, end=archive.start_dir)
    return [Entry(info.filename, info.is_dir(), info.file_size, _zip_reader(archive, info)) for info in infos]


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[int], bytes]:
    """A reader of an entry, piece by piece; the last piece checks the CRC."""
    opened: list[zipfile.ZipExtFile] = []

    def read(count: int) -> bytes:
        with _zip_faults(f"entry '{shown(info.filename)}'"):
            if not opened:
                opened.append(archive.open(info))  # type: ignore[arg-type]
            data = opened[0].read(count)
            if not data:
                opened[0].close()
            return data

    return read


def _refuse_odd_entry(info: zipfile.ZipInfo) -> None:
    """Refuse an entry that is neither a plain file nor a folder."""
    entry = f"entry '{shown(info.filename)}'"
    if not info.filename:
        raise Refused(f"an entry has no name; {_YOURSELF}")
    if "\0" in info.orig_filename:
        raise Refused(f"{entry} has a control character in its name; {_YOURSELF}")
    if info.flag_bits & _ENCRYPTED:
        raise Refused(f"{entry} is encrypted; {_YOURSELF}")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        what = "a symbolic link" if kind == stat.S_IFLNK else "a device or another special file"
        raise Refused(f"{entry} is {what}; never followed; {_YOURSELF}")
    if info.compress_type not in _METHODS:
        raise Refused(
            f"{entry} is compressed by method {info.compress_type}, which memorysam does not read; {_YOURSELF}"
        )
    if info.is_dir() and info.file_size:
        raise Refused(f"{entry} is a folder with content; {_AGAIN}")


def _refuse_overlap(stream: BinaryIO, infos: list[zipfile.ZipInfo], *, end: int) -> None:
    """Refuse entries that share bytes, because a few such entries can expand to any size."""
    free = 0
    before = ""
    for info in infos:
        if info.header_offset < free:
            raise Refused(f"entries '{shown(before)}' and '{shown(info.filename)}' overlap; {_AGAIN}")
        stream.seek(info.header_offset)
        start = stream.read(_LOCAL_HEADER.size)
        if len(start) < _LOCAL_HEADER.size or not start.startswith(b"PK\x03\x04"):
            raise Refused(f"entry '{shown(info.filename)}' is not where the directory says; {_AGAIN}")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(start)
        free = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes + info.compress_size
        before = info.filename
    if free > end:
        raise Refused(f"entry '{shown(before)}' overlaps the archive's directory; {_AGAIN}")


def _zip_count(stream: BinaryIO) -> int:
    """The number of entries in the record at the end, modulo 65536 for the old kind of record.

    It is checked before the directory is read, so that a huge directory is refused.
    """
    size = stream.seek(0, 2)
    stream.seek(max(0, size - 66_000))
    tail = stream.read()
    stream.seek(0)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) < found + 22:
        raise Refused(f"truncated or damaged zip: its directory is missing at the end ({size:,} bytes); {_AGAIN}")
    count, length = struct.unpack_from("<HI", tail, found + 10)
    where = tail.rfind(b"PK\x06\x06", 0, found)
    if where >= 0 and where + 56 <= found:  # zip64
        count, length = struct.unpack_from("<QQ", tail, where + 32)
    if length > _MAX_DIRECTORY_BYTES:
        raise Refused(f"its directory alone has {length:,} bytes; {_YOURSELF}")
    return int(count)


@contextmanager
def _zip_faults(what: str) -> Iterator[None]:
    """All exceptions for a damaged zip, as one."""
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error
    ) as error:  # fmt: skip
        raise Refused(f"{what} is damaged ({error}); {_AGAIN}") from error
    except OSError as error:
        if error.errno is not None:  # the disk's error; bzip2's own errors have no number
            raise
        raise Refused(f"{what} is damaged ({error}); {_AGAIN}") from error
