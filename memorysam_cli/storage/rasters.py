"""Rasters: TIFFs that GDAL reads and writes, through rasterio (the extra ``geo``).

A file is checked by our own code first (:mod:`~memorysam_cli.storage.headers`). GDAL then gets only this one open file:
no driver but GeoTIFF's, no files beside it, no network. Its messages become part of our own.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
import sqlite3
import struct
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from memorysam_cli.errors import DataError, EnvironmentFault
from memorysam_cli.storage import atomic, headers
from memorysam_cli.storage.headers import Header, Refused
from memorysam_cli.text import megabytes, shown

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

INSTALL = "install what reads it: pip install 'memorysam[geo]'"
RETILE = "cut them smaller: gdal_translate -co TILED=YES IN.tif OUT.tif"
_CACHE_MB = 64
"""Cache of decoded blocks in bytes, for all files."""
_SETTINGS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no .aux.xml, .ovr, .msk, .tfw beside the file
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GTIFF_IGNORE_READ_ERRORS": "NO",
    "GDAL_CACHEMAX": _CACHE_MB,
    "PROJ_NETWORK": "OFF",
    "CPL_DEBUG": "OFF",
}
_DEGREES = "EPSG:4326"
_POINTS = 33
"""Number of points per side for comparing grids."""
_OWN_FILES = Path("/proc/self/fd")
"""Prefix for an open file's name, which no driver of GDAL's mistakes for another source."""
_opening = threading.Lock()
"""Warning filters are shared by all threads."""


@cache
def is_installed() -> bool:
    """Whether rasterio is installed; does not load it."""
    return importlib.util.find_spec("rasterio") is not None


@cache
def _errors() -> tuple[type[Exception], ...]:
    """The exceptions of GDAL and rasterio."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    return RasterioError, CPLE_BaseError


@contextmanager
def settings() -> Iterator[None]:
    """GDAL's settings while the context is open, in this thread."""
    import rasterio
    from rasterio.session import DummySession

    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # the error also has GDAL's message
    with rasterio.Env(session=DummySession(), **_SETTINGS):
        yield


@contextmanager
def opened(stream: BinaryIO, path: Path, found: Header) -> Iterator[DatasetReader]:
    """A TIFF opened with GDAL, which reads its blocks when they are requested.

    Args:
        stream: the file.
        path: of the file.
        found: its header, with which GDAL must agree.

    Raises:
        Refused: damaged, or a form that this GDAL does not support; or a block cannot be read while the context is
            open.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

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
    except _errors() as error:
        said = str(error.__cause__ or error).replace(str(name), path.name)
        reason = " ".join(re.sub(rf"^{stream.fileno()}, ", "", said).split())[:200].rstrip(".")
        raise Refused(f"a TIFF that GDAL cannot read: {reason}; get the file again, or save it again") from error


def _at_start(stream: BinaryIO) -> BinaryIO:
    stream.seek(0)
    return stream


def _refuse_other(dataset: DatasetReader, found: Header) -> None:
    """Check that the file agrees with its header."""
    count = 1 if found.has_palette else found.channels
    read = f"{dataset.height} x {dataset.width} x {dataset.count} {'/'.join(sorted(set(dataset.dtypes)))}"
    promised = f"{found.height} x {found.width} x {count} {found.dtype}"
    if read != promised:
        raise Refused(f"the header says {promised}, GDAL reads {read}; save the image again")


def read_whole(stream: BinaryIO, path: Path, found: Header, *, as_numbers: bool) -> npt.NDArray[Any]:
    """All pixels: (H, W), or (H, W, C) with C bands, as from :func:`memorysam_cli.storage.images.load`.

    Args:
        stream: the file.
        path: of the file.
        found: its header, whose size was checked.
        as_numbers: a palette gives its indices, (H, W) uint8, instead of its colors.

    Raises:
        Refused: as :func:`opened`.
    """
    with opened(stream, path, found) as dataset:
        if found.has_palette:
            numbers: npt.NDArray[Any] = dataset.read(1)
            return numbers if as_numbers else _colors(dataset)[numbers]
        bands: npt.NDArray[Any] = dataset.read()
    return bands[0] if len(bands) == 1 else np.ascontiguousarray(np.moveaxis(bands, 0, -1))  # (C, H, W) -> (H, W, C)


def hidden(dataset: DatasetReader, window: Any = None) -> npt.NDArray[np.bool_]:
    """Where a file's own mask hides pixels, of all bands: (H, W), or of a window of it."""
    masked: npt.NDArray[np.bool_] = dataset.read_masks(1, window=window) == 0
    return masked


