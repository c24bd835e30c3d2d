"""GeoTIFFs from seeds, written by rasterio itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

Array = npt.NDArray[Any]
UTM = "EPSG:32633"


def write_geotiff(
    path: Path,
    array: Array,
    *,
    names: tuple[str, ...] = (),
    origin: tuple[float, float] | None = (500_000, 5_000_000),
    pixel: float = 10,
    overviews: tuple[int, ...] = (),
    colors: dict[int, tuple[int, int, int, int]] | None = None,
    mask: Array | None = None,
    **profile: Any,
) -> Path:
    """Write (C, H, W); ``origin`` is the north-west corner in UTM 33 N, and ``pixel`` a pixel's side in meters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {} if origin is None else {"crs": UTM, "transform": from_origin(*origin, pixel, pixel)}
    count, height, width = array.shape
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        shape = {"count": count, "height": height, "width": width, "dtype": array.dtype}
        with rasterio.open(path, "w", driver="GTiff", **place, **shape, **profile) as dataset:
            if colors is not None:
                dataset.write_colormap(1, colors)
            dataset.write(array)
            for number, name in enumerate(names, 1):
                dataset.set_band_description(number, name)
            if mask is not None:
                dataset.write_mask(mask)
            if overviews:
                dataset.build_overviews(overviews)
    return path


def noise(*shape: int, dtype: Any = np.uint8, high: int = 200) -> Array:
    return np.random.default_rng(sum(shape)).integers(0, high, shape).astype(dtype)
