"""``memorysam predict``: segment scenes, labelled or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import PartialError, UsageError

EXAMPLE = "memorysam predict ./photos --out ./masks --map img=rgb --color --overlay"


def predict(
    scenes: Annotated[
        Path | None,
        typer.Argument(
            metavar="[SCENES]",
            help="A prepared data set, a folder per modality, a folder per scene, or one scene; else what is prepared "
            "below --data.",
            show_default=False,
        ),
    ] = None,
    out: options.Out = Path("masks"),
    weights: options.Weights = None,
    data: options.Data = None,
    split: options.OptionalSplit = None,
    modalities: options.Modalities = None,
    missing: options.Missing = "drop",
    tta: options.Tta = False,
    tta_scales: options.TtaScales = None,
    tile: options.Tile = False,
    tile_overlap: options.TileOverlap = 0.25,
    renames: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="MODALITY=NAME", help="What your files call a modality (repeatable)."),
    ] = None,
    color: Annotated[bool, typer.Option("--color", help="Also paint each mask in its classes' colours.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also blend colours over the image, with legend.")] = False,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write each pixel's probability.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first so many scenes.")] = None,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a scene that cannot be read: stop, or list it and go on.")
    ] = "stop",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that holds other files.")] = False,
    device: options.Device = "auto",
    batch: options.Batch = 4,
    workers: options.Workers = 2,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment scenes: a class-id PNG of each scene's own size.

    In the scenes' own tree; no labels needed. A scene may lack modalities that the weights know. Writes masks/,
    classes.json, predictions.jsonl and, last, _SUCCESS.json into the output folder.
    """
    from memorysam_cli.engine import run_folder

    options.begin(json=json, verbose=verbose, quiet=quiet)
    if scenes is not None and data is not None:
        raise UsageError(f"--data {data}: SCENES ({scenes}) are given already; leave one of the two out")
    path = weights or run_folder.default_weights()  # before torch is imported: without weights the answer is instant
    asked, scales = options.names(modalities), options.scales(tta_scales, tta=tta)
    from memorysam_cli.data import inputs, manifest
    from memorysam_cli.engine import runtime
    from memorysam_cli.engine.evaluation import scoring, views
    from memorysam_cli.engine.prediction import folder, segmenting
    from memorysam_cli.model.weights import read_card
    from memorysam_cli.report import console

    card = read_card(path)
    chosen = scoring.choose_modalities(card.modalities, asked)
    names = [modality.name for modality in chosen]
    aliases = segmenting.read_aliases(renames, names)
    where = scenes or manifest.prepared_root(data, dataset=card.dataset.name)
    found = inputs.discover(where, modalities=names, aliases=aliases, split=split, dataset=card.dataset.name)
    wanted = found.scenes[:limit]
    folder.refuse_collisions(wanted)
    folder.refuse_foreign(out, overwrite=overwrite)
    for text in (*found.notes, *segmenting.doubts(wanted, root=found.root, modalities=chosen)):
        console.note(text)
    place = runtime.choose_device(device)
    trees = {"color": color, "overlay": overlay, "confidence": confidence}
    report = segmenting.segment(
        path, out, scenes=wanted, root=found.root, source=str(where), modalities=chosen, device=place,
        extras=[name for name, is_wanted in trees.items() if is_wanted], batch=batch, workers=workers,
        skip_bad=on_error == "skip", view=views.View(missing, scales, tile, tile_overlap),
    )  # fmt: skip
    console.say(f"{report['done']} of {report['scenes']} scenes, {', '.join(report['modalities'])}")
    for name, tree in report["trees"].items():
        console.say(f"{name:<10}  {tree}")
    console.say(f"{'list':<10}  {report['ledger']}")
    if json:
        console.answer(report)
    if report["failed"]:
        raise PartialError(f"{report['failed']} of {report['scenes']} scenes were left out; see {report['ledger']}")