def _colors(dataset: DatasetReader) -> npt.NDArray[np.uint8]:
    """The palette: (256, 3); black for indices without a color."""
    table = np.zeros((256, 3), np.uint8)
    for number, (red, green, blue, _) in dataset.colormap(1).items():
        table[number] = red, green, blue
    return table


@dataclass(frozen=True)
class Grid:
    """The position of a raster's pixels."""

    height: int
    width: int
    crs: Any
    """A ``rasterio.crs.CRS``; None if the file has none."""
    transform: Any
    """From column and row to coordinates, an ``affine.Affine``."""
    controls: tuple[tuple[float, ...], ...] = ()
    """Ground control points (row, column, x, y, z), if only these give the position; then there is no transform."""
    controls_crs: Any = None
    """The CRS of these points."""

    @classmethod
    def of(cls, dataset: DatasetReader) -> Grid:
        """The grid of an open raster."""
        points, crs = dataset.gcps
        controls = tuple((point.row, point.col, point.x, point.y, point.z or 0.0) for point in points)
        return cls(dataset.height, dataset.width, dataset.crs, dataset.transform, controls, crs)

    def is_same(self, other: Grid) -> bool:
        """Whether the pixels of both grids coincide, up to a hundredth of a pixel."""
        here, there = ((grid.height, grid.width, grid.crs, grid.controls, grid.controls_crs) for grid in (self, other))
        is_alike = here == there
        reach = max(self.height, self.width)
        unit = max(abs(value) for value in (self.transform.a, self.transform.b, self.transform.d, self.transform.e))
        steps = zip(self.transform[:6], other.transform[:6], (reach, reach, 1) * 2, strict=True)
        return is_alike and all(abs(one - two) * times < unit / 100 for one, two, times in steps)

    def share_of(self, other: Grid) -> float:
        """The share of another grid that this one covers, estimated with points; both have a CRS.

        Raises:
            Refused: coordinates cannot be converted between the two.
        """
        forth, back = (_within(here, there) for here, there in ((other, self), (self, other)))
        return float(forth.mean()) or float(back.any()) / forth.size  # a small one may be between the points

    def to_json(self) -> dict[str, Any]:
        """The values for a report."""
        crs = None if self.crs is None else self.crs.to_string()
        return {"height": self.height, "width": self.width, "crs": crs, "transform": list(self.transform[:6])}


def _lattice(grid: Grid) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """x and y of points spread evenly over a grid, half a step inside its edges."""
    rows, columns = ((np.arange(_POINTS) + 0.5) / _POINTS * side for side in (grid.height, grid.width))
    column, row = (each.ravel() for each in np.meshgrid(columns, rows))
    x, y = grid.transform * (column, row)
    return x, y


def _within(points: Grid, grid: Grid) -> npt.NDArray[np.bool_]:
    """Which points of a grid are inside another one."""
    x, y = _brought(points.crs, grid.crs, *_lattice(points))
    with np.errstate(invalid="ignore"):  # points without a position there are infinite
        column, row = ~grid.transform * (x, y)
        inside: npt.NDArray[np.bool_] = (column >= 0) & (column < grid.width) & (row >= 0) & (row < grid.height)
    return inside


