"""Annotations of pictures from any tool: class maps, and how polygons and run lengths become pixels.

Annotations may come from strangers, so sizes, counts and positions in a file are always checked. The tools' own formats
are in :mod:`~memorysam_cli.data.own.mask_formats` and :mod:`~memorysam_cli.data.own.annotation_tools`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memorysam_cli.data.own.classes import ClassList, safe_palette
from memorysam_cli.dataset import IGNORE, Color
from memorysam_cli.errors import DataError, did_you_mean
from memorysam_cli.storage import documents, images
from memorysam_cli.text import counted, shown

ClassMap = npt.NDArray[np.uint8]
"""(H, W): classes from 0, and 255 for none."""
Mask = npt.NDArray[np.bool_]
"""(H, W): where an object is."""
Size = tuple[int, int]
"""Height and width."""
MAX_BYTES = 1_000_000_000
"""Largest size of an annotation file; COCO's own has 450 MB."""
LOCAL_FILES = "/data/local-files/?d="
"""Prefix of paths that Label Studio serves from its local disk."""
_RUN_BITS = (3, 4, 8, 16)
"""Bits of the lengths of Label Studio's runs."""
_FINE = 5
"""Subdivisions of a pixel in which a polygon's outline is drawn."""
_FAR = 10
"""Number of sides of a picture by which a polygon may extend beyond it."""


@dataclass(frozen=True)
class Request:
    """The options of the command besides the source."""

    classes: ClassList | None = None
    """Names, numbers and colors that replace the source's own."""
    background: str | None = None
    """The class of pixels without a class."""
    pictures: Path | None = None
    """The folder of the pictures."""
    prefix: str = LOCAL_FILES
    """Prefix of a picture's name for Label Studio."""


@dataclass
class Tally:
    """Counts from reading class maps."""

    known: int = 0
    unknown: int = 0
    """Pixels with a class, and without one."""
    overlapping: int = 0
    """Pixels that a later annotation assigned to another class."""


@dataclass(frozen=True)
class Picture:
    """A picture and its annotations."""

    name: str
    """The name of its file in the tool, with forward slashes; if unknown, that of its mask."""
    read: Callable[[Tally], ClassMap]
    file: Path | None = None
    """Its path, if known."""

    @property
    def stem(self) -> str:
        """Its name without an image's suffix, which is the name of its mask."""
        return stem(self.name)


@dataclass(frozen=True)
class Annotated:
    """Annotated pictures of a tool, with their classes."""

    classes: ClassList
    pictures: tuple[Picture, ...]
    left_out: tuple[str, ...] = ()
    """Pictures without annotations."""
    notes: tuple[str, ...] = ()
    background: int | None = None
    """The class of pixels without a class."""
    tally: Tally = field(default_factory=Tally)

    def maps(self, advance: Callable[[], object]) -> Iterator[tuple[Picture, ClassMap]]:
        """Each picture with its class map; ``advance`` is called after it."""
        for picture in self.pictures:
            found = picture.read(self.tally)
            if self.background is not None:
                found[found == IGNORE] = self.background
            unknown = int(np.count_nonzero(found == IGNORE))
            self.tally.unknown += unknown
            self.tally.known += found.size - unknown
            yield picture, found
            advance()


Maps = Iterator[tuple[Picture, ClassMap]]


def stem(name: str) -> str:
    """A picture's name without an image's suffix."""
    return name[: name.rfind(".")] if name.lower().endswith(images.SUFFIXES) else name


def read_annotations(path: Path) -> Any:
    """Read a JSON file, with a limit on its size."""
    return documents.parse_json(documents.read_bytes(path, limit=MAX_BYTES), where=shown(path))


_KINDS: dict[Any, str] = {int: "a whole number", str: "a text", dict: "an object", list: "a list"}


