"""``memorysam predict``: segment scenes, labeled or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memorysam_cli.commands import options
from memorysam_cli.commands.prepare_options import Pair, Times, Tolerance, recording
from memorysam_cli.errors import DataError, PartialError, UsageError
from memorysam_cli.text import counted

if TYPE_CHECKING:
    from memorysam_cli.engine.infer.views import View

SCENES = (
    "A prepared data set, a folder per modality, a folder per scene, one scene, or a raster (TIFF); else what is "
    "prepared below --data."
)
EXAMPLES = [
    ("predict ./photos --out ./masks --map img=rgb --color --overlay", "your own folders rgb/ and depth/"),
    (
        "predict ./data --out ./masks --split test --probabilities uint8 --threshold Sky=0.7",
        "a prepared data set, for other programs; unsure pixels are 255",
    ),
    ("predict ./camera --out ./masks --follow", "scenes as they arrive; prints each mask's path"),
    ("predict scene.tif --out classes.tif", "a raster of any size, by windows; see docs/rasters.md"),
]


def predict(
    scenes: Annotated[
        Path | None,
        typer.Argument(metavar="SCENES", help=SCENES, show_default=False, callback=options.must_exist(DataError)),
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
        typer.Option("--map", metavar="MODALITY=NAME", help="Your files' name for a modality (repeatable)."),
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(
            "--modality",
            metavar="NAME=PATTERN",
            help="A sensor's files below SCENES, as in prepare folder (else as stored in the weights); without SCENES, "
            "its raster; the first one sets the pixels of the result (repeatable).",
        ),
    ] = None,
    pair: Pair = "name",
    tolerance: Tolerance = None,
    times: Times = None,
    bands: Annotated[
        list[str] | None,
        typer.Option(
            "--bands", metavar="NAME=A,B,C", help="A raster's bands, from 1 or by name; else as trained (repeatable)."
        ),
    ] = None,
    vector: Annotated[
        Literal["geojson", "gpkg"] | None,
        typer.Option(help="For a raster, also write the classes' areas as polygons beside --out."),
    ] = None,
    color: Annotated[bool, typer.Option("--color", help="Also write each mask in its classes' colors.")] = False,
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Also write colors blended over the image, with a legend.")
    ] = False,
    legend: Annotated[bool, typer.Option("--legend", help="Also write legend.png: every class and its color.")] = False,
    confidence: Annotated[bool, typer.Option("--confidence", help="Also write each pixel's probability.")] = False,
    probabilities: Annotated[
        Literal["float16", "uint8"] | None,
        typer.Option(
            help="Also write every class's probability per pixel: NPZ, or TIFF for a raster; uint8 is times 255."
        ),
    ] = None,
    thresholds: Annotated[
        list[str] | None,
        typer.Option("--threshold", metavar="CLASS=P", help="Least probability for a class to win (repeatable)."),
    ] = None,
    unsure: Annotated[
        str | None,
        typer.Option(metavar="VALUE", help="Value of pixels below --threshold: 255 (the default), or a class."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Segment only the first N scenes.")] = None,
    on_error: options.OnError = "stop",
    strict: options.Strict = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue or start; never replace another prediction, even a finished one.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start over, even in a folder that holds other files.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Segment scenes as they arrive in SCENES, until Ctrl-C or --limit.")
    ] = False,
    poll: Annotated[
        float | None,
        typer.Option(
            min=0.01, metavar="SECONDS", help="Interval at which --follow looks for scenes.", show_default="1"
        ),
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="How long a new file must be unchanged (--follow).", show_default="2"
        ),
    ] = None,
    late: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long to wait for a scene's other sensors (--follow); by default forever.",
        ),
    ] = None,
    shard: options.Shard = None,
    engine: options.Engine = "local",
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    compiled: options.Compile = False,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            metavar="N",
            help="Scenes per batch.",
            show_default="4; 1 with --follow",
        ),
    ] = None,
    workers: options.Workers = 2,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Segment scenes: writes a PNG of class ids at each scene's size.

    Masks keep the scenes' folder tree. Labels are not needed, and a scene may lack some of the modalities. Writes
    masks/, classes.json, predictions.jsonl and, last, _SUCCESS.json into the output folder. After a kill or a full
    disk the same command continues.
    """
    from memorysam_cli.engine import run_folder, surroundings

    options.begin(json=json, verbose=verbose, quiet=quiet)
    if scenes is not None and data is not None:
        raise UsageError(f"--data {data}: SCENES ({scenes}) are given already; leave one of the two out")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; give one")
    is_folder = scenes is not None and scenes.is_dir()
    rasters = None if is_folder else modality
    asked = modality if is_folder else None
    layout = recording(asked, scenes, pair=pair, tolerance=tolerance, times=times or [], renames=renames)
    is_raster = bool(rasters) or (
        scenes is not None and scenes.is_file() and scenes.suffix.lower() in (".tif", ".tiff")
    )
    if is_raster:
        unfit = {
            "--color": color, "--overlay": overlay, "--legend": legend, "--confidence": confidence, "--split": split,
            "--limit": limit, "--shard": shard, "--map": renames, "--data": data, "--engine ray": engine == "ray",
            "--threshold": thresholds, "--unsure": unsure is not None,
            "--follow": follow,
        }  # fmt: skip
        refuse_unfit([option for option, value in unfit.items() if value], scenes=scenes, rasters=rasters)
    elif bands or vector:
        option = f"--bands {bands[0]}" if bands else f"--vector {vector}"
        raise UsageError(f"{option}: is for rasters; SCENES is not a TIFF, and no --modality NAME=FILE is given")
    _refuse_unfollowed(
        follow=follow, scenes=scenes, batch=batch, only={"--poll": poll, "--settle": settle, "--late": late}
    )
    part = surroundings.read_shard(shard)
    path = weights or run_folder.default_weights()
    chosen, scales = options.names(modalities), options.scales(tta_scales, tta=tta)
    from memorysam_cli.engine.infer.views import View
    from memorysam_cli.engine.predict import files, parts
    from memorysam_cli.engine.predict.job import RunOptions, plan
    from memorysam_cli.report import console
    from memorysam_cli.storage import lock

    if is_raster:
        view = View(missing, scales, tile=True, overlap=tile_overlap)
        predict_raster(
            path, scenes, out, sources=rasters, bands=bands, names=chosen, view=view, device=device,
            precision=precision, compiled=compiled, strict=strict, overwrite=overwrite, vector=vector, json=json,
            is_default=weights is None, probabilities=probabilities,
        )  # fmt: skip
        return
    extras = [name for name, wanted in (("color", color), ("overlay", overlay), ("confidence", confidence)) if wanted]
    run_options = RunOptions(device, workers, on_error == "skip", part, engine, overwrite, resume)
    run_options.refuse(precision=precision, follows=follow)
    job = plan(
        path, scenes=scenes, data=data, split=split, modalities=chosen, renames=renames,
        layout=layout, limit=None if follow else limit, view=View(missing, scales, tile, tile_overlap), extras=extras,
        batch=batch or (1 if follow else 4), precision=precision, is_compiled=compiled, strict=strict,
        probabilities=probabilities, thresholds=thresholds or (), unsure=unsure, follows=follow,
    )  # fmt: skip
    files.refuse_out(out, overwrite=overwrite)
    if weights is None:
        run_folder.tell_default(path)
    parts.refuse_others(out, job, parts.Wish.of(run_options, rank=surroundings.rank(), world=surroundings.world()))
    # Imported here, after the checks of options and files, because torch takes seconds.
    from memorysam_cli.engine.predict import ledger
    from memorysam_cli.engine.predict.run import Following, run
    from memorysam_cli.engine.predict.run import follow as follow_folder

    stopped = None
    if follow:
        following = Following(1.0 if poll is None else poll, 2.0 if settle is None else settle, late, limit)
        report, stopped = follow_folder(job, out, run_options, following, strict=strict)
    else:
        report = run(job, out, run_options)
    if report is None and stopped is not None:
        raise stopped
    if report is None:  # only the first of several processes has the result
        return
    if legend:
        files.write_legend(out, job.card.dataset)
    ledger.show(report)
    if json:
        console.answer(report)
    if stopped is not None:
        raise stopped
    if report["failed"]:
        error = PartialError(
            f"{report['failed']} of {counted(report['scenes'], 'scene', 'was')} left out; see {report['ledger']}"
        )
        lock.note(error, out)
        raise error