def _brought(crs: Any, onto: Any, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Coordinates in another CRS; infinite if they have none there.

    Raises:
        Refused: coordinates cannot be converted.
    """
    from rasterio.warp import transform

    try:
        with settings():
            return tuple(np.array(each, np.float64) for each in transform(crs, onto, x, y))
    except _errors() as error:
        places = (shown(str(each), most=60) for each in (crs, onto))
        raise Refused("nothing leads from its coordinates ({}) to {}".format(*places)) from error


def refuse_without_degrees(path: Path, grid: Grid) -> None:
    """Check that a grid has longitudes and latitudes, which GeoJSON needs if there is a CRS.

    Raises:
        DataError: it has none.
    """
    try:
        is_known = grid.crs is None or bool(np.isfinite(_brought(grid.crs, _DEGREES, *_lattice(grid))).all())
    except Refused:
        is_known = False
    if not is_known:
        raise DataError(
            f"{shown(path)}: its coordinates ({shown(grid.crs.to_string(), most=60)}) have no longitude and latitude, "
            "which GeoJSON needs; choose --vector gpkg"
        )


class Windows:
    """A raster that is read in windows, on its own grid or on another one.

    Args:
        dataset: an open one.
        grid: of the returned pixels.
        share: approximate share of the grid that the file covers.
        has_mask: the file hides pixels by a mask.
        alpha: index of the alpha band, from 0; None if there is none.
    """

    def __init__(self, dataset: Any, grid: Grid, *, has_mask: bool, alpha: int | None, share: float = 1.0) -> None:
        self.grid, self.share = grid, share
        self._dataset, self._has_mask, self._alpha = dataset, has_mask, alpha

    def read(
        self, bands: Sequence[int], *, top: int, left: int, height: int, width: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """Some bands of a part of the grid.

        Args:
            bands: from 0.
            top, left, height, width: of the part, in pixels.

        Returns:
            (height, width, bands), as stored; and (height, width), True where the file hides a pixel, None if it hides
            none.
        """
        from rasterio.windows import Window

        window = Window(left, top, width, height)
        stored = self._dataset.read([band + 1 for band in bands], window=window)
        array = np.ascontiguousarray(np.moveaxis(stored, 0, -1))  # (C, H, W) -> (H, W, C)
        if self._alpha is not None:
            return array, self._dataset.read(self._alpha + 1, window=window) == 0
        return array, hidden(self._dataset, window) if self._has_mask else None


@contextmanager
def windows(
    path: Path, found: Header, *, onto: Grid | None = None, nearest: bool = False, nodata: Sequence[float] = ()
) -> Iterator[Windows]:
    """Open a raster to read windows of it; memory does not grow with its size.

    Args:
        path: of the file.
        found: its header.
        onto: the grid of the returned pixels; None: the raster's own. For another grid, it is warped while it is read.
        nearest: use the nearest pixel for warping, not a mean of several.
        nodata: values that are not measurements, besides the file's own tag. The first one that its pixels can
            represent is used in warping, so that it is never part of a mean.

    Raises:
        DataError: damaged, a form that this GDAL does not support, without coordinates for another grid, or without
            overlap.
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"{shown(path)}: {error.strerror or error}") from error
    try:
        with stream, opened(stream, path, found) as dataset:
            own = Grid.of(dataset)
            last = found.channels - 1
            if onto is None or onto.is_same(own):
                yield Windows(dataset, own, has_mask=found.has_mask, alpha=last if found.has_alpha else None)
                return
            share = _share(own, onto)
            values = [*([] if found.nodata is None else [found.nodata]), *nodata]
            held = [each for each in (storable(value, np.dtype(found.dtype)) for value in values) if each is not None]
            gap = float(held[0]) if held else None
            with _warped(dataset, onto, nearest=nearest, nodata=gap, has_alpha=found.has_alpha) as warped:
                alpha = None if gap is not None else warped.count - 1
                yield Windows(warped, onto, has_mask=False, alpha=alpha, share=share)
    except Refused as error:
        raise DataError(f"{shown(path)}: {error}") from error


