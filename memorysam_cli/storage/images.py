"""Images: read correctly or refused.

``cv2.imread`` returns wrong pixels for truncated files and ``cv2.imwrite`` silently loses files. So bytes are read and
checked first (:mod:`~memorysam_cli.storage.headers`), decoded from memory, and compared with the header. EXIF rotation
is ignored, because it would not apply to the label.

GDAL reads TIFFs that OpenCV cannot decode, if it is installed (:mod:`~memorysam_cli.storage.rasters`). Their headers
are still read by our own code, and everything that can be checked is checked before.

NumPy's own files (``.npy``, ``.npz`` with one array) are read without pickle and with all checks.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import re
import stat
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import cv2
import numpy as np
import numpy.typing as npt

from memorysam_cli.errors import DataError, UsageError, raise_shortage
from memorysam_cli.storage import atomic, headers, rasters
from memorysam_cli.storage.headers import Header, Refused
from memorysam_cli.text import counted, shown, size

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npy", ".npz")
"""Suffixes of image files, in lower case; upper case also matches."""
MAX_PIXELS = 100_000_000
"""Default limit of pixels, unless ``$MEMORYSAM_MAX_PIXELS`` is set."""
_OPENCV_SIDE, _OPENCV_PIXELS = 1 << 20, 1 << 30
"""Limit of ``cv2.imdecode``, which raises an exception for larger files."""
_NPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_MAX_CHANNELS = 64
_PIXEL_BYTES = 12
"""Bytes per pixel, up to the limit of pixels: three values of float32."""
_REMARKS = 100_000_000
"""Bytes of a picture's file besides those of its pixels: profiles, comments, previews."""
_MAX_HEADER, _CHUNK = 10_000, 1_000_000
"""Bytes of an array's header, as in NumPy; and bytes read at once."""
_AGAIN = "get the file again"

