"""What a zip archive holds, looked at before anything is unpacked."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from memorysam_cli.storage.archive_names import Entry
from memorysam_cli.storage.headers import Refused
from memorysam_cli.text import shown

_ENCRYPTED = 0x1 | 0x40 | 0x2000
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
_MAX_DIRECTORY_BYTES = 300_000_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_AGAIN = "get the archive again"
_YOURSELF = "unpack it yourself and give the folder as ROOT"


def entries(stream: BinaryIO) -> list[Entry]:
    """The entries in the order of their bytes.

    Args:
        stream: seekable; stays open while the entries are read.

    Raises:
        Refused: truncated, damaged, encrypted, of an unknown method, with links or devices, or with entries that
            share bytes.
    """
    count = _count(stream)
    with _faults("its directory"):
        archive = zipfile.ZipFile(stream)
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    # No checksum covers the directory: a wrong length in it can swallow entries.
    if count not in {len(infos), len(infos) % 65536}:
        raise Refused(f"its directory lists {len(infos)} entries, of {count}; {_AGAIN}")
    for info in infos:
        _refuse_odd(info)
    _refuse_overlap(stream, infos, end=archive.start_dir)
    return [Entry(info.filename, info.is_dir(), info.file_size, _reader(archive, info)) for info in infos]


def _reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[int], bytes]:
    """Reads an entry piece by piece; its last piece checks the CRC."""
    opened: list[zipfile.ZipExtFile] = []

    def read(count: int) -> bytes:
        with _faults(f"entry '{shown(info.filename)}'"):
            if not opened:
                opened.append(archive.open(info))  # type: ignore[arg-type]
            data = opened[0].read(count)
            if not data:
                opened[0].close()
            return data

    return read


def _refuse_odd(info: zipfile.ZipInfo) -> None:
    """Refuse what is neither a plain file nor a folder."""
    said = f"entry '{shown(info.filename)}'"
    if not info.filename:
        raise Refused(f"an entry has no name; {_YOURSELF}")
    if "\0" in info.orig_filename:
        raise Refused(f"{said} has a control character in its name; {_YOURSELF}")
    if info.flag_bits & _ENCRYPTED:
        raise Refused(f"{said} is encrypted; {_YOURSELF}")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        what = "a symbolic link" if kind == stat.S_IFLNK else "a device or another special file"
        raise Refused(f"{said} is {what}; never followed; {_YOURSELF}")
    if info.compress_type not in _METHODS:
        raise Refused(f"{said} is compressed by method {info.compress_type}, which we do not read; {_YOURSELF}")
    if info.is_dir() and info.file_size:
        raise Refused(f"{said} is a folder with content of its own; {_AGAIN}")


def _refuse_overlap(stream: BinaryIO, infos: list[zipfile.ZipInfo], *, end: int) -> None:
    """Refuse entries that share bytes: a few can be made to expand to any size."""
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


def _count(stream: BinaryIO) -> int:
    """How many entries there are by the record at the end, modulo 65536 where it is of the old kind.

    Looked at before the directory is: one that would fill the memory is refused.
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
def _faults(what: str) -> Iterator[None]:
    """All the ways in which a zip fails, as one."""
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error
    ) as fault:  # fmt: skip
        raise Refused(f"{what} is damaged ({fault}); {_AGAIN}") from fault
    except OSError as fault:
        if fault.errno is not None:  # the disk's; bzip2 says its own without a number
            raise
        raise Refused(f"{what} is damaged ({fault}); {_AGAIN}") from fault
