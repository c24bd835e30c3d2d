"""COCO (instances and panoptic) and Label Studio: annotations in JSON. docs/other-tools.md has the rules for users."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from memorysam_cli import __version__
from memorysam_cli.data.own.annotated import (
    Annotated,
    ClassMap,
    Maps,
    Mask,
    Picture,
    Request,
    Size,
    Tally,
    brush,
    class_list,
    class_of,
    coco_region,
    color_of,
    field_of,
    note_on_unread,
    numbers_of,
    of_colors,
    painted,
    polygon,
    read_annotations,
    size_of,
    spell,
    to_brush,
)
from memorysam_cli.data.own.classes import ClassList
from memorysam_cli.dataset import IGNORE, is_inside
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.storage import atomic, documents, images
from memorysam_cli.text import few, shown

TASKS, CONFIG = "tasks.json", "label_config.xml"
NAMED = 3
"""Number of examples in a message."""
_LABEL = re.compile(r"<Label\b[^>]*>")
_ATTRIBUTE = re.compile(r"\b(value|background)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_UPLOADED = re.compile(r"/?data/upload/\d+/(?:[0-9a-f]{8}-)?")
"""Pattern of the prefix that Label Studio adds to the name of an uploaded picture."""


def read_coco(source: Path, request: Request) -> Annotated:
    """The images of a COCO file: instances, which may overlap, or panoptic segments beside a folder of PNGs."""
    document, where = read_annotations(source), shown(source)
    classes, numbers = _categories(field_of(document, "categories", list, at=where), request, where)
    entries: dict[Any, tuple[str, Any, str]] = {}
    for place, entry in enumerate(field_of(document, "images", list, at=where)):
        at = f"{where}: images[{place}]"
        identity = field_of(entry, "id", int, str, at=at)
        if identity in entries:
            raise DataError(f"{at}: another image has the id {shown(identity)} already; give each its own")
        entries[identity] = (field_of(entry, "file_name", str, at=at), entry, at)
    annotations: dict[Any, list[tuple[Any, str]]] = {identity: [] for identity in entries}
    for place, entry in enumerate(field_of(document, "annotations", list, at=where)):
        at = f"{where}: annotations[{place}]"
        identity = field_of(entry, "image_id", int, str, at=at)
        if identity not in annotations:
            raise DataError(f"{at}: no image has the id {shown(identity)}; export images and annotations together")
        annotations[identity].append((entry, at))
    if any("segments_info" in entry for group in annotations.values() for entry, _ in group):
        return _panoptic(source, classes, numbers, list(entries.values()), list(annotations.values()))
    pictures, unread = [], 0
    for (name, entry, at), group in zip(entries.values(), annotations.values(), strict=True):
        size = size_of(entry, at)
        regions = []
        for annotation, spot in group:
            number = _category(annotation, numbers, spot)
            shape = annotation.get("segmentation") or []
            if isinstance(shape, list):  # one or two corners have no area
                parts = [part for part in shape if not (isinstance(part, list) and len(part) in (0, 2, 4))]
                unread += max(1, len(shape)) - len(parts)
                shape = parts
            regions += [(number, shape, spot)] if shape else []
        pictures.append(Picture(name, functools.partial(_coco_map, size, regions)))
    return Annotated(classes, tuple(pictures), notes=note_on_unread(unread))


def _categories(entries: Sequence[Any], request: Request, where: str) -> tuple[ClassList, dict[int, int]]:
    """The classes in the order of their ids, or as in ``--classes``; and id → class."""
    found: dict[int, tuple[str, Any]] = {}
    for place, entry in enumerate(entries):
        at = f"{where}: categories[{place}]"
        identity = field_of(entry, "id", int, at=at)
        if identity in found:
            raise DataError(f"{at}: another category has the id {identity} already; give each its own")
        found[identity] = (field_of(entry, "name", str, at=at), entry.get("color"))
    ordered = sorted(found)
    own = class_list(
        [found[identity][0] for identity in ordered], [color_of(found[identity][1]) for identity in ordered], at=where
    )
    classes = request.classes or own
    numbers = numbers_of(classes)
    return classes, {identity: class_of(found[identity][0], numbers, where) for identity in ordered}


def _category(entry: Any, numbers: dict[int, int], at: str) -> int:
    identity = field_of(entry, "category_id", int, at=at)
    if identity not in numbers:
        known = few([str(number) for number in numbers], NAMED)
        raise DataError(f"{at}: no category has the id {identity} (known: {known}); export the annotations again")
    return numbers[identity]


def _coco_map(size: Size, regions: Sequence[tuple[int, Any, str]], tally: Tally) -> ClassMap:
    return painted(size, ((number, coco_region(shape, size, at)) for number, shape, at in regions), tally)


def _panoptic(
    source: Path,
    classes: ClassList,
    numbers: dict[int, int],
    entries: Sequence[tuple[str, Any, str]],
    annotations: Sequence[Sequence[tuple[Any, str]]],
) -> Annotated:
    """COCO panoptic: a PNG of segment ids for each image, in the folder with the name of the JSON file."""
    folder = source.with_suffix("")
    pictures, left_out = [], []
    for (name, entry, at), group in zip(entries, annotations, strict=True):
        if len(group) > 1:
            raise DataError(f"{group[1][1]}: another annotation is of the same image; panoptic ones are one per image")
        if not group:
            left_out.append(name)
            continue
        annotation, place = group[0]
        file = field_of(annotation, "file_name", str, at=place)
        if not is_inside(file):
            raise DataError(f"{place}: {shown(file)!r} leads out of {shown(folder)}; name a file in it")
        table: dict[int, int] = {}
        for segment in field_of(annotation, "segments_info", list, at=place):
            identity = field_of(segment, "id", int, at=place)
            if identity in table or not 0 < identity < 1 << 24:
                raise DataError(f"{place}: the segment {identity} occurs twice, or is not a color; export it again")
            table[identity] = _category(segment, numbers, place)
        size = size_of(entry, at) if "height" in entry else None
        pictures.append(Picture(name, functools.partial(_panoptic_map, folder / file, table, size)))
    return Annotated(classes, tuple(pictures), tuple(left_out))


def _panoptic_map(path: Path, table: dict[int, int], size: Size | None, _: Tally) -> ClassMap:
    """The classes of a PNG of segment ids; 0 is not a segment."""
    picture = images.read(path)
    if picture.ndim != len("HWC") or picture.dtype != np.uint8:
        raise DataError(
            f"{shown(path)}: is not a picture in colors, which segments are numbered by; get the file again"
        )
    if size not in {None, picture.shape[:2]}:
        raise DataError(f"{shown(path)}: is of {picture.shape[:2]} pixels, its image of {size}; export both again")
    return of_colors(path, picture, {0: IGNORE, **table}, order="BGR", what="segment")


def write_coco(classes: ClassList, maps: Maps, out: Path, _: Request) -> None:
    """Write a COCO file of instances in compressed run lengths, one for each class of a picture."""
    atomic.write_pieces(out, _coco_pieces(classes, maps))


def _coco_pieces(classes: ClassList, maps: Maps) -> Iterator[bytes]:
    """The parts of the file, an annotation for each class of a picture; none for pixels without a class."""
    named = zip(classes.names, classes.palette, strict=True)
    head = {
        "info": {"description": "class maps as one mask per class", "contributor": f"memorysam {__version__}"},
        "licenses": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "", "color": list(shade)}
            for number, (name, shade) in enumerate(named, 1)
        ],
    }
    yield documents.to_json(head).encode()[:-1] + b', "annotations": ['
    entries, count = [], 0
    for image, (picture, found) in enumerate(maps, 1):
        height, width = found.shape
        entries.append({"id": image, "file_name": picture.name, "height": height, "width": width})
        for number in np.unique(found[found != IGNORE]).tolist():
            count += 1
            mask = found == number
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            annotation = {
                "id": count, "image_id": image, "category_id": number + 1, "iscrowd": 0,
                "area": int(np.count_nonzero(mask)), "bbox": [int(value) for value in box],
                "segmentation": {"size": [height, width], "counts": spell(mask)},
            }  # fmt: skip
            yield (b",\n" if count > 1 else b"\n") + documents.to_json(annotation).encode()
    yield b'\n], "images": ' + documents.to_json(entries).encode() + b"}\n"


def read_label_studio(source: Path, request: Request) -> Annotated:
    """The tasks of a JSON export, or of a folder that :func:`write_label_studio` wrote."""
    path = source / TASKS if source.is_dir() else source
    tasks, where = read_annotations(path), shown(path)
    if not isinstance(tasks, list):
        raise DataError(f"{where}: must be a list of tasks; export it from Label Studio as JSON")
    drawn, left_out, unread = [], [], 0
    for place, task in enumerate(tasks, 1):
        at = f"{where}: task {place}"
        name = _name_of_task(field_of(task, "data", dict, at=at), at)
        regions, size, others = _regions(task, at)
        unread += others
        if regions is None or size is None:
            left_out.append(name)
        else:
            drawn.append((name, size, regions))
    own = _config(path.with_name(CONFIG))
    if own is None:
        names = sorted({label for _, _, regions in drawn for label, _, _ in regions})
        own = class_list(names, [], at=where) if drawn and names else None
    classes = request.classes or own
    if classes is None:
        raise UsageError(f"{where}: has no {CONFIG} beside it and no label in it; give --classes FILE")
    numbers = numbers_of(classes)
    pictures = [
        Picture(
            name,
            functools.partial(
                _label_studio_map, size, [(class_of(label, numbers, at), value, at) for label, value, at in regions]
            ),
        )
        for name, size, regions in drawn
    ]
    return Annotated(classes, tuple(pictures), tuple(left_out), note_on_unread(unread))


def _name_of_task(data: Any, at: str) -> str:
    """The path of a task's picture, from the first text in its data; for an address without its server."""
    text = next((data[key] for key in ("image", *data) if isinstance(data.get(key), str)), None)
    if text is None:
        raise DataError(f"{at}: its data names no picture; export it from Label Studio as JSON")
    try:
        address = urlsplit(text)
    except ValueError as error:
        raise DataError(f"{at}: {shown(text, most=80)!r} is not an address of a picture; export it again") from error
    served = parse_qs(address.query).get("d", [""])[0]
    return served.lstrip("/") or _UPLOADED.sub("", unquote(address.path)).lstrip("/")