# Its messages about broken files would appear beside our own.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class _LibrariesHushed:
    """While any thread is within the block, messages of libpng and libjpeg do not reach the terminal.

    These libraries write directly to descriptor 2: for every picture with an unusual color profile, and for a damaged
    one in addition to our own message. Other output to stderr is printed at the end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._within = 0
        self._stderr = self._said = -1

    def __enter__(self) -> None:
        with self._lock:
            if self._within == 0:
                self._divert()
            self._within += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._within -= 1
            if self._within == 0 and self._said >= 0:
                self._restore()

    def _divert(self) -> None:
        self._said = self._stderr = -1
        with contextlib.suppress(OSError, AttributeError):  # without descriptors, or on another system
            self._said = os.memfd_create("said")
            self._stderr = os.dup(2)
            os.dup2(self._said, 2)
        if self._stderr < 0 <= self._said:
            os.close(self._said)
            self._said = -1

    def _restore(self) -> None:
        os.dup2(self._stderr, 2)
        size = os.lseek(self._said, 0, os.SEEK_CUR)
        text = os.pread(self._said, size, 0) if size else b""
        os.close(self._said)
        os.close(self._stderr)
        others = b"".join(line for line in text.splitlines(keepends=True) if not _LIBRARIES.match(line))
        with contextlib.suppress(OSError):
            if others:
                os.write(2, others)


_LIBRARIES = re.compile(
    rb"libpng (warning|error): |Corrupt JPEG data|Premature end of JPEG file|Invalid SOS parameters"
)
_hushed = _LibrariesHushed()


@dataclass(frozen=True, eq=False)
class InMemory:
    """An array that is treated like a ``.npy`` file, with a name for messages."""

    name: str
    array: npt.NDArray[Any]

    def __str__(self) -> str:
        return self.name

    def parse(self) -> Header:
        """The header of such a file.

        Raises:
            Refused: as for a file.
        """
        return _array_header(self.array.shape, False, self.array.dtype, kind="npy")


Stored = Path | InMemory
"""An image: a file, or in memory."""


def header(path: Stored) -> Header:
    """Read the properties of a file, without decoding it.

    Raises:
        DataError: as :func:`read`, as far as the header shows it.
    """
    if isinstance(path, InMemory):
        try:
            return path.parse()
        except Refused as error:
            _refuse(path, error)
    _check_file(path)
    try:
        with path.open("rb") as stream:
            return _parse(stream)
    except (Refused, OSError) as error:
        _refuse(path, error)


def shape(path: Path) -> tuple[int, int, int, str]:
    """Size of a stored image or array, from its header alone.

    Returns:
        (height, width, channels, dtype name) as :func:`read` would return it; 1 channel means (H, W).

    Raises:
        DataError: as :func:`read`, as far as the header shows it.
    """
    found = header(path)
    return found.height, found.width, found.channels, found.dtype


def pixel_limit() -> int:
    """The largest H·W that is decoded: ``$MEMORYSAM_MAX_PIXELS``, or 100 million.

    Raises:
        UsageError: the variable is not a positive integer.
    """
    text = os.environ.get("MEMORYSAM_MAX_PIXELS", "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"$MEMORYSAM_MAX_PIXELS is '{shown(text)}'; it must be a whole number above 0")
    return int(text or MAX_PIXELS)


def refuse_size(path: Stored, found: Header, *, max_pixels: int) -> None:
    """Refuse a picture that is too large.

    Raises:
        DataError: its header has more than ``max_pixels``.
    """
    try:
        _check_size(found, max_pixels=max_pixels)
    except Refused as error:
        _refuse(path, error)


def read(path: Path, *, max_pixels: int | None = None, as_numbers: bool = False) -> npt.NDArray[Any]:
    """Read an image or array completely, or not at all, and refuse values that are not finite; otherwise as
    :func:`load`."""
    array = load(path, max_pixels=max_pixels, as_numbers=as_numbers)[1]
    if array.dtype.kind == "f":
        try:
            _check_finite(array)
        except Refused as error:
            _refuse(path, error)
    return array


def load(path: Stored, *, max_pixels: int | None = None, as_numbers: bool = False) -> tuple[Header, npt.NDArray[Any]]:
    """Read an image or array completely, or not at all, with its header; NaN and infinity are not changed.

    Args:
        path: PNG (8 or 16 bit; gray, RGB, palette, with or without alpha), JPEG (gray, RGB), TIFF (integers of up to 32
            bits, float32; gray, RGB, 8-bit color table; with GDAL any number of bands and any compression), BMP, WebP,
            ``.npy`` or ``.npz`` with one array. The content decides, not the suffix.
        max_pixels: larger pictures (H·W) are refused from the header, before anything is decoded; None:
            :func:`pixel_limit`.
        as_numbers: palettes give their indices, (H, W) uint8, instead of colors.

    Returns:
        The header, and (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, with the stored dtype. Gray with alpha and palettes are
        expanded to colors. Arrays keep their dtype and shape, in native byte order; (C, H, W) that cannot be anything
        else becomes (H, W, C).

    Raises:
        DataError: missing, empty, a folder, truncated, damaged, too large, or of another format.
    """
    if isinstance(path, InMemory):
        found = header(path)
        refuse_size(path, found, max_pixels=max_pixels or pixel_limit())
        array = _channels_last(path.array)
        return found, np.array(array, array.dtype.newbyteorder("="), order="C")  # the caller's array does not change
    _check_file(path)
    try:
        with path.open("rb") as stream:
            found = _parse(stream)
            _check_size(found, max_pixels=max_pixels or pixel_limit())
            stream.seek(0)
            if found.needs:
                array = rasters.read_whole(stream, path, found, as_numbers=as_numbers)
            elif found.format in {"npy", "npz"}:
                array = _load_array(stream, found)
            else:
                array = _decode(_whole(stream, found), found, as_numbers)
        return found, array
    except (Refused, OSError, MemoryError) as error:
        _refuse(path, error)


def hidden(path: Stored, found: Header, array: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """The hidden pixels of a TIFF, by its own mask or its alpha; None if it has neither.

    Args:
        path: of the file.
        found: its header.
        array: all of its pixels, from :func:`load`.

    Returns:
        (H, W) bool, True where a pixel is hidden.

    Raises:
        DataError: as :func:`load`.
    """
    if found.has_alpha and array.ndim > len("HW"):
        transparent: npt.NDArray[np.bool_] = array[:, :, -1] == 0
        return transparent
    if not found.has_mask or isinstance(path, InMemory):
        return None
    try:
        with path.open("rb") as stream, rasters.opened(stream, path, found) as dataset:
            return rasters.hidden(dataset)
    except (Refused, OSError, MemoryError) as error:
        _refuse(path, error)


def _check_file(path: Path) -> None:
    """Refuse a missing file, a folder, a device, or an empty file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{shown(path)}: no such file; check the path or prepare the data set again") from None
    except (OSError, ValueError) as error:  # a name with a NUL, which no file can have
        _refuse(path, error)
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{shown(path)}: a folder, not an image; name a file or remove the folder")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown(path)}: not a regular file; copy the image to a file")
    if status.st_size == 0:
        raise DataError(f"{shown(path)}: empty (0 bytes); get the file again")


