"""``memorysam train``: fine-tune by a recipe."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from memorysam_cli.commands import options

EXAMPLE = "memorysam train --recipe demo --set train.epochs=4 --out runs/trial"


def train(
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe", "-r", metavar="NAME|FILE", help="A shipped recipe's name, or a .yaml file; else default."
        ),
    ] = None,
    data: options.Data = None,
    out: options.OptionalOut = None,
    overrides: options.Set = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="auto|PATH",
            help="Continue a run: PATH is its folder or a checkpoint; auto takes --out's (or the recipe's newest) "
            "run, or starts one.",
        ),
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model by a recipe.

    LoRA, OHEM and the SPMM, on SAM 2's memory across modalities. Without --recipe: the recipe `default`, on the one
    data set that is prepared below ROOT, with all its sensors. Writes runs/<recipe>-<date>-<id>/ with the best and last
    weights, curves, metrics and sample pictures. Stops cleanly on Ctrl-C or SIGTERM, and continues where it stood with
    --resume.
    """
    from memorysam_cli import recipe as recipes

    options.begin(json=json, verbose=verbose, quiet=quiet)
    if recipe is not None or resume is None:
        recipes.load(
            recipe or recipes.DEFAULT, overrides or []
        )  # a mistyped key is told at once, not after the seconds that torch takes
    from memorysam_cli.data import manifest
    from memorysam_cli.engine import runtime
    from memorysam_cli.engine.training import starting
    from memorysam_cli.engine.training.trainer import Trainer
    from memorysam_cli.report import console

    root = manifest.data_root(data)
    asked = starting.choose_recipe(recipe, overrides=overrides or [], resume=resume, out=out)
    chosen = starting.resolve(asked, root)
    planned = starting.plan(chosen, out=out, resume=resume)
    scenes = manifest.read(root, chosen.data.dataset)
    starting.refuse_missing_splits(chosen, scenes)
    accelerator = runtime.make_accelerator(
        runtime.choose_device(device), precision=chosen.train.precision, accumulate=chosen.train.accumulate
    )
    if chosen != asked and accelerator.is_main_process:
        console.note(f"recipe {chosen.name}: data set {chosen.data.dataset}, {', '.join(chosen.data.modalities)}")
    # Whatever can be refused is refused before the run's folder is touched.
    trainer = Trainer(chosen, scenes, accelerator=accelerator)
    if planned.checkpoint is not None:
        trainer.refuse_other(planned.checkpoint)
    with starting.begin(planned, accelerator) as run, contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(console.log_to(run.log))
        result = trainer.fit(run, resume=planned.checkpoint)
    if not accelerator.is_main_process:
        return
    if json:
        console.answer({"schema_version": 1, **result.to_json(), "resumed": planned.checkpoint is not None})
        return
    console.say(f"best mIoU {result.miou:.2f} on {chosen.data.selection_split} at step {result.best_step}")
    console.say(f"weights   {result.best}")
    console.say(f"curves    {run.plots / 'curves.png'}")
    console.say(f"pictures  {run.samples / 'validation.png'}")
