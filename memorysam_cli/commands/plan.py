"""``memorysam plan``: which settings of a recipe fit into memory, and its estimated time, by counting."""

from __future__ import annotations

from typing import Annotated

import typer

from memorysam_cli.commands import options

EXAMPLES = [
    ("plan --recipe deliver", "what fits here"),
    ("plan --recipe deliver --gpu-memory 24GB", "what would fit into a smaller GPU"),
    ("plan --recipe mine.yaml --classes 9 --modalities 3", "without a prepared data set"),
]


def plan(
    recipe: options.Recipe = "default",
    data: options.Data = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory",
            metavar="AMOUNT",
            help="Plan for a GPU with this memory, such as 24GB; this machine need not have it.",
        ),
    ] = None,
    overrides: options.Set = None,
    classes: Annotated[
        int | None,
        typer.Option("--classes", min=1, max=255, metavar="N", help="Number of classes, if no data set is prepared."),
    ] = None,
    modalities: Annotated[
        int | None,
        typer.Option(
            "--modalities",
            min=1,
            max=32,
            metavar="N",
            help="Number of sensors, if neither recipe nor data set names them.",
        ),
    ] = None,
    tries: Annotated[
        bool, typer.Option("--try", help="Run the proposal on the device: some updates and a validation.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=0.1, metavar="MINUTES", help="A trial that takes longer counts as not fitting."),
    ] = 60,
    device: options.Device = "auto",
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the largest settings that fit, and print the command.

    Counts the memory of an update (forward, backward, optimizer), of validation and of prediction on tensors without
    values, in seconds, without a GPU, data or weights. Proposes the largest batch that fits and keeps the recipe's
    scenes per update. A tenth of the memory stays free. The time is an estimate. Exit code 6: nothing fits.
    """
    from memorysam_cli import recipe as recipes
    from memorysam_cli.engine import surroundings

    options.begin(json=json, verbose=verbose, quiet=quiet)
    options.refuse_several("plan")
    # Imported here, so that mistyped or missing things are reported before the seconds that torch takes.
    asked = recipes.load(recipe, overrides or [], with_extensions=True)
    amount = None if gpu_memory is None else surroundings.read_bytes(gpu_memory, option="--gpu-memory")
    from memorysam_cli.data import manifest
    from memorysam_cli.engine.measure import workload

    surroundings.refuse_absent_device(device)
    target = workload.find_target(asked, manifest.data_root(data), classes=classes, modalities=modalities)
    from memorysam_cli.engine import runtime
    from memorysam_cli.engine.measure import plan as planning
    from memorysam_cli.report import console

    here = runtime.choose_device(device)
    found = planning.make_plan(
        target, here, amount=amount, is_named=device != "auto", tries=tries, timeout=60 * timeout
    )  # fmt: skip
    line = planning.train_line(found, recipe=recipe, data=data, overrides=overrides or [], device=device)
    if json:
        console.answer({"schema_version": 1, **found.to_json(), "command": line})
    planning.show(found, line)
    if line is None:
        raise found.refusal()