def _check_size(found: Header, *, max_pixels: int) -> None:
    longest, count = max(found.height, found.width), found.height * found.width
    frame = f"{found.height} x {found.width} = {_megapixels(count)} Mpx is more than"
    allowed = f"the {_megapixels(max_pixels)} Mpx allowed"
    if found.format not in {"npy", "npz"} and (longest > _OPENCV_SIDE or count > _OPENCV_PIXELS):
        decodable = f"OpenCV decodes ({_OPENCV_SIDE:,} pixels a side, {_OPENCV_PIXELS:,} in all)"
        limits = f"{allowed}, and than {decodable}" if count > max_pixels else decodable
        raise Refused(f"{frame} {limits}; cut it into smaller ones")
    if count > max_pixels:
        raise Refused(
            f"{frame} {allowed}; make it smaller, or allow more with MEMORYSAM_MAX_PIXELS=… (in prepare: --max-pixels)"
        )
    most = max(max_pixels, MAX_PIXELS) * _PIXEL_BYTES
    if found.block_bytes > most:
        raise Refused(f"tiles or strips of {size(found.block_bytes)} are more than {size(most)}; {rasters.RETILE}")
    if _bytes(found) > most:  # few pixels of many wide channels
        raise Refused(
            f"{found.channels} channels of {found.dtype} at {found.height} x {found.width} are {size(_bytes(found))}, "
            f"more than the {size(most)} allowed; save fewer channels or a smaller type, or allow "
            "more with MEMORYSAM_MAX_PIXELS=… (in prepare: --max-pixels)"
        )


def _bytes(found: Header) -> int:
    """Memory of the pixels in bytes."""
    return found.height * found.width * found.channels * np.dtype(found.dtype).itemsize


def _whole(stream: BinaryIO, found: Header) -> bytes:
    """All bytes of a picture's file, if they are not far more than its pixels can need."""
    most = 2 * _bytes(found) + _REMARKS
    length = stream.seek(0, io.SEEK_END)
    if length > most:
        raise Refused(f"a file of {size(length)} for pixels of {size(_bytes(found))}; save the image again")
    stream.seek(0)
    return stream.read()


def _megapixels(count: int) -> str:
    """Exact megapixels, so that a limit and a value above it never look equal: ``3,600``, ``0.0015``."""
    whole, _, rest = f"{count / 1e6:,.6f}".partition(".")
    return f"{whole}.{rest}".rstrip("0").rstrip(".")


def _parse(stream: BinaryIO) -> Header:
    found = headers.parse_image(stream) or _parse_array(stream)
    if found is None:
        stream.seek(0)
        raise headers.other_format(stream.read(16))
    if found.needs and not rasters.is_installed():
        raise Refused(f"{found.needs}; {rasters.INSTALL}, or {found.instead}")
    return found


def _refuse(path: Stored, error: Exception) -> NoReturn:
    raise_shortage(error)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    raise DataError(f"{shown(path)}: {reason or 'not enough memory to read it'}") from error


def _decode(data: bytes, found: Header, as_numbers: bool) -> npt.NDArray[Any]:
    """A picture's bytes -> (H, W) or (H, W, 3|4) RGB(A)."""
    headers.check_complete(data, found)
    if as_numbers and found.has_palette:
        numbered = headers.with_numbers(data, found)
        numbered_header = headers.parse_image(io.BytesIO(numbered))
        assert numbered_header is not None
        array = _decode(numbered, numbered_header, as_numbers=False)
        return array if array.ndim == len("HW") else np.ascontiguousarray(array[:, :, 0])
    try:
        with _hushed:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise Refused(
            f"{found.format.upper()} whose pixels OpenCV cannot decode: damaged, or of a kind that it lacks; {_AGAIN}, "
            "or save it as 8-bit or 16-bit PNG"
        )
    channels = 1 if image.ndim == 2 else image.shape[2]
    decoded = f"{image.shape[0]} x {image.shape[1]} x {channels} {image.dtype}"
    promised = f"{found.height} x {found.width} x {found.channels} {found.dtype}"
    if decoded != promised:
        raise Refused(f"the header says {promised}, the pixels are {decoded}; save the image again")
    if channels == 1:
        return image
    order = cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(image, order)


