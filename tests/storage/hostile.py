"""Archives that must be refused, and good ones; built in memory, byte by byte where no tool would write them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

FILES: Mapping[str, bytes] = {"a/x.png": b"pixels of x" * 50, "a/y.png": b"of y", "b/c/z.txt": b"", "top.txt": b"top"}


def make_zip(
    files: Mapping[str, bytes] | list[tuple[str, bytes]] = FILES, *, method: int = zipfile.ZIP_DEFLATED, **fields: Any
) -> bytes:
    """A zip; ``fields`` are set on every entry."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            info = zipfile.ZipInfo(name)
            # Set afterwards: the constructor cuts names at NUL.
            info.filename = name
            info.compress_type = method
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, content)
    return stream.getvalue()


def make_tar(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A plain tar; a member is a header alone, or a name and its content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for member in members or tuple(FILES.items()):
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(bytes(member.size)))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return stream.getvalue()


def special(name: str, kind: bytes, *, target: str = "", size: int = 0, **headers: str) -> tarfile.TarInfo:
    """A tar header of any type."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, target, size, headers
    return info


def patched(data: bytes, old: bytes, new: bytes, *, count: int = -1) -> bytes:
    """The same bytes with one spelling for another of its length."""
    assert len(old) == len(new) and old in data
    return data.replace(old, new, count)


def flipped(data: bytes, at: int) -> bytes:
    """One bit is wrong."""
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def declared(size: int) -> bytes:
    """A zip whose entry says to be so large."""
    data = make_zip({"a.bin": b"tiny"}, method=zipfile.ZIP_STORED)
    central = data.index(b"PK\x01\x02")
    return data[: central + 24] + struct.pack("<I", size) + data[central + 28 :]


def overlapping(entries: int = 200) -> bytes:
    """A zip whose entries all point at the same bytes (a few megabytes become gigabytes)."""
    body = make_zip({"a.bin": bytes(2_000_000)})
    end = body.index(b"PK\x05\x06")
    central = body.index(b"PK\x01\x02")
    record = body[central:end]
    records = b"".join(record.replace(b"a.bin", f"{number:05d}".encode()) for number in range(entries))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, entries, entries, len(records), central, 0)
    return body[:central] + records + tail


def swallowed() -> bytes:
    """A zip whose first entry claims all others as its comment."""
    data = make_zip()
    first, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    second = data.index(b"PK\x01\x02", first + 4)
    return data[: first + 32] + struct.pack("<H", end - second) + data[first + 34 :]


def wrong_crc() -> bytes:
    """A zip of 1,897 stored entries, the 412th of them with one bit wrong."""
    files = {f"img/{number:06d}.png": f"content {number:06d}".encode() for number in range(1897)}
    data = make_zip(files, method=zipfile.ZIP_STORED)
    return flipped(data, data.index(b"content 000412") + 3)


def with_flag(bit: int) -> bytes:
    """A zip whose first entry has a flag set, in both of its headers."""
    data = bytearray(make_zip())
    data[6] |= bit
    data[data.index(b"PK\x01\x02") + 8] |= bit
    return bytes(data)


def with_method(number: int) -> bytes:
    """A zip whose entries claim a method of compression."""
    data = bytearray(make_zip({"a.bin": b"tiny"}, method=zipfile.ZIP_STORED))
    data[8] = number
    data[data.index(b"PK\x01\x02") + 10] = number
    return bytes(data)


def huge_header() -> bytes:
    """A gzipped tar whose pax header claims 900 MB."""
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"%011o\0" % 900_000_000
    header[156:157] = b"x"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + bytes(4_000_000))


def bad_gzip_sum() -> bytes:
    """A gzipped tar whose checksum at the end is wrong."""
    data = gzip.compress(make_tar())
    return data[:-8] + struct.pack("<I", zlib.crc32(b"other")) + data[-4:]


ZEROS = bytes(20_000_000)
SYMLINK = {"external_attr": 0o120777 << 16, "create_system": 3}
DEVICE = {"external_attr": 0o020666 << 16, "create_system": 3}

HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "parent": ("x.zip", lambda: make_zip({"../../evil.png": b"e"}), "'../../evil.png' leaves the archive root"),
    "parent inside": ("x.zip", lambda: make_zip({"a/../../evil": b"e"}), "'a/../../evil' leaves the archive root"),
    "absolute": ("x.zip", lambda: make_zip({"/etc/x": b"e"}), "'/etc/x' leaves the archive root"),
    "drive": ("x.zip", lambda: make_zip({"C:\\x": b"e"}), "leaves the archive root"),
    "drive, forward": ("x.zip", lambda: make_zip({"C:/x": b"e"}), "leaves the archive root"),
    "backslash parent": ("x.zip", lambda: make_zip({"..\\x": b"e"}), "leaves the archive root"),
    "backslash": ("x.zip", lambda: make_zip({"a\\x.png": b"e"}), "has a backslash"),
    "NUL": ("x.zip", lambda: patched(make_zip({"a_x.png": b"e"}), b"a_x.png", b"a\0x.png"), "control character"),
    "newline": ("x.zip", lambda: make_zip({"a\nb": b"e"}), "'a\\nb' has a control character"),
    "long name": ("x.zip", lambda: make_zip({"n" * 256: b"e"}), "too long"),
    "long path": ("x.zip", lambda: make_zip({"a/" * 1200 + "x": b"e"}), "too long"),
    "same file": ("x.zip", lambda: make_zip({"a/x.png": b"1", "./a/x.png": b"2"}), "would become the same file"),
    "double slash": ("x.zip", lambda: make_zip({"a/x.png": b"1", "a//x.png": b"2"}), "would become the same file"),
    "case": ("x.zip", lambda: make_zip({"A.png": b"1", "a.png": b"2"}), "'A.png' and 'a.png' would become the same"),
    "unicode form": ("x.zip", lambda: make_zip({"\u00e9": b"1", "e\u0301": b"2"}), "would become the same file"),
    "file and folder": ("x.zip", lambda: make_zip([("a", b"1"), ("a/b", b"2")]), "would become the same file"),
    "folder and file": ("x.zip", lambda: make_zip([("a/b", b"1"), ("a", b"2")]), "would become the same file"),
    "our marker": ("x.zip", lambda: make_zip({".memorysam-archive.json": b"{}"}), "not a name for a file"),
    "symlink": ("x.zip", lambda: make_zip({"link": b"/etc/passwd"}, **SYMLINK), "'link' is a symbolic link"),
    "device": ("x.zip", lambda: make_zip({"null": b""}, **DEVICE), "special file"),
    "overlap": ("x.zip", overlapping, "overlap"),
    "bomb": ("x.zip", lambda: make_zip({"zeros": ZEROS}), "expands to 20.0 MB or more"),
    "declared": ("x.zip", lambda: declared(4_000_000_000), "expands to 4.0 GB or more, the limit is"),
    "short": ("x.zip", lambda: declared(5), "holds 4 of 5 bytes"),
    "long": ("x.zip", lambda: declared(3), "is damaged"),
    "CRC": ("x.zip", wrong_crc, "entry 'img/000412.png' is damaged (Bad CRC-32"),
    "truncated": ("x.zip", lambda: make_zip()[:-60], "truncated or damaged zip"),
    "truncated much": ("x.zip", lambda: make_zip()[:40], "truncated or damaged zip"),
    "web page": ("x.zip", lambda: b"<!doctype html><html>Sign in</html>", "starts with b'<!doctype html><'"),
    "empty file": ("x.zip", lambda: b"", "empty (0 bytes)"),
    "swallowed entries": ("x.zip", swallowed, "its directory lists 1 entries, of 4"),
    "no entry": ("x.zip", lambda: make_zip({}), "holds no file"),
    "encrypted": ("x.zip", lambda: with_flag(1), "is encrypted; unpack it yourself"),
    "deflate64": ("x.zip", lambda: with_method(9), "method 9"),
    "lzma": ("x.zip", lambda: make_zip(method=zipfile.ZIP_LZMA), "method 14"),
    "7z": ("x.zip", lambda: b"7z\xbc\xaf\x27\x1c" + bytes(600), "a 7z archive"),
    "rar": ("x.zip", lambda: b"Rar!\x1a\x07\x01\x00" + bytes(600), "a RAR archive"),
    "tar parent": ("x.tar", lambda: make_tar(("../evil.png", b"e")), "'../evil.png' leaves the archive root"),
    "tar absolute": ("x.tar", lambda: make_tar(("/etc/x", b"e")), "leaves the archive root"),
    "tar same": ("x.tar", lambda: make_tar(("x.png", b"1"), ("./x.png", b"2")), "would become the same file"),
    "tar case": ("x.tar", lambda: make_tar(("X.png", b"1"), ("x.png", b"2")), "--allow-case"),
    "tar symlink": ("x.tar", lambda: make_tar(special("l", tarfile.SYMTYPE, target="/etc")), "is a symbolic link"),
    "tar hard link": ("x.tar", lambda: make_tar(special("l", tarfile.LNKTYPE, target="a")), "is a hard link"),
    "tar device": ("x.tar", lambda: make_tar(special("null", tarfile.CHRTYPE)), "device or another special file"),
    "tar fifo": ("x.tar", lambda: make_tar(special("f", tarfile.FIFOTYPE)), "device or another special file"),
    "tar GNU sparse": ("x.tar", lambda: make_tar(special("s", tarfile.GNUTYPE_SPARSE)), "special file"),
    "tar pax sparse": (
        "x.tar", lambda: make_tar(special("s", tarfile.REGTYPE, **{"GNU.sparse.major": "1"})), "file with holes",
    ),
    "tar long name": ("x.tar", lambda: make_tar(("n" * 300, b"e")), "too long"),
    "tar truncated": ("x.tar", lambda: make_tar(("a", bytes(3000)))[:1024], "truncated tar"),
    "tar without end": ("x.tar", lambda: make_tar(("a", bytes(512)))[:1024], "without an end mark"),
    "tar header": ("x.tar", lambda: flipped(make_tar(("a", b"1"), ("b", b"2")), 1030), "damaged tar after 'a'"),
    "tar bomb": ("x.tar.gz", lambda: gzip.compress(make_tar(("zeros", ZEROS))), "expands to"),
    "tar pax bomb": ("x.tar.gz", huge_header, "900,000,000 bytes of header"),
    "gzip truncated": ("x.tgz", lambda: gzip.compress(make_tar())[:-30], "truncated or damaged"),
    "gzip sum": ("x.tar.gz", bad_gzip_sum, "truncated or damaged"),
    "gzip of no tar": ("x.tar.gz", lambda: gzip.compress(b"hello" * 500), "no tar inside"),
    "xz truncated": ("x.tar.xz", lambda: lzma.compress(make_tar())[:-30], "truncated or damaged"),
    "xz damaged": ("x.tar.xz", lambda: flipped(lzma.compress(make_tar()), 60), "truncated or damaged"),
    "bzip2 damaged": ("x.tar.bz2", lambda: flipped(bz2.compress(make_tar()), 60), "damaged"),
}  # fmt: skip
"""What is wrong → file name, content, a part of the message."""

GOOD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "zip": ("DELIVER.zip", make_zip),
    "zip, stored": ("DELIVER.zip", lambda: make_zip(method=zipfile.ZIP_STORED)),
    "zip, bzip2": ("DELIVER.ZIP", lambda: make_zip(method=zipfile.ZIP_BZIP2)),
    "zip with folders": ("DELIVER.zip", lambda: make_zip([("a/", b""), ("b/c/", b""), *FILES.items()])),
    "zip with dots": ("DELIVER.zip", lambda: make_zip({f"./{name}": content for name, content in FILES.items()})),
    "tar": ("DELIVER.tar", make_tar),
    "tar, GNU": ("DELIVER.tar", lambda: make_tar(form=tarfile.GNU_FORMAT)),
    "tar, ustar": ("DELIVER.tar", lambda: make_tar(form=tarfile.USTAR_FORMAT)),
    "tar with folders": (
        "DELIVER.tar",
        lambda: make_tar(special("./", tarfile.DIRTYPE), special("a", tarfile.DIRTYPE), *FILES.items()),
    ),
    "tar.gz": ("DELIVER.tar.gz", lambda: gzip.compress(make_tar())),
    "tar.gz, two streams": ("DELIVER.tgz", lambda: _in_two(gzip.compress)),
    "tar.bz2": ("DELIVER.tar.bz2", lambda: bz2.compress(make_tar())),
    "tar.xz": ("DELIVER.tar.xz", lambda: lzma.compress(make_tar())),
    "tar named zip": ("DELIVER.zip", make_tar),
}
"""Form → file name, and the content: FILES."""


def _in_two(compress: Callable[[bytes], bytes]) -> bytes:
    """A tar compressed as two members, as parallel compressors do."""
    data = make_tar()
    return compress(data[:1000]) + compress(data[1000:])
