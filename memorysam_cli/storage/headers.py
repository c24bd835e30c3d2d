"""What PNG, JPEG and TIFF files say about themselves, read by hand: no decoding, no memory.

Also whether a file is all there: OpenCV may return an image for one that was cut.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

_AGAIN = "get the file again"
_CONVERT = "convert it to 8-bit or 16-bit PNG"
_MAX_FIELD_BYTES = 16_000_000
_SHORT_BITS, _WORD_BITS, _FLOAT_BITS = 8, 16, 32


class Refused(Exception):
    """Why a file is refused and what to do; the caller adds its path."""


class Truncated(Refused):
    """A file that ends too early."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file promises, in the terms of the array that ``images.read`` returns."""

    format: str
    """``png``, ``jpeg``, ``tiff``, ``npy`` or ``npz``: the content's, whatever the suffix."""
    height: int
    width: int
    channels: int
    """1 is (H, W); 3 is RGB; 4 is RGBA; arrays have any number."""
    dtype: str
    has_palette: bool = False
    """The stored values are indices; reading gives their colours."""
    is_turned: bool = False
    """An EXIF mark asks viewers to turn the picture; we never do."""
    nodata: float | None = None
    """The value that GDAL's tag of a TIFF declares to be no measurement; may be NaN."""


def take(stream: BinaryIO, count: int) -> bytes:
    """Exactly ``count`` bytes.

    Raises:
        Truncated: the file ends before.
        Refused: nothing in a header is that long.
    """
    if count > _MAX_FIELD_BYTES:
        raise Refused(f"damaged: a field of {count} bytes in the header; {_AGAIN}")
    data = stream.read(count)
    if len(data) < count:
        size = stream.seek(0, io.SEEK_END)
        raise Truncated(f"truncated: it ends after {size:,} bytes, inside its header; {_AGAIN}")
    return data


def parse_image(stream: BinaryIO) -> Header | None:
    """Header of a PNG, JPEG or TIFF; None for other content.

    Args:
        stream: at its start, seekable.

    Raises:
        Refused: truncated, damaged, or a kind that we do not read.
    """
    start = stream.read(4)
    stream.seek(0)
    for signature, parse in _PARSERS.items():
        if start.startswith(signature):
            found = parse(stream)
            if found.height == 0 or found.width == 0:
                raise Refused(f"has no pixels ({found.height} x {found.width}); {_AGAIN}")
            return found
    return None


def check_complete(data: bytes, found: Header) -> None:
    """See that no byte at the end is missing.

    Args:
        data: the whole file.
        found: its header, from :func:`parse_image`.

    Raises:
        Refused: truncated; PNG also: damaged, by its own checksums.
    """
    {"png": _check_png, "jpeg": _check_jpeg, "tiff": _check_tiff}[found.format](data)


def _truncated(kind: str, data: bytes, reason: str) -> Truncated:
    return Truncated(f"truncated {kind}: it ends after {len(data):,} bytes, {reason}; {_AGAIN}")


def _parse_png(stream: BinaryIO) -> Header:
    start = take(stream, 33)
    length, kind, width, height, bits, color = struct.unpack(">8xI4sIIBB7x", start)
    if (length, kind) != (13, b"IHDR") or color not in {0, 2, 3, 4, 6}:
        raise Refused(f"damaged PNG: its header makes no sense; {_AGAIN}")
    if bits not in {8, 16} and color != 3:
        raise Refused(f"a {bits}-bit grey PNG; save it with 8 or 16 bits (decoders rescale such values)")
    extras = set()
    while kind != b"IDAT":
        length, kind = struct.unpack(">I4s", take(stream, 8))
        extras.add(kind)
        stream.seek(length + 4, io.SEEK_CUR)
    if b"acTL" in extras:
        raise Refused("an animated PNG; save one frame")
    has_alpha = color in {4, 6} or (b"tRNS" in extras and color != 0)
    channels = 4 if has_alpha else 1 if color == 0 else 3
    return Header("png", height, width, channels, "uint16" if bits == _WORD_BITS else "uint8", color == 3)


