"""NumPy's own files (``.npy``, ``.npz`` with one array), without pickle and without surprises."""

from __future__ import annotations

import io
import math
import os
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from memorysam_cli.storage.headers import Header, Refused

_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_MAX_CHANNELS = 64
_AGAIN = "get the file again"

_one_at_a_time = threading.Lock()
"""NumPy evaluates headers with ``ast``, whose count of levels all threads share up to Python 3.11: now and then a good
file would be called damaged (``AST constructor recursion depth mismatch``). Filters of warnings are shared as well."""
if hasattr(os, "register_at_fork"):  # a thread that reads just now is not in the child, and would never let go
    os.register_at_fork(
        before=_one_at_a_time.acquire, after_in_parent=_one_at_a_time.release, after_in_child=_one_at_a_time.release
    )


def parse_array(stream: BinaryIO) -> Header | None:
    """Header of an ``.npy`` or ``.npz``; None for other content.

    Args:
        stream: at its start, seekable.

    Raises:
        Refused: damaged, several arrays, Python objects, or not (H, W) or (H, W, C) numbers.
    """
    start = stream.read(len(_NPY))
    stream.seek(0)
    if start.startswith(_NPY):
        return _header(*_parse_npy(stream), kind="npy")
    if start.startswith(_ZIP):
        with _zip_faults(), zipfile.ZipFile(stream) as archive, archive.open(_only_entry(archive)) as entry:
            return _header(*_parse_npy(entry), kind="npz")
    return None


def load_array(data: bytes, found: Header) -> npt.NDArray[Any]:
    """The array of a whole file, in native byte order.

    Args:
        data: the file.
        found: its header, from :func:`parse_array`.

    Raises:
        Refused: truncated or damaged.
    """
    if found.format == "npz":
        with _zip_faults(), zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = archive.read(_only_entry(archive))  # checks the CRC
    stream = io.BytesIO(data)
    shape, is_fortran, dtype = _parse_npy(stream)
    needed = stream.tell() + math.prod(shape) * dtype.itemsize
    if len(data) < needed:
        raise Refused(f"truncated array: {len(data):,} of {needed:,} bytes; {_AGAIN}")
    values = np.frombuffer(data, dtype, count=math.prod(shape), offset=stream.tell())
    array = values.reshape(shape, order="F" if is_fortran else "C")
    return np.array(array, dtype=dtype.newbyteorder("="), order="C")


def _parse_npy(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype; leaves ``stream`` at the first value."""
    try:
        with _one_at_a_time, warnings.catch_warnings():  # files of Python 2 are read, with a warning of no use here
            warnings.simplefilter("ignore")
            if np.lib.format.read_magic(stream) == (1, 0):
                return np.lib.format.read_array_header_1_0(stream)
            return np.lib.format.read_array_header_2_0(stream)
    except Exception as error:  # NumPy evaluates and even tokenizes headers: a damaged one fails in many ways
        raise Refused(f"damaged NumPy file: {' '.join(str(error).split())[:120]}; {_AGAIN}") from error


def _header(shape: tuple[int, ...], _is_fortran: bool, dtype: np.dtype[Any], *, kind: str) -> Header:
    if dtype.hasobject:
        raise Refused("contains Python objects, which could run code; refused. Save a plain array of numbers")
    if dtype.kind not in "biuf":
        raise Refused(f"an array of {dtype}; save integers or floats")
    if len(shape) not in {2, 3} or min(shape) <= 0 or (*shape, 1)[2] > _MAX_CHANNELS:
        raise Refused(f"an array of shape {shape}; save (H, W) or (H, W, C) with C up to {_MAX_CHANNELS}")
    return Header(kind, shape[0], shape[1], (*shape, 1)[2], dtype.newbyteorder("=").name)


def _only_entry(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
    if len(names) != 1 or not names[0].endswith(".npy"):
        raise Refused(f"a zip of {len(names)} entries ({', '.join(names[:5])}); save one array with np.savez")
    return names[0]


@contextmanager
def _zip_faults() -> Iterator[None]:
    try:
        yield
    except (
        zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error
    ) as error:  # fmt: skip
        raise Refused(f"damaged NumPy archive: {error}; {_AGAIN}") from error