def _share(own: Grid, onto: Grid) -> float:
    """The share of a grid that a raster covers.

    Raises:
        Refused: there is no overlap, or a position is unknown.
    """
    if own.crs is None or onto.crs is None:
        sizes = f"{own.height}×{own.width} pixels and the first sensor {onto.height}×{onto.width}"
        if own.controls or onto.controls:
            raise Refused(f"has {sizes}; one has its place from ground control points alone: gdalwarp IN.tif OUT.tif")
        raise Refused(f"has {sizes}, and their positions are unknown: one has no CRS; set it with gdal_edit.py")
    share = own.share_of(onto)
    if not share:
        raise Refused("does not overlap the first sensor's raster; give rasters of the same place")
    return share


def storable(value: float, dtype: np.dtype[Any]) -> Any:
    """A value as stored in pixels of a type, rounded for floats; None if it cannot be stored."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(value)
    is_held = dtype.kind in "iu" and value.is_integer() and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    return dtype.type(int(value)) if is_held else None


def _warped(dataset: DatasetReader, onto: Grid, *, nearest: bool, nodata: float | None, has_alpha: bool) -> Any:
    """A raster on another grid; pixels outside it are nodata, or transparent."""
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    return WarpedVRT(
        dataset, crs=onto.crs, transform=onto.transform, width=onto.width, height=onto.height,
        resampling=Resampling.nearest if nearest else Resampling.bilinear, src_nodata=nodata, nodata=nodata,
        add_alpha=nodata is None and not has_alpha, warp_mem_limit=_CACHE_MB,
    )  # fmt: skip


@contextmanager
def _writing(path: Path, *, needed_bytes: int) -> Iterator[None]:
    """Turn GDAL's errors in writing into ours."""
    try:
        with settings():
            yield
    except _errors() as error:
        free = shutil.disk_usage(path.parent).free
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise EnvironmentFault(
            f"{shown(path)}: cannot write ({reason}; needs {megabytes(needed_bytes)}, free {megabytes(free)}); free "
            "some space or choose another folder, then run the same command again"
        ) from error


Colors = Mapping[int, tuple[int, int, int, int]]
"""Value → red, green, blue, alpha."""


def create(
    path: Path,
    grid: Grid,
    *,
    dtype: str,
    nodata: float | None,
    colors: Colors,
    tags: Mapping[str, str],
    bands: Sequence[str] = ("",),
) -> None:
    """Create a raster for :func:`write_rows`, uncompressed and complete, so that later writes change only pixels.

    Args:
        path: of the file.
        grid: of its pixels.
        dtype: uint8, uint16 or float32.
        nodata: the value of an ignored pixel, and of all pixels at first. None: there is none, and all are 0.
        colors: the color table; only for uint8.
        tags: further metadata.
        bands: their descriptions.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    import rasterio
    from rasterio.control import GroundControlPoint
    from rasterio.errors import NotGeoreferencedWarning

    needed = len(bands) * grid.height * grid.width * np.dtype(dtype).itemsize
    place = {} if grid.crs is None and grid.transform.is_identity else {"transform": grid.transform}
    with atomic.new_file(path, needed_bytes=needed) as temporary, _writing(temporary, needed_bytes=needed):
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(
                temporary, "w", driver="GTiff", count=len(bands), height=grid.height, width=grid.width, dtype=dtype,
                nodata=nodata, crs=grid.crs, BIGTIFF="IF_NEEDED", **place,
            )  # fmt: skip
        with dataset:
            if grid.controls:
                points = [GroundControlPoint(*point) for point in grid.controls]
                dataset.gcps = (points, grid.controls_crs)
            dataset.update_tags(**tags)
            if any(bands):
                dataset.descriptions = tuple(bands)
            if colors and dtype == "uint8":
                dataset.write_colormap(1, colors)


def write_rows(path: Path, values: npt.NDArray[Any], *, top: int, left: int) -> None:
    """Write values into a raster from :func:`create`; they are synced to the disk at the end.

    Args:
        path: of the file.
        values: (h, w), or (bands, h, w), of its type.
        top, left: their position, in pixels.

    Raises:
        EnvironmentFault: they cannot be written.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.windows import Window

    with _writing(path, needed_bytes=values.nbytes):
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(path, "r+", driver="GTiff")
        with dataset:
            window = Window(left, top, values.shape[-1], values.shape[-2])
            dataset.write(values if values.ndim > len("HW") else values[None], window=window)
    atomic.sync(path)


