"""``memorysam bench``: speed and memory on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from memorysam_cli.commands import options
from memorysam_cli.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

    from memorysam_cli.engine.measure.workload import Workload

EXAMPLES = [
    ("bench", "a quick look: on a CPU what demo trains, on a GPU what deliver trains"),
    ("bench --backbone nano --size 128 --batch 1 --against plain", "compared with the reference code"),
    ("bench --backbone base+ --device cuda --precision bf16", "on a GPU"),
]


def bench(
    mode: Annotated[
        Literal["train", "predict", "data"],
        typer.Option(help="Measure training steps, predictions, or both with scenes read from files."),
    ] = "train",
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Such as nano or sam2.1-hiera-large; a wrong name lists all.",
            show_default="sam2-hiera-base-plus; nano as in demo",
        ),
    ] = None,
    modalities: Annotated[int, typer.Option(min=1, max=64, metavar="M", help="Sensors per scene.")] = 4,
    size: Annotated[
        int | None,
        typer.Option(
            min=32,
            max=16384,
            metavar="PX",
            help="Side of the images, a multiple of 32.",
            show_default="1024; 128 as in demo",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, max=4096, metavar="N", help="Scenes at once.", show_default="4; 8 as in demo"),
    ] = None,
    classes: Annotated[int, typer.Option(min=2, max=255, metavar="K", help="Number of classes.")] = 25,
    precision: Annotated[
        Literal["fp32", "tf32", "bf16", "fp16"], typer.Option(help="Precision; plain is always fp32.")
    ] = "fp32",
    saver: Annotated[
        Literal["auto", "on", "off"] | None,
        typer.Option(help="The memory saver of training, as train.saver in a recipe (else auto)."),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the encoder's blocks (slow to start).")] = False,
    against: Annotated[
        Literal["plain"] | None,
        typer.Option(help="Compare with the same network, run as in the reference code."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Measured steps, after a warm-up.")] = 5,
    device: options.Device = "auto",
    json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure speed and memory with random weights.

    Prints scenes per second, the share of the machine's matrix multiplication rate, and peak memory. Needs no data and
    no weights. On a CPU, without --backbone, --size and --batch, it measures what demo trains, in under a minute; what
    deliver trains takes minutes per step there. OMP_NUM_THREADS decides how many cores are used.
    """
    options.begin(json=json, verbose=verbose, quiet=quiet)
    options.refuse_several("bench")
    _refuse_impossible(backbone or "nano", size or 32)
    if mode == "predict" and saver is not None:
        raise UsageError(f"--saver {saver}: only training has a memory saver; leave it out")
    if mode == "data" and against is not None:
        raise UsageError(f"--against {against}: --mode data compares only with the model itself; leave it out")
    from memorysam_cli.engine import surroundings

    surroundings.refuse_device(device, precision=precision)
    from memorysam_cli.engine import runtime
    from memorysam_cli.engine.measure.workload import Workload, of_demo
    from memorysam_cli.report import console

    place = runtime.choose_device(device)
    sizes = {"backbone": backbone, "size": size, "batch": batch}
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    if place.type == "cpu" and not given:
        given = of_demo()
        console.note("measures what demo trains; what deliver trains, minutes a step: --size 1024 --batch 4")
    workload = Workload(
        task="predict" if mode == "predict" else "train", modalities=modalities, classes=classes, precision=precision,
        saver=saver or "auto", compile=compile, **given,
    )  # fmt: skip
    if mode == "data":
        report = _measure_reading(workload, place, repeats=repeats)
    else:
        report = _measure_network(workload, place, against_plain=against == "plain", repeats=repeats)
    if json:
        console.answer(report)


def _refuse_impossible(backbone: str, size: int) -> None:
    """Refuse an unknown backbone, and an impossible size."""
    from memorysam_cli.recipe import BACKBONES

    if backbone not in BACKBONES:
        raise UsageError(f"--backbone {backbone}: is unknown{did_you_mean(backbone, BACKBONES)}")
    if size % 32:
        raise UsageError(f"--size {size}: must be a positive multiple of 32, such as 256 or 1024")


def _measure_reading(workload: Workload, device: torch.device, *, repeats: int) -> dict[str, Any]:
    from memorysam_cli.engine.measure import input_speed

    report = input_speed.measure(workload, device, repeats=repeats)
    input_speed.show(report)
    return report


def _measure_network(workload: Workload, device: torch.device, *, against_plain: bool, repeats: int) -> dict[str, Any]:
    from memorysam_cli.engine.measure import bench as benchmark

    report = benchmark.measure(workload, device, against_plain=against_plain, repeats=repeats)
    benchmark.show(report, title=f"{workload}{f', saver {workload.saver}' * (workload.task == 'train')}")
    return report