Region = tuple[str, Any, str]
"""Label, value and place of a region."""


def _regions(task: Any, at: str) -> tuple[list[Region] | None, Size | None, int]:
    """The last regions of a task, its picture's size, and the number of regions without pixels.

    Annotations by people count, the last one that was not canceled; without any, the last prediction.
    """
    groups = [task.get(key) or [] for key in ("annotations", "completions", "predictions")]
    if not all(isinstance(group, list) and all(isinstance(each, dict) for each in group) for group in groups):
        raise DataError(f"{at}: its annotations must be a list of objects; export it from Label Studio as JSON")
    done = [each for group in groups[:2] for each in group if not each.get("was_cancelled")] or groups[2]
    if not done:
        return None, None, 0
    regions: list[Region] = []
    data, others = task["data"], 0
    sizes = {size_of(data, f"{at}: data")} if {"height", "width"} <= set(data) else set()
    for place, result in enumerate(field_of(done[-1], "result", list, at=at), 1):
        spot = f"{at}: result {place}"
        kind = field_of(result, "type", str, at=spot)
        value = result.get("value")
        labels = value.get(kind) if isinstance(value, dict) and kind in ("brushlabels", "polygonlabels") else None
        if not labels or (kind == "polygonlabels" and len(field_of(value, "points", list, at=spot)) < 3):
            others += 1
            continue
        if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str):
            raise DataError(f"{spot}: must have one label, not {shown(repr(labels), most=40)}; keep one of them")
        if result.get("image_rotation"):
            raise DataError(f"{spot}: its picture was turned in Label Studio; turn it back there and export it again")
        sizes.add(size_of(result, spot, keys=("original_height", "original_width")))
        regions.append((labels[0], value, spot))
    if len(sizes) > 1:
        raise DataError(f"{at}: its picture has two sizes, {' and '.join(map(str, sorted(sizes)))}; export it again")
    return regions, next(iter(sizes), None), others