def refuse_unfit(unfit: list[str], *, scenes: Path | None, rasters: list[str] | None) -> None:
    """Refuse options that rasters do not support.

    Args:
        unfit: those of these options that are given.
        scenes: SCENES.
        rasters: from ``--modality``.

    Raises:
        UsageError: there are such options; or both ways to name rasters, or several processes.
    """
    if scenes is not None and rasters:
        raise UsageError(f"--modality {rasters[0]}: SCENES ({scenes}) are given already; leave one of the two out")
    if unfit:
        raise UsageError(f"{unfit[0]}: is for folders of scenes; for a raster, only the classes are written")
    from memorysam_cli.engine import surroundings

    if surroundings.world() != 1:
        raise UsageError("predict of a raster: runs in one process; start it without torchrun or accelerate launch")


def predict_raster(
    weights: Path,
    scene: Path | None,
    out: Path,
    *,
    sources: list[str] | None,
    bands: list[str] | None,
    names: tuple[str, ...] | None,
    view: View,
    device: str,
    precision: str,
    compiled: bool,
    strict: bool,
    overwrite: bool,
    vector: str | None,
    json: bool,
    is_default: bool,
    probabilities: Literal["float16", "uint8"] | None,
) -> None:
    """Segment a raster in windows; see :mod:`memorysam_cli.engine.predict.raster`."""
    from memorysam_cli.commands import prepare_options as words
    from memorysam_cli.engine import run_folder
    from memorysam_cli.engine.predict import raster
    from memorysam_cli.report import console

    paths = {name: Path(file) for name, file in words.pairs("--modality", sources, known=None).items()}
    for name, path in paths.items():
        if not path.is_file():
            raise DataError(
                f"--modality {name}={path}: {'is not a file' if path.exists() else 'does not exist'}; check it"
            )
    job = raster.plan(
        weights, scene=scene, sources=paths, names=names, view=view, precision=precision, is_compiled=compiled,
        bands=words.bands(words.pairs("--bands", bands, known=None), channels=()), probabilities=probabilities,
    )  # fmt: skip
    if is_default:
        run_folder.tell_default(weights)
    report = raster.run(job, out, device=device, strict=strict, overwrite=overwrite, vector=vector)
    console.say(f"{report['height']} × {report['width']} pixels, {', '.join(report['modalities'])}")
    console.say(f"{'classes':<10}  {report['out']}")
    for key, what in (("vector", "polygons"), ("probabilities", "probabilities")):
        if report[key]:
            console.say(f"{what:<10}  {report[key]}")
    if json:
        console.answer(report)


def _refuse_unfollowed(*, follow: bool, scenes: Path | None, batch: int | None, only: dict[str, float | None]) -> None:
    """Refuse options that need ``--follow``, and options that cannot be combined with it.

    Raises:
        UsageError: there are such options.
    """
    given = [name for name, value in only.items() if value is not None]
    if given and not follow:
        raise UsageError(f"{given[0]}: needs --follow")
    if follow and scenes is None:
        raise UsageError("--follow: give the folder that the scenes arrive in as SCENES")
    if follow and batch not in {None, 1}:
        raise UsageError(f"--batch {batch}: with --follow it is 1: which scenes arrive together must not change a mask")
