"""``memorysam demo``: all steps in a few minutes on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memorysam_cli.commands import options

EXAMPLES = [
    ("demo", "into a new temporary folder"),
    ("demo --out /tmp/demo --scenes 60", "quicker"),
]


def demo(
    out: Annotated[Path | None, options.out_or("a new temporary folder")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Seed of the scenes and of training.")] = 0,
    scenes: Annotated[int, typer.Option(min=40, metavar="N", help="How many scenes to render.")] = 240,
    overrides: options.Set = None,
    device: options.Device = "auto",
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Render mini-DELIVER, then train, evaluate and predict.

    Trains with all sensors and with RGB alone, which takes some minutes on two CPU cores. Everything goes to --out, or
    to a new temporary folder that is kept.
    """
    import tempfile

    from memorysam_cli import recipe
    from memorysam_cli.engine import surroundings
    from memorysam_cli.storage import atomic

    options.begin(json=json, verbose=verbose, quiet=quiet)
    recipe.load("demo", overrides or [])  # a mistyped key is reported at once, and leaves no temporary folder
    if out is not None:
        atomic.refuse_unwritable(out)
    surroundings.refuse_device(device)
    from memorysam_cli.engine import runtime
    from memorysam_cli.engine.demo import run_demo
    from memorysam_cli.engine.run_folder import RunFolder
    from memorysam_cli.report import console

    place = runtime.choose_device(device)
    folder = out or Path(tempfile.mkdtemp(prefix="memorysam-demo-"))
    result = run_demo(folder, device=place, seed=seed, scenes=scenes, overrides=overrides or [])
    if json:
        console.answer({"schema_version": 1, **result.to_json()})
        return
    console.table(
        ["validation", "mIoU %"],
        [
            [f"answering '{result.majority_class}' everywhere", f"{result.miou_majority:.2f}"],
            ["RGB alone", f"{result.miou_rgb:.2f}"],
            ["all sensors", f"{result.miou:.2f}"],
        ],
        title=f"demo: {result.steps} updates each, {result.seconds:.0f} s in all",
    )
    run = RunFolder(result.run)
    console.say(f"look at   {run.samples / 'validation.png'}")
    console.say(f"          {run.plots / 'curves.png'}")
    console.say(f"          {result.predictions / 'overlay'}")
    console.say(f"weights   {run.best}")
