"""``memorysam evaluate``: score weights on labeled splits, or measure robustness to missing sensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import CheckFailedError, UsageError

EXAMPLES = [
    ("evaluate", "the best weights of the newest finished run, on val"),
    ("evaluate --weights runs/latest/checkpoints/best.safetensors --split test --json", "for a script"),
    ("evaluate --modalities img,depth --tta", "fewer sensors, more views"),
    ("evaluate --robustness any", "all subsets of the sensors, the others dropped, and zeroed"),
]


def evaluate(
    weights: options.Weights = None,
    data: options.Data = None,
    split: Annotated[
        str, typer.Option("--split", metavar="A,B", help="train, val, test, several with commas, or all.")
    ] = "val",
    modalities: options.Modalities = None,
    missing: options.OptionalMissing = None,
    tta: options.Tta = False,
    tta_scales: options.TtaScales = None,
    tile: options.Tile = False,
    tile_overlap: options.TileOverlap = 0.25,
    protocol: Annotated[
        Literal["resized", "native"],
        typer.Option(help="Protocol of the main score: the papers' (resized), or at the labels' own size."),
    ] = "resized",
    robustness: Annotated[
        Literal["any", "emm", "rmm", "nm"] | None,
        typer.Option(help="Run a benchmark of missing (any, emm, rmm) or noisy (nm) sensors instead."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="S", help="Seed of the random failures of --robustness rmm and nm (else 0)."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How often --robustness rmm and nm repeat the random draws (else once)."),
    ] = None,
    noise_extremes: Annotated[
        Literal["batch", "scene"] | None,
        typer.Option(help="Salt and pepper of --robustness nm: extremes of the batch (as published) or of each scene."),
    ] = None,
    min_miou: Annotated[
        float | None,
        typer.Option(min=0, max=100, metavar="PERCENT", help="End with exit code 10 if the mIoU is below this."),
    ] = None,
    gallery: Annotated[
        int, typer.Option(min=0, max=100, metavar="N", help="Pictures of the N worst and N best scenes; 0: none.")
    ] = 4,
    strict: options.Strict = False,
    out: Annotated[Path | None, options.out_or("<run>/evaluate/<split>/")] = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    compiled: options.Compile = False,
    batch: options.Batch = 4,
    workers: options.Workers = 2,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Score weights, or measure robustness to missing sensors.

    Prints IoU, F1 and accuracy per class, condition, sensor failure and scene, in both protocols. Uses the data set
    that the weights were trained on. Results go to <run>/evaluate/<split>/.
    """
    from memorysam_cli.engine import run_folder

    options.begin(json=json, verbose=verbose, quiet=quiet)
    path = weights or run_folder.default_weights()
    names = options.names(modalities)
    if robustness is not None and (tta or tta_scales or tile or min_miou is not None):
        raise UsageError("--robustness: is defined without --tta, --tile and --min-miou; leave them out")
    _refuse_idle(robustness, missing=missing, seed=seed, repeats=repeats, noise_extremes=noise_extremes)
    scales = options.scales(tta_scales, tta=tta)
    from memorysam_cli.engine.evaluate import evaluation
    from memorysam_cli.engine.infer.views import View
    from memorysam_cli.report import console
    from memorysam_cli.storage import lock

    view = View(missing=missing or "drop", scales=scales, tile=tile, overlap=tile_overlap)
    job = evaluation.plan(
        path, data=data, split=split, modalities=names, view=view, out=out, device=device, batch=batch, workers=workers,
        precision=precision, is_compiled=compiled, strict=strict,
    )  # fmt: skip
    if weights is None:
        run_folder.tell_default(path)
    if robustness is not None:
        report = evaluation.measure_robustness(
            job, kind=robustness, missing=missing or ("both" if robustness == "any" else "drop"),
            seed=seed or 0, repeats=repeats or 1, noise_extremes=noise_extremes or "batch", protocol=protocol,
        )  # fmt: skip
    else:
        report = evaluation.score(job, protocol=protocol, pictured=gallery)
    if report is None:  # only the first of several processes has the result
        return
    if json:
        console.answer(report)
    if min_miou is not None and not report["miou"] >= min_miou:
        error = CheckFailedError(
            f"--min-miou {min_miou:g}: the mIoU is {report['miou']:.2f} on {job.split} ({protocol} protocol); lower "
            f"the bar, or look at {job.folder} for the classes and scenes that fall short"
        )
        lock.note(error, job.folder)
        raise error


def _refuse_idle(
    robustness: str | None, *, missing: str | None, seed: int | None, repeats: int | None, noise_extremes: str | None
) -> None:
    """Refuse options that would have no effect."""
    if missing == "drop" and robustness == "emm":
        raise UsageError("--missing drop: 'emm' feeds zeros for a missing sensor; use --robustness any")
    if missing is not None and robustness in ("rmm", "nm"):
        raise UsageError(
            f"--missing {missing}: '{robustness}' decides itself how a missing sensor is fed; use --robustness any"
        )
    readers = {
        "--seed": (seed, ("rmm", "nm")),
        "--repeats": (repeats, ("rmm", "nm")),
        "--noise-extremes": (noise_extremes, ("nm",)),
    }
    for name, (value, kinds) in readers.items():
        if value is not None and robustness not in kinds:
            raise UsageError(f"{name} {value}: works only with --robustness {' or '.join(kinds)}; leave it out")
