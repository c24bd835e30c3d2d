"""``memorysam train``: train a model from a recipe.

First the options that are short for ``--set KEY=…``, then the command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import UsageError, WeightsError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from memorysam_cli.data.manifest import Manifest
    from memorysam_cli.engine.train.start import RunStart
    from memorysam_cli.recipe import Recipe

AUTO = "auto"

Epochs = Annotated[int | None, typer.Option("--epochs", min=1, metavar="N", help="Number of epochs.")]
LearningRate = Annotated[float | None, typer.Option("--lr", metavar="X", help="The highest learning rate.")]
Size = Annotated[
    int | None, typer.Option("--size", metavar="PX", help="Side of the crops, and the short side in evaluation.")
]
Batch = Annotated[
    str | None, typer.Option("--batch", metavar="N|auto", help="Scenes per batch; auto: what fits, by memorysam plan.")
]
Accumulate = Annotated[int | None, typer.Option("--accumulate", min=1, metavar="N", help="Batches per update.")]
Precision = Annotated[Literal["fp32", "tf32", "bf16", "fp16"] | None, typer.Option(help="Precision of training.")]
Saver = Annotated[
    Literal["auto", "on", "off"] | None, typer.Option(help="Memory saver: less memory, more time, same results.")
]
Compile = Annotated[
    bool | None, typer.Option("--compile/--no-compile", help="Compile the encoder: faster after a slow start.")
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, metavar="N", help="Seed of all random numbers.")]
Deterministic = Annotated[
    bool | None,
    typer.Option("--deterministic/--no-deterministic", help="Bit-identical runs, also on a GPU; slower there."),
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="FILE",
        help="Start from trained weights, even with other classes (matched by name) or sensors.",
        callback=options.weights_must_exist("--init "),
    ),
]
MaxBad = Annotated[
    str | None,
    typer.Option(
        "--max-bad", metavar="SHARE", help="Training scenes that may be unreadable, such as 0.1% (else none)."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="A,B", help="Log to tensorboard, wandb, mlflow or trackio too (repeatable)."),
]

KEYS = {
    "epochs": "train.epochs", "lr": "optim.lr", "size": "data.image_size",
    "batch": "train.batch", "accumulate": "train.accumulate", "precision": "train.precision", "saver": "train.saver",
    "compile": "train.compile", "seed": "train.seed", "deterministic": "train.deterministic", "init": "model.init",
    "max_bad": "data.max_bad",
}  # fmt: skip
"""The recipe key of each option."""
EXAMPLES = [
    ("train --recipe demo --epochs 4 --out runs/trial", "a first try"),
    ("train --recipe deliver --batch auto", "what fits, with the recipe's scenes per update"),
    ("train --recipe deliver --resume auto", "continue after a kill; for queues that start again"),
    ("train --recipe deliver --track tensorboard", "with a dashboard"),
]


def as_overrides(given: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """All changes of ``--set`` and the short options, in the form of ``--set``.

    Args:
        given: the short options' values by the names of :data:`KEYS`; None if not given.
        overrides: those of ``--set``.

    Returns:
        The overrides, and then the others; ``--batch auto`` changes nothing yet.

    Raises:
        UsageError: an impossible value, or one that contradicts ``--set``.
    """
    values = {name: value for name, value in given.items() if value is not None}
    texts = {name: _text(name, value) for name, value in values.items() if not (name == "batch" and value == AUTO)}
    for name, text in texts.items():
        for override in overrides:
            key, _, value = override.partition("=")
            if key == KEYS[name] and not _is_same(value.strip(), text):
                raise UsageError(
                    f"{_option(name)} {values[name]} and --set {override}: are two values for {key}; give one"
                )
    return [*overrides, *(f"{KEYS[name]}={text}" for name, text in texts.items())]


def _is_same(one: str, other: str) -> bool:
    """Whether two texts are the same value, as 1e-3 and 0.001 are."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def _text(name: str, value: Any) -> str:
    """A value in the form of ``--set``."""
    if name == "batch":
        return _batch(value)
    if name == "size" and (value <= 0 or value % 32):
        raise UsageError(f"--size {value}: must be a multiple of 32 above 0, such as {max(1, round(value / 32)) * 32}")
    if name == "lr" and not 0 < value <= 1e30:
        raise UsageError(f"--lr {value:g}: must be a number above 0, such as 1e-4")
    if name == "max_bad":
        return f"{_share(value):.12g}"
    if name == "init":
        return json.dumps(value, ensure_ascii=False)  # a path is always text, even if it looks like a number
    return str(value).lower() if isinstance(value, bool) else str(value)