def _check_finite(array: npt.NDArray[Any]) -> None:
    """Refuse NaN and infinity; the message names the first one and their number."""
    finite = np.isfinite(array)
    if finite.all():
        return
    index = int(np.argmin(finite))
    first = tuple(int(i) for i in np.unravel_index(index, array.shape))
    count = array.size - int(np.count_nonzero(finite))
    value = array.flat[index]
    raise Refused(f"{counted(count, 'value', 'is')} not finite, first {value} at {first}; replace them (0 for no data)")


_one_at_a_time = threading.Lock()
"""NumPy evaluates headers with ``ast``, whose recursion counter all threads share up to Python 3.11. Without this lock
a good file would sometimes be called damaged (``AST constructor recursion depth mismatch``). Warning filters are shared
as well."""
if hasattr(os, "register_at_fork"):  # a reading thread is not in the child, and would never release the lock
    os.register_at_fork(
        before=_one_at_a_time.acquire, after_in_parent=_one_at_a_time.release, after_in_child=_one_at_a_time.release
    )


def _parse_array(stream: BinaryIO) -> Header | None:
    """Header of an ``.npy`` or ``.npz``; None for other content.

    Args:
        stream: at its start, seekable.

    Raises:
        Refused: damaged, several arrays, Python objects, or not (H, W) or (H, W, C) numbers.
    """
    start = stream.read(len(_NPY))
    stream.seek(0)
    if start.startswith(_NPY):
        return _array_header(*_parse_npy(stream), kind="npy")
    if start.startswith(_ZIP):
        with _zip_faults(), zipfile.ZipFile(stream) as archive, archive.open(_only_entry(archive)) as entry:
            return _array_header(*_parse_npy(entry), kind="npz")
    return None


def _load_array(stream: BinaryIO, found: Header) -> npt.NDArray[Any]:
    """The array of a file, in native byte order; no more bytes are read than its header states.

    Args:
        stream: the file, at its start.
        found: its header, from :func:`_parse_array`, whose size was checked.

    Raises:
        Refused: truncated or damaged.
    """
    if found.format == "npy":
        return _load_values(stream, length=os.fstat(stream.fileno()).st_size)
    with _zip_faults(), zipfile.ZipFile(stream) as archive:
        name = _only_entry(archive)
        with archive.open(name) as entry:
            array = _load_values(cast("BinaryIO", entry), length=archive.getinfo(name).file_size)
            if entry.read(1):  # the end of the entry: what was read has its CRC
                raise Refused(f"damaged NumPy archive: more bytes than its array has; {_AGAIN}")
    return array


def _load_values(stream: BinaryIO, *, length: int) -> npt.NDArray[Any]:
    """The array of an ``.npy`` with this number of bytes."""
    shape, is_fortran, dtype = _parse_npy(stream)
    start, needed = stream.tell(), math.prod(shape) * dtype.itemsize
    if length < start + needed:
        raise Refused(f"truncated array: {length:,} of {start + needed:,} bytes; {_AGAIN}")
    values = np.empty(math.prod(shape), dtype)
    left = values.view(np.uint8).data
    while left:
        data = stream.read(min(_CHUNK, len(left)))  # at once, an archive's would be in memory twice
        if not data:
            raise Refused(f"truncated array: {start + needed - len(left):,} of {start + needed:,} bytes; {_AGAIN}")
        left[: len(data)] = data
        left = left[len(data) :]
    array = _channels_last(values.reshape(shape, order="F" if is_fortran else "C"))
    return np.asarray(array, dtype=dtype.newbyteorder("="), order="C")