def write_cog(source: Path, target: Path, *, scratch: Path, needed_bytes: int) -> None:
    """Write a raster as a COG (cloud optimized GeoTIFF), all or nothing: deflated tiles, nearest-pixel overviews.

    Args:
        source: a raster from :func:`create`.
        target: an existing file is replaced.
        scratch: a folder on the target's disk, for GDAL's temporary files.
        needed_bytes: expected, for the message of a full disk.

    Raises:
        EnvironmentFault: it cannot be written; ``target`` does not change.
    """
    import rasterio.shutil
    from rasterio.errors import NotGeoreferencedWarning

    made = scratch / "cog.tif"
    with _writing(made, needed_bytes=needed_bytes), _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        rasterio.shutil.copy(
            source, made, driver="COG", compress="DEFLATE", blocksize=512, overview_resampling="NEAREST",
            bigtiff="IF_SAFER",
        )  # fmt: skip
    with atomic.new_file(target, needed_bytes=needed_bytes) as temporary:
        made.replace(temporary)


VECTORS = ("geojson", "gpkg")
Geometry = dict[str, Any]
"""A polygon as in GeoJSON."""


def polygons(path: Path, found: Header, *, nodata: int) -> Generator[tuple[int, Geometry], None, None]:
    """The areas of one value in a raster of one band, along the pixels' edges; diagonal neighbors belong to two areas.

    Args:
        path: of the file.
        found: its header.
        nodata: areas of this value are left out.

    Yields:
        Value, and a polygon in the raster's coordinates; all polygons are in memory, but not the pixels.

    Raises:
        DataError: the raster cannot be read.
    """
    import rasterio
    from rasterio.features import shapes

    try:
        with path.open("rb") as stream, opened(stream, path, found) as dataset:
            for geometry, value in shapes(rasterio.band(dataset, 1), connectivity=4, transform=dataset.transform):
                if int(value) != nodata:
                    yield int(value), geometry
    except Refused as error:
        raise DataError(f"{shown(path)}: {error}") from error


Rows = Iterable[tuple[int, str, Geometry]]
"""Class, its name, and a polygon."""


def write_geojson(path: Path, rows: Rows, *, crs: Any) -> None:
    """Write polygons as GeoJSON (RFC 7946), all or nothing: in longitude and latitude if there is a CRS.

    Raises:
        EnvironmentFault: it cannot be written.
    """

    def pieces() -> Iterator[bytes]:
        yield b'{"type":"FeatureCollection","features":['
        for number, (value, name, geometry) in enumerate(rows):
            place = geometry if crs is None else _in_degrees(path, crs, geometry)
            feature = {"type": "Feature", "properties": {"class": value, "name": name}, "geometry": place}
            yield (b",\n" if number else b"\n") + json.dumps(feature).encode()
        yield b"\n]}\n"

    with settings():
        atomic.write_pieces(path, pieces())


def _in_degrees(path: Path, crs: Any, geometry: Geometry) -> Geometry:
    """A polygon in longitude and latitude; ``DataError`` if it has none."""
    from rasterio.warp import transform_geom

    try:
        found: Geometry = transform_geom(crs, _DEGREES, geometry)
        if np.isfinite(np.concatenate(found["coordinates"])).all():
            return found
    except _errors():
        pass
    raise DataError(f"{shown(path)}: an area has no longitude and latitude, which GeoJSON needs; choose --vector gpkg")


