"""``memorysam predict``: segment scenes, labelled or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import DataError, PartialError, UsageError

SCENES = (
    "A prepared data set, a folder per modality, a folder per scene, or one scene; else what is prepared below --data."
)
EXAMPLES = [
    ("predict ./photos --out ./masks --map img=rgb --color --overlay", "folders img/ and depth/ of one's own"),
    ("predict ./data --out ./masks --split test --confidence", "a prepared data set"),
    (
        "predict ./data --out ./masks --probabilities uint8 --threshold Sky=0.7",
        "for other programs; unsure pixels are 255",
    ),
    ("predict ./data --out ./masks --shard 0/4 --on-error skip", "one of four parts; list what is unreadable"),
]


def predict(
    scenes: Annotated[
        Path | None,
        typer.Argument(metavar="[SCENES]", help=SCENES, show_default=False, callback=options.must_exist(DataError)),
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
    legend: Annotated[bool, typer.Option("--legend", help="Also legend.png: every class and its colour.")] = False,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write each pixel's probability.")] = False,
    probabilities: Annotated[
        Literal["float16", "uint8"] | None,
        typer.Option(help="Also write every class's probability per pixel, as NPZ; uint8 is times 255."),
    ] = None,
    thresholds: Annotated[
        list[str] | None,
        typer.Option("--threshold", metavar="CLASS=P", help="The probability that a class needs to win (repeatable)."),
    ] = None,
    unsure: Annotated[
        str | None,
        typer.Option(metavar="VALUE", help="What pixels below --threshold get: 255 (the default), or a class."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first so many scenes.")] = None,
    on_error: options.OnError = "stop",
    strict: options.Strict = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on or begin; never replace another prediction, even a finished one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, also in a folder that holds other files.")
    ] = False,
    shard: options.Shard = None,
    engine: options.Engine = "local",
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    compiled: options.Compile = False,
    batch: options.Batch = 4,
    workers: options.Workers = 2,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment scenes: a class-id PNG of each scene's own size.

    In the scenes' own tree; no labels needed. A scene may lack modalities that the weights know. Writes masks/,
    classes.json, predictions.jsonl and, last, _SUCCESS.json into the output folder. After a kill or a full disk the
    same command goes on where it was.
    """
    from memorysam_cli.engine import run_folder

    options.begin(json=json, verbose=verbose, quiet=quiet)
    if scenes is not None and data is not None:
        raise UsageError(f"--data {data}: SCENES ({scenes}) are given already; leave one of the two out")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; give one")
    path = weights or run_folder.default_weights()  # before torch is imported: without weights the answer is instant
    chosen, scales = options.names(modalities), options.scales(tta_scales, tta=tta)
    from memorysam_cli.engine.infer.views import View
    from memorysam_cli.engine.predict import files, ledger
    from memorysam_cli.engine.predict.job import RunOptions, plan, read_shard
    from memorysam_cli.engine.predict.run import run
    from memorysam_cli.report import console
    from memorysam_cli.storage import lock

    extras = [name for name, wanted in (("color", color), ("overlay", overlay), ("confidence", confidence)) if wanted]
    run_options = RunOptions(device, workers, on_error == "skip", read_shard(shard), engine, overwrite, resume)
    job = plan(
        path, scenes=scenes, data=data, split=split, modalities=chosen, renames=renames, limit=limit,
        view=View(missing, scales, tile, tile_overlap), extras=extras, batch=batch, precision=precision,
        is_compiled=compiled, strict=strict, probabilities=probabilities, thresholds=thresholds or (), unsure=unsure,
    )  # fmt: skip
    if weights is None:
        run_folder.tell_default(path)
    report = run(job, out, run_options)
    if report is None:  # only the first of several processes has the result
        return
    if legend:
        files.write_legend(out, job.card.dataset)
    ledger.show(report)
    if json:
        console.answer(report)
    if report["failed"]:
        error = PartialError(f"{report['failed']} of {report['scenes']} scenes were left out; see {report['ledger']}")
        lock.note(error, out)
        raise error
