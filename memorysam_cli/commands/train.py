"""``memorysam train``: fine-tune by a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from memorysam_cli.commands import completion, options, training_options


def train(
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="A shipped recipe's name, or a .yaml file; else default.",
            autocompletion=completion.recipe_names,
        ),
    ] = None,
    data: options.Data = None,
    out: options.OptionalOut = None,
    overrides: options.Set = None,
    batch: training_options.Batch = None,
    accumulate: training_options.Accumulate = None,
    precision: training_options.Precision = None,
    saver: training_options.Saver = None,
    compile: training_options.Compile = None,
    seed: training_options.Seed = None,
    deterministic: training_options.Deterministic = None,
    init: training_options.Init = None,
    max_bad: training_options.MaxBad = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="auto|PATH",
            help="Continue a run: PATH is its folder or a checkpoint; auto takes --out's "
            "(or the recipe's newest) run, or starts one.",
        ),
    ] = None,
    track: training_options.Track = None,
    device: options.Device = "auto",
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model by a recipe.

    LoRA, OHEM and the SPMM, on SAM 2's memory across modalities. Without --recipe: the recipe `default`, on the one
    data set that is prepared below ROOT, with all its sensors. Writes runs/<recipe>-<date>-<id>/ with the best and last
    weights, curves, metrics and sample pictures. Stops cleanly on Ctrl-C or SIGTERM, and continues where it stood with
    --resume. Options such as --batch and --seed are short for --set KEY=…; what ended under torchrun is in exit.json.
    """
    from memorysam_cli import recipe as recipes

    options.begin(json=json, verbose=verbose, quiet=quiet)
    short = {
        "batch": batch, "accumulate": accumulate, "precision": precision, "saver": saver, "compile": compile,
        "seed": seed, "deterministic": deterministic, "init": init, "max_bad": max_bad,
    }  # fmt: skip
    changes = training_options.changes(short, overrides or [])
    if recipe is not None or resume is None:
        recipes.load(recipe or recipes.DEFAULT, changes)  # a mistyped key is told before the seconds that torch takes
    from memorysam_cli.engine.training import tracking

    trackers = tracking.names(track or [])
    from memorysam_cli.engine.measure import plan, rates
    from memorysam_cli.engine.training import running
    from memorysam_cli.report import console

    trained = running.train(
        running.Request(
            recipe,
            tuple(changes),
            data,
            out,
            resume,
            device,
            choose_batch=plan.settle if batch == training_options.AUTO else None,
            trackers=trackers,
            advise=rates.bf16_advice,
        )
    )
    if trained is not None:  # only the first of several processes answers
        if json:
            console.answer({"schema_version": 1, **trained.to_json()})
        trained.show()