def _parse_npy(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype; leaves ``stream`` at the first value."""
    start = stream.read(len(_NPY) + 4)  # the version, and the header's length in 2 bytes, or in 4
    start += stream.read(2) if start[len(_NPY) : len(_NPY) + 1] > b"\x01" else b""
    length = int.from_bytes(start[len(_NPY) + 2 :], "little")
    if length > _MAX_HEADER:  # NumPy would read it before checking
        raise Refused(f"damaged NumPy file: a header of {length:,} bytes; {_AGAIN}")
    header = io.BytesIO(start + stream.read(length))
    try:
        with _one_at_a_time, warnings.catch_warnings():  # files of Python 2 are read, with a warning that does not help
            warnings.simplefilter("ignore")
            if np.lib.format.read_magic(header) == (1, 0):
                return np.lib.format.read_array_header_1_0(header)
            return np.lib.format.read_array_header_2_0(header)
    except Exception as error:  # NumPy evaluates and even tokenizes headers: a damaged one fails in many ways
        raise Refused(f"damaged NumPy file: {' '.join(str(error).split())[:120]}; {_AGAIN}") from error


def _array_header(shape: tuple[int, ...], _is_fortran: bool, dtype: np.dtype[Any], *, kind: str) -> Header:
    if dtype.hasobject:
        raise Refused("contains Python objects, which could run code; refused. Save a plain array of numbers")
    if dtype.kind not in "biuf":
        raise Refused(f"an array of {dtype}; save integers or floats")
    is_whole = all(type(length) is int for length in shape)  # NumPy takes True for 1
    if is_whole and is_channels_first(shape):
        shape = (*shape[1:], shape[0])
    if not is_whole or len(shape) not in {2, 3} or min(shape) <= 0 or (*shape, 1)[2] > _MAX_CHANNELS:
        raise Refused(f"an array of shape {shape}; save (H, W) or (H, W, C) with C up to {_MAX_CHANNELS}{axes(shape)}")
    return Header(kind, shape[0], shape[1], (*shape, 1)[2], dtype.newbyteorder("=").name)


def is_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array can only be (C, H, W), because as (H, W, C) it would have more channels than any sensor."""
    return len(shape) == len("CHW") and 0 < shape[0] <= _MAX_CHANNELS < shape[2] and shape[0] < shape[1]


def _channels_last(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(C, H, W) that cannot be anything else as (H, W, C), other arrays unchanged."""
    return np.moveaxis(array, 0, -1) if is_channels_first(array.shape) else array


def axes(shape: tuple[int, ...]) -> str:
    """A clause for messages if an array's first axis looks like its channels; else empty.

    Args:
        shape: as stored; three axes are read as (H, W, C).
    """
    if len(shape) != len("HWC") or not 0 < shape[0] < min(shape[1:]) or shape[0] > _MAX_CHANNELS:
        return ""
    read = f"height {shape[0]}, width {shape[1]}, {counted(shape[2], 'channel')}"
    return f"; {shape} is read as (H, W, C): {read}; if it is (C, H, W), save np.moveaxis(array, 0, -1)"


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


def encode_png(array: npt.NDArray[Any]) -> bytes:
    """Encode pixels as PNG, losslessly.

    Args:
        array: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA; uint8 or uint16.

    Raises:
        ValueError: any other dtype or shape; values are never converted or clipped.
    """
    if array.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        raise ValueError(f"PNG holds uint8 or uint16, not {array.dtype}; check the values and convert first")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {3, 4})) or 0 in array.shape:
        raise ValueError(f"PNG holds (H, W), (H, W, 3) or (H, W, 4) pixels, not {array.shape}")
    pixels = np.ascontiguousarray(array)
    if array.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if array.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    is_encoded, buffer = cv2.imencode(".png", pixels)
    if not is_encoded:
        raise ValueError(f"OpenCV cannot encode {array.shape} {array.dtype} as PNG")
    return buffer.tobytes()


def encode_jpeg(array: npt.NDArray[Any], *, quality: int) -> bytes:
    """Encode an RGB picture as JPEG, for viewing only; PNG is used for computing.

    Args:
        array: (H, W, 3) uint8, RGB.
        quality: 1 to 100.

    Raises:
        ValueError: any other dtype or shape.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"a JPEG is made of (H, W, 3) uint8, not {array.shape} {array.dtype}")
    is_encoded, buffer = cv2.imencode(
        ".jpg", cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not is_encoded:
        raise ValueError(f"OpenCV cannot encode {array.shape} as JPEG")
    return buffer.tobytes()


def write_png(path: Path, array: npt.NDArray[Any], *, fsync: bool = True) -> None:
    """Write a PNG, all or nothing; see :func:`encode_png` and :func:`memorysam_cli.storage.atomic.write_bytes`.

    Raises:
        EnvironmentFault: it cannot be written; an existing file does not change.
        ValueError: a dtype or shape that PNG does not support.
    """
    atomic.write_bytes(path, encode_png(array), fsync=fsync)


def write_npz(path: Path, arrays: dict[str, npt.NDArray[Any]], *, fsync: bool = True) -> None:
    """Write named arrays as an ``.npz``, all or nothing; without compression, so that its size is known in advance.

    Raises:
        EnvironmentFault: it cannot be written; an existing file does not change.
    """
    needed = sum(array.nbytes for array in arrays.values())
    with atomic.new_file(path, fsync=fsync, needed_bytes=needed) as temporary:
        with temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **cast("dict[str, Any]", arrays))
        if temporary.stat().st_size < needed:
            raise OSError(errno.EIO, f"only {temporary.stat().st_size} of {needed} bytes arrived")