def field_of(entry: Any, key: str, *kinds: Any, at: str) -> Any:
    """The value of a key, checked for its type.

    Raises:
        DataError: it has another type.
    """
    value = entry.get(key) if isinstance(entry, dict) else None
    if type(value) not in kinds:
        wanted = " or ".join(_KINDS[kind] for kind in kinds)
        got = "missing" if value is None else shown(repr(value), most=40)
        raise DataError(f"{at}: '{key}' must be {wanted}, and is {got}; export the annotations again")
    return value


def size_of(entry: Any, at: str, *, keys: tuple[str, str] = ("height", "width")) -> Size:
    """The size of a picture, checked against the limit of decoding."""
    height, width = (field_of(entry, key, int, at=at) for key in keys)
    limit = images.pixel_limit()
    if height < 1 or width < 1 or height * width > limit:
        raise DataError(f"{at}: a picture of {height} x {width} pixels; from 1 to {limit:,} are allowed")
    return height, width


def class_list(names: Sequence[str], colors: Sequence[Color | None], *, at: str) -> ClassList:
    """The classes of a tool, in its order, with its colors if they are distinct."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{at}: two classes are named '{shown(twice)}'; rename one of them")
    if not 0 < len(names) <= IGNORE or not all(name.strip() for name in names):
        raise DataError(f"{at}: {counted(len(names), 'class')}; from 1 to {IGNORE} are possible, each with a name")
    given = [color for color in colors if color is not None]
    has_colors = len(set(given)) == len(names)
    palette = tuple(given) if has_colors else safe_palette(len(names))
    return ClassList(tuple(names), palette, has_colors, mapping=())


def numbers_of(classes: ClassList) -> dict[str, int]:
    """Name → class."""
    return {name: index for index, name in enumerate(classes.names)}


def class_of(name: str, numbers: dict[str, int], at: str) -> int:
    """The class of a name; ``DataError`` if there is none."""
    if name not in numbers:
        raise DataError(f"{at}: the class '{shown(name)}' is none of those listed{did_you_mean(name, numbers)}")
    return numbers[name]


def painted(size: Size, regions: Iterable[tuple[int, Mask]], tally: Tally) -> ClassMap:
    """The class map of regions in their order; where two overlap, the later one counts."""
    found = np.full(size, IGNORE, np.uint8)
    for number, region in regions:
        before = found[region]
        tally.overlapping += int(np.count_nonzero((before != IGNORE) & (before != number)))
        found[region] = number
    return found


def note_on_unread(count: int) -> tuple[str, ...]:
    """A line on annotations without pixels, if there are any."""
    line = f"{counted(count, 'annotation')} (whole or in part) without an area (boxes, points, lines, …) passed over"
    return (line,) if count else ()


def color_of(value: Any) -> Color | None:
    """A list of three numbers up to 255 as a color; None for anything else."""
    is_color = isinstance(value, list) and len(value) == len("RGB")
    if not is_color or not all(type(part) is int and 0 <= part <= 255 for part in value):
        return None
    return value[0], value[1], value[2]


def free_color(taken: Iterable[Color]) -> Color:
    """A color that no class has."""
    known = set(taken)
    return next(color for color in safe_palette(len(known) + 1) if color not in known)


def coco_region(shape: Any, size: Size, at: str) -> Mask:
    """The pixels of a COCO ``segmentation``: a list of polygons, or run lengths, compressed or not.

    Args:
        shape: as in the JSON.
        size: of the picture.
        at: start of messages.

    Raises:
        DataError: it has another form, or does not fit the picture.
    """
    if isinstance(shape, list):
        found = np.zeros(size, np.bool_)
        for outline in shape:
            found |= polygon(outline, size, at)
        return found
    if field_of(shape, "size", list, at=f"{at}: segmentation") != list(size):
        raise DataError(f"{at}: its mask is of {shown(shape['size'], most=40)}, its picture of {list(size)} pixels")
    counts = field_of(shape, "counts", str, list, at=f"{at}: segmentation")
    numbers = _spelled(counts, at) if isinstance(counts, str) else counts
    total = size[0] * size[1]
    if not all(type(number) is int and 0 <= number <= total for number in numbers) or sum(numbers) != total:
        raise DataError(
            f"{at}: the run lengths of its mask are not those of {size[0]} x {size[1]} pixels; export it again"
        )
    flat = np.repeat(np.arange(len(numbers)) % 2 == 1, np.array(numbers, np.int64))
    return flat.reshape(size[1], size[0]).T  # runs go down the columns


def _spelled(text: str, at: str) -> list[int]:
    """Decode COCO's compressed run lengths: five bits per letter, least first; from the third one on as differences.

    Source: ``rleFrString`` of cocoapi's ``maskApi.c``.
    """
    numbers: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - ord("0")
        if not 0 <= code < 64 or shift > 60:
            raise DataError(f"{at}: {shown(repr(text), most=40)} are no run lengths of COCO; export it again")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError(f"{at}: its run lengths end within a number; export it again")
    return numbers


def spell(mask: Mask) -> str:
    """Encode a mask as COCO's compressed run lengths, as pycocotools writes them.

    Source: ``rleToString`` of cocoapi's ``maskApi.c``.
    """
    numbers = [length for _, length in _runs(mask.ravel(order="F"))]
    if mask[0, 0]:
        numbers.insert(0, 0)
    letters = []
    for place, number in enumerate(numbers):
        rest = number - (numbers[place - 2] if place > 2 else 0)
        while True:
            code = rest & 31
            rest >>= 5
            is_last = rest == (-1 if code & 16 else 0)
            letters.append(chr(code + (0 if is_last else 32) + ord("0")))
            if is_last:
                break
    return "".join(letters)


def _runs(flat: Mask) -> list[tuple[bool, int]]:
    """Value and length of each run."""
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(np.append(starts, flat.size))
    return list(zip(flat[starts].tolist(), lengths.tolist(), strict=True))


def polygon(outline: Any, size: Size, at: str) -> Mask:
    """The pixels within a polygon, the same as in pycocotools.

    Args:
        outline: x, y, x, y, … in pixels.
        size: of the picture.
        at: start of messages.

    Raises:
        DataError: it has fewer than three corners, or extends far beyond the picture.

    Source: ``rleFrPoly`` of cocoapi's ``maskApi.c``: the outline in fifths of a pixel, and where it crosses the center
    of a column.
    """
    height, width = size
    most = _FAR * max(size)
    is_list = isinstance(outline, list) and len(outline) >= 6 and len(outline) % 2 == 0
    if not is_list or not all(type(value) in (int, float) and abs(value) <= most for value in outline):
        raise DataError(
            f"{at}: a polygon must be three corners or more as x, y, x, y, …, no farther than {most} pixels from the "
            "picture; export it again"
        )
    corners = (_FINE * np.array(outline, np.float64).reshape(-1, 2) + 0.5).astype(np.int64)  # towards 0
    x, y = (np.concatenate(parts) for parts in zip(*map(_edge, corners, np.roll(corners, -1, axis=0)), strict=True))
    crossed = np.flatnonzero(x[1:] != x[:-1]) + 1
    column = (np.minimum(x[crossed], x[crossed - 1]) + 0.5) / _FINE - 0.5
    row = np.ceil(np.clip((np.minimum(y[crossed], y[crossed - 1]) + 0.5) / _FINE - 0.5, 0, height))
    is_middle = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    places = (column[is_middle] * height + row[is_middle]).astype(np.int64)
    crossings = np.bincount(places, minlength=height * width + 1)[: height * width]
    inside: Mask = (np.cumsum(crossings) % 2 == 1).reshape(width, height).T
    return inside


def _edge(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The points of an edge, one by one along its longer side: (2, N)."""
    span = np.abs(end - start)
    long = 0 if span[0] >= span[1] else 1
    is_flipped = start[long] > end[long]
    one, two = (end, start) if is_flipped else (start, end)
    steps = np.arange(span[long] + 1)
    points = np.empty((2, len(steps)), np.int64)
    points[long] = one[long] + steps
    slope = (two[1 - long] - one[1 - long]) / span[long] if span[long] else 0.0
    points[1 - long] = (one[1 - long] + slope * steps + 0.5).astype(np.int64)
    return points[:, ::-1] if is_flipped else points


