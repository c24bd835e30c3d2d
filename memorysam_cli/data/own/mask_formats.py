"""Masks in the formats of other tools, and labels from them: ``memorysam convert``.

A reader converts a tool's files into :class:`~memorysam_cli.data.own.annotated.Annotated` pictures; a writer converts
these into the tool's files. Both are in :data:`FORMATS`, so that any format can be converted into any other. This
module has the formats that are folders of masks: our own, CVAT's Segmentation mask 1.1, FiftyOne's.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from memorysam_cli.data import decode, listing
from memorysam_cli.data.own import annotation_tools
from memorysam_cli.data.own.annotated import (
    Annotated,
    ClassMap,
    Maps,
    Picture,
    Request,
    Tally,
    class_list,
    class_of,
    color_of,
    free_color,
    numbers_of,
    of_colors,
    stem,
)
from memorysam_cli.data.own.classes import ClassList, read_classes
from memorysam_cli.data.own.folder import FolderRequest, label_rule
from memorysam_cli.data.own.patterns import Pattern
from memorysam_cli.data.own.sensors import told_kinds
from memorysam_cli.dataset import IGNORE, Color, LabelRule, is_inside
from memorysam_cli.errors import DataError, Laws, UsageError, check_laws
from memorysam_cli.storage import atomic, documents, images
from memorysam_cli.text import counted, few, shown

CLASSES, MASKS, LEDGER = "classes.json", "masks", "predictions.jsonl"
"""The format of ``predict`` and of ``convert --to masks``."""
LABELMAP, CVAT_MASKS, CVAT_LIST = "labelmap.txt", "SegmentationClass", "ImageSets/Segmentation/default.txt"
TARGETS, PICTURES, LABELS = "mask_targets.json", "data", "labels"
BACKGROUND = "background"
"""CVAT's name for pixels without a label."""
VOID = "__ignored__"
"""The same if a class has the name background."""
NAMED = 3
"""Number of names in a message."""
_LINE = re.compile(r"(.+?)\s*:\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*:[^:]*:[^:]*")
"""Columns of ``labelmap.txt``: name, red, green, blue, parts, actions."""


@dataclass(frozen=True)
class Format:
    """A format of masks that a tool reads and writes."""

    read: Callable[[Path, Request], Annotated]
    write: Callable[[ClassList, Maps, Path, Request], None]
    is_file: bool = False
    """One JSON file; otherwise a folder."""


