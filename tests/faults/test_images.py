"""Block I: a picture that is cut or damaged is refused, or its pixels are exact (row 14)."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from memorysam_cli.errors import DataError
from memorysam_cli.storage import images
from tests.faults.conftest import Figures
from tests.faults.naive import pictures
from tests.faults.scale import amount

SIZE = (61, 83)
"""Odd, so that nothing ends at a block's edge."""


def smooth(channels: int, dtype: type) -> npt.NDArray[Any]:
    """Pixels as of a photograph: neighbors are alike, and there is some noise."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    noise = np.random.Generator(np.random.PCG64(4)).integers(0, 9, (*SIZE, channels))
    values = (rows * 2 + columns)[..., None] + noise + 20 * np.arange(channels)
    picture = (values * (200 if dtype is np.uint16 else 1)).astype(dtype)
    return picture if channels > 1 else picture[:, :, 0]


def encoded(suffix: str, array: npt.NDArray[Any], *options: int) -> bytes:
    order = array[:, :, ::-1] if array.ndim == 3 else array
    return cv2.imencode(suffix, np.ascontiguousarray(order), options)[1].tobytes()


def stored(save: Callable[..., None], array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    save(stream, array)
    return stream.getvalue()


FORMS: dict[str, bytes] = {
    "a.jpg": encoded(".jpg", smooth(3, np.uint8)),
    "progressive.jpg": encoded(".jpg", smooth(3, np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts.jpg": encoded(".jpg", smooth(3, np.uint8), cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "grey.jpg": encoded(".jpg", smooth(1, np.uint8)),
    "a.png": encoded(".png", smooth(3, np.uint8)),
    "deep.png": encoded(".png", smooth(3, np.uint16)),
    "label.png": encoded(".png", smooth(1, np.uint8)),
    "a.tif": encoded(".tif", smooth(3, np.uint8)),
    "deep.tif": encoded(".tif", smooth(1, np.uint16)),
    "a.npy": stored(np.save, smooth(3, np.uint8)),
    "float.npy": stored(np.save, smooth(1, np.uint16).astype(np.float32)),
    "a.npz": stored(np.savez_compressed, smooth(3, np.uint16)),
    "plain.npz": stored(np.savez, smooth(1, np.uint8)),
}
SEALED = ("a.png", "deep.png", "label.png", "a.npz", "plain.npz")
"""Forms whose content has a checksum; no reader can see a wrong bit in the others."""


def silent(path: Path, data: bytes, expected: npt.NDArray[Any], reader: Callable[[Path], npt.NDArray[Any]]) -> bool:
    """Whether a reader gives pixels, and they are wrong."""
    path.write_bytes(data)
    try:
        found = reader(path)
    except (DataError, ValueError):
        return False
    return found.shape != expected.shape or found.dtype != expected.dtype or not np.array_equal(found, expected)


def cuts(size: int, rng: random.Random, count: int) -> list[int]:
    """Places to cut at: all over, and close to both ends."""
    near = [*range(1, 12), *range(size - 20, size)]
    return sorted({*near, *(rng.randrange(1, size) for _ in range(count - len(near)))})


@pytest.mark.parametrize("name", FORMS)
def test_a_cut_picture_is_refused_or_exact(tmp_path: Path, name: str, rng: random.Random, figures: Figures) -> None:
    path, data = tmp_path / name, FORMS[name]
    path.write_bytes(data)
    whole = images.read(path)
    places = cuts(len(data), rng, amount(200, soak=2000))
    wrong = [place for place in places if silent(path, data[:place], whole, images.read)]
    assert wrong == []
    with pytest.raises(DataError, match=r": (truncated|damaged|it ends|not )"):
        silent_half(path, data)
    figures("I", cuts=len(places), silent=0)


def silent_half(path: Path, data: bytes) -> None:
    """Half of a file must say so."""
    path.write_bytes(data[: len(data) // 2])
    images.read(path)


@pytest.mark.parametrize("name", SEALED)
def test_a_wrong_bit_is_refused_or_changes_no_pixel(
    tmp_path: Path, name: str, rng: random.Random, figures: Figures
) -> None:
    path, data = tmp_path / name, FORMS[name]
    path.write_bytes(data)
    whole = images.read(path)
    tries = amount(200, soak=4000)
    for _ in range(tries):
        damaged = bytearray(data)
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        damaged[place] ^= 1 << bit
        assert not silent(path, bytes(damaged), whole, images.read), (place, bit)
    figures("I", flips=tries, silent=0)


@pytest.mark.parametrize("name", ["a.jpg", "a.npy"])
def test_a_naive_reader_gives_wrong_pixels_in_silence_under_the_same_judge(
    tmp_path: Path, name: str, rng: random.Random
) -> None:
    path, data = tmp_path / name, FORMS[name]
    path.write_bytes(data)
    whole = pictures.read(path)
    wrong = sum(silent(path, data[:place], whole, pictures.read) for place in cuts(len(data), rng, 60))
    assert wrong > 20
