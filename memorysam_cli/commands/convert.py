"""``memorysam convert``: masks for other tools, and labels from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin, must_exist
from memorysam_cli.errors import DataError, UsageError
from memorysam_cli.text import command, shown

SCHEMA_VERSION = 1
EXAMPLES = [
    ("convert ./masks --to coco --out annotations.json", "what predict wrote; masks as run lengths"),
    ("convert ./masks --to cvat --out ./cvat", "zip its content and upload it as 'Segmentation mask 1.1'"),
    ("convert ./masks --to label-studio --out ./tasks --prefix 's3://bucket/'", "tasks with predictions"),
    ("convert annotations.json --to masks --out ./data/labels", "labels for prepare folder"),
]
Form = Literal["masks", "coco", "cvat", "label-studio", "fiftyone"]


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A folder written by predict, a folder of PNGs of class numbers, or another tool's file or folder.",
            callback=must_exist(DataError),
        ),
    ],
    to: Annotated[Form, typer.Option("--to", help="What to write; masks are PNGs of class numbers.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="A new folder; a new .json of coco.")],
    form: Annotated[Form | None, typer.Option("--from", help="Format of SOURCE, else recognized by its files.")] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The classes in their order, as in prepare folder.",
            callback=must_exist(UsageError, "--classes "),
        ),
    ] = None,
    background: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The class of unannotated pixels, else 255: ignored.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="The pictures, for their names and for fiftyone.",
            callback=must_exist(DataError, "--images "),
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Text before each picture's name in label-studio, else its local storage: /data/…?d=."
        ),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert masks for another tool, or its labels into masks.

    COCO (run lengths and polygons; panoptic is read, too), CVAT (Segmentation mask 1.1), Label Studio (brushes) and
    FiftyOne. Pixels without annotation become 255, which is ignored, and 255 gets no annotation. Where annotations
    overlap, the later one counts. docs/other-tools.md describes each tool.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    if out.exists() and not (out.is_dir() and to != "coco" and not any(out.iterdir())):
        raise UsageError(f"--out {shown(out)}: exists already; give another name, or remove it")
    if (to == "coco") != (out.suffix.lower() == ".json"):
        raise UsageError(f"--out {shown(out)}: {'must end in .json' if to == 'coco' else 'must be a folder, no .json'}")
    if prefix is not None and to != "label-studio":
        raise UsageError(f"--prefix {shown(prefix)}: is for --to label-studio; leave it out")
    from memorysam_cli.data.own import mask_formats
    from memorysam_cli.data.own.annotated import LOCAL_FILES, Request
    from memorysam_cli.data.own.classes import read_classes
    from memorysam_cli.report import console
    from memorysam_cli.storage import atomic

    atomic.refuse_unwritable(out.parent)
    request = Request(
        classes=None if classes is None else read_classes(classes),
        background=background,
        pictures=pictures,
        prefix=LOCAL_FILES if prefix is None else prefix,
    )
    kind = form or mask_formats.recognize(source)
    found = mask_formats.read(source, kind, request)
    with console.progress(len(found.pictures), "convert") as bar:
        laws = mask_formats.write(found, to, out, request, advance=bar.advance)
    remarks = mask_formats.remarks(found, kind)
    for line in remarks:
        console.warn(line)
    tally = found.tally
    console.say(f"{'from':<10}  {kind}")
    console.say(f"{'pictures':<10}  {len(found.pictures)}")
    console.say(f"{'classes':<10}  {len(found.classes.names)}")
    console.say(f"{'out':<10}  {out}")
    if to == "masks" and kind != "masks":
        labels = out / mask_formats.MASKS / "**" / "*.png"
        console.note(
            "next, in the folder of your sensors: "
            + command(
                "prepare",
                "folder",
                ".",
                "--modality",
                "rgb=…",
                "--labels",
                labels,
                "--classes",
                out / mask_formats.CLASSES,
            )
        )
    if json:
        console.answer(
            {
                "schema_version": SCHEMA_VERSION, "source": str(source), "from": kind, "to": to, "out": str(out),
                "pictures": len(found.pictures), "left_out": list(found.left_out),
                "classes": list(found.classes.names), "background": background,
                "pixels": {"known": tally.known, "unknown": tally.unknown, "overlapping": tally.overlapping},
                "laws": laws, "warnings": remarks,
            }
        )  # fmt: skip