def recognize(source: Path) -> str:
    """The name of a file's or folder's format.

    Raises:
        UsageError: it is a file but not JSON.
    """
    if source.is_dir():
        if (source / LABELMAP).is_file() or (source / CVAT_MASKS).is_dir():
            return "cvat"
        if (source / annotation_tools.TASKS).is_file():
            return "label-studio"
        return "fiftyone" if (source / TARGETS).is_file() else "masks"
    if source.suffix.lower() != ".json":
        remedy = "unpack it first" if source.suffix.lower() == ".zip" else "name a folder, or a file of JSON"
        raise UsageError(f"{shown(source)}: is no annotations that are known; {remedy}")
    with source.open("rb") as stream:
        return "label-studio" if stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[" else "coco"


def read(source: Path, form: str, request: Request) -> Annotated:
    """List the annotations of a tool; the pixels are read later, by :meth:`Annotated.maps`.

    Args:
        source: the file or the folder.
        form: a key of :data:`FORMATS`.
        request: classes, background and pictures.

    Raises:
        DataError: the source does not have this format; the message has the place and the problem.
        UsageError: there are no class names, or ``--classes`` or ``--background`` do not fit.
    """
    found = FORMATS[form].read(source, request)
    if request.background is not None:
        found = _with_background(found, request.background)
    if request.pictures is not None:
        found = replace(found, pictures=tuple(_with_files(found.pictures, request.pictures)))
    if not found.pictures:
        raise DataError(
            f"{shown(source)}: none of its {counted(len(found.left_out), 'picture')} is annotated; annotate some first"
        )
    _refuse_names(source, found.pictures)
    return found


def write(found: Annotated, form: str, out: Path, request: Request, *, advance: Callable[[], object]) -> Laws:
    """Write class maps for a tool, all or nothing.

    Args:
        found: from :func:`read`.
        form: a key of :data:`FORMATS`.
        out: a folder, or a file if the format is one; it must not exist.
        request: the same as for reading.
        advance: called after each picture.

    Returns:
        The checked laws.

    Raises:
        DataError: pixels cannot be read, or the format cannot represent a name.
        EnvironmentFault: it cannot be written.
    """
    written = 0

    def counted() -> Maps:
        nonlocal written
        for each in found.maps(advance):
            yield each
            written += 1

    FORMATS[form].write(found.classes, counted(), out, request)
    return check_laws({"pictures listed = pictures written": (len(found.pictures), written)})


def remarks(found: Annotated, form: str) -> list[str]:
    """Lines on annotations that are not in the class maps.

    Args:
        found: with all maps read.
        form: of the source.
    """
    tally, lines = found.tally, list(found.notes)
    if found.left_out:
        named = few([shown(name) for name in found.left_out], NAMED)
        lines.append(f"{counted(len(found.left_out), 'picture', 'is')} not annotated and left out: {named}")
    if tally.overlapping:
        lines.append(
            f"{counted(tally.overlapping, 'pixel', 'is')} in annotations of two classes; the later one in the file "
            "counts"
        )
    if tally.unknown and form != "masks":
        share = 100 * tally.unknown / (tally.known + tally.unknown)
        lines.append(
            f"{share:.3g} % of the pixels are in no annotation: they become 255, which is ignored; --background CLASS "
            "gives them a class"
        )
    return lines


def _with_background(found: Annotated, name: str) -> Annotated:
    """Give pixels without a class the class of this name, a new one if there is none."""
    names, palette = found.classes.names, found.classes.palette
    if name in names:
        return replace(found, background=names.index(name))
    if len(names) == IGNORE:
        raise UsageError(f"--background {shown(name)}: there are {IGNORE} classes already; name one of them")
    classes = replace(found.classes, names=(*names, name), palette=(*palette, free_color(palette)))
    return replace(found, classes=classes, background=len(names))


def _with_files(pictures: Sequence[Picture], folder: Path) -> Iterator[Picture]:
    """The pictures with the names of their files in a folder."""
    there = _files_by_stem(folder)
    lacking = [picture.stem for picture in pictures if picture.stem not in there]
    if lacking:
        raise DataError(
            f"--images {shown(folder)}: has no picture of {len(lacking)} of {counted(len(pictures), 'mask')} "
            f"({few([shown(name) for name in lacking], NAMED)}); there are {few(sorted(there), NAMED) or 'none'}"
        )
    for picture in pictures:
        yield replace(picture, name=there[picture.stem], file=folder / there[picture.stem])


def _files_by_stem(folder: Path) -> dict[str, str]:
    """The pictures in a folder and below it, by their names without suffix."""
    found: dict[str, str] = {}
    for inside, names in listing.walk(folder):
        for path in (f"{inside}/{name}" if inside else name for name in names):
            if path.lower().endswith(images.SUFFIXES):
                found.setdefault(stem(path), path)
    return found


def _refuse_names(source: Path, pictures: Sequence[Picture]) -> None:
    """Refuse names that would leave the output folder, give the same file, or need more than a line."""
    for picture in pictures:
        if not is_inside(picture.name) or not picture.name.isprintable() or not picture.stem:
            raise DataError(
                f"{shown(source)}: {shown(picture.name)!r} is not a name for a picture: it must be a path below the "
                "pictures' folder, with forward slashes; rename it there"
            )
    listing.refuse_collisions([picture.stem for picture in pictures])


def _read_masks(source: Path, request: Request) -> Annotated:
    whole = source.resolve()
    if whole.name == MASKS and (whole.parent / CLASSES).is_file() and not (source / CLASSES).is_file():
        source = whole.parent  # the masks of a prediction were given instead of its folder
    is_ours = (source / CLASSES).is_file() and (source / MASKS).is_dir()
    folder = source / MASKS if is_ours else source
    classes = request.classes or (read_classes(source / CLASSES) if (source / CLASSES).is_file() else None)
    if classes is None:
        raise UsageError(f"{shown(source)}: has no {CLASSES}; give --classes FILE or another tool's file or folder")
    matches = Pattern("**/*.png").find(folder)
    rule = label_rule(folder, matches, FolderRequest(name="masks", modalities={}, classes=classes))
    names = _names_in_ledger(source / LEDGER) if is_ours else {}

    def read(path: str, _: Tally) -> ClassMap:
        return decode.read_label(folder / path, rule, len(classes.names), palette=classes.palette)

    return Annotated(
        replace(classes, mapping=()),
        tuple(
            Picture(names.get(match.path, match.path), functools.partial(read, match.path))
            for match in sorted(matches, key=lambda match: match.path)
        ),
    )


def _names_in_ledger(ledger: Path) -> dict[str, str]:
    """Path of a mask below its folder → the photo of its prediction, or else the first sensor's file."""
    names: dict[str, str] = {}
    for line in documents.each_json_line(ledger) if ledger.is_file() else ():
        with documents.understood(ledger):
            if line["status"] == "done":
                inputs = line["inputs"]
                photo = next((name for name in inputs if told_kinds(name) == ["rgb"]), next(iter(inputs)))
                names[str(line["mask"]).removeprefix(f"{MASKS}/")] = str(inputs[photo][0])
    return names


def _write_masks(classes: ClassList, maps: Maps, out: Path, _: Request) -> None:
    with atomic.new_folder(out) as folder:
        for picture, found in maps:
            images.write_png(folder / MASKS / f"{picture.stem}.png", found, fsync=False)
        named = zip(classes.names, classes.palette, strict=True)
        documents.write_json(
            folder / CLASSES,
            [{"id": index, "name": name, "color": list(shade)} for index, (name, shade) in enumerate(named)],
        )


def _read_cvat(source: Path, request: Request) -> Annotated:
    labels = _labelmap(source / LABELMAP)
    void = VOID if VOID in labels else BACKGROUND
    named = {name: color for name, color in labels.items() if name != void}
    own = class_list(list(named), list(named.values()), at=shown(source / LABELMAP))
    classes = request.classes or own
    numbers = numbers_of(classes) | {void: IGNORE}
    in_order = [class_of(name, numbers, shown(source / LABELMAP)) for name in labels]
    table = {red << 16 | green << 8 | blue: number for (red, green, blue), number in zip(labels.values(), in_order)}  # noqa: B905
    folder = source / CVAT_MASKS
    matches = sorted(Pattern("**/*.png").find(folder), key=lambda match: match.path)
    there = {stem(match.path) for match in matches}
    lists = source / Path(CVAT_LIST).parent
    listed = [
        name for each in listing.files_in(lists) for name in documents.read_text(lists / each).splitlines() if name
    ]
    return Annotated(
        classes,
        tuple(
            Picture(match.path, functools.partial(_cvat_map, folder / match.path, table, in_order)) for match in matches
        ),
        tuple(name for name in dict.fromkeys(listed) if name not in there),
    )


def _labelmap(path: Path) -> dict[str, Color]:
    """Label → color, in the file's order."""
    found: dict[str, Color] = {}
    for number, line in enumerate(documents.read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        color = color_of([int(part) for part in match.groups()[1:]]) if match else None
        at = f"{shown(path)}:{number}"
        if match is None or color is None:
            raise DataError(f"{at}: must be name:red,green,blue:: with colors to 255, not {shown(line, most=40)!r}")
        if match[1] in found or color in found.values():
            raise DataError(f"{at}: another label has this name or this color already; give each its own")
        found[match[1]] = color
    return found


def _cvat_map(path: Path, table: dict[int, int], in_order: Sequence[int], _: Tally) -> ClassMap:
    """The classes of a mask in the labels' colors; with one channel, of their numbers in the list."""
    header, picture = images.load(path)
    if header.is_lossy or picture.dtype != np.uint8:
        raise DataError(f"{shown(path)}: is not a PNG of 8 bits, as CVAT writes it; get the file again")
    if picture.ndim == len("HW"):
        return decode.read_label(path, rule_of(dict(enumerate(in_order))), IGNORE)
    return of_colors(path, picture, table, order="RGB", what="label")


def rule_of(table: dict[int, int]) -> LabelRule:
    """The rule from stored values to classes, or 255."""
    mapping = tuple((value, number) for value, number in table.items() if number != IGNORE)
    return LabelRule(mapping=mapping, ignore=tuple(value for value, number in table.items() if number == IGNORE))


def _write_cvat(classes: ClassList, maps: Maps, out: Path, _: Request) -> None:
    void = VOID if BACKGROUND in classes.names else BACKGROUND
    for name in classes.names:
        if ":" in name or not name.isprintable() or name != name.strip() or name.startswith("#") or name == VOID:
            raise DataError(
                f"class {shown(name)!r}: {LABELMAP} of CVAT cannot hold this name; give --classes with others"
            )
    colors = _cvat_colors(classes)
    table = np.zeros((IGNORE + 1, len("RGB")), np.uint8)
    table[: len(colors)] = colors
    table[IGNORE] = void_color = (0, 0, 0) if void == BACKGROUND else free_color([(0, 0, 0), *colors])
    lines = [(void, void_color), *zip(classes.names, colors, strict=True)]
    with atomic.new_folder(out) as folder:
        names = []
        for picture, found in maps:
            images.write_png(folder / CVAT_MASKS / f"{picture.stem}.png", table[found], fsync=False)
            names.append(picture.stem)
        text = "".join(f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in lines)
        atomic.write_text(folder / LABELMAP, f"# label:color_rgb:parts:actions\n{text}")
        atomic.write_text(folder / CVAT_LIST, "".join(f"{name}\n" for name in names))


def _cvat_colors(classes: ClassList) -> list[Color]:
    """The classes' colors, each once; black is only for the background."""
    colors: list[Color] = []
    for name, shade in zip(classes.names, classes.palette, strict=True):
        is_background = name == BACKGROUND
        taken = [(0, 0, 0), *colors]
        colors.append(
            (0, 0, 0) if is_background else free_color([*taken, *classes.palette]) if shade in taken else shade
        )
    return colors


def _read_fiftyone(source: Path, request: Request) -> Annotated:
    folder, targets = source / LABELS, source / TARGETS
    classes = request.classes
    table = {} if classes is None else dict(classes.mapping or enumerate(range(len(classes.names))))
    if targets.is_file():
        entries = documents.read_object(targets)
        wrong = [
            key for key, name in entries.items() if not re.fullmatch("[0-9]{1,5}", key) or not isinstance(name, str)
        ]
        if wrong:
            raise DataError(
                f'{shown(targets)}: {shown(wrong[0], most=40)!r} must be a value and its class: {{"1": "road"}}'
            )
        ordered = sorted(entries, key=int)
        classes = classes or class_list([entries[key] for key in ordered], [], at=shown(targets))
        table = {int(key): class_of(entries[key], numbers_of(classes), shown(targets)) for key in ordered}
    if classes is None:
        raise UsageError(f"{shown(source)}: has no {TARGETS}; give --classes FILE, such as lines of '1: road'")
    rule = rule_of({0: IGNORE} | table)
    there = _files_by_stem(source / PICTURES)
    return Annotated(
        replace(classes, mapping=()),
        tuple(
            Picture(
                there.get(stem(match.path), match.path),
                functools.partial(_fiftyone_map, folder / match.path, rule, len(classes.names)),
            )
            for match in sorted(Pattern("**/*.png").find(folder), key=lambda match: match.path)
        ),
    )


def _fiftyone_map(path: Path, rule: LabelRule, count: int, _: Tally) -> ClassMap:
    return decode.read_label(path, rule, count)


def _write_fiftyone(classes: ClassList, maps: Maps, out: Path, _: Request) -> None:
    """Class k is stored as k + 1, because FiftyOne shows nothing for 0."""
    with atomic.new_folder(out) as folder:
        for picture, found in maps:
            images.write_png(folder / LABELS / f"{picture.stem}.png", found + np.uint8(1), fsync=False)  # 255 -> 0
            if picture.file is not None:
                target = folder / PICTURES / picture.name
                atomic.make_folder(target.parent)
                shutil.copyfile(picture.file, target)
        documents.write_json(folder / TARGETS, {str(value): name for value, name in enumerate(classes.names, 1)})


FORMATS = {
    "masks": Format(_read_masks, _write_masks),
    "coco": Format(annotation_tools.read_coco, annotation_tools.write_coco, is_file=True),
    "cvat": Format(_read_cvat, _write_cvat),
    "label-studio": Format(annotation_tools.read_label_studio, annotation_tools.write_label_studio),
    "fiftyone": Format(_read_fiftyone, _write_fiftyone),
}
