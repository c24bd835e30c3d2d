"""Headers of PNG, JPEG, TIFF, BMP and WebP files, read by our own code, without decoding and almost without memory.

It also checks whether a file is complete, because OpenCV may return an image for a truncated one.
"""

from __future__ import annotations

import html
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

_AGAIN = "get the file again"
_CONVERT = "save it as 8-bit or 16-bit PNG"
READ = "PNG, JPEG, TIFF, BMP, WebP or NumPy"
"""The supported formats, in words."""
_MAX_FIELD_BYTES = 16_000_000
_SHORT_BITS, _WORD_BITS, _FLOAT_BITS = 8, 16, 32


class Refused(Exception):
    """Why a file is refused and what to do; the caller adds its path."""


class Truncated(Refused):
    """A file that ends too early."""


@dataclass(frozen=True, slots=True)
class Header:
    """The properties of a file, for the array that ``images.read`` returns."""

    format: str
    """``png``, ``jpeg``, ``tiff``, ``bmp``, ``webp``, ``npy`` or ``npz``: by the content, not by the suffix."""
    height: int
    width: int
    channels: int
    """1 is (H, W); 3 is RGB; 4 is RGBA; arrays have any number."""
    dtype: str
    has_palette: bool = False
    """Whether the stored values are palette indices; reading returns their colors, unless the numbers are requested."""
    is_turned: bool = False
    """Whether an EXIF tag asks viewers to turn the picture; we never do."""
    nodata: float | None = None
    """The nodata value in GDAL's tag of a TIFF; may be NaN."""
    is_lossy: bool = False
    """Whether its compression changes values, so that a label's class numbers and colors are not exact."""
    needs: str = ""
    """Why OpenCV cannot decode a valid TIFF that GDAL can; empty if OpenCV can."""
    instead: str = ""
    """What to do with such a TIFF without GDAL."""
    bands: tuple[str, ...] = ()
    """For a TIFF: the description of each stored band, empty if it has none."""
    has_alpha: bool = False
    """For a TIFF: whether the last band is alpha."""
    has_mask: bool = False
    """For a TIFF: whether a page is a mask of valid pixels."""
    block_bytes: int = 0
    """For a TIFF: memory of its largest tile or strip, the smallest unit of decoding."""


def take(stream: BinaryIO, count: int) -> bytes:
    """Exactly ``count`` bytes.

    Raises:
        Truncated: the file ends before.
        Refused: no header has this length.
    """
    if count > _MAX_FIELD_BYTES:
        raise Refused(f"damaged: a field of {count} bytes in the header; {_AGAIN}")
    data = stream.read(count)
    if len(data) < count:
        size = stream.seek(0, io.SEEK_END)
        raise Truncated(f"truncated: it ends after {size:,} bytes, inside its header; {_AGAIN}")
    return data


def parse_image(stream: BinaryIO) -> Header | None:
    """Header of a picture; None for other content.

    Args:
        stream: at its start, seekable.

    Raises:
        Refused: truncated, damaged, or an unsupported kind.
    """
    start = stream.read(12)
    stream.seek(0)
    for signature, parse in _PARSERS.items():
        if signature.match(start):
            found = parse(stream)
            if found.height == 0 or found.width == 0:
                raise Refused(f"has no pixels ({found.height} x {found.width}); {_AGAIN}")
            return found
    return None


def check_complete(data: bytes, found: Header) -> None:
    """Check that no byte at the end is missing.

    Args:
        data: the whole file.
        found: its header, from :func:`parse_image`.

    Raises:
        Refused: truncated; for PNG also: damaged, by its own checksums.
    """
    {"png": _check_png, "jpeg": _check_jpeg, "tiff": _check_tiff, "bmp": _check_bmp, "webp": _check_webp}[found.format](
        data
    )