def _config(path: Path) -> ClassList | None:
    """The labels of the interface's XML, in its order; None if there is no such file."""
    if not path.is_file():
        return None
    labels = [
        {name: html.unescape(double or single) for name, double, single in _ATTRIBUTE.findall(tag)}
        for tag in _LABEL.findall(documents.read_text(path))
    ]
    colors = [re.fullmatch("#([0-9a-fA-F]{6})", each.get("background", "")) for each in labels]
    return class_list(
        [each.get("value", "") for each in labels],
        [color_of(list(bytes.fromhex(match[1]))) if match else None for match in colors],
        at=shown(path),
    )


def _label_studio_map(size: Size, regions: Sequence[tuple[int, Any, str]], tally: Tally) -> ClassMap:
    return painted(size, ((number, _drawn(value, size, at)) for number, value, at in regions), tally)


def _drawn(value: Any, size: Size, at: str) -> Mask:
    """The pixels of a brush, or those within a polygon, whose corners are in % of the picture."""
    if "brushlabels" in value:
        return brush(field_of(value, "rle", list, at=at), size, at)
    points = field_of(value, "points", list, at=at)
    if not all(isinstance(point, list) and len(point) == 2 for point in points) or not all(
        type(part) in (int, float) for point in points for part in point
    ):
        raise DataError(f"{at}: the corners of a polygon must be pairs of numbers; export it again")
    return polygon([part * size[1 - axis] / 100 for point in points for axis, part in enumerate(point)], size, at)


