"""TIFF files of forms that no library of the tests writes."""

from __future__ import annotations

import struct
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


def tiff(array: Array, *, is_big: bool = False, order: str = "<", compression: int = 1) -> bytes:
    """A TIFF of one strip, written by hand: (H, W) or (H, W, C), gray whatever C is; the bytes are never compressed."""
    height, width, channels = (*array.shape, 1)[:3]
    data = array.astype(array.dtype.newbyteorder(order)).tobytes()
    start = 16 if is_big else 8
    code, number, head = ("Q", "Q", "HHQ") if is_big else ("I", "H", "HHI")
    bits = {"u": 1, "i": 2, "f": 3}
    table = start + len(data)
    fields = {
        256: width, 257: height, 258: [array.itemsize * 8] * channels, 259: compression, 262: 1, 273: start,
        277: channels, 278: height, 279: len(data), 339: [bits[array.dtype.kind]] * channels,
    }  # fmt: skip
    size = struct.calcsize(f"<{head}{code}")
    after = table + struct.calcsize(number) + size * len(fields) + struct.calcsize(code)
    entries, extra = b"", b""
    for tag, value in fields.items():
        values = value if isinstance(value, list) else [value]
        packed = struct.pack(f"{order}{len(values)}{'H' if isinstance(value, list) else 'I'}", *values)
        inside = struct.calcsize(code)
        if len(packed) > inside:
            packed, extra = struct.pack(f"{order}{code}", after + len(extra)), extra + packed
        entries += struct.pack(f"{order}{head}", tag, 3 if isinstance(value, list) else 4, len(values))
        entries += packed.ljust(inside, b"\0")
    begin = b"II" if order == "<" else b"MM"
    begin += struct.pack(f"{order}HHHQ", 43, 8, 0, table) if is_big else struct.pack(f"{order}HI", 42, table)
    return (
        begin + data + struct.pack(f"{order}{number}", len(fields)) + entries + struct.pack(f"{order}{code}", 0) + extra
    )
