"""``memorysam watch``: follow a training run from another terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import UsageError

if TYPE_CHECKING:
    from memorysam_cli.engine.run_folder import Look

SCHEMA_VERSION = 1
NAMES = {
    "loss": ("loss", ".4f"), "spmm": ("SPMM loss", ".4g"), "lr": ("learning rate", ".2e"),
    "gradient_norm": ("gradient norm", ".3g"), "scenes_per_second": ("scenes/s", ".3g"),
    "peak_memory_gb": ("memory in GB", ".2f"), "miou": ("mIoU", ".2f"),
}  # fmt: skip
"""Series → its name, and the format of its numbers; an unknown loss has its own name."""
EXAMPLES = [
    ("watch", "the newest run, until it ends"),
    ("watch runs/deliver-20261101-120000-ab12 --once", "another run, once"),
    ("watch --json", "for a script"),
]


def watch(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN",
            help="The run's folder (else the active run, or runs/latest).",
            autocompletion=options.runs,
            callback=options.must_exist(UsageError),
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit.")] = False,
    every: Annotated[
        float, typer.Option("--every", min=0.1, metavar="SECONDS", help="Interval between updates.")
    ] = 1.0,
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Follow a training run from another terminal.

    Shows step, losses, speed and time left, as numbers and as one-line curves. Updates each second until the run ends
    or you press Ctrl-C, which does not stop the run. In a pipe, with --json and with --once it prints once. It only
    reads: it does not slow or disturb the run.
    """
    options.begin(json=json, verbose=verbose, quiet=quiet)
    from memorysam_cli.engine import run_folder
    from memorysam_cli.engine.run_folder import Watch
    from memorysam_cli.report import console

    watched = Watch(run or run_folder.watched_by_default())
    look = watched.look()
    if json:
        console.answer({"schema_version": SCHEMA_VERSION, **look.to_json()})
    elif once or not console.redraws():
        for line in lines(look, width=console.width()):
            console.say(line)
    else:
        try:
            with console.screen() as show:
                while True:
                    show(lines(look, width=console.width()))
                    if look.state != "running":
                        break
                    time.sleep(every)
                    look = watched.look()
        except KeyboardInterrupt:
            return


def lines(look: Look, *, width: int) -> list[str]:
    """A look as lines of text.

    Args:
        look: at a run.
        width: columns.
    """
    from memorysam_cli.report.live import ASCII, BLOCKS, sparkline
    from memorysam_cli.text import duration

    total = "" if look.last_step is None else f" of {look.last_step:,} ({100 * look.step // max(1, look.last_step)} %)"
    left = "" if look.seconds_left is None else f", about {duration(look.seconds_left)} left"
    owner = "" if look.owner is None else f" on {look.owner.host}, pid {look.owner.pid}, since {look.owner.since}"
    best = "none yet" if look.best_miou is None else f"{look.best_miou:.2f} at step {look.best_step:,}"
    text = [
        f"run            {look.run}",
        f"state          {look.state}{owner}",
        f"step           {look.step:,}{total}, epoch {min(look.epoch + 1, look.epochs)} of {look.epochs}{left}",
        f"best mIoU      {best}",
    ]
    letters = BLOCKS if "utf" in (sys.stdout.encoding or "").lower() else ASCII
    for name, values in look.series.items():
        title, form = NAMES.get(name, (name, ".4g"))
        if values:
            latest = "–" if values[-1] is None else format(values[-1], form)
            latest = latest if letters == BLOCKS else latest.replace("–", "-")
            text.append(f"{title:<14} {latest:>10}  {sparkline(values, width=max(8, width - 28), blocks=letters)}")
    return text