def with_numbers(data: bytes, found: Header) -> bytes:
    """The same picture with a palette in which the color of each index is the index itself.

    Decoders then return indices, also those for which the palette has no color.

    Args:
        data: the whole file.
        found: its header, from :func:`parse_image`, with a palette.
    """
    return {"png": _number_png, "tiff": _number_tiff, "bmp": _number_bmp}[found.format](data)


def _truncated(kind: str, data: bytes | int, reason: str) -> Truncated:
    length = data if isinstance(data, int) else len(data)
    return Truncated(f"truncated {kind}: it ends after {length:,} bytes, {reason}; {_AGAIN}")


def _parse_png(stream: BinaryIO) -> Header:
    start = take(stream, 33)
    length, kind, width, height, bits, color = struct.unpack(">8xI4sIIBB7x", start)
    if (length, kind) != (13, b"IHDR") or color not in {0, 2, 3, 4, 6}:
        raise Refused(f"damaged PNG: its header makes no sense; {_AGAIN}")
    if bits not in {8, 16} and color != 3:
        raise Refused(f"a {bits}-bit gray PNG; save it with 8 or 16 bits (decoders rescale such values)")
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


def _number_png(data: bytes) -> bytes:
    """A PNG with a palette of as many grays as its bits can count."""
    if data[24] > _SHORT_BITS:
        raise Refused(f"damaged PNG: indices of {data[24]} bits; {_AGAIN}")
    chunk = b"PLTE" + bytes(number for number in range(1 << data[24]) for _ in "RGB")
    palette = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    position, kind = 8, b""
    while kind != b"IDAT":
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"PLTE":
            return data[:position] + palette + data[position + 12 + length :]
        position += 12 + length
    raise Refused(f"damaged PNG: it has indices, but no palette; {_AGAIN}")


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
                raise Refused(f"a {kind} JPEG; convert it to RGB or gray with 8 bits")
            return Header("jpeg", height, width, channels, "uint8", is_turned=is_turned, is_lossy=True)
        if marker == _EXIF:
            is_turned |= _is_turned(take(stream, max(0, length - 2)))
        else:
            stream.seek(max(0, length - 2), io.SEEK_CUR)