def _batch(text: str) -> str:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise UsageError(f"--batch {text}: must be a number of scenes from 1, or auto")
    return text


def _share(text: str) -> float:
    """A share from ``0.1%`` or ``1e-3``."""
    number, percent, rest = text.strip().partition("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if rest or not 0 <= share < 1:
        raise UsageError(f"--max-bad {text}: must be a share from 0 to less than 1, such as 0.1% or 0.001")
    return share


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _settle(run_start: RunStart, scenes: Manifest, accelerator: Accelerator) -> RunStart:
    """``--batch auto``; imported when a run starts, because counting needs torch."""
    from memorysam_cli.engine.measure import plan

    return plan.settle(run_start, scenes, accelerator)


def _advise(device: torch.device, recipe: Recipe) -> str | None:
    """Advice on what would be faster; imported when a run starts, too."""
    from memorysam_cli.engine.measure import rates

    return rates.advice(device, recipe)


def train(
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="A shipped recipe's name, or a .yaml file; else default.",
            autocompletion=options.recipe_names,
            callback=options.recipe_must_exist,
        ),
    ] = None,
    data: options.Data = None,
    out: Annotated[Path | None, options.out_or("runs/<recipe>-<date>-<id>/")] = None,
    overrides: options.Set = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    size: Size = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    precision: Precision = None,
    saver: Saver = None,
    compile: Compile = None,
    seed: Seed = None,
    deterministic: Deterministic = None,
    init: Init = None,
    strict: options.Strict = False,
    max_bad: MaxBad = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="auto|PATH",
            callback=options.must_exist(WeightsError, "--resume ", but="auto"),
            help="Continue a run: PATH is its folder or a checkpoint; auto takes --out's "
            "(or the recipe's newest) run, or starts one.",
        ),
    ] = None,
    track: Track = None,
    device: options.Device = "auto",
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model from a recipe.

    Trains LoRA, and SAM 2's memory and decoder, on all sensors of a scene. Without --recipe: the recipe `default`, on
    the one data set that is prepared below ROOT, with all its sensors. Writes runs/<recipe>-<date>-<id>/ with the best
    and last weights, curves, metrics and sample pictures. Stops cleanly on Ctrl-C or SIGTERM, and continues with
    --resume. Options such as --batch and --seed are short for --set KEY=…. Under torchrun, exit.json has the exit code.
    """
    from memorysam_cli import recipe as recipes
    from memorysam_cli.data import manifest

    options.begin(json=json, verbose=verbose, quiet=quiet)
    short = {
        "epochs": epochs, "lr": lr, "size": size,
        "batch": batch, "accumulate": accumulate, "precision": precision, "saver": saver, "compile": compile,
        "seed": seed, "deterministic": deterministic, "init": init, "max_bad": max_bad,
    }  # fmt: skip
    changes = as_overrides(short, overrides or [])
    if recipe is not None or resume is None:
        # A mistyped key and missing data are reported before the seconds that torch takes.
        asked = recipes.load(recipe or recipes.DEFAULT, changes, with_extensions=True)
        if resume is None:
            root, name = manifest.data_root(data), asked.data.dataset
            manifest.read_info(root, manifest.only_prepared(root) if name == recipes.AUTO else name)
    from memorysam_cli.engine.train import tracking

    trackers = tracking.names(track or [])
    from memorysam_cli.engine.train import training
    from memorysam_cli.report import console

    finished_run = training.train(
        training.Request(
            recipe,
            tuple(changes),
            data,
            out,
            resume,
            device,
            choose_batch=_settle if batch == AUTO else None,
            trackers=trackers,
            advise=_advise,
            strict=strict,
        )
    )
    if finished_run is not None:  # only the first of several processes answers
        if json:
            console.answer({"schema_version": 1, **finished_run.to_json()})
        finished_run.show()