def brush(numbers: list[Any], size: Size, at: str) -> Mask:
    """The pixels of a Label Studio brush: bytes of the runs of a picture with four channels, of which the last counts.

    Args:
        numbers: the bytes.
        size: of the picture.
        at: start of messages.

    Raises:
        DataError: they are not runs of a picture of this size.

    Source: ``rle-pack`` of thi.ng, as label-studio-converter's ``brush.py`` reads it.
    """
    total = 4 * size[0] * size[1]
    found, place = np.zeros(total, np.uint8), 0
    try:
        bits = np.unpackbits(np.frombuffer(bytes(numbers), np.uint8))
        text = (bits + ord("0")).tobytes().decode()
        lengths = [int(text[37 + 4 * index : 41 + 4 * index], 2) + 1 for index in range(4)]
        is_right, at_bit = int(text[:32], 2) == total and int(text[32:37], 2) == 7, 53
        while is_right and place < total:
            which = lengths[int(text[at_bit + 1 : at_bit + 3], 2)]
            values = at_bit + 3 + which
            end = place + int(text[at_bit + 3 : values], 2) + 1
            count = 1 if text[at_bit] == "1" else end - place
            at_bit = values + 8 * count
            is_right = end <= total and at_bit <= len(text)
            if is_right:
                found[place:end] = np.packbits(bits[values:at_bit])
            place = end
    except (ValueError, TypeError, IndexError):  # no bytes, or they end within a number
        is_right = False
    if not is_right:
        raise DataError(
            f"{at}: is not a brush of {size[0]} x {size[1]} pixels as Label Studio writes it; export it again"
        )
    mask: Mask = found.reshape(*size, 4)[:, :, 3] > 127
    return mask