def _is_turned(exif: bytes) -> bool:
    """Whether EXIF data have an orientation other than upright."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:  # such as XMP, which JPEG has under the same mark
        return False
    try:
        (position,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, position)
        fields = [struct.unpack_from(f"{order}HHIH", tiff, position + 2 + 12 * index) for index in range(count)]
    except struct.error:  # damaged metadata; the pixels may be fine
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


_FIELD_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
_FIELD_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}
_TEXT = 2
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 256, 257, 258, 259, 262, 274, 277
_PLANAR, _SAMPLE_FORMAT, _TILE_WIDTH, _TILE_HEIGHT, _NODATA = 284, 339, 322, 323, 42113
_SUBFILE, _STRIP_ROWS, _EXTRA_SAMPLES, _METADATA = 254, 278, 338, 42112
_TEXTS = {_NODATA, _METADATA}
"""GDAL's own text fields."""
_MAX_METADATA = 1_000_000
_BESIDE, _MASK = 1 | 4, 4
"""Bits of a page that is not a separate picture, but a smaller copy of the first one or its mask."""
_MAX_PAGES = 64
_ALPHAS = {1, 2}
_DESCRIPTION = re.compile(rb'<Item name="DESCRIPTION" sample="(\d+)" role="description">(.*?)</Item>', re.DOTALL)
"""A band's description in the XML of GDAL's metadata; bands are counted from 0 there."""
_LARGEST_TILE = 4096
"""Pixels by which a tile's side may exceed the picture's."""
_SEGMENTS = {273: 279, 324: 325}
"""Offsets of strips or tiles -> their byte counts."""
_TABLES = {*_SEGMENTS, *_SEGMENTS.values()}
_TIFF_FIELDS = {
    *_TABLES, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR, _SAMPLE_FORMAT,
    _TILE_WIDTH, _TILE_HEIGHT, _NODATA, _SUBFILE, _STRIP_ROWS, _EXTRA_SAMPLES, _METADATA,
}  # fmt: skip
_MAX_VALUES = 1024
"""Largest size of a field that is not a table of pixel data."""
_UNSIGNED, _SIGNED, _FLOATING = 1, 2, 3
_DTYPES = {
    **{(bits, _UNSIGNED): f"uint{bits}" for bits in (_SHORT_BITS, _WORD_BITS, _FLOAT_BITS)},
    **{(bits, _SIGNED): f"int{bits}" for bits in (_SHORT_BITS, _WORD_BITS, _FLOAT_BITS)},
    (_FLOAT_BITS, _FLOATING): "float32",
}
_DTYPES_OF_GDAL = {
    **{(bits, _UNSIGNED): "uint8" for bits in (1, 2, 4)},
    (64, _UNSIGNED): "uint64", (64, _SIGNED): "int64", (64, _FLOATING): "float64",
}  # fmt: skip
_COLORS = {1: "gray", 2: "RGB", 3: "a color table", 6: "YCbCr"}
_GREY, _COLOR_TABLE = 1, 3
_JPEG_IN_TIFF = 7
_COMPRESSIONS = {1, 5, _JPEG_IN_TIFF, 8, 32773, 32946}
"""None, LZW, JPEG, deflate, PackBits, deflate: the compressions of OpenCV's libtiff. For some others (JPEG XL) it
returns wrong pixels instead of an error."""
_COMPRESSIONS_OF_GDAL = {
    **{2: "CCITT", 3: "CCITT", 4: "CCITT", 34887: "LERC", 34925: "LZMA"},
    **{50000: "ZSTD", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"},
}
_OTHER_COMPRESSIONS = {6: "old JPEG", 34712: "JPEG 2000"}
_WEBP_IN_TIFF = 50001
_DEFLATED = "save it with deflate, LZW or no compression"


def _parse_tiff(stream: BinaryIO) -> Header:
    fields = _tiff_fields(stream)
    try:
        (height,), (width,) = fields[_HEIGHT], fields[_WIDTH]
        bits = fields.get(_BITS, (1,))
        (compression,) = fields.get(_COMPRESSION, (1,))
        (color,) = fields.get(_PHOTOMETRIC, (-1,))
        (channels,) = fields.get(_SAMPLES, (1,))
        (planar,) = fields.get(_PLANAR, (1,))
        formats = fields.get(_SAMPLE_FORMAT, (1,))
    except (KeyError, ValueError):
        raise Refused(f"damaged TIFF: its size fields are missing or wrong; {_AGAIN}") from None
    kind = (bits[0], formats[0])
    dtype = _DTYPES.get(kind) or _DTYPES_OF_GDAL.get(kind)
    if dtype is None or len(set(bits)) != 1 or len(set(formats)) != 1:
        raise Refused(f"a TIFF of {bits[0]} bits (sample format {formats[0]}); {_CONVERT} or a float32 TIFF")
    if compression not in _COMPRESSIONS | _COMPRESSIONS_OF_GDAL.keys():
        name = _OTHER_COMPRESSIONS.get(compression, f"method {compression}")
        raise Refused(f"a TIFF compressed with {name}, which no decoder here has; {_DEFLATED}")
    has_palette = color == _COLOR_TABLE
    if color not in {*_COLORS, -1} or (has_palette and (channels, dtype) != (1, "uint8")):
        raise Refused(f"a TIFF of color kind {color} ({channels} x {dtype}), not gray or RGB; {_CONVERT}")
    tiles = {_TILE_WIDTH: width, _TILE_HEIGHT: height}
    if any(fields.get(tag, (1,))[0] > max(_LARGEST_TILE, 2 * side) for tag, side in tiles.items()):
        raise Refused(f"damaged TIFF: its tiles are larger than the picture; {_AGAIN}")
    if fields.get(_ORIENTATION, (1,)) != (1,):
        raise Refused("a TIFF with a rotation mark; save it upright")
    bands = _descriptions(fields.get(_METADATA), channels)
    has_pages, has_mask = _other_pages(stream)
    needs, instead = _needs_gdal(kind, channels, color=color, compression=compression, planar=planar)
    if has_pages and not needs:
        needs, instead = "a TIFF with overviews or a mask", "save it without it them"
    side = fields.get(_TILE_WIDTH, (width,))[0]
    rows = fields[_TILE_HEIGHT][0] if _TILE_HEIGHT in fields else min(height, fields.get(_STRIP_ROWS, (height,))[0])
    together = channels if planar == 1 else 1
    return Header(
        "tiff", height, width, 3 if has_palette else channels, dtype, has_palette,
        is_lossy=compression in {_JPEG_IN_TIFF, _WEBP_IN_TIFF}, nodata=_nodata(fields.get(_NODATA)),
        needs=needs, instead=instead, bands=bands, has_mask=has_mask,
        has_alpha=fields.get(_EXTRA_SAMPLES, (0,))[-1] in _ALPHAS,
        block_bytes=side * rows * together * max(1, bits[0] // 8),
    )  # fmt: skip


def _needs_gdal(
    kind: tuple[int, int], channels: int, *, color: int, compression: int, planar: int
) -> tuple[str, str]:  # fmt: skip
    """Why OpenCV cannot decode a TIFF that GDAL can, and what to do without GDAL; empty texts if it can."""
    if compression in _COMPRESSIONS_OF_GDAL:
        name = _COMPRESSIONS_OF_GDAL[compression]
        return f"a TIFF compressed with {name}, which OpenCV's decoder lacks", _DEFLATED
    if kind not in _DTYPES:
        return f"a TIFF of {kind[0]} bits (sample format {kind[1]})", f"{_CONVERT} or a float32 TIFF"
    if channels not in {1, 3} or (channels == 3 and color == 1 and _DTYPES[kind] != "float32"):
        # OpenCV drops bands, or multiplies by the fourth.
        return f"a TIFF of {channels} bands, but OpenCV reads only gray and RGB", _as_array(channels)
    if planar != 1 and channels != 1:
        return "a TIFF with one plane per channel", f"save it interleaved by pixel, or {_as_array(channels)}"
    if color == -1:
        return "a TIFF without the colors of its numbers", _CONVERT
    return "", ""


def _other_pages(stream: BinaryIO) -> tuple[bool, bool]:
    """Whether smaller copies or masks follow the first page, and whether one is the mask of the first.

    Raises:
        Refused: another picture follows.
    """
    stream.seek(0)
    order, place, _, _, position = _tiff_directory(stream)
    pages, has_mask = 0, False
    while position:
        pages += 1
        if pages > _MAX_PAGES:
            raise Refused(f"damaged TIFF: more than {_MAX_PAGES} pages; {_AGAIN}")
        stream.seek(min(position, _LAST_POSITION))
        order, place, _, entries, position = _tiff_page(stream, order, place)
        found = dict(_tiff_values(stream, entries, order=order, place=place))
        kind = found.get(_SUBFILE, (0,))[0]
        if not kind & _BESIDE:
            raise Refused("a TIFF with several pages; save one")
        has_mask |= kind == _MASK
    return pages > 0, has_mask


def _descriptions(text: tuple[int, ...] | None, count: int) -> tuple[str, ...]:
    """Descriptions of the bands in GDAL's metadata, which escape these texts twice."""
    found = {int(band): name for band, name in _DESCRIPTION.findall(bytes(text or ()))}
    return tuple(html.unescape(html.unescape(found.get(band, b"").decode(errors="replace"))) for band in range(count))


def _nodata(text: tuple[int, ...] | None) -> float | None:
    """A number that GDAL writes as text, such as ``-9999`` or ``nan``."""
    if text is None:
        return None
    written = bytes(text).split(b"\0")[0].decode("latin-1").strip()
    try:
        return float(written)
    except ValueError:
        raise Refused(
            f"a TIFF whose nodata tag (42113) says {written[:40]!r}, which is not a number; set it again, "
            "such as with gdal_edit.py -a_nodata -9999"
        ) from None


def _as_array(count: int) -> str:
    """What to do with bands that no decoder supports."""
    numbers = ",".join(str(min(number, count - 1)) for number in range(3))
    return f"save its array (H, W, {count}) as .npy, and name three bands, such as --channels NAME={numbers}"


def _tiff_fields(stream: BinaryIO) -> dict[int, tuple[int, ...]]:
    """The first page's integer fields by tag."""
    order, place, _, entries, _ = _tiff_directory(stream)
    return dict(_tiff_values(stream, entries, order=order, place=place))


def _tiff_directory(stream: BinaryIO) -> tuple[str, str, int, bytes, int]:
    """Byte order, format of a position, start of the first page's fields, the fields, and place of the next page; also
    for a BigTIFF with 64-bit positions."""
    start = take(stream, 8)
    order = "<" if start[:2] == b"II" else ">"
    is_big = struct.unpack(f"{order}2xH4x", start)[0] == _BIG
    (position,) = struct.unpack(f"{order}Q", take(stream, 8)) if is_big else struct.unpack(f"{order}4xI", start)
    if position > _LAST_POSITION:
        raise Refused(f"damaged TIFF: its fields lie at byte {position:,}; {_AGAIN}")
    stream.seek(position)
    return _tiff_page(stream, order, "Q" if is_big else "I")


def _tiff_page(stream: BinaryIO, order: str, place: str) -> tuple[str, str, int, bytes, int]:
    """As :func:`_tiff_directory`, for the page that begins here."""
    number, size = ("Q", 20) if place == "Q" else ("H", 12)  # code of the number of fields, bytes of a field
    position = stream.tell()
    (count,) = struct.unpack(f"{order}{number}", take(stream, struct.calcsize(number)))
    entries = take(stream, size * count)
    (following,) = struct.unpack(f"{order}{place}", take(stream, struct.calcsize(place)))
    return order, place, position + struct.calcsize(number), entries, following


def _number_tiff(data: bytes) -> bytes:
    """A TIFF with gray instead of the color table."""
    order, place, position, entries, _ = _tiff_directory(io.BytesIO(data))
    numbered, inside = bytearray(data), struct.calcsize(place)
    for start in range(0, len(entries), 4 + 2 * inside):
        tag, kind = struct.unpack_from(f"{order}HH", entries, start)
        if tag == _PHOTOMETRIC and kind in _FIELD_CODES:
            struct.pack_into(f"{order}{_FIELD_CODES[kind]}", numbered, position + start + 4 + inside, _GREY)
    return bytes(numbered)


_BIG = 43
_LAST_POSITION = (1 << 63) - 1
"""Largest number of fields."""


def _tiff_values(stream: BinaryIO, entries: bytes, *, order: str, place: str) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The fields that we need; a file may have 65,535 others that all point to the same large data."""
    inside = struct.calcsize(place)
    for tag, kind, length, value in struct.iter_unpack(f"{order}HH{place}{inside}s", entries):
        size = length if tag in _TEXTS and kind == _TEXT else _FIELD_SIZES.get(kind, 0) * length
        if size == 0 or tag not in _TIFF_FIELDS:
            continue
        if tag not in _TABLES and length > (_MAX_METADATA if tag == _METADATA else _MAX_VALUES):
            raise Refused(f"damaged TIFF: {length} values in field {tag}; {_AGAIN}")
        if size > inside:
            (position,) = struct.unpack(f"{order}{place}", value)
            stream.seek(min(position, _LAST_POSITION))
        raw = value[:size] if size <= inside else take(stream, size)
        yield tag, struct.unpack(f"{order}{length}{_FIELD_CODES[kind]}", raw)


def _check_tiff(data: bytes) -> None:
    check_raster(io.BytesIO(data))


def check_raster(stream: BinaryIO) -> None:
    """As :func:`check_complete`, for a TIFF that is not in memory.

    Args:
        stream: the file, at its start, seekable.
    """
    fields = _tiff_fields(stream)
    length = stream.seek(0, io.SEEK_END)
    for offsets, counts in _SEGMENTS.items():
        if offsets in fields:
            ends = [start + size for start, size in zip(fields[offsets], fields.get(counts, ()), strict=False)]
            if len(ends) != len(fields[offsets]):
                raise Refused(f"damaged TIFF: its tables of pixel data do not match; {_AGAIN}")
            if max(ends) > length:
                raise _truncated("TIFF", length, f"{max(ends) - length:,} too early for its pixels")
            return
    raise Refused(f"damaged TIFF: it names no pixel data; {_AGAIN}")


_BMP_HEADERS = {40, 52, 56, 64, 108, 124}
_BMP_BITS = {1, 4, 8, 24, 32}
_PLAIN, _BITFIELDS = 0, 3
_MASKS, _ALPHA_MASK = (0xFF0000, 0xFF00, 0xFF), 0xFF000000
_WITH_ALPHA_MASK = 56
"""Size of the header from which it has an alpha mask."""


def _parse_bmp(stream: BinaryIO) -> Header:
    _, size, width, height, bits, compression, used = _bmp_fields(stream)
    if size not in _BMP_HEADERS or width <= 0:
        raise Refused(f"damaged BMP, or one of a rare form: its header makes no sense; {_AGAIN}, or {_CONVERT}")
    if bits not in _BMP_BITS or compression not in ({_PLAIN, _BITFIELDS} if bits == _FLOAT_BITS else {_PLAIN}):
        raise Refused(f"a BMP of {bits} bits (compression {compression}); {_CONVERT}")
    if bits > _SHORT_BITS:
        *colors, alpha = struct.unpack("<4I", take(stream, 16)) if compression == _BITFIELDS else (*_MASKS, 0)
        alpha = alpha if size >= _WITH_ALPHA_MASK else 0
        if tuple(colors) != _MASKS or alpha not in {0, _ALPHA_MASK}:
            raise Refused(f"a BMP whose colors are stored in a rare order; {_CONVERT}")
        return Header("bmp", abs(height), width, 4 if alpha else 3, "uint8")
    stream.seek(14 + size)
    table = take(stream, 4 * min(used or 1 << bits, 1 << bits))
    # As OpenCV: the stored numbers become their colors, and gray where all colors are gray.
    is_gray = all(table[at] == table[at + 1] == table[at + 2] for at in range(0, len(table), 4))
    is_number = is_gray and list(table[::4]) == list(range(len(table) // 4))
    return Header("bmp", abs(height), width, 1 if is_gray else 3, "uint8", has_palette=not is_number)


def _bmp_fields(stream: BinaryIO) -> tuple[int, ...]:
    """Offset of the pixels, size of the header, width, height (negative: from the top), bits, compression, colors."""
    return struct.unpack("<10xIIii2xHI12xI4x", take(stream, 54))


def _number_bmp(data: bytes) -> bytes:
    """A BMP with a palette of as many grays as its bits can count."""
    offset, size, _, _, bits, *_ = _bmp_fields(io.BytesIO(data))
    table = b"".join(bytes((number, number, number, 0)) for number in range(1 << bits))
    start = 14 + size
    header = data[:10] + struct.pack("<I", start + len(table)) + data[14:46] + struct.pack("<I", 0) + data[50:start]
    return header + table + data[offset:]


def _check_bmp(data: bytes) -> None:
    offset, _, width, height, bits, *_ = _bmp_fields(io.BytesIO(data))
    end = offset + (width * bits + 31) // 32 * 4 * abs(height)  # rows end at multiples of four bytes
    if end > len(data):
        raise _truncated("BMP", data, f"{end - len(data):,} too early for its pixels")


_WEBP_ALPHA, _WEBP_ANIMATED, _WEBP_CHUNKS = 0x10, 0x02, 100


def _parse_webp(stream: BinaryIO) -> Header:
    take(stream, 12)
    extended, picture, is_turned = b"", (b"", b""), False
    for kind, length in islice(_webp_chunks(stream), _WEBP_CHUNKS):
        content = take(stream, min(length, 10 if kind != b"EXIF" else length))
        if kind == b"VP8X":
            extended = content
        elif kind in {b"VP8 ", b"VP8L"}:
            picture = picture if picture[0] else (kind, content)
        elif kind == b"EXIF":
            is_turned = _is_turned(content)
    kind, content = picture
    if extended and extended[0] & _WEBP_ANIMATED:
        raise Refused("an animated WebP; save one frame")
    is_marked = content[3:6] == b"\x9d\x01\x2a" if kind == b"VP8 " else content[:1] == b"\x2f"
    if len(content) < 10 or not is_marked:
        raise Refused(f"damaged WebP: its header makes no sense; {_AGAIN}")
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", content, 1)
        width, height, has_alpha = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, bool(packed >> 28 & 1)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 6))
        has_alpha = bool(extended and extended[0] & _WEBP_ALPHA)
    channels = 4 if has_alpha else 3
    return Header("webp", height, width, channels, "uint8", is_turned=is_turned, is_lossy=kind == b"VP8 ")


def _webp_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk, with the stream at its content; ends at the end of the file."""
    while len(start := stream.read(8)) == 8:
        position = stream.tell()
        kind, length = struct.unpack("<4sI", start)
        yield kind, length
        stream.seek(position + length + length % 2)


def _check_webp(data: bytes) -> None:
    end = struct.unpack_from("<I", data, 4)[0] + 8
    if end > len(data):
        raise _truncated("WebP", data, f"{end - len(data):,} too early")


_PARSERS: dict[re.Pattern[bytes], Callable[[BinaryIO], Header]] = {
    re.compile(signature, re.DOTALL): parse
    for signature, parse in {
        rb"\x89PNG": _parse_png,
        rb"\xff\xd8\xff": _parse_jpeg,
        rb"II[*+]\x00|MM\x00[*+]": _parse_tiff,
        rb"BM": _parse_bmp,
        rb"RIFF....WEBP": _parse_webp,
    }.items()
}

_OTHERS = {
    re.compile(signature, re.DOTALL): name
    for signature, name in {
        rb"GIF8": "a GIF",
        rb"\x00\x00\x00\x0cjP|\xff\x4f\xff\x51": "a JPEG 2000",
        rb"\x00\x00\x00\x0cJXL|\xff\x0a": "a JPEG XL",
        rb"....ftyp": "a HEIC or AVIF picture, or a video",
        rb"\x76\x2f\x31\x01": "an OpenEXR picture",
        rb"P[1-7]\s|P[fF]\n": "a PNM or PFM picture",
        rb"#\?RAD": "a Radiance picture",
        rb"\x89HDF|MATLAB": "an HDF5 or MATLAB file",
        rb"SIMPLE": "a FITS file",
        rb"\x1f\x8b": "a gzip file",
        rb"%PDF": "a PDF",
    }.items()
}
_LFS = b"version http"


def other_format(start: bytes) -> Refused:
    """The error for a file of another format, from its first 16 bytes: what it is, and what to do."""
    if start.startswith(_LFS):
        return Refused("a pointer of Git LFS, not the file itself; fetch it with: git lfs pull")
    name = next((name for signature, name in _OTHERS.items() if signature.match(start)), None)
    what = f"is {name}, not" if name else "not"
    seen = "" if name else f" (starts with {start!r})"
    return Refused(f"{what} {READ}{seen}; convert it{' to PNG' if name else ' or get the file again'}")