def write_label_studio(classes: ClassList, maps: Maps, out: Path, request: Request) -> None:
    """Write tasks with brushes as predictions, and the labels of the interface."""
    with atomic.new_folder(out) as folder:
        atomic.write_pieces(folder / TASKS, _task_pieces(classes, maps, request.prefix))
        labels = [
            f"    <Label value={quoteattr(name)} background={quoteattr('#' + bytes(shade).hex())}/>"
            for name, shade in zip(classes.names, classes.palette, strict=True)
        ]
        lines = ["<View>", '  <Image name="image" value="$image"/>', '  <BrushLabels name="tag" toName="image">']
        atomic.write_text(folder / CONFIG, "\n".join([*lines, *labels, "  </BrushLabels>", "</View>", ""]))


def _task_pieces(classes: ClassList, maps: Maps, prefix: str) -> Iterator[bytes]:
    """The tasks, each with a prediction: a brush for each class."""
    start = b"[\n"
    for task, (picture, found) in enumerate(maps, 1):
        height, width = found.shape
        results = [
            {
                "id": f"{task}-{number}", "type": "brushlabels", "from_name": "tag", "to_name": "image",
                "original_width": width, "original_height": height, "image_rotation": 0,
                "value": {"format": "rle", "rle": to_brush(found == number), "brushlabels": [classes.names[number]]},
            }
            for number in np.unique(found[found != IGNORE]).tolist()
        ]  # fmt: skip
        data = {"image": prefix + quote(picture.name), "width": width, "height": height}
        predictions = [{"model_version": f"memorysam {__version__}", "result": results}]
        yield start + documents.to_json({"data": data, "predictions": predictions}).encode()
        start = b",\n"
    yield b"\n]\n"
