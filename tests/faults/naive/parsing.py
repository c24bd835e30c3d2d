"""A reader that believes what the file says of itself."""

from __future__ import annotations

import struct


def parse(data: bytes) -> list[bytes]:
    """Records: a 16-bit length, then as many bytes, after the word ``REC``."""
    if data[:3] != b"REC":
        raise ValueError("no records")
    found, position = [], 3
    while position < len(data):
        (length,) = struct.unpack_from(">H", data, position)
        found.append(data[position + 2 : position + 2 + length])
        position += 2 + length
    return found