def _check_png(data: bytes) -> None:
    position, kind = 8, b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise _truncated("PNG", data, "before its end chunk")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise _truncated("PNG", data, f"{end + 4 - len(data):,} too early for a chunk")
        if zlib.crc32(memoryview(data)[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise Refused(f"damaged PNG: the checksum near byte {position:,} does not hold; {_AGAIN}")
        position = end + 4


_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SCAN_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not a stuffed byte, a fill byte or a restart
_START_OF_SCAN, _END_OF_IMAGE, _EXIF, _STANDALONE = 0xDA, 0xD9, 0xE1, {0x01, *range(0xD0, 0xD9)}


def _parse_jpeg(stream: BinaryIO) -> Header:
    take(stream, 2)
    is_turned = False
    while True:
        marker = _next_marker(stream)
        if marker in {_START_OF_SCAN, _END_OF_IMAGE}:
            raise Refused(f"damaged JPEG: no frame header before its pixels; {_AGAIN}")
        if marker in _STANDALONE:
            continue
        (length,) = struct.unpack(">H", take(stream, 2))
        if marker in _FRAMES:
            bits, height, width, channels = struct.unpack(">BHHB", take(stream, 6))
            if bits != _SHORT_BITS or channels not in {1, 3}:
                kind = "CMYK" if channels == 4 else f"{channels}-channel {bits}-bit"
                raise Refused(f"a {kind} JPEG; convert it to RGB or grey with 8 bits")
            return Header("jpeg", height, width, channels, "uint8", is_turned=is_turned)
        if marker == _EXIF:
            is_turned |= _is_turned(take(stream, max(0, length - 2)))
        else:
            stream.seek(max(0, length - 2), io.SEEK_CUR)


def _is_turned(exif: bytes) -> bool:
    """Whether a JPEG's EXIF data have an orientation other than upright."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if tiff == exif or order is None:
        return False
    try:
        (position,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, position)
        fields = [struct.unpack_from(f"{order}HHIH", tiff, position + 2 + 12 * index) for index in range(count)]
    except struct.error:  # a damaged remark; the pixels are told from it
        return False
    return any(tag == _ORIENTATION and value > 1 for tag, _, _, value in fields)


def _next_marker(stream: BinaryIO) -> int:
    if take(stream, 1) != b"\xff":
        raise Refused(f"damaged JPEG: a marker is missing near byte {stream.tell():,}; {_AGAIN}")
    marker = 0xFF
    while marker == 0xFF:
        marker = take(stream, 1)[0]
    return marker


def _check_jpeg(data: bytes) -> None:
    stream = io.BytesIO(data)
    stream.seek(2)
    try:
        while (marker := _next_marker(stream)) != _END_OF_IMAGE:
            if marker in _STANDALONE:
                continue
            (length,) = struct.unpack(">H", take(stream, 2))
            take(stream, max(0, length - 2))
            if marker == _START_OF_SCAN:
                found = _SCAN_MARKER.search(data, stream.tell())
                stream.seek(found.start() if found else len(data))
    except Truncated as error:
        raise _truncated("JPEG", data, "before its end marker") from error


_FIELD_SIZES = {1: 1, 3: 2, 4: 4}
_TEXT = 2
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 256, 257, 258, 262, 274, 277
_PLANAR, _SAMPLE_FORMAT, _NODATA = 284, 339, 42113
_SEGMENTS = {273: 279, 324: 325}
"""Offsets of strips or tiles -> their byte counts."""
_DTYPES = {(_SHORT_BITS, 1): "uint8", (_WORD_BITS, 1): "uint16", (_FLOAT_BITS, 3): "float32"}
_COLORS = {1: "grey", 2: "RGB", 6: "YCbCr"}


def _parse_tiff(stream: BinaryIO) -> Header:
    fields = _tiff_fields(stream)
    try:
        (height,), (width,) = fields[_HEIGHT], fields[_WIDTH]
        bits = fields.get(_BITS, (1,))
        (color,) = fields.get(_PHOTOMETRIC, (-1,))
        (channels,) = fields.get(_SAMPLES, (1,))
        (planar,) = fields.get(_PLANAR, (1,))
        formats = fields.get(_SAMPLE_FORMAT, (1,))
    except (KeyError, ValueError):
        raise Refused(f"damaged TIFF: its size fields are missing or wrong; {_AGAIN}") from None
    dtype = _DTYPES.get((bits[0], formats[0]))
    if dtype is None or len(set(bits)) != 1 or len(set(formats)) != 1:
        raise Refused(f"a TIFF of {bits[0]} bits (sample format {formats[0]}); {_CONVERT} or a float32 TIFF")
    if color not in _COLORS or channels not in {1, 3}:  # OpenCV multiplies the colours by alpha
        raise Refused(f"a TIFF with {channels} channels of colour kind {color}, not grey or RGB; {_CONVERT}")
    if planar != 1 and channels != 1:
        raise Refused(f"a TIFF with one plane per channel; {_CONVERT}")
    if fields.get(_ORIENTATION, (1,)) != (1,):
        raise Refused("a TIFF with a rotation mark; save it upright")
    return Header("tiff", height, width, channels, dtype, nodata=_nodata(fields.get(_NODATA)))


def _nodata(text: tuple[int, ...] | None) -> float | None:
    """The number that GDAL writes as text, such as ``-9999`` or ``nan``."""
    if text is None:
        return None
    written = bytes(text).split(b"\0")[0].decode("latin-1").strip()
    try:
        return float(written)
    except ValueError:
        raise Refused(
            f"a TIFF whose nodata tag (42113) says {written[:40]!r}, which is no number; set it anew, "
            "such as with gdal_edit.py -a_nodata -9999"
        ) from None


def _tiff_fields(stream: BinaryIO) -> dict[int, tuple[int, ...]]:
    """The first page's integer fields by tag."""
    start = take(stream, 8)
    order = "<" if start[:2] == b"II" else ">"
    _, position = struct.unpack(f"{order}2xHI", start)
    stream.seek(position)
    (count,) = struct.unpack(f"{order}H", take(stream, 2))
    entries = take(stream, 12 * count)
    if struct.unpack(f"{order}I", take(stream, 4))[0]:
        raise Refused("a TIFF with several pages; save one")
    return dict(_tiff_values(stream, entries, order=order))


def _tiff_values(stream: BinaryIO, entries: bytes, *, order: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    for tag, kind, length, value in struct.iter_unpack(f"{order}HHI4s", entries):
        size = length if (tag, kind) == (_NODATA, _TEXT) else _FIELD_SIZES.get(kind, 0) * length
        if size == 0:
            continue
        if size > len(value):
            stream.seek(struct.unpack(f"{order}I", value)[0])
        raw = value[:size] if size <= len(value) else take(stream, size)
        yield tag, struct.unpack(f"{order}{length}{'?BBHI'[kind]}", raw)


def _check_tiff(data: bytes) -> None:
    fields = _tiff_fields(io.BytesIO(data))
    for offsets, counts in _SEGMENTS.items():
        if offsets in fields:
            ends = [start + size for start, size in zip(fields[offsets], fields.get(counts, ()), strict=False)]
            if len(ends) != len(fields[offsets]):
                raise Refused(f"damaged TIFF: its tables of pixel data do not match; {_AGAIN}")
            if max(ends) > len(data):
                raise _truncated("TIFF", data, f"{max(ends) - len(data):,} too early for its pixels")
            return
    raise Refused(f"damaged TIFF: it names no pixel data; {_AGAIN}")


_PARSERS: dict[bytes, Callable[[BinaryIO], Header]] = {
    b"\x89PNG": _parse_png,
    b"\xff\xd8\xff": _parse_jpeg,
    b"II*\x00": _parse_tiff,
    b"MM\x00*": _parse_tiff,
}
