"""Rasters: what GDAL reads and writes of TIFFs, through rasterio (the extra ``geo``).

A file is vetted by hand first (:mod:`~memorysam_cli.storage.headers`). GDAL is then shown that one open file and
nothing else: no driver but GeoTIFF's, no files beside it, no network; and what it says goes into our own message.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from memorysam_cli.storage import headers
from memorysam_cli.storage.headers import Header, Refused

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

INSTALL = "install what reads it: pip install 'memorysam[geo]'"
RETILE = "cut them smaller: gdal_translate -co TILED=YES IN.tif OUT.tif"
_CACHE_MB = 64
"""Of decoded blocks, for all files."""
_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no .aux.xml, .ovr, .msk, .tfw beside the file
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GDAL_CACHEMAX": _CACHE_MB,
    "PROJ_NETWORK": "OFF",
    "CPL_DEBUG": "OFF",
}
_OWN_FILES = Path("/proc/self/fd")
"""Where a file that is open has a name that no driver of GDAL's takes for something else."""
_opening = threading.Lock()
"""Filters of warnings are shared by all threads."""


@cache
def is_installed() -> bool:
    """Whether rasterio is there; does not load it."""
    return importlib.util.find_spec("rasterio") is not None


@contextmanager
def settings() -> Iterator[None]:
    """GDAL's settings while the context is open, in this thread."""
    import rasterio
    from rasterio.session import DummySession

    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what GDAL says is in the error as well
    with rasterio.Env(session=DummySession(), **_SETTINGS):
        yield


@contextmanager
def opened(stream: BinaryIO, path: Path, found: Header) -> Iterator[DatasetReader]:
    """A TIFF for GDAL, which reads its blocks as they are asked for.

    Args:
        stream: the file.
        path: of the file.
        found: its header, which GDAL must agree with.

    Raises:
        Refused: damaged, or of a form that this GDAL lacks; or a block cannot be read while the context is open.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    headers.check_raster(_at_start(stream))
    name = str(_OWN_FILES / str(stream.fileno())) if _OWN_FILES.is_dir() else path
    try:
        with settings():
            with _opening, warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                dataset = rasterio.open(name, driver="GTiff")
            with dataset:
                _refuse_other(dataset, found)
                yield dataset
    except RasterioError as error:
        said = str(error.__cause__ or error).replace(str(name), path.name)
        reason = " ".join(re.sub(rf"^{stream.fileno()}, ", "", said).split())[:200].rstrip(".")
        raise Refused(f"a TIFF that GDAL cannot read: {reason}; get the file again, or save it anew") from error


def _at_start(stream: BinaryIO) -> BinaryIO:
    stream.seek(0)
    return stream


def _refuse_other(dataset: DatasetReader, found: Header) -> None:
    """See that the file is what its header says."""
    count = 1 if found.has_palette else found.channels
    read = f"{dataset.height} x {dataset.width} x {dataset.count} {'/'.join(sorted(set(dataset.dtypes)))}"
    promised = f"{found.height} x {found.width} x {count} {found.dtype}"
    if read != promised:
        raise Refused(f"the header says {promised}, GDAL reads {read}; save the image again")


def read_whole(stream: BinaryIO, path: Path, found: Header, *, as_numbers: bool) -> npt.NDArray[Any]:
    """All pixels: (H, W), or (H, W, C) with C bands, as :func:`memorysam_cli.storage.images.load` returns them.

    Args:
        stream: the file.
        path: of the file.
        found: its header, whose size was checked.
        as_numbers: a palette gives its indices, (H, W) uint8, instead of its colours.

    Raises:
        Refused: as :func:`opened`.
    """
    with opened(stream, path, found) as dataset:
        if found.has_palette:
            numbers: npt.NDArray[Any] = dataset.read(1)
            return numbers if as_numbers else _colours(dataset)[numbers]
        bands: npt.NDArray[Any] = dataset.read()
    return bands[0] if len(bands) == 1 else np.ascontiguousarray(np.moveaxis(bands, 0, -1))  # (C, H, W) -> (H, W, C)


def hidden(dataset: DatasetReader, window: Any = None) -> npt.NDArray[np.bool_]:
    """Where a file's own mask hides pixels, of all bands: (H, W), or of a window of it."""
    masked: npt.NDArray[np.bool_] = dataset.read_masks(1, window=window) == 0
    return masked


def _colours(dataset: DatasetReader) -> npt.NDArray[np.uint8]:
    """The palette: (256, 3); black for what has no color."""
    table = np.zeros((256, 3), np.uint8)
    for number, (red, green, blue, _) in dataset.colormap(1).items():
        table[number] = red, green, blue
    return table
