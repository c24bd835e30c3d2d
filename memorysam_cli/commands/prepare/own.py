"""``memorysam prepare folder`` and ``manifest``: data sets of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from memorysam_cli.commands.options import Json, Quiet, Verbose, begin
from memorysam_cli.commands.prepare.outcome import (
    DropIncomplete,
    HeadersOnly,
    MaxPixels,
    Root,
    check_and_write,
    measuring,
)
from memorysam_cli.errors import DataError, UsageError

Named = list[str] | None


def folder(
    root: Root,
    modality: Annotated[
        list[str],
        typer.Option(
            "--modality",
            "-m",
            metavar="NAME=PATTERN",
            help="A sensor and its files below ROOT, such as 'depth=depth/*.png' (repeatable).",
        ),
    ],
    labels: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="The label files; without, the scenes can only be predicted.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A class per line: name, or name r g b, or value: name r g b.")
    ] = None,
    palette: Annotated[
        Literal["given", "safe"],
        typer.Option(help="Colours of --classes as given, or such that the colour-blind tell them apart."),
    ] = "given",
    split: Annotated[
        Named, typer.Option("--split", metavar="SHARES|NAME=FILE", help="0.8/0.1/0.1, or a list of scenes per split.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the data set; else ROOT's own.")] = None,
    kind: Annotated[
        Named,
        typer.Option(
            "--kind", metavar="NAME=KIND", help="rgb, gray, depth, hha, event, lidar, thermal or angle (repeatable)."
        ),
    ] = None,
    channels: Annotated[
        Named,
        typer.Option(
            "--channels", metavar="NAME=A,B,C", help="The three stored channels to take, from 0 (repeatable)."
        ),
    ] = None,
    scale: Annotated[
        Named,
        typer.Option(
            "--scale", metavar="NAME=X", help="Stored values times X, as depth=0.001 for mm to m (repeatable)."
        ),
    ] = None,
    ignore: Annotated[
        list[int] | None, typer.Option(metavar="VALUE", help="Label value that counts nowhere, else 255 (repeatable).")
    ] = None,
    label_shift: Annotated[
        int, typer.Option(min=-65535, max=65535, metavar="N", help="Added to label values, as -1 for 1..K.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Another seed, another division into splits.")] = 0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Normalise each sensor by its own mean and deviation over train.")
    ] = False,
    drop_incomplete: DropIncomplete = False,
    headers_only: HeadersOnly = False,
    max_pixels: MaxPixels = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Prepare files of your own sensors, any number of them.

    PNG, JPEG, TIFF, NPY or NPZ. Files of one scene pair by what the wildcards stand for; {split} in a pattern is the
    scene's split. An angle has two patterns, sine and cosine: 'aolp=sin/*.npy+cos/*.npy'.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.commands.prepare import words
    from memorysam_cli.data.own.classes import read_classes
    from memorysam_cli.data.own.folder import FolderRequest, survey
    from memorysam_cli.data.own.patterns import Pattern

    patterns = words.patterns(modality)
    if (labels is None) != (classes is None):
        raise UsageError("--labels and --classes: give both, or neither for scenes that are only predicted")
    wanted = FolderRequest(
        name=words.dataset_name(name, root),
        modalities=patterns,
        labels=None if labels is None else Pattern(labels),
        classes=None if classes is None else read_classes(words.existing(classes, root), is_safe=palette == "safe"),
        split=words.split(split or [], root),
        kinds=words.kinds(words.pairs("--kind", kind, known=patterns)),
        channels=words.channels(words.pairs("--channels", channels, known=patterns)),
        scale=words.scales(words.pairs("--scale", scale, known=patterns)),
        ignore=tuple(ignore or (255,)),
        label_shift=label_shift,
        seed=seed,
        will_measure=measure,
    )
    found = survey(root, wanted)
    check_and_write(
        found.manifest,
        json=json,
        drop_incomplete=drop_incomplete,
        headers_only=headers_only,
        max_pixels=max_pixels,
        measure=measuring(max_pixels=max_pixels, normalise=True) if measure else None,
        notes=found.notes,
        held=found.laws,
    )


def manifest(
    root: Root,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the data set: a folder in ROOT/memorysam/.")],
    measure: Annotated[
        bool, typer.Option("--measure", help="Store each sensor's mean, deviation and range over train.")
    ] = False,
    drop_incomplete: DropIncomplete = False,
    headers_only: HeadersOnly = False,
    max_pixels: MaxPixels = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check again, and accept, a data set that was edited by hand.

    The other commands refuse scenes.jsonl until then.
    """
    begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.data import manifest as manifests

    found = manifests.read_unsigned(root, name)
    if found.info.name != name:
        path = manifests.folder(root, name) / manifests.INFO
        raise DataError(
            f"{path}: name: is '{found.info.name}', but its folder is '{name}'; write the folder's name there"
        )
    check_and_write(
        found,
        json=json,
        drop_incomplete=drop_incomplete,
        headers_only=headers_only,
        max_pixels=max_pixels,
        measure=measuring(max_pixels=max_pixels, normalise=False) if measure else None,
        accepts_edits=True,
    )