_GPKG_ID, _GPKG_VERSION = 0x47504B47, 10300
"""``GPKG``, and version 1.3: the marks of a GeoPackage in an SQLite file."""
_GPKG = """
CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
    organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE,
    description TEXT DEFAULT '', last_change DATETIME NOT NULL, min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE,
    srs_id INTEGER, FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL,
    geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL, z TINYINT NOT NULL, m TINYINT NOT NULL,
    PRIMARY KEY (table_name, column_name));
CREATE TABLE classes (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON, class INTEGER, name TEXT);
INSERT INTO gpkg_spatial_ref_sys VALUES ('Undefined cartesian', -1, 'NONE', -1, 'undefined', NULL),
    ('Undefined geographic', 0, 'NONE', 0, 'undefined', NULL);
INSERT INTO gpkg_geometry_columns VALUES ('classes', 'geom', 'POLYGON', 0, 0, 0);
"""
_OWN_SRS = 100000
"""Id of a coordinate system without an EPSG number."""


def write_gpkg(path: Path, rows: Rows, *, crs: Any) -> None:
    """Write polygons as a GeoPackage, layer ``classes``, in the raster's own coordinates; all or nothing.

    Raises:
        EnvironmentFault: it cannot be written.

    Source: OGC 12-128r17 (GeoPackage 1.3): an SQLite file with tables of given names; geometries are WKB after a
    header.
    """
    with atomic.new_file(path) as temporary:
        try:
            with closing(sqlite3.connect(temporary)) as database, settings():
                _fill_gpkg(database, rows, crs)
        except sqlite3.Error as error:
            free = megabytes(shutil.disk_usage(path.parent).free)
            raise EnvironmentFault(f"{shown(path)}: cannot write: {error} (free {free}); free some space") from error


def _fill_gpkg(database: sqlite3.Connection, rows: Rows, crs: Any) -> None:
    database.executescript(
        f"PRAGMA application_id = {_GPKG_ID}; PRAGMA user_version = {_GPKG_VERSION}; PRAGMA journal_mode = OFF; {_GPKG}"
    )
    srs = -1
    if crs is not None:
        epsg = crs.to_epsg()
        srs = epsg or _OWN_SRS
        name = crs.to_string()[:100]
        system = (name, srs, "EPSG" if epsg else "NONE", srs, crs.to_wkt())
        database.execute("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, NULL)", system)
    extent = [float("inf"), float("inf"), float("-inf"), float("-inf")]

    def features() -> Iterator[tuple[bytes, int, str]]:
        for value, name, geometry in rows:
            xs, ys = zip(*geometry["coordinates"][0], strict=True)
            extent[:] = min(extent[0], *xs), min(extent[1], *ys), max(extent[2], *xs), max(extent[3], *ys)
            yield struct.pack("<2sBBi", b"GP", 0, 1, srs) + _wkb(geometry), value, name

    database.executemany("INSERT INTO classes (geom, class, name) VALUES (?, ?, ?)", features())
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    bounds = extent if extent[0] <= extent[2] else [None] * 4
    content = ("classes", "features", "classes", "", now, *bounds, srs)
    database.execute("INSERT INTO gpkg_contents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", content)
    database.execute("UPDATE gpkg_geometry_columns SET srs_id = ?", (srs,))
    database.commit()


def _wkb(geometry: Geometry) -> bytes:
    """A polygon as well-known binary, little-endian."""
    rings = geometry["coordinates"]
    points = (struct.pack("<I", len(ring)) + b"".join(struct.pack("<2d", *point) for point in ring) for ring in rings)
    return struct.pack("<BII", 1, 3, len(rings)) + b"".join(points)
