"""TIFF files by hand, with GDAL's nodata tag, which no library here writes."""

from __future__ import annotations

import struct

import numpy as np

_KINDS = {"u": 1, "i": 2, "f": 3}
"""Of sample formats."""


def tiff(array: np.ndarray, *, nodata: str | None = None) -> bytes:
    """One gray page, one strip, little-endian; ``nodata`` is what tag 42113 says."""
    height, width = array.shape
    text = b"" if nodata is None else nodata.encode() + b"\0"
    fields = [(256, width), (257, height), (258, array.itemsize * 8), (259, 1), (262, 1), (273, 0), (277, 1)]
    fields += [(278, height), (279, array.nbytes), (339, _KINDS[array.dtype.kind])]
    after = 8 + 2 + 12 * (len(fields) + bool(text)) + 4  # header, count, entries, no next page
    start = after + len(text) + len(text) % 2
    entries = [struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in fields]
    if text:
        inline = struct.pack("<HHI", 42113, 2, len(text))
        entries.append(inline + (text.ljust(4, b"\0") if len(text) <= 4 else struct.pack("<I", after)))
    page = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    head = b"II*\0" + struct.pack("<I", 8) + page + (text if len(text) > 4 else b"")
    return head.ljust(start, b"\0") + array.astype(array.dtype.newbyteorder("<")).tobytes()
