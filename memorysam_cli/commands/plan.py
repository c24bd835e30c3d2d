"""``memorysam plan``: what of a recipe fits into memory, found out by running it."""

from __future__ import annotations

from typing import Annotated

import typer

from memorysam_cli.commands import options


def plan(
    recipe: options.Recipe = "default",
    data: options.Data = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory", metavar="AMOUNT", help="Plan for less than is free, such as 24GB; of a CPU, its RAM."
        ),
    ] = None,
    overrides: options.Set = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, max=255, metavar="N", help="Where no data set tells.")
    ] = None,
    modalities: Annotated[
        int | None, typer.Option("--modalities", min=1, max=32, metavar="N", help="How many, where nothing names them.")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="MINUTES", help="A trial that takes longer does not fit.")
    ] = 60,
    device: options.Device = "auto",
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Say before a run what fits.

    Runs updates (forward, backward, optimiser) and a validation at their largest sizes, on noise and random weights:
    first the recipe's whole update in one batch, then smaller batches that are accumulated to the same update, each
    without and with the memory saver, until one fits. Ends with the line that trains so. Nothing is extrapolated, and a
    tenth of the memory stays free. Exit code 6: nothing fits.
    """
    from memorysam_cli import recipe as recipes

    options.begin(json=json, verbose=verbose, quiet=quiet)
    options.refuse_several("plan")
    # Here, so that a mistyped key is told before the seconds that torch takes.
    asked = recipes.load(recipe, overrides or [], with_extensions=True)
    from memorysam_cli.data import manifest
    from memorysam_cli.engine import runtime
    from memorysam_cli.engine.planning import amounts, search, showing, targets
    from memorysam_cli.report import console

    memory = None if gpu_memory is None else amounts.read_bytes(gpu_memory, option="--gpu-memory")
    target = targets.find(asked, manifest.data_root(data), classes=classes, modalities=modalities)
    space = search.room(str(runtime.choose_device(device)), asked=memory)
    found = search.search(target, space, timeout=60 * timeout)
    line = showing.train_line(found, recipe=recipe, data=data, overrides=overrides or [], device=device)
    if json:
        console.answer({"schema_version": 1, **found.to_json(), "command": line})
    showing.show(found, line)
    if line is None:
        raise found.refusal()