def to_brush(mask: Mask) -> list[int]:
    """Encode a mask in the form that :func:`brush` reads."""
    pieces = [f"{4 * mask.size:032b}{7:05b}", *(f"{bits - 1:04b}" for bits in _RUN_BITS)]
    for value, length in _runs(mask.ravel()):
        rest = 4 * length
        while rest:
            part = min(rest, 1 << _RUN_BITS[-1])
            which = next(index for index, bits in enumerate(_RUN_BITS) if part <= 1 << bits)
            pieces.append(f"1{which:02b}{part - 1:0{_RUN_BITS[which]}b}{255 * value:08b}")
            rest -= part
    text = "".join(pieces)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def of_colors(path: Path, picture: npt.NDArray[np.uint8], table: dict[int, int], *, order: str, what: str) -> ClassMap:
    """The classes of a picture in colors.

    Args:
        path: for messages.
        picture: (H, W, 3|4).
        table: color as a number → class.
        order: ``RGB`` or ``BGR``: which channel is the number's highest byte.
        what: the meaning of the colors, for messages.

    Returns:
        (H, W).

    Raises:
        DataError: a color is not in the table.
    """
    shifts = [16 - 8 * order.index(channel) for channel in "RGB"]
    codes = np.zeros(picture.shape[:2], np.int64)
    for channel, shift in enumerate(shifts):
        codes |= picture[..., channel].astype(np.int64) << shift
    values, places = np.unique(codes, return_inverse=True)
    unknown = [int(value) for value in values if int(value) not in table]
    if unknown:
        red, green, blue = (unknown[0] >> shift & 255 for shift in shifts)
        raise DataError(
            f"{shown(path)}: the color {red},{green},{blue} is not a {what} that is listed; export the masks again"
        )
    found = np.array([table[int(value)] for value in values], np.uint8)
    return found[places].reshape(picture.shape[:2])
